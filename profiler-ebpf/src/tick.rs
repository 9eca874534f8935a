//! A tick of the CPU clock: who is on the CPU, and with what stack.
//!
//! It may come at any instruction of the thread: inside a switch, inside one of our own
//! programs (but for the scheduler's tracepoint, which runs with interrupts off), with
//! the GIL or without. So it writes nothing but its own record and scratch, and what looks
//! for labels share, which `busy` keeps from it; takes greenlet's own word for who is
//! current, and has no stack where either is in doubt.

use aya_ebpf::{
    bindings::task_struct,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_current_task, bpf_ktime_get_ns},
    },
};
use profiler_common::{
    address::Addr,
    fault::Fault,
    greenlet,
    label::Label,
    layout::ABSENT,
    owner::ON_CPU_OWNER,
    record::{
        ARMED, GreenletKey, Kind, RecordHead, TICK_ENDING, TICK_NATIVE, TICK_SWITCHING, TICK_UNSWITCHED,
        TargetConfig, TickRecord, Totals, VERSION,
    },
    walk::{StackKey, Start, Walk},
};

use crate::{
    clock, emit, kernel, label, maps,
    memory::UserMemory,
    own::{By, ELSEWHERE, FOUND, NO_THREAD, TORN, leaf_frame},
    slot::Slot,
    stack, switch, thread,
};

/// The clock ticked while the current thread was on a CPU.
#[inline(always)]
pub fn on_tick() {
    let Some(slot) = maps::slot() else {
        return;
    };
    if slot.clock.version == 0 {
        return;
    }
    let Some(config) = maps::config(slot.target) else {
        return;
    };
    let Some(totals) = maps::totals(slot.target) else {
        return;
    };
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    if config.started_ns == ARMED || now < config.started_ns {
        return;
    }
    slot.tick = TickRecord {
        head: RecordHead { kind: Kind::Tick as u32, version: VERSION, target: slot.target, time_ns: now },
        thread: bpf_get_current_pid_tgid(),
        greenlet: 0,
        object: Addr::NULL,
        stack: StackKey { id: 0, check: 0 },
        flags: 0,
        fault: 0,
        label: Label::NONE,
        blank: 0,
        padding: 0,
    };
    if slot.busy != 0 {
        slot.tick.flags = TICK_SWITCHING;
    } else if has_other_memory(slot) {
        // Nothing of it can be read: its time has no stack.
        slot.tick.flags = TICK_UNSWITCHED | TICK_ENDING;
    } else if let Err(fault) = look(config, slot, totals, now) {
        slot.tick.fault = fault as u32 + 1;
    }
    if !emit::send(&raw const slot.tick, size_of::<TickRecord>() as u64, false) {
        // In the thread's own record: the totals are the GIL holder's.
        slot.thread = slot.tick.thread;
        if let Some(thread) = clock::thread(slot) {
            thread.ticks_lost += 1;
        }
    }
}

/// Whether the thread's memory is not the target's: it is about to end, or in the middle of
/// an exec, which changes the memory before it is told.
#[inline(always)]
fn has_other_memory(slot: &mut Slot) -> bool {
    // SAFETY: takes no argument.
    let task = unsafe { bpf_get_current_task() } as *mut task_struct;
    slot.remember_memory(task);
    kernel::memory(task).is_some_and(|memory| memory == 0 || memory != slot.memory)
}

#[inline(always)]
fn look(config: &TargetConfig, slot: &mut Slot, totals: &mut Totals, now: u64) -> Result<(), Fault> {
    let mut current = None;
    if slot.epoch == config.epoch {
        if greenlet::current(&config.layout, &mut UserMemory, slot.thread_state)? != slot.current_object {
            slot.tick.flags = TICK_SWITCHING;
            return Ok(());
        }
        let key = GreenletKey { target: slot.target, pimpl: slot.current };
        current = maps::greenlet(&key);
        if let Some(greenlet) = &current {
            slot.tick.greenlet = greenlet.id;
            slot.tick.object = greenlet.object;
        }
    } else {
        slot.tick.flags = TICK_UNSWITCHED;
    }
    let mut frame = Addr::NULL;
    match leaf_frame(config, slot, By::Tick, now, &mut frame) {
        FOUND => {}
        NO_THREAD => {
            slot.tick.flags |= TICK_NATIVE;
            return Ok(());
        }
        TORN => return Err(Fault::TickTorn),
        ELSEWHERE => return Err(Fault::Subinterpreter),
        _ => return Err(thread::unproved(config)),
    }
    let python = &config.layout.python;
    let empty = StackKey::empty(slot.target, ON_CPU_OWNER);
    let start = Start { frame, top_frame_only: false };
    stack::walk_on(start, empty, config, slot.target, &mut slot.scratch, By::Tick);
    let Walk { key, fault, rooted, .. } = slot.scratch.walk;
    // From CPython 3.12 on a chain ends in a shim.
    let whole = rooted || python.tstate_status == ABSENT;
    match fault {
        None if frame.is_null() || whole => {}
        Some(Fault::StackTruncated) => slot.tick.fault = Fault::StackTruncated as u32 + 1,
        // A frame that is just being linked leads anywhere.
        None | Some(_) => return Err(Fault::TickTorn),
    }
    switch::about(config, slot, now, ON_CPU_OWNER, empty);
    let _sent = stack::ensure_sent(config, &mut slot.scratch, totals, By::Tick);
    slot.tick.stack = key;
    let given = current.as_ref().map_or(Label::NONE, |current| current.given);
    if label::wanted(config, &given) {
        slot.tick.blank = label::at_look(config, slot, slot.own_tstate, current.as_deref(), now);
        slot.tick.label = slot.label;
    }
    Ok(())
}
