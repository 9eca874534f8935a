//! Eight hexadecimal characters as a number, without a loop.

/// The number that eight hexadecimal characters say, the first in the lowest byte;
/// `u64::MAX` if one is none (capital ones are not made by the agent).
#[inline(always)]
#[must_use]
pub const fn hex(word: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    // Bit 6 tells a letter from a digit.
    let letter = word >> 6 & EACH;
    let nibble = (word & (0x0f * EACH)).wrapping_add(letter * 9);
    // Made anew, each character must come out the same.
    let large = nibble.wrapping_add(6 * EACH) >> 4 & EACH;
    let again = nibble.wrapping_add(0x30 * EACH).wrapping_add(large * 0x27);
    if again != word || nibble & (0xf0 * EACH) != 0 {
        return u64::MAX;
    }
    let swapped = nibble.swap_bytes();
    let pairs = (swapped | swapped >> 4) & 0x00ff_00ff_00ff_00ff;
    let quads = (pairs | pairs >> 8) & 0x0000_ffff_0000_ffff;
    (quads | quads >> 16) & 0xffff_ffff
}

#[cfg(test)]
mod tests {
    extern crate std;

    use proptest::prelude::*;
    use std::format;

    use super::*;

    proptest! {
        #[test]
        fn hexadecimal_is_read_as_it_is_written(number in any::<u32>()) {
            let text = format!("{number:08x}");
            let word = u64::from_le_bytes(text.as_bytes().try_into().unwrap());
            prop_assert_eq!(hex(word), u64::from(number));
        }

        #[test]
        fn all_else_is_none(bytes in any::<[u8; 8]>()) {
            let good = bytes.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            prop_assert_eq!(hex(u64::from_le_bytes(bytes)) != u64::MAX, good);
        }

        #[test]
        fn one_wrong_character_is_enough(number in any::<u32>(), at in 0_usize..8, byte in any::<u8>()) {
            let text = format!("{number:08x}");
            let mut bytes: [u8; 8] = text.as_bytes().try_into().unwrap();
            bytes[at] = byte;
            let good = matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            prop_assert_eq!(hex(u64::from_le_bytes(bytes)) != u64::MAX, good);
        }
    }
}
