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
    label::{Blank, KIND_ANSWERED, Label, MAX_CHAIN, Source},
    memory::Memory as _,
    record::{
        ARMED, CONFIG_WIRE, GREENLET_UNKNOWN, GREENLET_UNTOLD, Greenlet, GreenletKey, Kind, LabelRecord,
        RecordHead, TargetConfig, Totals, VERSION,
    },
    walk::StackKey,
};

use crate::{
    clock, emit, lent,
    maps::{self, count},
    memory::UserMemory,
    module, part,
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

/// Finds the label of the context of the thread state `tstate`, into `slot.label`, and how many
/// contexts were entered and left there, into `slot.contexts_now`.
///
/// Returns 0, or 1 + the [`profiler_common::label::Blank`] that is the reason why there is
/// none.
#[inline(always)]
fn own(config: &TargetConfig, slot: &mut Slot, tstate: Addr) -> u32 {
    let context = config.layout.python.tstate_context;
    let version = config.label.layout.tstate_context_ver;
    let mut words = [1, 0];
    let known = UserMemory.read(tstate.at(context), &mut words).is_ok();
    let [at, mut entered] = words;
    if version != context.wrapping_add(8) {
        entered = UserMemory.word(tstate.at(version)).unwrap_or_default();
    }
    slot.contexts_now = entered;
    of_context(config, slot, Addr(if known { at } else { 1 }))
}

/// The request of a context's label. What is in `slot.label` stays: a switch still tells of it.
#[inline(always)]
pub fn request_of_context(config: &TargetConfig, slot: &mut Slot, context: Addr) -> u64 {
    slot.chain.begin(context);
    let _ran = label_run(config, slot);
    slot.chain.label.request()
}

/// The same of a context.
#[inline(always)]
pub fn of_context(config: &TargetConfig, slot: &mut Slot, context: Addr) -> u32 {
    let _request = request_of_context(config, slot, context);
    slot.label = slot.chain.label;
    if !slot.label.is_none() {
        slot.label.target = slot.target as u32;
    }
    slot.chain.blank
}

/// [`Slot::seen`]: not known.
const UNKNOWN: u64 = u64::MAX;

/// The request of the label in `slot.label`, which [`own`] or a gift just told.
#[inline(always)]
fn seen(slot: &Slot) -> u64 {
    if Blank::is_unknown(slot.chain.blank) { UNKNOWN } else { slot.label.request() }
}

/// Whether anything of the target can have a label.
#[inline(always)]
pub fn wanted(config: &TargetConfig, given: &Label) -> bool {
    config.label.source != 0 || !given.is_none()
}

/// Says what the label in `slot.label`, which [`own`] just found, is; false if there is no
/// room for that now. `given` is what its greenlet's request is by the wire.
#[inline(never)]
pub fn tell(config: &TargetConfig, slot: &mut Slot, given: &Label, now: u64) -> bool {
    let Slot { chain, label_record, .. } = &mut *slot;
    chain.begin_about(&mut label_record.about);
    label_record.about.request = if given.is_wire() { given.id } else { [0; 2] };
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
    slot.label = Label::NONE;
    let now = from.since_ns;
    let mut given = lent::given(config, slot.target, from);
    let answered = from.given.kind & KIND_ANSWERED != 0;
    let mut blank = 0;
    let mut unknown = false;
    if config.label.source != 0 {
        blank = own(config, slot, slot.tstate);
        unknown = Blank::is_unknown(blank);
        if unknown {
            given = Label::NONE;
        }
        match blank {
            0 => totals.labelled += 1,
            // After its answer it leaves for something else.
            _ if !given.is_none() && !answered => totals.given += 1,
            blank => {
                // What the compiler knows of it by now the verifier up to 6.12 does not.
                // SAFETY: a local.
                let blank = unsafe { ptr::read_volatile(&raw const blank) };
                if let Some(counter) = totals.blank.get_mut(blank.wrapping_sub(1) as usize) {
                    *counter += 1;
                }
            }
        }
    } else if !given.is_none() {
        totals.given += 1;
    }
    if from.lent != 0 {
        // The last moment in which it surely went on: the run's begin.
        let _over = lent::take_back(slot, from, blank);
    }
    if slot.label.is_none() && from.given.is_inherited() && given.is_none() && !unknown {
        lent::outlived(slot.target, totals, from);
    }
    if slot.label.is_none() {
        slot.label = given;
    } else if !slot.label.is(&from.label) && !slot.label.is(&slot.told) || from.flags & GREENLET_UNTOLD != 0 {
        // What it had before it got its request is not that; nor, perhaps, what is first seen
        // after the answer.
        let request = if answered || slot.label.is(&from.label) { Label::NONE } else { given };
        if tell(config, slot, &request, now) {
            from.flags &= !GREENLET_UNTOLD;
        } else {
            count(totals, Fault::RingFullLabel);
            from.flags |= GREENLET_UNTOLD;
        }
    }
    let has_given = slot.label.is(&given);
    let changes = label_end_run(config, slot, from, now) != 0;
    from.flags &= !GREENLET_UNKNOWN;
    if unknown {
        from.flags |= GREENLET_UNKNOWN;
    }
    if !changes && !answered {
        return 0;
    }
    if answered {
        from.given = Label::NONE;
        if has_given {
            // It had it to here, and waits for something else.
            slot.label = Label::NONE;
        }
    }
    let changed = part::change(from);
    if changed & part::CHANGED != 0 {
        totals.changed += 1;
    }
    if changed & part::FULL != 0 {
        count(totals, Fault::LabelsFull);
    }
    0
}

/// Whose the end of the run was; 0 if all of it is what the greenlet had before. Out of line:
/// the stack is scarce. A global function, as [`label_run`] is.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn label_end_run(
    config: *const TargetConfig,
    slot: *mut Slot,
    from: *const Greenlet,
    now: u64,
) -> u32 {
    if config.is_null() || slot.is_null() || from.is_null() {
        return 0;
    }
    // SAFETY: references of `label_left`.
    let config = unsafe { &*config };
    // SAFETY: as above.
    let slot = unsafe { &mut *slot };
    // SAFETY: as above.
    let from = unsafe { &*from };
    let owner = owner(config, slot, from);
    // A switch enters a context.
    slot.contexts = slot.contexts_now.wrapping_add(1);
    let changes = slot.parts_count != 0 || !slot.label.is(&from.label) || !owner.is(&from.label);
    if changes || from.given.kind & KIND_ANSWERED != 0 {
        part::push_last(slot, &owner, now);
    }
    u32::from(changes)
}

