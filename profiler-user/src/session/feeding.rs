//! What a recording tells while it goes on, to those who serve tasks.

use std::{collections::hash_map::Entry, sync::Arc};

use profiler_common::{
    clock::{ON_CPU, Off as Reason},
    fault::Fault,
    label::{Blank, Label},
    owner::{OffOwner, off_of},
    record::{OffRecord, TICK_SWITCHING, TICK_UNSWITCHED, Thread, TickRecord},
    walk::StackKey,
};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    SessionError,
    clocked::{asleep, first_sleep},
    finish::state,
    idle::Idle,
    monotonic_ns,
    recorded::Recorded,
};
use crate::{
    kernel::{Engine, Kept, add_stacks},
    profile::{
        self, Frame, State, TracerRow,
        event::{Event, Feed, Lane, Off, OffSum, OnCpuSum, Process, Tick, Wants, Work},
    },
    target::GreenletState,
    timeline::lives::{self, Bounds, Open},
    trace::Request,
};

/// Events of a target that wait for the end of a turn.
const MOST_EVENTS: usize = 1 << 17;

/// What was told of one target.
#[derive(Debug, Default)]
pub(super) struct Told {
    began: bool,
    ended: bool,
    tracer: Option<TracerRow>,
    wants: Wants,
    /// Up to when its sums were told. Once they were, the last ones are told, too.
    summed_ns: Option<u64>,
    /// In the order in which they came.
    events: Vec<Event>,
}

impl Recorded {
    /// A tick, for those who want them.
    pub(super) fn feed_tick(&mut self, tick: &TickRecord, frames: Option<&Arc<[Frame]>>) {
        if !self.told.wants.ticks {
            return;
        }
        let whole = tick.flags & TICK_SWITCHING == 0;
        let greenlet = whole && tick.flags & TICK_UNSWITCHED == 0 && tick.greenlet != 0;
        let event = Event::Tick(Tick {
            pid: self.target.pid,
            lane: if greenlet { Lane::Greenlet(tick.greenlet) } else { Lane::Thread(tick.thread) },
            thread: tick.thread,
            time_ns: tick.head.time_ns,
            frames: frames.filter(|_| whole).map_or_else(|| Arc::new([]), Arc::clone),
            work: self.whose(&tick.label),
            is_sure: whole && !tick.stack.is_none() && !Blank::is_unknown(tick.blank),
        });
        self.keep(event);
    }

    /// A wait or a sleep is over.
    pub(super) fn feed_off(&mut self, off: &OffRecord) {
        let OffRecord { head, begin_ns, thread, greenlet, stack, label, queued } = off;
        let Some(work) = self.whose(label) else {
            return;
        };
        let (frames, owner) = match self.stacks.frames(stack) {
            Some((frames, owner)) => (frames, Some(owner)),
            None => (Arc::new([]) as Arc<[Frame]>, None),
        };
        let state = match owner.and_then(off_of) {
            Some(off) if off.why == Reason::Gil as u32 => State::Gil,
            Some(off) if self.idle.rests(&off, &frames) => State::Idle,
            Some(_) => State::Blocked,
            None => State::Wait,
        };
        let lane = if *greenlet == 0 { Lane::Thread(*thread) } else { Lane::Greenlet(*greenlet) };
        let pid = self.target.pid;
        let end_ns = head.time_ns;
        let ns = end_ns.saturating_sub(*begin_ns);
        let queued = (state == State::Wait).then(|| profile::queued(&frames, ns, queued));
        let off = Off { pid, lane, begin_ns: *begin_ns, end_ns, state, queued, frames, work };
        self.keep(Event::Off(off));
    }

    /// A greenlet is over: so is its request.
    pub(super) fn feed_end_of(&mut self, greenlet: u64) {
        if self.told.wants.off_from_ns == Some(0) {
            self.keep(Event::LaneEnded { pid: self.target.pid, lane: Lane::Greenlet(greenlet) });
        }
    }

    fn keep(&mut self, event: Event) {
        if self.told.events.len() >= MOST_EVENTS {
            self.fault(Fault::RingFullOff);
            return;
        }
        self.told.events.push(event);
    }

