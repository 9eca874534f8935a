//! What is known of one target while it is recorded.

use std::{sync::Arc, time::Duration};

use bytemuck::Zeroable as _;
use profiler_common::{
    address::Addr,
    clock::OFF_KINDS,
    fault::Fault,
    label::{Label, LabelConfig},
    layout::Layout,
    limits::{HUB_TYPES, MAX_ENUMERATIONS, MAX_IDLERS},
    owner::{ON_CPU_OWNER, off_of},
    record::{
        ARMED, CONFIG_CHILDREN, CONFIG_CODES, CONFIG_RUNS, CONFIG_STACKS, CONFIG_SWITCHES, CONFIG_WIRE,
        EndRecord, ForkRecord, GREENLET_FIRST, Greenlet as KernelGreenlet, Kin, StackHead, StackTotals,
        TargetConfig, TickRecord, Totals,
    },
    walk::{self, SCRATCH_WORDS, StackKey, code_check},
};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    Labels, Options, SessionError,
    blocks::Blocks,
    children::Wanted,
    feeding::Told,
    idle::Idle,
    labelled::Work,
    names::Names,
    sleeps::Sleep,
    stacks::{Stacks, Taken},
    texts::texts_of,
    ticks::{self, Ticks},
};
use crate::{
    kernel::{Engine, Kept},
    memory::{Cached, LiveProcess},
    profile::Frame,
    python::field,
    target::{self, Faults, FoundGreenlet, Greenlet, Kinds, Target, TypeInfo},
    timeline::intervals::Intervals,
};

/// Dead greenlets that the list has no room for, summed.
#[derive(Debug, Default)]
pub(super) struct Unlisted {
    pub(super) greenlets: u64,
    pub(super) switches_in: u64,
    pub(super) running_ns: u64,
    pub(super) waiting_ns: u64,
    /// By [`profiler_common::clock::Off`].
    pub(super) off_ns: [u64; OFF_KINDS],
    /// The waits that began before the recording: how long, and how many.
    pub(super) begun: FxHashMap<StackKey, (u64, u64, Addr)>,
    /// The threads whose first greenlets are among them.
    pub(super) first_of: Vec<u64>,
}

impl Unlisted {
    pub(super) fn add(&mut self, greenlet: &KernelGreenlet) {
        self.greenlets += 1;
        self.switches_in += greenlet.switches_in;
        self.running_ns += greenlet.running_ns;
        self.waiting_ns += greenlet.waiting_ns;
        for (sum, ns) in self.off_ns.iter_mut().zip(greenlet.off_ns) {
            *sum += ns;
        }
        if greenlet.begun_ns > 0 {
            let begun = self.begun.entry(greenlet.begun_stack).or_insert((0, 0, greenlet.type_object));
            begun.0 += greenlet.begun_ns;
            begun.1 += 1;
        }
        if greenlet.flags & GREENLET_FIRST != 0 {
            self.first_of.push(greenlet.thread);
        }
    }
}

/// What is known of one target.
pub(super) struct Recorded {
    pub(super) target: Target,
    pub(super) cookie: u32,
    pub(super) memory: LiveProcess,
    pub(super) stacks: Stacks,
    pub(super) ended: Vec<EndRecord>,
    /// Ended ones beyond `max_ended`.
    pub(super) unlisted: Unlisted,
    /// Those of them that were there before the recording: enumeration may know them.
    pub(super) unlisted_from_before: FxHashSet<(Addr, Addr)>,
    pub(super) max_ended: usize,
    pub(super) enumerated: Vec<FoundGreenlet>,
    /// Whose work the enumerated ones are that are suspended, before the recording ends.
    pub(super) enumerated_labels: FxHashMap<Addr, Label>,
    /// Stacks of the enumerated ones, root first, as they were then.
    pub(super) enumerated_frames: Vec<Arc<[Frame]>>,
    /// Where among them a greenlet is, by its two addresses.
    pub(super) enumerated_places: FxHashMap<(Addr, Addr), usize>,
    /// When the last enumeration was over.
    pub(super) enumerated_ns: u64,
    /// Whether the enumeration saw every object.
    pub(super) enumerated_whole: bool,
    enumerations: u32,
    /// Whether that was tried at all.
    pub(super) looked_at: bool,
    pub(super) kinds: Kinds,
    /// What Python calls the threads, by tid.
    pub(super) thread_names: FxHashMap<u32, String>,
    pub(super) intervals: Option<Intervals>,
    pub(super) faults: Faults,
    pub(super) ticks: Ticks,
    pub(super) blocks: Blocks,
    /// How its threads slept when they were first looked at, by tid.
    pub(super) sleeps: FxHashMap<u32, Sleep>,
    /// Who idles.
    pub(super) idle: Idle,
    /// The hubs, by the kernel's identity; known at the end.
    pub(super) hubs: FxHashSet<u64>,
    pub(super) names: Names,
    /// When it exited or replaced itself.
    pub(super) gone_ns: Option<u64>,
    /// When its recording began.
    pub(super) began_ns: u64,
    /// The target that it is a child of.
    pub(super) parent: Option<u32>,
    /// When it took another program's place, if it did.
    pub(super) exec_ns: Option<u64>,
    /// Its pid in the kernel's first pid namespace, if it is known.
    pub(super) first_pid: Option<u32>,
    /// Whether it is to be recorded anew, with the greenlet library that it has by now.
    pub(super) reload: bool,
    /// Whether that was tried, and can't be.
    pub(super) stays: bool,
    /// Whether it was told that its memory does not answer.
    told_silent: bool,
    /// The kernel part's books, once they are closed.
    pub(super) kept: Option<Kept>,
    /// Whose work it does.
    pub(super) work: Work,
    /// What was told of it while it was recorded.
    pub(super) told: Told,
    config: TargetConfig,
    config_changed: bool,
}

