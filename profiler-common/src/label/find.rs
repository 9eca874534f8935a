//! The label of a context: its variable, and the innermost span of its value.

use super::{Blank, Chain, Label, LabelConfig, Source, agent, chain::int, otel};
use crate::{address::Addr, memory::Memory};

/// Levels of a HAMT: five bits of the 32-bit hash each.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_hamt.h#L20>
const HAMT_LEVELS: u32 = 8;
/// Pairs looked at in a node for keys of one hash.
const COLLISIONS: u32 = 4;
/// Entries of a dictionary looked at in one read: those of the smallest one.
/// <https://github.com/python/cpython/blob/v3.13.0/Objects/dictobject.c> (`PyDict_MINSIZE`, `USABLE_FRACTION`)
const ENTRIES: usize = 5;
/// How often.
const ENTRY_READS: u32 = 3;
/// Characters of a segment's id.
const ID_CHARS: u64 = 32;

/// Reads the label of the context at `context` into `chain.label`.
///
/// # Errors
///
/// Why there is none.
#[inline(always)]
pub fn read<M: Memory>(
    config: &LabelConfig,
    memory: &mut M,
    context: Addr,
    chain: &mut Chain,
) -> Result<(), Blank> {
    chain.label = Label::NONE;
    let value = variable(config, memory, context, chain)?;
    if config.source == Source::Agent as u32 {
        agent_label(config, memory, value, chain)
    } else {
        otel_label(config, memory, value, chain)
    }
}

/// The value of the context variable.
///
/// <https://github.com/python/cpython/blob/v3.13.0/Python/hamt.c> (`hamt_node_find`)
#[inline(always)]
fn variable<M: Memory>(
    config: &LabelConfig,
    memory: &mut M,
    context: Addr,
    chain: &mut Chain,
) -> Result<Addr, Blank> {
    if context.is_null() {
        return Err(Blank::NoContext);
    }
    let layout = &config.layout;
    chain.head(memory, context, config.context_class, layout)?;
    let vars = Addr(chain.word(layout.context_vars));
    let mut node = memory.pointer(vars.at(layout.hamt_root)).map_err(|_| Blank::Unreadable)?;
    let mut hash = config.hash;
    for _ in 0..HAMT_LEVELS {
        let Some(words) = chain.words.first_chunk_mut::<6>() else {
            return Err(Blank::Unreadable);
        };
        memory.read(node, words).map_err(|_| Blank::Unreadable)?;
        let class = chain.word(layout.object_type);
        let place = hash & 31;
        if class == config.bitmap_class.0 {
            let bits = chain.half(layout.bitmap_bits);
            let bit = 1_u32 << place;
            if bits & bit == 0 {
                return Err(Blank::NotSet);
            }
            let before = (bits & (bit - 1)).count_ones() as u16;
            let pair = layout.bitmap_items.wrapping_add(before * 16);
            let (key, value) = if before == 0 {
                (chain.word(pair), chain.word(pair.wrapping_add(8)))
            } else {
                let mut pair_words = [0; 2];
                memory.read(node.at(pair), &mut pair_words).map_err(|_| Blank::Unreadable)?;
                let [key, value] = pair_words;
                (key, value)
            };
            if key == config.variable.0 {
                return Ok(Addr(value));
            }
            if key != 0 {
                return Err(Blank::NotSet);
            }
            node = Addr(value);
        } else if class == config.array_class.0 {
            let child = layout.array_items.wrapping_add(place as u16 * 8);
            node = memory.pointer(node.at(child)).map_err(|_| Blank::Unreadable)?;
            if node.is_null() {
                return Err(Blank::NotSet);
            }
        } else if class == config.collision_class.0 {
            return collided(config, memory, node, chain.word(layout.object_size) >> 1);
        } else {
            return Err(Blank::Unreadable);
        }
        hash >>= 5;
    }
    Err(Blank::Unreadable)
}

