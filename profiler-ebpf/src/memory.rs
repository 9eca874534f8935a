//! The current process's memory.

use core::ptr;

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

    #[inline(always)]
    fn read_part<const N: usize>(&mut self, addr: Addr, out: &mut [u64; N], bytes: u32) -> Result<(), Fault> {
        if bytes > (N * 8) as u32 {
            return Err(Fault::ReadState);
        }
        let to = ptr::from_mut(out).cast();
        // SAFETY: `to` has room for that many; a bad source address is an error.
        let status = unsafe { bpf_probe_read_user(to, bytes, addr.0 as *const _) };
        if status == 0 { Ok(()) } else { Err(Fault::ReadState) }
    }
}
