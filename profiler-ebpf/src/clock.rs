//! The threads' clocks: moved by the scheduler's tracepoint, read at a switch.
//!
//! `sched_switch` touches a thread's own clock and nothing of its greenlets: it may come
//! in the middle of a uprobe's program. A switch charges the leaver with what the clock
//! gained since it entered, so that the sum over a thread's greenlets is the thread's
//! time, whatever came when.

use core::ptr;

use aya_ebpf::{
    bindings::{pt_regs, task_struct},
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_current_task, bpf_ktime_get_ns, bpf_task_pt_regs},
    },
    programs::BtfTracePointContext,
};
use profiler_common::{
    clock::{self, Gil, OFF_KINDS, ON_CPU, Off},
    fault::Fault,
    label::Label,
    record::{Greenlet, TargetConfig, Thread, Totals},
    walk::StackKey,
};

use crate::{
    kernel::{exec_start, exec_start_of, scheduled, scheduled_of},
    maps::{self, count},
    off,
    slot::{Reading, Slot},
    wire,
};

/// How wrong a time may be that is reckoned from the scheduler's own clock. That one stands
/// still in interrupts and while the hypervisor takes the CPU, and then less time counts as
/// off the CPU than was; in the other direction only the look for another thread counts
/// between its reading and ours.
const MAX_DOUBT_NS: u64 = 500_000;
/// Looks at a clock that moves until one finds it still.
const LOOKS: u32 = 4;
/// A tick of the scheduler with the lowest `CONFIG_HZ`, 100.
/// <https://github.com/torvalds/linux/blob/v6.12/kernel/Kconfig.hz>
const MAX_SCHEDULER_TICK_NS: u64 = 10_000_000;
/// `__TASK_STOPPED | __TASK_TRACED`: a stopped thread did not choose to sleep.
/// <https://github.com/torvalds/linux/blob/v6.12/include/linux/sched.h>
const STOPPED: u64 = 4 | 8;

/// What time it is, with the thread's clock as it stands then in `slot.reading`.
///
/// The program may be preempted between the two; then it looks again.
#[inline(always)]
pub fn now(config: &TargetConfig, slot: &mut Slot, totals: &mut Totals) -> u64 {
    let mut now = 0;
    for _ in 0..LOOKS {
        // SAFETY: the slot's own. Volatile, for the scheduler's program writes it.
        let version = unsafe { ptr::read_volatile(&raw const slot.clock.version) };
        // SAFETY: takes no argument.
        now = unsafe { bpf_ktime_get_ns() };
        let fresh = version != slot.reading.version;
        if fresh {
            // SAFETY: as above.
            slot.reading.off_ns = unsafe { ptr::read_volatile(&raw const slot.clock.off_ns) };
        }
        // Preempted since the first look, what it was off the CPU would be in the time and not in
        // the reading.
        // SAFETY: as above.
        if unsafe { ptr::read_volatile(&raw const slot.clock.version) } == version {
            if fresh {
                slot.reading.version = version;
                if slot.clock.state != ON_CPU {
                    let _read = clock_read_unseen(config, slot, now);
                }
            }
            return now;
        }
        // What was copied may be of neither.
        slot.reading.version = 0;
    }
    slot.reading = slot.charged;
    count(totals, Fault::ClockMoved);
    now
}

/// The scheduler did not tell that the thread came, and here it runs. What it was off is
/// its current greenlet's; with the next that is told the thread's clock is in order. A global
/// function, as [`crate::label`]'s are.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn clock_read_unseen(config: *const TargetConfig, slot: *mut Slot, now: u64) -> u32 {
    if config.is_null() || slot.is_null() {
        return 0;
    }
    // SAFETY: references of `now`'s caller.
    let config = unsafe { &*config };
    // SAFETY: as above.
    let slot = unsafe { &mut *slot };
    // SAFETY: takes no argument.
    let task = unsafe { bpf_get_current_task() } as *mut task_struct;
    let started_ns = exec_start(task);
    // SAFETY: a word of a map, where only the scheduler's tracepoint writes.
    let lead_ns = maps::lead().map_or(0, |lead| unsafe { ptr::read_volatile(lead) });
    let mut had = scheduled(task);
    // The sum is as old as the scheduler's last tick. The lead has in it how long it took to
    // tell of a switch, which may be longer than this run.
    let since_ns = now.wrapping_sub(lead_ns).wrapping_sub(started_ns);
    let since_ns = if since_ns.wrapping_neg() <= MAX_DOUBT_NS { 0 } else { since_ns };
    let known = lead_ns != 0
        && since_ns <= MAX_SCHEDULER_TICK_NS
        // No tick between the two, and no other CPU.
        && exec_start(task) == started_ns;
    let doubt_ns = if known { MAX_DOUBT_NS } else { MAX_SCHEDULER_TICK_NS };
    if known {
        had.runtime_ns += since_ns;
    }
    // Not more than the clock will have.
    let off_ns = slot.clock.off_unseen(now, config.started_ns, had.runtime_ns).saturating_sub(doubt_ns);
    let queued = slot.clock.queued(&had, off_ns);
    if let Some(off) = slot.reading.off_ns.get_mut(slot.clock.state as usize & (OFF_KINDS - 1)) {
        *off += off_ns - queued;
    }
    let [.., preempted] = &mut slot.reading.off_ns;
    *preempted += queued;
    0
}