impl Recorded {
    /// Makes the target known to the kernel part; nothing counts yet.
    pub(super) fn arm(
        wanted: Wanted,
        cookie: u32,
        options: &Options,
        engine: &mut Engine,
    ) -> Result<Self, SessionError> {
        let Wanted { target, parent, first_pid, exec_ns, again: _ } = wanted;
        let pid = target.pid;
        let memory = LiveProcess::open(pid).map_err(|source| SessionError::Memory { pid, source })?;
        let (device, inode) = target::namespace(&target).unwrap_or_default();
        let stacks = if options.accounting_only { 0 } else { CONFIG_STACKS };
        let switches = if options.intervals { CONFIG_SWITCHES } else { 0 };
        let children = if options.children && engine.follows() { CONFIG_CHILDREN } else { 0 };
        let wire = if options.labels == Labels::All { CONFIG_WIRE } else { 0 };
        let config = TargetConfig {
            started_ns: ARMED,
            made_ns: super::monotonic_ns(),
            block_ns: options.block.map_or(u64::MAX, super::ns),
            off_from_ns: u64::MAX,
            gil: target.python.gil,
            holder: target.python.holder,
            interpreter: target.python.interp,
            flags: stacks | switches | children | wire,
            epoch: 1,
            layout: target.layout(),
            threads: field(target.python.interp, target.python.objects.interp_threads),
            tstate_next: target.python.objects.tstate_next,
            tstate_top: target.python.objects.tstate_top,
            tstate_cleared_bit: target.python.objects.tstate_cleared_bit,
            code_framesize: target.python.objects.code_framesize,
            code_nlocalsplus: target.python.objects.code_nlocalsplus,
            code_stacksize: target.python.objects.code_stacksize,
            texts: texts_of(&target.python.objects, target.python.sites.code_type),
            label: LabelConfig::default(),
            namespace_device: device,
            namespace_inode: inode,
            hub_types: [Addr::NULL; HUB_TYPES],
            idlers: [0; MAX_IDLERS],
            sending: 1,
            library: 0,
            interpreters: field(target.python.runtime, target.python.objects.runtime_interpreters),
            interp_next: target.python.objects.interp_next,
            tstate_exception: target.python.objects.tstate_exception,
        };
        engine.configure(cookie, &config)?;
        if let Some(greenlet) = &target.greenlet {
            engine.set_module(cookie, &greenlet.module)?;
        }
        let first_pid = first_pid.or_else(|| target::in_first_namespace().then_some(pid));
        let stacks = Stacks::new(target.python.layout, target.python.objects);
        let max_ended = options.max_greenlets as usize;
        let new = Self::new(target, cookie, memory, stacks, config, max_ended);
        let mut recorded = Self { parent, first_pid, exec_ns, ..new };
        recorded.work.wanted = options.labels != Labels::None;
        recorded.find_tracer();
        recorded.reconfigure(engine)?;
        Ok(recorded)
    }

    /// Makes it known by its pid. Its threads are watched by now: a hit of one that is not
    /// would begin its clock without its past.
    pub(super) fn know(&self, engine: &mut Engine) -> Result<(), SessionError> {
        if let Some(pid) = self.first_pid {
            engine.know(pid, self.cookie)?;
        }
        Ok(())
    }

    /// What the kernel part knows of it.
    pub(super) const fn config(&self) -> &TargetConfig {
        &self.config
    }

