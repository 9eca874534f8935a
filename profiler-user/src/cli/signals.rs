//! The signals that end a recording, as a file descriptor to wait on.

use std::{
    io::{self, Read as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

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

/// Takes those that came, so that the next one is seen.
pub(super) fn forget(mut stop: &UnixStream) {
    let mut came = [0; 64];
    while comes(stop, Duration::ZERO) == Ok(true) && stop.read(&mut came).is_ok_and(|count| count > 0) {}
}

/// Whether one comes within that time.
pub(super) fn comes(stop: &UnixStream, wait: Duration) -> Result<bool, Errno> {
    let wait = Timespec { tv_sec: wait.as_secs().cast_signed(), tv_nsec: wait.subsec_nanos().into() };
    match poll(&mut [PollFd::new(stop, PollFlags::IN)], Some(&wait)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error),
    }
}
