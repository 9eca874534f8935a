//! What a child prints, line by line, each waited for with a deadline.

use std::{
    io::{BufRead as _, BufReader, Read},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

use anyhow::{Result, bail};

/// More lines than a child prints; a full queue makes it wait.
const QUEUE: usize = 1024;

/// The lines of one stream.
pub(crate) struct Lines {
    /// Whose they are, for messages.
    whose: String,
    lines: Receiver<String>,
}

impl Lines {
    /// Reads the stream until its end, in a thread of its own that ends with it.
    pub(crate) fn of(whose: &str, stream: impl Read + Send + 'static) -> Self {
        let (sender, lines) = sync_channel(QUEUE);
        thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    // Nobody listens any more.
                    return;
                }
            }
        });
        Self { whose: whose.to_owned(), lines }
    }

    /// The next line.
    ///
    /// # Errors
    ///
    /// When the stream ends or `patience` does.
    pub(crate) fn next(&self, patience: Duration) -> Result<String> {
        match self.lines.recv_timeout(patience) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Disconnected) => bail!("{} ended too early", self.whose),
            Err(RecvTimeoutError::Timeout) => {
                bail!("{} said nothing for {} s", self.whose, patience.as_secs())
            }
        }
    }

    /// Every line until the stream ends.
    ///
    /// # Errors
    ///
    /// When a line is not there within `patience` of the one before.
    pub(crate) fn rest(&self, patience: Duration) -> Result<Vec<String>> {
        let mut rest = Vec::new();
        loop {
            match self.lines.recv_timeout(patience) {
                Ok(line) => rest.push(line),
                Err(RecvTimeoutError::Disconnected) => return Ok(rest),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{} did not end within {} s", self.whose, patience.as_secs())
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_read_to_its_end() {
        let patience = Duration::from_secs(30);
        let lines = Lines::of("the test", "one\ntwo\nthree\n".as_bytes());
        assert_eq!(lines.next(patience).unwrap(), "one");
        assert_eq!(lines.rest(patience).unwrap(), ["two", "three"]);
        assert_eq!(lines.next(patience).unwrap_err().to_string(), "the test ended too early");
    }
}
