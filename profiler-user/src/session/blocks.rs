//! Runs without a switch that were too long, with what the ticks in them saw.

use std::{collections::VecDeque, sync::Arc};

use profiler_common::record::{BlockRecord, TickRecord};
use rustc_hash::FxHashMap;

use crate::profile::Frame;

/// Stacks, root first, and how many ticks met each.
type Met = Vec<(Arc<[Frame]>, u64)>;

/// Ticks that are remembered for a block that may follow: ten seconds of one thread at the
/// usual rate.
const REMEMBERED: usize = 1_024;
/// Blocks kept of a target.
const MAX_BLOCKS: usize = 10_000;

/// A block, with what was known when it ended.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) record: BlockRecord,
    /// The stack at its end.
    pub(super) frames: Arc<[Frame]>,
    /// What the ticks met, most first.
    pub(super) ticks: Met,
}

/// The blocks of one target.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    recent: VecDeque<(u64, u64, Arc<[Frame]>)>,
    kept: Vec<Block>,
    /// Those that there was no room for.
    dropped: u64,
    announced: usize,
}

impl Blocks {
    /// A tick that met a greenlet in a stack.
    pub(super) fn tick(&mut self, tick: &TickRecord, frames: &Arc<[Frame]>) {
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back((tick.head.time_ns, tick.greenlet, Arc::clone(frames)));
    }

    /// A block ended, or the round after it.
    pub(super) fn take(&mut self, record: &BlockRecord, frames: Arc<[Frame]>) {
        let same = |block: &&mut Block| {
            block.record.thread == record.thread && block.record.head.time_ns == record.head.time_ns
        };
        if let Some(known) = self.kept.iter_mut().rev().find(same) {
            known.record = *record;
            return;
        }
        if self.kept.len() == MAX_BLOCKS {
            self.dropped += 1;
            return;
        }
        let end_ns = record.head.time_ns;
        let inside = (end_ns.saturating_sub(record.ns))..=end_ns;
        let mut met: FxHashMap<&Arc<[Frame]>, u64> = FxHashMap::default();
        for (time_ns, greenlet, frames) in &self.recent {
            if *greenlet == record.greenlet && inside.contains(time_ns) {
                *met.entry(frames).or_default() += 1;
            }
        }
        let mut ticks: Met = met.into_iter().map(|(frames, count)| (Arc::clone(frames), count)).collect();
        ticks.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        self.kept.push(Block { record: *record, frames, ticks });
    }

    /// Those that were not asked for yet.
    pub(super) fn fresh(&mut self) -> &[Block] {
        let from = std::mem::replace(&mut self.announced, self.kept.len());
        self.kept.get(from..).unwrap_or_default()
    }

    /// All of them, and how many there was no room for.
    pub(super) fn finish(&mut self) -> (Vec<Block>, u64) {
        (std::mem::take(&mut self.kept), self.dropped)
    }
}
