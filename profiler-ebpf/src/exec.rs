//! A process replaces itself by another program.
//!
//! A target ends with its program. What comes may be another Python, and so may what a
//! target's child becomes that was made to be replaced: user space is told, and looks.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_current_task},
    programs::RawTracePointContext,
};
use profiler_common::{
    fault::Fault,
    record::{CONFIG_CHILDREN, ExecRecord, Kin, Kind, NO_TARGET, RecordHead, UpRecord, VERSION},
};

use crate::{
    clock::time,
    emit,
    kernel::{self, File, Pids},
    log::log,
    maps,
};

/// What comes now is another program.
///
/// <https://github.com/torvalds/linux/blob/v6.12/include/trace/events/sched.h>
/// (`sched_process_exec`: the task, its thread id before, its `linux_binprm`)
#[inline(always)]
pub fn on_exec(ctx: &RawTracePointContext) {
    let was = end_target();
    let kin = match was {
        Some(was) => was,
        None => match maps::kin() {
            Some(kin) => kin,
            None => return,
        },
    };
    // SAFETY: takes no argument.
    let task = unsafe { bpf_get_current_task() };
    let Some(Pids { first, own }) = kernel::pids(task as *mut _) else {
        return;
    };
    let File { device, inode } = kernel::program(ctx.arg(2)).unwrap_or_default();
    let record = ExecRecord {
        head: RecordHead {
            kind: Kind::Exec as u32,
            version: VERSION,
            target: was.map_or(NO_TARGET, |was| was.target),
            time_ns: time(),
        },
        kin,
        device,
        inode,
        pid: own,
        first_pid: first,
    };
    // A record that finds no room is as if the kin had been left out.
    if !emit::send(&raw const record, size_of::<ExecRecord>() as u64, true)
        && let Some(totals) = maps::totals(kin.target)
    {
        maps::count(totals, Fault::ExecLeftOut);
    }
}

/// Ends the target that the current process was; none if it was none.
#[inline(always)]
fn end_target() -> Option<Kin> {
    let first_pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let mut was = Kin { target: NO_TARGET, made_ns: 0 };
    if let Some(slot) = maps::slot() {
        was = Kin { target: slot.target, made_ns: slot.made_ns };
        // The number may be another process's soon.
        slot.target = NO_TARGET;
        slot.epoch = 0;
        slot.clock.version = 0;
    } else if let Some(target) = maps::process(first_pid)
        && let Some(config) = maps::config(target.into())
    {
        // Its thread could not be watched.
        was = Kin { target: target.into(), made_ns: config.made_ns };
    }
    if was.target == NO_TARGET {
        return None;
    }
    let mut follows = true;
    // User space may have noticed it before, and given the number to another.
    if let Some(config) = maps::config(was.target)
        && config.made_ns == was.made_ns
    {
        log!("thread {}: exec, target {} is not recorded any more", target = was.target);
        follows = config.flags & CONFIG_CHILDREN != 0;
        maps::stop(was.target);
        if let Some(totals) = maps::totals(was.target) {
            totals.exec_ns = time();
        }
        maps::remove_process(first_pid);
    }
    if follows {
        maps::keep_kin(was);
    }
    Some(was)
}

/// The interpreter of the current process is up: tells user space if it descends from a
/// target and is none.
#[inline(always)]
pub fn on_up() {
    if maps::kin().is_none() || maps::slot().is_some_and(|slot| slot.target != NO_TARGET) {
        return;
    }
    // SAFETY: takes no argument.
    let task = unsafe { bpf_get_current_task() };
    let Some(Pids { own, .. }) = kernel::pids(task as *mut _) else {
        return;
    };
    let head = RecordHead { kind: Kind::Up as u32, version: VERSION, target: NO_TARGET, time_ns: time() };
    let record = UpRecord { head, pid: own, padding: 0 };
    // Without room it is found by a look.
    let _sent = emit::send(&raw const record, size_of::<UpRecord>() as u64, true);
}
