//! The steps of a chain: an object's head, an instance's attributes, a number, a text.

use super::{
    ATTRIBUTES, Blank, Label, LabelConfig, LabelLayout, NO_ATTRIBUTE, Place, SHAPES, TEXT_WORDS, Text,
    VALUE_WORDS,
};
use crate::{address::Addr, layout::ABSENT, memory::Memory};

/// Words of any other object.
const HEAD_WORDS: usize = 12;
/// Bits of a digit of an `int`.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/cpython/longintrepr.h#L28>
const DIGIT_BITS: u32 = 30;
/// Bytes before an instance that are looked at: two of the collector's words, and two with
/// pointers.
/// <https://github.com/python/cpython/blob/v3.11.7/Include/internal/pycore_object.h#L253>
const BEFORE: u64 = 32;

/// Room for the words of a chain, and what it found on the way.
///
/// In the kernel it is no part of the stack, which holds 512 bytes for a whole chain of
/// calls.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct Chain {
    /// Of an instance's values, or of another object.
    pub(super) values: [u64; VALUE_WORDS + 8],
    pub(super) words: [u64; HEAD_WORDS],
    /// Where the values begin in `values`.
    pub(super) first: u64,
    /// Which of the shapes the instance has.
    pub(super) shape: u64,
    /// The span.
    pub(super) span: Addr,
    /// Its name or operation, still to be read.
    pub(super) operation: Addr,
    /// Of SkyWalking's, its context, and that one's segment; of OpenTelemetry's, its parent.
    pub(super) context: Addr,
    pub(super) segment: Addr,
    /// The label.
    pub label: Label,
}

impl Chain {
    #[inline(always)]
    pub(super) fn word(&self, offset: u16) -> u64 {
        self.words.get(offset as usize >> 3 & 7).copied().unwrap_or_default()
    }

    #[inline(always)]
    pub(super) fn half(&self, offset: u16) -> u32 {
        (self.word(offset) >> ((offset & 4) * 8)) as u32
    }

    /// Reads the first eight words of an object, which must be of `class`.
    #[inline(always)]
    pub(super) fn head<M: Memory>(
        &mut self,
        memory: &mut M,
        at: Addr,
        class: Addr,
        layout: &LabelLayout,
    ) -> Result<(), Blank> {
        let Some(words) = self.words.first_chunk_mut::<6>() else {
            return Err(Blank::Unreadable);
        };
        memory.read(at, words).map_err(|_| Blank::Unreadable)?;
        if self.word(layout.object_type) == class.0 { Ok(()) } else { Err(Blank::Unreadable) }
    }

    /// Reads the values of an instance, whose class must be one of the place's.
    #[inline(always)]
    pub(super) fn instance<M: Memory>(
        &mut self,
        memory: &mut M,
        at: Addr,
        place: &Place,
        layout: &LabelLayout,
    ) -> Result<(), Blank> {
        let inline = layout.values_valid != ABSENT;
        if inline {
            self.fill(memory, at, place.words)?;
            self.find_shape(self.value_word(layout.object_type), place)?;
            let valid = place.inline_values.wrapping_add(layout.values_valid);
            if self.value_word(valid) >> ((valid & 7) * 8) & 0xff == 0 {
                return Err(Blank::OwnDictionary);
            }
            self.first = u64::from(place.inline_values.wrapping_add(layout.values_items)) >> 3;
            return Ok(());
        }
        // What lies before the object, and its head.
        let Some(words) = self.words.first_chunk_mut::<6>() else {
            return Err(Blank::Unreadable);
        };
        memory.read(Addr(at.0.wrapping_sub(BEFORE)), words).map_err(|_| Blank::Unreadable)?;
        self.find_shape(self.word(layout.object_type.wrapping_add(BEFORE as u16)), place)?;
        let own = self.word((BEFORE as u16).wrapping_sub(layout.managed_dict));
        let mut values = if layout.managed_values != 0 {
            self.word((BEFORE as u16).wrapping_sub(layout.managed_values))
        } else if own & 1 == 1 {
            // The tag is bit 0, and the pointer is one less than the values'.
            own.wrapping_add(1)
        } else {
            0
        };
        if values == 0 {
            if own == 0 {
                return Err(Blank::Unreadable);
            }
            // A dictionary over the same values, or one of its own.
            values = memory.word(Addr(own).at(layout.dict_values)).map_err(|_| Blank::Unreadable)?;
            if values == 0 {
                return Err(Blank::OwnDictionary);
            }
        }
        self.fill(memory, Addr(values).at(layout.values_items), place.words)?;
        self.first = 0;
        Ok(())
    }

