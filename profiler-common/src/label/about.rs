//! What a label is called: its trace, its endpoint, its operation.

use super::{
    ABOUT_ROOT, About, Blank, Chain, LabelConfig, PlaceOf, Source, TEXT_WORDS, Text, chain::pointer, state,
};
use crate::{address::Addr, memory::Memory};

impl Chain {
    /// Begins to say what the label is called that was just found. What can't be read
    /// stays empty.
    #[inline(always)]
    pub const fn begin_about(&mut self, about: &mut About) {
        about.began_ms = 0;
        about.flags = 0;
        about.request = [0; 2];
        about.trace.width = 0;
        about.endpoint.width = 0;
        about.operation.width = 0;
        self.purpose = state::FOR_ABOUT;
        self.part = 0;
        self.at = self.operation;
        self.state = state::OPERATION;
    }

    /// A part of what the label is called is there, or can't be had.
    #[inline(always)]
    pub(super) const fn next_part(&mut self, config: &LabelConfig) -> u32 {
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
    pub(super) fn in_text<M: Memory>(
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
    pub(super) fn in_traces<M: Memory>(
        &mut self,
        config: &LabelConfig,
        memory: &mut M,
    ) -> Result<u32, Blank> {
        let layout = &config.layout;
        self.head(memory, config.list_class, layout)?;
        if self.word(layout.object_size) == 0 {
            return Err(Blank::Unreadable);
        }
        self.at = Addr(self.word(layout.list_items));
        Ok(state::FIRST_TRACE)
    }

    #[inline(always)]
    pub(super) fn in_first_trace<M: Memory>(&mut self, memory: &mut M) -> Result<u32, Blank> {
        self.at = pointer(memory, self.at)?;
        Ok(self.instance(PlaceOf::Identity))
    }

    /// Whether a span's parent (OpenTelemetry) is not of this process.
    #[inline(always)]
    pub(super) fn in_parent<M: Memory>(
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
