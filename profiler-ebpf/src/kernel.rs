//! What is read of the kernel's own structures, whose layout the loader tells.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::task_struct,
    helpers::{bpf_probe_read_kernel, generated::bpf_find_vma},
};
use profiler_common::{clock::Scheduled, layout::KernelLayout};

/// Pid namespaces inside of each other, the first one included (`MAX_PID_NS_LEVEL`).
/// <https://github.com/torvalds/linux/blob/v6.12/include/linux/pid_namespace.h>
const MAX_NAMESPACES: u32 = 33;

/// All zero where the kernel does not tell.
#[unsafe(no_mangle)]
static KERNEL: KernelLayout = KernelLayout {
    task_runtime: 0,
    task_exec_start: 0,
    task_delay: 0,
    task_queued: 0,
    task_queue: 0,
    queue_cpu: 0,
    cpu_clock: 0,
    task_tls: 0,
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
    mapping_file: 0,
    file_inode: 0,
    inode_number: 0,
    inode_super: 0,
    super_device: 0,
    sock_type: 0,
    sock_family: 0,
    sock_queue: 0,
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

/// Loads what lies `offset` bytes into a structure of the kernel's that the verifier knows by
/// its type: it needs no helper, for the offset is a constant to it.
///
/// # Safety
///
/// The kernel gave the pointer, or it was loaded so from one that it gave. The kernel handles a
/// fault of such a load.
#[inline(always)]
unsafe fn load<T>(structure: *const u8, offset: u32) -> T {
    // SAFETY: as above.
    unsafe { structure.wrapping_add(offset as usize).cast::<T>().read_volatile() }
}

/// What the scheduler has counted of a task that a tracepoint gave.
///
/// Of one that `comes` onto this CPU: when it was made ready lies there until the scheduler
/// books its arrival, which is after the tracepoint. The clock is the CPU's, as the scheduler
/// will read it for that.
/// <https://github.com/torvalds/linux/blob/v6.12/kernel/sched/stats.h> (`sched_info_switch`)
#[inline(always)]
pub fn scheduled_of(task: *mut task_struct, comes: bool) -> Scheduled {
    let task = task.cast::<u8>().cast_const();
    let mut had = Scheduled::default();
    let runtime = layout!(task_runtime);
    if runtime != 0 {
        // SAFETY: the kernel gave the task.
        had.runtime_ns = unsafe { load(task, runtime) };
    }
    let delay = layout!(task_delay);
    if delay == 0 {
        return had;
    }
    // SAFETY: as above.
    had.delay_ns = unsafe { load(task, delay) };
    if !comes {
        return had;
    }
    let offset = layout!(task_queued);
    // SAFETY: as above.
    let queued: u64 = unsafe { load(task, offset) };
    if queued != 0 {
        let (queue, cpu, clock) = (layout!(task_queue), layout!(queue_cpu), layout!(cpu_clock));
        // SAFETY: as above. A task is always of some CPU's queue.
        let queue: *const u8 = unsafe { load(task, queue) };
        // SAFETY: as above.
        let cpu: *const u8 = unsafe { load(queue, cpu) };
        // SAFETY: as above.
        let clock: u64 = unsafe { load(cpu, clock) };
        had.queued_ns = clock.saturating_sub(queued);
    }
    had
}

/// [`exec_start`] of such a task.
#[inline(always)]
pub fn exec_start_of(task: *mut task_struct) -> u64 {
    let offset = layout!(task_exec_start);
    if offset == 0 {
        return 0;
    }
    // SAFETY: as above.
    unsafe { load(task.cast::<u8>(), offset) }
}

/// The same of the current task, anywhere: see [`runtime`].
#[inline(always)]
pub fn scheduled(task: *mut task_struct) -> Scheduled {
    let mut had = Scheduled::ran(runtime(task));
    let offset = layout!(task_delay);
    if offset != 0 {
        had.delay_ns = read(task.cast::<u8>().wrapping_add(offset as usize).cast()).unwrap_or_default();
    }
    had
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

/// Where the thread-local storage of a thread ends, which to the C library is its
/// `pthread_self()`; 0 if that is not known.
///
/// The kernel keeps it up to date but for programs that set it without asking it, which no C
/// library does.
/// <https://github.com/torvalds/linux/blob/v6.12/arch/x86/kernel/process_64.c> (`ARCH_SET_FS`)
#[inline(always)]
pub fn thread_base(task: *mut task_struct) -> u64 {
    let offset = layout!(task_tls);
    if offset == 0 {
        return 0;
    }
    read(task.cast::<u8>().wrapping_add(offset as usize).cast()).unwrap_or_default()
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

/// The inode that lies behind the current process's mapping of a file at `address`, by its
/// own address in the kernel; 0 if that is not known.
///
/// To a uprobe this is the file: of a stack of file systems the lowest one's.
///
/// # Kernel
///
/// 5.17 (`bpf_find_vma`).
#[inline(always)]
pub fn inode_behind(task: *mut task_struct, address: u64) -> u64 {
    if layout!(mapping_file) == 0 {
        return 0;
    }
    let mut inode = 0_u64;
    let callback = inode_of as Callback as *mut c_void;
    // SAFETY: the helper calls `inode_of` with the word, which is borrowed here.
    unsafe { bpf_find_vma(task, address, callback, (&raw mut inode).cast(), 0) };
    inode
}

type Callback = unsafe extern "C" fn(*mut task_struct, *mut u8, *mut c_void) -> i64;

unsafe extern "C" fn inode_of(_task: *mut task_struct, mapping: *mut u8, inode: *mut c_void) -> i64 {
    let file: Option<u64> = read(mapping.wrapping_add(layout!(mapping_file) as usize).cast());
    if let Some(file) = file.filter(|file| *file != 0)
        && let Some(found) = read_at(file, layout!(file_inode))
    {
        // SAFETY: `inode_behind` passes its word.
        unsafe { *inode.cast::<u64>() = found };
    }
    0
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

/// How much has come to a socket and was not received: messages, or packets. None where the
/// kernel does not tell.
#[inline(always)]
pub fn received_count(sock: u64) -> Option<u32> {
    match layout!(sock_queue) {
        0 => None,
        offset => read_at(sock, offset),
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
