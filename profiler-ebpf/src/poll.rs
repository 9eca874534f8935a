//! An event loop polls: what it resumes from now on was not ready when it polled before.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use profiler_common::record::ARMED;

use crate::maps;

/// The current greenlet is about to poll. It may not hold the GIL, so only what is its thread's is
/// written.
#[inline(always)]
pub fn on_poll() {
    let Some(slot) = maps::slot() else {
        return;
    };
    let Some(config) = maps::config(slot.target) else {
        return;
    };
    if slot.epoch != config.epoch || config.started_ns == ARMED {
        return;
    }
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    slot.polls.begin(slot.current, now);
}
