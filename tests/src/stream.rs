//! What a process printed: drained all the time, waited for with a deadline.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail};

use crate::deadline::Deadline;

/// One of a child's output streams; a thread of its own drains it to the end.
///
/// The thread ends when the last holder of the write end is gone.
#[derive(Clone, Debug)]
pub struct Stream {
    name: &'static str,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
}

impl Stream {
    /// Starts to drain `source`; `name` is for messages.
    pub fn drain(name: &'static str, mut source: impl Read + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut chunk = vec![0; 64 * 1024];
            loop {
                let read = match source.read(&mut chunk) {
                    Ok(read) => read,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(_) => 0,
                };
                let mut state = writer.lock();
                state.bytes.extend_from_slice(chunk.get(..read).unwrap_or_default());
                state.ended = read == 0;
                writer.grown.notify_all();
                if state.ended {
                    return;
                }
            }
        });
        Self { name, shared }
    }

    /// All that was printed so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().bytes).into_owned()
    }

    /// The first whole line from byte `from` on that `wanted` accepts, and where it ends.
    ///
    /// # Errors
    ///
    /// When the stream ends or the deadline passes without such a line.
    pub fn line(
        &self,
        from: usize,
        deadline: Deadline,
        what: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(String, usize)> {
        let mut at = from;
        let mut state = self.shared.lock();
        loop {
            while let Some(length) =
                state.bytes.get(at..).and_then(|rest| rest.iter().position(|&byte| byte == b'\n'))
            {
                let line = state.bytes.get(at..at + length).unwrap_or_default();
                let line = String::from_utf8_lossy(line).into_owned();
                at += length + 1;
                if wanted(&line) {
                    return Ok((line, at));
                }
            }
            if state.ended {
                bail!("{} ended before {what}; it said: {}", self.name, shown(&state.bytes));
            }
            if deadline.passed() {
                bail!("no {what} on {} in time; it said: {}", self.name, shown(&state.bytes));
            }
            state = self.shared.wait(state, deadline);
        }
    }

    /// Everything, once the stream has ended.
    ///
    /// # Errors
    ///
    /// When the deadline passes before.
    pub fn whole(&self, deadline: Deadline) -> Result<Vec<u8>> {
        let mut state = self.shared.lock();
        while !state.ended {
            if deadline.passed() {
                bail!("{} did not end; it said: {}", self.name, shown(&state.bytes));
            }
            state = self.shared.wait(state, deadline);
        }
        Ok(state.bytes.clone())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, deadline: Deadline) -> MutexGuard<'a, State> {
        self.grown.wait_timeout(state, deadline.left()).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// The end of an output, short enough for a message.
fn shown(bytes: &[u8]) -> String {
    const LONGEST: usize = 2000;
    let text = String::from_utf8_lossy(bytes);
    let skip = text.chars().count().saturating_sub(LONGEST);
    let tail: String = text.chars().skip(skip).collect();
    if skip == 0 { format!("{tail:?}") } else { format!("...{tail:?}") }
}
