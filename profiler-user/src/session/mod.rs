//! One recording: ties the kernel part, the targets and their memory to a profile.
//!
//! One thread, no async: it waits for records, for the targets' ends and for the
//! signal to stop, and turns what came into a [`Profile`].

mod blocks;
mod children;
mod clocked;
mod error;
mod feeding;
mod finish;
mod idle;
mod images;
mod labelled;
mod late;
mod names;
mod probes;
mod recorded;
mod records;
mod sleeps;
mod stacks;
mod texts;
mod ticks;
mod watch;

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
    },
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use profiler_common::limits::DEFAULT_GREENLETS;
use rustc_hash::FxHashMap;

pub use error::SessionError;

use crate::{
    clocks::{monotonic_ns, unix_ahead_ns},
    kernel::{Engine, KernelError, Parts, Probe, tick_ns},
    profile::{Cost, Frame, Profile, event::Feed},
    session::{
        children::{Armed, Wanted},
        images::Image,
        names::Asking,
        probes::Probes,
        recorded::Recorded,
        records::Was,
    },
    target::Target,
    timeline::lives::Bounds,
    trace::Source,
};

/// How often the recorder looks around when nothing happens.
const TURN: Duration = Duration::from_millis(100);
/// What epoll says of the signal to stop; a target's events have its number.
const STOP: u64 = u64::MAX;
/// What epoll says of the ring buffer.
const RING: u64 = u64::MAX - 1;
/// How often codes are validated.
const VALIDATION: Duration = Duration::from_secs(1);

/// Which functions are probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sites {
    /// `g_switchstack`.
    Switchstack,
    /// `g_switch` and `g_initialstub`.
    Pair,
    /// `g_switchstack`, with a program that does nothing (for `cargo xtask bench`).
    Empty,
}

impl Sites {
    const fn probes(self) -> &'static [Probe] {
        match self {
            Self::Switchstack => &[
                Probe::Switchstack,
                Probe::Freed,
                Probe::Made,
                Probe::CodeFreed,
                Probe::Poll,
                Probe::Module,
                Probe::Up,
            ],
            Self::Pair => &[
                Probe::Switch,
                Probe::Initialstub,
                Probe::Freed,
                Probe::Made,
                Probe::Poll,
                Probe::CodeFreed,
                Probe::Module,
                Probe::Up,
            ],
            // The engine always has it.
            Self::Empty => &[],
        }
    }
}

/// Where it is looked for whose work anything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labels {
    /// Nowhere.
    None,
    /// In processes with a tracer.
    Tracers,
    /// And on the sockets of those without.
    All,
}

/// What to record.
#[derive(Clone, Debug)]
pub struct Options {
    /// For how long; until something else ends it if none.
    pub duration: Option<Duration>,
    /// Where the probes go.
    pub sites: Sites,
    /// Dead greenlets of a target listed one by one.
    pub max_greenlets: u32,
    /// Keep every greenlet's intervals.
    pub intervals: bool,
    /// Take no stacks, only times (for `cargo xtask bench`).
    pub accounting_only: bool,
    /// Measure what a hit costs, in the first second.
    pub hit_cost: bool,
    /// Runs without a switch of this length are blocks; none without.
    pub block: Option<Duration>,
    /// Ticks of the CPU clock a second; none without.
    pub rate: Option<u32>,
    /// The targets' children as well.
    pub children: bool,
    /// Where it is looked for whose work anything is.
    pub labels: Labels,
    /// A greenlet has its maker's label until its context tells another.
    pub inherit: bool,
}