    fn whose(&self, label: &Label) -> Option<Work> {
        let labels = &self.work.labels;
        (!label.is_none()).then(|| Work {
            called: labels.called(label),
            began_unix_ms: labels.began_ms(&labels.request_of(label).id),
        })
    }

    /// Tells what happened since the last turn, and asks what is wanted until the next; true when
    /// its sums are.
    pub(super) fn feed(&mut self, engine: &mut Engine, feed: &mut dyn Feed) -> Result<bool, SessionError> {
        if self.told.ended {
            return Ok(false);
        }
        self.feed_events(feed);
        if !self.told.began {
            return Ok(false);
        }
        let pid = self.target.pid;
        if let Some(time_ns) = self.gone_ns {
            // After its books are closed.
            if let Some(kept) = self.kept.take() {
                self.feed_last(Some(&kept), time_ns, engine, feed);
                self.kept = Some(kept);
            }
            return Ok(false);
        }
        let wants = feed.wants(pid);
        let before = std::mem::replace(&mut self.told.wants, wants);
        if wants.off_from_ns != before.off_from_ns {
            self.change_config(|config| config.off_from_ns = wants.off_from_ns.unwrap_or(u64::MAX));
            self.reconfigure(engine)?;
        }
        if (wants.ticks, wants.off_from_ns) != (before.ticks, before.off_from_ns) {
            feed.take(Event::Telling { pid, wants, from_ns: monotonic_ns() });
        }
        if wants.responses != before.responses {
            self.work.recent = wants.responses.then(FxHashMap::default);
        }
        // Whoever wants them may be slow to take them, and still asks for those that were told.
        Ok(wants.sums_at_ns.is_some_and(|at_ns| {
            monotonic_ns() >= at_ns && self.told.summed_ns.is_none_or(|told_ns| told_ns < at_ns)
        }))
    }

    /// Tells the sums up to that time.
    pub(super) fn feed_sums(&mut self, kept: &Kept, time_ns: u64, engine: &Engine, feed: &mut dyn Feed) {
        self.told.summed_ns = Some(time_ns);
        let off = self.off_sums(kept, time_ns);
        let on_cpu = if engine.has_clocks() { on_cpu(kept, time_ns, self.began_ns) } else { Vec::new() };
        let ticks = self.told.wants.ticks;
        feed.take(Event::Sums { pid: self.target.pid, time_ns, off, on_cpu, ticks });
    }

    /// The recording is over.
    pub(super) fn feed_end(
        &mut self,
        ended_ns: u64,
        engine: &Engine,
        feed: &mut dyn Feed,
    ) -> Result<(), SessionError> {
        if self.told.ended {
            return Ok(());
        }
        self.feed_events(feed);
        if !self.told.began {
            return Ok(());
        }
        if let Some(kept) = self.kept.take() {
            // Its books were closed in the last turn.
            self.feed_last(Some(&kept), self.gone_ns.unwrap_or(ended_ns), engine, feed);
            self.kept = Some(kept);
            return Ok(());
        }
        let kept = match self.told.summed_ns {
            Some(_) => look_at_waits(engine, &[self.cookie])?.0.remove(&self.cookie),
            None => None,
        };
        self.feed_last(kept.as_ref(), ended_ns, engine, feed);
        Ok(())
    }

    fn feed_events(&mut self, feed: &mut dyn Feed) {
        self.feed_identity(feed);
        for event in self.told.events.drain(..) {
            feed.take(event);
        }
    }

    /// Nothing more is told of it.
    fn feed_last(&mut self, kept: Option<&Kept>, time_ns: u64, engine: &Engine, feed: &mut dyn Feed) {
        let pid = self.target.pid;
        if self.told.summed_ns.is_some()
            && let Some(kept) = kept
        {
            self.feed_sums(kept, time_ns, engine, feed);
        }
        self.told.ended = true;
        feed.take(Event::Ended { pid, time_ns });
    }

    fn feed_identity(&mut self, feed: &mut dyn Feed) {
        let pid = self.target.pid;
        if self.work.wanted && !self.work.looked {
            return;
        }
        let tracer = self.tracer_row();
        if !self.told.began {
            self.told.began = true;
            self.told.tracer.clone_from(&tracer);
            feed.take(Event::Began(Process {
                pid,
                parent: self.parent,
                command: self.target.command.clone(),
                greenlets: self.target.greenlet.is_some(),
                tracer,
            }));
        } else if let Some(tracer) = tracer
            && self.told.tracer.as_ref() != Some(&tracer)
        {
            self.told.tracer = Some(tracer.clone());
            feed.take(Event::Traced { pid, tracer });
        }
    }

