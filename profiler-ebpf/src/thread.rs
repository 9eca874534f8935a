//! A thread's first hit, and its end.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_attach_cookie},
    programs::ProbeContext,
};
use profiler_common::{
    address::Addr,
    clock::{Clock, ON_CPU},
    fault::Fault,
    greenlet::{self, Head},
    label::Label,
    layout::{ABSENT, Layout},
    limits::THREAD_STATE_WORDS,
    memory::Memory as _,
    record::{
        ANY_TARGET, End, GREENLET_FIRST, GREENLET_FREED, GREENLET_MAIN, GREENLET_RUNNING, GreenletKey,
        TargetConfig, Totals,
    },
    running::running_frame,
    walk::{SCRATCH_WORDS, StackKey},
};

use crate::{
    account, clock, fork,
    log::log,
    maps::{self, count},
    memory::UserMemory,
    own,
    slot::Slot,
};

/// What [`leaf_frame`] gives for a thread state that is not proved: no frame lies there.
const UNPROVED: u64 = 1;

/// The leaf frame of the thread that holds the GIL, by the thread state in `slot`.
///
/// It proves that this is the one that the GIL is held with: from CPython 3.12 on the
/// thread state says itself that it is active, and the holder's is the only active one
/// of its interpreter. On 3.11 the runtime's pointer is compared.
/// <https://github.com/python/cpython/blob/v3.12.1/Include/cpython/pystate.h>
///
/// Out of line, for its words lie on the stack: copied to a map they would cost the
/// kernel's check of heap objects as well (`__check_object_size`).
#[inline(never)]
fn proved_frame(config: &TargetConfig, slot: &Slot) -> u64 {
    let python = &config.layout.python;
    let mut words = [0; SCRATCH_WORDS];
    let Some(head) = words.first_chunk_mut::<THREAD_STATE_WORDS>() else {
        return UNPROVED;
    };
    if UserMemory.read(slot.tstate, head).is_err() {
        return UNPROVED;
    }
    let at = |offset: u16| words.get(offset as usize >> 3 & (SCRATCH_WORDS - 1)).copied().unwrap_or_default();
    // One of another interpreter that has the same GIL is as good, if the GIL says so itself.
    let main = at(python.tstate_interp) == config.interpreter.0;
    if (python.tstate_status == ABSENT || !main) && UserMemory.word(config.holder) != Ok(slot.tstate.0) {
        return UNPROVED;
    }
    if python.tstate_status != ABSENT {
        let status = at(python.tstate_status) >> ((python.tstate_status & 4) * 8);
        if status >> (python.tstate_active_bit & 31) & 1 == 0 {
            return UNPROVED;
        }
    }
    running_frame(python, &words, &mut UserMemory).map_or(UNPROVED, |frame| frame.0)
}

/// The leaf frame of the current thread, which holds the GIL; null if it runs no Python.
#[inline(always)]
pub fn leaf_frame(config: &TargetConfig, slot: &mut Slot) -> Option<Addr> {
    let frame = proved_frame(config, slot);
    if frame != UNPROVED {
        return Some(Addr(frame));
    }
    find_tstate(config, slot);
    let frame = proved_frame(config, slot);
    (frame != UNPROVED).then_some(Addr(frame))
}

/// Why a thread state is not proved. With several interpreters the GIL may be held with one that
/// nothing leads to: until 3.13 the GIL does not learn of another interpreter on its thread.
/// <https://github.com/python/cpython/blob/v3.12.1/Python/pystate.c> (`_PyThreadState_Swap`)
#[inline(always)]
pub fn unproved(config: &TargetConfig) -> Fault {
    if own::is_alone(config) { Fault::ThreadState } else { Fault::Subinterpreter }
}

/// Takes the thread state that the GIL is held with.
#[inline(always)]
fn find_tstate(config: &TargetConfig, slot: &mut Slot) {
    slot.tstate = UserMemory.pointer(config.holder).unwrap_or(Addr::NULL);
}

/// The target that a hit is of.
#[inline(always)]
pub fn target(ctx: &ProbeContext) -> u64 {
    match maps::slot() {
        Some(slot) => slot.target,
        None => unwatched(ctx),
    }
}

