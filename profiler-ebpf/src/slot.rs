//! What is kept of a thread between its hits, and the scratch of a hit.

use core::{
    mem::offset_of,
    ptr,
    sync::atomic::{Ordering, compiler_fence},
};

use aya_ebpf::bindings::task_struct;
use profiler_common::{
    address::Addr,
    clock::{Clock, OFF_KINDS},
    label::{Chain, Label, PairKey, PairTotals},
    limits::MAX_PARTS,
    queue::Polls,
    record::{
        BlockRecord, EndRecord, Greenlet, GreenletKey, LabelRecord, OffRecord, Run, SLOT_BYTES, SwitchRecord,
        TickRecord, Watch,
    },
    running::CodeSize,
    walk::{SCRATCH_WORDS, StackKey, Start, Walk, Window},
};

use crate::{buffers::Cursor, kernel};

/// How to take the last switch back, should it turn out not to have happened.
///
/// Only the first switch to a greenlet may not: it starts, and its `run` can't be had,
/// or it belongs to another thread.
#[repr(C)]
pub struct Undo {
    /// 1 if there is something to take back.
    pub valid: u64,
    /// The leaver.
    pub from: Addr,
    /// Its `PyGreenlet`.
    pub from_object: Addr,
    /// Its `since_ns` before.
    pub from_since_ns: u64,
    /// The run that ended.
    pub run_ns: u64,
    /// When it ended.
    pub ended_ns: u64,
    /// Off the CPU in it.
    pub off_ns: [u64; OFF_KINDS],
}

/// How far a clock was read.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Reading {
    /// [`Clock::version`] then.
    pub version: u64,
    /// [`Clock::off_ns`] then.
    pub off_ns: [u64; OFF_KINDS],
}

/// The label that the current greenlet had in its run, when last seen with it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Part {
    /// Which; none as well.
    pub label: Label,
    /// When.
    pub until_ns: u64,
    /// [`Clock::off_ns`] then.
    pub off_ns: [u64; OFF_KINDS],
}

/// What is kept of a thread.
#[repr(C)]
pub struct Slot {
    /// Written by the scheduler's tracepoint. This and the next four are a [`Watch`].
    pub clock: Clock,
    /// Its target, or [`profiler_common::record::NO_TARGET`].
    pub target: u64,
    /// `bpf_get_current_pid_tgid`.
    pub thread: u64,
    /// Its target's [`profiler_common::record::TargetConfig::made_ns`].
    pub made_ns: u64,
    /// The `PyThreadState` that was its own the last time, or may be.
    pub own_tstate: Addr,
    /// Not 0 while a program of this task is at work here, which a tick may interrupt.
    pub busy: u64,
    /// The stack that it left the CPU with.
    pub off_stack: StackKey,
    /// What the clock had of that kind of time before.
    pub off_before_ns: u64,
    /// [`profiler_common::record::Thread::first_sleep_ns`].
    pub first_sleep_ns: u64,
    /// Its thread id in the target's own pid namespace, once a tick or a sleep asked for it.
    pub own_tid: u64,
    /// [`profiler_common::running::Own::leader_base`].
    pub own_base: u64,
    /// Before that time it is not looked for again.
    pub search_after_ns: u64,
    /// The code object of its leaf then.
    pub code_size: CodeSize,
    /// The last stack of these that was new, which is known then and sent.
    pub sent_stack: StackKey,
    /// For this [`profiler_common::record::TargetConfig::sending`].
    pub sent: u32,
    /// The recording that what its switches left here belongs to; 0 for none.
    pub epoch: u32,
    /// What came of the last search, and how often in a row it came to nothing: see `own`.
    pub search: u32,
    /// How many of its greenlets have a number, and
    /// [`profiler_common::record::PLACES_HUB`].
    pub places: u32,
    /// Who has the GIL that it waits for: that thread's id in the target's pid namespace, 0 if
    /// it is not known.
    pub gil_holder: u32,
    /// For whom it has waited most since `run_began_ns`, if more than for all others.
    pub run_holder: u32,
    /// How much more.
    pub run_holder_ns: u64,
    /// When the run began that these are of.
    pub run_began_ns: u64,
    /// The label that it left the CPU with.
    pub off_label: Label,
    /// Not 0 if it was looked at.
    pub off_seen: u64,
    /// The greenlet that it left the CPU in, 0 if that is not known.
    pub off_greenlet: u64,
    /// The last label that a tick or a sleep told user space of.
    pub told: Label,
    /// How many of `parts` are of the current run.
    pub parts_count: u64,
    /// [`Clock::off_ns`] up to which the time off the CPU is in `parts`, or was the leaver's.
    pub part_off_ns: [u64; OFF_KINDS],
    /// The labels of the current run so far.
    pub parts: [Part; MAX_PARTS],
    /// The request that the current greenlet was last seen with in this run, by
    /// [`Label::request`].
    pub seen: u64,
    /// How many contexts the thread had entered and left then, or at the begin of the run.
    pub contexts: u64,
    /// Scratch: the same now.
    pub contexts_now: u64,
    /// Its memory, by the kernel's address of it, since it first came onto a CPU.
    pub memory: u64,
    /// The polls of its hub.
    pub polls: Polls,
    /// The last block, if the round after it is not over; else its `ns` is 0.
    pub block: BlockRecord,
    /// Scratch of a tick.
    pub tick: TickRecord,
    /// Up to here the clock's time is in the greenlets' books.
    pub charged: Reading,
    /// The clock at this hit.
    pub reading: Reading,
    /// Scratch: [`profiler_common::label::KIND_HANDED`] of the wait that is counted next, or 0.
    pub handed: u32,
    /// Scratch: not 0 if the leaver's whole run was for one request.
    pub whole: u32,
    /// Its `PyThreadState`.
    pub tstate: Addr,
    /// greenlet's `ThreadState`.
    pub thread_state: Addr,
    /// The greenlet that we believe current: its C++ object.
    pub current: Addr,
    /// And its `PyGreenlet`.
    pub current_object: Addr,
    /// The last switch.
    pub undo: Undo,
    /// Scratch: the leaver.
    pub from_key: GreenletKey,
    /// Scratch: the enterer.
    pub to_key: GreenletKey,
    /// Scratch: the run that ends.
    pub run: Run,
    /// Scratch.
    pub end: EndRecord,
    /// Scratch.
    pub switch: SwitchRecord,
    /// Scratch: a greenlet that is met.
    pub sight: Greenlet,
    /// Scratch: the label.
    pub label: Label,
    /// Scratch: how it is found.
    pub chain: Chain,
    /// Scratch.
    pub pair_key: PairKey,
    /// Scratch.
    pub pair: PairTotals,
    /// Scratch: what a system call received or sent.
    pub cursor: Cursor,
    /// Scratch.
    pub label_record: LabelRecord,
    /// Scratch.
    pub off_record: OffRecord,
    /// Scratch: a walk.
    pub scratch: Scratch,
}

