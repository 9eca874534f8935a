//! Threads and processes that targets make.
//!
//! A new thread is watched like those that were there. A process that is forked has its
//! parent's memory, so what is known of the parent holds for it: it becomes a target of
//! its own here, before its first instruction, and user space is told.

use aya_ebpf::{
    bindings::task_struct,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_ktime_get_ns},
    programs::BtfTracePointContext,
};
use profiler_common::{
    clock::{Clock, Off},
    fault::Fault,
    record::{ARMED, CONFIG_CHILDREN, ForkRecord, Kin, Kind, NO_TARGET, RecordHead, TargetConfig, VERSION},
};

use crate::{
    emit,
    kernel::{self, Pids},
    log::log,
    maps::{self, count},
};

/// `clone`'s flag for a process that has its parent's memory, not a copy: it is about to
/// replace itself (`vfork`, `posix_spawn`), and only what it descends from is kept.
/// <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/sched.h>
const CLONE_VM: u64 = 0x0000_0100;
/// `clone`'s flag for a thread of the same process.
const CLONE_THREAD: u64 = 0x0001_0000;

/// The current thread makes a thread or a process.
#[inline(always)]
pub fn on_new_task(ctx: &BtfTracePointContext) {
    let task: *mut task_struct = ctx.arg(0);
    let flags: u64 = ctx.arg(1);
    let parent = match maps::slot() {
        Some(slot) => slot.target,
        None => process(),
    };
    let Some(config) = maps::config(parent) else {
        // A shell that a target made, say.
        if let Some(kin) = maps::kin() {
            maps::keep_kin_of(task, kin);
        }
        return;
    };
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    if flags & CLONE_THREAD != 0 {
        // Without room it is watched from its first switch of greenlets on.
        let _watched = watch(task, parent, config.made_ns, now);
    } else if config.flags & CONFIG_CHILDREN != 0 {
        if flags & CLONE_VM == 0
            && let Some(pids) = kernel::pids(task)
        {
            if follow(task, &pids, parent, config, now) {
                return;
            }
            log!("thread {}: its child {} is not followed", child = u64::from(pids.first));
            if let Some(totals) = maps::totals(parent) {
                count(totals, Fault::ChildLeftOut);
            }
        }
        maps::keep_kin_of(task, Kin { target: parent, made_ns: config.made_ns });
    }
}

/// The target that the current process is, by its pid; [`NO_TARGET`] if it is none.
#[inline(always)]
pub fn process() -> u64 {
    maps::process((bpf_get_current_pid_tgid() >> 32) as u32).map_or(NO_TARGET, u64::from)
}

#[inline(always)]
fn watch(task: *mut task_struct, target: u64, made_ns: u64, now: u64) -> bool {
    let Some(slot) = maps::slot_for(task) else {
        return false;
    };
    // User space may have been faster, at the begin of the recording.
    if slot.clock.version == 0 {
        slot.target = target;
        slot.made_ns = made_ns;
        slot.thread = 0;
        slot.clock = Clock::begin(now, Off::Preempted as u32);
    }
    slot.target == target
}

#[inline(never)]
fn follow(task: *mut task_struct, pids: &Pids, parent: u64, config: &TargetConfig, now: u64) -> bool {
    let Some(target) = maps::take_free() else {
        return false;
    };
    let started_ns = if config.started_ns == ARMED { ARMED } else { now };
    let record = ForkRecord {
        head: RecordHead { kind: Kind::Fork as u32, version: VERSION, target: target.into(), time_ns: now },
        parent,
        pid: pids.own,
        first_pid: pids.first,
    };
    let followed = maps::copy_config(parent, config, target, now, started_ns)
        && watch(task, target.into(), now, now)
        && maps::insert_process(pids.first, target)
        && emit::send(&raw const record, size_of::<ForkRecord>() as u64, false);
    if followed
        && let Some(slot) = maps::slot()
        && let Some(child) = maps::slot_of(task)
    {
        // Its memory is a copy. Behind Python's back nobody else tells which is its own.
        child.own_tstate = if slot.own_tstate.is_null() { slot.tstate } else { slot.own_tstate };
    }
    if !followed {
        maps::remove_process(pids.first);
        if let Some(slot) = maps::slot_of(task)
            && slot.target == u64::from(target)
        {
            slot.clock.version = 0;
            slot.target = NO_TARGET;
        }
        maps::give_free(target);
    }
    followed
}
