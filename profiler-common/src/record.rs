//! What the kernel part keeps in maps and sends through the ring buffer.

use crate::{
    address::Addr,
    clock::{Clock, Gil, OFF_KINDS},
    code::TextLayout,
    fault::Fault,
    label::{About, Blank, Label, LabelConfig},
    layout::Layout,
    limits::{HUB_TYPES, MAX_FRAMES, MAX_IDLERS, TOP_RUNS},
    queue::Queued,
    walk::{Frame, StackKey},
};

pub use crate::{
    flags::*,
    kind::{End, Kind},
};

/// The version of everything in this file; a record of another version is refused.
pub const VERSION: u32 = 9;

macro_rules! pod {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident : $ty:ty,)* })*) => {$(
        $(#[$meta])*
        #[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
        #[derive(Clone, Copy, Debug)]
        #[repr(C)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }
    )*};
}

/// [`TargetConfig::flags`]: take stacks; without it only times are kept.
pub const CONFIG_STACKS: u32 = 1;
/// [`TargetConfig::flags`]: a record for every switch.
pub const CONFIG_SWITCHES: u32 = 2;

/// [`TargetConfig::flags`]: keep the longest runs; hubs' types are known.
pub const CONFIG_RUNS: u32 = 4;
/// [`TargetConfig::flags`]: the processes that it forks become targets as well.
pub const CONFIG_CHILDREN: u32 = 8;

/// [`TargetConfig::flags`]: requests are seen on the sockets that greenlets read.
pub const CONFIG_WIRE: u32 = 16;

/// [`TargetConfig::flags`]: it is told when a code object is freed.
pub const CONFIG_CODES: u32 = 32;

/// In the attach cookie of a probe that fires in every process: which target a hit is of,
/// its thread's slot tells, or its process. The lower half is the number of its [`Probed`].
pub const ANY_TARGET: u64 = 1 << 32;

/// From this bit on of such a cookie: [`Probed::library`].
pub const COOKIE_LIBRARY: u32 = 33;

/// What a slot belongs to when its process is recorded no more, and what a process was that
/// was no target.
pub const NO_TARGET: u64 = u64::MAX;

/// [`TargetConfig::started_ns`]: the threads are watched, and nothing counts yet.
pub const ARMED: u64 = u64::MAX;

