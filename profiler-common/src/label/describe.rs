//! What a label says: its trace, its endpoint, its operation.

use super::{
    ABOUT_ROOT, About, Chain, LabelConfig, Source, agent,
    chain::{int, text},
};
use crate::{address::Addr, memory::Memory};

/// Says what else is known of the label that [`super::read`] just found.
///
/// What cannot be read stays empty.
#[inline(always)]
pub fn describe<M: Memory>(config: &LabelConfig, memory: &mut M, chain: &mut Chain, about: &mut About) {
    about.began_ms = 0;
    about.flags = 0;
    about.trace.width = 0;
    about.endpoint.width = 0;
    text(config, memory, chain.operation, chain, &mut about.operation);
    if config.source == Source::Agent as u32 {
        describe_agent(config, memory, chain, about);
    } else if is_root(config, memory, chain.context, chain) {
        about.flags = ABOUT_ROOT;
    }
}

/// Whether a span's parent (OpenTelemetry) is not of this process.
#[inline(always)]
fn is_root<M: Memory>(config: &LabelConfig, memory: &mut M, parent: Addr, chain: &mut Chain) -> bool {
    if parent == config.none {
        return true;
    }
    let layout = &config.layout;
    let is_remote = layout.tuple_items.wrapping_add(16);
    chain.head(memory, parent, config.tuple_class, layout).is_ok() && chain.word(is_remote) == config.truth.0
}

#[inline(always)]
fn describe_agent<M: Memory>(config: &LabelConfig, memory: &mut M, chain: &mut Chain, about: &mut About) {
    let layout = &config.layout;
    let mut first = Addr::NULL;
    if chain.instance(memory, chain.segment, &config.segment, layout).is_ok() {
        first = chain.attribute(&config.segment, agent::RELATED_TRACES);
        let began = chain.attribute(&config.segment, agent::TIMESTAMP);
        if let Ok([low, _]) = int(config, memory, began, chain) {
            about.began_ms = low;
        }
    }
    if !first.is_null()
        && chain.head(memory, first, config.list_class, layout).is_ok()
        && chain.word(layout.object_size) != 0
        && let Ok(id) = memory.pointer(Addr(chain.word(layout.list_items)))
        && chain.instance(memory, id, &config.identity, layout).is_ok()
    {
        let value = chain.attribute(&config.identity, agent::VALUE);
        text(config, memory, value, chain, &mut about.trace);
    }
    // From 1.0.0 on; up to then the segment's first span is the first of the list.
    if chain.instance(memory, chain.context, &config.context, layout).is_ok() {
        let primary = chain.attribute(&config.context, agent::PRIMARY_ENDPOINT);
        if !primary.is_null()
            && primary != config.none
            && chain.instance(memory, primary, &config.endpoint, layout).is_ok()
        {
            let span = chain.attribute(&config.endpoint, agent::SPAN);
            if chain.instance(memory, span, &config.span, layout).is_ok() {
                let op = chain.attribute(&config.span, agent::OP);
                text(config, memory, op, chain, &mut about.endpoint);
            }
        }
    }
}
