//! What is kept of a thread between its hits, and the scratch of a hit.

use profiler_common::{
    address::Addr,
    record::{EndRecord, SwitchRecord},
    walk::{StackKey, Walk, Window},
};

/// How to take the last switch back, should it turn out not to have happened.
#[repr(C)]
pub struct Undo {
    /// 1 if there is something to take back.
    pub valid: u32,
    /// 1 if the switch made the enterer known.
    pub to_was_new: u32,
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
    /// The enterer's `since_ns` before.
    pub to_since_ns: u64,
    /// The wait that ended, counted for `to_stack` if that is one.
    pub wait_ns: u64,
    /// The stack of that wait.
    pub to_stack: StackKey,
}

/// What is kept of a thread.
#[repr(C)]
pub struct Slot {
    /// The recording that the rest belongs to; 0 for none.
    pub epoch: u32,
    /// None.
    pub padding: u32,
    /// The attach cookie.
    pub target: u64,
    /// `bpf_get_current_pid_tgid`.
    pub thread: u64,
    /// Its `PyThreadState`.
    pub tstate: Addr,
    /// Its `pthread_self()`.
    pub thread_id: u64,
    /// greenlet's `ThreadState`.
    pub thread_state: Addr,
    /// The greenlet that we believe current: its C++ object.
    pub current: Addr,
    /// And its `PyGreenlet`.
    pub current_object: Addr,
    /// The last switch.
    pub undo: Undo,
    /// Scratch.
    pub end: EndRecord,
    /// Scratch.
    pub switch: SwitchRecord,
    /// Scratch: a `PyThreadState`; an index is masked with 63.
    pub tstate_words: [u64; 64],
    /// Scratch: a walk.
    pub scratch: Scratch,
}

/// A walk in progress.
#[repr(C)]
pub struct Scratch {
    /// How far it is.
    pub walk: Walk,
    /// The data stack.
    pub window: Window,
}

const _: () = assert!(size_of::<Slot>() <= 7 * 1024, "task storage stays under 8 KiB");
