//! Identities and intervals: what the kernel kept, made into greenlets' lives.
//!
//! Pure: no I/O, no clock. Times are ns of `CLOCK_MONOTONIC`.

pub mod intervals;
pub mod lives;
