//! Sending records.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_CONS_POS, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::generated::{bpf_ringbuf_output, bpf_ringbuf_query},
};
use profiler_common::limits::RING_WAKE_BYTES;

use crate::maps::{self, RING};

/// Copies `bytes` bytes of `record` into the ring; false when it is full.
///
/// The reader is woken if it is `urgent`, and when much has come to wait, once for each time
/// that it took something: it looks by itself every turn, and a wake-up costs more than
/// everything else here.
#[inline(always)]
pub fn send<T>(record: *const T, bytes: u64, urgent: bool) -> bool {
    let ring = ptr::from_ref(&RING).cast_mut().cast();
    // SAFETY: `ring` is a ring buffer by its definition.
    let waiting = || unsafe { bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA.into()) };
    let flags = if urgent || waiting() >= RING_WAKE_BYTES && is_unwoken(ring) {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    };
    // SAFETY: the callers pass at most the size of `T`, which the verifier checks.
    let status = unsafe { bpf_ringbuf_output(ring, record.cast_mut().cast(), bytes, flags.into()) };
    status == 0
}

/// Whether the reader was not woken since it took something last; then it is now.
///
/// By where it is: how full the ring is two CPUs step over at once.
#[inline(always)]
fn is_unwoken(ring: *mut c_void) -> bool {
    // SAFETY: a ring buffer.
    let taken = unsafe { bpf_ringbuf_query(ring, BPF_RB_CONS_POS.into()) };
    let Some(woken) = maps::woken() else {
        return true;
    };
    let mark = taken.wrapping_add(1);
    // SAFETY: an aligned word of a map. Where two write it, both wake the reader.
    let unwoken = unsafe { ptr::read_volatile(woken) } != mark;
    // SAFETY: as above.
    unsafe { ptr::write_volatile(woken, mark) };
    unwoken
}
