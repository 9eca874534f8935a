//! The current process's memory.

use core::{ffi::c_void, mem::MaybeUninit, ptr};

use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_user};
use profiler_common::{
    address::Addr,
    code::{LINES_WORDS, Room, hash_word},
    fault::Fault,
    memory::Memory,
};

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
        read_part(ptr::from_mut(out).cast(), (N * 8) as u32, addr, bytes)
    }

    #[inline(always)]
    fn hash_text(&mut self, room: &mut Room) {
        hash(room);
    }
}

/// What the iterations of a hash share: the rest lies in the room, which the verifier takes as
/// unknown, so that it looks at one of them only.
struct Hashing<'r> {
    room: &'r mut Room,
}

unsafe extern "C" fn hash_next(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `hash` passes its `Hashing`.
    let Hashing { room } = unsafe { &mut *context.cast::<Hashing<'_>>() };
    i64::from(!hash_word(room))
}

#[inline(always)]
fn hash(room: &mut Room) {
    // A pointer all the way, as in `stack::iterate`.
    let callback = hash_next as unsafe extern "C" fn(u32, *mut c_void) -> i64 as *mut c_void;
    let mut hashing = Hashing { room };
    // SAFETY: the helper calls `hash_next` with `hashing` while it is borrowed here.
    unsafe { bpf_loop(LINES_WORDS as u32 + 1, callback, ptr::from_mut(&mut hashing).cast(), 0) };
}

/// Copies `bytes` bytes, in whole words, to where there is room for `room`: a call for each
/// word takes several times as long.
#[inline(always)]
fn read_part(to: *mut c_void, room: u32, addr: Addr, bytes: u32) -> Result<(), Fault> {
    let bytes = bytes.wrapping_add(7) & !7;
    if bytes > room {
        return Err(Fault::ReadState);
    }
    // SAFETY: `to` has the room; a bad source address is an error.
    let status = unsafe { bpf_probe_read_user(to, bytes, addr.0 as *const _) };
    if status == 0 { Ok(()) } else { Err(Fault::ReadState) }
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

    #[inline(always)]
    fn read_part<const N: usize>(&mut self, addr: Addr, out: &mut [u64; N], bytes: u32) -> Result<(), Fault> {
        UserMemory.read_part(addr, out, bytes)
    }

    #[inline(always)]
    fn hash_text(&mut self, room: &mut Room) {
        hash(room);
    }
}
