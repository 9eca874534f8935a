//! The finished profile: what exporters and the summary are made from.
//!
//! Pure: no I/O, no clock.

mod build;
mod endpoints;
pub mod event;
mod filter;
mod queued;

use std::{collections::BTreeMap, sync::Arc};

use profiler_common::clock::OFF_KINDS;

use crate::{
    timeline::lives::Open,
    trace::{Called, Source},
};

pub use build::{Builder, Waits};
pub use endpoints::{EndpointRow, endpoints};
pub use filter::Filter;
pub use queued::{Queued, queued};

/// The place of a label among [`Profile::labels`]; none for time without one.
pub type Labelled = Option<u32>;

/// Ticks of the CPU clock that met the same.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Root first.
    pub frames: Arc<[Frame]>,
    /// Whose work it was.
    pub label: Labelled,
    /// How many.
    pub count: u64,
}

/// A frame as people read it. What is not known is `None`, never a guess.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frame {
    /// Qualified name.
    pub function: Option<Arc<str>>,
    /// The code's file name.
    pub file: Option<Arc<str>>,
    /// The line of the suspended instruction.
    pub line: Option<u32>,
}

impl Frame {
    /// A line that is no frame of Python.
    #[must_use]
    pub fn label(text: &str) -> Self {
        Self { function: Some(text.into()), file: None, line: None }
    }

    /// A frame of which nothing is known.
    pub const UNKNOWN: Self = Self { function: None, file: None, line: None };

    /// Whether it is one of these.
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        self.function.is_none()
    }
}

/// What a stack's time was spent in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum State {
    /// On a CPU.
    Cpu,
    /// Suspended.
    Wait,
    /// Its thread asleep in a call that did not yield.
    Blocked,
    /// Its thread waiting for the GIL.
    Gil,
    /// Its thread ready, and not let.
    Preempted,
    /// A hub that is suspended or has nothing to do; a thread that waits for its next task, or
    /// for any of many files and has no greenlets.
    Idle,
}

/// A process that was recorded.
#[derive(Clone, Debug)]
pub struct TargetRow {
    /// Its pid.
    pub pid: u32,
    /// The target that it is a child of; none if it was given itself.
    pub parent: Option<u32>,
    /// CPython's version.
    pub python: String,
    /// greenlet's version; none when it is not loaded.
    pub greenlet: Option<String>,
    /// Its command line.
    pub command: String,
    /// When its recording began, from the start.
    pub began_ns: u64,
    /// How long it had been there by then, if it had taken another program's place.
    pub unseen_ns: Option<u64>,
    /// What tells of requests in it; none if nothing does.
    pub tracer: Option<TracerRow>,
}

/// What tells of requests in a process, and who the process is to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracerRow {
    /// Which.
    pub source: Source,
    /// The service's name.
    pub service: Option<String>,
    /// The instance's.
    pub instance: Option<String>,
    /// Whether it has a profiler of its own, and that one is on.
    pub profiler: Option<bool>,
}

/// What came of the looks for a label: at each switch, at each tick.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observations {
    /// The greenlet's own context told.
    pub own: u64,
    /// Its request or its maker had.
    pub given: u64,
    /// There was none, by reason; only those that happened.
    pub blank: BTreeMap<&'static str, u64>,
    /// Runs in which it was another than before, or may have been meanwhile.
    pub changed: u64,
    /// What lies between those looks: nobody's.
    pub changed_ns: u64,
    /// Labels of makers that were taken back, for their request was over.
    pub outlived: u64,
    /// Of waits with a maker's label, what came after its request.
    pub outlived_ns: u64,
}