    /// Tells of the requests that are over, by whose names no greenlet goes any more. This is to
    /// be called after the times by label are taken.
    pub(super) fn feed_responses(
        &mut self,
        engine: &Engine,
        feed: &mut dyn Feed,
    ) -> Result<(), SessionError> {
        let Some(recent) = self.work.recent.take() else {
            return Ok(());
        };
        let kept = engine.alive(&[self.cookie])?;
        let greenlets = kept.get(&self.cookie).into_iter().flat_map(|kept| &kept.greenlets);
        let held: FxHashSet<Request> =
            greenlets.map(|(_, greenlet)| self.work.labels.request_of(&greenlet.label).id).collect();
        let (open, over): (FxHashMap<_, _>, FxHashMap<_, _>) =
            recent.into_iter().partition(|(request, _)| held.contains(request));
        self.work.recent = Some(open);
        let began_ns = self.began_ns;
        let whole = over.into_values().filter(|(first_ns, _)| *first_ns > began_ns);
        let (count, sum_ns) = whole.fold((0, 0), |(count, sum_ns), (first_ns, last_ns)| {
            (count + 1, sum_ns + last_ns.saturating_sub(first_ns))
        });
        if count > 0 {
            feed.take(Event::Responses { pid: self.target.pid, count, sum_ns });
        }
        Ok(())
    }

    /// The time off the CPU so far, by stack: the kernel part has each thread's sleeps by themselves.
    fn off_sums(&mut self, kept: &Kept, time_ns: u64) -> Vec<OffSum> {
        let mut sums = Sums::default();
        for (key, parts) in self.stacks.parts(&kept.stacks) {
            for part in parts {
                let state = match off_of(part.type_object) {
                    Some(off) => off_cpu(&self.idle, &off, &part.frames),
                    None => Some(self.state_of(part.type_object, &part.frames)),
                };
                if let Some(state) = state
                    && !key.is_none()
                {
                    sums.add(OffSum { frames: part.frames, state, ns: part.ns, count: part.count });
                }
            }
        }
        self.add_open_waits(kept, time_ns, &mut sums);
        self.add_open_sleeps(kept, time_ns, &mut sums);
        sums.by_stack.into_values().collect()
    }

    fn state_of(&mut self, type_object: profiler_common::address::Addr, frames: &[Frame]) -> State {
        let hub = self.kind(type_object).is_some_and(|kind| kind.is_hub);
        state(hub, frames)
    }

    /// Waits that began before the recording, and those that are not over.
    fn add_open_waits(&mut self, kept: &Kept, time_ns: u64, sums: &mut Sums) {
        let bounds = Bounds { started_ns: self.began_ns, ended_ns: time_ns };
        let mut waits = Vec::new();
        let mut known = FxHashSet::default();
        for (key, greenlet) in &kept.greenlets {
            known.insert(key.pimpl);
            let life = lives::alive(key.pimpl, greenlet, &kept.lent, 0, bounds);
            waits.extend(life.open_waits.into_iter().map(|wait| (greenlet.type_object, wait)));
        }
        for ended in &self.ended {
            known.insert(ended.pimpl);
            let life = lives::ended(ended, 0);
            waits.extend(life.open_waits.into_iter().map(|wait| (ended.greenlet.type_object, wait)));
        }
        let mut add = |recorded: &mut Self, type_object, stack: &StackKey, ns, count| {
            let frames =
                recorded.stacks.frames(stack).map_or_else(|| Arc::new([]) as _, |(frames, _)| frames);
            let state = recorded.state_of(type_object, &frames);
            sums.add(OffSum { frames, state, ns, count });
        };
        for (type_object, wait) in waits {
            add(self, type_object, &wait.stack, wait.ns, u64::from(wait.open == Open::Begin));
        }
        let begun: Vec<_> = self.unlisted.begun.iter().map(|(stack, begun)| (*stack, *begun)).collect();
        for (stack, (ns, count, type_object)) in begun {
            add(self, type_object, &stack, ns, count);
        }
        // Those that never switched.
        for (found, frames) in self.enumerated.iter().zip(&self.enumerated_frames) {
            let unlisted = self.unlisted_from_before.contains(&(found.pimpl, found.object));
            if found.state == GreenletState::Suspended && !known.contains(&found.pimpl) && !unlisted {
                sums.add(OffSum {
                    frames: Arc::clone(frames),
                    state: state(found.kind.is_hub, frames),
                    ns: time_ns.saturating_sub(self.began_ns),
                    count: 0,
                });
            }
        }
    }

