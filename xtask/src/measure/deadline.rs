//! Waiting for a condition, never for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How often a state that nobody announces is asked for.
const ASK_AGAIN: Duration = Duration::from_millis(5);

/// Asks until there is an answer.
///
/// # Errors
///
/// Names `what` when `patience` is over; the question's own errors end it.
pub(crate) fn until<T>(
    what: &str,
    patience: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s in vain: {what}", patience.as_secs());
        }
        thread::park_timeout(ASK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_ends_the_wait_or_the_deadline_does() {
        let mut asked = 0;
        let third = until("three", Duration::from_secs(30), || {
            asked += 1;
            Ok((asked == 3).then_some(asked))
        });
        assert_eq!(third.unwrap(), 3);
        let never = until("never", Duration::ZERO, || Ok(None::<()>));
        assert!(never.unwrap_err().to_string().ends_with("never"));
    }
}
