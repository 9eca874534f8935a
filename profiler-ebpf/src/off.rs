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
    owner::off_owner,
    record::{CONFIG_STACKS, GreenletKey, Kind, OffRecord, RecordHead, TargetConfig, VERSION},
    walk::{StackKey, Start, Walk},
};

use crate::{
    clock, emit, label, maps,
    memory::UserMemory,
    own::{FOUND, leaf_frame},
    slot::Slot,
    stack, switch,
};

/// Takes the stack of the current thread, which goes to sleep, into `slot.off_stack`;
/// none if there is none to take or it is not sure.
#[inline(always)]
pub fn take_stack(config: &TargetConfig, slot: &mut Slot, why: Off, call: i64, now: u64) {
    slot.off_stack = StackKey { id: 0, check: 0 };
    slot.off_seen = 0;
    let wanted = why != Off::Preempted && config.flags & CONFIG_STACKS != 0 && now >= config.started_ns;
    if wanted && slot.busy == 0 {
        let plain = slot.epoch != config.epoch;
        let _taken = walk(config, slot, off_owner(why as u32, plain, call), why, now);
    }
}

#[inline(never)]
fn walk(config: &TargetConfig, slot: &mut Slot, owner: Addr, why: Off, now: u64) -> u32 {
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
            return 0;
        }
    }
    let mut frame = Addr::NULL;
    if leaf_frame(config, slot, &mut frame) != FOUND {
        return 0;
    }
    let python = &config.layout.python;
    let mut empty = StackKey::empty(slot.target, owner);
    empty.add(Addr(slot.thread), 0);
    stack::walk_on(Start { frame, top_frame_only: false }, empty, python, &mut slot.scratch);
    let Walk { key, fault, .. } = slot.scratch.walk;
    if fault.is_some() {
        return 0;
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
    if stack::ensure_sent(python, &mut slot.scratch, totals) {
        slot.sent_stack = key;
        slot.sent = config.sending;
    }
    0
}

/// The thread is back: counts what it slept since for the stack that it slept with.
///
/// `seen` is false where it has run since, and perhaps another greenlet on it.
#[inline(always)]
pub fn count(slot: &mut Slot, why: u32, seen: bool) {
    if !slot.off_stack.is_none() {
        let _counted = add(slot, why, seen);
    }
}

/// Out of line: the scheduler's program and all that it calls to take a sleep's stack have 512
/// bytes of stack together.
#[inline(never)]
fn add(slot: &mut Slot, why: u32, seen: bool) -> u32 {
    let key = slot.off_stack;
    slot.off_stack = StackKey { id: 0, check: 0 };
    let ns = clock::slept(slot, why).wrapping_sub(slot.off_before_ns);
    if let Some(known) = maps::stack(&key) {
        known.ns += ns;
        known.count += 1;
    }
    let label = slot.off_label;
    let now = slot.clock.since_ns;
    let looked = slot.off_seen != 0;
    slot.off_seen = 0;
    if slot.busy != 0 {
        // A program was preempted that may be about to count time of a label itself.
        return 0;
    }
    if looked && seen {
        // It did nothing meanwhile.
        label::push(slot, &label, now);
    }
    if label.is_none() {
        return 0;
    }
    if !label::add_wait(slot, &key, &label, ns, now)
        && let Some(totals) = maps::totals(slot.target)
    {
        maps::count(totals, Fault::LabelsFull);
    }
    if let Some(config) = maps::config(slot.target)
        && wants_told(config, &label, ns)
    {
        let greenlet = slot.off_greenlet;
        let _told = tell(slot, greenlet, &label, now, ns);
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
    let head = RecordHead { kind: Kind::Off as u32, version: VERSION, target: slot.target, time_ns: now };
    slot.off_record = OffRecord {
        head,
        begin_ns: now.wrapping_sub(ns),
        thread: slot.thread,
        greenlet,
        stack: slot.pair_key.stack,
        label: *label,
    };
    if !emit::send(&raw const slot.off_record, size_of::<OffRecord>() as u64, false)
        && let Some(totals) = maps::totals(slot.target)
    {
        maps::count(totals, Fault::RingFullOff);
    }
    0
}