    /// Sleeps in which the recording began, and those that are not over.
    fn add_open_sleeps(&self, kept: &Kept, time_ns: u64, sums: &mut Sums) {
        for (key, thread) in &kept.threads {
            let clock =
                if thread.exit_ns == 0 { thread.clock.at(time_ns, self.began_ns) } else { thread.clock };
            let slept = |why: u32| clock.off_ns.get(why as usize).copied().unwrap_or_default();
            if let Some(first) = self.sleeps.get(&(*key as u32))
                && let Some(state) = off_cpu(&self.idle, &first_sleep(*key, thread, first.why), &first.frames)
            {
                let never = thread.clock.version == first.version;
                let ns = if never { slept(first.why) } else { thread.first_sleep_ns };
                sums.add(OffSum { frames: Arc::clone(&first.frames), state, ns, count: u64::from(!never) });
            }
            let why = thread.clock.state;
            if why != ON_CPU
                && thread.exit_ns == 0
                && let Some((frames, owner)) = self.stacks.frames(&thread.off_stack)
                && let Some(off) = off_of(owner)
                && let Some(state) = off_cpu(&self.idle, &off, &frames)
            {
                let ns = slept(why).saturating_sub(thread.off_before_ns);
                sums.add(OffSum { frames, state, ns, count: 0 });
            }
        }
    }
}

/// Time off the CPU of each stack: frames that are the same are most often shared.
#[derive(Default)]
struct Sums {
    by_stack: FxHashMap<(*const Frame, State), OffSum>,
}

impl Sums {
    fn add(&mut self, sum: OffSum) {
        match self.by_stack.entry((sum.frames.as_ptr(), sum.state)) {
            Entry::Occupied(mut known) => {
                known.get_mut().ns += sum.ns;
                known.get_mut().count += sum.count;
            }
            Entry::Vacant(free) => {
                free.insert(sum);
            }
        }
    }
}

/// The threads' time on CPUs. Of one whose number another had before, the end is that one's.
fn on_cpu(kept: &Kept, time_ns: u64, began_ns: u64) -> Vec<OnCpuSum> {
    let sum = |(key, thread): &(u64, Thread)| {
        let watched_ns = thread.clock.watched_ns;
        let runs = thread.exit_ns == 0 || thread.exit_ns < watched_ns;
        let clock = if runs { thread.clock.at(time_ns, began_ns) } else { thread.clock };
        OnCpuSum { thread: *key, watched_ns, ns: clock.on_cpu_ns }
    };
    kept.threads.iter().filter(|(_, thread)| thread.clock.version > 0).map(sum).collect()
}

/// All waits and sleeps of some targets up to now. One that ends while they are read is in neither,
/// until the next time.
pub(super) fn look_at_waits(
    engine: &Engine,
    targets: &[u32],
) -> Result<(FxHashMap<u32, Kept>, u64), SessionError> {
    let stacks = engine.stacks()?;
    let time_ns = monotonic_ns();
    let mut kept = engine.alive(targets)?;
    add_stacks(&mut kept, stacks);
    Ok((kept, time_ns))
}

/// What a thread is in that left the CPU for that reason. One without greenlets that waits for
/// files may be idle or wait for an answer (a socket with a timeout does so by `poll`): it is off
/// the CPU, and its stack tells.
fn off_cpu(idle: &Idle, off: &OffOwner, frames: &[Frame]) -> Option<State> {
    let unsure = off.plain && !idle.rests(off, frames);
    asleep(idle, off, frames).map(|state| if state == State::Idle && unsure { State::Blocked } else { state })
}
