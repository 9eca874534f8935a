//! Where the threads' and the greenlets' time went: clocks, ticks and sleeps, each state's
//! stacks summing to the clocks.

use std::{collections::BTreeMap, sync::Arc};

use profiler_common::{
    clock::{Clock, OFF_KINDS, Off},
    fault::Fault,
};
use rustc_hash::FxHashMap;

use super::{
    finish::{Closing, runs},
    sleeps::Sleep,
    ticks::{Samples, Whose},
};
use crate::{
    profile::{Builder, Clocked, Frame, Profile, State},
    timeline::lives::Life,
};

/// What is known of a thread.
pub(super) struct Watched {
    pub(super) tid: Option<u32>,
    /// How long it was there before its first switch.
    pub(super) head_start_ns: u64,
    /// At the end; none if it does not go back to the thread's begin.
    pub(super) clock: Option<Clock>,
    /// What of the clock no greenlet has got yet.
    pub(super) uncharged_ns: [u64; OFF_KINDS],
    /// Its row in the profile.
    pub(super) row: usize,
}

impl Closing<'_> {
    /// Where a greenlet's running time went.
    pub(super) fn clock(&self, life: &Life, hub: bool, profile: &mut Profile) -> Option<Clocked> {
        let thread = self.threads.get(&life.thread)?;
        if !self.has_clocks || life.first && thread.clock.is_none() {
            return None;
        }
        let mut off_ns = life.off_ns;
        if life.running {
            for (ns, uncharged) in off_ns.iter_mut().zip(thread.uncharged_ns) {
                *ns += uncharged;
            }
        }
        let clock = Clocked::new(life.running_ns, off_ns, hub)?;
        self.idles(thread, clock.idle_ns, profile);
        Some(clock)
    }

    /// A hub's idle time is its thread's too.
    pub(super) fn idles(&self, thread: &Watched, ns: u64, profile: &mut Profile) {
        if let Some(clock) = profile.threads.get_mut(thread.row).and_then(|row| row.clock.as_mut()) {
            clock.idle_ns += ns;
            clock.blocked_ns = clock.blocked_ns.saturating_sub(ns);
        }
    }

    /// Where the time of a greenlet went that never switched, nor did its thread: it is the
    /// thread's, whose idle time is told already.
    pub(super) fn clock_of_one(&self, tid: Option<u32>, running: bool, duration_ns: u64) -> Option<Clocked> {
        if !running {
            return self.has_clocks.then(Clocked::default);
        }
        let thread = self.threads.values().find(|thread| thread.tid.is_some() && thread.tid == tid)?;
        Clocked::new(duration_ns, thread.clock?.off_ns, true)
    }

    /// Who was on the CPU, in what stacks: all of the clocks' time.
    pub(super) fn on_cpu(&mut self, ids: &FxHashMap<u64, u64>, profile: &mut Profile, builder: &mut Builder) {
        let pid = self.target.target.pid;
        if self.tick_ns.is_some() {
            *profile.totals.cpu_samples.get_or_insert_default() += self.target.ticks.count();
        }
        // Without ticks nothing was sampled, and the clocks are as exact.
        let tick_ns = self.tick_ns.unwrap_or_default();
        let mut before_first: FxHashMap<u64, Samples> = FxHashMap::default();
        for (key, thread) in &self.kept.threads {
            let Some(row) = self.threads.get(key).and_then(|watched| profile.threads.get(watched.row)) else {
                continue;
            };
            let samples = self.target.ticks.take(Whose::Thread(*key));
            *self.faults.entry(Fault::RingFullTick).or_default() += thread.ticks_lost;
            if row.switched {
                // Nothing switched before: it was the first greenlet all the time.
                before_first.entry(thread.first_greenlet).or_default().extend(samples);
                continue;
            }
            let name = row.name.as_deref().unwrap_or("thread");
            let (name, on_cpu_ns) = (name.to_owned(), row.clock.map(|clock| clock.on_cpu_ns));
            let samples = self.labelled(samples, profile);
            builder.add_sampled(&name, pid, samples, tick_ns, on_cpu_ns);
        }
        // Together by name: one that lived shorter than a tick has none, or too much.
        let mut groups: BTreeMap<String, (Samples, Option<u64>)> = BTreeMap::new();
        for (kernel_id, id) in ids {
            let mut samples = self.target.ticks.take(Whose::Greenlet(*kernel_id));
            samples.extend(before_first.remove(kernel_id).into_iter().flatten());
            let row = usize::try_from(id - 1).ok().and_then(|at| profile.greenlets.get(at));
            let Some(row) = row else {
                continue;
            };
            let name = row.name.as_deref().unwrap_or("greenlet");
            let group = groups.entry(name.to_owned()).or_insert_with(|| (Vec::new(), Some(0)));
            group.0.extend(samples);
            group.1 = group.1.zip(row.clock).map(|(sum, clock)| sum + clock.on_cpu_ns);
        }
        for (name, (samples, on_cpu_ns)) in groups {
            let samples = self.labelled(samples, profile);
            builder.add_sampled(&name, pid, samples, tick_ns, on_cpu_ns);
        }
        let mut samples = self.target.ticks.rest();
        samples.extend(before_first.into_values().flatten());
        let samples = self.labelled(samples, profile);
        let unlisted = self.unlisted_clock.map(|clock| clock.on_cpu_ns);
        builder.add_sampled("greenlets not listed", pid, samples, tick_ns, unlisted);
    }

    /// What the threads slept in the end, and all that they were off the CPU without a
    /// stack: with it the rows of a state are the clocks' sum.
    pub(super) fn off_cpu(&mut self, profile: &mut Profile, builder: &mut Builder) {
        let pid = self.target.target.pid;
        let mut truth: FxHashMap<State, u64> = FxHashMap::default();
        let mut first_sleeps = Vec::new();
        let mut unfinished = Vec::new();
        for (key, thread) in &self.kept.threads {
            let Some(watched) = self.threads.get(key) else {
                continue;
            };
            let Some(row) = profile.threads.get(watched.row) else {
                continue;
            };
            let plain = !row.switched;
            let Some(row) = row.clock else {
                continue;
            };
            *truth.entry(State::Blocked).or_default() += row.blocked_ns;
            *truth.entry(State::Gil).or_default() += row.gil_wait_ns;
            *truth.entry(State::Preempted).or_default() += row.preempted_ns;
            let first = watched.tid.and_then(|tid| self.target.sleeps.get(&tid));
            if let Some(Sleep { frames, label, why, version }) = first
                && let Some(clock) = watched.clock
                && let Some(state) = asleep(*why, plain, frames)
            {
                // It never woke, or once.
                let never = thread.clock.version == *version;
                let all = clock.off_ns.get(*why as usize).copied().unwrap_or_default();
                let ns = if never { all } else { thread.first_sleep_ns };
                *self.seen.entry(state).or_default() += ns;
                first_sleeps.push((Arc::clone(frames), state, *label, ns, u64::from(!never)));
            }
            let why = thread.clock.state;
            let slept = watched.clock.and_then(|clock| clock.off_ns.get(why as usize).copied());
            if let Some(slept) = slept
                && thread.exit_ns == 0
                && let Some((frames, _)) = self.target.stacks.frames(&thread.off_stack)
            {
                let ns = slept.saturating_sub(thread.off_before_ns);
                let Some(state) = asleep(why, plain, &frames) else {
                    continue;
                };
                *self.seen.entry(state).or_default() += ns;
                unfinished.push((frames, state, thread.off_label, ns));
            }
        }
        for (frames, state, label, ns) in unfinished {
            let label = self.label(&label, profile);
            builder.add(&frames, state, pid, label, ns, 0);
        }
        for (frames, state, label, ns, count) in first_sleeps {
            let label = self.label(&label, profile);
            builder.add(&frames, state, pid, label, ns, count);
        }
        for (state, label) in [
            (State::Blocked, "(asleep, stack not taken)"),
            (State::Gil, "(stack not taken)"),
            (State::Preempted, "(stack not taken)"),
        ] {
            let of = |sums: &FxHashMap<State, u64>| sums.get(&state).copied().unwrap_or_default();
            let left = of(&truth).saturating_sub(of(&self.seen));
            if left > 0 {
                let frames: Arc<[Frame]> = Arc::new([Frame::label(label)]);
                builder.add(&frames, state, pid, None, left, 0);
            }
        }
    }
}

/// What a thread is in that left the CPU for that reason; none for a hub that waits for
/// events, whose sleep is in the clocks only. A greenlet that polls blocks its thread, and
/// plain threads idle.
pub(super) fn asleep(why: u32, plain: bool, frames: &[Frame]) -> Option<State> {
    if why == Off::Gil as u32 {
        return Some(State::Gil);
    }
    if why != Off::Polled as u32 {
        return Some(State::Blocked);
    }
    // In the first moments the kernel part does not know yet which greenlets are hubs.
    let hub = runs(frames, "Hub.run", "gevent/hub.py");
    if plain { Some(State::Idle) } else { (!hub).then_some(State::Blocked) }
}
