//! The innermost span of a request: a list's last (SkyWalking), a dictionary's (OpenTelemetry).

use super::{
    About, Blank, Chain, LabelConfig, Place, PlaceOf, Source, agent, chain::pointer, hex, otel, state,
};
use crate::{address::Addr, memory::Memory};

/// Entries of a dictionary looked at in one read: those of the smallest one.
/// <https://github.com/python/cpython/blob/v3.13.0/Objects/dictobject.c> (`PyDict_MINSIZE`, `USABLE_FRACTION`)
const ENTRIES: usize = 5;
/// Entries looked at: all that the fifth size of a dictionary has room for.
const MAX_ENTRIES: u64 = 85;
/// Characters of a segment's id.
const ID_CHARS: u64 = 32;
/// Bits of a digit of an `int`.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/cpython/longintrepr.h#L28>
const DIGIT_BITS: u32 = 30;

impl Chain {
    /// <https://github.com/apache/skywalking-python/blob/v1.1.0/skywalking/trace/context.py>
    #[inline(always)]
    pub(super) fn in_spans<M: Memory>(&mut self, config: &LabelConfig, memory: &mut M) -> Result<u32, Blank> {
        let layout = &config.layout;
        self.head(memory, config.list_class, layout)?;
        let size = self.word(layout.object_size);
        if size == 0 {
            return Err(Blank::NoSpan);
        }
        self.parent = Addr(self.word(layout.list_items));
        self.at = Addr(self.parent.0.wrapping_add(size.wrapping_sub(1) << 3));
        Ok(state::LISTED_SPAN)
    }

    #[inline(always)]
    pub(super) fn in_listed_span<M: Memory>(&mut self, memory: &mut M) -> Result<u32, Blank> {
        self.at = pointer(memory, self.at)?;
        Ok(self.instance(PlaceOf::Span))
    }

    /// An instance's values are there: where to go from it.
    #[inline(always)]
    pub(super) fn got(&mut self, config: &LabelConfig) -> Result<u32, Blank> {
        let place = self.place(config)?;
        if config.source != Source::Agent as u32 {
            return self.got_otel_span(config, place);
        }
        let about = self.purpose == state::FOR_ABOUT;
        if self.place == PlaceOf::Span as u32 {
            if !about {
                return self.got_span(config, place);
            }
            self.at = self.attribute(place, agent::OP);
            return Ok(state::ENDPOINT);
        }
        if self.place == PlaceOf::Context as u32 {
            let next = self.attribute(place, if about { agent::PRIMARY_ENDPOINT } else { agent::SEGMENT });
            if !about {
                self.segment = next;
            } else if next.is_null() || next == config.none {
                return Ok(self.first_span(config));
            }
            self.at = next;
            return Ok(self.instance(if about { PlaceOf::Endpoint } else { PlaceOf::Segment }));
        }
        if self.place == PlaceOf::Segment as u32 {
            if about {
                self.traces = self.attribute(place, agent::RELATED_TRACES);
                self.at = self.attribute(place, agent::TIMESTAMP);
                return Ok(state::BEGAN);
            }
            self.at = self.attribute(place, agent::SEGMENT_ID);
            return Ok(self.instance(PlaceOf::Identity));
        }
        if self.place == PlaceOf::Identity as u32 {
            self.at = self.attribute(place, agent::VALUE);
            return Ok(if about { state::TRACE } else { state::ID });
        }
        self.at = self.attribute(place, agent::SPAN);
        Ok(self.instance(PlaceOf::Span))
    }

    /// Before 1.0.0 contexts have no primary endpoint, and the agent goes by the first span.
    /// <https://github.com/apache/skywalking-python/blob/v0.8.0/skywalking/trace/context.py> (`capture`)
    #[inline(always)]
    const fn first_span(&mut self, config: &LabelConfig) -> u32 {
        let [.., Place { shapes: [primary, ..], .. }] = &config.places;
        if !primary.class.is_null() {
            return state::OVER;
        }
        self.at = self.parent;
        state::LISTED_SPAN
    }

