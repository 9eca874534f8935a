//! Ticks of the CPU clock, by who was on the CPU and with what stack.

use std::sync::Arc;

use profiler_common::record::{TICK_SWITCHING, TICK_UNSWITCHED, TickRecord};
use rustc_hash::FxHashMap;

use crate::profile::Frame;

/// Stacks, root first, and how many ticks met each.
pub(super) type Samples = Vec<(Arc<[Frame]>, u64)>;

/// Whose time a tick is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Whose {
    /// Of that greenlet of the kernel's.
    Greenlet(u64),
    /// Of that thread, which had not switched by then.
    Thread(u64),
}

/// The ticks of one target.
#[derive(Debug, Default)]
pub(super) struct Ticks {
    /// With a stack.
    seen: FxHashMap<Whose, FxHashMap<Arc<[Frame]>, u64>>,
    /// Inside of a switch, by thread.
    switching: FxHashMap<u64, u64>,
    /// How many in all.
    count: u64,
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
        if let Some(frames) = frames {
            *self.seen.entry(whose).or_default().entry(frames).or_default() += 1;
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
        self.seen.remove(&whose).map(|seen| seen.into_iter().collect()).unwrap_or_default()
    }

    /// Takes all that is left.
    pub(super) fn rest(&mut self) -> Samples {
        std::mem::take(&mut self.seen).into_values().flatten().collect()
    }
}
