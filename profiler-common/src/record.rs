//! What the kernel part keeps in maps and sends through the ring buffer.

use crate::{
    address::Addr,
    clock::{Clock, Gil, OFF_KINDS},
    fault::Fault,
    layout::Layout,
    limits::{HUB_TYPES, MAX_FRAMES, TOP_RUNS},
    walk::{Frame, StackKey},
};

/// The version of everything in this file; a record of another version is refused.
pub const VERSION: u32 = 3;

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

/// The attach cookie of a probe that fires in every process: which target a hit is of, its
/// thread's slot tells, or its process.
pub const ANY_TARGET: u64 = u64::MAX;

/// What a slot belongs to when its process is recorded no more.
pub const NO_TARGET: u64 = u64::MAX;

/// [`Greenlet::flags`]: its birth was seen.
pub const GREENLET_BORN: u32 = 1;
/// [`Greenlet::flags`]: current on its thread.
pub const GREENLET_RUNNING: u32 = 2;
/// [`Greenlet::flags`]: a thread's main greenlet.
pub const GREENLET_MAIN: u32 = 4;
/// [`Greenlet::flags`]: it was the current greenlet when its thread was first seen.
pub const GREENLET_FIRST: u32 = 16;

/// How a greenlet's life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum End {
    /// Its function returned or raised.
    Finished = 1,
    /// Its object was freed.
    Freed = 2,
    /// Its thread ended while it was current.
    ThreadExit = 3,
    /// Its address was taken by another greenlet: its end was not seen.
    Replaced = 4,
}

/// [`TargetConfig::started_ns`]: the threads are watched, and nothing counts yet.
pub const ARMED: u64 = u64::MAX;

pod! {
    /// What the kernel part needs to know of one target; index is the attach cookie.
    pub struct TargetConfig {
        /// `CLOCK_MONOTONIC` ns when every probe was in place; 0 means not recording,
        /// [`ARMED`] not yet.
        pub started_ns: u64,
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
        /// Where greenlet's extension is mapped: its vtables lie there.
        pub module_start: Addr,
        /// The end of it.
        pub module_end: Addr,
        /// Types whose greenlets are hubs: their runs are mostly idle and not kept.
        pub hub_types: [Addr; HUB_TYPES],
        /// `CONFIG_*`.
        pub flags: u32,
        /// Different for every recording of one load.
        pub epoch: u32,
        /// The offsets.
        pub layout: Layout,
        /// A run without a switch of this many ns is a block.
        pub block_ns: u64,
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
        /// None.
        pub padding: u32,
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
        /// What the clock had of that kind of time before.
        pub off_before_ns: u64,
        /// Ticks that the ring had no room for.
        pub ticks_lost: u64,
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

    /// What the kernel part needs to know of the kernel, by its own type information;
    /// offsets in bytes.
    #[derive(Default)]
    pub struct KernelLayout {
        /// `task_struct.se.sum_exec_runtime`, 0 where it is not known.
        pub task_runtime: u32,
        /// `task_struct.se.exec_start`, 0 where it is not known.
        pub task_exec_start: u32,
        /// `task_struct.mm`, 0 where it is not known.
        pub task_memory: u32,
        /// `task_struct.thread_pid`, 0 where that or one of the following is not known.
        pub task_pid: u32,
        /// `struct pid.level`.
        pub pid_level: u32,
        /// `struct pid.numbers`.
        pub pid_numbers: u32,
        /// The size of `struct upid`.
        pub upid_bytes: u32,
        /// `struct upid.nr`.
        pub upid_number: u32,
        /// `struct upid.ns`.
        pub upid_namespace: u32,
        /// `struct pid_namespace.ns.inum`.
        pub namespace_inode: u32,
        /// The inode of greenscope's own pid namespace.
        pub own_namespace: u32,
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
    }
}

/// [`TickRecord::flags`]: it came inside a switch; it has no stack.
pub const TICK_SWITCHING: u32 = 1;
/// [`TickRecord::flags`]: its thread has not switched yet, and which greenlet is current
/// in it is not known.
pub const TICK_UNSWITCHED: u32 = 2;

/// The owner of a stack that was seen on a CPU, in the place of the greenlet's type.
pub const ON_CPU_OWNER: Addr = Addr(1);

/// The owner of a stack that a thread left the CPU with, in the place of the greenlet's
/// type: why (an [`crate::clock::Off`]), whether the thread had not switched by then, and
/// the number of the system call that it is in (-1 for none).
#[inline(always)]
#[must_use]
pub const fn off_owner(why: u32, plain: bool, call: i64) -> Addr {
    Addr(OFF_OWNERS | (plain as u64) << 20 | (why as u64) << 16 | (call as u64 & 0xffff))
}

/// Why the stack with that owner left the CPU, and whether the thread was a plain one;
/// `None` if it is not of that kind.
#[must_use]
pub const fn off_of(owner: Addr) -> Option<(u32, bool)> {
    if owner.0 & !0x1f_ffff == OFF_OWNERS {
        Some(((owner.0 >> 16 & 0xf) as u32, owner.0 >> 20 & 1 == 1))
    } else {
        None
    }
}

/// No address of anything in a process.
const OFF_OWNERS: u64 = 1 << 63;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// [`StackHead`] and frames.
    Stack = 1,
    /// [`EndRecord`].
    End = 2,
    /// [`SwitchRecord`].
    Switch = 3,
    /// [`SwitchRecord`] that takes the last one of its thread back.
    Undone = 4,
    /// [`TickRecord`].
    Tick = 5,
    /// [`BlockRecord`].
    Block = 6,
    /// [`ForkRecord`].
    Fork = 7,
}

/// The size of a thread's slot in the kernel part.
pub const SLOT_BYTES: usize = 5_680;

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
