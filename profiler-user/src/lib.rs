//! greenscope: see inside Python services that run on greenlets.
//!
//! The rooms, and which may import which, are in ARCHITECTURE.md.

pub mod kernel;
pub mod memory;
pub mod python;
pub mod target;
