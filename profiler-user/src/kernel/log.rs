//! A kernel part that logs, and its lines on standard error: for debugging it.

use aya::{Ebpf, include_bytes_aligned};
use aya_log::EbpfLogger;
use env_logger::{Builder, Env, Logger};

use super::KernelError;

/// The kernel part with its feature `log`, which is not committed.
pub(super) static OBJECT: &[u8] = include_bytes_aligned!(env!(
    "GREENSCOPE_LOG_OBJECT",
    "this feature needs an object that logs: cargo xtask run --kernel-log builds both"
));

/// Reads the lines; `flush` prints what waits.
pub(super) type Lines = EbpfLogger<Logger>;

/// Begins to read the lines. To be called before a program is loaded, and kept: their
/// map is the reader's.
pub(super) fn lines(ebpf: &mut Ebpf) -> Result<Lines, KernelError> {
    let logger = Builder::from_env(Env::default().default_filter_or("trace")).build();
    Ok(EbpfLogger::init_with_logger(ebpf, logger)?)
}
