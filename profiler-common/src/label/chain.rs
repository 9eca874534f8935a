//! The chain from a context to a label, and from a label to what it is called, step by step.
//!
//! A step reads one object, and all that goes from one to the next is kept in the [`Chain`]:
//! the kernel runs the steps inside `bpf_loop`, whose body the verifier looks at once, user
//! space in a plain loop. A first version without steps took half a second to load.

use super::{About, Blank, Label, LabelConfig, LabelLayout, Source, VALUE_WORDS, state};
use crate::{address::Addr, memory::Memory};

/// Words of any object but an instance.
const HEAD_WORDS: usize = 12;
/// Levels of a HAMT: five bits of the 32-bit hash each.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_hamt.h#L20>
const HAMT_LEVELS: u64 = 8;
/// Pairs looked at in a node for keys of one hash.
const COLLISIONS: u64 = 8;

/// Steps of the longest chain: nine levels of a HAMT with two steps each, the pairs of a
/// collision, five instances with three, and the rest.
pub const MAX_CHAIN: u32 = 64;

/// A chain in progress, and what it found.
///
/// In the kernel it is no part of the stack, which holds 512 bytes for a whole chain of
/// calls.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct Chain {
    /// Of an instance's values, or of a text.
    pub(super) values: [u64; VALUE_WORDS + 8],
    /// Of another object.
    pub(super) words: [u64; HEAD_WORDS],
    /// What the next step reads, and where.
    pub(super) state: u32,
    /// The place of an instance.
    pub(super) place: u32,
    /// What it is read for.
    pub(super) purpose: u32,
    /// Which of the place's classes it is of.
    pub(super) shape: u32,
    /// Of what it is called: how many parts are read, or can't be.
    pub(super) part: u32,
    /// The rest of the hash.
    pub(super) hash: u32,
    /// Levels, pairs or entries so far.
    pub(super) count: u64,
    /// How many there are.
    pub(super) of: u64,
    pub(super) at: Addr,
    /// Where the values begin in `values`.
    pub(super) first: u64,
    pub(super) operation: Addr,
    pub(super) context: Addr,
    pub(super) segment: Addr,
    /// OpenTelemetry: of a span. SkyWalking: where the list of spans has its items.
    pub(super) parent: Addr,
    pub(super) traces: Addr,
    /// 1 + the [`Blank`] that is the reason why there is no label, or 0.
    pub blank: u32,
    /// None.
    pub(super) padding: u32,
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
        self.purpose = state::FOR_LABEL;
        self.state = state::CONTEXT;
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
            state::LISTED_SPAN => self.in_listed_span(memory),
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
            Err(_) if self.purpose == state::FOR_ABOUT => self.next_part(config),
            Err(blank) => {
                self.label = Label::NONE;
                self.blank = blank as u32 + 1;
                state::OVER
            }
        };
        self.state != state::OVER
    }

    #[inline(always)]
    pub(super) fn word(&self, offset: u16) -> u64 {
        self.words.get(offset as usize >> 3 & 7).copied().unwrap_or_default()
    }

    #[inline(always)]
    pub(super) fn half(&self, offset: u16) -> u32 {
        (self.word(offset) >> ((offset & 4) * 8)) as u32
    }

    #[inline(always)]
    pub(super) fn byte(&self, offset: u16) -> u64 {
        self.word(offset) >> ((offset & 7) * 8) & 0xff
    }

    /// Reads the first words of the object, which must be of `class`.
    #[inline(always)]
    pub(super) fn head<M: Memory>(
        &mut self,
        memory: &mut M,
        class: Addr,
        layout: &LabelLayout,
    ) -> Result<(), Blank> {
        self.read_words(memory, self.at)?;
        if self.word(layout.object_type) == class.0 { Ok(()) } else { Err(Blank::Unreadable) }
    }

    #[inline(always)]
    pub(super) fn read_words<M: Memory>(&mut self, memory: &mut M, at: Addr) -> Result<(), Blank> {
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
        if self.count > HAMT_LEVELS {
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
    pub(super) fn pair(&mut self, config: &LabelConfig, key: u64, value: u64) -> Result<u32, Blank> {
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
}

#[inline(always)]
pub(super) fn pointer<M: Memory>(memory: &mut M, at: Addr) -> Result<Addr, Blank> {
    memory.pointer(at).map_err(|_| Blank::Unreadable)
}

#[inline(always)]
pub(super) fn two<M: Memory>(memory: &mut M, at: Addr) -> Result<[u64; 2], Blank> {
    let mut words = [0; 2];
    memory.read(at, &mut words).map_err(|_| Blank::Unreadable)?;
    Ok(words)
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