/// A request that was seen.
#[derive(Clone, Debug)]
pub struct RequestRow {
    /// The process.
    pub pid: u32,
    /// What told of it.
    pub source: Option<Source>,
    /// Its trace.
    pub trace_id: Option<Arc<str>>,
    /// SkyWalking's segment.
    pub segment_id: Option<Arc<str>>,
    /// What it asked for.
    pub endpoint: Option<Arc<str>>,
    /// From the start of the recording. None if it began before.
    pub begin_ns: Option<u64>,
    /// From the begin of the run in which it was first seen to the last moment it was; from the
    /// wire, from its head to the end of its answer. None if it was not wholly inside.
    pub wall_ns: Option<u64>,
    /// Where the time went in which a greenlet of its own was current.
    pub clock: Option<Clocked>,
    /// A greenlet of its own was suspended. None if it is not known who worked for it.
    pub waiting_ns: Option<u64>,
    /// Of this, ready.
    pub queued: Option<Queued>,
    /// The same of greenlets that it made.
    pub inherited_clock: Option<Clocked>,
    /// The same of greenlets that it made.
    pub inherited_waiting_ns: Option<u64>,
}

/// What was counted over all targets.
#[derive(Clone, Debug, Default)]
pub struct TotalsRow {
    /// Switches.
    pub switches: u64,
    /// Greenlets given an identity, or found by enumeration.
    pub greenlets_seen: u64,
    /// Greenlets that exist and were never switched to.
    pub greenlets_unstarted: u64,
    /// Dead greenlets beyond the bound, or whose record was lost.
    pub greenlets_unlisted: u64,
    /// Switches into these.
    pub unlisted_switches_in: u64,
    /// Their time as current greenlets.
    pub unlisted_running_ns: u64,
    /// Where their time as current greenlets went.
    pub unlisted_clock: Option<Clocked>,
    /// Their time suspended.
    pub unlisted_waiting_ns: u64,
    /// Ticks of the CPU clock that met a thread that was watched. None if it did not tick.
    pub cpu_samples: Option<u64>,
    /// Records that the ring had no room for.
    pub records_lost: u64,
    /// Stacks deeper than the bound.
    pub stacks_truncated: u64,
    /// Hits of the probes.
    pub probe_hits: u64,
    /// By name; only those that happened.
    pub faults: BTreeMap<&'static str, u64>,
    /// Looks for labels. None if there was nothing to look for.
    pub observations: Option<Observations>,
}

/// What became of a time in which something was current on its thread: all of it is in
/// one of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clocked {
    /// On a CPU.
    pub on_cpu_ns: u64,
    /// Its thread slept in a call that did not yield.
    pub blocked_ns: u64,
    /// Its thread could run and was not let.
    pub preempted_ns: u64,
    /// Its thread waited for the GIL.
    pub gil_wait_ns: u64,
    /// A hub's wait for events; a thread's for its next task, or, without greenlets, for any of
    /// many files.
    pub idle_ns: u64,
}

impl Clocked {
    /// The time that has these parts off the CPU, if it has them.
    #[must_use]
    pub fn new(running_ns: u64, off_ns: [u64; OFF_KINDS], polls_idly: bool) -> Option<Self> {
        let [blocked_ns, polled_ns, gil_wait_ns, preempted_ns] = off_ns;
        let on_cpu_ns = running_ns.checked_sub(off_ns.iter().sum())?;
        let (blocked_ns, idle_ns) =
            if polls_idly { (blocked_ns, polled_ns) } else { (blocked_ns + polled_ns, 0) };
        Some(Self { on_cpu_ns, blocked_ns, preempted_ns, gil_wait_ns, idle_ns })
    }

    /// The same, but so much of it was no block.
    #[must_use]
    pub fn idle(self, ns: u64) -> Self {
        let ns = ns.min(self.blocked_ns);
        Self { blocked_ns: self.blocked_ns - ns, idle_ns: self.idle_ns + ns, ..self }
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            on_cpu_ns: self.on_cpu_ns + other.on_cpu_ns,
            blocked_ns: self.blocked_ns + other.blocked_ns,
            preempted_ns: self.preempted_ns + other.preempted_ns,
            gil_wait_ns: self.gil_wait_ns + other.gil_wait_ns,
            idle_ns: self.idle_ns + other.idle_ns,
        }
    }
}

