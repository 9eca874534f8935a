//! A target program: ready, go, done, and out.

use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::book::Books;
use crate::deadline::Deadline;
use crate::place::{Python, target_program};
use crate::process::Process;

/// A running target; killed when dropped.
#[derive(Debug)]
pub struct Target {
    /// The process that the test started.
    pub process: Process,
    /// What it said about itself when it was ready.
    pub facts: Value,
    read: usize,
}

impl Target {
    /// Starts a program of tests/targets, and waits until it blocks, ready.
    ///
    /// # Errors
    ///
    /// When it does not get there.
    pub fn start(python: &Python, program: &str, arguments: &[&str]) -> Result<Self> {
        Self::start_by(&mut Command::new(&python.exe), program, arguments)
    }

    /// The same behind a command of one's own, which ends with the interpreter.
    ///
    /// # Errors
    ///
    /// When it does not get there.
    pub fn start_by(command: &mut Command, program: &str, arguments: &[&str]) -> Result<Self> {
        command.arg(target_program(program)).args(arguments);
        // No site-wide customisation, no bytecode in the source tree.
        command.env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONUNBUFFERED", "1");
        let process = Process::start(command)?;
        let mut target = Self { process, facts: Value::Null, read: 0 };
        target.facts = target.hear("ready").with_context(|| format!("{program} {arguments:?}"))?;
        Ok(target)
    }

    /// Its pid, as the test sees it.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The next event of that name.
    ///
    /// # Errors
    ///
    /// When it does not come; with what the target printed instead.
    pub fn hear(&mut self, event: &str) -> Result<Value> {
        let mark = format!("{{\"event\": \"{event}\"");
        let heard =
            self.process.stdout.line(self.read, Deadline::usual(), event, |line| line.starts_with(&mark));
        let (line, read) =
            heard.with_context(|| format!("target's stderr: {}", self.process.stderr.text()))?;
        self.read = read;
        Ok(serde_json::from_str(&line)?)
    }

    /// Lets it go on to its next block.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn go(&mut self) -> Result<()> {
        self.process.write(b"x").context("let the target go on")
    }

    /// Its books, once it has blocked again (or ended, as some do).
    ///
    /// # Errors
    ///
    /// When they don't come.
    pub fn books(&mut self) -> Result<Books> {
        let done = self.hear("done")?;
        serde_json::from_value(done.get("books").cloned().context("no books")?).context("the target's books")
    }

    /// Lets it end, and checks that it ended well: it was not harmed.
    ///
    /// # Errors
    ///
    /// When it fails or does not end.
    pub fn finish(mut self) -> Result<()> {
        self.go()?;
        let status: ExitStatus = self.process.wait(Deadline::usual())?;
        ensure!(status.success(), "the target ended with {status}: {}", self.process.stderr.text());
        Ok(())
    }
}

/// Runs a target on its own, without any profiler.
///
/// # Errors
///
/// When it does not do its work.
pub fn unobserved(python: &Python, program: &str, arguments: &[&str]) -> Result<Books> {
    let mut target = Target::start(python, program, arguments)?;
    target.go()?;
    let books = target.books()?;
    target.finish()?;
    Ok(books)
}
