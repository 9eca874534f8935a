//! A profiler that stands outside of its target, while it records.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    measure::lines::Lines,
    process::{self, line},
};

/// Start and end on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running profiler; killed when dropped.
pub(super) struct Outside {
    child: Child,
    said: Lines,
    command: String,
}

impl Outside {
    /// Starts it, and returns when it prints a line that begins with `mark`, on the one
    /// stream of its that the command pipes.
    ///
    /// # Errors
    ///
    /// When that line does not come; with what was said instead.
    pub(super) fn start(command: &mut Command, mark: &str) -> Result<Self> {
        let line = line(command);
        let mut child =
            command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot start `{line}`"))?;
        let said = match (child.stdout.take(), child.stderr.take()) {
            (Some(stdout), _) => Lines::of(&line, stdout),
            (None, Some(stderr)) => Lines::of(&line, stderr),
            (None, None) => bail!("`{line}` has no pipe"),
        };
        let outside = Self { child, said, command: line };
        let mut before = Vec::new();
        loop {
            match outside.said.next(PATIENCE) {
                Ok(line) if line.starts_with(mark) => return Ok(outside),
                Ok(line) => before.push(line),
                Err(error) => bail!("{error}; it said: {}", before.join("; ")),
            }
        }
    }

    /// Ends it by a signal, so that it writes what it has.
    ///
    /// # Errors
    ///
    /// When it does not end, or not well.
    pub(super) fn stop(mut self, signal: &str) -> Result<()> {
        process::run(Command::new("kill").args([signal, &self.child.id().to_string()]))?;
        let said = self.said.rest(PATIENCE)?;
        let status = self.child.wait().with_context(|| format!("cannot wait for `{}`", self.command))?;
        ensure!(status.success(), "`{}` ended with {status}: {}", self.command, said.join("; "));
        Ok(())
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
