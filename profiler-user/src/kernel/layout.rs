//! Where the fields of the kernel's own structures lie that its part of us reads.

use std::{fs, os::unix::fs::MetadataExt as _};

use profiler_common::layout::KernelLayout;

use super::btf;

/// The kernel's own type information.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// What the kernel tells of its own structures.
pub(super) fn of_this_kernel() -> KernelLayout {
    let Ok(data) = fs::read(VMLINUX) else {
        return KernelLayout::default();
    };
    let Some(types) = btf::Types::parse(&data) else {
        return KernelLayout::default();
    };
    let task_runtime = types.offset("task_struct", &["se", "sum_exec_runtime"]).unwrap_or_default();
    let task_exec_start = types.offset("task_struct", &["se", "exec_start"]).unwrap_or_default();
    let task_memory = types.offset("task_struct", &["mm"]).unwrap_or_default();
    // On other machines than x86-64 the C library's `pthread_self()` lies elsewhere.
    let task_tls = types.offset("task_struct", &["thread", "fsbase"]).unwrap_or_default();
    let sock_queue = types.offset("sock", &["sk_receive_queue", "qlen"]).unwrap_or_default();
    let known = KernelLayout {
        task_runtime,
        task_exec_start,
        task_memory,
        task_tls,
        sock_queue,
        ..KernelLayout::default()
    };
    let queued = || {
        Some(KernelLayout {
            task_delay: types.offset("task_struct", &["sched_info", "run_delay"])?,
            task_queued: types.offset("task_struct", &["sched_info", "last_queued"])?,
            task_queue: types.offset("task_struct", &["se", "cfs_rq"])?,
            queue_cpu: types.offset("cfs_rq", &["rq"])?,
            cpu_clock: types.offset("rq", &["clock"])?,
            ..known
        })
    };
    let known = queued().unwrap_or(known);
    let pids = || {
        Some(KernelLayout {
            task_pid: types.offset("task_struct", &["thread_pid"])?,
            pid_level: types.offset("pid", &["level"])?,
            pid_numbers: types.offset("pid", &["numbers"])?,
            upid_bytes: types.size("upid")?,
            upid_number: types.offset("upid", &["nr"])?,
            upid_namespace: types.offset("upid", &["ns"])?,
            namespace_inode: types.offset("pid_namespace", &["ns", "inum"])?,
            // The kernel's number of it has 32 bits.
            own_namespace: u32::try_from(fs::metadata("/proc/self/ns/pid").ok()?.ino()).ok()?,
            ..known
        })
    };
    let known = pids().unwrap_or(known);
    let mapping = || {
        Some(KernelLayout {
            mapping_file: types.offset("vm_area_struct", &["vm_file"])?,
            file_inode: types.offset("file", &["f_inode"])?,
            ..known
        })
    };
    let known = mapping().unwrap_or(known);
    let program = || {
        Some(KernelLayout {
            program_file: types.offset("linux_binprm", &["file"])?,
            file_inode: types.offset("file", &["f_inode"])?,
            inode_number: types.offset("inode", &["i_ino"])?,
            inode_super: types.offset("inode", &["i_sb"])?,
            super_device: types.offset("super_block", &["s_dev"])?,
            ..known
        })
    };
    let known = program().unwrap_or(known);
    let sockets = || {
        Some(KernelLayout {
            sock_type: types.offset("sock", &["sk_type"])?,
            sock_family: types.offset("sock_common", &["skc_family"]).or_else(|| {
                // The first of a socket's parts is that.
                types.offset("sock", &["__sk_common", "skc_family"])
            })?,
            tcp_received: types.offset("tcp_sock", &["bytes_received"])?,
            tcp_next: types.offset("tcp_sock", &["rcv_nxt"])?,
            tcp_copied: types.offset("tcp_sock", &["copied_seq"])?,
            ..known
        })
    };
    sockets().unwrap_or(known)
}
