//! The numbered reasons why something could not be read, believed or kept.
//!
//! A fault is counted where it happens and shown in the summary and in the json
//! (`totals.faults`). The names are part of the json format: append, never renumber.

/// Why something could not be read, believed or kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
#[non_exhaustive]
pub enum Fault {
    /// The target's memory at a greenlet or thread state could not be read.
    ReadState = 0,
    /// The target's memory at a frame could not be read: the stack ends there.
    ReadFrame = 1,
    /// The stack is deeper than [`crate::limits::MAX_FRAMES`]; its root is cut.
    StackTruncated = 2,
    /// The frame chain was empty for a greenlet that is alive and ran Python.
    NoFrames = 3,
    /// The thread state is not the one that this thread holds the GIL with.
    ThreadState = 4,
    /// greenlet's own current greenlet was not the recorded one.
    OutOfStep = 5,
    /// A switch was announced and did not happen; its accounting was taken back.
    SwitchUndone = 6,
    /// `this` is not a greenlet of the probed module.
    NotAGreenlet = 7,
    /// The target of a switch is a dead greenlet whose live ancestor was not found.
    DeadTarget = 8,
    /// A greenlet of another thread was the target of a switch.
    WrongThread = 9,
    /// The map of greenlets is full: this greenlet's own times are lost.
    GreenletsFull = 10,
    /// The map of stacks is full: this wait is in its greenlet's time only.
    StacksFull = 11,
    /// The ring buffer was full: a stack's frames will be sent again.
    RingFullStack = 12,
    /// The ring buffer was full: a dead greenlet is in the sum of the unlisted only.
    RingFullEnd = 13,
    /// The ring buffer was full: a switch is missing from the timeline.
    RingFullSwitch = 14,
    /// Task storage could not be had: this hit was not accounted.
    NoTaskStorage = 15,
    /// A stack changed between its first and its second walk: not sent.
    StackMoved = 16,
    /// A code object was gone or another one when its name was read.
    CodeChanged = 17,
    /// A code object's fields could not be decoded.
    CodeUnreadable = 18,
    /// The walk over the interpreter's objects did not reach its end.
    EnumerationIncomplete = 19,
    /// A greenlet found by enumeration could not be read consistently.
    GreenletUnreadable = 20,
    /// A record from the kernel had a length or version that is not ours.
    BadRecord = 21,
    /// A stack's time has no frames: its record never arrived.
    StackUnknown = 22,
    /// The map of threads is full: this thread is missing from the list.
    ThreadsFull = 23,
    /// A wait was counted for a code object that is not known: its address was reused, or its text
    /// is too long or one too many.
    CodeReused = 24,
    /// There was no more room for intervals: the timeline ends before this switch.
    IntervalsFull = 25,
    /// The thread's clock moved at every look: what it was off the CPU counts for the
    /// greenlet that runs next.
    ClockMoved = 26,
    /// The ring buffer was full: a tick of the CPU clock is missing, its time unsampled.
    RingFullTick = 27,
    /// A tick met a chain of frames that does not lead to the root of its thread.
    TickTorn = 28,
    /// There was no more room for blocks: this one is missing from the list.
    BlocksFull = 29,
    /// The scheduler did not tell that a thread came onto a CPU: its time is right, which
    /// of its greenlets had it may be wrong by half a millisecond, at worst by a tick of the scheduler.
    CameUnseen = 30,
    /// A child was not followed: there is no room for one more process, or for its record.
    ChildLeftOut = 31,
    /// The ring buffer was full: what a label says is sent when its greenlet switches next.
    RingFullLabel = 32,
    /// The map of times by label is full: this time has no label.
    LabelsFull = 33,
    /// What began like the head of a request did not go on like one, was longer than
    /// [`crate::http::MAX_HEAD`], or could not be read: no request is told of.
    WireCut = 34,
    /// A request came over TLS or HTTP/2: it is not told of.
    WireUnreadable = 35,
    /// A process replaced itself by another Python, which was not recorded.
    ExecLeftOut = 36,
    /// A process loaded a greenlet library that was not known: its greenlets' past is missing.
    GreenletLate = 37,
    /// Which bytes of a connection are a request is not known (it was there before the
    /// recording), or whose time it is is not (several came at once): it has no label.
    WireUnsure = 38,
    /// The ring buffer was full: a wait or a sleep of a request is in its sums and was not told by itself.
    RingFullOff = 39,
    /// A request was read by a greenlet that is not known to work for one connection at a time:
    /// it is counted and timed, and no greenlet's time is its.
    WireUnowned = 40,
    /// The ring buffer was full: when a request ended is not known.
    RingFullRequest = 41,
    /// A run of an event loop's that was long: which callback took so long, if one did, is not known.
    LoopUnsure = 42,
    /// A thread runs another interpreter than the main one, whose thread state could not be
    /// proved or found.
    Subinterpreter = 43,
    /// The target's memory did not answer: nothing was read of it from then on.
    NoAnswer = 44,
    /// The stack of a thread that slept is deeper than [`crate::limits::MAX_SLEEP_STEPS`]; its root is
    /// cut.
    SleepTruncated = 45,
    /// A request on the wire without an owner has no row: perhaps it is one that the tracer tells of.
    WireUnpaired = 46,
}

