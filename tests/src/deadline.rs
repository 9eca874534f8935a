//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The moment after which a test gives up.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// A deadline so long from now.
    pub fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    /// Long enough for whatever a loaded machine does, short enough for a test.
    pub fn usual() -> Self {
        Self::after(Duration::from_secs(60))
    }

    /// What is left; zero when it has passed.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether it has passed.
    pub fn passed(self) -> bool {
        self.left().is_zero()
    }

    /// Asks until there is an answer, for states that nobody announces.
    ///
    /// # Errors
    ///
    /// Names `what` when the deadline passes; the question's own errors end it.
    pub fn until<T>(self, what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        loop {
            if let Some(answer) = ask()? {
                return Ok(answer);
            }
            if self.passed() {
                bail!("waited in vain: {what}");
            }
            std::thread::park_timeout(Duration::from_millis(5).min(self.left()));
        }
    }
}
