//! One run of a workload under one tool, with books of its own.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, anyhow, bail};

use super::{
    Workload,
    books::{Between, Books, Scheduler},
    greenscope::{self, Profile},
    outside::Outside,
    subject::{Subject, Weighted},
};
use crate::workspace;

/// py-spy's default, in samples per second.
const PY_SPY_RATE: f64 = 100.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(super) enum Tool {
    Greenscope,
    PySpy,
    Ddtrace,
    Yappi,
    Skywalking,
}

/// What came of a run.
pub(super) struct Run {
    pub(super) books: Books,
    pub(super) between: Between,
    /// Where the tool saw CPU time, in nanoseconds; or why it did not.
    pub(super) stacks: Result<Vec<Weighted>, String>,
    /// greenscope's own.
    pub(super) profile: Option<Profile>,
}

impl Tool {
    pub(super) const ALL: [Self; 5] =
        [Self::Greenscope, Self::PySpy, Self::Ddtrace, Self::Yappi, Self::Skywalking];

    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Greenscope => "greenscope",
            Self::PySpy => "py-spy",
            Self::Ddtrace => "ddtrace",
            Self::Yappi => "yappi",
            Self::Skywalking => "SkyWalking",
        }
    }

    /// The file in xtask/accuracy of what its target needs, and the environment's name.
    pub(super) const fn environment(self) -> &'static str {
        match self {
            Self::Greenscope | Self::PySpy => "outside",
            Self::Ddtrace => "ddtrace",
            Self::Yappi => "yappi",
            Self::Skywalking => "skywalking",
        }
    }

    /// The name of its module in xtask/accuracy.
    const fn inside(self) -> Option<&'static str> {
        match self {
            Self::Greenscope | Self::PySpy => None,
            Self::Ddtrace | Self::Yappi | Self::Skywalking => Some(self.environment()),
        }
    }

    /// Runs the workload under it.
    ///
    /// # Errors
    ///
    /// When the tool or the target does not do its part.
    pub(super) fn run(self, python: &Path, workload: Workload, seconds: f64) -> Result<Run> {
        let mut subject = Subject::start(python, self.inside(), workload, seconds)?;
        let pid = subject.pid();
        let mut work = || {
            let before = Scheduler::ask(pid)?;
            let (books, seen) = subject.work(self.inside().is_some(), seconds)?;
            Ok((books, before.until(&Scheduler::ask(pid)?), seen))
        };
        let ((books, between, seen), profile) = match self {
            Self::Greenscope => {
                greenscope::record(pid, work).map(|(worked, profile)| (worked, Some(profile)))?
            }
            Self::PySpy => {
                let ((books, between, _), stacks) = py_spy(python, pid, work)?;
                ((books, between, stacks), None)
            }
            Self::Ddtrace | Self::Yappi | Self::Skywalking => (work()?, None),
        };
        subject.finish()?;
        let stacks = match &profile {
            Some(profile) => profile.cpu_stacks(),
            None if seen.iter().all(|stack| stack.weight <= 0.0) => Err(anyhow!("it saw nothing")),
            None => Ok(seen),
        };
        Ok(Run { books, between, stacks: stacks.map_err(|error| error.to_string()), profile })
    }
}

/// Records by py-spy while `work` is done.
///
/// Without `--gil`: a thread that computes in C without the GIL is on the CPU as well. What
/// is idle, py-spy decides by itself, as it does for whoever calls it so.
fn py_spy<T>(python: &Path, pid: u32, work: impl FnOnce() -> Result<T>) -> Result<(T, Vec<Weighted>)> {
    let output = workspace::target().join("accuracy.raw");
    let mut command = Command::new(python.with_file_name("py-spy"));
    command
        .args(["record", "--format", "raw", "--function", "--rate", &PY_SPY_RATE.to_string()])
        .args(["--pid", &pid.to_string(), "--output"])
        .arg(&output)
        .stderr(Stdio::null());
    let py_spy = Outside::start(command.stdout(Stdio::piped()), "py-spy> Sampling process")?;
    let worked = work()?;
    py_spy.stop("-INT")?;
    let raw = fs::read_to_string(&output).with_context(|| format!("cannot read {}", output.display()))?;
    Ok((worked, raw.lines().map(raw_line).collect::<Result<_>>()?))
}

/// `main (wall.py:1);burn (wall.py:9) 17`, root first.
fn raw_line(line: &str) -> Result<Weighted> {
    let Some((frames, count)) = line.rsplit_once(' ') else { bail!("py-spy wrote `{line}`") };
    let samples: f64 = count.parse().with_context(|| format!("py-spy wrote `{line}`"))?;
    let name = |frame: &str| frame.split(" (").next().unwrap_or_default().to_owned();
    Ok(Weighted { functions: frames.split(';').map(name).collect(), weight: samples * 1e9 / PY_SPY_RATE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn py_spys_lines_are_read() {
        let read = raw_line("main (wall.py:1);burn (wall.py:9) 17").unwrap();
        assert_eq!(read.functions, ["main", "burn"]);
        assert!((read.weight - 170_000_000.0).abs() < 1.0);
        assert!(raw_line("nothing").is_err());
    }
}