pod! {
    /// What the kernel part needs to know of one target; index is the attach cookie.
    pub struct TargetConfig {
        /// `CLOCK_MONOTONIC` ns when every probe was in place; 0 means not recording,
        /// [`ARMED`] not yet.
        pub started_ns: u64,
        /// When the target was made known: numbers are used again, this is not.
        pub made_ns: u64,
        /// Where the current thread state's address lies while the GIL is held.
        pub holder: Addr,
        /// The main interpreter.
        pub interpreter: Addr,
        /// Its GIL.
        pub gil: Gil,
        /// The head of its list of thread states.
        pub threads: Addr,
        /// The target's pid namespace: the device of its file in nsfs, as the kernel has it.
        pub namespace_device: u64,
        /// And its inode.
        pub namespace_inode: u64,
        /// Types whose greenlets are hubs: their runs are mostly idle and not kept.
        pub hub_types: [Addr; HUB_TYPES],
        /// Greenlets that are hubs by what they do, or wait for tasks: the same holds for them.
        pub idlers: [u64; MAX_IDLERS],
        /// `CONFIG_*`.
        pub flags: u32,
        /// Different for every recording of one load.
        pub epoch: u32,
        /// The offsets.
        pub layout: Layout,
        /// A run without a switch of this many ns is a block.
        pub block_ns: u64,
        /// Time off the CPU of at least so many ns is told one by one where it has a label that
        /// is no maker's; `u64::MAX` for none.
        pub off_from_ns: u64,
        /// A stack is sent once for each value; never 0.
        pub sending: u32,
        /// `PyThreadState.next`.
        pub tstate_next: u32,
        /// `PyThreadState.datastack_top`.
        pub tstate_top: u32,
        /// The bit of `cleared` in `PyThreadState._status` (3.12 on), else `u32::MAX`.
        pub tstate_cleared_bit: u32,
        /// `PyCodeObject.co_framesize` (i32, words; 3.12 on), else `u32::MAX`.
        pub code_framesize: u32,
        /// `PyCodeObject.co_nlocalsplus` (i32).
        pub code_nlocalsplus: u32,
        /// `PyCodeObject.co_stacksize` (i32).
        pub code_stacksize: u32,
        /// The greenlet library whose layout this is: [`Probed::library`]; 0 for none. It may
        /// not be loaded yet.
        pub library: u32,
        /// The head of the list of its interpreters, the main one last.
        pub interpreters: Addr,
        /// `PyInterpreterState.next`.
        pub interp_next: u32,
        /// `PyThreadState.current_exception` (3.12 on) or `curexc_type`: null where none is raised.
        pub tstate_exception: u32,
        /// Where the codes' texts are.
        pub texts: TextLayout,
        /// Where the labels are.
        pub label: LabelConfig,
    }

    /// Where a target has mapped greenlet's extension: its vtables lie there. Not part of its
    /// configuration, which user space writes whole: the first hit tells it of a library that
    /// is known.
    pub struct Module {
        /// Where it begins.
        pub start: Addr,
        /// Where it ends; null while it is not known.
        pub end: Addr,
        /// Not 0 once user space was told of a library that is not the expected one.
        pub told: u64,
        /// Whose probes are believed, of those that are set in every process: the library of
        /// the first that was hit in the module; 0 while none was.
        pub owner: u64,
    }

    /// What is known of an instruction that is probed in every process.
    pub struct Probed {
        /// From the begin of its module to it.
        pub from_start: u64,
        /// How long the module is.
        pub module_bytes: u64,
        /// Which of the libraries it is in.
        pub library: u64,
    }

    /// A run without a switch.
    pub struct Run {
        /// How long.
        pub ns: u64,
        /// When it ended.
        pub ended_ns: u64,
        /// Whose.
        pub greenlet: u64,
        /// The stack at its end.
        pub stack: StackKey,
    }

    /// What is exact whatever else is lost, one per target.
    pub struct Totals {
        /// Switches that happened.
        pub switches: u64,
        /// Identities given; none is given twice.
        pub identities: u64,
        /// Greenlets that have or had one, without those whose start did not happen.
        pub greenlets: u64,
        /// Of these, seen starting.
        pub births: u64,
        /// Of these, seen ending.
        pub ends: u64,
        /// Ended ones whose record was lost: how many, and the sums of their times.
        pub unlisted: u64,
        /// ns.
        pub unlisted_running_ns: u64,
        /// ns.
        pub unlisted_waiting_ns: u64,
        /// Switches into them.
        pub unlisted_switches_in: u64,
        /// ns, by [`crate::clock::Off`].
        pub unlisted_off_ns: [u64; OFF_KINDS],
        /// Not 0 once a hit could not be accounted: from then on a greenlet that is seen for
        /// the first time may have run or been born unseen, and its past is unknown.
        pub blind: u64,
        /// Hits of the probes.
        pub hits: u64,
        /// When the process replaced itself by `execve`, else 0.
        pub exec_ns: u64,
        /// When a thread of it last ended, else 0.
        pub exit_ns: u64,
        /// By number.
        pub faults: [u64; Fault::COUNT],
        /// Switches whose leaver had a label of its own.
        pub labelled: u64,
        /// Switches whose leaver had its maker's or its request's.
        pub given: u64,
        /// Switches whose leaver had none, by [`Blank`].
        pub blank: [u64; Blank::COUNT],
        /// Runs whose label was another than when it was last seen, or may have been meanwhile.
        pub changed: u64,
        /// The time between the two looks: nobody's.
        pub changed_ns: u64,
        /// Labels of a maker that were taken back, for its request was over.
        pub outlived: u64,
        /// Of waits with a maker's label, what came after its request.
        pub outlived_ns: u64,
        /// The shortest of `runs` once all are in use, else 0.
        pub shortest_run_ns: u64,
        /// The longest runs, unordered.
        pub runs: [Run; TOP_RUNS],
    }

    /// The key of a greenlet: unique among those alive.
    pub struct GreenletKey {
        /// The attach cookie.
        pub target: u64,
        /// The C++ object.
        pub pimpl: Addr,
    }

    /// A greenlet alive. Written on its own thread only, under the GIL.
    ///
    /// With the map's own 64 bytes before it the second of an entry's cache lines has all
    /// that a switch into the greenlet touches, for with many greenlets each line is a miss.
    pub struct Greenlet {
        /// Since when it runs or waits.
        pub since_ns: u64,
        /// Waiting time up to `since_ns`, `begun_ns` included.
        pub waiting_ns: u64,
        /// Switches into it.
        pub switches_in: u64,
        /// Its thread: [`Thread`]'s key.
        pub thread: u64,
        /// The `PyGreenlet`.
        pub object: Addr,
        /// The stack it was last suspended with.
        pub stack: StackKey,
        /// `GREENLET_*`.
        pub flags: u32,
        /// The value of [`TargetConfig::sending`] that its last stack was sent for.
        pub sent: u32,
        /// Running time up to `since_ns`.
        pub running_ns: u64,
        /// Its identity: never reused, though its address is.
        pub id: u64,
        /// Its type object.
        pub type_object: Addr,
        /// When it was first seen.
        pub seen_ns: u64,
        /// The stack of a wait that began before the recording.
        pub begun_stack: StackKey,
        /// The part of that wait inside the recording.
        pub begun_ns: u64,
        /// Off the CPU while it ran, up to the last change: by [`crate::clock::Off`].
        pub off_ns: [u64; OFF_KINDS],
        /// The label of the wait that began before the recording.
        pub begun_label: Label,
        /// The label that it was last suspended with.
        pub label: Label,
        /// What its request or its maker gave it, for when its context tells none.
        pub given: Label,
        /// `running_ns` when `label` began.
        pub label_running_ns: u64,
        /// `off_ns` then.
        pub label_off_ns: [u64; OFF_KINDS],
        /// When that was.
        pub label_since_ns: u64,
        /// The connection from which it read the head of a request last, by when that was seen
        /// first.
        pub connection: u64,
        /// The request that it read last and that is not answered yet, by its begin; else 0.
        pub reading: u64,
        /// Requests that it read and answered alone, one after the other.
        pub alone: u64,
        /// When it was seen to work for several connections at a time, or to have others answer
        /// for it: no request is its own from then on. Else 0.
        pub shared_ns: u64,
        /// The request that it works on and lent to greenlets it made, by
        /// [`Label::request`]; else 0.
        pub lent: u64,
        /// When it last found nothing in a socket, or when something came there since; else 0.
        /// Also written by whoever sends it something.
        pub awaits: u64,
    }

    /// The key of a [`crate::label::Lent`].
    #[derive(PartialEq, Eq, Hash)]
    pub struct LentKey {
        /// The attach cookie.
        pub target: u64,
        /// [`Label::request`].
        pub request: u64,
    }

    /// Completed waits in one stack.
    pub struct StackTotals {
        /// Waiting time.
        pub ns: u64,
        /// Waits.
        pub count: u64,
        /// The value of [`TargetConfig::sending`] when the record with its frames was
        /// submitted, else 0.
        pub sent: u32,
        /// The attach cookie.
        pub target: u32,
        /// How much of the waiting time the greenlets were ready.
        pub queued: Queued,
    }

    /// A thread that is watched. Key: `bpf_get_current_pid_tgid`.
    pub struct Thread {
        /// The attach cookie.
        pub target: u64,
        /// Its `PyThreadState`, once it switched.
        pub tstate: Addr,
        /// Its first switch, else 0.
        pub seen_ns: u64,
        /// The greenlet that was current then.
        pub first_greenlet: u64,
        /// When it ended, else 0.
        pub exit_ns: u64,
        /// A copy of its clock.
        pub clock: Clock,
        /// How much of the clock's `off_ns` its greenlets had got at its last switch.
        pub charged_ns: [u64; OFF_KINDS],
        /// The stack that it left the CPU with, while it is off; none if none was taken.
        pub off_stack: StackKey,
        /// And the label, if there is a stack.
        pub off_label: Label,
        /// What the clock had of that kind of time before.
        pub off_before_ns: u64,
        /// Ticks that the ring had no room for.
        pub ticks_lost: u64,
        /// How much of the sleep in which the recording began was inside of it; 0 while that
        /// goes on.
        pub first_sleep_ns: u64,
    }

    /// How a thread's slot in the kernel part begins: what user space puts there to have
    /// a thread watched that has not switched yet.
    pub struct Watch {
        /// Its clock.
        pub clock: Clock,
        /// The attach cookie.
        pub target: u64,
        /// [`Thread`]'s key, 0 if it is not known.
        pub thread: u64,
        /// [`TargetConfig::made_ns`].
        pub made_ns: u64,
        /// What may be its `PyThreadState`, or null. It is proved before it is used.
        pub own_tstate: Addr,
    }

    /// What a process descends from that is no target itself.
    #[derive(PartialEq, Eq)]
    pub struct Kin {
        /// The target that made it, or made what made it; or that it was.
        pub target: u64,
        /// [`TargetConfig::made_ns`].
        pub made_ns: u64,
    }

    /// What every record begins with.
    pub struct RecordHead {
        /// [`Kind`].
        pub kind: u32,
        /// [`VERSION`].
        pub version: u32,
        /// The attach cookie.
        pub target: u64,
        /// `CLOCK_MONOTONIC`.
        pub time_ns: u64,
    }

    /// A stack's frames follow this, leaf first.
    pub struct StackHead {
        /// Kind `Stack`.
        pub head: RecordHead,
        /// Which stack.
        pub key: StackKey,
        /// The type of the greenlets that have it.
        pub type_object: Addr,
        /// How many frames follow.
        pub depth: u32,
        /// 1 + the fault that ended the walk, or 0 when it reached the root.
        pub fault: u32,
    }

    /// A greenlet's end.
    pub struct EndRecord {
        /// Kind `End`.
        pub head: RecordHead,
        /// All that was kept of it; `since_ns` is the end.
        pub greenlet: Greenlet,
        /// Its address.
        pub pimpl: Addr,
        /// [`End`].
        pub how: u32,
        /// None.
        pub padding: u32,
    }

    /// A switch.
    pub struct SwitchRecord {
        /// Kind `Switch`, or `Undone` for one that did not happen.
        pub head: RecordHead,
        /// The leaver.
        pub from: u64,
        /// The enterer.
        pub to: u64,
        /// The leaver's stack.
        pub stack: StackKey,
        /// And its label.
        pub label: Label,
    }

    /// A process was forked, and is a target now.
    pub struct ForkRecord {
        /// Kind `Fork`; `target` is the child, `time_ns` when it was made.
        pub head: RecordHead,
        /// The target that it is a copy of.
        pub parent: u64,
        /// Its pid in greenscope's pid namespace, 0 if it can't be seen from there.
        pub pid: u32,
        /// Its pid in the first one.
        pub first_pid: u32,
    }

    /// A target, or a process that descends from one, replaced itself by another program.
    pub struct ExecRecord {
        /// Kind `Exec`; `target` is what it was, [`NO_TARGET`] if it was none.
        pub head: RecordHead,
        /// What it was or descends from.
        pub kin: Kin,
        /// The device of the program's file, as the kernel has it; 0 if it is not known.
        pub device: u64,
        /// Its inode.
        pub inode: u64,
        /// Its pid in greenscope's pid namespace, 0 if it can't be seen from there.
        pub pid: u32,
        /// Its pid in the first one.
        pub first_pid: u32,
    }

    /// The interpreter of a process that descends from a target is up.
    pub struct UpRecord {
        /// Kind `Up`; `target` is [`NO_TARGET`].
        pub head: RecordHead,
        /// Its pid in greenscope's pid namespace, 0 if it can't be seen from there.
        pub pid: u32,
        /// None.
        pub padding: u32,
    }

    /// A target has loaded a greenlet library since it was looked at.
    pub struct LoadedRecord {
        /// Kind `Loaded`.
        pub head: RecordHead,
        /// Where its module begins.
        pub start: Addr,
        /// And ends.
        pub end: Addr,
        /// [`Probed::library`].
        pub library: u64,
    }

    /// A tick of the CPU clock.
    pub struct TickRecord {
        /// Kind `Tick`.
        pub head: RecordHead,
        /// [`Thread`]'s key.
        pub thread: u64,
        /// The current greenlet, 0 if it is not known.
        pub greenlet: u64,
        /// Its `PyGreenlet`.
        pub object: Addr,
        /// The stack; none if it could not be taken.
        pub stack: StackKey,
        /// `TICK_*`.
        pub flags: u32,
        /// 1 + the fault that kept it from being whole, or 0.
        pub fault: u32,
        /// The label.
        pub label: Label,
        /// 1 + the [`Blank`] that is the reason why there is no label of its own, or 0.
        pub blank: u32,
        /// None.
        pub padding: u32,
    }

    /// A label was seen for the first time in a while.
    pub struct LabelRecord {
        /// Kind `Label`.
        pub head: RecordHead,
        /// Which.
        pub label: Label,
        /// What it says.
        pub about: About,
    }

    /// A request that came over a connection is over.
    pub struct RequestRecord {
        /// Kind `Request`; `time_ns` is when.
        pub head: RecordHead,
        /// [`Label::id`].
        pub id: [u64; 2],
        /// The greenlet that read it and had others answer, whose label ended with that; else 0.
        pub shared: u64,
        /// The answer's, 0 if it was not read.
        pub status: u32,
        /// `REQUEST_*` of [`crate::http`].
        pub flags: u32,
    }

    /// A greenlet that was suspended, or a thread that slept in one, goes on.
    pub struct OffRecord {
        /// Kind `Off`; `time_ns` is when.
        pub head: RecordHead,
        /// Since when it had.
        pub begin_ns: u64,
        /// [`Thread`]'s key.
        pub thread: u64,
        /// The greenlet, 0 for a thread without.
        pub greenlet: u64,
        /// The stack, by whose owner it is known which of the two; none if none was taken.
        pub stack: StackKey,
        /// The label.
        pub label: Label,
        /// How much of it the greenlet was ready.
        pub queued: Queued,
    }

    /// A run without a switch that was too long, and what came of it. Sent when it ends, and
    /// again when the round after it has.
    pub struct BlockRecord {
        /// Kind `Block`; `time_ns` is the run's end.
        pub head: RecordHead,
        /// [`Thread`]'s key.
        pub thread: u64,
        /// Whose run.
        pub greenlet: u64,
        /// Its `PyGreenlet`.
        pub object: Addr,
        /// How long.
        pub ns: u64,
        /// Of this, off the CPU: by [`crate::clock::Off`].
        pub off_ns: [u64; OFF_KINDS],
        /// Who had the GIL for most of what it waited for it: that thread's id in the target's
        /// own pid namespace; 0 if it is not known.
        pub gil_holder: u64,
        /// The stack at its end.
        pub stack: StackKey,
        /// Greenlets that entered in the round after it, and had waited since before its end.
        pub victims: u64,
        /// How long the run held them up at most, summed.
        pub held_ns: u64,
        /// The longest of these.
        pub held_most_ns: u64,
        /// 1 once the round is over, and the last three are whole.
        pub round_over: u64,
        /// The label at its end.
        pub label: Label,
    }
}

/// [`TickRecord::flags`]: it came inside a switch; it has no stack.
pub const TICK_SWITCHING: u32 = 1;
/// [`TickRecord::flags`]: its thread has not switched yet, and which greenlet is current
/// in it is not known.
pub const TICK_UNSWITCHED: u32 = 2;
/// [`TickRecord::flags`]: its thread has no thread state: no Python ever ran in it, or none
/// will any more.
pub const TICK_NATIVE: u32 = 4;
/// [`TickRecord::flags`]: its thread is about to end, and has given back its memory.
pub const TICK_ENDING: u32 = 8;

/// The size of a thread's slot in the kernel part.
pub const SLOT_BYTES: usize = 7_992;

/// A stack record in full, as it is built.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StackRecord {
    /// The head.
    pub head: StackHead,
    /// Leaf first; `head.depth` of them are sent.
    pub frames: [Frame; MAX_FRAMES as usize],
}

const _: () = assert!(size_of::<StackRecord>() <= 7 * 1024 + 640, "task storage stays under 8 KiB");
