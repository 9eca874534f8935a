//! What is read of the kernel's own structures, whose layout the loader tells.

use core::ptr;

use aya_ebpf::{bindings::task_struct, helpers::bpf_probe_read_kernel};
use profiler_common::layout::KernelLayout;

/// Pid namespaces inside of each other, the first one included (`MAX_PID_NS_LEVEL`).
/// <https://github.com/torvalds/linux/blob/v6.12/include/linux/pid_namespace.h>
const MAX_NAMESPACES: u32 = 33;

/// All zero where the kernel does not tell.
#[unsafe(no_mangle)]
static KERNEL: KernelLayout = KernelLayout {
    task_runtime: 0,
    task_exec_start: 0,
    task_memory: 0,
    task_pid: 0,
    pid_level: 0,
    pid_numbers: 0,
    upid_bytes: 0,
    upid_number: 0,
    upid_namespace: 0,
    namespace_inode: 0,
    own_namespace: 0,
    program_file: 0,
    file_inode: 0,
    inode_number: 0,
    inode_super: 0,
    super_device: 0,
    sock_type: 0,
    sock_family: 0,
    tcp_received: 0,
    tcp_next: 0,
    tcp_copied: 0,
};

/// A process's numbers.
pub struct Pids {
    /// In the kernel's first pid namespace.
    pub first: u32,
    /// In greenscope's, 0 if it can't be seen from there.
    pub own: u32,
}

/// Reads a field of the layout.
macro_rules! layout {
    ($field:ident) => {{
        // SAFETY: a static; volatile, for the loader gives it its value.
        unsafe { ptr::read_volatile(&raw const KERNEL.$field) }
    }};
}

/// What the scheduler says that a thread has had of the CPUs, 0 if that is not known.
#[inline(always)]
pub fn runtime(task: *mut task_struct) -> u64 {
    let offset = layout!(task_runtime);
    if offset == 0 {
        return 0;
    }
    read(task.cast::<u8>().wrapping_add(offset as usize).cast()).unwrap_or_default()
}

/// The same of a task that a tracepoint gave, which the verifier knows for one: it needs no
/// helper, for the offset is a constant to it.
#[inline(always)]
pub fn runtime_of(task: *mut task_struct) -> u64 {
    let offset = layout!(task_runtime);
    if offset == 0 {
        return 0;
    }
    // SAFETY: the kernel gave the task, and handles a fault of such a load.
    unsafe { task.cast::<u8>().wrapping_add(offset as usize).cast::<u64>().read_volatile() }
}

/// [`exec_start`] of such a task.
#[inline(always)]
pub fn exec_start_of(task: *mut task_struct) -> u64 {
    let offset = layout!(task_exec_start);
    if offset == 0 {
        return 0;
    }
    // SAFETY: as above.
    unsafe { task.cast::<u8>().wrapping_add(offset as usize).cast::<u64>().read_volatile() }
}

/// When the scheduler last brought that sum up to date, by its own clock; 0 if that is not
/// known.
#[inline(always)]
pub fn exec_start(task: *mut task_struct) -> u64 {
    let offset = layout!(task_exec_start);
    if offset == 0 {
        return 0;
    }
    read(task.cast::<u8>().wrapping_add(offset as usize).cast()).unwrap_or_default()
}

/// The memory of a thread, 0 once it has given it back: it is about to end. None where the
/// kernel does not tell.
#[inline(always)]
pub fn memory(task: *mut task_struct) -> Option<u64> {
    let offset = layout!(task_memory);
    if offset == 0 {
        return None;
    }
    read(task.cast::<u8>().wrapping_add(offset as usize).cast())
}

/// The numbers of a thread that leads its process.
#[inline(always)]
pub fn pids(task: *mut task_struct) -> Option<Pids> {
    let offset = layout!(task_pid);
    if offset == 0 {
        return None;
    }
    let pid: u64 = read(task.cast::<u8>().wrapping_add(offset as usize).cast())?;
    let level: u32 = read_at(pid, layout!(pid_level))?;
    let mut numbers = pid.wrapping_add(layout!(pid_numbers).into());
    let first: u32 = read_at(numbers, layout!(upid_number))?;
    let mut own = 0;
    for at in 0..MAX_NAMESPACES {
        if at > level {
            break;
        }
        let namespace: u64 = read_at(numbers, layout!(upid_namespace))?;
        let inode: u32 = read_at(namespace, layout!(namespace_inode))?;
        if inode == layout!(own_namespace) {
            own = read_at(numbers, layout!(upid_number))?;
        }
        numbers = numbers.wrapping_add(layout!(upid_bytes).into());
    }
    Some(Pids { first, own })
}

/// A file, as the kernel tells it from all others.
#[derive(Default)]
pub struct File {
    /// The device that it is on.
    pub device: u64,
    /// Its inode there.
    pub inode: u64,
}

/// The file of the program in a `linux_binprm`.
#[inline(always)]
pub fn program(binprm: u64) -> Option<File> {
    let offset = layout!(program_file);
    if offset == 0 {
        return None;
    }
    let file: u64 = read_at(binprm, offset)?;
    let inode: u64 = read_at(file, layout!(file_inode))?;
    let super_block: u64 = read_at(inode, layout!(inode_super))?;
    let device: u32 = read_at(super_block, layout!(super_device))?;
    Some(File { device: device.into(), inode: read_at(inode, layout!(inode_number))? })
}

/// A socket of a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// It is none, or of a family in which no requests come.
    Other,
    /// TCP's.
    Tcp,
    /// A Unix socket.
    Unix,
}

/// <https://github.com/torvalds/linux/blob/v6.12/include/linux/socket.h>
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// <https://github.com/torvalds/linux/blob/v6.12/include/linux/net.h>
const SOCK_STREAM: u16 = 1;

/// What kind of socket that is.
#[inline(always)]
pub fn stream(sock: u64) -> Stream {
    let offset = layout!(sock_type);
    if offset == 0 || read_at(sock, offset) != Some(SOCK_STREAM) {
        return Stream::Other;
    }
    match read_at(sock, layout!(sock_family)) {
        Some(AF_UNIX) => Stream::Unix,
        Some(AF_INET | AF_INET6) => Stream::Tcp,
        _ => Stream::Other,
    }
}

/// How often the three numbers are read that an arriving packet changes.
const LOOKS: u32 = 4;

/// Whether the process has had exactly so many bytes from that socket of TCP.
#[inline(always)]
pub fn has_received(sock: u64, bytes: u64) -> bool {
    for _ in 0..LOOKS {
        let copied: u32 = read_at(sock, layout!(tcp_copied)).unwrap_or_default();
        let next: u32 = read_at(sock, layout!(tcp_next)).unwrap_or_default();
        let received: u64 = read_at(sock, layout!(tcp_received)).unwrap_or(u64::MAX);
        // The end of the stream counts for one, in both.
        if received.wrapping_sub(next.wrapping_sub(copied).into()) == bytes {
            return true;
        }
    }
    false
}

#[inline(always)]
fn read_at<T>(base: u64, offset: u32) -> Option<T> {
    read(base.wrapping_add(offset.into()) as *const T)
}

#[inline(always)]
fn read<T>(field: *const T) -> Option<T> {
    // SAFETY: a bad address is an error of the helper.
    unsafe { bpf_probe_read_kernel(field) }.ok()
}
