//! Tuples and lists.

use profiler_common::{address::Addr, fault::Fault};

use super::{field, objects::ObjectLayout};
use crate::memory::Bytes;

/// Items read of one sequence; a longer one is a fault.
pub const MAX_ITEMS: u64 = 1 << 16;

/// The items of a tuple.
///
/// # Errors
///
/// [`Fault::ReadState`] when it cannot be read, or is longer than [`MAX_ITEMS`].
pub fn tuple(memory: &mut impl Bytes, layout: &ObjectLayout, at: Addr) -> Result<Vec<Addr>, Fault> {
    let count = memory.word(field(at, layout.object_size))?;
    items(memory, field(at, layout.tuple_items), count)
}

/// The items of a list.
///
/// # Errors
///
/// As [`tuple`].
pub fn list(memory: &mut impl Bytes, layout: &ObjectLayout, at: Addr) -> Result<Vec<Addr>, Fault> {
    let count = memory.word(field(at, layout.object_size))?;
    let start = memory.pointer(field(at, layout.list_items))?;
    items(memory, start, count)
}

fn items(memory: &mut impl Bytes, start: Addr, count: u64) -> Result<Vec<Addr>, Fault> {
    if count > MAX_ITEMS {
        return Err(Fault::ReadState);
    }
    let mut bytes = vec![0; count as usize * 8];
    memory.read_bytes(start, &mut bytes)?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|item| Addr(u64::from_le_bytes(*item))).collect())
}
