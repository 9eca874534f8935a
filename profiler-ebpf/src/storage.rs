//! Maps that aya has no types for: what is kept with a task, or with a socket.

use core::{
    ffi::c_void,
    ptr::{self, NonNull},
};

use aya_ebpf::{
    bindings::{
        BPF_F_NO_PREALLOC,
        bpf_map_type::{BPF_MAP_TYPE_SK_STORAGE, BPF_MAP_TYPE_TASK_STORAGE},
        task_struct,
    },
    helpers::generated::{bpf_sk_storage_get, bpf_task_storage_get},
};

use crate::maps;

/// What the kernel keeps with something of its own: the kind of map says with what.
#[repr(C)]
pub struct Storage<T, const KIND: usize> {
    r#type: *const [i32; KIND],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the fields only describe the map to the loader; nothing reads them.
unsafe impl<T, const KIND: usize> Sync for Storage<T, KIND> {}

impl<T, const KIND: usize> Storage<T, KIND> {
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }
}

/// Task storage.
///
/// Kernel 5.11; in programs of type kprobe (uprobes) from the same release on:
/// <https://github.com/torvalds/linux/commit/a10787e6d58c24b51e91c19c6d16c5da89fcaa4b>
pub type TaskStorage<T> = Storage<T, { BPF_MAP_TYPE_TASK_STORAGE as usize }>;

impl<T> TaskStorage<T> {
    pub fn get(&'static self, flags: u32) -> Option<NonNull<T>> {
        self.get_of(maps::current_task(), flags)
    }

    #[inline(always)]
    pub fn get_of(&'static self, task: *mut task_struct, flags: u32) -> Option<NonNull<T>> {
        let map = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: `map` is a task storage map by its definition, `task` a
        // task that the kernel gave, and without an initial value the kernel zeroes the new one.
        let value = unsafe { bpf_task_storage_get(map, task, ptr::null_mut(), flags.into()) };
        NonNull::new(value.cast())
    }
}

/// Socket storage: it goes with its socket.
///
/// Kernel 5.2; in tracepoints from 5.11 on:
/// <https://github.com/torvalds/linux/commit/8e4597c627fb48f361e2a5b012202cb1b6cbcd5e>
pub type SocketStorage<T> = Storage<T, { BPF_MAP_TYPE_SK_STORAGE as usize }>;

impl<T> SocketStorage<T> {
    #[inline(always)]
    pub fn get(&'static self, socket: *mut c_void, flags: u32) -> Option<NonNull<T>> {
        let map = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: `map` is a socket storage map by its definition, `socket` one that the
        // kernel gave, and without an initial value the kernel zeroes the new one.
        let value = unsafe { bpf_sk_storage_get(map, socket, ptr::null_mut(), flags.into()) };
        NonNull::new(value.cast())
    }
}