/// Whose the time since the last look is, now that the greenlet has the label `slot.label`.
///
/// Its own label is its context's, and contexts change without a switch: an event loop enters
/// that of a task for each step of it. If none was entered or left since, and the label is of
/// the same request as before, it was so all the time. What it has from the wire is known from
/// begin to end, whatever contexts are entered meanwhile; but not whether the tracer has another
/// word for it, where that can't be read.
#[inline(always)]
fn owner(config: &TargetConfig, slot: &Slot, greenlet: &Greenlet) -> Label {
    if config.label.source == 0 {
        return slot.label;
    }
    let before = match slot.parts_count {
        0 if greenlet.flags & GREENLET_UNKNOWN != 0 => UNKNOWN,
        0 => greenlet.label.request(),
        _ => slot.seen,
    };
    let now = seen(slot);
    let known = before != UNKNOWN && now != UNKNOWN;
    let given = known && greenlet.given.is_wire() && config.flags & CONFIG_WIRE != 0;
    if given
        && let Some(last) = slot.parts.get(slot.parts_count.wrapping_sub(1) as usize & 3)
        && slot.parts_count != 0
        && last.label.is(&lent::own_of(greenlet))
    {
        // The tracer's word for it would be one part more.
        return last.label;
    }
    if slot.contexts == slot.contexts_now && before == now {
        slot.label
    } else if given {
        lent::own_of(greenlet)
    } else {
        Label::DISPUTED
    }
}

/// The greenlet gets a request from the wire, or is done with one; what it had until now it had
/// up to `now`. The only way in which that changes: whose a run was is known by it.
#[inline(always)]
pub fn give(slot: &mut Slot, greenlet: &mut Greenlet, id: [u64; 2], now: u64) {
    let [began_ns, thread] = id;
    let _given = label_given(slot, greenlet, began_ns, thread, now);
}

/// The id of none.
pub const NO_REQUEST: [u64; 2] = [0; 2];

/// The label of the request with that id.
#[inline(always)]
pub fn of_wire(slot: &Slot, id: [u64; 2]) -> Label {
    if id == NO_REQUEST {
        return Label::NONE;
    }
    Label { id, span: 0, kind: Source::Wire as u32, target: slot.target as u32 }
}

