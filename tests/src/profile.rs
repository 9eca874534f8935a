//! The json of `greenscope record`, version 1, as docs/json-format.md has it.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use crate::label::{Endpoint, Interval, Label, Looks, Request, Tracer};

/// One recording.
#[derive(Clone, Debug, Deserialize)]
pub struct Profile {
    /// 1.
    pub version: u32,
    /// The processes that were recorded.
    pub targets: Vec<Target>,
    /// The moment at which every probe was in place.
    pub started_unix_ns: u64,
    /// The same moment by `CLOCK_MONOTONIC`.
    #[serde(default)]
    pub started_monotonic_ns: u64,
    /// From that moment to the end.
    pub duration_ns: u64,
    /// Sums over everything.
    pub totals: Totals,
    /// The threads.
    #[serde(default)]
    pub threads: Vec<Thread>,
    /// The greenlets that were seen.
    pub greenlets: Vec<Greenlet>,
    /// Stacks with the time spent in them.
    pub stacks: Vec<Stack>,
    /// Runs that were too long.
    #[serde(default)]
    pub blocks: Vec<Block>,
    /// Requests by what they asked for.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
    /// The requests that were seen.
    #[serde(default)]
    pub requests: Vec<Request>,
    /// With `--intervals`: what each greenlet did when.
    pub intervals: Option<Vec<Interval>>,
}

/// A run without a switch that was too long.
#[derive(Clone, Debug, Deserialize)]
pub struct Block {
    /// Whose.
    pub name: Option<String>,
    /// How long.
    pub ns: u64,
    /// What it was.
    #[serde(flatten)]
    pub clock: Clock,
    /// What most of it was.
    pub kind: Option<String>,
    /// Who had the GIL, if that is known.
    pub gil_holder: Option<Holder>,
    /// Whom it held up, if that is known.
    pub victims: Option<u64>,
    /// The longest of these.
    pub held_most_ns: Option<u64>,
}

/// A thread that had the GIL.
#[derive(Clone, Debug, Deserialize)]
pub struct Holder {
    /// Its id.
    pub tid: u32,
    /// Its name.
    pub name: Option<String>,
}

/// A recorded process.
#[derive(Clone, Debug, Deserialize)]
pub struct Target {
    /// Its pid, as greenscope sees it.
    pub pid: u32,
    /// The process that it is recorded as a child of.
    pub parent: Option<u32>,
    /// Its Python, such as `3.12.1`.
    pub python: String,
    /// Its greenlet, such as `3.5.6`; null when none is loaded.
    pub greenlet: Option<String>,
    /// Its command line.
    pub command: String,
    /// When its recording began, from the start.
    pub began_ns: u64,
    /// How long it had been there by then, if it had taken another program's place.
    pub unseen_ns: Option<u64>,
    /// What tells of requests in it.
    pub tracer: Option<Tracer>,
}

/// Sums over everything.
#[derive(Clone, Debug, Deserialize)]
pub struct Totals {
    /// Real switches.
    pub switches: u64,
    /// Greenlets, dead ones included.
    pub greenlets_seen: u64,
    /// Dead greenlets that the list had no room for.
    #[serde(default)]
    pub greenlets_unlisted: u64,
    /// Switches into these.
    #[serde(default)]
    pub unlisted_switches_in: u64,
    /// Ticks of the CPU clock that met a thread of the target.
    pub cpu_samples: Option<u64>,
    /// Records that found no room.
    pub records_lost: u64,
    /// Stacks that were cut at the limit of depth.
    pub stacks_truncated: u64,
    /// What came of the looks for labels; null if there was nothing to look for.
    pub labels: Option<Looks>,
    /// What could not be read, by name.
    #[serde(default)]
    pub faults: BTreeMap<String, u64>,
    /// Hits of the probes.
    #[serde(default)]
    pub probe_hits: u64,
}

/// A thread.
#[derive(Clone, Debug, Deserialize)]
pub struct Thread {
    /// Its process.
    pub pid: u32,
    /// Its id, where that is known.
    pub tid: Option<u32>,
    /// Its name, where it has one.
    pub name: Option<String>,
    /// Where its time went.
    #[serde(flatten)]
    pub clock: Clock,
}

/// Where a time went; all of it is in one of these.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Clock {
    /// On a CPU.
    pub on_cpu_ns: Option<u64>,
    /// Asleep in a call that did not yield.
    pub blocked_ns: Option<u64>,
    /// Runnable and not let.
    pub preempted_ns: Option<u64>,
    /// Waiting for the GIL.
    pub gil_wait_ns: Option<u64>,
    /// A hub with nothing to do.
    pub idle_ns: Option<u64>,
}

