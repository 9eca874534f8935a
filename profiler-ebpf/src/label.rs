//! Whose work is done: the label at a switch, at a tick, at a sleep, and its time.
//!
//! A label is a greenlet's own (its context tells it), or what its request or its maker gave
//! it. Time by label is kept where it costs least: a greenlet's entry says what it had when
//! its label began, and only when the label changes, or a wait ends, a map is touched.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_loop},
    programs::ProbeContext,
};
use profiler_common::{
    address::Addr,
    clock::OFF_KINDS,
    fault::Fault,
    greenlet,
    label::{KIND_ANSWERED, KIND_INHERITED, KIND_SOURCE, Label, MAX_CHAIN, Source},
    limits::MAX_PARTS,
    memory::Memory as _,
    queue::Queued,
    record::{
        ARMED, GREENLET_UNTOLD, Greenlet, GreenletKey, Kind, LabelRecord, RecordHead, TargetConfig, Totals,
        VERSION,
    },
    walk::StackKey,
};

use crate::{
    clock, emit,
    maps::{self, count},
    memory::UserMemory,
    module,
    slot::Slot,
};

/// What the steps of a chain share: the helper wants it on the stack.
struct Steps<'a> {
    config: &'a TargetConfig,
    slot: &'a mut Slot,
}

type Callback = unsafe extern "C" fn(u32, *mut c_void) -> i64;

unsafe extern "C" fn step(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `run` passes its `Steps`.
    let Steps { config, slot } = unsafe { &mut *context.cast::<Steps<'_>>() };
    let Slot { chain, label_record, .. } = &mut **slot;
    i64::from(!chain.step(&config.label, &mut UserMemory, &mut label_record.about))
}

/// Runs the chain in the slot.
///
/// A global function: the verifier looks at it once, and not at each of its calls.
/// <https://github.com/torvalds/linux/commit/51c39bb1d5d1>, with pointers to memory
/// <https://github.com/torvalds/linux/commit/e5069b9c23b3> (5.13)
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn label_run(config: *const TargetConfig, slot: *mut Slot) -> u32 {
    // It is told nothing of the pointers but their types.
    if config.is_null() || slot.is_null() {
        return 0;
    }
    let callback = step as Callback as *mut c_void;
    // SAFETY: a reference of the callers, which are in this file.
    let config = unsafe { &*config };
    // SAFETY: as above.
    let slot = unsafe { &mut *slot };
    let mut steps = Steps { config, slot };
    // SAFETY: the helper calls `step` with the steps while they are borrowed here.
    unsafe { bpf_loop(MAX_CHAIN, callback, ptr::from_mut(&mut steps).cast(), 0) };
    0
}

/// Finds the label of the context of the thread state `tstate`, into `slot.label`.
///
/// Returns 0, or 1 + the [`profiler_common::label::Blank`] that is the reason why there is
/// none.
#[inline(always)]
pub fn own(config: &TargetConfig, slot: &mut Slot, tstate: Addr) -> u32 {
    let context = UserMemory.pointer(tstate.at(config.layout.python.tstate_context));
    of_context(config, slot, context.unwrap_or(Addr(1)))
}

/// The same of a context.
#[inline(always)]
pub fn of_context(config: &TargetConfig, slot: &mut Slot, context: Addr) -> u32 {
    slot.chain.begin(context);
    let _ran = label_run(config, slot);
    slot.label = slot.chain.label;
    if !slot.label.is_none() {
        slot.label.target = slot.target as u32;
    }
    slot.chain.blank
}

/// Whether anything of the target can have a label.
#[inline(always)]
pub fn wanted(config: &TargetConfig, given: &Label) -> bool {
    config.label.source != 0 || !given.is_none()
}

/// Says what the label in `slot.label`, which [`own`] just found, is; false if there is no
/// room for that now.
#[inline(never)]
pub fn tell(config: &TargetConfig, slot: &mut Slot, now: u64) -> bool {
    let Slot { chain, label_record, .. } = &mut *slot;
    chain.begin_about(&mut label_record.about);
    let _ran = label_run(config, slot);
    send(slot, now)
}

#[inline(always)]
pub fn send(slot: &mut Slot, now: u64) -> bool {
    let record = &mut slot.label_record;
    record.head =
        RecordHead { kind: Kind::Label as u32, version: VERSION, target: slot.target, time_ns: now };
    record.label = slot.label;
    emit::send(&raw const slot.label_record, size_of::<LabelRecord>() as u64, false)
}

/// The label of the greenlet that leaves, of the thread state `slot.tstate`; and what came
/// of the time since it had another.
///
/// The run is in its books already, and `slot.undo` says how long it was.
#[inline(always)]
pub fn at_leave(config: &TargetConfig, slot: &mut Slot, totals: &mut Totals, from: &mut Greenlet) {
    let _left = label_left(config, slot, totals, from);
}

/// A global function, as [`label_run`] is.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn label_left(
    config: *const TargetConfig,
    slot: *mut Slot,
    totals: *mut Totals,
    from: *mut Greenlet,
) -> u32 {
    if config.is_null() || slot.is_null() || totals.is_null() || from.is_null() {
        return 0;
    }
    // SAFETY: references of `at_leave`'s caller.
    let config = unsafe { &*config };
    // SAFETY: as above.
    let slot = unsafe { &mut *slot };
    // SAFETY: as above.
    let totals = unsafe { &mut *totals };
    // SAFETY: as above.
    let from = unsafe { &mut *from };
    if from.given.kind & KIND_ANSWERED != 0 {
        let now = from.since_ns;
        end_answered(slot, from, now);
    }
    slot.label = Label::NONE;
    if config.label.source != 0 {
        match own(config, slot, slot.tstate) {
            0 => totals.labelled += 1,
            _ if !given(config, from).is_none() => totals.given += 1,
            blank => {
                if let Some(counter) = totals.blank.get_mut(blank.wrapping_sub(1) as usize) {
                    *counter += 1;
                }
            }
        }
    } else if !from.given.is_none() {
        totals.given += 1;
    }
    let now = from.since_ns;
    if slot.label.is_none() {
        slot.label = given(config, from);
    } else if !slot.label.is(&from.label) && !slot.label.is(&slot.told) || from.flags & GREENLET_UNTOLD != 0 {
        if tell(config, slot, now) {
            from.flags &= !GREENLET_UNTOLD;
        } else {
            count(totals, Fault::RingFullLabel);
            from.flags |= GREENLET_UNTOLD;
        }
    }
    if slot.parts_count != 0 || !slot.label.is(&from.label) {
        let changed = change(from);
        if changed != 0 {
            totals.changed += 1;
        }
        if changed == FULL {
            count(totals, Fault::LabelsFull);
        }
    }
    0
}