    /// `CONFIG_*`.
    pub(super) const fn flags(&self) -> u32 {
        self.config.flags
    }

    /// What it and its descendants are known by, whatever else gets its number.
    pub(super) fn kin(&self) -> Kin {
        Kin { target: self.cookie.into(), made_ns: self.config.made_ns }
    }

    /// A process that `parent` forked; the kernel part counts already, or will when it
    /// [starts](Self::start).
    pub(super) fn forked(parent: &Self, cookie: u32, fork: &ForkRecord) -> Self {
        let target = target::forked(&parent.target, fork.pid);
        let memory = if target::alive(&target) { LiveProcess::open(fork.pid).ok() } else { None };
        let made_ns = fork.head.time_ns;
        let config = TargetConfig { started_ns: made_ns, made_ns, idlers: [0; MAX_IDLERS], ..parent.config };
        Self {
            parent: Some(parent.target.pid),
            first_pid: Some(fork.first_pid),
            intervals: parent.intervals.is_some().then(|| Intervals::new(fork.head.time_ns)),
            began_ns: fork.head.time_ns,
            // What the parent's had that the kernel part did not know yet.
            config_changed: true,
            work: parent.work.forked(),
            ..Self::new(
                target,
                cookie,
                // Its codes' names are its parent's, should it be gone already.
                memory.unwrap_or_else(LiveProcess::gone),
                parent.stacks.forked(parent.memory.clone()),
                config,
                parent.max_ended,
            )
        }
    }

    fn new(
        target: Target,
        cookie: u32,
        memory: LiveProcess,
        stacks: Stacks,
        config: TargetConfig,
        max_ended: usize,
    ) -> Self {
        Self {
            stacks,
            target,
            cookie,
            memory,
            ended: Vec::new(),
            unlisted: Unlisted::default(),
            unlisted_from_before: FxHashSet::default(),
            max_ended,
            enumerated: Vec::new(),
            enumerated_labels: FxHashMap::default(),
            enumerated_frames: Vec::new(),
            enumerated_places: FxHashMap::default(),
            enumerated_ns: 0,
            enumerated_whole: false,
            enumerations: 0,
            looked_at: false,
            kinds: Kinds::default(),
            thread_names: FxHashMap::default(),
            intervals: None,
            faults: Faults::default(),
            ticks: Ticks::default(),
            blocks: Blocks::default(),
            sleeps: FxHashMap::default(),
            idle: Idle::default(),
            hubs: FxHashSet::default(),
            names: Names::new(max_ended),
            gone_ns: None,
            began_ns: 0,
            parent: None,
            exec_ns: None,
            first_pid: None,
            reload: false,
            stays: false,
            told_silent: false,
            kept: None,
            work: Work::default(),
            told: Told::default(),
            config,
            config_changed: false,
        }
    }

    /// Which library it has, or is expected to load.
    pub(super) const fn library(&self) -> u32 {
        self.config.library
    }

    /// It has, or will load, the library of that number, which lies there in some process.
    pub(super) fn expect(&mut self, library: u32, greenlet: &Greenlet) {
        self.config.library = library;
        self.config.layout.greenlet = greenlet.layout;
        self.config_changed = true;
    }

    /// It is told when one of its code objects is freed.
    pub(super) fn expect_texts(&mut self) {
        self.config.flags |= CONFIG_CODES;
        self.config_changed = true;
        self.stacks.expect_texts();
    }

    /// It has loaded a library since it was looked at.
    pub(super) fn load(&mut self, greenlet: Greenlet) {
        self.target.greenlet = Some(greenlet);
        // There was nothing to be found before.
        self.kinds = Kinds::default();
        self.enumerated_whole = false;
        self.enumerations = 0;
        self.looked_at = false;
    }

    /// Begins the accounting.
    pub(super) fn start(
        &mut self,
        started_ns: u64,
        options: &Options,
        engine: &mut Engine,
    ) -> Result<(), SessionError> {
        self.intervals = options.intervals.then(|| Intervals::new(started_ns));
        self.began_ns = started_ns;
        self.config.started_ns = started_ns;
        engine.configure(self.cookie, &self.config)?;
        Ok(())
    }

    /// Looks at what is there when the recording has just begun.
    pub(super) fn look_around(&mut self, engine: &Engine) {
        // First, for they may wake.
        self.take_sleeps(engine);
        self.enumerate(false);
        self.name_threads();
    }

