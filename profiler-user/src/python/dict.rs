//! Dictionaries: combined and split, with string keys and any keys.
//!
//! A dictionary of a running process may change between two reads: an answer is what
//! was there piece by piece, and whoever needs more checks what it got.
//! <https://github.com/python/cpython/blob/v3.13.0/Objects/dictobject.c>

use profiler_common::{address::Addr, fault::Fault};

use super::{
    field,
    objects::{NONE, ObjectLayout},
    text,
};
use crate::memory::Bytes;

/// Entries read of one dictionary; a larger one is a fault.
pub const MAX_ENTRIES: u64 = 1 << 16;
/// The index of a dictionary has at most this many bytes, as a power of two.
const MAX_LOG2_INDEX: u8 = 24;

/// A key and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key object.
    pub key: Addr,
    /// The value object.
    pub value: Addr,
}

/// Every entry of a dictionary, in its order.
///
/// # Errors
///
/// [`Fault::ReadState`] when it cannot be read, or is larger than [`MAX_ENTRIES`].
pub fn entries(memory: &mut impl Bytes, layout: &ObjectLayout, at: Addr) -> Result<Vec<Entry>, Fault> {
    let keys = memory.pointer(field(at, layout.dict_keys))?;
    let values = memory.pointer(field(at, layout.dict_values))?;
    if values.is_null() { combined(memory, layout, keys) } else { split(memory, layout, keys, values) }
}

/// The value of a string key.
///
/// # Errors
///
/// As [`entries`].
pub fn get(
    memory: &mut impl Bytes,
    layout: &ObjectLayout,
    at: Addr,
    wanted: &str,
) -> Result<Option<Addr>, Fault> {
    let entries = entries(memory, layout, at)?;
    Ok(find(memory, layout, &entries, wanted))
}

/// The keys of a keys object, in their order: of a class's shared ones, the place of a key is
/// that of its value in every instance.
///
/// # Errors
///
/// As [`entries`].
pub fn keys(memory: &mut impl Bytes, layout: &ObjectLayout, keys: Addr) -> Result<Vec<Addr>, Fault> {
    let entries = Table::read(memory, layout, keys)?.entries(memory)?;
    Ok(entries.into_iter().map(|entry| entry.key).collect())
}

/// The value of a string key among entries.
#[must_use]
pub fn find(memory: &mut impl Bytes, layout: &ObjectLayout, entries: &[Entry], wanted: &str) -> Option<Addr> {
    let length = wanted.chars().count() as u64;
    let found = entries.iter().find(|entry| {
        memory.word(field(entry.key, layout.str_length)) == Ok(length)
            && text::string(memory, layout, entry.key).is_ok_and(|key| key == wanted)
    });
    found.map(|entry| entry.value)
}

/// The entries of split keys with the values of one object.
pub(super) fn split(
    memory: &mut impl Bytes,
    layout: &ObjectLayout,
    keys: Addr,
    values: Addr,
) -> Result<Vec<Entry>, Fault> {
    let table = Table::read(memory, layout, keys)?;
    let mut bytes = vec![0; table.count as usize * 8];
    memory.read_bytes(field(values, layout.values_items), &mut bytes)?;
    let values = bytes.as_chunks::<8>().0.iter().map(|bytes| Addr(u64::from_le_bytes(*bytes)));
    let keys = table.entries(memory)?;
    let paired = keys.into_iter().zip(values).map(|(entry, value)| Entry { value, ..entry });
    Ok(paired.filter(|entry| !entry.key.is_null() && !entry.value.is_null()).collect())
}

fn combined(memory: &mut impl Bytes, layout: &ObjectLayout, keys: Addr) -> Result<Vec<Entry>, Fault> {
    let mut entries = Table::read(memory, layout, keys)?.entries(memory)?;
    entries.retain(|entry| !entry.key.is_null() && !entry.value.is_null());
    Ok(entries)
}

/// Where the entries of a keys object lie.
struct Table {
    start: Addr,
    count: u64,
    size: u32,
    key: u32,
    value: u32,
}

impl Table {
    fn read(memory: &mut impl Bytes, layout: &ObjectLayout, keys: Addr) -> Result<Self, Fault> {
        let mut log2 = [0_u8; 1];
        memory.read_bytes(field(keys, layout.keys_log2_index_bytes), &mut log2)?;
        let mut kind = [0_u8; 1];
        memory.read_bytes(field(keys, layout.keys_kind), &mut kind)?;
        let count = memory.word(field(keys, layout.keys_nentries))?;
        let ([log2], [kind]) = (log2, kind);
        if log2 > MAX_LOG2_INDEX || count > MAX_ENTRIES || layout.keys_kind_general == NONE {
            return Err(Fault::ReadState);
        }
        let start = field(field(keys, layout.keys_indices), 1 << log2);
        let general = u32::from(kind) == layout.keys_kind_general;
        let (size, key, value) = if general {
            (layout.entry_size, layout.entry_key, layout.entry_value)
        } else {
            (layout.unicode_entry_size, layout.unicode_entry_key, layout.unicode_entry_value)
        };
        Ok(Self { start, count, size, key, value })
    }

    fn entries(&self, memory: &mut impl Bytes) -> Result<Vec<Entry>, Fault> {
        let size = self.size.clamp(1, 64) as usize;
        let mut bytes = vec![0; self.count as usize * size];
        memory.read_bytes(self.start, &mut bytes)?;
        let pointer = |entry: &[u8], at: u32| {
            let bytes = entry.get(at as usize..)?.first_chunk::<8>()?;
            Some(Addr(u64::from_le_bytes(*bytes)))
        };
        let entry =
            |bytes: &[u8]| Some(Entry { key: pointer(bytes, self.key)?, value: pointer(bytes, self.value)? });
        bytes.chunks_exact(size).map(|bytes| entry(bytes).ok_or(Fault::ReadState)).collect()
    }
}