/// What the recorder tells while it works.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// Every probe is in place.
    Recording {
        /// Children that are recorded as well.
        children: usize,
        /// Whether those that come will be.
        follows: bool,
    },
    /// The scheduler can't be watched: no times on and off the CPU, and no children.
    NoClocks(&'a KernelError),
    /// The CPU clock can't be had: no stacks on the CPU.
    NoTicks(&'a KernelError),
    /// Sockets can't be watched: no labels for processes without a tracer.
    NoWire(&'a KernelError),
    /// That process's memory does not answer: nothing is read of it any more.
    NoAnswer(u32),
    /// A process's tracer makes no span of its requests: they are taken from the wire.
    Spanless {
        /// The process.
        pid: u32,
        /// Which tracer.
        source: Source,
    },
    /// A greenlet held up its thread.
    Block {
        /// The process.
        pid: u32,
        /// Whose run it was.
        name: Option<&'a str>,
        /// How long.
        length: Duration,
        /// The stack at its end, root first.
        frames: &'a [Frame],
        /// The stack that most ticks met in it, root first.
        met: Option<&'a [Frame]>,
    },
    /// Another turn.
    Turn {
        /// Since the start.
        elapsed: Duration,
        /// Switches so far.
        switches: u64,
        /// Stacks so far.
        stacks: usize,
    },
}

/// Records `targets` until the duration is over, `stop` is readable, or all of them
/// are gone; `feed` is told what happens meanwhile.
///
/// # Errors
///
/// When the kernel part can't be loaded or attached, or its maps can't be read.
pub fn record(
    targets: Vec<Target>,
    options: &Options,
    program_start: Instant,
    stop: BorrowedFd<'_>,
    feed: &mut dyn Feed,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Profile, SessionError> {
    let room = options.max_greenlets.max(DEFAULT_GREENLETS);
    let parts = Parts {
        probes: options.sites.probes(),
        wire: options.labels == Labels::All,
        ticks: options.rate.is_some(),
    };
    let mut engine = Engine::load(room, &parts)?;
    if options.hit_cost {
        engine.start_stats();
    }
    if let Some(error) = engine.clocks_refused() {
        progress(Progress::NoClocks(error));
    }
    let follows = options.children && engine.follows();
    let mut seen = targets.iter().map(|target| target.pid).collect();
    let wanted = targets.into_iter().map(Wanted::given).collect();
    let Armed { mut recorded, images } = children::arm(wanted, &mut seen, options, &mut engine)?;
    let pidfds = recorded
        .iter()
        .map(|recorded| match pidfd(recorded.target.pid) {
            Ok(pidfd) => Ok(Some(pidfd)),
            // The child is noticed to be gone when its books are read.
            Err(_) if recorded.parent.is_some() => Ok(None),
            Err(error) => Err(error),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut probes = Probes::new(options, follows);
    for target in &recorded {
        probes.attach(&target.target, target.cookie, &mut engine)?;
    }
    probes.tell(&mut recorded, 0);
    probes.tell_codes(&mut recorded);
    let mut wired = false;
    start_wire(&recorded, &mut wired, &mut engine, progress);
    let rate = options.rate.filter(|rate| match engine.start_ticks(*rate) {
        Ok(()) => true,
        Err(error) => {
            progress(Progress::NoTicks(&error));
            false
        }
    });
    let ahead_ns = unix_ahead_ns();
    let started_ns = monotonic_ns();
    let started_unix_ns = started_ns.saturating_add_signed(ahead_ns);
    for target in &mut recorded {
        target.start(started_ns, options, &mut engine)?;
    }
    let children = recorded.iter().filter(|target| target.parent.is_some()).count();
    progress(Progress::Recording { children, follows });
    for target in &mut recorded {
        target.look_around(&engine);
    }

    let places = (0..).zip(&recorded).map(|(place, target)| (u64::from(target.cookie), place)).collect();
    let epoll = watch(&engine, &pidfds, stop)?;
    let mut session = Session {
        epoll,
        engine,
        pidfds,
        places,
        images,
        probes,
        first_stack: None,
        asking: Asking::default(),
        wired,
    };
    session.run(&mut recorded, options, started_ns, feed, progress)?;
    let (ended_ns, cost) = session.end(&mut recorded, options)?;
    for target in &mut recorded {
        if target.fell_silent() {
            progress(Progress::NoAnswer(target.target.pid));
        }
        target.feed_end(ended_ns, &session.engine, feed)?;
    }
    finish::finish(
        &mut recorded,
        &session.engine,
        &finish::About {
            bounds: Bounds { started_ns, ended_ns },
            started_unix_ns,
            first_stack_ns: session.first_stack.map(|first| ns(first - program_start)),
            cost,
            tick_ns: rate.map(tick_ns),
        },
    )
}

/// Has the sockets watched if there is a target that needs it.
fn start_wire(
    recorded: &[Recorded],
    wired: &mut bool,
    engine: &mut Engine,
    progress: &mut dyn FnMut(Progress<'_>),
) {
    if *wired || !recorded.iter().any(Recorded::wants_wire) {
        return;
    }
    *wired = true;
    if let Err(error) = engine.start_wire() {
        progress(Progress::NoWire(&error));
    }
}

fn watch(engine: &Engine, pidfds: &[Option<OwnedFd>], stop: BorrowedFd<'_>) -> Result<OwnedFd, SessionError> {
    let wait = |error: Errno| SessionError::Wait(error.into());
    let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(wait)?;
    epoll::add(&epoll, stop, EventData::new_u64(STOP), EventFlags::IN).map_err(wait)?;
    // Edge-triggered: the kernel part decides when records are worth a wake-up.
    let ring = EventFlags::IN | EventFlags::ET;
    epoll::add(&epoll, engine.ring_fd(), EventData::new_u64(RING), ring).map_err(wait)?;
    for (index, pidfd) in (0..).zip(pidfds) {
        let Some(pidfd) = pidfd else {
            continue;
        };
        epoll::add(&epoll, pidfd, EventData::new_u64(index), EventFlags::IN).map_err(wait)?;
    }
    Ok(epoll)
}

struct Session {
    epoll: OwnedFd,
    engine: Engine,
    /// Of each recorded one, while it lives.
    pidfds: Vec<Option<OwnedFd>>,
    /// Where among the recorded ones a target is, by its number.
    places: FxHashMap<u64, usize>,
    /// Programs that may become targets.
    images: Vec<Image>,
    probes: Probes,
    first_stack: Option<Instant>,
    asking: Asking,
    /// Sockets are watched, or can't be.
    wired: bool,
}

impl Session {
    fn run(
        &mut self,
        recorded: &mut Vec<Recorded>,
        options: &Options,
        started_ns: u64,
        feed: &mut dyn Feed,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), SessionError> {
        let deadline = options.duration.map(|duration| started_ns + ns(duration));
        let mut next_validation = monotonic_ns() + ns(VALIDATION);
        loop {
            self.drain(recorded, options)?;
            self.retire(recorded, options)?;
            // After that: a new program's thread has its predecessor's number.
            self.look(recorded, options)?;
            self.reload(recorded, options)?;
            self.feed(recorded, feed, progress)?;
            let now = monotonic_ns();
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(());
            }
            if now >= next_validation {
                // What a hit costs was measured long enough.
                self.engine.stop_stats();
                self.validate(recorded, false)?;
                for target in recorded.iter_mut().filter(|target| target.gone_ns.is_none()) {
                    target.feed_responses(&self.engine, feed)?;
                }
                self.look_for_greenlet(recorded);
                start_wire(recorded, &mut self.wired, &mut self.engine, progress);
                next_validation = monotonic_ns() + ns(VALIDATION);
            }
            let (mut switches, mut identities) = (0, 0);
            for target in recorded.iter_mut() {
                if target.fell_silent() {
                    progress(Progress::NoAnswer(target.target.pid));
                }
                if let Some(kept) = &target.kept {
                    switches += kept.totals.switches;
                    identities += kept.totals.identities;
                    continue;
                }
                let totals = self.engine.totals(target.cookie)?;
                switches += totals.switches;
                identities += totals.identities;
                if target.gone_ns.is_some() {
                    continue;
                }
                target.notice_exec(&totals);
                target.notice_unready(&totals);
                if let Some(source) = target.notice_spanless(&totals) {
                    progress(Progress::Spanless { pid: target.target.pid, source });
                }
                if !target.looked_at {
                    target.look_around(&self.engine);
                }
                target.reconfigure(&mut self.engine)?;
            }
            self.ask_names(recorded, identities, false)?;
            let elapsed = Duration::from_nanos(now.saturating_sub(started_ns));
            let stacks = recorded.iter().map(Recorded::stack_count).sum();
            progress(Progress::Turn { elapsed, switches, stacks });
            if recorded.iter().all(|target| target.gone_ns.is_some()) {
                // The last one may have forked just before, or become another.
                self.retire(recorded, options)?;
                if self.images.is_empty() && recorded.iter().all(|target| target.gone_ns.is_some()) {
                    return Ok(());
                }
            }
            let wait = deadline.map_or(TURN, |deadline| TURN.min(Duration::from_nanos(deadline - now)));
            let wait = self.until_next_look().map_or(wait, |look| look.min(wait));
            if self.wait(recorded, wait)? {
                return Ok(());
            }
        }
    }

    /// Tells of all targets.
    fn feed(
        &mut self,
        recorded: &mut [Recorded],
        feed: &mut dyn Feed,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), SessionError> {
        let mut wanted = Vec::new();
        for target in recorded.iter_mut() {
            announce(target, progress);
            if target.feed(&mut self.engine, feed)? {
                wanted.push(target.cookie);
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        // What the kernel part has is read once for all of them.
        let (kept, time_ns) = feeding::look_at_waits(&self.engine, &wanted)?;
        for target in recorded.iter_mut() {
            if let Some(kept) = kept.get(&target.cookie) {
                target.feed_sums(kept, time_ns, &self.engine, feed);
            }
        }
        Ok(())
    }

    /// Waits for records, ends and the signal to stop; true for the last.
    fn wait(&mut self, recorded: &mut [Recorded], timeout: Duration) -> Result<bool, SessionError> {
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let mut events = Vec::with_capacity(16);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(SessionError::Wait(error.into())),
        }
        let mut stopped = false;
        for event in events {
            match event.data.u64() {
                STOP => stopped = true,
                RING => {}
                target => {
                    let index = usize::try_from(target).unwrap_or(usize::MAX);
                    if let (Some(target), Some(Some(pidfd))) =
                        (recorded.get_mut(index), self.pidfds.get(index))
                    {
                        // A pidfd stays readable: it has told what it knows.
                        epoll::delete(&self.epoll, pidfd)
                            .map_err(|error| SessionError::Wait(error.into()))?;
                        let totals = self.engine.totals(target.cookie)?;
                        target.exited(&totals, monotonic_ns());
                    }
                }
            }
        }
        Ok(stopped)
    }

    fn drain(&mut self, recorded: &mut Vec<Recorded>, options: &Options) -> Result<(), SessionError> {
        let mut records = Vec::new();
        // Taking a record may need the maps, which the ring's borrow holds.
        self.engine.drain(|record| records.push(record.to_vec()));
        for record in records {
            match records::take(&record, recorded, &self.places, &self.engine) {
                Was::Stack => {
                    self.first_stack.get_or_insert_with(Instant::now);
                }
                Was::Fork(fork) => self.follow(&fork, recorded, options)?,
                Was::Exec(exec) => self.replaced(&exec, recorded, options),
                Was::Loaded(loaded) => self.loaded(&loaded, recorded),
                Was::Up(up) => self.up(&up),
                Was::Other => {}
            }
        }
        Ok(())
    }

    fn validate(&mut self, recorded: &mut [Recorded], last: bool) -> Result<(), SessionError> {
        self.turn_pairs(recorded)?;
        let totals = self.engine.stacks()?.into_iter().collect();
        for target in recorded.iter_mut().filter(|target| target.gone_ns.is_none()) {
            target.find_tracer();
            target.validate(&totals, &mut self.engine)?;
            target.enumerate(last);
        }
        Ok(())
    }

    /// Takes the time by label that was counted in the last turn but one.
    fn turn_pairs(&mut self, recorded: &mut [Recorded]) -> Result<(), SessionError> {
        for (key, totals) in self.engine.turn_pairs()? {
            let place = self.places.get(&u64::from(key.label.target));
            if let Some(target) = place.and_then(|place| recorded.get_mut(*place)) {
                target.work.add(key, &totals);
            }
        }
        Ok(())
    }

    /// Ends the accounting, measures what a hit cost, then removes the probes.
    fn end(
        &mut self,
        recorded: &mut Vec<Recorded>,
        options: &Options,
    ) -> Result<(u64, Option<Cost>), SessionError> {
        // While the kernel part tells which greenlets live.
        self.ask_names(recorded, 0, true)?;
        for target in recorded.iter_mut() {
            target.label_suspended();
        }
        let mut stopped = 0;
        // They fork until they are stopped.
        while stopped < recorded.len() {
            for target in recorded.iter_mut().skip(stopped).filter(|target| target.kept.is_none()) {
                target.stop(&mut self.engine)?;
            }
            stopped = recorded.len();
            self.drain(recorded, options)?;
        }
        let ended_ns = monotonic_ns();
        self.drain(recorded, options)?;
        // First of all: the target may go away at any time.
        self.validate(recorded, true)?;
        // What it cost is good to know, and no reason to lose the recording.
        let cost = self.engine.ns_per_hit().ok().flatten().map(|ns_per_hit| Cost { ns_per_hit });
        self.engine.detach()?;
        self.drain(recorded, options)?;
        // What was counted in this turn, and in the one before.
        self.turn_pairs(recorded)?;
        self.turn_pairs(recorded)?;
        self.give_up(recorded);
        Ok((ended_ns, cost))
    }
}

fn announce(target: &mut Recorded, progress: &mut dyn FnMut(Progress<'_>)) {
    let pid = target.target.pid;
    for block in target.blocks.fresh().iter().filter(|block| block.sure) {
        progress(Progress::Block {
            pid,
            name: target.names.of(block.record.greenlet),
            length: Duration::from_nanos(block.record.ns),
            frames: &block.frames,
            met: block.ticks.first().map(|(frames, _)| &**frames),
        });
    }
}

fn pidfd(pid: u32) -> Result<OwnedFd, SessionError> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(SessionError::Gone { pid })?;
    pidfd_open(raw, PidfdFlags::empty()).map_err(|_| SessionError::Gone { pid })
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
