//! What happens in the recorded processes, told as it happens to those who serve tasks.
//!
//! Times are of `CLOCK_MONOTONIC`, in ns.

use std::sync::Arc;

use super::{Frame, Queued, State, TracerRow};
use crate::trace::Called;

/// What has a stack of its own: a greenlet, or a thread without greenlets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// The number is never used again.
    Greenlet(u64),
    /// By the kernel's number of process and thread.
    Thread(u64),
}

/// A process that is recorded from now on.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// The recorded process that made it.
    pub parent: Option<u32>,
    /// Its command line.
    pub command: Vec<String>,
    /// greenlet is loaded.
    pub greenlets: bool,
    /// What tells of requests in it, if that is known by now.
    pub tracer: Option<TracerRow>,
}

/// Whose work something was: what it is called, and when that request began.
#[derive(Clone, Debug)]
pub struct Work {
    /// The label.
    pub called: Called,
    /// By the tracer's own clock, ms since 1970.
    pub began_unix_ms: Option<u64>,
}

/// A tick of the CPU clock that met a thread on a CPU.
#[derive(Clone, Debug)]
pub struct Tick {
    /// The process.
    pub pid: u32,
    /// Who was on the CPU.
    pub lane: Lane,
    /// On which thread, by the kernel's number of process and thread.
    pub thread: u64,
    /// When.
    pub time_ns: u64,
    /// The stack, root first; empty if it could not be taken, or inside of a switch.
    pub frames: Arc<[Frame]>,
    /// Whose work it was.
    pub work: Option<Work>,
    /// Whether that is sure, if it was nobody's: what could not be read says nothing.
    pub is_sure: bool,
}

/// Time off the CPU that is over: a greenlet was suspended, or its thread slept.
#[derive(Clone, Debug)]
pub struct Off {
    /// The process.
    pub pid: u32,
    /// Who.
    pub lane: Lane,
    /// When it began.
    pub begin_ns: u64,
    /// When it was over.
    pub end_ns: u64,
    /// In what: waiting, blocked, waiting for the GIL.
    pub state: State,
    /// Of a wait, ready.
    pub queued: Option<Queued>,
    /// The stack, root first, at both ends.
    pub frames: Arc<[Frame]>,
    /// Whose work it was.
    pub work: Work,
}

/// All time so far that was spent off the CPU in one stack; a wait that goes on is in it
/// up to now.
#[derive(Clone, Debug)]
pub struct OffSum {
    /// The stack, root first.
    pub frames: Arc<[Frame]>,
    /// In what.
    pub state: State,
    /// Time.
    pub ns: u64,
    /// How often it was over.
    pub count: u64,
}

/// All time so far that a thread had on CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnCpuSum {
    /// By the kernel's number of process and thread, which may be another's later.
    pub thread: u64,
    /// Since when it is watched.
    pub watched_ns: u64,
    /// Time.
    pub ns: u64,
}

/// What happens.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A process is recorded from now on.
    Began(Process),
    /// What tells of requests in it became known, or another.
    Traced {
        /// The process.
        pid: u32,
        /// What it is.
        tracer: TracerRow,
    },
    /// What is wanted of a process is told from a time on.
    Telling {
        /// The process.
        pid: u32,
        /// What.
        wants: Wants,
        /// From when on nothing of it is missing.
        from_ns: u64,
    },
    /// A tick.
    Tick(Tick),
    /// A wait or a sleep of a request's is over.
    Off(Off),
    /// A greenlet is over; its waits came before. Told where all of them are.
    LaneEnded {
        /// The process.
        pid: u32,
        /// Which.
        lane: Lane,
    },
    /// All time so far.
    Sums {
        /// The process.
        pid: u32,
        /// Up to when.
        time_ns: u64,
        /// Off the CPU, by stack.
        off: Vec<OffSum>,
        /// On a CPU, by thread; empty where the kernel keeps no clocks.
        on_cpu: Vec<OnCpuSum>,
        /// [`Event::Tick`] is told.
        ticks: bool,
    },
    /// Requests that ended since this was told last, of those that were seen from their begin.
    Responses {
        /// The process.
        pid: u32,
        /// How many.
        count: u64,
        /// How long they took in all.
        sum_ns: u64,
    },
    /// A process is gone; its last events came before.
    Ended {
        /// The process.
        pid: u32,
        /// When.
        time_ns: u64,
    },
}

/// What is wanted of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// [`Event::Tick`].
    pub ticks: bool,
    /// [`Event::Off`] for those with a label of their own that last at least so long, ns.
    pub off_from_ns: Option<u64>,
    /// [`Event::Responses`], about once a second.
    pub responses: bool,
    /// [`Event::Sums`], once that time has come; told once for it.
    pub sums_at_ns: Option<u64>,
}

/// Who is told of events. It is called between two drains of the ring and must not wait.
pub trait Feed {
    /// What is wanted of a process from now on.
    fn wants(&mut self, pid: u32) -> Wants;
    /// Something happened.
    fn take(&mut self, event: Event);
}

/// Nobody, who wants nothing.
impl Feed for () {
    fn wants(&mut self, _pid: u32) -> Wants {
        Wants::default()
    }

    fn take(&mut self, _event: Event) {}
}