/// The value in a node for keys of one hash.
#[inline(always)]
fn collided<M: Memory>(config: &LabelConfig, memory: &mut M, node: Addr, pairs: u64) -> Result<Addr, Blank> {
    let mut at = node.at(config.layout.collision_items);
    for pair in 0..COLLISIONS {
        if u64::from(pair) == pairs {
            return Err(Blank::NotSet);
        }
        let mut words = [0; 2];
        memory.read(at, &mut words).map_err(|_| Blank::Unreadable)?;
        let [key, value] = words;
        if key == config.variable.0 {
            return Ok(Addr(value));
        }
        at = at.at(16);
    }
    Err(Blank::Unreadable)
}

/// The innermost span of a list of SkyWalking's.
///
/// <https://github.com/apache/skywalking-python/blob/v1.1.0/skywalking/trace/context.py>
#[inline(always)]
fn agent_label<M: Memory>(
    config: &LabelConfig,
    memory: &mut M,
    list: Addr,
    chain: &mut Chain,
) -> Result<(), Blank> {
    let layout = &config.layout;
    chain.head(memory, list, config.list_class, layout)?;
    let size = chain.word(layout.object_size);
    if size == 0 {
        return Err(Blank::NoSpan);
    }
    let last = chain.word(layout.list_items).wrapping_add(size.wrapping_sub(1) << 3);
    let span = memory.pointer(Addr(last)).map_err(|_| Blank::Unreadable)?;
    chain.span = span;
    chain.instance(memory, span, &config.span, layout)?;
    // A finished span stays in the list of a context that was copied.
    if chain.attribute(&config.span, agent::DEPTH) == config.zero
        || chain.attribute(&config.span, agent::END_TIME) != config.zero
    {
        return Err(Blank::Finished);
    }
    let number = chain.attribute(&config.span, agent::SID).0.wrapping_sub(config.zero.0);
    chain.label.span = small_int(number, config.int_size);
    chain.operation = chain.attribute(&config.span, agent::OP);
    chain.context = chain.attribute(&config.span, agent::CONTEXT);
    chain.instance(memory, chain.context, &config.context, layout)?;
    chain.segment = chain.attribute(&config.context, agent::SEGMENT);
    chain.instance(memory, chain.segment, &config.segment, layout)?;
    let id = chain.attribute(&config.segment, agent::SEGMENT_ID);
    chain.instance(memory, id, &config.identity, layout)?;
    let text = chain.attribute(&config.identity, agent::VALUE);
    chain.label.id = segment_id(config, memory, text, chain)?;
    chain.label.kind = Source::Agent as u32;
    Ok(())
}

/// 1 + the number of a small `int` that lies `distance` bytes behind that of 0; 0 if it is
/// none. One step of a loop per number would be dear, a division is not to be had: sizes are
/// powers of two.
#[inline(always)]
fn small_int(distance: u64, size: u64) -> u64 {
    // 257 of them: -5 to 256 up to 3.13.
    // https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_long.h
    if size == 32 && distance & 31 == 0 && distance <= 256 * 32 { (distance >> 5) + 1 } else { 0 }
}

/// The 32 hexadecimal characters of a segment's id.
#[inline(always)]
fn segment_id<M: Memory>(
    config: &LabelConfig,
    memory: &mut M,
    text: Addr,
    chain: &mut Chain,
) -> Result<[u64; 2], Blank> {
    let layout = &config.layout;
    let Some(words) = chain.values.first_chunk_mut::<10>() else {
        return Err(Blank::Unreadable);
    };
    memory.read(text, words).map_err(|_| Blank::Unreadable)?;
    let state = (chain.value_word(layout.str_state) >> ((layout.str_state & 4) * 8)) as u32;
    if chain.value_word(layout.object_type) != config.str_class.0
        || chain.value_word(layout.str_length) != ID_CHARS
        || state >> (layout.str_compact_bit & 31) & 1 == 0
        || state >> (layout.str_ascii_bit & 31) & 1 == 0
    {
        return Err(Blank::Unreadable);
    }
    let first = layout.str_ascii_data as usize >> 3 & 7;
    let mut halves = [0_u64; 2];
    for (number, half) in halves.iter_mut().enumerate() {
        for word in 0..2 {
            let at = first + number * 2 + word;
            let packed = hex(chain.values.get(at & 15).copied().unwrap_or_default());
            if packed > u64::from(u32::MAX) {
                return Err(Blank::Unreadable);
            }
            *half = *half << 32 | packed;
        }
    }
    Ok(halves)
}

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

