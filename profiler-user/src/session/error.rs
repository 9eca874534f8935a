//! What can end a recording before it gave a profile.

use std::{io, path::PathBuf};

use crate::{kernel::KernelError, target::TargetError};

/// What can end a recording before it gave a profile.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The kernel part.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The process went away before the recording began.
    #[error("pid {pid} is gone")]
    Gone {
        /// Which.
        pid: u32,
    },
    /// The target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The function was not found.
    #[error("pid {pid}: greenlet's {function} was not found")]
    NoSite {
        /// Which.
        pid: u32,
        /// Which.
        function: &'static str,
    },
    /// Its memory can't be read.
    #[error("the memory of pid {pid} can't be read: {source}")]
    Memory {
        /// Which.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// The library that it has mapped can't be reached.
    #[error("pid {pid}: {} can't be opened: {source}", path.display())]
    Library {
        /// Whose.
        pid: u32,
        /// By which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Waiting failed.
    #[error("waiting for records: {0}")]
    Wait(#[source] io::Error),
    /// Too many processes.
    #[error("{given} processes are too many at once")]
    TooMany {
        /// How many.
        given: usize,
    },
}
