//! Strings of all kinds, bytes objects, and C strings.

use profiler_common::{address::Addr, fault::Fault};

use super::{field, objects::ObjectLayout};
use crate::memory::Bytes;

/// Characters read of a string; a longer one is cut.
pub const MAX_CHARS: u64 = 4_096;
/// Bytes read of a bytes object; a longer one is a fault.
pub const MAX_BYTES: u64 = 1 << 20;
/// Bytes read of a C string; a longer one is cut.
const MAX_C_STRING: usize = 512;
/// Bytes read at once of a C string, never across a page.
const C_STRING_STEP: u64 = 64;

/// The text of a `str`.
///
/// <https://github.com/python/cpython/blob/v3.13.0/Include/cpython/unicodeobject.h>
///
/// # Errors
///
/// [`Fault::ReadState`] when it cannot be read, or is no string.
pub fn string(memory: &mut impl Bytes, layout: &ObjectLayout, at: Addr) -> Result<String, Fault> {
    let mut state = [0_u8; 4];
    memory.read_bytes(field(at, layout.str_state), &mut state)?;
    let state = u32::from_le_bytes(state);
    let length = memory.word(field(at, layout.str_length))?;
    let bit = |bit: u32| state.checked_shr(bit).is_some_and(|state| state & 1 == 1);
    let mask = 1_u32.checked_shl(layout.str_kind_bits).map_or(0, |bits| bits - 1);
    let width = state.checked_shr(layout.str_kind_bit).unwrap_or(0) & mask;
    if !matches!(width, 1 | 2 | 4) || length > i64::MAX as u64 {
        return Err(Fault::ReadState);
    }
    let ascii = bit(layout.str_ascii_bit);
    let data = if !bit(layout.str_compact_bit) {
        memory.pointer(field(at, layout.str_data_pointer))?
    } else if ascii {
        field(at, layout.str_ascii_data)
    } else {
        field(at, layout.str_compact_data)
    };
    let mut bytes = vec![0; (length.min(MAX_CHARS) * u64::from(width)) as usize];
    memory.read_bytes(data, &mut bytes)?;
    decode(&bytes, width, ascii).ok_or(Fault::ReadState)
}

/// Code points of `width` bytes as text; lone surrogates become U+FFFD.
pub(crate) fn decode(bytes: &[u8], width: u32, ascii: bool) -> Option<String> {
    let shown = |point: u32| char::from_u32(point).unwrap_or(char::REPLACEMENT_CHARACTER);
    match width {
        1 if ascii && !bytes.is_ascii() => None,
        1 => Some(bytes.iter().map(|byte| char::from(*byte)).collect()),
        2 => Some(bytes.as_chunks::<2>().0.iter().map(|b| shown(u16::from_le_bytes(*b).into())).collect()),
        _ => Some(bytes.as_chunks::<4>().0.iter().map(|b| shown(u32::from_le_bytes(*b))).collect()),
    }
}

/// The content of a `bytes`.
///
/// # Errors
///
/// [`Fault::ReadState`] when it cannot be read, or is longer than [`MAX_BYTES`].
pub fn bytes(memory: &mut impl Bytes, layout: &ObjectLayout, at: Addr) -> Result<Vec<u8>, Fault> {
    let length = memory.word(field(at, layout.object_size))?;
    if length > MAX_BYTES {
        return Err(Fault::ReadState);
    }
    let mut bytes = vec![0; length as usize];
    memory.read_bytes(field(at, layout.bytes_data), &mut bytes)?;
    Ok(bytes)
}

/// The text of a NUL-terminated C string.
///
/// # Errors
///
/// [`Fault::ReadState`] when it cannot be read up to its end.
pub fn c_string(memory: &mut impl Bytes, at: Addr) -> Result<String, Fault> {
    let mut text = Vec::new();
    let mut here = at;
    while text.len() < MAX_C_STRING {
        let step = C_STRING_STEP - here.0 % C_STRING_STEP;
        let mut piece = vec![0; step as usize];
        memory.read_bytes(here, &mut piece)?;
        if let Some(end) = piece.iter().position(|byte| *byte == 0) {
            text.extend(piece.iter().take(end));
            break;
        }
        text.append(&mut piece);
        here = Addr(here.0.checked_add(step).ok_or(Fault::ReadState)?);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{memory::Recorded, target::layouts_generated::PYTHON};

    const AT: Addr = Addr(0x10_0000);

    /// A string as CPython lays it out, compact or with its text elsewhere.
    fn lay(text: &str, layout: &ObjectLayout, compact: bool) -> Recorded {
        let widest = text.chars().map(u32::from).max().unwrap_or(0);
        let width = match widest {
            0..=0xff => 1_u32,
            0x100..=0xffff => 2,
            _ => 4,
        };
        let ascii = text.is_ascii();
        let mut data = Vec::new();
        for point in text.chars().map(u32::from) {
            data.extend_from_slice(&point.to_le_bytes()[..width as usize]);
        }
        let state = width << layout.str_kind_bit
            | u32::from(compact) << layout.str_compact_bit
            | u32::from(ascii) << layout.str_ascii_bit
            | 3; // interned
        let mut memory = Recorded::default();
        let count = text.chars().count() as u64;
        memory.add(field(AT, layout.str_length), &count.to_le_bytes());
        memory.add(field(AT, layout.str_state), &state.to_le_bytes());
        if !compact {
            memory.add(field(AT, layout.str_data_pointer), &0x20_0000_u64.to_le_bytes());
            memory.add(Addr(0x20_0000), &data);
        } else if ascii {
            memory.add(field(AT, layout.str_ascii_data), &data);
        } else {
            memory.add(field(AT, layout.str_compact_data), &data);
        }
        memory
    }

    proptest! {
        #[test]
        fn strings_of_every_kind_are_read(
            text in prop_oneof!["[ -~]{1,40}", "[a-zÀ-ÿ]{1,40}", "[a-zЀ-џ]{1,40}", "\\PC{1,20}"],
            compact in any::<bool>(),
        ) {
            for row in PYTHON {
                let mut memory = lay(&text, &row.objects, compact);
                prop_assert_eq!(string(&mut memory, &row.objects, AT), Ok(text.clone()));
            }
        }

        #[test]
        fn foreign_bytes_do_no_harm(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            for row in PYTHON {
                let mut memory = Recorded::default();
                memory.add(AT, &noise);
                drop(string(&mut memory, &row.objects, AT));
                drop(bytes(&mut memory, &row.objects, AT));
                drop(c_string(&mut memory, AT));
            }
        }
    }

    #[test]
    fn long_strings_are_cut_and_impossible_ones_refused() {
        let layout = &PYTHON[0].objects;
        let text = "x".repeat(10_000);
        let read = string(&mut lay(&text, layout, true), layout, AT).unwrap();
        assert_eq!(read.len() as u64, MAX_CHARS);
        let mut memory = Recorded::default();
        memory.add(field(AT, layout.str_state), &0_u32.to_le_bytes());
        memory.add(field(AT, layout.str_length), &5_u64.to_le_bytes());
        assert_eq!(string(&mut memory, layout, AT), Err(Fault::ReadState));
    }

    #[test]
    fn c_strings_end_at_their_nul() {
        let mut memory = Recorded::default();
        memory.add(Addr(0x1030), &[b'a'; 16]);
        memory.add(Addr(0x1040), &[b'b'; 63]);
        memory.add(Addr(0x107f), &[0]);
        let expect = format!("{}{}", "a".repeat(16), "b".repeat(63));
        assert_eq!(c_string(&mut memory, Addr(0x1030)), Ok(expect));
    }
}