/// What its request or its maker gave a greenlet. In a process with a tracer nothing ends what
/// the wire gave before that was found.
#[inline(always)]
fn given(config: &TargetConfig, greenlet: &Greenlet) -> Label {
    let wire = greenlet.given.kind & KIND_SOURCE == Source::Wire as u32;
    if wire && config.label.source != 0 { Label::NONE } else { own_of(greenlet) }
}

/// What a greenlet was given, whether it is answered or not.
#[inline(always)]
pub fn own_of(greenlet: &Greenlet) -> Label {
    Label { kind: greenlet.given.kind & !KIND_ANSWERED, ..greenlet.given }
}

/// What the current greenlet was given is over: up to `now` it had it.
#[inline(always)]
pub fn end_answered(slot: &mut Slot, greenlet: &mut Greenlet, now: u64) {
    let before = own_of(greenlet);
    observe(slot, &before, now);
    greenlet.given = Label::NONE;
}

/// [`change`]: there was no room for the time of a label.
const FULL: u32 = 2;

/// The label of `from` is `slot.label` now and was another before, or others were seen in
/// between: each gets its time.
///
/// The slot is looked up again: a key of a map must lie in a map's value or on the stack, and
/// up to 6.2 or so the verifier takes what a global function is given for neither.
#[inline(never)]
fn change(from: &mut Greenlet) -> u32 {
    let Some(slot) = maps::slot() else {
        return 0;
    };
    // A switch that was undone has added the begin of this run already.
    let mut begun_ns = slot.undo.from_since_ns.max(from.label_since_ns);
    let mut running_ns = from.running_ns.saturating_sub(slot.run.ns).max(from.label_running_ns);
    let mut full = false;
    // What is charged for this run went through `slot.undo`.
    for ((pair, sum), (gained, before)) in
        slot.pair.off_ns.iter_mut().zip(from.off_ns).zip(slot.undo.off_ns.iter().zip(from.label_off_ns))
    {
        *pair = sum.wrapping_sub(*gained).saturating_sub(before);
    }
    if !from.label.is_none() {
        slot.pair_key.label = from.label;
        slot.pair.ns = running_ns.saturating_sub(from.label_running_ns);
        slot.pair.first_ns = from.label_since_ns;
        slot.pair.last_ns = begun_ns;
        full |= !add_run(slot);
    }
    for (before, (sum, gained)) in from.label_off_ns.iter_mut().zip(from.off_ns.iter().zip(slot.undo.off_ns))
    {
        *before = sum.wrapping_sub(gained);
    }
    let mut last = from.label;
    for number in 0..MAX_PARTS {
        if number as u64 >= slot.parts_count {
            break;
        }
        let Some(part) = slot.parts.get(number) else {
            break;
        };
        let ns = part.until_ns.saturating_sub(begun_ns);
        slot.pair.off_ns = profiler_common::clock::charge(&part.off_ns, &mut slot.part_off_ns, ns);
        for (before, off) in from.label_off_ns.iter_mut().zip(slot.pair.off_ns) {
            *before = before.wrapping_add(off);
        }
        slot.pair.ns = ns;
        slot.pair.first_ns = begun_ns;
        slot.pair.last_ns = part.until_ns;
        slot.pair_key.label = part.label;
        last = part.label;
        begun_ns += ns;
        running_ns += ns;
        if !last.is_none() {
            full |= !add_run(slot);
        }
    }
    slot.parts_count = 0;
    from.label_running_ns = running_ns;
    from.label_since_ns = begun_ns;
    from.label = slot.label;
    if full { FULL } else { u32::from(!last.is(&slot.label)) }
}

