//! A target while a tool looks at it: ready, go, done, and out (tests/targets/books.py).

use std::{
    io::Write as _,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, de::DeserializeOwned};

use super::{Workload, books::Books};
use crate::{measure::lines::Lines, workspace};

/// A start on a busy machine: an import of a tool is most of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The folder of the target, and its name.
const TARGETS: &str = "tests/targets";
const PROGRAM: &str = "wall.py";

/// What puts a tool into a target.
const INSIDE: &str = "xtask/accuracy/inside.py";

/// A running target; killed when dropped.
pub(super) struct Subject {
    child: Child,
    orders: ChildStdin,
    said: Lines,
    complaints: Lines,
}

/// Functions, root first, and what a tool gives to them.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(super) struct Weighted {
    pub(super) functions: Vec<String>,
    pub(super) weight: f64,
}

/// What an in-process tool saw.
#[derive(Deserialize)]
struct Seen {
    stacks: Vec<Weighted>,
}

#[derive(Deserialize)]
struct Done {
    books: Accounts,
}

#[derive(Deserialize)]
struct Accounts {
    cpu: Books,
}

impl Subject {
    /// Starts the workload, with the in-process tool of that name if one is given, and
    /// waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it does not get there; with the last of what it said instead.
    pub(super) fn start(
        python: &Path,
        inside: Option<&str>,
        workload: Workload,
        seconds: f64,
    ) -> Result<Self> {
        let targets = workspace::root().join(TARGETS);
        let mut command = Command::new(python);
        // No .pyc beside the sources.
        command.arg("-B");
        match inside {
            Some(tool) => {
                command.arg(workspace::root().join(INSIDE)).arg(tool).arg(&targets).arg(PROGRAM);
            }
            None => {
                command.arg(targets.join(PROGRAM));
            }
        }
        let mut child = command
            .args([workload.name(), &seconds.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", python.display()))?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(orders), Some(output), Some(complaints)) = pipes else {
            bail!("{PROGRAM} has no pipes");
        };
        let said = Lines::of(PROGRAM, output);
        let subject = Self { child, orders, said, complaints: Lines::of(PROGRAM, complaints) };
        subject.hear::<serde::de::IgnoredAny>("ready", PATIENCE)?;
        Ok(subject)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it work, and waits for its books and for what a tool inside of it saw.
    ///
    /// # Errors
    ///
    /// When it does not finish.
    pub(super) fn work(&mut self, inside: bool, seconds: f64) -> Result<(Books, Vec<Weighted>)> {
        self.go()?;
        let patience = PATIENCE + Duration::from_secs_f64(seconds);
        let stacks = if inside { self.hear::<Seen>("profile", patience)?.stacks } else { Vec::new() };
        let done: Done = self.hear("done", patience)?;
        Ok((done.books.cpu, stacks))
    }

    /// Lets it end, and sees that it was not harmed.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub(super) fn finish(mut self) -> Result<()> {
        self.go()?;
        self.said.rest(PATIENCE)?;
        let status = self.child.wait().context("cannot wait for the target")?;
        if !status.success() {
            bail!("the target ended with {status}{}", self.complaint());
        }
        Ok(())
    }

    fn go(&mut self) -> Result<()> {
        self.orders.write_all(b"x").context("the target is gone")
    }

    /// The next event of that name; whatever else is printed is not for us.
    fn hear<T: DeserializeOwned>(&self, event: &str, patience: Duration) -> Result<T> {
        let mark = format!("{{\"event\": \"{event}\"");
        loop {
            match self.said.next(patience) {
                Ok(line) if line.starts_with(&mark) => {
                    return serde_json::from_str(&line).with_context(|| format!("the target's `{event}`"));
                }
                Ok(_) => {}
                Err(error) => bail!("{error}{}", self.complaint()),
            }
        }
    }

    /// The last line on its stderr, which names a Python exception.
    fn complaint(&self) -> String {
        let lines = self.complaints.rest(Duration::from_secs(1)).unwrap_or_default();
        lines.last().map_or_else(String::new, |line| format!(": {line}"))
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
