//! greenscope: see inside Python services that run on greenlets.
//!
//! The rooms, and which may import which, are in ARCHITECTURE.md.

pub mod cli;
pub mod clocks;
pub mod export;
pub mod kernel;
pub mod memory;
pub mod profile;
pub mod python;
pub mod session;
pub mod target;
pub mod timeline;
pub mod trace;
pub mod view;
