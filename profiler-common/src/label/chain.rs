//! The chain from a context to a label, and from a label to what it is called, step by step.
//!
//! A step reads one object, and all that goes from one to the next is kept in the [`Chain`]:
//! the kernel runs the steps inside `bpf_loop`, whose body the verifier looks at once, user
//! space in a plain loop. A first version without steps took half a second to load.

use super::{
    ABOUT_ROOT, ATTRIBUTES, About, Blank, Label, LabelConfig, LabelLayout, NO_ATTRIBUTE, Place, PlaceOf,
    SHAPES, Source, TEXT_WORDS, Text, VALUE_WORDS, agent, hex, otel,
};
use crate::{address::Addr, layout::ABSENT, memory::Memory};

/// Words of any object but an instance.
const HEAD_WORDS: usize = 12;
/// Levels of a HAMT: five bits of the 32-bit hash each.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_hamt.h#L20>
const HAMT_LEVELS: u32 = 8;
/// Pairs looked at in a node for keys of one hash.
const COLLISIONS: u64 = 8;
/// Entries of a dictionary looked at in one read: those of the smallest one.
/// <https://github.com/python/cpython/blob/v3.13.0/Objects/dictobject.c> (`PyDict_MINSIZE`, `USABLE_FRACTION`)
const ENTRIES: usize = 5;
/// Entries looked at.
const MAX_ENTRIES: u64 = 15;
/// Characters of a segment's id.
const ID_CHARS: u64 = 32;
/// Bits of a digit of an `int`.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/cpython/longintrepr.h#L28>
const DIGIT_BITS: u32 = 30;
/// Bytes before an instance that are looked at: two of the collector's words, and two with
/// pointers.
/// <https://github.com/python/cpython/blob/v3.11.7/Include/internal/pycore_object.h#L253>
const BEFORE: u16 = 32;

/// Steps of the longest chain: nine levels of a HAMT with two steps each, the pairs of a
/// collision, five instances with three, and the rest.
pub const MAX_CHAIN: u32 = 64;

/// What the next step reads.
mod state {
    pub(super) const OVER: u32 = 0;
    pub(super) const CONTEXT: u32 = 1;
    pub(super) const ROOT: u32 = 2;
    pub(super) const NODE: u32 = 3;
    pub(super) const PAIR: u32 = 4;
    pub(super) const CHILD: u32 = 5;
    pub(super) const COLLISION: u32 = 6;
    pub(super) const SPANS: u32 = 7;
    pub(super) const LAST_SPAN: u32 = 8;
    pub(super) const INSTANCE: u32 = 9;
    pub(super) const OWN_DICT: u32 = 10;
    pub(super) const VALUES: u32 = 11;
    pub(super) const ID: u32 = 12;
    pub(super) const DICT: u32 = 13;
    pub(super) const KEYS: u32 = 14;
    pub(super) const ENTRIES: u32 = 15;
    pub(super) const SPAN_CONTEXT: u32 = 16;
    pub(super) const TRACE_INT: u32 = 17;
    pub(super) const SPAN_INT: u32 = 18;
    pub(super) const OPERATION: u32 = 19;
    pub(super) const BEGAN: u32 = 20;
    pub(super) const TRACES: u32 = 21;
    pub(super) const FIRST_TRACE: u32 = 22;
    pub(super) const TRACE: u32 = 23;
    pub(super) const ENDPOINT: u32 = 24;
    pub(super) const PARENT: u32 = 25;
}

/// What is made of an instance.
mod purpose {
    pub(super) const LABEL: u32 = 0;
    pub(super) const ABOUT: u32 = 1;
}

