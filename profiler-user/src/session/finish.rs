//! From what was kept and sent to the profile.

use std::{collections::BTreeMap, sync::Arc};

use profiler_common::{
    address::Addr,
    fault::Fault,
    greenlet::{Head, Life as Stage},
    label::Label,
    memory::Memory as _,
    owner::off_of,
    record::{StackTotals, Thread, Totals},
    walk::{SCRATCH_WORDS, StackKey},
};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    SessionError,
    clocked::{Idled, Watched, asleep},
    idle,
    labelled::{Sorted, count_looks},
    recorded::{Recorded, Unlisted},
};
use crate::{
    kernel::{Engine, Kept},
    memory::LiveProcess,
    profile::{
        Builder, Clocked, Cost, Frame, GreenletRow, IntervalRow, Profile, RunRow, State, TargetRow,
        ThreadRow, TotalsRow, Waits,
    },
    target::{self, GreenletState},
    timeline::{
        intervals::State as LaneState,
        lives::{self, Bounds, Life, Open},
    },
};

/// What the recording knows besides its targets.
pub(super) struct About {
    pub(super) bounds: Bounds,
    pub(super) started_unix_ns: u64,
    pub(super) first_stack_ns: Option<u64>,
    pub(super) cost: Option<Cost>,
    /// From one tick of the CPU clock to the next, if it ticked.
    pub(super) tick_ns: Option<u64>,
}

/// Makes the profile.
pub(super) fn finish(
    recorded: &mut [Recorded],
    engine: &Engine,
    about: &About,
) -> Result<Profile, SessionError> {
    let open: Vec<u32> =
        recorded.iter().filter(|target| target.kept.is_none()).map(|target| target.cookie).collect();
    let mut kept = engine.kept(&open)?;
    let mut profile = Profile {
        targets: Vec::new(),
        started_unix_ns: about.started_unix_ns,
        started_monotonic_ns: about.bounds.started_ns,
        duration_ns: about.bounds.ended_ns.saturating_sub(about.bounds.started_ns),
        first_stack_ns: about.first_stack_ns,
        totals: TotalsRow::default(),
        threads: Vec::new(),
        greenlets: Vec::new(),
        stacks: Vec::new(),
        runs: Vec::new(),
        blocks: Vec::new(),
        only: None,
        labels: Vec::new(),
        requests: Vec::new(),
        intervals: None,
        cost: about.cost,
    };
    let mut builder = Builder::default();
    let mut faults = BTreeMap::new();
    let mut unlisted = Some(Clocked::default());
    for target in recorded.iter_mut() {
        let Some(kept) = target.kept.take().or_else(|| kept.remove(&target.cookie)) else {
            continue;
        };
        let mut bounds = Bounds { started_ns: target.began_ns, ..about.bounds };
        if let Some(gone_ns) = target.gone_ns {
            bounds.ended_ns = bounds.ended_ns.min(gone_ns);
        }
        let mut closing = Closing {
            target,
            totals: kept.totals,
            kept: &kept,
            bounds,
            origin_ns: about.bounds.started_ns,
            faults: FxHashMap::default(),
            threads: FxHashMap::default(),
            has_clocks: engine.has_clocks(),
            tick_ns: about.tick_ns,
            seen: FxHashMap::default(),
            idled: Idled::default(),
            places: FxHashMap::default(),
            sorted: Sorted::default(),
            unlisted_clock: None,
        };
        closing.close(&mut profile, &mut builder);
        // Where one of them is not known, nor is the sum.
        unlisted = unlisted.zip(closing.unlisted_clock).map(|(sum, clock)| sum.plus(clock));
        closing.count(&mut profile.totals, &mut faults);
    }
    profile.totals.unlisted_clock = unlisted;
    profile.stacks = builder.finish();
    profile.runs.sort_by_key(|run| std::cmp::Reverse(run.ns));
    profile.runs.truncate(profiler_common::limits::TOP_RUNS);
    profile.totals.faults = faults;
    Ok(profile)
}