    #[inline(always)]
    pub(super) fn fill<M: Memory>(&mut self, memory: &mut M, at: Addr, words: u16) -> Result<(), Blank> {
        let Some(values) = self.values.first_chunk_mut::<VALUE_WORDS>() else {
            return Err(Blank::Unreadable);
        };
        // Not beyond the object.
        memory.read_part(at, values, u32::from(words) * 8).map_err(|_| Blank::Unreadable)
    }

    #[inline(always)]
    pub(super) fn value_word(&self, offset: u16) -> u64 {
        self.values.get(offset as usize >> 3 & 7).copied().unwrap_or_default()
    }

    #[inline(always)]
    pub(super) fn find_shape(&mut self, class: u64, place: &Place) -> Result<(), Blank> {
        self.shape = SHAPES as u64;
        for (number, shape) in place.shapes.iter().enumerate() {
            if class != 0 && shape.class.0 == class {
                self.shape = number as u64;
            }
        }
        let Some(shape) = place.shapes.get(self.shape as usize) else {
            return Err(Blank::Unreported);
        };
        let [first, ..] = shape.at;
        if first == NO_ATTRIBUTE { Err(Blank::Unready) } else { Ok(()) }
    }

    /// The attribute with that number of the instance that was read; null if it has none.
    #[inline(always)]
    pub(super) fn attribute(&self, place: &Place, number: usize) -> Addr {
        let Some(shape) = place.shapes.get(self.shape as usize & (SHAPES - 1)) else {
            return Addr::NULL;
        };
        let at = shape.at.get(number & (ATTRIBUTES - 1)).copied().unwrap_or(NO_ATTRIBUTE);
        if at == NO_ATTRIBUTE {
            return Addr::NULL;
        }
        let index = (self.first as usize).wrapping_add(at as usize) & 31;
        Addr(self.values.get(index).copied().unwrap_or_default())
    }
}

/// The lowest 128 bits of an `int`, the lower half first.
#[inline(always)]
pub(super) fn int<M: Memory>(
    config: &LabelConfig,
    memory: &mut M,
    at: Addr,
    chain: &mut Chain,
) -> Result<[u64; 2], Blank> {
    let layout = &config.layout;
    let Some(words) = chain.words.first_chunk_mut::<6>() else {
        return Err(Blank::Unreadable);
    };
    // Five digits of 30 bits, for 128.
    memory.read(at, words).map_err(|_| Blank::Unreadable)?;
    let digits = chain.word(layout.int_tag) >> (layout.int_tag_shift & 7);
    if digits > 5 {
        return Err(Blank::Unreadable);
    }
    let mut value = [0_u64; 2];
    for number in 0..5_u16 {
        if u64::from(number) >= digits {
            break;
        }
        let digit = u64::from(chain.half(layout.int_digits.wrapping_add(number * 4)));
        let shift = u32::from(number) * DIGIT_BITS;
        let [low, high] = &mut value;
        if shift < 64 {
            *low |= digit << shift;
            if shift > 64 - DIGIT_BITS {
                *high |= digit >> (64 - shift);
            }
        } else {
            *high |= digit << (shift - 64);
        }
    }
    Ok(value)
}

/// Copies a `str`.
#[inline(always)]
pub(super) fn text<M: Memory>(
    config: &LabelConfig,
    memory: &mut M,
    at: Addr,
    chain: &mut Chain,
    text: &mut Text,
) {
    let layout = &config.layout;
    text.width = 0;
    if at.is_null() || chain.head(memory, at, config.str_class, layout).is_err() {
        return;
    }
    let state = chain.half(layout.str_state);
    let width = state >> (layout.str_kind_bit & 31) & 7;
    if state >> (layout.str_compact_bit & 31) & 1 == 0 {
        return;
    }
    let ascii = state >> (layout.str_ascii_bit & 31) & 1 == 1;
    let data = at.at(if ascii { layout.str_ascii_data } else { layout.str_compact_data });
    let length = chain.word(layout.str_length);
    let most = (TEXT_WORDS * 8) as u64;
    let kept = if length > most { most } else { length };
    let bytes = match width {
        1 => kept,
        2 => kept << 1,
        4 => kept << 2,
        _ => return,
    };
    let bytes = if bytes > most { most } else { bytes };
    if memory.read_part(data, &mut text.words, bytes as u32).is_ok() {
        text.length = if length > u64::from(u32::MAX) { u32::MAX } else { length as u32 };
        text.width = width;
    }
}