/// Adds to `greenlet`, which ran until now for `ran_ns`, what its thread was off the CPU
/// meanwhile. Without one it is nobody's.
#[inline(always)]
pub fn charge(slot: &mut Slot, greenlet: Option<&mut Greenlet>, ran_ns: u64) {
    slot.undo.off_ns = [0; OFF_KINDS];
    if slot.reading.version != slot.charged.version {
        let _charged = clock_charge(slot, greenlet.map_or(ptr::null_mut(), ptr::from_mut), ran_ns);
    }
}

/// Out of line: the CPU is left far less often than a greenlet. A global function, as
/// [`crate::label`]'s are.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn clock_charge(slot: *mut Slot, greenlet: *mut Greenlet, ran_ns: u64) -> u32 {
    if slot.is_null() {
        return 0;
    }
    // SAFETY: a reference of `charge`'s caller.
    let slot = unsafe { &mut *slot };
    // SAFETY: as above, or null.
    if let Some(greenlet) = unsafe { greenlet.as_mut() } {
        slot.undo.off_ns = clock::charge(&slot.reading.off_ns, &mut slot.charged.off_ns, ran_ns);
        for (sum, gained) in greenlet.off_ns.iter_mut().zip(slot.undo.off_ns) {
            *sum = sum.wrapping_add(gained);
        }
    } else {
        slot.charged.off_ns = slot.reading.off_ns;
    }
    let all = slot.charged.off_ns == slot.reading.off_ns;
    slot.charged.version = if all { slot.reading.version } else { 0 };
    if let Some(thread) = maps::thread(slot.thread) {
        thread.charged_ns = slot.charged.off_ns;
    }
    0
}

/// A switch did not happen: what was charged for it will be charged again.
#[inline(always)]
pub fn give_back(off_ns: &[u64; OFF_KINDS], charged: &mut Reading) {
    for (sum, ns) in charged.off_ns.iter_mut().zip(off_ns) {
        *sum = sum.wrapping_sub(*ns);
    }
    charged.version = 0;
}

/// The record of the slot's thread, made if it has none.
#[inline(always)]
pub fn thread(slot: &Slot) -> Option<&'static mut Thread> {
    if let Some(thread) = maps::thread(slot.thread) {
        return Some(thread);
    }
    insert_thread(slot);
    maps::thread(slot.thread)
}

#[inline(never)]
fn insert_thread(slot: &Slot) -> u32 {
    let thread = Thread {
        target: slot.target,
        tstate: profiler_common::address::Addr::NULL,
        seen_ns: 0,
        first_greenlet: 0,
        exit_ns: 0,
        clock: slot.clock,
        charged_ns: [0; OFF_KINDS],
        off_stack: StackKey { id: 0, check: 0 },
        off_label: Label::NONE,
        off_before_ns: 0,
        ticks_lost: 0,
        first_sleep_ns: 0,
    };
    u32::from(maps::insert_thread(slot.thread, &thread))
}

