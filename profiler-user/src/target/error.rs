//! Why a process cannot be profiled: one line that says what, why and what to do.

use std::{io, path::PathBuf};

use super::{Version, layouts};

/// Why a process cannot be profiled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// There is no such process.
    #[error("there is no process {pid}: look for it with `pgrep -af python`")]
    NoSuchProcess {
        /// The pid that was asked for.
        pid: u32,
    },
    /// It ended while it was looked at.
    #[error("process {pid} ended while it was looked at: start it again and give its new pid")]
    Gone {
        /// Its pid.
        pid: u32,
    },
    /// It maps no CPython.
    #[error(
        "process {pid} ({exe}) is not Python: neither its program nor a library of it exports \
         _PyRuntime; give the pid of a Python process, perhaps a child of this one"
    )]
    NotPython {
        /// Its pid.
        pid: u32,
        /// Its program.
        exe: PathBuf,
    },
    /// Its memory or one of its files was not read within seconds.
    #[error(
        "process {pid} does not answer: reading its memory, or a file that it has mapped, takes for ever \
         (pages of a userfaultfd or FUSE that nobody serves?)"
    )]
    NoAnswer {
        /// Its pid.
        pid: u32,
    },
    /// CPython is there, but not up yet.
    #[error("process {pid} has not started its Python interpreter yet: try again in a moment")]
    NotReady {
        /// Its pid.
        pid: u32,
    },
    /// Python is fine, and has loaded no greenlet.
    #[error(
        "process {pid} (Python {python}) has loaded no greenlet: \
         wait for it with --wait-greenlet, or give the pid of a worker that runs gevent"
    )]
    NoGreenlet {
        /// Its pid.
        pid: u32,
        /// Its Python.
        python: Version,
    },
    /// A version of CPython that the tables do not know.
    #[error(
        "process {pid} runs Python {found}, which this greenscope does not know: \
         it knows {}",
        layouts::known_pythons()
    )]
    UnsupportedPython {
        /// Its pid.
        pid: u32,
        /// Its version, as far as it could be read.
        found: String,
    },
    /// A version of greenlet that the tables do not know and that carries no DWARF.
    #[error(
        "process {pid} runs greenlet {found}, whose layout is not known ({why}): \
         install a greenlet 3.x wheel from PyPI, which carries its own debug information"
    )]
    UnsupportedGreenlet {
        /// Its pid.
        pid: u32,
        /// Its version, as far as it could be read.
        found: String,
        /// What was tried.
        why: String,
    },
    /// The process runs CPython without the GIL.
    #[error(
        "process {pid} runs a free-threaded Python {python}, which this greenscope does not \
         know: run the service on the usual build"
    )]
    FreeThreaded {
        /// Its pid.
        pid: u32,
        /// Its Python.
        python: Version,
    },
    /// This user may not look into the process.
    #[error("not permitted to {what} of process {pid}: run greenscope as root, or with CAP_SYS_PTRACE")]
    NotPermitted {
        /// Its pid.
        pid: u32,
        /// What was tried.
        what: &'static str,
    },
    /// Something of it cannot be read.
    #[error("cannot {what} of process {pid}: {source}")]
    Io {
        /// Its pid.
        pid: u32,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A file that it maps cannot be understood.
    #[error("cannot understand {path}, which process {pid} maps: {source}")]
    Elf {
        /// Its pid.
        pid: u32,
        /// The file.
        path: PathBuf,
        /// Why.
        source: object::Error,
    },
}

impl TargetError {
    /// Sorts an error of the operating system into the kinds above.
    #[must_use]
    pub(super) fn io(pid: u32, what: &'static str, source: io::Error) -> Self {
        match (source.kind(), source.raw_os_error()) {
            (io::ErrorKind::PermissionDenied, _) => Self::NotPermitted { pid, what },
            (_, Some(libc::ESRCH)) => Self::Gone { pid },
            _ => Self::Io { pid, what, source },
        }
    }
}
