//! What stands in the place of a greenlet's type for stacks that are no greenlet's wait.

use crate::address::Addr;

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
