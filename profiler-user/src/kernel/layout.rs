//! Where the fields lie of the kernel's structures that the kernel part reads.

use std::{fs, os::unix::fs::MetadataExt as _};

use profiler_common::record::KernelLayout;

use super::btf;

/// The kernel's own type information.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// What the kernel tells of its own structures.
pub(super) fn kernel_layout() -> KernelLayout {
    let Ok(data) = fs::read(VMLINUX) else {
        return KernelLayout::default();
    };
    let Some(types) = btf::Types::parse(&data) else {
        return KernelLayout::default();
    };
    let task_runtime = types.offset("task_struct", &["se", "sum_exec_runtime"]).unwrap_or_default();
    let task_exec_start = types.offset("task_struct", &["se", "exec_start"]).unwrap_or_default();
    let task_memory = types.offset("task_struct", &["mm"]).unwrap_or_default();
    let pids = || {
        Some(KernelLayout {
            task_runtime,
            task_exec_start,
            task_memory,
            task_pid: types.offset("task_struct", &["thread_pid"])?,
            pid_level: types.offset("pid", &["level"])?,
            pid_numbers: types.offset("pid", &["numbers"])?,
            upid_bytes: types.size("upid")?,
            upid_number: types.offset("upid", &["nr"])?,
            upid_namespace: types.offset("upid", &["ns"])?,
            namespace_inode: types.offset("pid_namespace", &["ns", "inum"])?,
            // The kernel's number of it has 32 bits.
            own_namespace: u32::try_from(fs::metadata("/proc/self/ns/pid").ok()?.ino()).ok()?,
        })
    };
    pids().unwrap_or(KernelLayout { task_runtime, task_exec_start, task_memory, ..KernelLayout::default() })
}