/// A chain in progress, and what it found.
///
/// In the kernel it is no part of the stack, which holds 512 bytes for a whole chain of
/// calls.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct Chain {
    /// Of an instance's values, or of a text.
    values: [u64; VALUE_WORDS + 8],
    /// Of another object.
    words: [u64; HEAD_WORDS],
    /// What the next step reads, and where.
    state: u32,
    /// The place of an instance.
    place: u32,
    /// What it is read for.
    purpose: u32,
    /// Which of the place's classes it is of.
    shape: u32,
    /// Of what it is called: how many parts are read, or can't be.
    part: u32,
    /// The rest of the hash.
    hash: u32,
    /// Levels, pairs or entries so far.
    count: u64,
    /// How many there are.
    of: u64,
    at: Addr,
    /// Where the values begin in `values`.
    first: u64,
    operation: Addr,
    context: Addr,
    segment: Addr,
    parent: Addr,
    traces: Addr,
    /// 1 + the [`Blank`] that is the reason why there is no label, or 0.
    pub blank: u32,
    /// None.
    padding: u32,
    /// The label.
    pub label: Label,
}

impl Chain {
    /// Begins at a context.
    #[inline(always)]
    pub const fn begin(&mut self, context: Addr) {
        self.label = Label::NONE;
        self.blank = 0;
        self.at = context;
        self.purpose = purpose::LABEL;
        self.state = state::CONTEXT;
    }

    /// Begins to say what the label is called that was just found. What can't be read
    /// stays empty.
    #[inline(always)]
    pub const fn begin_about(&mut self, about: &mut About) {
        about.began_ms = 0;
        about.flags = 0;
        about.trace.width = 0;
        about.endpoint.width = 0;
        about.operation.width = 0;
        self.purpose = purpose::ABOUT;
        self.part = 0;
        self.at = self.operation;
        self.state = state::OPERATION;
    }

    /// Reads on; false when it is over.
    #[inline(always)]
    pub fn step<M: Memory>(&mut self, config: &LabelConfig, memory: &mut M, about: &mut About) -> bool {
        let next = match self.state {
            state::CONTEXT => self.in_context(config, memory),
            state::ROOT => self.in_root(config, memory),
            state::NODE => self.in_node(config, memory),
            state::PAIR => self.in_pair(config, memory),
            state::CHILD => self.in_child(memory),
            state::COLLISION => self.in_collision(config, memory),
            state::SPANS => self.in_spans(config, memory),
            state::LAST_SPAN => self.in_last_span(memory),
            state::INSTANCE => self.in_instance(config, memory),
            state::OWN_DICT => self.in_own_dict(config, memory),
            state::VALUES => self.in_values(config, memory),
            state::ID => self.in_id(config, memory),
            state::DICT => self.in_dict(config, memory),
            state::KEYS => self.in_keys(config, memory),
            state::ENTRIES => self.in_entries(config, memory),
            state::SPAN_CONTEXT => self.in_span_context(config, memory),
            state::TRACE_INT | state::SPAN_INT | state::BEGAN => self.in_int(config, memory, about),
            state::OPERATION | state::TRACE | state::ENDPOINT => self.in_text(config, memory, about),
            state::TRACES => self.in_traces(config, memory),
            state::FIRST_TRACE => self.in_first_trace(memory),
            state::PARENT => self.in_parent(config, memory, about),
            _ => Ok(state::OVER),
        };
        self.state = match next {
            Ok(next) => next,
            Err(_) if self.purpose == purpose::ABOUT => self.next_part(config),
            Err(blank) => {
                self.label = Label::NONE;
                self.blank = blank as u32 + 1;
                state::OVER
            }
        };
        self.state != state::OVER
    }

