//! Maps whose keys and values are the contract's plain data.
//!
//! aya asks for its own marker trait on keys and values, which the contract's crate
//! must not know; so the maps are used as bytes here and cast by bytemuck.

use std::marker::PhantomData;

use aya::maps::{Array, HashMap, MapData, MapError};
use bytemuck::Pod;

use super::KernelError;

/// A hash map of the kernel part.
pub(super) struct Table<K, V, const KN: usize, const VN: usize> {
    name: &'static str,
    map: HashMap<MapData, [u8; KN], [u8; VN]>,
    types: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod, const KN: usize, const VN: usize> Table<K, V, KN, VN> {
    const SIZES: () = assert!(size_of::<K>() == KN && size_of::<V>() == VN);

    pub(super) fn take(ebpf: &mut aya::Ebpf, name: &'static str) -> Result<Self, KernelError> {
        let () = Self::SIZES;
        let map = ebpf.take_map(name).ok_or(KernelError::Missing(name))?;
        let map = HashMap::try_from(map).map_err(|source| KernelError::Map { map: name, source })?;
        Ok(Self { name, map, types: PhantomData })
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

    /// Every entry. An entry that comes or goes meanwhile may be missing.
    pub(super) fn entries(&self) -> Result<Vec<(K, V)>, KernelError> {
        self.map
            .iter()
            .map(|entry| {
                let (key, value) = entry.map_err(|source| KernelError::Map { map: self.name, source })?;
                Ok((bytemuck::pod_read_unaligned(&key), bytemuck::pod_read_unaligned(&value)))
            })
            .collect()
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
