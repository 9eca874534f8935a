//! Many entries of a hash map by one system call, for which aya has no function.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr,
};

/// What `bpf(2)` takes for this command.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h> (`BPF_MAP_*_BATCH`)
#[repr(C)]
struct Attributes {
    in_batch: *const u32,
    out_batch: *mut u32,
    keys: *mut u8,
    values: *mut u8,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Its number.
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// Where in a hash map a look goes on: a bucket's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(u32);

/// Some entries of a hash map.
#[derive(Debug)]
pub struct Part<K, V> {
    /// The entries.
    pub entries: Vec<(K, V)>,
    /// Where it goes on; none at the end.
    pub next: Option<Place>,
}

/// The same as bytes.
#[derive(Debug)]
pub(super) struct Batch<const KN: usize, const VN: usize> {
    pub(super) keys: Vec<[u8; KN]>,
    pub(super) values: Vec<[u8; VN]>,
    /// None at the end.
    pub(super) next: Option<Place>,
}

/// At most `most` entries of a hash map from `place` on, or from its beginning.
///
/// A look goes by buckets and takes each as a whole. So it meets no entry twice, whatever
/// comes and goes meanwhile; the kernel's way from key to key begins anew when the key that
/// it had come to is removed.
/// <https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/hashtab.c>
/// (`__htab_map_lookup_and_delete_batch`, `htab_map_get_next_key`)
///
/// # Errors
///
/// `ENOSPC` when a bucket has more than `most` entries.
///
/// # Kernel
///
/// 5.6.
pub(super) fn look<const KN: usize, const VN: usize>(
    map: BorrowedFd<'_>,
    place: Option<Place>,
    most: u32,
) -> io::Result<Batch<KN, VN>> {
    let length = most as usize;
    let (mut keys, mut values) = (vec![[0; KN]; length], vec![[0; VN]; length]);
    let from = place.map(|Place(bucket)| bucket);
    let mut next = 0_u32;
    let mut attributes = Attributes {
        in_batch: from.as_ref().map_or(ptr::null(), ptr::from_ref),
        out_batch: &raw mut next,
        keys: keys.as_mut_ptr().cast(),
        values: values.as_mut_ptr().cast(),
        count: most,
        map_fd: u32::try_from(map.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?,
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the attributes are as the kernel has them; the pointers are to memory that
    // lives until it returns, with room for `count` keys and values of the map's sizes.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_BATCH,
            &raw mut attributes,
            size_of::<Attributes>() as libc::c_ulong,
        )
    };
    let mut next = Some(Place(next));
    if done != 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::NotFound {
            return Err(error);
        }
        // There are no buckets behind these.
        next = None;
    }
    let count = attributes.count as usize;
    keys.truncate(count);
    values.truncate(count);
    Ok(Batch { keys, values, next })
}
