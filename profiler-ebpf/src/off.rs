//! With what stack a thread goes to sleep, and for how long.
//!
//! Only where its current greenlet is sure, as at a tick. The thread is part of the
//! stack's key, for two threads may wake at the same time and the sums of a key have one
//! writer.

use profiler_common::{
    address::Addr,
    clock::Off,
    fault::Fault,
    greenlet,
    label::{KIND_INHERITED, Label},
    memory::Memory as _,
    owner::{OffOwner, off_owner},
    queue::Queued,
    record::{
        CONFIG_STACKS, GREENLET_PASSES, GREENLET_PLACE, Greenlet, GreenletKey, Kind, MAX_PLACES, OffRecord,
        PLACES_HUB, RecordHead, TargetConfig, VERSION,
    },
    walk::{StackKey, Start, Walk},
};

use crate::{
    clock, emit, label, maps,
    memory::UserMemory,
    own::{By, FOUND, leaf_frame},
    part,
    slot::Slot,
    stack, switch, wire,
};

/// Takes the stack of the current thread, which goes to sleep, into `slot.off_stack`;
/// none if there is none to take or it is not sure.
#[inline(always)]
pub fn take_stack(config: &TargetConfig, slot: &mut Slot, why: Off, call: i64, now: u64) {
    slot.off_stack = StackKey { id: 0, check: 0 };
    slot.off_seen = 0;
    let wanted = why != Off::Preempted && config.flags & CONFIG_STACKS != 0 && now >= config.started_ns;
    if wanted && slot.busy == 0 {
        let _taken = walk(config, slot, call, why, now);
    }
}

#[inline(never)]
fn walk(config: &TargetConfig, slot: &mut Slot, call: i64, why: Off, now: u64) -> u32 {
    let Some(totals) = maps::totals(slot.target) else {
        return 0;
    };
    let mut entry = None;
    if slot.epoch == config.epoch {
        let current = greenlet::current(&config.layout, &mut UserMemory, slot.thread_state);
        if current != Ok(slot.current_object) {
            return 0;
        }
        let key = GreenletKey { target: slot.target, pimpl: slot.current };
        // A hub that waits for events is idle, and always in the same place.
        entry = maps::greenlet(&key);
        if why == Off::Polled
            && entry.as_ref().is_some_and(|current| config.hub_types.contains(&current.type_object))
        {
            slot.polls.slept(slot.current, wire::is_epoll(call));
            slot.places |= PLACES_HUB;
            return 0;
        }
        if why == Off::Gil {
            let _holder = note_holder(config, slot);
        } else if let Some(current) = entry.as_deref_mut() {
            // No other program of this thread is at work.
            wire::on_sleep(slot, current, call, now);
        }
    }
    let mut frame = Addr::NULL;
    if leaf_frame(config, slot, By::Sleep, now, &mut frame) != FOUND {
        return 0;
    }
    let mut off = OffOwner {
        why: why as u32,
        plain: slot.epoch != config.epoch,
        call: call as u16,
        tid: slot.thread as u32,
        place: 0,
        passes: false,
        beside: false,
    };
    if why != Off::Gil
        && let Some(current) = &mut entry
    {
        off.place = place(slot, current);
        off.passes = current.flags & GREENLET_PASSES != 0;
        off.beside = slot.places & PLACES_HUB != 0;
    }
    let owner = off_owner(off);
    let mut empty = StackKey::empty(slot.target, owner);
    empty.add(Addr(slot.thread), 0);
    let start = Start { frame, top_frame_only: false };
    stack::walk_on(start, empty, config, slot.target, &mut slot.scratch, By::Sleep);
    let Walk { key, fault, .. } = slot.scratch.walk;
    match fault {
        None => {}
        Some(Fault::StackTruncated) => maps::count(totals, Fault::SleepTruncated),
        Some(_) => return 0,
    }
    slot.off_stack = key;
    slot.off_label = Label::NONE;
    slot.off_greenlet = entry.as_ref().map_or(0, |entry| entry.id);
    let given = entry.as_ref().map_or(Label::NONE, |entry| entry.given);
    if label::wanted(config, &given) {
        let _blank = label::at_look(config, slot, slot.own_tstate, entry.as_deref(), now);
        slot.off_label = slot.label;
        if entry.is_some() {
            slot.off_seen = 1;
        }
    }
    if key == slot.sent_stack && config.sending == slot.sent {
        return 0;
    }
    switch::about(config, slot, now, owner, empty);
    if stack::ensure_sent(config, &mut slot.scratch, totals, By::Sleep) {
        slot.sent_stack = key;
        slot.sent = config.sending;
    }
    0
}

/// The number of a greenlet among those of its thread whose sleeps are kept apart, so that a hub's
/// or a pool worker's can be told from others'.
#[inline(always)]
fn place(slot: &mut Slot, current: &mut Greenlet) -> u32 {
    let known = current.flags >> GREENLET_PLACE & 0xff;
    if known != 0 || slot.places & !PLACES_HUB >= MAX_PLACES {
        return known;
    }
    slot.places += 1;
    let place = slot.places & !PLACES_HUB;
    current.flags |= place << GREENLET_PLACE;
    place
}

