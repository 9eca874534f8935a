//! Sending records.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::generated::{bpf_ringbuf_output, bpf_ringbuf_query},
};
use profiler_common::limits::RING_WAKE_BYTES;

use crate::maps::RING;

/// Copies `bytes` bytes of `record` into the ring; false when it is full.
///
/// The reader is woken if it is `urgent`, and once when much has come to wait: it
/// looks by itself every turn, and a wake-up costs more than everything else here.
#[inline(always)]
pub fn send<T>(record: *const T, bytes: u64, urgent: bool) -> bool {
    let ring = ptr::from_ref(&RING).cast_mut().cast();
    // SAFETY: `ring` is a ring buffer by its definition.
    let waiting = || unsafe { bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA.into()) };
    let flags = if urgent || waiting().wrapping_sub(RING_WAKE_BYTES) < bytes {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    };
    // SAFETY: the callers pass at most the size of `T`, which the verifier checks.
    let status = unsafe { bpf_ringbuf_output(ring, record.cast_mut().cast(), bytes, flags.into()) };
    status == 0
}
