//! The bytes that the current system call received or sent, one after the other.

use aya_ebpf::{bindings::pt_regs, helpers::generated::bpf_task_pt_regs};
use profiler_common::{address::Addr, memory::Memory as _};

use crate::{maps, memory::UserMemory};

/// Bytes that are copied at a time: so many have room in the window.
const WINDOW: u64 = 4096;

/// How far they are read.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Cursor {
    /// Bytes that are left.
    pub left: u64,
    /// Where those begin that were not copied yet.
    segment: Addr,
    /// How many of these lie there.
    segment_left: u64,
    /// The buffers after that: a vector.
    next: Addr,
    /// How many.
    more: u64,
    /// Of those that were copied, how many were read.
    window_at: u32,
    /// How many were copied.
    window: u32,
    /// The last byte's event.
    pub event: u32,
    /// Events of the kind that only count.
    pub unread: u32,
}

/// What there is next.
pub enum Next {
    /// A byte.
    Byte(u8),
    /// Nothing that can be read.
    None,
}

impl Cursor {
    /// Nothing can be read, and so many bytes are to be counted.
    #[inline(always)]
    fn reset(&mut self, bytes: u64) {
        self.left = bytes;
        self.segment = Addr::NULL;
        self.segment_left = 0;
        self.next = Addr::NULL;
        self.more = 0;
        self.window_at = 0;
        self.window = 0;
        self.event = 0;
        self.unread = 0;
    }

    /// Begins with the first of the bytes that the current system call, which is done,
    /// received or sent.
    #[inline(always)]
    pub fn begin(&mut self, bytes: u64) {
        self.reset(bytes);
        // SAFETY: the current task's registers at its entry into the kernel lie at the top of
        // its stack.
        let registers = unsafe { bpf_task_pt_regs(maps::current_task()) } as *const pt_regs;
        let (number, second, third) = call(registers);
        match number {
            READ | WRITE | RECVFROM | SENDTO => {
                self.segment = Addr(second);
                self.segment_left = third;
            }
            READV | WRITEV => {
                self.next = Addr(second);
                self.more = third;
            }
            RECVMSG | SENDMSG => {
                let header = Addr(second);
                self.next = UserMemory.pointer(header.at(MSGHDR_IOV)).unwrap_or(Addr::NULL);
                self.more = UserMemory.word(header.at(MSGHDR_IOV_COUNT)).unwrap_or_default();
            }
            _ => {}
        }
    }

    /// Goes on to the next buffer of the vector.
    #[inline(always)]
    fn next_segment(&mut self) -> bool {
        if self.more == 0 {
            return false;
        }
        self.more -= 1;
        let at = self.next;
        self.next = at.at(IOVEC_BYTES);
        let (Ok(buffer), Ok(bytes)) = (UserMemory.pointer(at), UserMemory.word(at.at(IOVEC_LENGTH))) else {
            self.more = 0;
            return false;
        };
        self.segment = buffer;
        self.segment_left = bytes;
        true
    }

    /// The next byte. The window is copied when it is used up.
    #[inline(always)]
    pub fn next<const N: usize>(&mut self, window: &mut [u64; N]) -> Next {
        if self.window_at >= self.window {
            if self.segment_left == 0 && !self.next_segment() {
                return Next::None;
            }
            let some = self.segment_left.min(self.left).min(WINDOW);
            if some == 0 || UserMemory.read_part(self.segment, window, some as u32).is_err() {
                self.segment_left = 0;
                return Next::None;
            }
            self.segment.0 = self.segment.0.wrapping_add(some);
            self.segment_left = self.segment_left.wrapping_sub(some);
            self.window_at = 0;
            self.window = some as u32;
        }
        let at = self.window_at;
        self.window_at = at.wrapping_add(1);
        self.left = self.left.wrapping_sub(1);
        let word = window.get(at as usize >> 3 & 511).copied().unwrap_or_default();
        Next::Byte((word >> ((at & 7) * 8)) as u8)
    }