#[inline(always)]
fn add_run(slot: &mut Slot) -> bool {
    slot.pair_key.stack = StackKey { id: 0, check: 0 };
    slot.pair.count = 1;
    slot.pair.queued = Queued::NONE;
    maps::add_pair(&slot.pair_key, &slot.pair)
}

/// A wait or a sleep of `ns` in `stack`, that ends at `now`, had that label; how much of it was
/// queued is in `slot.pair`, for a function takes five arguments at most.
#[inline(never)]
pub fn add_wait(slot: &mut Slot, stack: &StackKey, label: &Label, ns: u64, now: u64) -> bool {
    slot.pair_key.stack = *stack;
    if stack.is_none() {
        return true;
    }
    slot.pair_key.label = *label;
    slot.pair.ns = ns;
    slot.pair.count = 1;
    slot.pair.first_ns = now.wrapping_sub(ns);
    slot.pair.last_ns = now;
    slot.pair.off_ns = [0; OFF_KINDS];
    maps::add_pair(&slot.pair_key, &slot.pair)
}

/// At `now`, in the middle of a run, the current greenlet has that label.
#[inline(always)]
pub fn observe(slot: &mut Slot, label: &Label, now: u64) {
    if slot.parts_count == 0 {
        slot.part_off_ns = slot.charged.off_ns;
    }
    let mut number = slot.parts_count;
    let same = number != 0
        && slot.parts.get(number.wrapping_sub(1) as usize & 3).is_some_and(|last| last.label.is(label));
    let full = !same && number >= MAX_PARTS as u64;
    if same || full {
        number -= 1;
    } else {
        slot.parts_count = number + 1;
    }
    if full && let Some(totals) = maps::totals(slot.target) {
        count(totals, Fault::LabelsFull);
    }
    let off_ns = slot.clock.off_ns;
    if let Some(part) = slot.parts.get_mut(number as usize & 3) {
        // Without room the last one and this one are together nobody's.
        part.label = if full { Label::NONE } else { *label };
        part.until_ns = now;
        part.off_ns = off_ns;
    }
}

