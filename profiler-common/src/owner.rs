//! What stands in the place of a greenlet's type for stacks that are no greenlet's wait.

use crate::address::Addr;

/// The owner of a stack that was seen on a CPU, in the place of the greenlet's type.
pub const ON_CPU_OWNER: Addr = Addr(1);

/// What is in the owner of a stack that a thread left the CPU with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OffOwner {
    /// Why: an [`crate::clock::Off`].
    pub why: u32,
    /// The thread had not switched by then.
    pub plain: bool,
    /// The number of the system call that it is in, [`NO_CALL`] for none.
    pub call: u16,
    /// The low 22 bits of its thread id in the first pid namespace: all of it.
    pub tid: u32,
    /// Which of the greenlets it was that have a number on their thread
    /// ([`crate::record::GREENLET_PLACE`]); 0 for none.
    pub place: u32,
    /// It had passed control on from one greenlet to another, as hubs do.
    pub passes: bool,
    /// A hub of a known type has polled on the thread, which was not this one.
    pub beside: bool,
}

/// No system call.
pub const NO_CALL: u16 = u16::MAX;
/// Bits of a thread id: `PID_MAX_LIMIT` is 2^22.
/// <https://github.com/torvalds/linux/blob/v6.12/include/linux/threads.h>
pub const TID_BITS: u64 = (1 << 22) - 1;

/// The owner of a stack that a thread left the CPU with, in the place of the greenlet's
/// type.
#[inline(always)]
#[must_use]
pub const fn off_owner(off: OffOwner) -> Addr {
    Addr(
        OFF_OWNERS
            | (off.beside as u64) << 52
            | (off.passes as u64) << 51
            | (off.place as u64 & 0xff) << 43
            | (off.tid as u64 & TID_BITS) << 21
            | (off.plain as u64) << 20
            | (off.why as u64 & 0xf) << 16
            | off.call as u64,
    )
}

/// What that owner says; `None` if it is not of that kind.
#[must_use]
pub const fn off_of(owner: Addr) -> Option<OffOwner> {
    if owner.0 >> 53 != OFF_OWNERS >> 53 {
        return None;
    }
    Some(OffOwner {
        why: (owner.0 >> 16 & 0xf) as u32,
        plain: owner.0 >> 20 & 1 == 1,
        call: (owner.0 & 0xffff) as u16,
        tid: (owner.0 >> 21 & TID_BITS) as u32,
        place: (owner.0 >> 43 & 0xff) as u32,
        passes: owner.0 >> 51 & 1 == 1,
        beside: owner.0 >> 52 & 1 == 1,
    })
}

/// No address of anything in a process.
const OFF_OWNERS: u64 = 1 << 63;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_owner_says_what_was_put_into_it(
            why in 0_u32..16, call: u16, tid in 0_u32..1 << 22, place in 0_u32..256,
            plain: bool, passes: bool, beside: bool,
        ) {
            let off = OffOwner { why, plain, call, tid, place, passes, beside };
            prop_assert_eq!(off_of(off_owner(off)), Some(off));
        }

        #[test]
        fn no_address_of_a_process_is_one(address in 0_u64..1 << 57) {
            prop_assert_eq!(off_of(Addr(address)), None);
        }
    }
}
