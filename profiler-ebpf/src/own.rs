//! The frames of the current thread, whether it holds the GIL or not.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{bpf_pidns_info, task_struct},
    helpers::generated::{bpf_get_current_task, bpf_get_ns_current_pid_tgid, bpf_loop},
};
use profiler_common::{
    address::Addr,
    limits::{
        MAX_OTHER_THREADS, MAX_SEARCH_DOUBLED, MAX_SLEEP_THREADS, MAX_TICK_THREADS, MIN_SEARCH_AGAIN_NS,
    },
    memory::Memory as _,
    record::TargetConfig,
    running::{self, Own},
};

use crate::{kernel, memory::UserMemory, slot::Slot};

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

/// [`Slot::search`]: the lower bits say what came of it.
const RESULT: u32 = 7;
/// And above them, how often in a row.
const FAILURE: u32 = 8;

/// Who looks.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum By {
    /// A switch of greenlets, by a uprobe.
    Switch,
    /// A tick, which may look far.
    Tick,
    /// A thread that goes to sleep, under the lock of its CPU's queue.
    Sleep,
}

/// Finds the frames of the current thread; what lies around the leaf is in the window then.
///
/// Its thread state is the one of the last time, most often; or the one that a switch of its
/// greenlets proved; else the one in the interpreter's list with this thread's id. That list
/// begins with those that were made last, and may be long. So what was not found is not looked
/// for again for a while: a thread that runs no Python would pay at each of its sleeps.
#[inline(always)]
pub fn leaf_frame(config: &TargetConfig, slot: &mut Slot, by: By, now: u64, leaf: &mut Addr) -> u32 {
    own_leaf(config, slot, by, now, leaf)
}

/// A global function, as [`crate::label`]'s are.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn own_leaf(
    config: *const TargetConfig,
    slot: *mut Slot,
    by: By,
    now: u64,
    leaf: *mut Addr,
) -> u32 {
    if config.is_null() || slot.is_null() || leaf.is_null() {
        return UNKNOWN;
    }
    // SAFETY: references of `leaf_frame`'s caller.
    let config = unsafe { &*config };
    // SAFETY: as above.
    let slot = unsafe { &mut *slot };
    // SAFETY: as above.
    let leaf = unsafe { &mut *leaf };
    if slot.own_tid == 0 && !learn_ids(config, slot) {
        return UNKNOWN;
    }
    let known = is_own(config, slot, slot.own_tstate) || is_switched(config, slot);
    if !known {
        if now < slot.search_after_ns {
            return slot.search & RESULT;
        }
        let found = find(config, slot, by);
        if found != FOUND || !is_own(config, slot, slot.own_tstate) {
            let found = if found == FOUND { UNKNOWN } else { found };
            not_found(slot, now, found);
            return found;
        }
    }
    slot.search = 0;
    slot.search_after_ns = 0;
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
fn not_found(slot: &mut Slot, now: u64, found: u32) {
    let mut failures = slot.search / FAILURE;
    if failures > MAX_SEARCH_DOUBLED {
        failures = MAX_SEARCH_DOUBLED;
    }
    slot.search_after_ns = now.wrapping_add(MIN_SEARCH_AGAIN_NS << (failures & 31));
    slot.search = ((failures + 1) * FAILURE) | found;
}

#[inline(always)]
fn is_own(config: &TargetConfig, slot: &mut Slot, tstate: Addr) -> bool {
    let own = Own { id: slot.own_tid, leader_base: slot.own_base };
    !tstate.is_null() && running::is_own(config, tstate, own, &mut slot.scratch.window, &mut UserMemory)
}

/// Whether it is the one that this thread held the GIL with when its greenlets switched last.
#[inline(never)]
fn is_switched(config: &TargetConfig, slot: &mut Slot) -> bool {
    let switched = slot.epoch == config.epoch && slot.tstate != slot.own_tstate;
    if switched && is_own(config, slot, slot.tstate) {
        slot.own_tstate = slot.tstate;
        return true;
    }
    false
}

/// Learns what its thread state is known by.
#[inline(never)]
fn learn_ids(config: &TargetConfig, slot: &mut Slot) -> bool {
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
        return false;
    }
    slot.own_tid = u64::from(ids.pid);
    if ids.pid == ids.tgid {
        // SAFETY: takes no argument.
        let task = unsafe { bpf_get_current_task() } as *mut task_struct;
        slot.own_base = kernel::thread_base(task);
    }
    true
}