/// Who has the GIL that this thread goes to sleep for: what `last_holder` or, on 3.11, the
/// runtime's current thread state says.
#[inline(never)]
fn note_holder(config: &TargetConfig, slot: &mut Slot) -> u32 {
    let native_id = config.layout.python.tstate_native_id;
    slot.gil_holder = match UserMemory.pointer(config.holder) {
        Ok(tstate) if !tstate.is_null() => UserMemory.word(tstate.at(native_id)).unwrap_or(0) as u32,
        Ok(_) | Err(_) => 0,
    };
    0
}

/// It waited so long for the GIL in its current run: keeps for whom it waited most, if
/// that is more than half.
#[inline(always)]
fn waited_for_gil(slot: &mut Slot, ns: u64) {
    let began_ns = slot.run.ended_ns;
    if slot.run_began_ns != began_ns {
        slot.run_began_ns = began_ns;
        slot.run_holder = 0;
        slot.run_holder_ns = 0;
    }
    if slot.run_holder == slot.gil_holder {
        slot.run_holder_ns += ns;
    } else if slot.run_holder_ns >= ns {
        slot.run_holder_ns -= ns;
    } else {
        slot.run_holder = slot.gil_holder;
        slot.run_holder_ns = ns - slot.run_holder_ns;
    }
}

/// The thread is back: counts what it slept since for the stack that it slept with.
///
/// It was awake `queued` ns before it came onto a CPU: that is no part of the sleep. `seen` is
/// false where it has run since, and perhaps another greenlet on it.
#[inline(always)]
pub fn count(slot: &mut Slot, why: u32, queued: u64, seen: bool) {
    if !slot.off_stack.is_none() {
        let _counted = off_add(slot, why, queued, u32::from(seen));
    }
}

/// Out of line: the scheduler's program and all that it calls to take a sleep's stack have 512
/// bytes of stack together. A global function, as [`label`]'s are.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn off_add(slot: *mut Slot, why: u32, queued: u64, seen: u32) -> u32 {
    if slot.is_null() {
        return 0;
    }
    // SAFETY: a reference of `count`'s caller.
    let slot = unsafe { &mut *slot };
    let key = slot.off_stack;
    slot.off_stack = StackKey { id: 0, check: 0 };
    let ns = clock::slept(slot, why).wrapping_sub(slot.off_before_ns);
    let mut first = false;
    if let Some(known) = maps::stack(&key) {
        first = known.count == 0;
        known.ns += ns;
        known.count += 1;
    }
    let label = slot.off_label;
    let now = slot.clock.since_ns;
    if slot.off_greenlet != 0 {
        let _slept = in_greenlet(slot, &key, why, ns, first);
    }
    let looked = slot.off_seen != 0;
    slot.off_seen = 0;
    if slot.busy != 0 {
        // A program was preempted that may be about to count time of a label itself.
        return 0;
    }
    if looked && seen != 0 {
        // It did nothing meanwhile.
        part::push(slot, &label, now);
    }
    if label.is_none() {
        return 0;
    }
    slot.pair.queued = Queued::NONE;
    let woken = now.wrapping_sub(queued);
    if !label::add_sleep(slot, &key, &label, ns, woken)
        && let Some(totals) = maps::totals(slot.target)
    {
        maps::count(totals, Fault::LabelsFull);
    }
    if let Some(config) = maps::config(slot.target)
        && wants_told(config, &label, ns)
    {
        let greenlet = slot.off_greenlet;
        let _told = tell(slot, greenlet, &label, woken, ns);
    }
    0
}

/// A sleep in a greenlet is over: user space tells a hub's from a block.
#[inline(never)]
fn in_greenlet(slot: &mut Slot, key: &StackKey, why: u32, ns: u64, first: bool) -> u32 {
    if why == Off::Gil as u32 {
        waited_for_gil(slot, ns);
        return 0;
    }
    let Some(config) = maps::config(slot.target) else {
        return 0;
    };
    if (first || ns >= config.block_ns) && slot.busy == 0 {
        slot.pair_key.stack = *key;
        let (greenlet, now, label) = (slot.off_greenlet, slot.clock.since_ns, slot.off_label);
        let _told = send_off(slot, Kind::Slept, greenlet, &label, now, ns);
    }
    0
}

/// Whether a wait or a sleep of `ns` is told by itself: a request's own, not of greenlets that
/// it made.
#[inline(always)]
pub fn wants_told(config: &TargetConfig, label: &Label, ns: u64) -> bool {
    ns >= config.off_from_ns && label.kind & KIND_INHERITED == 0
}

/// Tells of `ns` off the CPU that end at `now`; in the stack by which [`label::add_wait`]
/// just counted it.
#[inline(never)]
pub fn tell(slot: &mut Slot, greenlet: u64, label: &Label, now: u64, ns: u64) -> u32 {
    send_off(slot, Kind::Off, greenlet, label, now, ns)
}

#[inline(always)]
fn send_off(slot: &mut Slot, kind: Kind, greenlet: u64, label: &Label, now: u64, ns: u64) -> u32 {
    let head = RecordHead { kind: kind as u32, version: VERSION, target: slot.target, time_ns: now };
    slot.off_record = OffRecord {
        head,
        begin_ns: now.wrapping_sub(ns),
        thread: slot.thread,
        greenlet,
        stack: slot.pair_key.stack,
        label: *label,
        queued: slot.pair.queued,
    };
    if !emit::send(&raw const slot.off_record, size_of::<OffRecord>() as u64, false)
        && let Some(totals) = maps::totals(slot.target)
    {
        maps::count(totals, Fault::RingFullOff);
    }
    0
}