    /// Finds the greenlets that exist now, for some may never switch. If the walk over
    /// the target's objects is torn, it is tried again when this is called again.
    /// However often that was, it is tried the `last` time, at the end.
    pub(super) fn enumerate(&mut self, last: bool) {
        let tired = self.enumerations >= MAX_ENUMERATIONS && !last;
        if self.enumerated_whole || tired || self.gone_ns.is_some() {
            return;
        }
        self.enumerations += 1;
        self.looked_at = true;
        let target = self.target.clone();
        let walked = self.memory.apart(move |memory| target::enumerate(&mut Cached::new(memory), &target));
        let Some((found, faults)) = walked else {
            // What the walk found is lost with it.
            self.enumerated_whole = false;
            return;
        };
        if !target::same_image(&self.target) {
            // It ended meanwhile, or is about to, and nothing is wrong with what was read.
            return;
        }
        self.enumerated_whole = faults.of(Fault::EnumerationIncomplete) == 0;
        self.enumerated_ns = super::monotonic_ns();
        // Whether it was complete is judged by the last one.
        for (fault, count) in faults.iter().filter(|(fault, _)| *fault != Fault::EnumerationIncomplete) {
            (0..count).for_each(|_| self.faults.count(fault));
        }
        let python = self.target.python.layout;
        let mut same: FxHashMap<Vec<walk::Frame>, Arc<[Frame]>> = FxHashMap::default();
        // From now on the kernel part knows a hub for one.
        self.config.flags |= CONFIG_RUNS;
        self.config_changed = true;
        for greenlet in found {
            if greenlet.kind.is_hub {
                self.add_hub(greenlet.type_addr);
            }
            let place = self.enumerated_places.get(&(greenlet.pimpl, greenlet.object)).copied();
            if let Some(earlier) = place.and_then(|place| self.enumerated.get(place))
                && earlier.doubt.is_none()
            {
                continue;
            }
            // Many greenlets wait in the same stack: its frames are kept once.
            let frames = match same.get(&greenlet.frames) {
                Some(resolved) => Arc::clone(resolved),
                None => {
                    let checked = greenlet.frames.iter().map(|frame| walk::Frame {
                        check: code_check(&python, frame.code, &mut self.memory, &mut [0; SCRATCH_WORDS])
                            .unwrap_or(0),
                        ..*frame
                    });
                    let checked: Vec<walk::Frame> = checked.collect();
                    let resolved = self.stacks.resolve(&checked, &mut self.memory);
                    same.insert(greenlet.frames.clone(), Arc::clone(&resolved));
                    resolved
                }
            };
            // Named by now; the addresses are not needed any more.
            let greenlet = FoundGreenlet { frames: Vec::new(), ..greenlet };
            match place.and_then(|at| self.enumerated.get_mut(at).zip(self.enumerated_frames.get_mut(at))) {
                Some(earlier) => (*earlier.0, *earlier.1) = (greenlet, frames),
                None => {
                    let place = self.enumerated.len();
                    self.enumerated_places.insert((greenlet.pimpl, greenlet.object), place);
                    self.enumerated.push(greenlet);
                    self.enumerated_frames.push(frames);
                }
            }
        }
    }

    /// Whether its memory does not answer since the last time that this was asked.
    pub(super) fn fell_silent(&mut self) -> bool {
        let fell = self.memory.is_silent() && !self.told_silent;
        if fell {
            self.told_silent = true;
            self.fault(Fault::NoAnswer);
        }
        fell
    }

    /// Asks Python for its threads' names.
    pub(super) fn name_threads(&mut self) {
        let (threads, faults) = target::python_threads(&mut self.memory, &self.target);
        if target::same_image(&self.target) {
            self.faults.add(&faults);
        }
        for thread in threads {
            if let (Some(tid), Some(name)) = (thread.tid, thread.name) {
                self.thread_names.insert(tid, name);
            }
        }
    }

    fn add_hub(&mut self, type_object: Addr) {
        let types = &mut self.config.hub_types;
        if !types.contains(&type_object)
            && let Some(free) = types.iter_mut().find(|known| known.is_null())
        {
            *free = type_object;
            self.config_changed = true;
        }
    }

    /// Tells the kernel part what was learned since the last time.
    pub(super) fn reconfigure(&mut self, engine: &mut Engine) -> Result<(), SessionError> {
        if self.config_changed && self.config.started_ns != 0 && self.gone_ns.is_none() {
            engine.configure(self.cookie, &self.config)?;
        }
        self.config_changed = false;
        Ok(())
    }

    /// Changes what the kernel part is told the next time.
    pub(super) fn change_config(&mut self, change: impl FnOnce(&mut TargetConfig)) {
        change(&mut self.config);
        self.config_changed = true;
    }