/// The current span of a context of OpenTelemetry's, which is a dictionary.
///
/// <https://github.com/open-telemetry/opentelemetry-python/blob/v1.30.0/opentelemetry-api/src/opentelemetry/trace/propagation/__init__.py>
#[inline(always)]
fn otel_label<M: Memory>(
    config: &LabelConfig,
    memory: &mut M,
    value: Addr,
    chain: &mut Chain,
) -> Result<(), Blank> {
    let layout = &config.layout;
    chain.head(memory, value, config.dict_class, layout)?;
    let keys = Addr(chain.word(layout.dict_keys));
    chain.span = entry(config, memory, keys, chain)?;
    chain.instance(memory, chain.span, &config.span, layout)?;
    if chain.attribute(&config.span, otel::END_TIME) != config.none {
        return Err(Blank::Finished);
    }
    chain.operation = chain.attribute(&config.span, otel::NAME);
    chain.context = chain.attribute(&config.span, otel::PARENT);
    let own = chain.attribute(&config.span, otel::CONTEXT);
    chain.head(memory, own, config.tuple_class, layout)?;
    let trace = Addr(chain.word(layout.tuple_items));
    let span = Addr(chain.word(layout.tuple_items.wrapping_add(8)));
    let [low, high] = int(config, memory, trace, chain)?;
    chain.label.id = [high, low];
    let [low, _] = int(config, memory, span, chain)?;
    chain.label.span = low;
    if low == 0 || chain.label.id == [0; 2] {
        return Err(Blank::Unreported);
    }
    chain.label.kind = Source::Otel as u32;
    Ok(())
}

/// The value of the span's key in a dictionary with string keys.
#[inline(always)]
fn entry<M: Memory>(
    config: &LabelConfig,
    memory: &mut M,
    keys: Addr,
    chain: &mut Chain,
) -> Result<Addr, Blank> {
    let layout = &config.layout;
    let Some(words) = chain.words.first_chunk_mut::<4>() else {
        return Err(Blank::Unreadable);
    };
    memory.read(keys, words).map_err(|_| Blank::Unreadable)?;
    let byte = |chain: &Chain, offset: u16| chain.word(offset) >> ((offset & 7) * 8) & 0xff;
    let log2 = byte(chain, layout.keys_log2_index_bytes);
    if byte(chain, layout.keys_kind) == u64::from(layout.keys_kind_general) || log2 > 16 {
        return Err(Blank::Unreadable);
    }
    let mut left = chain.word(layout.keys_nentries);
    let mut at = keys.at(layout.keys_indices);
    at.0 = at.0.wrapping_add(1 << (log2 & 31));
    for _ in 0..ENTRY_READS {
        let Some(words) = chain.values.first_chunk_mut::<{ 2 * ENTRIES }>() else {
            return Err(Blank::Unreadable);
        };
        memory.read(at, words).map_err(|_| Blank::Unreadable)?;
        let mut found = Addr::NULL;
        for number in 0..ENTRIES {
            let key = chain.values.get(2 * number).copied().unwrap_or_default();
            if (number as u64) < left && key == config.key.0 {
                found = Addr(chain.values.get(2 * number + 1).copied().unwrap_or_default());
            }
        }
        if !found.is_null() {
            return Ok(found);
        }
        if left <= ENTRIES as u64 {
            return Err(Blank::NoSpan);
        }
        left -= ENTRIES as u64;
        at.0 = at.0.wrapping_add(16 * ENTRIES as u64);
    }
    Err(Blank::Unreadable)
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

    #[test]
    fn small_ints_are_told_by_their_place() {
        assert_eq!((small_int(0, 32), small_int(32 * 7, 32), small_int(256 * 32, 32)), (1, 8, 257));
        assert_eq!((small_int(33, 32), small_int(257 * 32, 32), small_int(32, 28)), (0, 0, 0));
    }
}