    #[inline(always)]
    pub(super) fn got_span(&mut self, config: &LabelConfig, place: &Place) -> Result<u32, Blank> {
        // A finished span stays in the list of a context that was copied.
        if self.attribute(place, agent::DEPTH) == config.zero
            || self.attribute(place, agent::END_TIME) != config.zero
        {
            return Err(Blank::Finished);
        }
        let distance = self.attribute(place, agent::SID).0.wrapping_sub(config.zero.0);
        self.label.span = small_int(distance, config.int_size);
        self.operation = self.attribute(place, agent::OP);
        self.context = self.attribute(place, agent::CONTEXT);
        self.at = self.context;
        Ok(self.instance(PlaceOf::Context))
    }

    /// The 32 hexadecimal characters of a segment's id.
    #[inline(always)]
    pub(super) fn in_id<M: Memory>(&mut self, config: &LabelConfig, memory: &mut M) -> Result<u32, Blank> {
        let layout = &config.layout;
        let Some(words) = self.values.first_chunk_mut::<10>() else {
            return Err(Blank::Unreadable);
        };
        memory.read(self.at, words).map_err(|_| Blank::Unreadable)?;
        let state = (self.value(layout.str_state) >> ((layout.str_state & 4) * 8)) as u32;
        if self.value(layout.object_type) != config.str_class.0
            || self.value(layout.str_length) != ID_CHARS
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
                let packed = hex(self.values.get(at & 15).copied().unwrap_or_default());
                if packed > u64::from(u32::MAX) {
                    return Err(Blank::Unreadable);
                }
                *half = *half << 32 | packed;
            }
        }
        self.label.id = halves;
        self.label.kind = Source::Agent as u32;
        Ok(state::OVER)
    }

    /// A context of OpenTelemetry's, which is a dictionary.
    ///
    /// <https://github.com/open-telemetry/opentelemetry-python/blob/v1.30.0/opentelemetry-api/src/opentelemetry/trace/propagation/__init__.py>
    #[inline(always)]
    pub(super) fn in_dict<M: Memory>(&mut self, config: &LabelConfig, memory: &mut M) -> Result<u32, Blank> {
        self.head(memory, config.dict_class, &config.layout)?;
        self.at = Addr(self.word(config.layout.dict_keys));
        Ok(state::KEYS)
    }

    #[inline(always)]
    pub(super) fn in_keys<M: Memory>(&mut self, config: &LabelConfig, memory: &mut M) -> Result<u32, Blank> {
        let layout = &config.layout;
        let Some(words) = self.words.first_chunk_mut::<4>() else {
            return Err(Blank::Unreadable);
        };
        memory.read(self.at, words).map_err(|_| Blank::Unreadable)?;
        let log2 = self.byte(layout.keys_log2_index_bytes);
        if self.byte(layout.keys_kind) == u64::from(layout.keys_kind_general) || log2 > 16 {
            return Err(Blank::Unreadable);
        }
        self.of = self.word(layout.keys_nentries);
        self.count = 0;
        let entries = self.at.at(layout.keys_indices);
        self.at = Addr(entries.0.wrapping_add(1 << (log2 & 31)));
        Ok(state::ENTRIES)
    }

    /// Some entries of a dictionary with string keys.
    #[inline(always)]
    pub(super) fn in_entries<M: Memory>(
        &mut self,
        config: &LabelConfig,
        memory: &mut M,
    ) -> Result<u32, Blank> {
        if self.count >= self.of {
            return Err(Blank::NoSpan);
        }
        if self.count >= MAX_ENTRIES {
            return Err(Blank::Unreadable);
        }
        let Some(words) = self.values.first_chunk_mut::<{ 2 * ENTRIES }>() else {
            return Err(Blank::Unreadable);
        };
        memory.read(self.at, words).map_err(|_| Blank::Unreadable)?;
        let mut found = 0;
        for number in 0..ENTRIES {
            let key = self.values.get(2 * number).copied().unwrap_or_default();
            if self.count + (number as u64) < self.of && key == config.key.0 {
                found = self.values.get(2 * number + 1).copied().unwrap_or_default();
            }
        }
        if found != 0 {
            self.at = Addr(found);
            return Ok(self.instance(PlaceOf::Span));
        }
        self.count += ENTRIES as u64;
        self.at = self.at.at(16 * ENTRIES as u16);
        Ok(state::ENTRIES)
    }

    #[inline(always)]
    pub(super) fn got_otel_span(&mut self, config: &LabelConfig, place: &Place) -> Result<u32, Blank> {
        if self.attribute(place, otel::END_TIME) != config.none {
            return Err(Blank::Finished);
        }
        self.operation = self.attribute(place, otel::NAME);
        self.parent = self.attribute(place, otel::PARENT);
        self.at = self.attribute(place, otel::CONTEXT);
        Ok(state::SPAN_CONTEXT)
    }

    #[inline(always)]
    pub(super) fn in_span_context<M: Memory>(
        &mut self,
        config: &LabelConfig,
        memory: &mut M,
    ) -> Result<u32, Blank> {
        let layout = &config.layout;
        self.head(memory, config.tuple_class, layout)?;
        self.at = Addr(self.word(layout.tuple_items));
        self.segment = Addr(self.word(layout.tuple_items.wrapping_add(8)));
        Ok(state::TRACE_INT)
    }

    /// The lowest 128 bits of an `int`.
    #[inline(always)]
    pub(super) fn in_int<M: Memory>(
        &mut self,
        config: &LabelConfig,
        memory: &mut M,
        about: &mut About,
    ) -> Result<u32, Blank> {
        let layout = &config.layout;
        // Five digits of 30 bits, for 128.
        self.read_words(memory, self.at)?;
        let digits = self.word(layout.int_tag) >> (layout.int_tag_shift & 7);
        if digits > 5 {
            return Err(Blank::Unreadable);
        }
        let (mut low, mut high) = (0_u64, 0_u64);
        for number in 0..5_u16 {
            if u64::from(number) >= digits {
                break;
            }
            let digit = u64::from(self.half(layout.int_digits.wrapping_add(number * 4)));
            let shift = u32::from(number) * DIGIT_BITS;
            if shift < 64 {
                low |= digit << shift;
                if shift > 64 - DIGIT_BITS {
                    high |= digit >> (64 - shift);
                }
            } else {
                high |= digit << (shift - 64);
            }
        }
        if self.state == state::BEGAN {
            about.began_ms = low;
            self.at = self.traces;
            return Ok(state::TRACES);
        }
        if self.state == state::TRACE_INT {
            self.label.id = [high, low];
            self.at = self.segment;
            return Ok(state::SPAN_INT);
        }
        self.label.span = low;
        if low == 0 || self.label.id == [0; 2] {
            return Err(Blank::Unreported);
        }
        self.label.kind = Source::Otel as u32;
        Ok(state::OVER)
    }
}

/// 1 + the number of a small `int` that lies `distance` bytes behind that of 0; 0 if it is
/// none.
///
/// One step of a loop per number would be dear, and a division is not to be had: sizes are
/// powers of two.
#[inline(always)]
const fn small_int(distance: u64, size: u64) -> u64 {
    // -5 to 256 are one object each up to 3.13.
    // https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_long.h
    if size == 32 && distance & 31 == 0 && distance <= 256 * 32 { (distance >> 5) + 1 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_ints_are_told_by_their_place() {
        assert_eq!((small_int(0, 32), small_int(32 * 7, 32), small_int(256 * 32, 32)), (1, 8, 257));
        assert_eq!((small_int(33, 32), small_int(257 * 32, 32), small_int(32, 28)), (0, 0, 0));
    }
}
