//! With what stack a thread goes to sleep, and for how long.
//!
//! Only where its current greenlet is sure, as at a tick. The thread is part of the
//! stack's key, for two threads may wake at the same time and the sums of a key have one
//! writer.

use profiler_common::{
    address::Addr,
    clock::Off,
    greenlet,
    record::{CONFIG_STACKS, GreenletKey, TargetConfig, off_owner},
    walk::{StackKey, Start, Walk},
};

use crate::{
    maps,
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
    if slot.epoch == config.epoch {
        let current = greenlet::current(&config.layout, &mut UserMemory, slot.thread_state);
        if current != Ok(slot.current_object) {
            return 0;
        }
        let key = GreenletKey { target: slot.target, pimpl: slot.current };
        // A hub that waits for events is idle, and always in the same place.
        if why == Off::Polled
            && maps::greenlet(&key).is_some_and(|current| config.hub_types.contains(&current.type_object))
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
#[inline(always)]
pub fn count(slot: &mut Slot, why: u32) {
    let key = slot.off_stack;
    if key.is_none() {
        return;
    }
    slot.off_stack = StackKey { id: 0, check: 0 };
    let slept = slot.clock.off_ns.get(why as usize).copied().unwrap_or_default();
    if let Some(known) = maps::stack(&key) {
        known.ns += slept.wrapping_sub(slot.off_before_ns);
        known.count += 1;
    }
}
