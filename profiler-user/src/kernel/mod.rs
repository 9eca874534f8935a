//! The kernel part from outside: load it, attach it, read what it kept and sent.
//!
//! The only room that knows aya.

mod btf;
mod engine;
mod error;
mod layout;
#[cfg(feature = "kernel-log")]
mod log;
mod map;
mod site;
mod trap;

pub use engine::{Engine, Kept, tick_ns};
pub use error::KernelError;
pub use site::{Probe, Scope, Site};
