//! Since when a socket was ready that a greenlet waits to receive from.
//!
//! Who finds nothing there leaves its greenlet's address with the socket ([`on_empty`]). What comes
//! first writes the time into that greenlet's row ([`on_ready`]), and who takes it away from it
//! writes it out again ([`on_taken`]). When the greenlet goes on it is known since when it was ready
//! ([`ready`]), if it did wait for that: its stack tells.
//!
//! What is in doubt is not told: the bounds that the hub's polls give stay.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::programs::BtfTracePointContext;
use profiler_common::{
    address::Addr,
    record::{GREENLET_AWAITS, Greenlet, GreenletKey, TargetConfig},
};

use crate::{clock::time, kernel, label, maps, slot::Slot};

/// In [`Greenlet::awaits`]: it is the time of a receipt that found nothing, and not of what came.
/// No greenlet has the same one twice, nor has one that gets its row.
const OPEN: u64 = 1 << 63;

/// Who waits for a socket. It lies in the socket's storage.
#[repr(C)]
pub struct Waiter {
    /// Whose greenlet.
    target: u64,
    /// Its address.
    pimpl: Addr,
    /// What it has in [`Greenlet::awaits`]; 0 for nobody.
    awaits: u64,
    /// When something came for who waited last, until it is taken; else 0.
    came_ns: u64,
}

impl Waiter {
    /// Puts `new` into the waiter's row if `old` is there: by now the row may be another one's, or
    /// of another wait.
    #[inline(always)]
    fn tell(&self, old: u64, new: u64) {
        let key = GreenletKey { target: self.target, pimpl: self.pimpl };
        if let Some(greenlet) = maps::greenlet(&key) {
            compare_exchange(&mut greenlet.awaits, old, new);
        }
    }
}

/// The current greenlet found nothing in a socket.
#[inline(always)]
pub fn on_empty(config: &TargetConfig, slot: &Slot, socket: *mut c_void) {
    let Some(greenlet) = label::current(config, slot) else {
        return;
    };
    greenlet.awaits = 0;
    let Some(waiter) = maps::waiter_or_create(socket) else {
        return;
    };
    let awaits = time() | OPEN;
    greenlet.awaits = awaits;
    greenlet.flags |= GREENLET_AWAITS;
    waiter.target = slot.target;
    waiter.pimpl = slot.current;
    let _before = exchange(&mut waiter.awaits, awaits);
    // A sender queues first, then looks for a waiter. Here the waiter is named first, then the
    // queue is looked at: one of both sees the other. (But for the first wait in a socket, whose
    // storage is made here: a sender may have looked for it before its message was to be seen.)
    if kernel::received_count(socket as u64) != Some(0) {
        greenlet.awaits = 0;
    }
}

/// The current greenlet waits for something else than to receive.
#[inline(always)]
pub fn on_full(config: &TargetConfig, slot: &Slot) {
    if let Some(greenlet) = label::current(config, slot) {
        greenlet.awaits = 0;
    }
}

/// `sk_data_ready`: something came. In any process, and in interrupts.
///
/// # Kernel
///
/// 6.3: <https://github.com/torvalds/linux/commit/40e0b0908142>
#[inline(always)]
pub fn on_ready(ctx: &BtfTracePointContext) {
    let socket: *mut c_void = ctx.arg(0);
    let Some(waiter) = maps::waiter(socket) else {
        return;
    };
    // A sender may be held up before it tells, and others receive what it sent.
    let count = received(socket);
    if waiter.awaits == 0 || count == 0 {
        return;
    }
    let awaits = exchange(&mut waiter.awaits, 0);
    if awaits == 0 {
        return;
    }
    if count > 1 {
        // Of the first one nothing was told: where a program is interrupted by itself the kernel
        // leaves out the second.
        waiter.tell(awaits, 0);
        return;
    }
    let now = time();
    waiter.came_ns = now;
    waiter.tell(awaits, now);
    if received(socket) == 0 {
        // Taken meanwhile, perhaps by one who did not see the time.
        waiter.tell(now, 0);
    }
}

/// Something was taken from a socket, by any process: who waits there has to wait on.
#[inline(always)]
pub fn on_taken(socket: *mut c_void) {
    if let Some(waiter) = maps::waiter(socket)
        && waiter.came_ns != 0
    {
        let came_ns = exchange(&mut waiter.came_ns, 0);
        // One that went on by itself has it no more.
        waiter.tell(came_ns, 0);
    }
}

#[inline(always)]
fn received(socket: *mut c_void) -> u32 {
    kernel::received_count(socket as u64).unwrap_or_default()
}

/// When something came to the socket in which `to` found nothing before it waited; 0 if nothing did.
#[inline(always)]
pub fn ready(to: &mut Greenlet) -> u64 {
    if to.flags & GREENLET_AWAITS == 0 {
        return 0;
    }
    to.flags &= !GREENLET_AWAITS;
    let ready_ns = exchange(&mut to.awaits, 0);
    if ready_ns & OPEN == 0 { ready_ns } else { 0 }
}

/// Puts `new` there, and returns what was there. Nothing moves from before it to after it, or the
/// other way.
#[inline(always)]
fn exchange(word: &mut u64, new: u64) -> u64 {
    let mut value = new;
    // BPF's own: `core::sync::atomic` has none for this machine.
    // SAFETY: an aligned word of a map, which stays there; nothing else is touched.
    unsafe {
        asm!("{value} = xchg_64({word} + 0, {value})",
            word = in(reg) &raw mut *word, value = inout(reg) value, options(nostack));
    }
    value
}

/// Puts `new` there if `old` is there.
#[inline(always)]
fn compare_exchange(word: &mut u64, old: u64, new: u64) {
    // SAFETY: as above.
    unsafe {
        asm!("r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) &raw mut *word, new = in(reg) new, inout("r0") old => _, options(nostack));
    }
}
