//! Where the threads' and the greenlets' time went: clocks, ticks and sleeps, each state's
//! stacks summing to the clocks.

use std::{collections::BTreeMap, sync::Arc};

use profiler_common::{
    clock::{Clock, OFF_KINDS, Off},
    fault::Fault,
    label::Label,
    owner::{NO_CALL, OffOwner, TID_BITS, off_of},
    record::Thread,
};
use rustc_hash::FxHashMap;

use super::{
    finish::{Closing, is_gevents_hub},
    idle::{Idle, Place, Role},
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

/// A sleep that is not wholly inside.
struct OpenSleep {
    frames: Arc<[Frame]>,
    off: OffOwner,
    label: Label,
    ns: u64,
    count: u64,
}

/// How long those slept that idle, apart from what [`Clocked::new`] knows.
#[derive(Debug, Default)]
pub(super) struct Idled {
    threads: FxHashMap<u32, u64>,
    greenlets: FxHashMap<Place, u64>,
    /// Before their threads' first switches.
    first: FxHashMap<u32, u64>,
}

impl Closing<'_> {
    /// Finds out who idled, and for how long: before any clock is told.
    pub(super) fn find_idlers(&mut self, lives: &[Life]) {
        let mut ids: FxHashMap<Place, u64> = FxHashMap::default();
        let mut over = Vec::new();
        for life in lives {
            if self.target.kind(life.type_object).is_some_and(|kind| kind.is_hub) {
                self.target.idle.hub_threads.insert(tid_of(life.thread));
            }
            if life.place == 0 {
                continue;
            }
            let place = (tid_of(life.thread), life.place);
            ids.insert(place, life.id);
            if life.passes {
                self.target.idle.passing.insert(place);
            }
            let last = self.target.stacks.frames(&life.left).map(|(frames, _)| frames);
            if let Some(frames) = last.filter(|frames| !frames.is_empty()) {
                self.target.idle.left.insert(place, vec![frames]);
            } else if life.passes {
                // It is over, and its last stack gone.
                over.push((place, life.type_object));
            }
        }
        let parts = self.target.stacks.parts(&self.kept.stacks);
        for (place, type_object) in over {
            let of_type =
                parts.iter().flat_map(|(_, parts)| parts).filter(|part| part.type_object == type_object);
            let frames = of_type.map(|part| Arc::clone(&part.frames)).collect();
            self.target.idle.left.insert(place, frames);
        }
        let mut sleeps: Vec<(OffOwner, Arc<[Frame]>, u64)> = Vec::new();
        for part in parts.into_iter().flat_map(|(_, parts)| parts) {
            if let Some(off) = off_of(part.type_object) {
                sleeps.push((off, part.frames, part.ns));
            }
        }
        let open = self.open_sleeps().into_iter().map(|sleep| (sleep.off, sleep.frames, sleep.ns));
        sleeps.extend(open);
        for (off, frames, _) in &sleeps {
            self.target.idle.meet(off, frames);
        }
        let switched: FxHashMap<u32, bool> =
            self.kept.threads.iter().map(|(key, thread)| (tid_of(*key), thread.seen_ns != 0)).collect();
        // What was learned while it was recorded was a guess where the last stack was not known.
        let mut roles = std::mem::take(&mut self.target.idle.roles);
        roles.retain(|_, role| *role != Role::Doubt);
        for (off, frames, ns) in sleeps {
            if let (Some(role), Some(id)) =
                (self.target.idle.role(&off, &frames), ids.get(&(off.tid, off.place)))
            {
                let known = roles.entry(*id).or_insert(role);
                if *known == Role::Doubt {
                    *known = role;
                }
            }
            if asleep(&self.target.idle, &off, &frames) != Some(State::Idle) {
                continue;
            }
            // A thread that never switched polls idly, and its clock says so.
            let known = off.why == Off::Polled as u32 && switched.get(&off.tid) == Some(&false);
            if !known {
                *self.idled.threads.entry(off.tid).or_default() += ns;
            }
            if off.plain && !known {
                *self.idled.first.entry(off.tid).or_default() += ns;
            } else if off.place != 0 {
                *self.idled.greenlets.entry((off.tid, off.place)).or_default() += ns;
            }
        }
        self.target.idle.roles = roles;
    }

    /// A thread's clock without what it idled.
    pub(super) fn without_idle(&self, key: u64, clock: Clocked) -> Clocked {
        clock.idle(self.idled.threads.get(&tid_of(key)).copied().unwrap_or(0))
    }

    /// The sleeps in which the recording began, and those that are not over.
    fn open_sleeps(&self) -> Vec<OpenSleep> {
        let mut sleeps = Vec::new();
        for (key, thread) in &self.kept.threads {
            let Some(watched) = self.threads.get(key) else {
                continue;
            };
            let first = watched.tid.and_then(|tid| self.target.sleeps.get(&tid));
            if let Some(Sleep { frames, label, why, version }) = first
                && let Some(clock) = watched.clock
            {
                // It never woke, or once.
                let never = thread.clock.version == *version;
                let all = clock.off_ns.get(*why as usize).copied().unwrap_or_default();
                let ns = if never { all } else { thread.first_sleep_ns };
                let mut off = first_sleep(*key, thread, *why);
                // Nothing switched before: it was the first greenlet's.
                let first = self.places.get(&thread.first_greenlet).copied();
                off.place = first.unwrap_or_default();
                let (frames, label, count) = (Arc::clone(frames), *label, u64::from(!never));
                sleeps.push(OpenSleep { frames, off, label, ns, count });
            }
            let why = thread.clock.state;
            let slept = watched.clock.and_then(|clock| clock.off_ns.get(why as usize).copied());
            if let Some(slept) = slept
                && thread.exit_ns == 0
                && let Some((frames, owner)) = self.target.stacks.frames(&thread.off_stack)
                && let Some(off) = off_of(owner)
            {
                let ns = slept.saturating_sub(thread.off_before_ns);
                sleeps.push(OpenSleep { frames, off, label: thread.off_label, ns, count: 0 });
            }
        }
        sleeps
    }

    /// Where a greenlet's running time went.
    pub(super) fn clock(&self, life: &Life, hub: bool, profile: &mut Profile) -> Option<Clocked> {
        let thread = self.threads.get(&life.thread)?;
        if !self.has_clocks || life.first && thread.clock.is_none() {
            return None;
        }
        let clock = Clocked::new(life.running_ns, life.off_ns, hub)?;
        self.idles(thread, clock.idle_ns, profile);
        let tid = tid_of(life.thread);
        let idled = self.idled.greenlets.get(&(tid, life.place)).copied().unwrap_or(0);
        let first = self.idled.first.get(&tid).copied().filter(|_| life.first).unwrap_or(0);
        Some(clock.idle(idled + first))
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
        let found = self.threads.iter().find(|(_, thread)| thread.tid.is_some() && thread.tid == tid);
        let (key, thread) = found?;
        Some(self.without_idle(*key, Clocked::new(duration_ns, thread.clock?.off_ns, true)?))
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
        for watched in self.threads.values() {
            if let Some(row) = profile.threads.get(watched.row).and_then(|row| row.clock) {
                *truth.entry(State::Blocked).or_default() += row.blocked_ns;
                *truth.entry(State::Gil).or_default() += row.gil_wait_ns;
                *truth.entry(State::Preempted).or_default() += row.preempted_ns;
            }
        }
        for OpenSleep { frames, off, label, ns, count } in self.open_sleeps() {
            let Some(state) = asleep(&self.target.idle, &off, &frames) else {
                continue;
            };
            *self.seen.entry(state).or_default() += ns;
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

/// The id of a thread by the kernel's key of it, as in the owner of a stack.
fn tid_of(key: u64) -> u32 {
    (key & TID_BITS) as u32
}

/// A sleep in which the recording began, as the kernel part would say it.
pub(super) fn first_sleep(key: u64, thread: &Thread, why: u32) -> OffOwner {
    let plain = thread.seen_ns == 0;
    OffOwner { why, plain, call: NO_CALL, tid: tid_of(key), ..OffOwner::default() }
}

/// What a thread is in that slept so; none for a hub that waits for events and is known by its
/// type, whose sleep is in the clocks only. A greenlet that polls blocks its thread, unless it is
/// the thread's hub, and plain threads idle.
pub(super) fn asleep(idle: &Idle, off: &OffOwner, frames: &[Frame]) -> Option<State> {
    if off.why == Off::Gil as u32 {
        return Some(State::Gil);
    }
    let polled = off.why == Off::Polled as u32;
    // In the first moments the kernel part does not know yet which greenlets are hubs.
    if polled && !off.plain && is_gevents_hub(frames) {
        return None;
    }
    let idles = polled && off.plain || idle.rests(off, frames);
    Some(if idles { State::Idle } else { State::Blocked })
}
