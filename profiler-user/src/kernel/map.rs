//! Maps whose keys and values are the contract's plain data.
//!
//! aya asks for its own marker trait on keys and values, which the contract's crate
//! must not know; so the maps are used as bytes here and cast by bytemuck.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, OwnedFd, RawFd},
};

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use bytemuck::Pod;

use super::{
    KernelError,
    batch::{self, Batch, Part, Place},
};

/// Entries that are asked for at once: some hundred KiB of them, and a short time in which
/// the kernel runs no program of the CPU clock on this CPU.
const AT_ONCE: u32 = 1_024;

/// A hash map of the kernel part.
pub(super) struct Table<K, V, const KN: usize, const VN: usize> {
    name: &'static str,
    fd: OwnedFd,
    map: HashMap<MapData, [u8; KN], [u8; VN]>,
    types: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod, const KN: usize, const VN: usize> Table<K, V, KN, VN> {
    const SIZES: () = assert!(size_of::<K>() == KN && size_of::<V>() == VN);

    pub(super) fn take(ebpf: &mut aya::Ebpf, name: &'static str) -> Result<Self, KernelError> {
        let () = Self::SIZES;
        let map = ebpf.take_map(name).ok_or(KernelError::Missing(name))?;
        let (Map::HashMap(data) | Map::LruHashMap(data)) = &map else {
            return Err(KernelError::Missing(name));
        };
        let fd = data.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|source| KernelError::Look { map: name, source })?;
        let map = HashMap::try_from(map).map_err(|source| KernelError::Map { map: name, source })?;
        Ok(Self { name, fd, map, types: PhantomData })
    }

    /// One entry.
    pub(super) fn get(&self, key: &K) -> Result<Option<V>, KernelError> {
        let mut bytes = [0; KN];
        bytes.copy_from_slice(bytemuck::bytes_of(key));
        match self.map.get(&bytes, 0) {
            Ok(value) => Ok(Some(bytemuck::pod_read_unaligned(&value))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(KernelError::Map { map: self.name, source }),
        }
    }

    /// Makes an entry, unless it is there.
    pub(super) fn insert(&mut self, key: &K, value: &V) -> Result<(), KernelError> {
        let mut key_bytes = [0; KN];
        key_bytes.copy_from_slice(bytemuck::bytes_of(key));
        let mut bytes = [0; VN];
        bytes.copy_from_slice(bytemuck::bytes_of(value));
        match self.map.insert(key_bytes, bytes, BPF_NOEXIST) {
            Ok(()) => Ok(()),
            Err(error) if exists(&error) => Ok(()),
            Err(source) => Err(KernelError::Map { map: self.name, source }),
        }
    }

    /// Removes an entry, if it is there.
    pub(super) fn remove(&mut self, key: &K) -> Result<(), KernelError> {
        let mut bytes = [0; KN];
        bytes.copy_from_slice(bytemuck::bytes_of(key));
        match self.map.remove(&bytes) {
            Err(error) if !is_missing(&error) => Err(KernelError::Map { map: self.name, source: error }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Every entry, each once. One that comes or goes meanwhile may be missing.
    pub(super) fn entries(&self) -> Result<Vec<(K, V)>, KernelError> {
        let Part { mut entries, mut next } = self.part(None)?;
        while next.is_some() {
            let more = self.part(next)?;
            entries.extend(more.entries);
            next = more.next;
        }
        Ok(entries)
    }

    /// Some entries from that place on, or from the beginning.
    pub(super) fn part(&self, place: Option<Place>) -> Result<Part<K, V>, KernelError> {
        let looked = batch::look::<KN, VN>(self.fd.as_fd(), place, AT_ONCE);
        let Batch { keys, values, next } =
            looked.map_err(|source| KernelError::Look { map: self.name, source })?;
        let entry = |(key, value): (&[u8; KN], &[u8; VN])| {
            (bytemuck::pod_read_unaligned(key), bytemuck::pod_read_unaligned(value))
        };
        Ok(Part { entries: keys.iter().zip(&values).map(entry).collect(), next })
    }
}

/// `BPF_NOEXIST`: only make a new entry.
const BPF_NOEXIST: u64 = 1;

fn exists(error: &MapError) -> bool {
    matches!(error, MapError::SyscallError(error) if error.io_error.kind() == io::ErrorKind::AlreadyExists)
}

fn is_missing(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(error) => error.io_error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

/// Task storage, for which aya has no type. To the system calls it is a map whose keys
/// are pidfds.
pub(super) struct Storage<const VN: usize> {
    name: &'static str,
    map: HashMap<MapData, RawFd, [u8; VN]>,
}

impl<const VN: usize> Storage<VN> {
    pub(super) fn take(ebpf: &mut aya::Ebpf, name: &'static str) -> Result<Self, KernelError> {
        let Some(Map::Unsupported(map)) = ebpf.take_map(name) else {
            return Err(KernelError::Missing(name));
        };
        let map =
            HashMap::try_from(Map::HashMap(map)).map_err(|source| KernelError::Map { map: name, source })?;
        Ok(Self { name, map })
    }

    /// Gives a task a value that begins with `begin`, the rest zero; false if it has one.
    pub(super) fn insert(&mut self, task: RawFd, begin: &[u8]) -> Result<bool, KernelError> {
        let mut bytes = [0; VN];
        for (to, from) in bytes.iter_mut().zip(begin) {
            *to = *from;
        }
        match self.map.insert(task, bytes, BPF_NOEXIST) {
            Ok(()) => Ok(true),
            Err(error) if exists(&error) => Ok(false),
            Err(source) => Err(KernelError::Map { map: self.name, source }),
        }
    }

    /// A task's value, if it has one.
    pub(super) fn get(&self, task: RawFd) -> Result<Option<[u8; VN]>, KernelError> {
        match self.map.get(&task, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(KernelError::Map { map: self.name, source }),
        }
    }

    /// Takes a task's value away, if it has one.
    pub(super) fn remove(&mut self, task: RawFd) -> Result<(), KernelError> {
        match self.map.remove(&task) {
            Err(error) if !is_missing(&error) => Err(KernelError::Map { map: self.name, source: error }),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// An array of the kernel part, one element a target.
pub(super) struct Row<V, const VN: usize> {
    name: &'static str,
    map: Array<MapData, [u8; VN]>,
    types: PhantomData<V>,
}

impl<V: Pod, const VN: usize> Row<V, VN> {
    const SIZE: () = assert!(size_of::<V>() == VN);

    pub(super) fn take(ebpf: &mut aya::Ebpf, name: &'static str) -> Result<Self, KernelError> {
        let () = Self::SIZE;
        let map = ebpf.take_map(name).ok_or(KernelError::Missing(name))?;
        let map = Array::try_from(map).map_err(|source| KernelError::Map { map: name, source })?;
        Ok(Self { name, map, types: PhantomData })
    }

    pub(super) fn get(&self, index: u32) -> Result<V, KernelError> {
        let value = self.map.get(&index, 0).map_err(|source| KernelError::Map { map: self.name, source })?;
        Ok(bytemuck::pod_read_unaligned(&value))
    }

    pub(super) fn set(&mut self, index: u32, value: &V) -> Result<(), KernelError> {
        let mut bytes = [0; VN];
        bytes.copy_from_slice(bytemuck::bytes_of(value));
        self.map.set(index, bytes, 0).map_err(|source| KernelError::Map { map: self.name, source })
    }
}