/// The target of a thread that has no slot: it could not be watched, or is none's.
#[inline(always)]
fn unwatched(ctx: &ProbeContext) -> u64 {
    // SAFETY: the context is this program's.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    if cookie & ANY_TARGET != 0 { fork::process() } else { cookie }
}

/// The slot of a thread that has none yet; none if it is no target's.
#[inline(never)]
pub fn first_hit(ctx: &ProbeContext) -> Option<&'static mut Slot> {
    let target = unwatched(ctx);
    let totals = maps::totals(target)?;
    let Some(slot) = maps::slot_or_create() else {
        count(totals, Fault::NoTaskStorage);
        totals.blind = 1;
        return None;
    };
    slot.target = target;
    slot.made_ns = maps::config(target).map_or(0, |config| config.made_ns);
    Some(slot)
}

/// Whether `head` is a greenlet of the probed module.
#[inline(always)]
pub fn is_greenlet(target: u64, head: &Head) -> bool {
    maps::module(target).is_some_and(|module| head.vtable >= module.start && head.vtable < module.end)
}

/// Whether the greenlet is known to be another thread's.
#[inline(always)]
pub fn is_foreign(target: u64, this: Addr) -> bool {
    let key = GreenletKey { target, pimpl: this };
    maps::greenlet(&key)
        .is_some_and(|known| known.flags & GREENLET_FREED == 0 && known.thread != bpf_get_current_pid_tgid())
}

/// Learns the thread at its first hit, of a probe on the greenlet `this`.
#[inline(never)]
pub fn learn(config: &TargetConfig, this: Addr, now_ns: u64, slot: &mut Slot, totals: &mut Totals) -> bool {
    let layout = &config.layout;
    let Ok(head) = Head::read(layout, &mut UserMemory, this, &mut slot.scratch.words) else {
        log!("thread {}: not learned, READ_STATE of the greenlet at {:x}", this = this.0);
        count(totals, Fault::ReadState);
        return false;
    };
    if !is_greenlet(slot.target, &head) {
        log!(
            "thread {}: not learned, NOT_A_GREENLET at {:x}, vtable {:x}",
            this = this.0,
            vtable = head.vtable.0
        );
        count(totals, Fault::NotAGreenlet);
        return false;
    }
    let Ok(state) = greenlet::thread_state(layout, &mut UserMemory, this, &head) else {
        log!("thread {}: not learned, READ_STATE of the thread of the greenlet at {:x}", this = this.0);
        count(totals, Fault::ReadState);
        return false;
    };
    slot.thread_state = state;
    find_tstate(config, slot);
    if proved_frame(config, slot) == UNPROVED {
        log!("thread {}: not learned, THREAD_STATE at {:x}", tstate = slot.tstate.0);
        count(totals, unproved(config));
        return false;
    }
    slot.thread = bpf_get_current_pid_tgid();
    slot.undo.valid = 0;
    slot.block.ns = 0;
    slot.parts_count = 0;
    if slot.clock.version == 0 {
        slot.clock = Clock::begin(now_ns, ON_CPU);
    }
    let first = if totals.blind == 0 { GREENLET_FIRST } else { 0 };
    if first == 0 {
        // What its greenlets did before is not known.
        slot.charged = slot.reading;
    }
    if !adopt(layout, slot, now_ns, first, totals) {
        log!("thread {}: not learned, READ_STATE of the current greenlet, state {:x}", state = state.0);
        count(totals, Fault::ReadState);
        return false;
    }
    let key = GreenletKey { target: slot.target, pimpl: slot.current };
    let greenlet = maps::greenlet(&key);
    let current = greenlet.as_ref().map_or(0, |greenlet| greenlet.id);
    match clock::thread(slot) {
        Some(thread) => {
            thread.tstate = slot.tstate;
            thread.seen_ns = now_ns;
            thread.first_greenlet = current;
        }
        None => count(totals, Fault::ThreadsFull),
    }
    if first != 0 {
        // It ran since before it is known, and user space will say how long.
        clock::charge(slot, greenlet, u64::MAX);
    }
    slot.epoch = config.epoch;
    true
}

