//! Integers that fit 64 bits.

use profiler_common::{address::Addr, fault::Fault};

use super::{
    field,
    objects::{NONE, ObjectLayout},
};
use crate::memory::Bytes;

/// Bits in a digit.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/cpython/longintrepr.h>
const DIGIT_BITS: u32 = 30;
/// Bits of `lv_tag` below the number of digits.
const TAG_BITS: u32 = 3;
/// Digits that 64 bits may need.
const MAX_DIGITS: u64 = 3;

/// The value of an `int`; `None` when it does not fit.
///
/// # Errors
///
/// [`Fault::ReadState`].
pub fn integer(memory: &mut impl Bytes, layout: &ObjectLayout, at: Addr) -> Result<Option<i64>, Fault> {
    let (count, negative) = if layout.int_tag == NONE {
        let size = memory.word(field(at, layout.object_size))?.cast_signed();
        (size.unsigned_abs(), size < 0)
    } else {
        let tag = memory.word(field(at, layout.int_tag))?;
        // The two lowest bits: 0 positive, 1 zero, 2 negative.
        let count = if tag & 3 == 1 { 0 } else { tag >> TAG_BITS };
        (count, tag & 3 == 2)
    };
    if count > MAX_DIGITS {
        return Ok(None);
    }
    let mut bytes = vec![0; count as usize * 4];
    memory.read_bytes(field(at, layout.int_digits), &mut bytes)?;
    let magnitude = bytes.as_chunks::<4>().0.iter().rev().fold(0_i128, |value, digit| {
        value << DIGIT_BITS | i128::from(u32::from_le_bytes(*digit) & ((1 << DIGIT_BITS) - 1))
    });
    Ok(i64::try_from(if negative { -magnitude } else { magnitude }).ok())
}
