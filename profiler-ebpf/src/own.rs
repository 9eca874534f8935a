//! The frames of the current thread, whether it holds the GIL or not.

use aya_ebpf::{bindings::bpf_pidns_info, helpers::generated::bpf_get_ns_current_pid_tgid};
use profiler_common::{
    address::Addr, limits::MAX_TICK_THREADS, memory::Memory as _, record::TargetConfig, running,
};

use crate::{memory::UserMemory, slot::Slot};

/// [`leaf_frame`]: it is found; null if it runs no Python.
pub const FOUND: u32 = 0;
/// [`leaf_frame`]: the interpreter has no thread state for this thread.
pub const NO_THREAD: u32 = 1;
/// [`leaf_frame`]: the main interpreter has none, another one has.
pub const ELSEWHERE: u32 = 4;
/// [`leaf_frame`]: it may have one, which could not be found or read.
const UNKNOWN: u32 = 2;
/// [`leaf_frame`]: it is not what the thread runs.
pub const TORN: u32 = 3;

/// Finds the frames of the current thread; what lies around the leaf is in the window then.
///
/// Its thread state is the one in the interpreter's list with this thread's id. The one of
/// the last time most often still is.
#[inline(never)]
pub fn leaf_frame(config: &TargetConfig, slot: &mut Slot, leaf: &mut Addr) -> u32 {
    let known = !slot.own_tstate.is_null() && is_own(config, slot);
    if !known {
        let found = find(config, slot);
        if found != FOUND {
            return found;
        }
        if !is_own(config, slot) {
            return UNKNOWN;
        }
    }
    match running::own_leaf(config, &mut slot.scratch.window, &mut slot.code_size, &mut UserMemory) {
        Ok(Some(frame)) => {
            *leaf = frame;
            FOUND
        }
        Ok(None) => TORN,
        Err(_) => UNKNOWN,
    }
}

#[inline(always)]
fn is_own(config: &TargetConfig, slot: &mut Slot) -> bool {
    running::is_own(config, slot.own_tstate, slot.own_tid, &mut slot.scratch.window, &mut UserMemory)
}

/// Looks for its thread state, by its id in the target's own pid namespace.
#[inline(never)]
fn find(config: &TargetConfig, slot: &mut Slot) -> u32 {
    if slot.own_tid == 0 {
        let mut ids = bpf_pidns_info { pid: 0, tgid: 0 };
        // SAFETY: `ids` is of the size that is passed with it.
        let status = unsafe {
            bpf_get_ns_current_pid_tgid(
                config.namespace_device,
                config.namespace_inode,
                &raw mut ids,
                size_of::<bpf_pidns_info>() as u32,
            )
        };
        if status != 0 {
            return UNKNOWN;
        }
        slot.own_tid = u64::from(ids.pid);
    }
    let Ok(mut tstate) = UserMemory.pointer(config.threads) else {
        return UNKNOWN;
    };
    for _ in 0..MAX_TICK_THREADS {
        if tstate.is_null() {
            return if is_alone(config) { NO_THREAD } else { elsewhere(config, slot.own_tid) };
        }
        let Ok(id) = UserMemory.word(tstate.at(config.layout.python.tstate_native_id)) else {
            return UNKNOWN;
        };
        if id == slot.own_tid {
            slot.own_tstate = tstate;
            return FOUND;
        }
        let Ok(next) = UserMemory.pointer(Addr(tstate.0.wrapping_add(u64::from(config.tstate_next)))) else {
            return UNKNOWN;
        };
        tstate = next;
    }
    UNKNOWN
}

/// Whether there is no other interpreter than the main one, as far as that can be read.
///
/// New ones come first in the list.
#[inline(always)]
pub fn is_alone(config: &TargetConfig) -> bool {
    UserMemory.pointer(config.interpreters).is_ok_and(|first| first == config.interpreter)
}

/// Looks for the thread's state in the other interpreters.
#[inline(never)]
fn elsewhere(config: &TargetConfig, tid: u64) -> u32 {
    let threads = config.threads.0.wrapping_sub(config.interpreter.0);
    let mut link = config.interpreters;
    let mut tstate = Addr::NULL;
    for _ in 0..MAX_TICK_THREADS {
        if !tstate.is_null() {
            if UserMemory.word(tstate.at(config.layout.python.tstate_native_id)) == Ok(tid) {
                return ELSEWHERE;
            }
            let Ok(next) = UserMemory.pointer(Addr(tstate.0.wrapping_add(u64::from(config.tstate_next))))
            else {
                return UNKNOWN;
            };
            tstate = next;
            continue;
        }
        let Ok(interpreter) = UserMemory.pointer(link) else {
            return UNKNOWN;
        };
        if interpreter.is_null() || interpreter == config.interpreter {
            return NO_THREAD;
        }
        link = Addr(interpreter.0.wrapping_add(u64::from(config.interp_next)));
        let Ok(first) = UserMemory.pointer(Addr(interpreter.0.wrapping_add(threads))) else {
            return UNKNOWN;
        };
        tstate = first;
    }
    UNKNOWN
}
