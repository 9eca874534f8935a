//! Where the fields lie that the kernel part reads: plain data, one value a target.
//!
//! The values come from generated tables or from the target's own debug
//! information (profiler-user), never from constants in code. Offsets are in
//! bytes; fields are words unless said otherwise.

/// An offset that this version does not have.
pub const ABSENT: u16 = u16::MAX;

/// The offsets of CPython's structures that a switch needs.
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PythonLayout {
    /// `PyThreadState.interp`.
    pub tstate_interp: u16,
    /// `PyThreadState._status` (u32 bit field, 3.12 on), else [`ABSENT`].
    pub tstate_status: u16,
    /// The bit of `active` in `_status`.
    pub tstate_active_bit: u16,
    /// `PyThreadState.current_frame` (3.13 on) or `PyThreadState.cframe`.
    pub tstate_frame: u16,
    /// `_PyCFrame.current_frame`, or [`ABSENT`] when `tstate_frame` is the frame itself.
    pub cframe_frame: u16,
    /// `PyThreadState.thread_id`, the `pthread_self()` of the thread.
    pub tstate_thread_id: u16,
    /// `PyThreadState.native_thread_id`.
    pub tstate_native_id: u16,
    /// `PyThreadState.context`.
    pub tstate_context: u16,
    /// `_PyInterpreterFrame.f_code` or `f_executable`.
    pub frame_code: u16,
    /// `_PyInterpreterFrame.previous`.
    pub frame_previous: u16,
    /// `_PyInterpreterFrame.prev_instr` or `instr_ptr`.
    pub frame_instr: u16,
    /// `_PyInterpreterFrame.owner` (one byte).
    pub frame_owner: u16,
    /// `sizeof(_PyInterpreterFrame)` without its locals.
    pub frame_size: u16,
    /// The first value of `owner` that is no Python frame (a C-stack shim).
    pub owner_shim: u16,
    /// `PyCodeObject.co_code_adaptive`: offset 0 of the instructions.
    pub code_instrs: u16,
    /// `PyCodeObject.co_firstlineno` (i32).
    pub code_firstlineno: u16,
    /// `PyCodeObject.co_filename`; `co_name`, `co_qualname`, `co_linetable` follow it.
    pub code_filename: u16,
    /// `PyASCIIObject.hash`.
    pub str_hash: u16,
}

/// The offsets of greenlet's objects that a switch needs.
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GreenletLayout {
    /// `PyGreenlet.pimpl`.
    pub object_pimpl: u16,
    /// `greenlet::Greenlet._self` (3.1.1 on) or `UserGreenlet._self`.
    pub self_object: u16,
    /// `MainGreenlet._self`; the same as `self_object` from 3.1.1 on.
    pub main_self_object: u16,
    /// `stack_state._stack_start`.
    pub stack_start: u16,
    /// `stack_state.stack_stop`.
    pub stack_stop: u16,
    /// `python_state._context`.
    pub context: u16,
    /// `python_state.current_frame`.
    pub current_frame: u16,
    /// `python_state.datastack_chunk`.
    pub chunk: u16,
    /// `python_state.datastack_top`.
    pub top: u16,
    /// `UserGreenlet._main_greenlet`.
    pub main_greenlet: u16,
    /// `UserGreenlet._parent`.
    pub parent: u16,
    /// `MainGreenlet._thread_state`.
    pub thread_state: u16,
    /// `ThreadState.current_greenlet`.
    pub current_greenlet: u16,
    /// 1 when only the top frame of a suspended greenlet can be believed
    /// (greenlet 3.0.0 to 3.0.2 on CPython 3.12), else 0.
    pub top_frame_only: u16,
}

/// Both, as the kernel part gets them.
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Layout {
    /// CPython's.
    pub python: PythonLayout,
    /// greenlet's.
    pub greenlet: GreenletLayout,
}

/// What the kernel part needs to know of the kernel, by its own type information;
/// offsets in bytes.
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct KernelLayout {
    /// `task_struct.se.sum_exec_runtime`, 0 where it is not known.
    pub task_runtime: u32,
    /// `task_struct.se.exec_start`, 0 where it is not known.
    pub task_exec_start: u32,
    /// `task_struct.sched_info.run_delay`, 0 where that or one of the following four is not known
    /// (`CONFIG_SCHED_INFO`, `CONFIG_FAIR_GROUP_SCHED`).
    pub task_delay: u32,
    /// `task_struct.sched_info.last_queued`.
    pub task_queued: u32,
    /// `task_struct.se.cfs_rq`.
    pub task_queue: u32,
    /// `cfs_rq.rq`.
    pub queue_cpu: u32,
    /// `rq.clock`.
    pub cpu_clock: u32,
    /// `task_struct.thread.fsbase`, 0 where it is not known.
    pub task_tls: u32,
    /// `task_struct.mm`, 0 where it is not known.
    pub task_memory: u32,
    /// `task_struct.thread_pid`, 0 where that or one of the following is not known.
    pub task_pid: u32,
    /// `struct pid.level`.
    pub pid_level: u32,
    /// `struct pid.numbers`.
    pub pid_numbers: u32,
    /// The size of `struct upid`.
    pub upid_bytes: u32,
    /// `struct upid.nr`.
    pub upid_number: u32,
    /// `struct upid.ns`.
    pub upid_namespace: u32,
    /// `struct pid_namespace.ns.inum`.
    pub namespace_inode: u32,
    /// The inode of greenscope's own pid namespace.
    pub own_namespace: u32,
    /// `linux_binprm.file`, 0 where that or one of the following is not known.
    pub program_file: u32,
    /// `vm_area_struct.vm_file`, 0 where that or the next is not known.
    pub mapping_file: u32,
    /// `file.f_inode`.
    pub file_inode: u32,
    /// `inode.i_ino`.
    pub inode_number: u32,
    /// `inode.i_sb`.
    pub inode_super: u32,
    /// `super_block.s_dev`.
    pub super_device: u32,
    /// `sock.sk_type` (u16), 0 where that or one of the following is not known.
    pub sock_type: u32,
    /// `sock_common.skc_family` (u16).
    pub sock_family: u32,
    /// `sock.sk_receive_queue.qlen` (u32), 0 where it is not known.
    pub sock_queue: u32,
    /// `tcp_sock.bytes_received` (u64).
    pub tcp_received: u32,
    /// `tcp_sock.rcv_nxt` (u32).
    pub tcp_next: u32,
    /// `tcp_sock.copied_seq` (u32).
    pub tcp_copied: u32,
}