    #[inline(always)]
    fn word(&self, offset: u16) -> u64 {
        self.words.get(offset as usize >> 3 & 7).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn half(&self, offset: u16) -> u32 {
        (self.word(offset) >> ((offset & 4) * 8)) as u32
    }

    #[inline(always)]
    fn byte(&self, offset: u16) -> u64 {
        self.word(offset) >> ((offset & 7) * 8) & 0xff
    }

    /// Reads the first words of the object, which must be of `class`.
    #[inline(always)]
    fn head<M: Memory>(&mut self, memory: &mut M, class: Addr, layout: &LabelLayout) -> Result<(), Blank> {
        self.read_words(memory, self.at)?;
        if self.word(layout.object_type) == class.0 { Ok(()) } else { Err(Blank::Unreadable) }
    }

    #[inline(always)]
    fn read_words<M: Memory>(&mut self, memory: &mut M, at: Addr) -> Result<(), Blank> {
        let Some(words) = self.words.first_chunk_mut::<6>() else {
            return Err(Blank::Unreadable);
        };
        memory.read(at, words).map_err(|_| Blank::Unreadable)
    }

    #[inline(always)]
    fn in_context<M: Memory>(&mut self, config: &LabelConfig, memory: &mut M) -> Result<u32, Blank> {
        if self.at.is_null() {
            return Err(Blank::NoContext);
        }
        self.head(memory, config.context_class, &config.layout)?;
        self.at = Addr(self.word(config.layout.context_vars));
        Ok(state::ROOT)
    }

    #[inline(always)]
    fn in_root<M: Memory>(&mut self, config: &LabelConfig, memory: &mut M) -> Result<u32, Blank> {
        self.at = pointer(memory, self.at.at(config.layout.hamt_root))?;
        self.hash = config.hash;
        self.count = 0;
        Ok(state::NODE)
    }

    /// <https://github.com/python/cpython/blob/v3.13.0/Python/hamt.c> (`hamt_node_find`)
    #[inline(always)]
    fn in_node<M: Memory>(&mut self, config: &LabelConfig, memory: &mut M) -> Result<u32, Blank> {
        let layout = &config.layout;
        self.count += 1;
        if self.count > HAMT_LEVELS as u64 {
            return Err(Blank::Unreadable);
        }
        self.read_words(memory, self.at)?;
        let class = self.word(layout.object_type);
        let place = self.hash & 31;
        self.hash >>= 5;
        if class == config.bitmap_class.0 {
            let bits = self.half(layout.bitmap_bits);
            let bit = 1_u32 << place;
            if bits & bit == 0 {
                return Err(Blank::NotSet);
            }
            let before = (bits & (bit - 1)).count_ones() as u16;
            let pair = layout.bitmap_items.wrapping_add(before * 16);
            if before == 0 {
                return self.pair(config, self.word(pair), self.word(pair.wrapping_add(8)));
            }
            self.at = self.at.at(pair);
            return Ok(state::PAIR);
        }
        if class == config.array_class.0 {
            self.at = self.at.at(layout.array_items.wrapping_add(place as u16 * 8));
            return Ok(state::CHILD);
        }
        if class == config.collision_class.0 {
            self.of = self.word(layout.object_size) >> 1;
            self.count = 0;
            self.at = self.at.at(layout.collision_items);
            return Ok(state::COLLISION);
        }
        Err(Blank::Unreadable)
    }

    #[inline(always)]
    fn pair(&mut self, config: &LabelConfig, key: u64, value: u64) -> Result<u32, Blank> {
        self.at = Addr(value);
        if key == config.variable.0 {
            Ok(if config.source == Source::Agent as u32 { state::SPANS } else { state::DICT })
        } else if key == 0 {
            Ok(state::NODE)
        } else {
            Err(Blank::NotSet)
        }
    }

    #[inline(always)]
    fn in_pair<M: Memory>(&mut self, config: &LabelConfig, memory: &mut M) -> Result<u32, Blank> {
        let [key, value] = two(memory, self.at)?;
        self.pair(config, key, value)
    }

    #[inline(always)]
    fn in_child<M: Memory>(&mut self, memory: &mut M) -> Result<u32, Blank> {
        self.at = pointer(memory, self.at)?;
        if self.at.is_null() { Err(Blank::NotSet) } else { Ok(state::NODE) }
    }

    #[inline(always)]
    fn in_collision<M: Memory>(&mut self, config: &LabelConfig, memory: &mut M) -> Result<u32, Blank> {
        if self.count >= self.of {
            return Err(Blank::NotSet);
        }
        self.count += 1;
        if self.count > COLLISIONS {
            return Err(Blank::Unreadable);
        }
        let [key, value] = two(memory, self.at)?;
        if key == config.variable.0 {
            return self.pair(config, key, value);
        }
        self.at = self.at.at(16);
        Ok(state::COLLISION)
    }

    /// <https://github.com/apache/skywalking-python/blob/v1.1.0/skywalking/trace/context.py>
    #[inline(always)]
    fn in_spans<M: Memory>(&mut self, config: &LabelConfig, memory: &mut M) -> Result<u32, Blank> {
        let layout = &config.layout;
        self.head(memory, config.list_class, layout)?;
        let size = self.word(layout.object_size);
        if size == 0 {
            return Err(Blank::NoSpan);
        }
        self.at = Addr(self.word(layout.list_items).wrapping_add(size.wrapping_sub(1) << 3));
        Ok(state::LAST_SPAN)
    }

    #[inline(always)]
    fn in_last_span<M: Memory>(&mut self, memory: &mut M) -> Result<u32, Blank> {
        self.at = pointer(memory, self.at)?;
        Ok(self.instance(PlaceOf::Span))
    }

    /// The object at `at` is an instance.
    #[inline(always)]
    const fn instance(&mut self, place: PlaceOf) -> u32 {
        self.place = place as u32;
        state::INSTANCE
    }

    /// An instance's class, and where its values are.
    ///
    /// <https://github.com/python/cpython/blob/v3.12.1/Include/internal/pycore_object.h#L372>
    #[inline(always)]
    fn in_instance<M: Memory>(&mut self, config: &LabelConfig, memory: &mut M) -> Result<u32, Blank> {
        let layout = &config.layout;
        let place = self.place(config)?;
        if layout.values_valid != ABSENT {
            self.fill(memory, place)?;
            self.find_shape(self.value(layout.object_type), place)?;
            let valid = place.inline_values.wrapping_add(layout.values_valid);
            if self.value(valid) >> ((valid & 7) * 8) & 0xff == 0 {
                return Err(Blank::OwnDictionary);
            }
            self.first = u64::from(place.inline_values.wrapping_add(layout.values_items)) >> 3;
            return self.got(config);
        }
        self.read_words(memory, Addr(self.at.0.wrapping_sub(BEFORE.into())))?;
        self.find_shape(self.word(BEFORE.wrapping_add(layout.object_type)), place)?;
        let own = self.word(BEFORE.wrapping_sub(layout.managed_dict));
        let values = if layout.managed_values != 0 {
            self.word(BEFORE.wrapping_sub(layout.managed_values))
        } else if own & 1 == 1 {
            // The tag is bit 0, and the pointer is one less than the values'.
            own.wrapping_add(1)
        } else {
            0
        };
        if values != 0 {
            self.at = Addr(values).at(layout.values_items);
            return Ok(state::VALUES);
        }
        if own == 0 {
            return Err(Blank::Unreadable);
        }
        self.at = Addr(own);
        Ok(state::OWN_DICT)
    }

    /// A dictionary over the same values, or one of its own.
    #[inline(always)]
    fn in_own_dict<M: Memory>(&mut self, config: &LabelConfig, memory: &mut M) -> Result<u32, Blank> {
        let values = pointer(memory, self.at.at(config.layout.dict_values))?;
        if values.is_null() {
            return Err(Blank::OwnDictionary);
        }
        self.at = values.at(config.layout.values_items);
        Ok(state::VALUES)
    }

    #[inline(always)]
    fn in_values<M: Memory>(&mut self, config: &LabelConfig, memory: &mut M) -> Result<u32, Blank> {
        let place = self.place(config)?;
        self.fill(memory, place)?;
        self.first = 0;
        self.got(config)
    }

    #[inline(always)]
    fn place<'c>(&self, config: &'c LabelConfig) -> Result<&'c Place, Blank> {
        config.places.get(self.place as usize).ok_or(Blank::Unreadable)
    }

    #[inline(always)]
    fn fill<M: Memory>(&mut self, memory: &mut M, place: &Place) -> Result<(), Blank> {
        let Some(values) = self.values.first_chunk_mut::<VALUE_WORDS>() else {
            return Err(Blank::Unreadable);
        };
        // Not beyond the object.
        memory.read_part(self.at, values, u32::from(place.words) * 8).map_err(|_| Blank::Unreadable)
    }

    #[inline(always)]
    fn value(&self, offset: u16) -> u64 {
        self.values.get(offset as usize >> 3 & 7).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn find_shape(&mut self, class: u64, place: &Place) -> Result<(), Blank> {
        self.shape = SHAPES as u32;
        for (number, shape) in place.shapes.iter().enumerate() {
            if class != 0 && shape.class.0 == class {
                self.shape = number as u32;
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
    fn attribute(&self, place: &Place, number: usize) -> Addr {
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

    /// An instance's values are there: where to go from it.
    #[inline(always)]
    fn got(&mut self, config: &LabelConfig) -> Result<u32, Blank> {
        let place = self.place(config)?;
        if config.source != Source::Agent as u32 {
            return self.got_otel_span(config, place);
        }
        let about = self.purpose == purpose::ABOUT;
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
                // Before 1.0.0 a context has none.
                return Ok(state::OVER);
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

    #[inline(always)]
    fn got_span(&mut self, config: &LabelConfig, place: &Place) -> Result<u32, Blank> {
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
    fn in_id<M: Memory>(&mut self, config: &LabelConfig, memory: &mut M) -> Result<u32, Blank> {
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
    fn in_dict<M: Memory>(&mut self, config: &LabelConfig, memory: &mut M) -> Result<u32, Blank> {
        self.head(memory, config.dict_class, &config.layout)?;
        self.at = Addr(self.word(config.layout.dict_keys));
        Ok(state::KEYS)
    }

    #[inline(always)]
    fn in_keys<M: Memory>(&mut self, config: &LabelConfig, memory: &mut M) -> Result<u32, Blank> {
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
    fn in_entries<M: Memory>(&mut self, config: &LabelConfig, memory: &mut M) -> Result<u32, Blank> {
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
    fn got_otel_span(&mut self, config: &LabelConfig, place: &Place) -> Result<u32, Blank> {
        if self.attribute(place, otel::END_TIME) != config.none {
            return Err(Blank::Finished);
        }
        self.operation = self.attribute(place, otel::NAME);
        self.parent = self.attribute(place, otel::PARENT);
        self.at = self.attribute(place, otel::CONTEXT);
        Ok(state::SPAN_CONTEXT)
    }

    #[inline(always)]
    fn in_span_context<M: Memory>(&mut self, config: &LabelConfig, memory: &mut M) -> Result<u32, Blank> {
        let layout = &config.layout;
        self.head(memory, config.tuple_class, layout)?;
        self.at = Addr(self.word(layout.tuple_items));
        self.segment = Addr(self.word(layout.tuple_items.wrapping_add(8)));
        Ok(state::TRACE_INT)
    }

    /// The lowest 128 bits of an `int`.
    #[inline(always)]
    fn in_int<M: Memory>(
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

    /// A part of what the label is called is there, or can't be had.
    #[inline(always)]
    const fn next_part(&mut self, config: &LabelConfig) -> u32 {
        self.part += 1;
        if config.source != Source::Agent as u32 {
            self.at = self.parent;
            return if self.part == 1 { state::PARENT } else { state::OVER };
        }
        if self.part == 1 {
            self.at = self.segment;
            return self.instance(PlaceOf::Segment);
        }
        if self.part == 2 {
            self.at = self.context;
            return self.instance(PlaceOf::Context);
        }
        state::OVER
    }

    /// Copies a `str`.
    #[inline(always)]
    fn in_text<M: Memory>(
        &mut self,
        config: &LabelConfig,
        memory: &mut M,
        about: &mut About,
    ) -> Result<u32, Blank> {
        let layout = &config.layout;
        let kind = self.state;
        self.head(memory, config.str_class, layout)?;
        let state = self.half(layout.str_state);
        let width = state >> (layout.str_kind_bit & 31) & 7;
        if state >> (layout.str_compact_bit & 31) & 1 == 0 {
            return Err(Blank::Unreadable);
        }
        let ascii = state >> (layout.str_ascii_bit & 31) & 1 == 1;
        let data = self.at.at(if ascii { layout.str_ascii_data } else { layout.str_compact_data });
        let length = self.word(layout.str_length);
        let text = match kind {
            state::OPERATION => &mut about.operation,
            state::TRACE => &mut about.trace,
            _ => &mut about.endpoint,
        };
        copy(memory, data, length, width, text)?;
        Ok(self.next_part(config))
    }

    #[inline(always)]
    fn in_traces<M: Memory>(&mut self, config: &LabelConfig, memory: &mut M) -> Result<u32, Blank> {
        let layout = &config.layout;
        self.head(memory, config.list_class, layout)?;
        if self.word(layout.object_size) == 0 {
            return Err(Blank::Unreadable);
        }
        self.at = Addr(self.word(layout.list_items));
        Ok(state::FIRST_TRACE)
    }

    #[inline(always)]
    fn in_first_trace<M: Memory>(&mut self, memory: &mut M) -> Result<u32, Blank> {
        self.at = pointer(memory, self.at)?;
        Ok(self.instance(PlaceOf::Identity))
    }

    /// Whether a span's parent (OpenTelemetry) is not of this process.
    #[inline(always)]
    fn in_parent<M: Memory>(
        &mut self,
        config: &LabelConfig,
        memory: &mut M,
        about: &mut About,
    ) -> Result<u32, Blank> {
        if self.at == config.none {
            about.flags = ABOUT_ROOT;
            return Ok(state::OVER);
        }
        let layout = &config.layout;
        self.head(memory, config.tuple_class, layout)?;
        if self.word(layout.tuple_items.wrapping_add(16)) == config.truth.0 {
            about.flags = ABOUT_ROOT;
        }
        Ok(state::OVER)
    }
}

#[inline(always)]
fn pointer<M: Memory>(memory: &mut M, at: Addr) -> Result<Addr, Blank> {
    memory.pointer(at).map_err(|_| Blank::Unreadable)
}

#[inline(always)]
fn two<M: Memory>(memory: &mut M, at: Addr) -> Result<[u64; 2], Blank> {
    let mut words = [0; 2];
    memory.read(at, &mut words).map_err(|_| Blank::Unreadable)?;
    Ok(words)
}

#[inline(always)]
fn copy<M: Memory>(
    memory: &mut M,
    data: Addr,
    length: u64,
    width: u32,
    text: &mut Text,
) -> Result<(), Blank> {
    let most = (TEXT_WORDS * 8) as u64;
    let kept = if length > most { most } else { length };
    let bytes = match width {
        1 => kept,
        2 => kept << 1,
        4 => kept << 2,
        _ => return Err(Blank::Unreadable),
    };
    let bytes = if bytes > most { most } else { bytes };
    memory.read_part(data, &mut text.words, bytes as u32).map_err(|_| Blank::Unreadable)?;
    text.length = if length > u64::from(u32::MAX) { u32::MAX } else { length as u32 };
    text.width = width;
    Ok(())
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

/// Runs a chain to its end, outside of the kernel.
pub fn run<M: Memory>(chain: &mut Chain, config: &LabelConfig, memory: &mut M, about: &mut About) {
    for _ in 0..MAX_CHAIN {
        if !chain.step(config, memory, about) {
            return;
        }
    }
    chain.label = Label::NONE;
    chain.blank = Blank::Unreadable as u32 + 1;
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