impl Slot {
    /// A program of this task begins to work here.
    #[inline(always)]
    pub fn enter(&mut self) {
        // SAFETY: the slot's own. Volatile, for a tick on this CPU looks at it.
        unsafe { ptr::write_volatile(&raw mut self.busy, 1) };
        compiler_fence(Ordering::SeqCst);
    }

    /// The slot's task has its own memory still, or for the first time.
    #[inline(always)]
    pub fn remember_memory(&mut self, task: *mut task_struct) {
        if self.memory == 0 {
            self.memory = kernel::memory(task).unwrap_or_default();
        }
    }

    /// And is done.
    #[inline(always)]
    pub fn leave(&mut self) {
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as above.
        unsafe { ptr::write_volatile(&raw mut self.busy, 0) };
    }
}

/// A walk in progress, and what becomes of it.
///
/// Not on the stack: the programs of a chain of calls share 512 bytes of it, and what
/// is loaded from a map the verifier takes as unknown, so that one look at a loop's
/// body suffices.
#[repr(C)]
pub struct Scratch {
    /// How far it is.
    pub walk: Walk,
    /// Where it began.
    pub start: Start,
    /// What its record says besides the frames.
    pub about: About,
    /// An object's words.
    pub words: [u64; SCRATCH_WORDS],
    /// The data stack.
    pub window: Window,
}

/// What a new stack's record says besides its frames.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct About {
    /// The attach cookie.
    pub target: u64,
    /// Now.
    pub time_ns: u64,
    /// The greenlet's type.
    pub type_object: Addr,
    /// The key before the first frame.
    pub empty: StackKey,
    /// The key that the first walk gave.
    pub key: StackKey,
    /// [`profiler_common::record::TargetConfig::sending`].
    pub sending: u32,
    /// Not 0 if there was no room to send all texts.
    pub texts_lost: u32,
}

// User space writes it whole. (An error here names the size.)
const _: [(); SLOT_BYTES] = [(); size_of::<Slot>()];
const _: () = assert!(
    SLOT_BYTES <= 8 * 1024 - 192,
    "task storage stays under 8 KiB, with 72 bytes of the kernel's own and more"
);
const _: () = assert!(offset_of!(Slot, target) == offset_of!(Watch, target));
const _: () = assert!(offset_of!(Slot, thread) == offset_of!(Watch, thread));
const _: () = assert!(offset_of!(Slot, made_ns) == offset_of!(Watch, made_ns));
const _: () = assert!(offset_of!(Slot, own_tstate) == offset_of!(Watch, own_tstate));
