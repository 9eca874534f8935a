//! The attributes of an instance, wherever its version keeps them.

use profiler_common::{address::Addr, fault::Fault};

use super::{
    dict::{self, Entry},
    field,
    objects::{NONE, ObjectLayout},
};
use crate::memory::Bytes;

/// <https://github.com/python/cpython/blob/v3.13.0/Include/object.h#L649>
const MANAGED_DICT: u64 = 1 << 4;

/// The entries of an instance's `__dict__`; none when it has none.
///
/// 3.11 keeps values behind a pointer of their own, 3.12 behind a tagged one, 3.13 in
/// the object; all three fall back to a dictionary.
/// <https://github.com/python/cpython/blob/v3.12.1/Include/internal/pycore_object.h#L372>
///
/// # Errors
///
/// [`Fault::ReadState`] when something of it cannot be read.
pub fn attributes(memory: &mut impl Bytes, layout: &ObjectLayout, at: Addr) -> Result<Vec<Entry>, Fault> {
    let class = memory.pointer(field(at, layout.object_type))?;
    let flags = memory.word(field(class, layout.type_flags))?;
    if flags & MANAGED_DICT == 0 {
        let offset = memory.word(field(class, layout.type_dictoffset))?;
        // A negative offset counts from the end of an object of variable size.
        return match u32::try_from(offset) {
            Ok(0) | Err(_) => Ok(Vec::new()),
            Ok(offset) => {
                let own = memory.pointer(field(at, offset))?;
                entries_unless_null(memory, layout, own)
            }
        };
    }
    let own = memory.pointer(before(at, layout.managed_dict))?;
    let keys = memory.pointer(field(class, layout.heap_cached_keys))?;
    if layout.managed_values != NONE {
        let values = memory.pointer(before(at, layout.managed_values))?;
        if !values.is_null() && !keys.is_null() {
            return dict::split(memory, layout, keys, values);
        }
        return entries_unless_null(memory, layout, own);
    }
    if layout.inline_values_flag == 0 {
        // The tag is bit 0, and the pointer is one less than the values'.
        if own.0 & 1 == 1 && !keys.is_null() {
            return dict::split(memory, layout, keys, Addr(own.0.wrapping_add(1)));
        }
        return entries_unless_null(memory, layout, own);
    }
    if own.is_null() && flags & u64::from(layout.inline_values_flag) != 0 && !keys.is_null() {
        let size = memory.word(field(class, layout.type_basicsize))?;
        let values = Addr(at.0.wrapping_add(size));
        let mut valid = [0_u8; 1];
        memory.read_bytes(field(values, layout.values_valid), &mut valid)?;
        return match valid {
            [0] => Ok(Vec::new()),
            [_] => dict::split(memory, layout, keys, values),
        };
    }
    entries_unless_null(memory, layout, own)
}

/// The value of one attribute in an instance's `__dict__`.
///
/// # Errors
///
/// As [`attributes`].
pub fn attribute(
    memory: &mut impl Bytes,
    layout: &ObjectLayout,
    at: Addr,
    name: &str,
) -> Result<Option<Addr>, Fault> {
    let entries = attributes(memory, layout, at)?;
    Ok(dict::find(memory, layout, &entries, name))
}

fn entries_unless_null(
    memory: &mut impl Bytes,
    layout: &ObjectLayout,
    own: Addr,
) -> Result<Vec<Entry>, Fault> {
    if own.is_null() { Ok(Vec::new()) } else { dict::entries(memory, layout, own) }
}

const fn before(object: Addr, distance: u32) -> Addr {
    Addr(object.0.wrapping_sub(distance as u64))
}