    /// The next eight bytes, if they are in the window and begin at one of its words.
    #[inline(always)]
    pub fn word<const N: usize>(&self, window: &[u64; N]) -> Option<u64> {
        let at = self.window_at;
        if at & 7 != 0 || at.wrapping_add(8) > self.window {
            return None;
        }
        window.get(at as usize >> 3 & 511).copied()
    }

    /// They were taken.
    #[inline(always)]
    pub fn took_word(&mut self) {
        self.window_at = self.window_at.wrapping_add(8);
        self.left = self.left.wrapping_sub(8);
    }

    /// The first word, before anything else is read.
    #[inline(always)]
    pub fn peek(&mut self) -> Option<u64> {
        if self.segment_left == 0 && !self.next_segment() {
            return None;
        }
        UserMemory.word(self.segment).ok()
    }

    /// Leaves out at most so many bytes; how many. Of those of another buffer the next time.
    #[inline(always)]
    pub fn skip(&mut self, most: u64) -> u64 {
        let copied = u64::from(self.window.wrapping_sub(self.window_at));
        let some = if self.window_at < self.window {
            let some = most.min(copied).min(self.left);
            self.window_at = self.window_at.wrapping_add(some as u32);
            some
        } else if self.segment_left == 0 && self.more != 0 {
            let _there = self.next_segment();
            0
        } else if self.segment_left != 0 {
            let some = most.min(self.segment_left).min(self.left);
            self.segment.0 = self.segment.0.wrapping_add(some);
            self.segment_left = self.segment_left.wrapping_sub(some);
            some
        } else {
            // They can't be read: a file's, or of a call that is not known.
            most.min(self.left)
        };
        self.left = self.left.wrapping_sub(some);
        some
    }
}

/// `struct iovec`.
/// <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/uio.h>
const IOVEC_LENGTH: u16 = 8;
const IOVEC_BYTES: u16 = 16;
/// `struct user_msghdr`.
/// <https://github.com/torvalds/linux/blob/v6.12/include/linux/socket.h>
const MSGHDR_IOV: u16 = 16;
const MSGHDR_IOV_COUNT: u16 = 24;

/// <https://github.com/torvalds/linux/blob/v6.12/arch/x86/entry/syscalls/syscall_64.tbl>
#[cfg(bpf_target_arch = "x86_64")]
mod number {
    pub const READ: i64 = 0;
    pub const WRITE: i64 = 1;
    pub const READV: i64 = 19;
    pub const WRITEV: i64 = 20;
    pub const SENDTO: i64 = 44;
    pub const RECVFROM: i64 = 45;
    pub const SENDMSG: i64 = 46;
    pub const RECVMSG: i64 = 47;
}
/// <https://github.com/torvalds/linux/blob/v6.12/include/uapi/asm-generic/unistd.h>
#[cfg(bpf_target_arch = "aarch64")]
mod number {
    pub const READ: i64 = 63;
    pub const WRITE: i64 = 64;
    pub const READV: i64 = 65;
    pub const WRITEV: i64 = 66;
    pub const SENDTO: i64 = 206;
    pub const RECVFROM: i64 = 207;
    pub const SENDMSG: i64 = 211;
    pub const RECVMSG: i64 = 212;
}
use number::{READ, READV, RECVFROM, RECVMSG, SENDMSG, SENDTO, WRITE, WRITEV};

/// The call's number, its second and its third argument.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
fn call(registers: *const pt_regs) -> (i64, u64, u64) {
    // SAFETY: the kernel gave the pointer and checks what is loaded through it.
    let registers = unsafe { &*registers };
    (registers.orig_rax as i64, registers.rsi, registers.rdx)
}

#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
fn call(registers: *const pt_regs) -> (i64, u64, u64) {
    // `struct pt_regs`: user_pt_regs (34 words), orig_x0, syscallno.
    // https://github.com/torvalds/linux/blob/v6.12/arch/arm64/include/asm/ptrace.h
    let words = registers.cast::<[u64; 36]>();
    // SAFETY: the kernel gave the pointer and checks what is loaded through it.
    let [_, second, third, .., number] = unsafe { &*words };
    (i64::from(*number as i32), *second, *third)
}
