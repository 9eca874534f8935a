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
            return NO_THREAD;
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
