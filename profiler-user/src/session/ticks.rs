//! Ticks of the CPU clock, by who was on the CPU and with what stack.

use std::sync::Arc;

use profiler_common::{
    label::{Blank, KIND_INHERITED, KIND_SOURCE, Label, Source},
    record::{TICK_ENDING, TICK_NATIVE, TICK_SWITCHING, TICK_UNSWITCHED, TickRecord},
};
use rustc_hash::FxHashMap;

use crate::profile::Frame;

/// Stacks, root first, with the label that they had, and how many ticks met each.
pub(super) type Samples = Vec<(Arc<[Frame]>, Label, u64)>;

/// A thread in which no Python runs: a library's own.
const NATIVE: &str = "(no Python)";
/// A thread on its way out, without memory.
const ENDING: &str = "(thread ends)";

/// Whose time a tick is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Whose {
    /// Of that greenlet of the kernel's.
    Greenlet(u64),
    /// Of that thread, which had not switched by then.
    Thread(u64),
}

/// Ticks by what they met.
type Seen = FxHashMap<(Arc<[Frame]>, Label), u64>;

/// The ticks of one target.
#[derive(Debug, Default)]
pub(super) struct Ticks {
    /// With a stack.
    seen: FxHashMap<Whose, Seen>,
    /// Inside of a switch, by thread.
    switching: FxHashMap<u64, u64>,
    /// How many in all.
    count: u64,
    /// With a label of the greenlet's own, with one that it was given, and (by
    /// [`profiler_common::label::Blank`]) without any.
    pub(super) labelled: u64,
    pub(super) given: u64,
    pub(super) blank: [u64; Blank::COUNT],
}

impl Ticks {
    /// A tick; without frames if its stack could not be taken.
    pub(super) fn add(&mut self, tick: &TickRecord, frames: Option<Arc<[Frame]>>) {
        self.count += 1;
        if tick.flags & TICK_SWITCHING != 0 {
            *self.switching.entry(tick.thread).or_default() += 1;
            return;
        }
        let whose = if tick.flags & TICK_UNSWITCHED != 0 {
            Whose::Thread(tick.thread)
        } else {
            Whose::Greenlet(tick.greenlet)
        };
        // Where no stack could be taken no label was looked for.
        if !tick.stack.is_none() {
            self.count_look(tick);
        }
        if let Some(frames) = frames {
            *self.seen.entry(whose).or_default().entry((frames, tick.label)).or_default() += 1;
        }
    }

    fn count_look(&mut self, tick: &TickRecord) {
        let from_context = tick.label.kind & (KIND_SOURCE | KIND_INHERITED);
        let reason = match tick.blank.checked_sub(1) {
            Some(reason) => usize::try_from(reason).unwrap_or(usize::MAX),
            // No tracer was asked.
            None => Blank::NoRequest as usize,
        };
        if tick.stack.is_none() {
            // Nobody looked.
        } else if tick.label.is_none() {
            if let Some(count) = self.blank.get_mut(reason) {
                *count += 1;
            }
        } else if [Source::Agent as u32, Source::Otel as u32].contains(&from_context) {
            self.labelled += 1;
        } else {
            self.given += 1;
        }
    }

    /// How many there were.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// How many came inside of a switch of that thread.
    pub(super) fn switching(&self, thread: u64) -> u64 {
        self.switching.get(&thread).copied().unwrap_or_default()
    }

    /// Takes what was seen of one.
    pub(super) fn take(&mut self, whose: Whose) -> Samples {
        self.seen.remove(&whose).map(|seen| listed(seen).collect()).unwrap_or_default()
    }

    /// Takes all that is left.
    pub(super) fn rest(&mut self) -> Samples {
        std::mem::take(&mut self.seen).into_values().flat_map(listed).collect()
    }
}

/// What stands for the stack of a tick that has none for a good reason. (Else a fault is counted.)
pub(super) fn without_stack(tick: &TickRecord) -> Option<Arc<[Frame]>> {
    if tick.flags & TICK_NATIVE != 0 {
        Some(Arc::new([Frame::label(NATIVE)]))
    } else if tick.flags & TICK_ENDING != 0 {
        Some(Arc::new([Frame::label(ENDING)]))
    } else {
        None
    }
}

fn listed(seen: FxHashMap<(Arc<[Frame]>, Label), u64>) -> impl Iterator<Item = (Arc<[Frame]>, Label, u64)> {
    seen.into_iter().map(|((frames, label), count)| (frames, label, count))
}
