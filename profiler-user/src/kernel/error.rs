//! What can go wrong between us and the kernel.

use std::{io, path::PathBuf};

/// What can go wrong between us and the kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The object was refused.
    #[error("the kernel part can't be loaded: {0}")]
    Load(#[from] aya::EbpfError),
    /// A program was refused; the verifier's log is in the source.
    #[error("the kernel refused the program {program}: {source}")]
    Program {
        /// Its name.
        program: &'static str,
        /// Why.
        source: aya::programs::ProgramError,
    },
    /// A probe could not be set.
    #[error("no probe can be set at {path}+{offset:#x}: {source}")]
    Attach {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// Why.
        source: aya::programs::ProgramError,
    },
    /// The CPU clock could not be had.
    #[error(
        "the CPU clock of CPU {cpu} can't be had: {}: it takes CAP_PERFMON, and a seccomp \
         profile that lets perf_event_open through",
        root(.source)
    )]
    Ticks {
        /// Of which CPU.
        cpu: u32,
        /// Why.
        source: aya::programs::ProgramError,
    },
    /// A map could not be used.
    #[error("map {map}: {source}")]
    Map {
        /// Its name.
        map: &'static str,
        /// Why.
        source: aya::maps::MapError,
    },
    /// A map's entries could not be read.
    #[error("map {map}: its entries can't be read: {source}")]
    Look {
        /// Its name.
        map: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What it logs can't be read.
    #[cfg(feature = "kernel-log")]
    #[error("what the kernel part logs can't be read: {0}")]
    Log(#[from] aya_log::Error),
    /// The object is not the one that this program was built with.
    #[error("the kernel part has no {0}")]
    Missing(&'static str),
    /// Waiting for records failed.
    #[error("waiting for the kernel's records: {0}")]
    Wait(#[source] io::Error),
    /// The list of CPUs could not be read.
    #[error("which CPUs are online can't be read: {0}")]
    Cpus(#[source] io::Error),
    /// The kernel's types could not be read.
    #[error("the kernel's types can't be read: {0}")]
    Btf(#[source] aya::BtfError),
    /// A pid that no process can have.
    #[error("pid 0 is no process")]
    PidZero,
}

/// The last of an error's causes: aya's name the call and leave the reason to it.
fn root(error: &aya::programs::ProgramError) -> String {
    let mut last: &(dyn std::error::Error + 'static) = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

impl KernelError {
    /// Whether it is for want of a right.
    #[must_use]
    pub fn is_permission(&self) -> bool {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = source {
            if let Some(io) = error.downcast_ref::<io::Error>() {
                // The verifier, too, says EACCES, of a program that it refuses.
                let refused = matches!(self, Self::Program { .. });
                return io.raw_os_error() == Some(libc::EPERM)
                    || !refused && io.kind() == io::ErrorKind::PermissionDenied;
            }
            source = error.source();
        }
        false
    }
}