/// The label of the greenlet that is current on the thread state `tstate`, into `slot.label`;
/// 0, or 1 + why it has none of its own.
#[inline(always)]
pub fn at_look(
    config: &TargetConfig,
    slot: &mut Slot,
    tstate: Addr,
    current: Option<&Greenlet>,
    now: u64,
) -> u32 {
    label_seen(config, slot, tstate.0, current.map_or(ptr::null(), ptr::from_ref), now)
}

/// A global function, as [`label_run`] is.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn label_seen(
    config: *const TargetConfig,
    slot: *mut Slot,
    tstate: u64,
    current: *const Greenlet,
    now: u64,
) -> u32 {
    if config.is_null() || slot.is_null() {
        return 0;
    }
    // SAFETY: references of `at_look`'s caller.
    let config = unsafe { &*config };
    // SAFETY: as above.
    let slot = unsafe { &mut *slot };
    // SAFETY: as above, or null.
    let current = unsafe { current.as_ref() };
    let mut blank = 0;
    slot.label = Label::NONE;
    if config.label.source != 0 {
        blank = own(config, slot, Addr(tstate));
        let known = current.is_some_and(|current| current.label.is(&slot.label));
        if blank == 0 && !known && !slot.label.is(&slot.told) && tell(config, slot, now) {
            slot.told = slot.label;
        }
    }
    if let Some(current) = current
        && slot.label.is_none()
    {
        slot.label = given(config, current);
    }
    blank
}

/// A greenlet is made: what its maker works for is its work too, until its context says
/// something else.
#[inline(always)]
pub fn on_made(ctx: &ProbeContext, object: Addr) {
    let Some(slot) = maps::slot() else {
        maps::keep_normal_stack(ctx);
        return;
    };
    let Some(config) = maps::config(slot.target) else {
        return;
    };
    if slot.epoch != config.epoch || config.started_ns == ARMED {
        return;
    }
    if !module::owns(ctx, config, slot.target) {
        return;
    }
    slot.enter();
    if let Ok(pimpl) = greenlet::pimpl(&config.layout, &mut UserMemory, object) {
        slot.to_key = GreenletKey { target: slot.target, pimpl };
        // Of one that was there before and of whose end nothing was seen.
        maps::drop_unstarted(&slot.to_key);
        let _made = made(config, slot);
    } else if let Some(totals) = maps::totals(slot.target) {
        count(totals, Fault::ReadState);
    }
    slot.leave();
}

/// Its key is `slot.to_key`.
#[inline(never)]
fn made(config: &TargetConfig, slot: &mut Slot) -> u32 {
    let Some(totals) = maps::totals(slot.target) else {
        return 0;
    };
    let key = GreenletKey { target: slot.target, pimpl: slot.current };
    let Some(current) = maps::greenlet(&key) else {
        return 0;
    };
    if !wanted(config, &current.given)
        || current.given.kind & KIND_ANSWERED != 0
        || greenlet::current(&config.layout, &mut UserMemory, slot.thread_state) != Ok(slot.current_object)
    {
        return 0;
    }
    let now = clock::now(config, slot, totals);
    if now < config.started_ns {
        return 0;
    }
    totals.hits += 1;
    let _blank = at_look(config, slot, slot.tstate, Some(current), now);
    if slot.label.is_none() {
        return 0;
    }
    let mut label = slot.label;
    label.kind |= KIND_INHERITED;
    if !maps::insert_unstarted(&slot.to_key, &label) {
        count(totals, Fault::LabelsFull);
    }
    0
}

/// The current greenlet of the calling thread, if greenlet says the same as we.
#[inline(always)]
pub fn current(config: &TargetConfig, slot: &Slot) -> Option<&'static mut Greenlet> {
    if slot.epoch != config.epoch || slot.thread != bpf_get_current_pid_tgid() {
        return None;
    }
    let current = greenlet::current(&config.layout, &mut UserMemory, slot.thread_state);
    if current != Ok(slot.current_object) {
        return None;
    }
    maps::greenlet(&GreenletKey { target: slot.target, pimpl: slot.current })
}