/// A global function, as [`label_run`] is.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn label_given(
    slot: *mut Slot,
    greenlet: *mut Greenlet,
    began_ns: u64,
    thread: u64,
    now: u64,
) -> u32 {
    if slot.is_null() || greenlet.is_null() {
        return 0;
    }
    // SAFETY: references of `give`'s caller.
    let slot = unsafe { &mut *slot };
    // SAFETY: as above.
    let greenlet = unsafe { &mut *greenlet };
    // Not a pointer to it: the kernel wants to write where those to a global function lead, and a
    // constant lies in memory that it can't.
    let label = of_wire(slot, [began_ns, thread]);
    let Some(config) = maps::config(slot.target) else {
        return 0;
    };
    let busy = slot.busy;
    // A tick uses what a look uses.
    slot.enter();
    slot.label = Label::NONE;
    let mut blank = 0;
    if config.label.source != 0 {
        blank = own(config, slot, slot.tstate);
    }
    // Or may have.
    let has_own = !slot.label.is_none() || Blank::is_unknown(blank);
    if !has_own {
        slot.label = lent::given(config, slot.target, greenlet);
    }
    let _pushed = push_seen(config, slot, greenlet, now);
    if greenlet.lent != 0 && greenlet.given.is_wire() && greenlet.given.request() == greenlet.lent {
        let _over = lent::over(slot, greenlet, now);
    }
    greenlet.given = label;
    if !has_own {
        slot.label = label;
    }
    slot.seen = seen(slot);
    slot.contexts = slot.contexts_now;
    if busy == 0 {
        slot.leave();
    }
    0
}

/// A wait or a sleep of `ns` in `stack`, that ends at `now`, had that label; how much of it was
/// queued is in `slot.pair`, for a function takes five arguments at most.
#[inline(never)]
pub fn add_wait(slot: &mut Slot, stack: &StackKey, label: &Label, ns: u64, now: u64) -> bool {
    if stack.is_none() {
        slot.pair_key.stack = *stack;
        slot.handed = 0;
        return true;
    }
    of_wait(slot, stack, label, ns, now);
    maps::add_pair(&slot.pair_key, &slot.pair)
}

/// The same, of a slot that a global function was given: up to 6.2 or so the verifier takes what
/// that points to for no key of a map.
#[inline(never)]
pub fn add_sleep(slot: &mut Slot, stack: &StackKey, label: &Label, ns: u64, now: u64) -> bool {
    of_wait(slot, stack, label, ns, now);
    let (key, pair) = (slot.pair_key, slot.pair);
    maps::add_pair(&key, &pair)
}

#[inline(always)]
fn of_wait(slot: &mut Slot, stack: &StackKey, label: &Label, ns: u64, now: u64) {
    slot.pair_key.stack = *stack;
    slot.pair_key.label = *label;
    slot.pair_key.label.kind |= slot.handed;
    slot.handed = 0;
    slot.pair.ns = ns;
    slot.pair.count = 1;
    slot.pair.first_ns = now.wrapping_sub(ns);
    slot.pair.last_ns = now;
    slot.pair.off_ns = [0; OFF_KINDS];
}

/// The label of the greenlet that is current on the thread state `tstate`, into `slot.label`,
/// and whose its time since the last look is; 0, or 1 + why it has none of its own.
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
    let mut given = current.map_or(Label::NONE, |current| lent::given(config, slot.target, current));
    if config.label.source != 0 {
        blank = own(config, slot, Addr(tstate));
        if Blank::is_unknown(blank) {
            given = Label::NONE;
        }
        let known = current.is_some_and(|current| current.label.is(&slot.label));
        let answered = current.is_some_and(|current| current.given.kind & KIND_ANSWERED != 0);
        let request = if answered { Label::NONE } else { given };
        if blank == 0 && !known && !slot.label.is(&slot.told) && tell(config, slot, &request, now) {
            slot.told = slot.label;
        }
    }
    if slot.label.is_none() {
        slot.label = given;
    }
    if let Some(current) = current {
        let _pushed = push_seen(config, slot, current, now);
    }
    blank
}

/// Whose the time up to this look was. Out of line: the stack is scarce.
#[inline(never)]
fn push_seen(config: &TargetConfig, slot: &mut Slot, current: &Greenlet, now: u64) -> u32 {
    let owner = owner(config, slot, current);
    part::push(slot, &owner, now);
    slot.seen = seen(slot);
    slot.contexts = slot.contexts_now;
    0
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
    // What is answered is not handed on.
    if slot.label.is_none() || current.given.kind & KIND_ANSWERED != 0 && slot.label.is_wire() {
        return 0;
    }
    if !lent::lend(slot, current) || !lent::inherit(slot) {
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
