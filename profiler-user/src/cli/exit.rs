//! What ends a command: one line that says what, why and what to do, and its code.

use std::{fmt, io, process::ExitCode};

use crate::{kernel::KernelError, session::SessionError, target::TargetError};

/// Something failed.
const FAILED: u8 = 1;
/// The command line is wrong.
pub(super) const USAGE: u8 = 2;
/// A right is missing.
const NOT_PERMITTED: u8 = 3;
/// The target is not supported, or gone.
const TARGET: u8 = 4;

/// Why a command ended without its result.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    /// Something failed.
    pub(super) fn failed(text: impl Into<String>) -> Self {
        Self { code: FAILED, text: text.into() }
    }

    /// The command line is wrong.
    pub(super) fn usage(text: impl Into<String>) -> Self {
        Self { code: USAGE, text: text.into() }
    }

    /// Its exit code.
    #[must_use]
    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line, whatever the causes say.
        let lines: Vec<&str> = self.text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        f.write_str(&lines.join("; "))
    }
}

impl From<TargetError> for Failure {
    fn from(error: TargetError) -> Self {
        let code = if matches!(error, TargetError::NotPermitted { .. }) { NOT_PERMITTED } else { TARGET };
        Self { code, text: error.to_string() }
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        let help = "run it as root, or with CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, \
                    in a container with a seccomp profile that allows bpf and perf_event_open";
        match error {
            SessionError::Kernel(kernel) if kernel.is_permission() => {
                let what = match kernel {
                    // By seccomp: whoever may load a program may set a probe.
                    KernelError::Attach { .. } => "set uprobes (perf_event_open)",
                    _ => "load eBPF programs",
                };
                Self { code: NOT_PERMITTED, text: format!("not permitted to {what}: {help}") }
            }
            SessionError::Memory { pid, source } if source.kind() == io::ErrorKind::PermissionDenied => {
                Self {
                    code: NOT_PERMITTED,
                    text: format!("not permitted to read the memory of pid {pid}: {help}"),
                }
            }
            SessionError::Target(error) => error.into(),
            SessionError::Gone { .. } | SessionError::NoSite { .. } | SessionError::Library { .. } => {
                Self { code: TARGET, text: error.to_string() }
            }
            SessionError::TooMany { .. } => Self { code: USAGE, text: error.to_string() },
            SessionError::Kernel(kernel) => {
                let log = kernel.to_string();
                let first = log.lines().next().unwrap_or_default();
                Self {
                    code: FAILED,
                    text: format!("{first}; run 'greenscope doctor' for what this kernel lacks"),
                }
            }
            SessionError::Memory { .. } | SessionError::Wait(_) => Self::failed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line() {
        let failure = Failure::failed("first\n  second\n\n");
        assert_eq!(failure.to_string(), "first; second");
    }
}