impl Fault {
    /// How many faults there are; the size of the kernel's counters.
    pub const COUNT: usize = 47;

    /// Every fault, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::ReadState,
        Self::ReadFrame,
        Self::StackTruncated,
        Self::NoFrames,
        Self::ThreadState,
        Self::OutOfStep,
        Self::SwitchUndone,
        Self::NotAGreenlet,
        Self::DeadTarget,
        Self::WrongThread,
        Self::GreenletsFull,
        Self::StacksFull,
        Self::RingFullStack,
        Self::RingFullEnd,
        Self::RingFullSwitch,
        Self::NoTaskStorage,
        Self::StackMoved,
        Self::CodeChanged,
        Self::CodeUnreadable,
        Self::EnumerationIncomplete,
        Self::GreenletUnreadable,
        Self::BadRecord,
        Self::StackUnknown,
        Self::ThreadsFull,
        Self::CodeReused,
        Self::IntervalsFull,
        Self::ClockMoved,
        Self::RingFullTick,
        Self::TickTorn,
        Self::BlocksFull,
        Self::CameUnseen,
        Self::ChildLeftOut,
        Self::RingFullLabel,
        Self::LabelsFull,
        Self::WireCut,
        Self::WireUnreadable,
        Self::ExecLeftOut,
        Self::GreenletLate,
        Self::WireUnsure,
        Self::RingFullOff,
        Self::WireUnowned,
        Self::RingFullRequest,
        Self::LoopUnsure,
        Self::Subinterpreter,
        Self::NoAnswer,
        Self::SleepTruncated,
        Self::WireUnpaired,
    ];

    /// The fault of that number.
    #[must_use]
    pub fn of_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }

    /// The name in the json format.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReadState => "READ_STATE",
            Self::ReadFrame => "READ_FRAME",
            Self::StackTruncated => "STACK_TRUNCATED",
            Self::NoFrames => "NO_FRAMES",
            Self::ThreadState => "THREAD_STATE",
            Self::OutOfStep => "OUT_OF_STEP",
            Self::SwitchUndone => "SWITCH_UNDONE",
            Self::NotAGreenlet => "NOT_A_GREENLET",
            Self::DeadTarget => "DEAD_TARGET",
            Self::WrongThread => "WRONG_THREAD",
            Self::GreenletsFull => "GREENLETS_FULL",
            Self::StacksFull => "STACKS_FULL",
            Self::RingFullStack => "RING_FULL_STACK",
            Self::RingFullEnd => "RING_FULL_END",
            Self::RingFullSwitch => "RING_FULL_SWITCH",
            Self::NoTaskStorage => "NO_TASK_STORAGE",
            Self::StackMoved => "STACK_MOVED",
            Self::CodeChanged => "CODE_CHANGED",
            Self::CodeUnreadable => "CODE_UNREADABLE",
            Self::EnumerationIncomplete => "ENUMERATION_INCOMPLETE",
            Self::GreenletUnreadable => "GREENLET_UNREADABLE",
            Self::BadRecord => "BAD_RECORD",
            Self::StackUnknown => "STACK_UNKNOWN",
            Self::ThreadsFull => "THREADS_FULL",
            Self::CodeReused => "CODE_REUSED",
            Self::IntervalsFull => "INTERVALS_FULL",
            Self::ClockMoved => "CLOCK_MOVED",
            Self::RingFullTick => "RING_FULL_TICK",
            Self::TickTorn => "TICK_TORN",
            Self::BlocksFull => "BLOCKS_FULL",
            Self::CameUnseen => "CAME_UNSEEN",
            Self::ChildLeftOut => "CHILD_LEFT_OUT",
            Self::RingFullLabel => "RING_FULL_LABEL",
            Self::LabelsFull => "LABELS_FULL",
            Self::WireCut => "WIRE_CUT",
            Self::WireUnreadable => "WIRE_UNREADABLE",
            Self::ExecLeftOut => "EXEC_LEFT_OUT",
            Self::GreenletLate => "GREENLET_LATE",
            Self::WireUnsure => "WIRE_UNSURE",
            Self::RingFullOff => "RING_FULL_OFF",
            Self::WireUnowned => "WIRE_UNOWNED",
            Self::RingFullRequest => "RING_FULL_REQUEST",
            Self::LoopUnsure => "LOOP_UNSURE",
            Self::Subinterpreter => "SUBINTERPRETER",
            Self::NoAnswer => "NO_ANSWER",
            Self::SleepTruncated => "SLEEP_TRUNCATED",
            Self::WireUnpaired => "WIRE_UNPAIRED",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Fault;

    #[test]
    fn numbers_are_positions() {
        for (position, fault) in Fault::ALL.iter().enumerate() {
            assert_eq!(*fault as usize, position, "{}", fault.name());
        }
    }
}