/// A thread that was watched.
#[derive(Clone, Debug)]
pub struct ThreadRow {
    /// Its process.
    pub pid: u32,
    /// Its tid, where it can be told.
    pub tid: Option<u32>,
    /// Its name.
    pub name: Option<String>,
    /// It ran greenlets.
    pub switched: bool,
    /// Where its time went. None if it was not measured.
    pub clock: Option<Clocked>,
    /// Of its time on a CPU, inside of a switch of greenlets: by the ticks that met it so.
    pub switching_ns: Option<u64>,
}

/// A greenlet.
#[derive(Clone, Debug)]
pub struct GreenletRow {
    /// Unique in this profile.
    pub id: u64,
    /// Its process.
    pub pid: u32,
    /// Its thread, where it can be told.
    pub tid: Option<u32>,
    /// Its own name, else its type's.
    pub name: Option<String>,
    /// A thread's main greenlet.
    pub main: bool,
    /// Not seen ending.
    pub alive: bool,
    /// Switches into it.
    pub switches_in: u64,
    /// Current on its thread. None if it was not measured.
    pub running_ns: Option<u64>,
    /// Where `running_ns` went. None if it was not measured.
    pub clock: Option<Clocked>,
    /// Suspended. None if it was not measured.
    pub waiting_ns: Option<u64>,
    /// Whose work it did when it last stopped.
    pub label: Labelled,
}

/// Time spent in one stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackRow {
    /// Root first.
    pub frames: Arc<[Frame]>,
    /// In what.
    pub state: State,
    /// Whose process.
    pub pid: u32,
    /// Time.
    pub ns: u64,
    /// How often; completed waits only.
    pub count: u64,
    /// Of completed waits, how long their greenlets were ready. None for everything else.
    pub queued: Option<Queued>,
    /// Of an open wait: whose, if that one is listed.
    pub greenlet: Option<u64>,
    /// Of an open wait: which end.
    pub open: Option<Open>,
    /// Whose work it was.
    pub label: Labelled,
}

/// A run without a switch.
#[derive(Clone, Debug)]
pub struct RunRow {
    /// How long.
    pub ns: u64,
    /// Of which greenlet.
    pub greenlet: Option<u64>,
    /// Its name.
    pub name: Option<String>,
    /// Its process.
    pub pid: u32,
    /// The stack at its end, root first.
    pub frames: Arc<[Frame]>,
}

/// The greenlets that entered in the round after a block and had waited since before its
/// end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Victims {
    /// How many.
    pub count: u64,
    /// How long the block held them up at most, summed.
    pub held_ns: u64,
    /// The longest of these.
    pub held_most_ns: u64,
}

/// What took most of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BlockKind {
    /// It ran.
    OnCpu,
    /// Its thread slept in a call that did not yield.
    Blocked,
    /// Its thread waited for the GIL, which another one held.
    Gil,
    /// Its thread could run and was not let.
    Starved,
}

impl Clocked {
    /// What most of it was, idle time apart; none if nothing was.
    #[must_use]
    pub fn kind(&self) -> Option<BlockKind> {
        let Self { on_cpu_ns, blocked_ns, preempted_ns, gil_wait_ns, idle_ns: _ } = *self;
        let kinds = [
            (on_cpu_ns, BlockKind::OnCpu),
            (blocked_ns, BlockKind::Blocked),
            (gil_wait_ns, BlockKind::Gil),
            (preempted_ns, BlockKind::Starved),
        ];
        let (most_ns, kind) = kinds.into_iter().max_by_key(|(ns, _)| *ns)?;
        (most_ns > 0).then_some(kind)
    }
}

/// A thread that had the GIL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its tid.
    pub tid: u32,
    /// Its name.
    pub name: Option<String>,
}

