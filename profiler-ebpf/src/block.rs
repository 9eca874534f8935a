//! Runs without a switch that are too long, and whom they held up.

use profiler_common::{
    clock::Off,
    record::{BlockRecord, Greenlet, Kind, RecordHead, TargetConfig, VERSION},
};

use crate::{emit, slot::Slot};

/// A run of `from`, which is in `slot.run` and began in the run that began at `began_ns` by the
/// slot, was long; a hub's is if it did not poll all the time. (What is known of other hubs
/// and of pool workers user space knows.)
#[inline(never)]
pub fn begin(config: &TargetConfig, slot: &mut Slot, from: &Greenlet, began_ns: u64) -> u32 {
    let polled = slot.undo.off_ns.get(Off::Polled as usize).copied().unwrap_or_default();
    let idle = if config.hub_types.contains(&from.type_object) { polled } else { 0 };
    if slot.run.ns.saturating_sub(idle) < config.block_ns {
        return 0;
    }
    finish(slot);
    let gil_ns = slot.undo.off_ns.get(Off::Gil as usize).copied().unwrap_or_default();
    let mut gil_holder = 0;
    if gil_ns > 0 && slot.run_began_ns == began_ns && slot.run_holder_ns > gil_ns / 2 {
        gil_holder = u64::from(slot.run_holder);
    }
    slot.block = BlockRecord {
        head: RecordHead {
            kind: Kind::Block as u32,
            version: VERSION,
            target: slot.target,
            time_ns: slot.run.ended_ns,
        },
        thread: slot.thread,
        greenlet: from.id,
        object: from.object,
        ns: slot.run.ns,
        off_ns: slot.undo.off_ns,
        gil_holder,
        stack: slot.run.stack,
        victims: 0,
        held_ns: 0,
        held_most_ns: 0,
        round_over: 0,
        label: slot.label,
    };
    send(slot);
    0
}

/// `to` enters in the round after a block, and has waited `waited_ns`.
#[inline(never)]
pub fn held_up(config: &TargetConfig, slot: &mut Slot, to: &Greenlet, waited_ns: u64) -> u32 {
    // The hub went to sleep since: who comes now was not ready before.
    if slot.undo.off_ns.get(Off::Polled as usize).is_some_and(|polled| *polled > 0)
        && slot.run.ended_ns != slot.block.head.time_ns
    {
        finish(slot);
        return 0;
    }
    let block = &mut slot.block;
    // Its wait began after the block: it entered before, or is new.
    if to.since_ns >= block.head.time_ns || idles(config, to) {
        return 0;
    }
    let held = waited_ns.min(block.ns);
    block.victims += 1;
    block.held_ns += held;
    block.held_most_ns = block.held_most_ns.max(held);
    0
}

/// Whether it is a hub, or waits for tasks.
#[inline(always)]
pub fn idles(config: &TargetConfig, greenlet: &Greenlet) -> bool {
    config.hub_types.contains(&greenlet.type_object) || config.idlers.contains(&greenlet.id)
}

#[inline(always)]
fn finish(slot: &mut Slot) {
    if slot.block.ns != 0 {
        slot.block.round_over = 1;
        send(slot);
    }
    slot.block.ns = 0;
}

#[inline(always)]
fn send(slot: &Slot) {
    // A lost one is a line less of a list; its time is in every sum.
    let _sent = emit::send(&raw const slot.block, size_of::<BlockRecord>() as u64, true);
}
