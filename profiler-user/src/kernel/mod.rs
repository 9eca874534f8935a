//! The kernel part from outside: load it, attach it, read what it kept and sent.
//!
//! The only room that knows aya.

mod batch;
mod books;
mod btf;
mod engine;
mod error;
mod identity;
mod layout;
mod load;
#[cfg(feature = "kernel-log")]
mod log;
mod map;
mod pairs;
mod site;
mod ticks;
mod trap;

pub use batch::{Part, Place};
pub use books::{Kept, add_stacks};
pub use engine::{Engine, Parts};
pub use error::KernelError;
pub use identity::Identity;
pub use site::{Probe, Scope, Site};
pub use ticks::tick_ns;