/// A run without a switch that was too long.
#[derive(Clone, Debug)]
pub struct BlockRow {
    /// Its process.
    pub pid: u32,
    /// Its thread, where it can be told.
    pub tid: Option<u32>,
    /// Of which greenlet.
    pub greenlet: Option<u64>,
    /// Its name.
    pub name: Option<String>,
    /// From the start of the recording.
    pub begin_ns: u64,
    /// How long.
    pub ns: u64,
    /// What it was. None if it was not measured.
    pub clock: Option<Clocked>,
    /// Who had the GIL for more than half of what it waited for it.
    pub gil_holder: Option<Holder>,
    /// The stack at its end, root first.
    pub frames: Arc<[Frame]>,
    /// The stacks that ticks of the CPU clock met in it, most ticks first.
    pub ticks: Vec<(Arc<[Frame]>, u64)>,
    /// Whom it held up. None if the round after it was not over at the end.
    pub victims: Option<Victims>,
    /// Whose work it was at its end.
    pub label: Labelled,
}

/// A greenlet's time in one state.
#[derive(Clone, Debug)]
pub struct IntervalRow {
    /// Whose.
    pub greenlet: u64,
    /// From the start of the recording.
    pub begin_ns: u64,
    /// From the start of the recording.
    pub end_ns: u64,
    /// The stack it waited in; none while it ran.
    pub frames: Option<Arc<[Frame]>>,
    /// Which end lies outside.
    pub open: Option<Open>,
    /// Of a wait: whose work it was.
    pub label: Labelled,
}

/// What the recording cost the targets.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// A hit: the trap and the program, measured here during this recording.
    pub ns_per_hit: u64,
}

/// The finished profile.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The processes.
    pub targets: Vec<TargetRow>,
    /// When every probe was in place, since 1970.
    pub started_unix_ns: u64,
    /// The same moment by `CLOCK_MONOTONIC`.
    pub started_monotonic_ns: u64,
    /// How long.
    pub duration_ns: u64,
    /// From the start of the program to the first stack.
    pub first_stack_ns: Option<u64>,
    /// Counts.
    pub totals: TotalsRow,
    /// The threads.
    pub threads: Vec<ThreadRow>,
    /// The greenlets, in the order they were seen.
    pub greenlets: Vec<GreenletRow>,
    /// The stacks, most time first.
    pub stacks: Vec<StackRow>,
    /// The longest runs, longest first.
    pub runs: Vec<RunRow>,
    /// The runs over the threshold, in the order of their ends.
    pub blocks: Vec<BlockRow>,
    /// Which requests it is of; none for everything.
    pub only: Option<String>,
    /// The labels that time has.
    pub labels: Vec<Called>,
    /// The requests, in the order of their begins.
    pub requests: Vec<RequestRow>,
    /// The timeline, if it was asked for.
    pub intervals: Option<Vec<IntervalRow>>,
    /// What it cost, if it could be measured.
    pub cost: Option<Cost>,
}

#[cfg(test)]
pub(crate) mod tests {
    //! Rows for the tests of this room.

    use super::*;

    pub(crate) fn profile() -> Profile {
        Profile {
            targets: Vec::new(),
            started_unix_ns: 0,
            started_monotonic_ns: 0,
            duration_ns: 0,
            first_stack_ns: None,
            totals: TotalsRow::default(),
            threads: Vec::new(),
            greenlets: Vec::new(),
            stacks: Vec::new(),
            runs: Vec::new(),
            blocks: Vec::new(),
            only: None,
            labels: Vec::new(),
            requests: Vec::new(),
            intervals: None,
            cost: None,
        }
    }

    pub(crate) fn stack((label, ns): (Labelled, u64)) -> StackRow {
        StackRow {
            frames: Arc::new([Frame::label("f")]),
            state: State::Wait,
            pid: 1,
            ns,
            count: 1,
            queued: None,
            greenlet: None,
            open: None,
            label,
        }
    }

    pub(crate) fn request(called: &Called) -> RequestRow {
        RequestRow {
            pid: 1,
            source: called.source,
            trace_id: called.trace_id.clone(),
            segment_id: called.segment_id.clone(),
            endpoint: called.endpoint.clone(),
            begin_ns: Some(0),
            wall_ns: Some(10),
            clock: Some(Clocked { on_cpu_ns: 4, ..Clocked::default() }),
            waiting_ns: Some(6),
            queued: Some(Queued::default()),
            inherited_clock: None,
            inherited_waiting_ns: Some(0),
        }
    }
}
