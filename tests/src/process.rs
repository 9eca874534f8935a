//! A child process that does not outlive its test.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::deadline::Deadline;
use crate::stream::Stream;

/// A child with drained pipes; killed and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pidfd: OwnedFd,
    stdin: Option<ChildStdin>,
    /// Its standard output.
    pub stdout: Stream,
    /// Its standard error.
    pub stderr: Stream,
    command: String,
}

impl Process {
    /// Starts the command with three pipes.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let shown = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {shown}"))?;
        let stdout = child.stdout.take().context("a piped stdout")?;
        let stderr = child.stderr.take().context("a piped stderr")?;
        let stdin = child.stdin.take();
        let pid = Pid::from_child(&child);
        Ok(Self {
            pidfd: pidfd_open(pid, PidfdFlags::empty())?,
            child,
            stdin,
            stdout: Stream::drain("stdout", stdout),
            stderr: Stream::drain("stderr", stderr),
            command: shown,
        })
    }

    /// Its pid, as this test sees it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    ///
    /// When it is closed.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its stdin is closed")?;
        stdin.write_all(bytes)?;
        stdin.flush()?;
        Ok(())
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal to it.
    ///
    /// # Errors
    ///
    /// When it is gone already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Whether it ended before the deadline; returns as soon as it does.
    ///
    /// # Errors
    ///
    /// When the poll fails.
    pub fn ended(&self, deadline: Deadline) -> Result<bool> {
        loop {
            let mut on = [PollFd::new(&self.pidfd, PollFlags::IN)];
            let left: Timespec = deadline.left().try_into()?;
            match poll(&mut on, Some(&left)) {
                Ok(0) if deadline.passed() => return Ok(false),
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Its exit status, once it has ended.
    ///
    /// # Errors
    ///
    /// When the deadline passes before.
    pub fn wait(&mut self, deadline: Deadline) -> Result<ExitStatus> {
        if !self.ended(deadline)? {
            bail!(
                "{} did not end in time; it said: {}{}",
                self.command,
                self.stdout.text(),
                self.stderr.text()
            );
        }
        Ok(self.child.wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already: then there is nothing to kill or report.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The pids of a process's children, the whole tree below it, nearest first.
///
/// # Errors
///
/// When `/proc` cannot be read; a process that has just ended has none.
pub fn descendants(pid: u32) -> Result<Vec<u32>> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&one) = found.get(next) {
        next += 1;
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{one}/task")) else {
            continue;
        };
        for task in tasks {
            let children = std::fs::read_to_string(task?.path().join("children"));
            let children = children.unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    found.remove(0);
    Ok(found)
}
