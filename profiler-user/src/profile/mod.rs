//! The finished profile: what exporters and the summary are made from.
//!
//! Pure: no I/O, no clock.

mod build;

use std::{collections::BTreeMap, sync::Arc};

use profiler_common::clock::OFF_KINDS;

use crate::timeline::lives::Open;

pub use build::Builder;

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
    /// A hub that is suspended or has nothing to do; a thread that waits for any of many
    /// files and has no greenlets.
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
    /// A hub's wait for events; a thread's without greenlets for any of many files.
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
    /// Of an open wait: whose, if that one is listed.
    pub greenlet: Option<u64>,
    /// Of an open wait: which end.
    pub open: Option<Open>,
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
    /// The stack at its end, root first.
    pub frames: Arc<[Frame]>,
    /// The stacks that ticks of the CPU clock met in it, most ticks first.
    pub ticks: Vec<(Arc<[Frame]>, u64)>,
    /// Whom it held up. None if the round after it was not over at the end.
    pub victims: Option<Victims>,
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
    /// The timeline, if it was asked for.
    pub intervals: Option<Vec<IntervalRow>>,
    /// What it cost, if it could be measured.
    pub cost: Option<Cost>,
}
