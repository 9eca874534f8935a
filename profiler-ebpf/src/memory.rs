//! The current process's memory.

use core::{mem::MaybeUninit, ptr};

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use profiler_common::{address::Addr, fault::Fault, memory::Memory};

/// The memory of the process whose thread hit the probe.
pub struct UserMemory;

impl Memory for UserMemory {
    #[inline(always)]
    fn read<const N: usize>(&mut self, addr: Addr, out: &mut [u64; N]) -> Result<(), Fault> {
        let to = ptr::from_mut(out).cast();
        // SAFETY: `to` has room for the N words; a bad source address is an error.
        let status = unsafe { bpf_probe_read_user(to, (N * 8) as u32, addr.0 as *const _) };
        if status == 0 { Ok(()) } else { Err(Fault::ReadState) }
    }
}

/// The same by way of the program's stack, of which there must be room for a frame: the
/// kernel looks twice at what it copies to a map (`check_object_size`), which takes longer
/// than such a copy.
pub struct StagedMemory;

/// More is copied where it belongs.
const STAGED_WORDS: usize = 11;

impl Memory for StagedMemory {
    #[inline(always)]
    fn read<const N: usize>(&mut self, addr: Addr, out: &mut [u64; N]) -> Result<(), Fault> {
        if N > STAGED_WORDS {
            return UserMemory.read(addr, out);
        }
        let mut stage = MaybeUninit::<[u64; N]>::uninit();
        // SAFETY: as in `UserMemory`.
        let status =
            unsafe { bpf_probe_read_user(stage.as_mut_ptr().cast(), (N * 8) as u32, addr.0 as *const _) };
        if status != 0 {
            return Err(Fault::ReadState);
        }
        // SAFETY: the helper has written all of it.
        *out = unsafe { stage.assume_init() };
        Ok(())
    }
}
