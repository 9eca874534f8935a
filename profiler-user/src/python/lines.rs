//! Line numbers out of a code object's location table (3.11 on).
//!
//! <https://github.com/python/cpython/blob/v3.13.0/Objects/locations.md>

/// Bytes of one code unit: an entry's length counts these.
const CODE_UNIT: u64 = 2;

/// The line of the instruction at `offset` bytes into the code.
///
/// `None` when the table gives the instruction no line, or ends before it. An offset
/// before the first instruction (as a negative number) is that of a frame that has
/// not begun: its line is the function's own, as in CPython.
#[must_use]
pub fn line(first: u32, table: &[u8], offset: u32) -> Option<u32> {
    if offset > i32::MAX as u32 {
        return Some(first);
    }
    let mut line = i64::from(first);
    let mut end = 0_u64;
    let mut input = table.iter().copied();
    while let Some(head) = input.next() {
        if head & 0x80 == 0 {
            return None;
        }
        let mut known = true;
        match (head >> 3) & 15 {
            0..=9 => skip(&mut input, 1)?,
            code @ 10..=12 => {
                line += i64::from(code) - 10;
                skip(&mut input, 2)?;
            }
            13 => line += signed(&mut input)?,
            14 => {
                line += signed(&mut input)?;
                for _ in 0..3 {
                    varint(&mut input)?;
                }
            }
            _ => known = false,
        }
        end += (u64::from(head & 7) + 1) * CODE_UNIT;
        if u64::from(offset) < end {
            return if known { u32::try_from(line).ok() } else { None };
        }
    }
    None
}

fn skip(input: &mut impl Iterator<Item = u8>, count: usize) -> Option<()> {
    for _ in 0..count {
        input.next()?;
    }
    Some(())
}

/// Six bits a byte, the lowest first; bit 6 says that more follow.
fn varint(input: &mut impl Iterator<Item = u8>) -> Option<u32> {
    let mut value = 0_u32;
    for shift in (0..32).step_by(6) {
        let byte = input.next()?;
        value |= u32::from(byte & 0x3f).checked_shl(shift)?;
        if byte & 0x40 == 0 {
            return Some(value);
        }
    }
    None
}

/// The sign is the lowest bit.
fn signed(input: &mut impl Iterator<Item = u8>) -> Option<i64> {
    let value = varint(input)?;
    let magnitude = i64::from(value >> 1);
    Some(if value & 1 == 1 { -magnitude } else { magnitude })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::line;

    /// An entry as CPython's assembler writes it.
    fn entry(table: &mut Vec<u8>, units: u8, delta: Option<i32>, form: u8) {
        let put = |table: &mut Vec<u8>, mut value: u32| {
            while value >= 64 {
                table.push(0x40 | (value & 0x3f) as u8);
                value >>= 6;
            }
            table.push(value as u8);
        };
        let head = |code: u8| 0x80 | code << 3 | (units - 1);
        let zigzag = |delta: i32| delta.unsigned_abs() << 1 | u32::from(delta < 0);
        match (delta, form) {
            (None, _) => table.push(head(15)),
            (Some(0), 0) => table.extend([head(3), 0x12]),
            (Some(delta @ 0..=2), 1) => table.extend([head(10 + delta as u8), 4, 9]),
            (Some(delta), 2) => {
                table.push(head(13));
                put(table, zigzag(delta));
            }
            (Some(delta), _) => {
                table.push(head(14));
                for value in [zigzag(delta), 70, 3, 1000] {
                    put(table, value);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_instruction_gets_its_line(
            first in 1_u32..5000,
            entries in prop::collection::vec(
                (1_u8..=8, prop::option::of(-40_i32..40), 0_u8..4), 0..60)
        ) {
            let mut table = Vec::new();
            let mut expect = Vec::new();
            let mut now = i64::from(first);
            for (units, delta, form) in entries {
                entry(&mut table, units, delta, form);
                now += i64::from(delta.unwrap_or(0));
                let here = delta.and_then(|_| u32::try_from(now).ok());
                expect.extend(std::iter::repeat_n(here, units.into()));
            }
            for (unit, here) in expect.iter().enumerate() {
                prop_assert_eq!(line(first, &table, unit as u32 * 2), *here);
            }
            prop_assert_eq!(line(first, &table, expect.len() as u32 * 2), None);
            prop_assert_eq!(line(first, &table, (-2_i32) as u32), Some(first));
        }

        #[test]
        fn foreign_tables_do_no_harm(
            first in any::<u32>(), table in prop::collection::vec(any::<u8>(), 0..300),
            offset in any::<u32>(),
        ) {
            let _: Option<u32> = line(first, &table, offset);
        }
    }
}
