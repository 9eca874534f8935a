//! An event loop polls: what it resumes from now on was not ready when it polled before.

use profiler_common::{
    address::Addr,
    memory::Memory as _,
    record::{ARMED, Greenlet, TargetConfig},
};

use crate::{clock, maps, memory::UserMemory, slot::Slot, socket};

/// The current greenlet is about to poll. It may not hold the GIL, so only what is its thread's is
/// written.
#[inline(always)]
pub fn on_poll(events: u32) {
    let Some(slot) = maps::slot() else {
        return;
    };
    let Some(config) = maps::config(slot.target) else {
        return;
    };
    if slot.epoch != config.epoch || config.started_ns == ARMED {
        return;
    }
    slot.polls.begin(slot.current, clock::time(), events);
}

/// Corrects the bounds in the slot's pair for `to`, which goes on at `now` after a wait of `ns`, by
/// what is known of why it does.
#[inline(never)]
pub fn resumed(config: &TargetConfig, slot: &mut Slot, to: &mut Greenlet, now: u64, ns: u64) -> u32 {
    let ready_ns = socket::ready(to);
    let queued = &mut slot.pair.queued;
    let exception = Addr(slot.tstate.0.wrapping_add(config.tstate_exception.into()));
    if UserMemory.word(exception) != Ok(0) {
        // It is thrown into: killed at any time, or a timeout was over.
        queued.by_anyone();
        return 0;
    }
    if ready_ns != 0 {
        // What comes between the receipt and the switch is there all the wait.
        queued.since_ready(now.saturating_sub(ready_ns).min(ns));
    }
    0
}
