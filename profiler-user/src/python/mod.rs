//! Pure decoders of CPython's objects over any [`crate::memory::Bytes`].
//!
//! Nothing here knows a version: all of that is data in [`objects::ObjectLayout`].
//! Nothing read is believed: lengths have bounds, and what makes no sense is a fault.

pub mod class;
pub mod code;
pub mod dict;
pub mod instance;
pub mod lines;
pub mod number;
pub mod objects;
pub mod sequence;
pub mod text;

use profiler_common::address::Addr;

/// The address of a field.
#[must_use]
pub const fn field(object: Addr, offset: u32) -> Addr {
    Addr(object.0.wrapping_add(offset as u64))
}
