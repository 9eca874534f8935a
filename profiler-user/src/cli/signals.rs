//! The signals that end a recording, as a file descriptor to wait on.

use std::{io, os::unix::net::UnixStream};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    low_level::pipe,
};

/// Readable after the first of the signals that ask for the end.
pub(super) fn stop() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read)
}