    /// Where the labels are.
    pub(super) fn config_label(&self) -> LabelConfig {
        self.config.label
    }

    /// Whether its requests are looked for on its sockets.
    pub(super) fn wants_wire(&self) -> bool {
        self.config.flags & CONFIG_WIRE != 0 && self.target.greenlet.is_some()
    }

    /// The offsets that the kernel part got.
    pub(super) fn layout(&self) -> Layout {
        self.config.layout
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        self.faults.count(fault);
    }

    pub(super) fn stack_count(&self) -> usize {
        self.stacks.len()
    }

    /// Looks whether the process replaced itself.
    pub(super) fn notice_exec(&mut self, totals: &Totals) {
        if totals.exec_ns != 0 {
            self.gone_ns = Some(totals.exec_ns);
        } else if !target::same_image(&self.target) && target::alive(&self.target) {
            // Seen late, for no thread that ever switched did it.
            self.gone_ns = Some(super::monotonic_ns());
        }
    }

    /// The process ended; its threads told when.
    pub(super) fn exited(&mut self, totals: &Totals, now_ns: u64) {
        // The last of its threads that switched may have ended long before it.
        let just = Duration::from_millis(250).as_nanos();
        let recent = u128::from(now_ns.saturating_sub(totals.exit_ns)) <= just;
        let end = if recent { totals.exit_ns } else { now_ns };
        self.gone_ns.get_or_insert(end);
    }

    /// Looks whether the stacks' codes are still the same.
    pub(super) fn validate(
        &mut self,
        totals: &FxHashMap<StackKey, StackTotals>,
        engine: &mut Engine,
    ) -> Result<(), SessionError> {
        let gone = self.stacks.gone(&mut self.memory);
        if self.memory.is_silent() {
            // Nothing is known of them any more, nor that they went.
            return self.reconfigure(engine);
        }
        if !gone.is_empty() && !target::same_image(&self.target) {
            // Not the codes went, the process did: what they were, they were to its end.
            self.gone_ns.get_or_insert_with(super::monotonic_ns);
            return Ok(());
        }
        self.stacks.apply(&gone, totals);
        if !gone.is_empty() && self.config.started_ns != 0 {
            self.config.sending += 1;
            self.config_changed = true;
        }
        self.reconfigure(engine)
    }

    /// Ends the accounting.
    pub(super) fn stop(&mut self, engine: &mut Engine) -> Result<(), SessionError> {
        self.config.started_ns = 0;
        engine.configure(self.cookie, &self.config)?;
        Ok(())
    }

    /// Looks at a type while the process lives: its name is wanted at the end.
    pub(super) fn meet(&mut self, type_object: Addr) {
        // One that can't be read now is asked for again, or stays nameless.
        if self.kind(type_object).is_some_and(|kind| kind.is_hub) {
            self.add_hub(type_object);
        }
    }

    /// What a type is, if it can be read.
    pub(super) fn kind(&mut self, type_object: Addr) -> Option<Arc<TypeInfo>> {
        self.kinds.get(&mut self.memory, &self.target, type_object).ok()
    }

    pub(super) fn tick(&mut self, tick: &TickRecord, engine: &Engine) {
        if let Some(fault) = tick.fault.checked_sub(1).and_then(Fault::of_number) {
            self.fault(fault);
        }
        // Its frames came before it, and hold now.
        let frames = (!tick.stack.is_none()).then(|| self.stacks.frames(&tick.stack)).flatten();
        self.name(tick.greenlet, tick.object, engine);
        let frames = frames.map(|(frames, _)| frames);
        if let Some(frames) = &frames {
            self.blocks.tick(tick, frames);
        }
        self.feed_tick(tick, frames.as_ref());
        self.ticks.add(tick, frames.or_else(|| ticks::without_stack(tick)));
    }

    pub(super) fn stack(&mut self, head: &StackHead, frames: Vec<walk::Frame>, engine: &Engine) {
        // While it lives: its name is wanted when it may be gone.
        if head.type_object != ON_CPU_OWNER && off_of(head.type_object).is_none() {
            self.meet(head.type_object);
        }
        let key = head.key;
        let taken = Taken { key, type_object: head.type_object, frames };
        self.stacks.take(taken, &mut self.memory, || {
            // Not there or not readable: nothing was counted that could be split.
            engine.stack(&key).ok().flatten().unwrap_or_else(StackTotals::zeroed)
        });
        if let Some(off) = off_of(head.type_object)
            && let Some((frames, _)) = self.stacks.frames(&key)
        {
            self.idle.meet(&off, &frames);
        }
    }
}
