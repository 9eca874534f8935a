//! `greenscope record` while it runs.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::book::Books;
use crate::deadline::Deadline;
use crate::place::{as_root, greenscope};
use crate::process::Process;
use crate::profile::Profile;
use crate::target::Target;

/// A running recording; killed when dropped.
#[derive(Debug)]
pub struct Recording {
    /// The process that the test started.
    pub process: Process,
    /// Whom to signal: greenscope itself, where something else started it.
    signalled: Option<u32>,
    output: PathBuf,
    _directory: TempDir,
}

impl Recording {
    /// Starts to record the process as json, and returns when every probe is in place.
    ///
    /// # Errors
    ///
    /// When it does not say `recording`; with what it said instead.
    pub fn start(pid: u32, options: &[&str]) -> Result<Self> {
        as_root()?;
        Self::start_by(Command::new(greenscope()?), pid, options)
    }

    /// The same behind a command of one's own, which ends with the binary.
    ///
    /// # Errors
    ///
    /// When it does not say `recording`; with what it said instead.
    pub fn start_by(command: Command, pid: u32, options: &[&str]) -> Result<Self> {
        let recording = Self::launch(command, pid, options)?;
        recording.wait_until_recording()?;
        Ok(recording)
    }

    /// Starts it without waiting for anything.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn launch(mut command: Command, pid: u32, options: &[&str]) -> Result<Self> {
        let directory = TempDir::new()?;
        let output = directory.path().join("recording");
        command.args(["record", "--pid", &pid.to_string()]);
        if !options.contains(&"--format") {
            command.args(["--format", "json"]);
        }
        command.args(options).arg("-o").arg(&output);
        let process = Process::start(&mut command)?;
        Ok(Self { process, signalled: None, output, _directory: directory })
    }

    /// Waits for the line that begins with `recording`.
    ///
    /// # Errors
    ///
    /// When it does not come; with what came instead.
    pub fn wait_until_recording(&self) -> Result<()> {
        let says = |line: &str| line.starts_with("recording");
        self.process.stderr.line(0, Deadline::usual(), "the line `recording`", says)?;
        Ok(())
    }

    /// Signals this process instead of the one that was started.
    pub fn signal_instead(&mut self, pid: u32) {
        self.signalled = Some(pid);
    }

    /// Where it writes.
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// Ends it by a signal, and returns what it wrote.
    ///
    /// # Errors
    ///
    /// When it fails, does not end, or writes nothing.
    pub fn stop_with(self, signal: Signal) -> Result<String> {
        match self.signalled {
            None => self.process.signal(signal)?,
            Some(pid) => {
                let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
                rustix::process::kill_process(pid.context("a pid")?, signal)?;
            }
        }
        self.finish()
    }

    /// Waits until it ends by itself, and returns what it wrote.
    ///
    /// # Errors
    ///
    /// When it fails, does not end, or writes nothing.
    pub fn finish(mut self) -> Result<String> {
        let status = self.process.wait(Deadline::usual())?;
        let said = String::from_utf8(self.process.stderr.whole(Deadline::usual())?)?;
        ensure!(status.success(), "greenscope ended with {status}: {said}");
        // Progress lines and colours are for terminals.
        ensure!(!said.contains(['\r', '\x1b']), "control characters on a pipe: {said:?}");
        std::fs::read_to_string(&self.output)
            .with_context(|| format!("greenscope wrote nothing; it said: {said}"))
    }

    /// Ends it by SIGTERM, and reads the json that it wrote.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn stop(self) -> Result<Profile> {
        parse(&self.stop_with(Signal::TERM)?)
    }
}

/// Reads the json of a recording.
///
/// # Errors
///
/// When it is none of version 1.
pub fn parse(text: &str) -> Result<Profile> {
    let profile: Profile = serde_json::from_str(text).context("greenscope's json")?;
    ensure!(profile.version == 1, "version {}", profile.version);
    Ok(profile)
}

/// Records a target's whole work, from its go to its books, and lets it end.
///
/// # Errors
///
/// When either does not do its part.
pub fn record(mut target: Target, options: &[&str]) -> Result<(Profile, Books)> {
    let recording = Recording::start(target.pid(), options)?;
    target.go()?;
    let books = target.books()?;
    let profile = recording.stop()?;
    target.finish()?;
    Ok((profile, books))
}

/// How an invocation that should fail did so.
#[derive(Debug)]
pub struct Refusal {
    /// The exit code.
    pub code: i32,
    /// The one line that says what, why and what to do.
    pub line: String,
}

/// Runs greenscope to its end, and expects exactly one line of refusal on stderr.
///
/// # Errors
///
/// When it succeeds, hangs, says more or less than one line, or dies by a signal.
pub fn refused(command: &mut Command) -> Result<Refusal> {
    let mut process = Process::start(command)?;
    let status = process.wait(Deadline::usual())?;
    let said = String::from_utf8(process.stderr.whole(Deadline::usual())?)?;
    let Some(code) = status.code() else { bail!("greenscope died of {status}: {said}") };
    ensure!(code != 0, "greenscope succeeded: {said}");
    let lines: Vec<&str> = said.lines().collect();
    let [line] = lines.as_slice() else { bail!("not one line, exit {code}: {said}") };
    ensure!(line.starts_with("greenscope: "), "exit {code}: {line}");
    let printed = process.stdout.whole(Deadline::usual())?;
    ensure!(printed.is_empty(), "exit {code}, and on stdout: {}", String::from_utf8_lossy(&printed));
    Ok(Refusal { code, line: (*line).to_owned() })
}

/// Runs greenscope to its end, whatever that is.
///
/// # Errors
///
/// When it hangs.
pub fn run(command: &mut Command) -> Result<Output> {
    let mut process = Process::start(command)?;
    Ok(Output {
        status: process.wait(Deadline::usual())?,
        stdout: process.stdout.whole(Deadline::usual())?,
        stderr: process.stderr.whole(Deadline::usual())?,
    })
}