impl Clock {
    /// All of it, if it was measured.
    #[must_use]
    pub fn sum_ns(&self) -> Option<u64> {
        let Self { on_cpu_ns, blocked_ns, preempted_ns, gil_wait_ns, idle_ns } = *self;
        Some(on_cpu_ns? + blocked_ns? + preempted_ns? + gil_wait_ns? + idle_ns?)
    }
}

/// A greenlet.
#[derive(Clone, Debug, Deserialize)]
pub struct Greenlet {
    /// Unique in this recording.
    pub id: serde_json::Value,
    /// Its process.
    pub pid: u32,
    /// Its thread, where that is known.
    pub tid: Option<u32>,
    /// Its name, where it has one.
    pub name: Option<String>,
    /// Whether it is its thread's main greenlet.
    pub main: bool,
    /// Whether it lived when the recording ended.
    pub alive: bool,
    /// How often it was switched to.
    pub switches_in: u64,
    /// Current on its thread.
    pub running_ns: Option<u64>,
    /// Suspended.
    pub waiting_ns: Option<u64>,
    /// Where its running time went.
    #[serde(flatten)]
    pub clock: Clock,
}

/// A stack in one state, and the time spent in it.
#[derive(Clone, Debug, Deserialize)]
pub struct Stack {
    /// Root first.
    pub frames: Vec<Frame>,
    /// What the greenlet did.
    pub state: State,
    /// The process.
    pub pid: u32,
    /// The time, summed.
    pub ns: u64,
    /// How often.
    pub count: u64,
    /// Of completed waits, ready: no less.
    pub queued_ns: Option<u64>,
    /// And no more.
    pub queued_at_most_ns: Option<u64>,
    /// The greenlet of an open wait.
    #[serde(default)]
    pub greenlet: serde_json::Value,
    /// Which end of the recording cut the wait, if any.
    #[serde(default)]
    pub open: Option<Open>,
    /// Whose work it was.
    #[serde(flatten)]
    pub label: Label,
}

/// What a greenlet did.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// On CPU.
    Cpu,
    /// Suspended, and no hub.
    Wait,
    /// Current, its thread off the CPU.
    Blocked,
    /// Current, its thread runnable.
    Preempted,
    /// Current, its thread without the GIL.
    Gil,
    /// Between two greenlets.
    Switching,
    /// A suspended hub.
    Idle,
}

/// Which end of the recording cut a wait.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
#[serde(rename_all = "lowercase")]
pub enum Open {
    /// It began before.
    Begin,
    /// It had not ended.
    End,
    /// Both.
    Both,
}

impl Open {
    /// Whether the wait began before the recording.
    pub fn at_begin(self) -> bool {
        matches!(self, Self::Begin | Self::Both)
    }

    /// Whether the wait had not ended when the recording did.
    pub fn at_end(self) -> bool {
        matches!(self, Self::End | Self::Both)
    }
}

/// One frame; an empty name or line is one that was not known.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
pub struct Frame {
    /// The qualified name.
    pub function: Option<String>,
    /// The code object's file, as it has it.
    pub file: Option<String>,
    /// The line of the suspended instruction.
    pub line: Option<u32>,
}

impl Frame {
    /// Whether the frame admits that it does not know its function.
    pub fn is_blank(&self) -> bool {
        self.function.as_deref().is_none_or(|name| name.is_empty() || name == "?")
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.as_deref().unwrap_or("?");
        let name = file.rsplit('/').next().unwrap_or(file);
        write!(to, "{}@{name}:", self.function.as_deref().unwrap_or("?"))?;
        match self.line {
            Some(line) => write!(to, "{line}"),
            None => to.write_str("?"),
        }
    }
}

impl Profile {
    /// Waiting time of all stacks that contain the function, hubs' idle time left out.
    pub fn waiting_ns(&self, function: &str) -> u64 {
        let waits = self.stacks.iter().filter(|stack| stack.state == State::Wait);
        waits.filter(|stack| stack.contains(function)).map(|stack| stack.ns).sum()
    }

    /// The sum of `switches_in` over all greenlets.
    pub fn switches_in(&self) -> u64 {
        self.greenlets.iter().map(|greenlet| greenlet.switches_in).sum()
    }

    /// The end of the recording.
    pub fn ended_unix_ns(&self) -> u64 {
        self.started_unix_ns + self.duration_ns
    }
}

impl Stack {
    /// Whether the function is anywhere in it.
    pub fn contains(&self, function: &str) -> bool {
        self.frames.iter().any(|frame| frame.function.as_deref() == Some(function))
    }
}
