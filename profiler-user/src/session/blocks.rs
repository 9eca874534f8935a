//! Runs without a switch that were too long, with what the ticks in them saw.

use std::{collections::VecDeque, sync::Arc};

use profiler_common::{
    address::Addr,
    clock::OFF_KINDS,
    fault::Fault,
    owner::off_of,
    record::{BlockRecord, OffRecord, TickRecord},
};
use rustc_hash::FxHashMap;

use super::{
    clocked::asleep,
    finish::{Closing, is_gevents_hub, named},
    idle::{Rest, Role},
    recorded::Recorded,
};
use crate::{
    kernel::Engine,
    profile::{BlockRow, Clocked, Frame, Holder, Profile, State, Victims},
    target,
};

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
    /// Whether it is one for all that was known by then.
    pub(super) sure: bool,
    /// A sleep in a run of an event loop's, not the run.
    pub(super) sleep: bool,
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
    pub(super) fn take(&mut self, record: &BlockRecord, frames: Arc<[Frame]>, sure: bool, sleep: bool) {
        let same = |block: &&mut Block| {
            !sleep
                && !block.sleep
                && block.record.thread == record.thread
                && block.record.head.time_ns == record.head.time_ns
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
        self.kept.push(Block { record: *record, frames, ticks, sure, sleep });
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

impl Recorded {
    pub(super) fn block(&mut self, block: &BlockRecord, engine: &Engine) {
        self.name(block.greenlet, block.object, engine);
        let frames = self.stacks.frames(&block.stack).map(|(frames, _)| frames);
        let [_, polled_ns, ..] = block.off_ns;
        // What is in doubt is looked at again at the end.
        let sure = match self.idle.roles.get(&block.greenlet) {
            None => true,
            Some(Role::Rests(Rest::Hub)) => block.ns.saturating_sub(polled_ns) >= self.config().block_ns,
            Some(Role::Rests(_) | Role::Doubt) => false,
        };
        self.blocks.take(block, frames.unwrap_or_else(|| Arc::new([])), sure, false);
    }

    /// A thread with greenlets slept: for long, or for the first time in that stack.
    pub(super) fn slept(&mut self, sleep: &OffRecord) {
        let Some((frames, owner)) = self.stacks.frames(&sleep.stack) else {
            return;
        };
        let Some(off) = off_of(owner) else {
            return;
        };
        let role = self.idle.role(&off, &frames);
        if let Some(role) = role
            && self.idle.learn(sleep.greenlet, role)
        {
            self.tell_idler(sleep.greenlet);
        }
        if let Some(Role::Rests(_)) = role {
            return;
        }
        if is_gevents_hub(&frames) {
            // It is known by its type: its run tells.
            return;
        }
        let ns = sleep.head.time_ns.saturating_sub(sleep.begin_ns);
        if ns < self.config().block_ns {
            return;
        }
        // A loop's callback that sleeps for so long is a block, whatever the loop's run is.
        let mut off_ns = [0; OFF_KINDS];
        if let Some(slept) = off_ns.get_mut(off.why as usize) {
            *slept = ns;
        }
        let block = BlockRecord {
            head: sleep.head,
            thread: sleep.thread,
            greenlet: sleep.greenlet,
            object: Addr::NULL,
            ns,
            off_ns,
            gil_holder: 0,
            stack: sleep.stack,
            victims: 0,
            held_ns: 0,
            held_most_ns: 0,
            round_over: 0,
            label: sleep.label,
        };
        let sure = role.is_none() && self.idle.roles.get(&sleep.greenlet) == Some(&Role::Rests(Rest::Loop));
        self.blocks.take(&block, frames, sure, true);
    }

    fn tell_idler(&mut self, greenlet: u64) {
        if self.config().idlers.contains(&0) {
            self.change_config(|config| {
                if let Some(free) = config.idlers.iter_mut().find(|known| **known == 0) {
                    *free = greenlet;
                }
            });
        }
    }
}

impl Closing<'_> {
    pub(super) fn blocks(&mut self, ids: &FxHashMap<u64, u64>, profile: &mut Profile) {
        let (blocks, dropped) = self.target.blocks.finish();
        *self.faults.entry(Fault::BlocksFull).or_default() += dropped;
        for Block { record, frames, ticks, sure: _, sleep } in blocks {
            let greenlet = ids.get(&record.greenlet).copied();
            let begin_ns = record.head.time_ns.saturating_sub(record.ns);
            // What a hub polled in it is idle.
            let by_type = self.target.hubs.contains(&record.greenlet);
            let role = self.target.idle.roles.get(&record.greenlet).copied();
            let hub = by_type || role == Some(Role::Rests(Rest::Hub));
            if !self.is_block(&record, role, hub, sleep) {
                continue;
            }
            let label = self.label(&record.label, profile);
            profile.blocks.push(BlockRow {
                pid: self.target.target.pid,
                tid: self.threads.get(&record.thread).and_then(|thread| thread.tid),
                greenlet,
                name: named(profile, greenlet)
                    .or_else(|| self.target.names.of(record.greenlet).map(str::to_owned)),
                begin_ns: begin_ns.saturating_sub(self.origin_ns),
                ns: record.ns,
                clock: self.has_clocks.then(|| Clocked::new(record.ns, record.off_ns, hub)).flatten(),
                gil_holder: self.holder(record.gil_holder),
                frames,
                ticks,
                victims: (record.round_over == 1).then_some(Victims {
                    count: record.victims,
                    held_ns: record.held_ns,
                    held_most_ns: record.held_most_ns,
                }),
                label,
            });
        }
        profile.blocks.sort_by_key(|block| block.begin_ns);
    }

    /// Whether a run that was long, or a sleep in one of a loop's, held others up.
    fn is_block(&mut self, record: &BlockRecord, role: Option<Role>, hub: bool, sleep: bool) -> bool {
        if sleep {
            // Of any other greenlet the run tells.
            let found = self.target.stacks.frames(&record.stack);
            return role == Some(Role::Rests(Rest::Loop))
                && found.and_then(|(frames, owner)| Some((frames, off_of(owner)?))).is_some_and(
                    |(frames, off)| asleep(&self.target.idle, &off, &frames) == Some(State::Blocked),
                );
        }
        let [blocked_ns, polled_ns, ..] = record.off_ns;
        let block_ns = self.target.config().block_ns;
        if hub {
            // The kernel part did not know yet that it was one; or it sleeps without a file.
            let slept_ns = if self.target.hubs.contains(&record.greenlet) { 0 } else { blocked_ns };
            return record.ns.saturating_sub(polled_ns + slept_ns) >= block_ns;
        }
        match role {
            // Its callbacks don't switch: which of them took long is not known, if any did.
            Some(Role::Rests(Rest::Loop) | Role::Doubt) => {
                if record.ns.saturating_sub(polled_ns + blocked_ns) >= block_ns {
                    *self.faults.entry(Fault::LoopUnsure).or_default() += 1;
                }
                false
            }
            // It holds nobody up, whatever the task takes.
            Some(Role::Rests(Rest::Task)) => false,
            Some(Role::Rests(Rest::Hub)) | None => true,
        }
    }

    /// Who had the GIL, by its id in the target's own pid namespace.
    fn holder(&self, own_tid: u64) -> Option<Holder> {
        let own_tid = u32::try_from(own_tid).ok().filter(|own_tid| *own_tid != 0)?;
        let target = &self.target.target;
        let now = target::threads(target);
        let found = target.threads.iter().chain(&now).find(|thread| thread.own_tid == own_tid);
        let same = target.threads.iter().all(|thread| thread.tid == thread.own_tid);
        let tid = found.map_or_else(|| same.then_some(own_tid), |thread| Some(thread.tid))?;
        let name = self.target.thread_names.get(&tid).cloned();
        Some(Holder { tid, name: name.or_else(|| found.map(|thread| thread.name.clone())) })
    }
}