/// A CPU goes from one thread to another.
#[inline(always)]
pub fn on_sched_switch(ctx: &BtfTracePointContext) {
    let leaver: *mut task_struct = ctx.arg(1);
    let comer: *mut task_struct = ctx.arg(2);
    let mut now = 0;
    // What of them is watched was brought up to date by the scheduler just now.
    let mut watched = leaver;
    if let Some(slot) = maps::slot_of(leaver)
        && slot.clock.version != 0
        && let Some(config) = maps::config(slot.target)
    {
        if slot.thread == 0 {
            slot.thread = bpf_get_current_pid_tgid();
        }
        let (mut why, call) = why(ctx, leaver, config);
        if why == Off::Polled && slot.polls.is_a_callbacks(slot.current, wire::is_epoll(call)) {
            why = Off::Blocked;
        }
        now = time();
        if slot.clock.state != ON_CPU {
            came_unseen(config, slot, now, leaver);
        }
        slot.off_before_ns = slept(slot, why as u32);
        slot.clock.leave(now, config.started_ns, scheduled_of(leaver, false), why);
        off::take_stack(config, slot, why, call, now);
        publish(slot);
    }
    if let Some(slot) = maps::slot_of(comer)
        && slot.clock.version != 0
        && let Some(config) = maps::config(slot.target)
    {
        let why = slot.clock.state;
        slot.remember_memory(comer);
        if now == 0 {
            now = time();
        }
        let slept_ns = slot.clock.since_ns;
        let first = slept_ns <= config.started_ns;
        let queued = slot.clock.enter(now, config.started_ns, scheduled_of(comer, true));
        if why == Off::Polled as u32 && slot.polls.poller == slot.current {
            // Since it woke it had to wait for a CPU.
            slot.polls.wake(slept_ns, now.saturating_sub(queued));
        }
        if first {
            slot.first_sleep_ns = slept(slot, why);
        }
        watched = comer;
        off::count(slot, why, queued, true);
        if slot.thread != 0 {
            publish(slot);
        }
    }
    if now != 0 {
        keep_lead(watched, now);
    }
}

#[inline(always)]
fn keep_lead(watched: *mut task_struct, now: u64) {
    let started_ns = exec_start_of(watched);
    if started_ns != 0
        && let Some(lead) = maps::lead()
    {
        // SAFETY: this CPU's own word.
        unsafe { ptr::write_volatile(lead, now.wrapping_sub(started_ns)) };
    }
}

/// A thread leaves that was not seen to come.
#[inline(never)]
fn came_unseen(config: &TargetConfig, slot: &mut Slot, now: u64, task: *mut task_struct) -> u32 {
    // In the first moment it may have come before it was watched.
    if slot.clock.runtime_ns != 0
        && let Some(totals) = maps::totals(slot.target)
    {
        count(totals, Fault::CameUnseen);
    }
    let why = slot.clock.state;
    let first = slot.clock.since_ns <= config.started_ns;
    let queued = slot.clock.came_unseen(now, config.started_ns, scheduled(task));
    if first {
        slot.first_sleep_ns = slept(slot, why);
    }
    off::count(slot, why, queued, false);
    0
}

#[inline(always)]
fn publish(slot: &Slot) {
    // Without room (counted when it switches) only the list of threads lacks it.
    if let Some(thread) = thread(slot) {
        thread.clock = slot.clock;
        thread.off_stack = slot.off_stack;
        thread.off_label = slot.off_label;
        thread.off_before_ns = slot.off_before_ns;
        thread.first_sleep_ns = slot.first_sleep_ns;
    }
}

/// What the thread was off the CPU for that reason so far.
#[inline(always)]
pub fn slept(slot: &Slot, why: u32) -> u64 {
    slot.clock.off_ns.get(why as usize).copied().unwrap_or_default()
}

/// Why the thread leaves the CPU.
#[inline(always)]
fn why(ctx: &BtfTracePointContext, leaver: *mut task_struct, config: &TargetConfig) -> (Off, i64) {
    let preempted: u64 = ctx.arg(0);
    let state: u64 = ctx.arg(3);
    if preempted & 1 != 0 || state == 0 || state & STOPPED != 0 {
        return (Off::Preempted, -1);
    }
    // SAFETY: the task is the current one, whose registers at its entry into the kernel
    // lie at the top of its stack.
    let registers = unsafe { bpf_task_pt_regs(leaver) } as *const pt_regs;
    call_of(registers, config.gil)
}

#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
fn call_of(registers: *const pt_regs, gil: Gil) -> (Off, i64) {
    // SAFETY: the kernel gave the pointer and checks what is loaded through it.
    let registers = unsafe { &*registers };
    let number = registers.orig_rax as i64;
    (Off::of_x86_64_call(number, registers.rdi, gil), number)
}

#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
fn call_of(registers: *const pt_regs, gil: Gil) -> (Off, i64) {
    // `struct pt_regs`: user_pt_regs (34 words), orig_x0, syscallno.
    // https://github.com/torvalds/linux/blob/v6.12/arch/arm64/include/asm/ptrace.h
    let words = registers.cast::<[u64; 36]>();
    // SAFETY: the kernel gave the pointer and checks what is loaded through it.
    let [.., first, number] = unsafe { &*words };
    let number = i64::from(*number as i32);
    (Off::of_aarch64_call(number, *first, gil), number)
}

/// `CLOCK_MONOTONIC`, ns.
#[inline(always)]
pub fn time() -> u64 {
    // SAFETY: takes no argument.
    unsafe { bpf_ktime_get_ns() }
}
