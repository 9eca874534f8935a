//! Has the threads watched that are there when a recording begins.

use std::{collections::HashSet, os::fd::AsFd as _};

use profiler_common::{clock::Clock, record::Watch};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::{
    kernel::Engine,
    target::{self, Target},
};

/// `PIDFD_THREAD`, for a thread that does not lead its process: Linux 6.9. Before it such
/// a thread is watched from its first switch on.
/// <https://github.com/torvalds/linux/blob/v6.9/include/uapi/linux/pidfd.h>
const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(0o200);
/// Looks for threads that were made meanwhile; later ones their parents make known.
const LOOKS: u32 = 8;

/// Has every thread of the target watched, from `now_ns` on; false if the kernel part was
/// faster, and the process is another target already.
pub(super) fn watch(target: &Target, cookie: u32, now_ns: u64, engine: &mut Engine) -> bool {
    if !engine.has_clocks() {
        return true;
    }
    let first_namespace = target::in_first_namespace();
    let mut seen = HashSet::new();
    for _ in 0..LOOKS {
        let fresh: Vec<u32> = target::threads(target)
            .into_iter()
            .map(|thread| thread.tid)
            .filter(|tid| seen.insert(*tid))
            .collect();
        if fresh.is_empty() {
            break;
        }
        for tid in fresh {
            let key = if first_namespace { u64::from(target.pid) << 32 | u64::from(tid) } else { 0 };
            // One that can't be watched has no clock, or one from its first switch on.
            let fresh = watch_one(target, tid, key, cookie, now_ns, engine);
            if tid == target.pid && fresh == Some(false) {
                return false;
            }
        }
    }
    true
}

fn watch_one(
    target: &Target,
    tid: u32,
    key: u64,
    cookie: u32,
    now_ns: u64,
    engine: &mut Engine,
) -> Option<bool> {
    let flags = if tid == target.pid { PidfdFlags::empty() } else { PIDFD_THREAD };
    let pid = Pid::from_raw(i32::try_from(tid).ok()?)?;
    let pidfd = pidfd_open(pid, flags).ok()?;
    let state = target::thread_state(target, tid)?;
    let clock = Clock::begin(now_ns, state);
    let watch = Watch { clock, target: u64::from(cookie), thread: key };
    engine.watch(pidfd.as_fd(), &watch).ok()
}
