//! traced.py: a service that tells whose work it did, and the load that asks it.

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::deadline::Deadline;
use crate::http;
use crate::judge::{Evidence, Verdict, judge};
use crate::label::Source;
use crate::place::{Python, target_program};
use crate::process::Process;
use crate::profile::Profile;
use crate::target::Target;
use crate::works::{self, Switch, Work};

/// What the load puts into every query, for nobody to read.
pub const SECRET: &str = "never-to-be-read";
/// A request for each kind of span, so that every class has been made before it counts.
const FIRST: [&str; 4] = ["/mixed", "/spawn", "/slow", "/static-ignored"];

/// A running service.
#[derive(Debug)]
pub struct Service {
    /// Its process.
    pub target: Target,
    python: Python,
    folder: TempDir,
    port: u16,
}

/// What the service says at its end.
#[derive(Debug)]
pub struct Ledger {
    /// Its requests, and what they made.
    pub works: Vec<Work>,
    /// Its switches.
    pub switches: Vec<Switch>,
}

impl Service {
    /// Starts it with that tracer, or with none (`wire`), and waits until it listens.
    ///
    /// # Errors
    ///
    /// When it does not get there.
    pub fn start(python: &Python, labels: Source) -> Result<Self> {
        Self::start_by(&mut Command::new(&python.exe), python, labels, true)
    }

    /// The same behind a command of one's own, which ends with the interpreter; without the
    /// book of the switches, where something else is to hear of them.
    ///
    /// # Errors
    ///
    /// When it does not get there.
    pub fn start_by(
        command: &mut Command,
        python: &Python,
        labels: Source,
        with_switches: bool,
    ) -> Result<Self> {
        let labels = match labels {
            Source::Agent => "agent",
            Source::Otel => "otel",
            Source::Wire => "wire",
        };
        let folder = TempDir::new()?;
        let (books, switches) = (folder.path().join("books"), folder.path().join("switches"));
        let (books, switches) = (books.to_string_lossy(), switches.to_string_lossy());
        let mut arguments = vec!["--labels", labels, "--books", &books];
        if with_switches {
            arguments.extend(["--switches", &switches]);
        }
        let target = Target::start_by(command, "traced.py", &arguments)?;
        let port = target.facts.get("port").and_then(Value::as_u64).context("a port")?;
        Ok(Self { target, python: python.clone(), folder, port: u16::try_from(port)? })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.target.pid()
    }

    /// Where it listens.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Has it answer a request of each kind, before anything is recorded.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn warm_up(&self) -> Result<()> {
        FIRST.iter().try_for_each(|path| self.ask(path, "").map(drop))
    }

    /// One request, with these lines among its head; returns the whole answer.
    ///
    /// # Errors
    ///
    /// When it is not answered.
    pub fn ask(&self, path: &str, lines: &str) -> Result<String> {
        http::ask(self.port, path, lines)
    }

    /// A request whose head comes in two pieces, the second one when the first has been read.
    ///
    /// # Errors
    ///
    /// When it is not answered.
    pub fn ask_in_pieces(&self, first: &str, second: &str) -> Result<()> {
        let mut stream = http::connect(self.port)?;
        stream.set_nodelay(true)?;
        stream.write_all(first.as_bytes())?;
        // One thread serves both: what came first was read before this one was answered.
        self.ask("/slow", "")?;
        stream.write_all(second.as_bytes())?;
        http::answered(&mut stream, &format!("{first}{second}")).map(drop)
    }

    /// Has many clients ask it for so many seconds; returns how many requests it answered.
    ///
    /// # Errors
    ///
    /// When an answer was another than it should be.
    pub fn load(&self, seconds: u32, options: &[&str]) -> Result<u64> {
        let mut load = Process::start(
            Command::new(&self.python.exe)
                .arg(target_program("traced_load.py"))
                .args(["--port", &self.port.to_string(), "--seconds", &seconds.to_string()])
                .args(options)
                .env("PYTHONDONTWRITEBYTECODE", "1"),
        )?;
        let deadline = Deadline::after(Duration::from_secs(60 + u64::from(seconds)));
        let status = load.wait(deadline)?;
        let said = String::from_utf8_lossy(&load.stdout.whole(Deadline::usual())?).into_owned();
        ensure!(status.success(), "{status}: {said}{}", load.stderr.text());
        let done: Value =
            serde_json::from_str(said.trim()).with_context(|| format!("the load said {said}"))?;
        done.pointer("/books/requests").and_then(Value::as_u64).context("no requests")
    }

    /// Ends it, and reads its books.
    ///
    /// # Errors
    ///
    /// When it does not end well, or its books lack something.
    pub fn finish(mut self) -> Result<Ledger> {
        self.target.process.signal(Signal::TERM)?;
        let done = self.target.hear("done")?;
        let lost = done.pointer("/books/switches_lost").and_then(Value::as_u64);
        ensure!(lost.is_none_or(|lost| lost == 0), "{lost:?} switches are not in the book");
        let status = self.target.process.wait(Deadline::usual())?;
        ensure!(status.success(), "the service ended with {status}: {}", self.target.process.stderr.text());
        let switches = self.folder.path().join("switches");
        Ok(Ledger {
            works: works::read(&self.folder.path().join("books"))?,
            switches: if switches.exists() { works::read(&switches)? } else { Vec::new() },
        })
    }
}

impl Ledger {
    /// Holds a recording against the books.
    ///
    /// # Errors
    ///
    /// When they do not fit together at all.
    pub fn judge(&self, profile: &Profile) -> Result<Verdict> {
        self.judge_with(profile, true, false)
    }

    /// The same, with `--no-inherit` or with heads in pieces.
    ///
    /// # Errors
    ///
    /// When they do not fit together at all.
    pub fn judge_with(&self, profile: &Profile, inherits: bool, pieces: bool) -> Result<Verdict> {
        let Self { works, switches } = self;
        judge(&Evidence { profile, works, switches, inherits, pieces })
    }
}