/// What the iterations of a search share.
struct Search<'a> {
    config: &'a TargetConfig,
    slot: &'a mut Slot,
    tstate: Addr,
    result: u32,
}

unsafe extern "C" fn look_at(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `find` passes its `Search`.
    let search = unsafe { &mut *context.cast::<Search<'_>>() };
    let tstate = search.tstate;
    if tstate.is_null() {
        search.result = NO_THREAD;
        return 1;
    }
    let python = &search.config.layout.python;
    let Ok(id) = UserMemory.word(tstate.at(python.tstate_native_id)) else {
        return 1;
    };
    let base = search.slot.own_base;
    let mut found = id == search.slot.own_tid;
    if !found && base != 0 {
        found = UserMemory.word(tstate.at(python.tstate_thread_id)) == Ok(base);
    }
    if found {
        search.slot.own_tstate = tstate;
        search.result = FOUND;
        return 1;
    }
    let next = Addr(tstate.0.wrapping_add(u64::from(search.config.tstate_next)));
    let Ok(next) = UserMemory.pointer(next) else {
        return 1;
    };
    search.tstate = next;
    0
}

/// Looks for its thread state in the interpreter's list.
#[inline(never)]
fn find(config: &TargetConfig, slot: &mut Slot, by: By) -> u32 {
    let Ok(tstate) = UserMemory.pointer(config.threads) else {
        return UNKNOWN;
    };
    let most = if by == By::Tick { MAX_TICK_THREADS } else { MAX_SLEEP_THREADS };
    let tid = slot.own_tid;
    let mut search = Search { config, slot, tstate, result: UNKNOWN };
    let callback = look_at as unsafe extern "C" fn(u32, *mut c_void) -> i64;
    // SAFETY: the helper calls `look_at` with `search` while it is borrowed here.
    unsafe { bpf_loop(most, callback as *mut c_void, ptr::from_mut(&mut search).cast(), 0) };
    let result = search.result;
    if result != NO_THREAD || is_alone(config) {
        return result;
    }
    // Under the lock of the CPU's queue it is not looked for.
    if by == By::Tick { elsewhere(config, tid) } else { UNKNOWN }
}

/// Whether there is no other interpreter than the main one, as far as that can be read.
///
/// New ones come first in the list.
#[inline(always)]
pub fn is_alone(config: &TargetConfig) -> bool {
    UserMemory.pointer(config.interpreters).is_ok_and(|first| first == config.interpreter)
}

/// What the iterations of a search in the other interpreters share.
struct Elsewhere<'a> {
    config: &'a TargetConfig,
    tid: u64,
    /// To the next interpreter.
    link: Addr,
    /// The next thread state, null after the last one of its interpreter.
    tstate: Addr,
    result: u32,
}

unsafe extern "C" fn look_elsewhere(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `elsewhere` passes its `Elsewhere`.
    let search = unsafe { &mut *context.cast::<Elsewhere<'_>>() };
    let config = search.config;
    let tstate = search.tstate;
    if !tstate.is_null() {
        if UserMemory.word(tstate.at(config.layout.python.tstate_native_id)) == Ok(search.tid) {
            search.result = ELSEWHERE;
            return 1;
        }
        let next = Addr(tstate.0.wrapping_add(u64::from(config.tstate_next)));
        let Ok(next) = UserMemory.pointer(next) else {
            return 1;
        };
        search.tstate = next;
        return 0;
    }
    let Ok(interpreter) = UserMemory.pointer(search.link) else {
        return 1;
    };
    if interpreter.is_null() || interpreter == config.interpreter {
        search.result = NO_THREAD;
        return 1;
    }
    search.link = Addr(interpreter.0.wrapping_add(u64::from(config.interp_next)));
    let threads = config.threads.0.wrapping_sub(config.interpreter.0);
    let Ok(first) = UserMemory.pointer(Addr(interpreter.0.wrapping_add(threads))) else {
        return 1;
    };
    search.tstate = first;
    0
}

/// Looks for the thread's state in the other interpreters.
#[inline(never)]
fn elsewhere(config: &TargetConfig, tid: u64) -> u32 {
    let mut search =
        Elsewhere { config, tid, link: config.interpreters, tstate: Addr::NULL, result: UNKNOWN };
    let callback = look_elsewhere as unsafe extern "C" fn(u32, *mut c_void) -> i64;
    // SAFETY: the helper calls `look_elsewhere` with `search` while it is borrowed here.
    unsafe { bpf_loop(MAX_OTHER_THREADS, callback as *mut c_void, ptr::from_mut(&mut search).cast(), 0) };
    search.result
}