/// Takes greenlet's own word for which greenlet is current.
#[inline(always)]
fn adopt(layout: &Layout, slot: &mut Slot, now_ns: u64, flags: u32, totals: &mut Totals) -> bool {
    let Ok(object) = greenlet::current(layout, &mut UserMemory, slot.thread_state) else {
        return false;
    };
    let Ok(current) = greenlet::pimpl(layout, &mut UserMemory, object) else {
        return false;
    };
    let Ok(head) = Head::read(layout, &mut UserMemory, current, &mut slot.scratch.words) else {
        return false;
    };
    slot.current = current;
    slot.current_object = object;
    let key = GreenletKey { target: slot.target, pimpl: current };
    if let Some(known) = maps::greenlet(&key) {
        if known.flags & GREENLET_FREED == 0 {
            known.since_ns = now_ns;
            known.flags |= GREENLET_RUNNING;
            return true;
        }
        slot.from_key = key;
        account::ended(known, now_ns, End::Replaced, slot, totals);
    }
    let main = if head.is_main() { GREENLET_MAIN } else { 0 };
    account::sight(slot, object, now_ns, now_ns, flags | main | GREENLET_RUNNING);
    // Without an entry (the map is full, and counted) its times are lost.
    slot.to_key = key;
    let _entry = account::meet(slot, totals);
    true
}

/// Goes on after greenlet's own current turned out to be another than ours: what
/// either did since the last hit is unknown.
#[inline(never)]
pub fn resync(config: &TargetConfig, slot: &mut Slot, now_ns: u64, totals: &mut Totals) -> bool {
    count(totals, Fault::OutOfStep);
    totals.blind = 1;
    let believed = GreenletKey { target: slot.target, pimpl: slot.current };
    if let Some(greenlet) = maps::greenlet(&believed) {
        greenlet.since_ns = now_ns;
        greenlet.flags &= !GREENLET_RUNNING;
        // Where it waits from now on is not known; where it waited before is over.
        greenlet.stack = StackKey { id: 0, check: 0 };
        greenlet.sent = 0;
        greenlet.label = Label::NONE;
        greenlet.given = Label::NONE;
    }
    slot.undo.valid = 0;
    slot.parts_count = 0;
    // Nor whose the thread's time off the CPU was.
    clock::charge(slot, None, 0);
    adopt(&config.layout, slot, now_ns, 0, totals)
}

/// A thread ends: its current greenlet does too.
#[inline(always)]
pub fn on_exit() {
    let Some(slot) = maps::slot() else {
        return;
    };
    let watched = slot.clock.version != 0;
    if !watched && slot.epoch == 0 {
        return;
    }
    let Some(config) = maps::config(slot.target) else {
        return;
    };
    let Some(totals) = maps::totals(slot.target) else {
        return;
    };
    // It is not left: no tick tells anything of an ended thread.
    slot.enter();
    if slot.thread == 0 {
        // It never left the CPU before.
        slot.thread = bpf_get_current_pid_tgid();
    }
    let now = clock::now(config, slot, totals);
    log!("thread {}: exits, current greenlet {:x}", current = slot.current_object.0);
    totals.exit_ns = now;
    if let Some(thread) = clock::thread(slot) {
        thread.exit_ns = now;
        thread.clock = slot.clock.at(now, config.started_ns);
    }
    // From here on the scheduler leaves it alone.
    slot.clock.version = 0;
    if slot.epoch == 0 {
        return;
    }
    let key = GreenletKey { target: slot.target, pimpl: slot.current };
    if let Some(greenlet) = maps::greenlet(&key)
        && greenlet.flags & GREENLET_RUNNING != 0
        // Its address may be another thread's greenlet by now.
        && greenlet.thread == slot.thread
    {
        let ran_ns = now.saturating_sub(greenlet.since_ns);
        clock::charge(slot, Some(greenlet), ran_ns);
        slot.from_key = key;
        account::ended(greenlet, now, End::ThreadExit, slot, totals);
    }
    slot.epoch = 0;
}
