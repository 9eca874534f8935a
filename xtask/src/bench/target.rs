//! A target program of `xtask/bench`: it works when told to, and times itself.

use std::{
    io::Write as _,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    measure::{lines::Lines, spread},
    workspace,
};

/// A hundred thousand greenlets take a while on a busy machine.
const START: Duration = Duration::from_secs(120);

/// Beyond what an order asks for itself.
const ANSWER: Duration = Duration::from_secs(60);

/// A target, waiting for orders; it ends with us, for its input does.
pub(super) struct Target {
    child: Child,
    orders: ChildStdin,
    answers: Lines,
    /// What the interpreter and the package say of themselves.
    pub(super) versions: Versions,
}

/// What a target is made of.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Versions {
    pub(super) python: String,
    pub(super) greenlet: String,
}

/// What a sample says.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Sample {
    /// Time of one unit, by batch.
    ns: Vec<f64>,
    /// How many were done.
    pub(super) units: u64,
}

impl Sample {
    /// The median batch: what an interruption made dear is not in it.
    pub(super) fn ns_per_unit(&self) -> f64 {
        spread::median(&self.ns)
    }
}

/// What other work says.
#[derive(Deserialize)]
struct Work {
    units: u64,
}

#[derive(Deserialize)]
struct Done {}

/// The in-process ways that greenscope is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Inside {
    None,
    /// `greenlet.settrace`, and a walk over the frames.
    Settrace,
    /// The same, and waiting time and count by stack.
    Accounts,
    /// A callback too, and `traceback.extract_stack`.
    Snapshot,
}

impl Target {
    /// Starts a program of `xtask/bench`, and waits until it is set up.
    ///
    /// # Errors
    ///
    /// When it does not come up.
    pub(super) fn start(python: &Path, program: &str, arguments: &[String]) -> Result<Self> {
        let mut child = Command::new(python)
            // No .pyc beside the sources.
            .arg("-B")
            .arg(workspace::root().join("xtask/bench").join(program))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", python.display()))?;
        let (Some(orders), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("{program} has no input or no output");
        };
        let answers = Lines::of(program, output);
        let versions = answers.next(START).and_then(|line| read(&line));
        match versions {
            Ok(versions) => Ok(Self { child, orders, answers, versions }),
            Err(error) => {
                // Its own end is no news beside that.
                drop(child.kill());
                drop(child.wait());
                Err(error)
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Batches for that long, at least three, each timed.
    pub(super) fn sample(&mut self, time: Duration) -> Result<Sample> {
        self.order(&format!("sample {}", time.as_secs_f64()))?;
        self.answer(time)
    }

    /// Batches for that long; how many units were done.
    pub(super) fn work(&mut self, time: Duration) -> Result<u64> {
        self.order(&format!("for {}", time.as_secs_f64()))?;
        Ok(self.answer::<Work>(time)?.units)
    }

    /// Lets it run until [`Self::halt`].
    pub(super) fn go(&mut self) -> Result<()> {
        self.order("go")
    }

    /// Ends what [`Self::go`] began; how many units were done.
    pub(super) fn halt(&mut self) -> Result<u64> {
        self.inside(Inside::None)?;
        // The order that ended it is followed too.
        let work = self.answer::<Work>(Duration::ZERO)?;
        self.answer::<Done>(Duration::ZERO).map(|Done {}| work.units)
    }

    /// Sets or ends an in-process way of taking stacks, without waiting for it.
    fn inside(&mut self, way: Inside) -> Result<()> {
        self.order(match way {
            Inside::None => "inside none",
            Inside::Settrace => "inside settrace",
            Inside::Accounts => "inside accounts",
            Inside::Snapshot => "inside snapshot",
        })
    }

    /// A sample while an in-process way takes the stacks.
    pub(super) fn sample_inside(&mut self, way: Inside, time: Duration) -> Result<Sample> {
        self.inside(way)?;
        self.answer::<Done>(Duration::ZERO)?;
        let sample = self.sample(time);
        self.inside(Inside::None)?;
        self.answer::<Done>(Duration::ZERO)?;
        sample
    }

    fn order(&mut self, order: &str) -> Result<()> {
        self.orders
            .write_all(format!("{order}\n").as_bytes())
            .with_context(|| format!("the target takes no `{order}`"))
    }

    fn answer<T: DeserializeOwned>(&self, time: Duration) -> Result<T> {
        read(&self.answers.next(time + ANSWER)?)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn read<T: DeserializeOwned>(line: &str) -> Result<T> {
    serde_json::from_str(line).with_context(|| format!("the target answered `{line}`"))
}
