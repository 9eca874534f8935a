//! Has the threads watched that are there when a recording begins.

use std::{
    collections::HashSet,
    os::fd::{AsFd as _, OwnedFd},
};

use profiler_common::{
    address::Addr,
    clock::Clock,
    fault::Fault,
    record::{Kin, Watch},
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::recorded::Recorded;
use crate::{
    kernel::Engine,
    target::{self, Thread},
};

/// `PIDFD_THREAD`, for a thread that does not lead its process: Linux 6.9. Before it such
/// a thread is watched from its first switch on.
/// <https://github.com/torvalds/linux/blob/v6.9/include/uapi/linux/pidfd.h>
const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(0o200);
/// Looks for threads that were made meanwhile; later ones their parents make known.
const LOOKS: u32 = 8;

/// Has every thread of the target watched, from `now_ns` on; false if the kernel part was
/// faster, and the process is another target already. If they are watched `again`, what
/// they were before is forgotten.
pub(super) fn watch(recorded: &mut Recorded, now_ns: u64, again: bool, engine: &mut Engine) -> bool {
    if !engine.has_clocks() {
        return true;
    }
    let target = &recorded.target;
    let first_namespace = target::in_first_namespace();
    let mut memory = recorded.memory.clone();
    let (mut seen, mut unwatched) = (HashSet::new(), HashSet::new());
    for _ in 0..LOOKS {
        let threads = target::threads(target);
        let fresh: Vec<_> = threads.iter().filter(|thread| seen.insert(thread.tid)).collect();
        if fresh.is_empty() {
            break;
        }
        let states = target::own_states(&mut memory, target, &threads);
        for Thread { tid, own_tid, name: _ } in fresh {
            let (tid, own_tstate) = (*tid, states.get(own_tid).copied().unwrap_or(Addr::NULL));
            let thread = if first_namespace { u64::from(target.pid) << 32 | u64::from(tid) } else { 0 };
            let retried = unwatched.contains(&tid);
            // One that can't be watched has no clock, or one from its first switch on.
            let fresh = open(target.pid, tid).and_then(|pidfd| {
                let clock = Clock::begin(now_ns, target::thread_state(target, tid)?);
                if again {
                    engine.forget(pidfd.as_fd()).ok()?;
                }
                let Kin { target, made_ns } = recorded.kin();
                let watch = Watch { clock, target, thread, made_ns, own_tstate };
                let watched = engine.watch(pidfd.as_fd(), &watch);
                match watched {
                    // From Linux 7.0 on the kernel takes memory for it without a lock, and has none
                    // whenever that is in its way: the next look tries again.
                    Err(_) => {
                        seen.remove(&tid);
                        unwatched.insert(tid);
                    }
                    Ok(true) => {
                        unwatched.remove(&tid);
                    }
                    // It was watched already, perhaps by halves: by the look that failed.
                    Ok(false) => {}
                }
                // While it is made at a first switch nobody else on that CPU can make his, and on a
                // kernel that preempts that takes as long as the others like. Most often it is this
                // thread that has a hub; 8 KiB for each that never switches would be many.
                if tid == recorded.target.pid && recorded.target.greenlet.is_some() {
                    let _made = engine.make_room(pidfd.as_fd());
                }
                watched.ok()
            });
            if tid == target.pid && fresh == Some(false) && !retried {
                return false;
            }
        }
    }
    if target::threads(target).iter().any(|thread| unwatched.contains(&thread.tid)) {
        recorded.fault(Fault::NoTaskStorage);
    }
    true
}

/// Whether all of a process's threads can be reached. (Before Linux 6.9 only the first.)
pub(super) fn can_forget(pid: u32) -> bool {
    target::thread_ids(pid).into_iter().all(|tid| open(pid, tid).is_some())
}

/// Has the threads of a process forgotten that are watched.
pub(super) fn forget(pid: u32, engine: &mut Engine) {
    for pidfd in threads(pid) {
        // One that is gone is forgotten.
        let _forgotten = engine.forget(pidfd.as_fd());
    }
}

/// Has a process, and what it makes, known for descendants of a target.
pub(super) fn keep_kin(pid: u32, kin: &Kin, engine: &mut Engine) {
    for pidfd in threads(pid) {
        // One that is gone makes nothing.
        let _kept = engine.keep_kin(pidfd.as_fd(), kin);
    }
}

fn threads(pid: u32) -> Vec<OwnedFd> {
    target::thread_ids(pid).into_iter().filter_map(|tid| open(pid, tid)).collect()
}

/// A thread's pidfd.
pub(super) fn open(pid: u32, tid: u32) -> Option<OwnedFd> {
    let flags = if tid == pid { PidfdFlags::empty() } else { PIDFD_THREAD };
    pidfd_open(Pid::from_raw(i32::try_from(tid).ok()?)?, flags).ok()
}