/// One target's part of the profile in the making.
pub(super) struct Closing<'a> {
    pub(super) target: &'a mut Recorded,
    pub(super) kept: &'a Kept,
    pub(super) totals: Totals,
    pub(super) bounds: Bounds,
    /// When the recording began.
    pub(super) origin_ns: u64,
    pub(super) faults: FxHashMap<Fault, u64>,
    /// By the kernel's key.
    pub(super) threads: FxHashMap<u64, Watched>,
    /// Whether the threads' clocks were kept.
    pub(super) has_clocks: bool,
    pub(super) tick_ns: Option<u64>,
    /// The time of the stacks in the profile so far, by state.
    pub(super) seen: FxHashMap<State, u64>,
    /// Who idled.
    pub(super) idled: Idled,
    /// The numbers of the greenlets on their threads, by the kernel's identity.
    pub(super) places: FxHashMap<u64, u32>,
    /// Whose work its time was.
    pub(super) sorted: Sorted,
    /// Where the time of its greenlets went that are not listed, once that is known.
    pub(super) unlisted_clock: Option<Clocked>,
}

impl Closing<'_> {
    fn close(&mut self, profile: &mut Profile, builder: &mut Builder) {
        let pid = self.target.target.pid;
        profile.targets.push(TargetRow {
            pid,
            parent: self.target.parent,
            python: self.target.target.python.version.to_string(),
            greenlet: self.target.target.greenlet.as_ref().map(|greenlet| {
                greenlet.version.map_or_else(|| "unknown".to_owned(), |version| version.to_string())
            }),
            command: self.target.target.command.join(" "),
            began_ns: self.bounds.started_ns.saturating_sub(self.origin_ns),
            unseen_ns: self.target.exec_ns.map(|exec_ns| self.bounds.started_ns.saturating_sub(exec_ns)),
            tracer: self.target.tracer_row(),
        });
        self.threads(profile);
        let lives = self.lives();
        self.places = lives.iter().map(|life| (life.id, life.place)).collect();
        self.find_idlers(&lives);
        for (key, watched) in &self.threads {
            if let Some(clock) = profile.threads.get_mut(watched.row).and_then(|row| row.clock.as_mut()) {
                *clock = self.without_idle(*key, *clock);
            }
        }
        self.close_labels(&lives);
        let base = profile.greenlets.len() as u64;
        let ids: FxHashMap<u64, u64> = lives.iter().zip(base + 1..).map(|(life, id)| (life.id, id)).collect();
        for (life, id) in lives.iter().zip(base + 1..) {
            let name = self.name(life);
            let hub = self.target.kind(life.type_object).is_some_and(|kind| kind.is_hub);
            let clock = self.clock(life, hub, profile);
            if hub {
                self.target.hubs.insert(life.id);
            }
            profile.greenlets.push(GreenletRow {
                id,
                pid,
                tid: self.threads.get(&life.thread).and_then(|thread| thread.tid),
                name,
                main: life.main,
                alive: life.alive,
                switches_in: life.switches_in,
                running_ns: Some(life.running_ns),
                clock,
                waiting_ns: Some(life.waiting_ns),
                label: None,
            });
            let label = self.label(&life.label, profile);
            if let Some(row) = profile.greenlets.last_mut() {
                row.label = label;
            }
            for wait in &life.open_waits {
                let frames = self.frames(&wait.stack);
                let state = state(hub, &frames);
                let label = self.open_label(&wait.label, wait.ns, wait.open, profile);
                builder.add_open(&frames, state, pid, label, wait.ns, (id, wait.open));
            }
        }
        self.never_switched(&lives, profile, builder);
        self.unlisted(profile, builder);
        self.on_cpu(&ids, profile, builder);
        self.stacks(profile, builder);
        self.off_cpu(profile, builder);
        self.runs(&ids, profile);
        self.blocks(&ids, profile);
        self.intervals(&ids, &lives, profile);
        self.requests(profile);
    }

    fn threads(&mut self, profile: &mut Profile) {
        if self.target.gone_ns.is_none() {
            self.target.name_threads();
        }
        for (key, thread) in &self.kept.threads {
            let found = self.thread(*key, thread);
            let tid = found.as_ref().map(|found| found.tid);
            let existed = found.as_ref().is_some_and(|found| found.at_start);
            let switched = thread.seen_ns != 0;
            let Bounds { started_ns, ended_ns } = self.bounds;
            let clock =
                if thread.exit_ns == 0 { thread.clock.at(ended_ns, started_ns) } else { thread.clock };
            // One that was there and could not be watched is known from its first switch on.
            let whole = self.has_clocks && !(existed && clock.watched_ns > started_ns);
            let watched = Watched {
                tid,
                head_start_ns: lives::head_start_ns(thread, existed, self.bounds),
                clock: whole.then_some(clock),
                uncharged_ns: lives::uncharged_ns(thread, &clock),
                row: profile.threads.len(),
            };
            let all_ns = clock.on_cpu_ns + clock.off_ns.iter().sum::<u64>();
            profile.threads.push(ThreadRow {
                pid: self.target.target.pid,
                tid,
                name: found.and_then(|found| found.name),
                switched,
                // A thread's waits for many files are blocked unless a hub's, if it has one.
                switching_ns: self.tick_ns.map(|ns| self.target.ticks.switching(*key) * ns),
                clock: watched.clock.and_then(|clock| Clocked::new(all_ns, clock.off_ns, !switched)),
            });
            self.threads.insert(*key, watched);
        }
    }

    /// Which of the threads that /proc shows it is.
    ///
    /// The kernel's numbers are those of its first pid namespace. They are ours if the
    /// process's are; else the thread state tells the number in the target's own.
    fn thread(&mut self, key: u64, thread: &Thread) -> Option<FoundThread> {
        let tgid = (key >> 32) as u32;
        let tid = key as u32;
        let target = &self.target.target;
        let native = self
            .target
            .memory
            .word(thread.tstate.at(target.python.layout.tstate_native_id))
            .ok()
            .and_then(|word| u32::try_from(word).ok());
        let matches = |found: &&target::Thread| {
            if tgid == target.pid { found.tid == tid } else { Some(found.own_tid) == native }
        };
        let start = target.threads.iter().find(matches);
        let now = target::threads(target);
        let Some(found) = start.or_else(|| now.iter().find(matches)) else {
            // Begun and ended inside: its number is known if it is ours.
            let name = self.target.thread_names.get(&tid).cloned();
            return (tgid == target.pid).then_some(FoundThread { tid, name, at_start: false });
        };
        let name = self.target.thread_names.get(&found.tid).unwrap_or(&found.name).clone();
        Some(FoundThread { tid: found.tid, name: Some(name), at_start: start.is_some() })
    }

    fn lives(&mut self) -> Vec<Life> {
        let head_start = |thread: u64| self.threads.get(&thread).map_or(0, |thread| thread.head_start_ns);
        let threads = self.kept.threads.iter();
        let ended: FxHashSet<u64> =
            threads.filter(|(_, thread)| thread.exit_ns != 0).map(|(key, _)| *key).collect();
        let mut lives: Vec<Life> = self
            .target
            .ended
            .iter()
            .map(|record| lives::ended(record, head_start(record.greenlet.thread)))
            .collect();
        lives.extend(self.kept.greenlets.iter().map(|(key, greenlet)| {
            let mut life =
                lives::alive(key.pimpl, greenlet, &self.kept.lent, head_start(greenlet.thread), self.bounds);
            // Without its thread nothing can run it any more.
            life.alive = self.target.gone_ns.is_none() && !ended.contains(&greenlet.thread);
            life
        }));
        lives::spread(&mut lives, |thread| Some(self.threads.get(&thread)?.uncharged_ns));
        lives.sort_by_key(|life| (life.seen_ns, life.id));
        lives
    }

    fn name(&mut self, life: &Life) -> Option<String> {
        let own = self.target.names.of(life.id);
        // After a hit that was not accounted one may have been born unseen.
        let from_before = || self.target.enumerated_name(life).filter(|_| self.totals.blind == 0);
        match own.or_else(from_before) {
            Some(own) => Some(own.to_owned()),
            None => self.target.kind(life.type_object).map(|kind| kind.name.clone()),
        }
    }

    /// Root first; unknown if the record with its frames never came.
    pub(super) fn frames(&mut self, key: &StackKey) -> Arc<[Frame]> {
        if key.is_none() {
            return Arc::new([]);
        }
        if let Some((frames, _)) = self.target.stacks.frames(key) {
            return frames;
        }
        *self.faults.entry(Fault::StackUnknown).or_default() += 1;
        Arc::new([Frame::UNKNOWN])
    }

    /// Greenlets that enumeration found and no switch ever touched.
    fn never_switched(&mut self, lives: &[Life], profile: &mut Profile, builder: &mut Builder) {
        let switched: FxHashSet<Addr> = lives.iter().map(|life| life.pimpl).collect();
        let pid = self.target.target.pid;
        let duration_ns = self.bounds.ended_ns.saturating_sub(self.bounds.started_ns);
        let layout = self.target.layout();
        let found = std::mem::take(&mut self.target.enumerated);
        let frames = std::mem::take(&mut self.target.enumerated_frames);
        for (found, frames) in found.into_iter().zip(frames) {
            let unlisted = self.target.unlisted_from_before.contains(&(found.pimpl, found.object));
            if switched.contains(&found.pimpl) || unlisted {
                continue;
            }
            match found.state {
                GreenletState::Unstarted => {
                    profile.totals.greenlets_unstarted += 1;
                    continue;
                }
                GreenletState::Finished => continue,
                GreenletState::Suspended | GreenletState::Running => {}
            }
            if let Some(doubt) = found.doubt {
                *self.faults.entry(doubt).or_default() += 1;
            }
            let alive = self.target.gone_ns.is_none();
            // Freed without a switch is possible, and so is one whose switches had no room
            // (both counted): then how long it waited is unknown.
            let lost = self.totals.unlisted > 0 || self.fault(Fault::GreenletsFull) > 0;
            let unchanged = |memory: &mut LiveProcess| {
                Head::read(&layout, memory, found.pimpl, &mut [0; SCRATCH_WORDS])
                    .is_ok_and(|head| head.object == found.object && head.life(false) == Stage::Active)
            };
            let same = !lost && (!alive || unchanged(&mut self.target.memory));
            let running = found.state == GreenletState::Running;
            profile.totals.greenlets_seen += 1;
            let id = profile.greenlets.len() as u64 + 1;
            let tid = found.thread.and_then(|thread| thread.tid);
            let clock = same.then(|| self.clock_of_one(tid, running, duration_ns));
            profile.greenlets.push(GreenletRow {
                id,
                pid,
                tid,
                name: found.name.clone().or_else(|| Some(found.kind.name.clone())),
                main: found.main,
                alive: alive && same,
                switches_in: 0,
                running_ns: if running { same.then_some(duration_ns) } else { Some(0) },
                clock: clock.flatten(),
                waiting_ns: if running { Some(0) } else { same.then_some(duration_ns) },
                label: None,
            });
            if !running && same {
                let state = state(found.kind.is_hub, &frames);
                let label = self.target.enumerated_labels.get(&found.pimpl).copied().unwrap_or(Label::NONE);
                let label = self.open_label(&label, duration_ns, Open::Both, profile);
                if let Some(row) = profile.greenlets.last_mut() {
                    row.label = label;
                }
                builder.add_open(&frames, state, pid, label, duration_ns, (id, Open::Both));
            }
        }
    }

    /// How often the kernel part met a fault.
    fn fault(&self, fault: Fault) -> u64 {
        self.totals.faults.get(fault as usize).copied().unwrap_or_default()
    }

    /// Dead greenlets that the list has no room for.
    fn unlisted(&mut self, profile: &mut Profile, builder: &mut Builder) {
        let Unlisted { greenlets, switches_in, running_ns, waiting_ns, off_ns, begun, first_of } =
            std::mem::take(&mut self.target.unlisted);
        let head_start = |thread| self.threads.get(thread).map_or(0, |thread| thread.head_start_ns);
        let head_starts: u64 = first_of.iter().map(head_start).sum();
        let lost = &self.totals;
        let totals = &mut profile.totals;
        totals.greenlets_unlisted += greenlets + lost.unlisted;
        totals.unlisted_switches_in += switches_in + lost.unlisted_switches_in;
        totals.unlisted_running_ns += running_ns + head_starts + lost.unlisted_running_ns;
        totals.unlisted_waiting_ns += waiting_ns + lost.unlisted_waiting_ns;
        let mut off_ns = off_ns;
        for (sum, ns) in off_ns.iter_mut().zip(lost.unlisted_off_ns) {
            *sum += ns;
        }
        let running_ns = running_ns + head_starts + lost.unlisted_running_ns;
        self.unlisted_clock = self.has_clocks.then(|| Clocked::new(running_ns, off_ns, false)).flatten();
        let pid = self.target.target.pid;
        for (stack, (ns, count, type_object)) in begun {
            let hub = self.target.kind(type_object).is_some_and(|kind| kind.is_hub);
            let frames = self.frames(&stack);
            builder.add_unlisted(&frames, state(hub, &frames), pid, ns, count);
        }
    }

    fn stacks(&mut self, profile: &mut Profile, builder: &mut Builder) {
        let pid = self.target.target.pid;
        let parts = self.target.stacks.parts(&self.kept.stacks);
        let mut known = FxHashSet::default();
        for (key, parts) in parts {
            known.insert(key);
            for part in self.joined(&key, parts) {
                // Where each key stands for the same codes from first to last, that one of them is
                // unknown was counted when its stack came, and not how much waited in it.
                if self.target.stacks.are_for_good() && part.frames.iter().any(Frame::is_unknown) {
                    *self.faults.entry(Fault::CodeReused).or_default() += part.count;
                }
                if part.count == 0 && part.ns == 0 {
                    continue;
                }
                let state = match off_of(part.type_object) {
                    Some(off) => match asleep(&self.target.idle, &off, &part.frames) {
                        Some(state) => state,
                        None => continue,
                    },
                    None => {
                        let hub = self.target.kind(part.type_object).is_some_and(|kind| kind.is_hub);
                        state(hub, &part.frames)
                    }
                };
                *self.seen.entry(state).or_default() += part.ns;
                let waits = Waits { ns: part.ns, count: part.count, queued: part.queued };
                for (label, Waits { ns, count, queued }) in self.by_label(&key, waits, profile) {
                    if state == State::Wait {
                        builder.add_waits(&part.frames, pid, label, &Waits { ns, count, queued });
                    } else {
                        builder.add(&part.frames, state, pid, label, ns, count);
                    }
                }
            }
        }
        for (key, totals) in &self.kept.stacks {
            if totals.count > 0 && !known.contains(key) {
                *self.faults.entry(Fault::StackUnknown).or_default() += 1;
                let unknown: Arc<[Frame]> = Arc::new([Frame::UNKNOWN]);
                let StackTotals { ns, count, queued, .. } = *totals;
                for (label, waits) in self.by_label(key, Waits { ns, count, queued }, profile) {
                    builder.add_waits(&unknown, pid, label, &waits);
                }
            }
        }
    }

    fn runs(&mut self, ids: &FxHashMap<u64, u64>, profile: &mut Profile) {
        for run in self.totals.runs {
            // A hub's, or a pool worker's, is most often idle.
            if run.ns == 0 || self.target.idle.roles.contains_key(&run.greenlet) {
                continue;
            }
            let greenlet = ids.get(&run.greenlet).copied();
            let frames = self.frames(&run.stack);
            profile.runs.push(RunRow {
                ns: run.ns,
                greenlet,
                name: named(profile, greenlet),
                pid: self.target.target.pid,
                frames,
            });
        }
    }

    fn intervals(&mut self, ids: &FxHashMap<u64, u64>, lives: &[Life], profile: &mut Profile) {
        let Some(mut intervals) = self.target.intervals.take() else {
            return;
        };
        let mut rows = profile.intervals.take().unwrap_or_default();
        for life in lives {
            let head_start = self.threads.get(&life.thread).map_or(0, |thread| thread.head_start_ns);
            if life.born {
                intervals.born(life.id);
            } else if life.first && head_start == 0 {
                // What it did before its thread's first switch is not known.
                intervals.first_seen(life.id, life.seen_ns);
            }
        }
        *self.faults.entry(Fault::IntervalsFull).or_default() += intervals.dropped();
        for (kernel_id, lane) in intervals.finish(self.bounds) {
            let Some(id) = ids.get(&kernel_id) else {
                continue;
            };
            for interval in lane {
                let (frames, label) = match interval.state {
                    LaneState::Running => (None, None),
                    LaneState::Waiting(key, label) => (Some(self.frames(&key)), self.label(&label, profile)),
                };
                rows.push(IntervalRow {
                    label,
                    greenlet: *id,
                    begin_ns: interval.begin_ns.saturating_sub(self.origin_ns),
                    end_ns: interval.end_ns.saturating_sub(self.origin_ns),
                    frames,
                    open: interval.open,
                });
            }
        }
        profile.intervals = Some(rows);
    }

    /// Adds this target's counts to the totals.
    fn count(self, totals: &mut TotalsRow, faults: &mut BTreeMap<&'static str, u64>) {
        let Self { target, totals: kept, faults: met, .. } = self;
        let mut all: FxHashMap<Fault, u64> = met;
        if !target.enumerated_whole {
            *all.entry(Fault::EnumerationIncomplete).or_default() += 1;
        }
        for (fault, count) in Fault::ALL.into_iter().zip(kept.faults) {
            *all.entry(fault).or_default() += count;
        }
        for (fault, count) in
            target.faults.iter().chain(target.stacks.faults().iter().map(|(fault, count)| (*fault, *count)))
        {
            *all.entry(fault).or_default() += count;
        }
        let of = |fault: Fault| all.get(&fault).copied().unwrap_or_default();
        count_looks(&kept, target, totals);
        totals.switches += kept.switches;
        totals.probe_hits += kept.hits;
        totals.records_lost += of(Fault::RingFullStack)
            + of(Fault::RingFullEnd)
            + of(Fault::RingFullSwitch)
            + of(Fault::RingFullTick)
            + of(Fault::RingFullLabel)
            + of(Fault::RingFullOff);
        totals.stacks_truncated += of(Fault::StackTruncated);
        totals.greenlets_seen += kept.greenlets;
        for (fault, count) in all {
            if count > 0 {
                *faults.entry(fault.name()).or_default() += count;
            }
        }
    }
}

/// The name of a greenlet of the profile: their numbers are their places, from 1.
pub(super) fn named(profile: &Profile, greenlet: Option<u64>) -> Option<String> {
    let place = usize::try_from(greenlet?.checked_sub(1)?).ok()?;
    profile.greenlets.get(place)?.name.clone()
}

struct FoundThread {
    tid: u32,
    name: Option<String>,
    at_start: bool,
}

/// A suspended hub is told by its type; eventlet's, which has none of its own, by what it runs.
pub(super) fn state(hub: bool, frames: &[Frame]) -> State {
    if hub || idle::suspended(frames) { State::Idle } else { State::Wait }
}

/// Whether it is the stack of gevent's hub, which is known by its type.
pub(super) fn is_gevents_hub(frames: &[Frame]) -> bool {
    frames.first().is_some_and(|root| {
        root.function.as_deref() == Some("Hub.run")
            && root.file.as_deref().is_some_and(|file| file.ends_with("gevent/hub.py"))
    })
}
