//! The kernel part while it is loaded.

use std::{
    num::NonZeroU32,
    ops::Range,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{MapData, Queue, RingBuf},
    programs::{
        BtfTracePoint, ProgramError, RawTracePoint, UProbe,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeScope},
    },
    sys::{Stats, enable_stats},
};
use profiler_common::{
    address::Addr,
    clock::{Clock, OFF_KINDS},
    code::Codes,
    label::{Label, Lent, PairKey, PairTotals},
    limits::{MAX_PROBED, MAX_TARGETS},
    record::{
        ANY_TARGET, COOKIE_LIBRARY, Greenlet, GreenletKey, Kin, LentKey, Module, Probed, SLOT_BYTES,
        StackRecord, StackTotals, TargetConfig, Thread, Totals, Watch,
    },
    walk::StackKey,
};

#[cfg(feature = "kernel-log")]
use super::log::{self, OBJECT};
use super::{
    Kept, KernelError, layout, load,
    map::{Row, Storage, Table},
    pairs::Pairs,
    site::{Probe, Scope, Site},
    ticks, trap,
};

const FREE: &str = "FREE";
const PROCESSES_LIVES: [&str; 2] = ["sched_process_exit", "sched_process_exec"];
const CLOCKS: [&str; 2] = ["task_newtask", "sched_switch"];
/// What begins a label comes last: without the others it would never end.
const WIRE: [&str; 4] = ["sk_data_ready", "sock_send_length", "inet_sock_set_state", "sock_recv_length"];
/// The number of no target: a hit with it costs what a hit costs, and counts nothing.
const NOBODY: u32 = MAX_TARGETS;

#[cfg(not(feature = "kernel-log"))]
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../profiler-ebpf/greenscope.bpf.o");

/// What of the kernel part is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The probes.
    pub probes: &'a [Probe],
    /// What sees requests on sockets.
    pub wire: bool,
    /// The CPU clock.
    pub ticks: bool,
}

/// The kernel part while it is loaded. Dropping it detaches every probe.
pub struct Engine {
    // Before the maps: when it goes, so do the programs and their links.
    pub(super) ebpf: Ebpf,
    configs: Row<TargetConfig, { size_of::<TargetConfig>() }>,
    pub(super) totals: Row<Totals, { size_of::<Totals>() }>,
    codes: Row<Codes, { size_of::<Codes>() }>,
    modules: Row<Module, { size_of::<Module>() }>,
    probed: Row<Probed, { size_of::<Probed>() }>,
    /// How many of `probed` are in use.
    probed_count: u32,
    pub(super) mapped: Row<u64, 8>,
    /// Whether the function is probed that asks for a mapping's inode.
    pub(super) asks: bool,
    pub(super) greenlets:
        Table<GreenletKey, Greenlet, { size_of::<GreenletKey>() }, { size_of::<Greenlet>() }>,
    pub(super) stacks: Table<StackKey, StackTotals, { size_of::<StackKey>() }, { size_of::<StackTotals>() }>,
    pub(super) threads: Table<u64, Thread, 8, { size_of::<Thread>() }>,
    slots: Storage<SLOT_BYTES>,
    stack_records: Storage<{ size_of::<StackRecord>() }>,
    kin: Storage<{ size_of::<Kin>() }>,
    free: Queue<MapData, u32>,
    processes: Table<u32, u32, 4, 4>,
    pairs: Pairs,
    unstarted: Table<GreenletKey, Label, { size_of::<GreenletKey>() }, { size_of::<Label>() }>,
    pub(super) lent: Table<LentKey, Lent, { size_of::<LentKey>() }, { size_of::<Lent>() }>,
    ring: RingBuf<MapData>,
    clocks: Result<(), KernelError>,
    /// Why programs can't be attached that are attached later.
    wire: Option<KernelError>,
    pub(super) ticks: Option<KernelError>,
    follows: bool,
    tells_ready: bool,
    // While it is open the kernel counts the programs' runs and their time.
    stats: Option<OwnedFd>,
    #[cfg(feature = "kernel-log")]
    log: log::Lines,
}

impl Engine {
    /// Loads the kernel part, with room for `greenlets` greenlets alive at once, and of
    /// its programs those that will be attached: the verifier takes its time for each.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it, for want of a right or of a feature.
    ///
    /// # Kernel
    ///
    /// 5.17 (`bpf_loop`); 5.15 for the attach cookie, 5.11 for task storage.
    pub fn load(greenlets: u32, parts: &Parts<'_>) -> Result<Self, KernelError> {
        let btf = Btf::from_sys_fs();
        let layout = layout::of_this_kernel();
        let mut ebpf = EbpfLoader::new()
            .btf(btf.as_ref().ok())
            .override_global("KERNEL", bytemuck::bytes_of(&layout), true)
            .allow_unsupported_maps()
            .map_max_entries("GREENLETS", greenlets)
            .load(OBJECT)?;
        #[cfg(feature = "kernel-log")]
        let log = log::lines(&mut ebpf)?;
        let uprobes = parts.probes.iter().chain([&Probe::Empty]).map(|probe| probe.program());
        let needed: Vec<_> = uprobes.chain(PROCESSES_LIVES).collect();
        let wire: &[_] = if parts.wire { &WIRE } else { &[] };
        let ticks: &[_] = if parts.ticks { &[ticks::PROGRAM] } else { &[] };
        let [needed, clocks, wire, ticks] =
            load::load(&mut ebpf, [&needed, &CLOCKS, wire, ticks], btf.as_ref().ok());
        needed?;
        for name in PROCESSES_LIVES {
            let failed = |source| KernelError::Program { program: name, source };
            let program: &mut RawTracePoint =
                ebpf.program_mut(name).ok_or(KernelError::Missing(name))?.try_into().map_err(failed)?;
            program.attach(name).map_err(failed)?;
        }
        let clocks = clocks.and_then(|()| attach(&mut ebpf, &CLOCKS));
        let mut free = take_free(&mut ebpf)?;
        for target in 0..MAX_TARGETS {
            free.push(target, 0).map_err(|source| KernelError::Map { map: FREE, source })?;
        }
        let ring = ebpf.take_map("RING").ok_or(KernelError::Missing("RING"))?;
        let ring = RingBuf::try_from(ring).map_err(|source| KernelError::Map { map: "RING", source })?;
        Ok(Self {
            configs: Row::take(&mut ebpf, "CONFIGS")?,
            totals: Row::take(&mut ebpf, "TOTALS")?,
            codes: Row::take(&mut ebpf, "CODES")?,
            modules: Row::take(&mut ebpf, "MODULES")?,
            probed: Row::take(&mut ebpf, "PROBED")?,
            probed_count: 0,
            mapped: Row::take(&mut ebpf, "MAPPED")?,
            asks: false,
            greenlets: Table::take(&mut ebpf, "GREENLETS")?,
            stacks: Table::take(&mut ebpf, "STACKS")?,
            threads: Table::take(&mut ebpf, "THREADS")?,
            slots: Storage::take(&mut ebpf, "SLOTS")?,
            stack_records: Storage::take(&mut ebpf, "STACK_RECORDS")?,
            kin: Storage::take(&mut ebpf, "KIN")?,
            free,
            processes: Table::take(&mut ebpf, "PROCESSES")?,
            pairs: Pairs::take(&mut ebpf)?,
            unstarted: Table::take(&mut ebpf, "UNSTARTED")?,
            lent: Table::take(&mut ebpf, "LENT")?,
            ring,
            follows: clocks.is_ok() && layout.task_pid != 0,
            clocks,
            wire: wire.err(),
            ticks: ticks.err(),
            tells_ready: layout.task_delay != 0,
            stats: None,
            #[cfg(feature = "kernel-log")]
            log,
            ebpf,
        })
    }

    /// Whether the threads' clocks are kept: on CPU, blocked, preempted, idle.
    ///
    /// # Kernel
    ///
    /// 5.18, with BTF (`CONFIG_DEBUG_INFO_BTF`): only from then on `sched_switch` tells the
    /// leaver's state.
    #[must_use]
    pub const fn has_clocks(&self) -> bool {
        self.clocks.is_ok()
    }

    /// Why the clocks are not kept, if they are not.
    #[must_use]
    pub fn clocks_refused(&self) -> Option<&KernelError> {
        self.clocks.as_ref().err()
    }

    /// Whether it is known since when a thread is ready that comes onto a CPU. Else what it
    /// waited there counts as sleep.
    ///
    /// # Kernel
    ///
    /// With `CONFIG_SCHED_INFO`, `CONFIG_FAIR_GROUP_SCHED` and BTF.
    #[must_use]
    pub const fn tells_ready(&self) -> bool {
        self.tells_ready
    }

    /// Whether processes that targets fork are followed.
    ///
    /// # Kernel
    ///
    /// As for the clocks.
    #[must_use]
    pub const fn follows(&self) -> bool {
        self.follows
    }

    /// Takes a number for a target; none if all are in use.
    pub fn take_number(&mut self) -> Option<u32> {
        self.free.pop(0).ok()
    }

    /// Makes a target known by its pid, in the kernel's first pid namespace.
    ///
    /// # Errors
    ///
    /// When the map can't be written.
    pub fn know(&mut self, first_pid: u32, target: u32) -> Result<(), KernelError> {
        self.processes.insert(&first_pid, &target)
    }

    /// Makes it unknown again.
    ///
    /// # Errors
    ///
    /// When the map can't be read or written.
    pub fn unknow(&mut self, first_pid: u32, target: u32) -> Result<(), KernelError> {
        // By now another process may have the pid.
        if self.processes.get(&first_pid)? == Some(target) {
            self.processes.remove(&first_pid)?;
        }
        Ok(())
    }

    /// Has the sockets watched that targets read requests from, once: [`Parts::wire`].
    ///
    /// # Kernel
    ///
    /// 6.3, with BTF: from then on `sock_recv_length` tells of each receipt.
    /// <https://github.com/torvalds/linux/commit/6e6eda44b939>
    ///
    /// # Errors
    ///
    /// When the kernel lacks the tracepoints, or refuses them.
    pub fn start_wire(&mut self) -> Result<(), KernelError> {
        self.wire.take().map_or(Ok(()), Err)?;
        attach(&mut self.ebpf, &WIRE)
    }

    /// Takes the time by stack and label that was counted up to the call before this one, of
    /// all targets. What is counted from now on is told by the call after the next.
    ///
    /// # Errors
    ///
    /// When a map can't be read.
    pub fn turn_pairs(&mut self) -> Result<Vec<(PairKey, PairTotals)>, KernelError> {
        self.pairs.turn()
    }

    /// Has a thread watched that has not switched yet; false if it is watched already.
    ///
    /// # Errors
    ///
    /// When the map can't be written, for instance because the thread ended.
    pub fn watch(&mut self, thread: BorrowedFd<'_>, watch: &Watch) -> Result<bool, KernelError> {
        let fresh = self.slots.insert(thread.as_raw_fd(), bytemuck::bytes_of(watch))?;
        if fresh && watch.thread != 0 {
            let thread = Thread {
                target: watch.target,
                tstate: Addr::NULL,
                seen_ns: 0,
                first_greenlet: 0,
                exit_ns: 0,
                clock: watch.clock,
                charged_ns: [0; OFF_KINDS],
                off_stack: StackKey { id: 0, check: 0 },
                off_label: Label::NONE,
                off_before_ns: 0,
                ticks_lost: 0,
                first_sleep_ns: 0,
            };
            self.threads.insert(&watch.thread, &thread)?;
        }
        Ok(fresh)
    }

    /// Makes a thread's room for the frames of its stacks, which its first switch makes else.
    ///
    /// # Errors
    ///
    /// When the map can't be written, for instance because the thread ended.
    pub fn make_room(&mut self, thread: BorrowedFd<'_>) -> Result<bool, KernelError> {
        self.stack_records.insert(thread.as_raw_fd(), &[])
    }

    /// A thread's clock as it stands now; none if it is not watched.
    ///
    /// # Errors
    ///
    /// When the map can't be read, for instance because the thread ended.
    pub fn clock_of(&self, thread: BorrowedFd<'_>) -> Result<Option<Clock>, KernelError> {
        let slot = self.slots.get(thread.as_raw_fd())?;
        let clock = slot.as_ref().and_then(|slot| slot.get(..size_of::<Clock>()));
        Ok(clock.map(bytemuck::pod_read_unaligned))
    }

    /// Forgets what a thread was, so that it can be watched as another target's.
    ///
    /// # Errors
    ///
    /// When the map can't be written.
    pub fn forget(&mut self, thread: BorrowedFd<'_>) -> Result<(), KernelError> {
        self.slots.remove(thread.as_raw_fd())
    }

    /// Has a thread, and what it makes, known for a descendant of a target.
    ///
    /// # Errors
    ///
    /// When the map can't be written, for instance because the thread ended.
    pub fn keep_kin(&mut self, thread: BorrowedFd<'_>, kin: &Kin) -> Result<(), KernelError> {
        self.kin.insert(thread.as_raw_fd(), bytemuck::bytes_of(kin)).map(drop)
    }

    /// What a thread descends from that is no target's.
    ///
    /// # Errors
    ///
    /// When the map can't be read, for instance because the thread ended.
    pub fn kin(&self, thread: BorrowedFd<'_>) -> Result<Option<Kin>, KernelError> {
        let bytes = self.kin.get(thread.as_raw_fd())?;
        Ok(bytes.map(|bytes| bytemuck::pod_read_unaligned(&bytes)))
    }

    /// Sets a probe.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn attach(&mut self, scope: Scope, site: &Site) -> Result<(), KernelError> {
        let (scope, cookie) = match scope {
            Scope::Process { pid, target } => {
                let pid = NonZeroU32::new(pid).ok_or(KernelError::PidZero)?;
                (UProbeScope::OneProcess(pid), u64::from(target))
            }
            Scope::Every => {
                let library = site.probed.library << COOKIE_LIBRARY;
                (UProbeScope::AllProcesses, library | ANY_TARGET | u64::from(self.number(site)?))
            }
        };
        let point = UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(site.offset),
            cookie: Some(cookie),
        };
        let _link = uprobe(&mut self.ebpf, site.probe)?
            .attach(point, &site.path, scope)
            .map_err(|source| KernelError::Attach { path: site.path.clone(), offset: site.offset, source })?;
        Ok(())
    }

    /// Where the kernel part finds what is known of a site.
    fn number(&mut self, site: &Site) -> Result<u32, KernelError> {
        let number = self.probed_count;
        if site.probed.library == 0 || number == MAX_PROBED {
            // There it finds nothing.
            return Ok(MAX_PROBED);
        }
        self.probed.set(number, &site.probed)?;
        self.probed_count += 1;
        Ok(number)
    }

    /// Begins the counting of the programs' time.
    pub fn start_stats(&mut self) {
        // Not essential: without it what a hit costs stays unknown.
        self.stats = enable_stats(Stats::RunTime).ok();
    }

    /// Ends the counting of the programs' time, which itself costs a little.
    pub fn stop_stats(&mut self) {
        self.stats = None;
    }

    /// What a hit cost: the trap, measured on a function of our own now, and the
    /// program, as the kernel counted it while the stats were on.
    ///
    /// # Errors
    ///
    /// When the probe on our own function can't be set.
    pub fn ns_per_hit(&mut self) -> Result<Option<u64>, KernelError> {
        let mut ns = 0;
        let mut runs = 0;
        for probe in [Probe::Switchstack, Probe::Switch, Probe::Initialstub, Probe::Freed] {
            let info = uprobe(&mut self.ebpf, probe)?.info();
            if let Ok(info) = info {
                ns += u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX);
                runs += info.run_count();
            }
        }
        if runs == 0 {
            return Ok(None);
        }
        let Some(site) = trap::site() else {
            return Ok(None);
        };
        let bare = trap::ns_per_call();
        self.attach(Scope::Process { pid: std::process::id(), target: NOBODY }, &site)?;
        let probed = trap::ns_per_call();
        Ok(Some(probed.saturating_sub(bare) + ns / runs))
    }

    /// Removes every probe. What was kept stays readable, and does not change any more.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn detach(&mut self) -> Result<(), KernelError> {
        self.stop_ticks();
        for probe in Probe::ALL {
            let program = uprobe(&mut self.ebpf, probe)?;
            // Unloading drops the program's links with it.
            match program.unload() {
                Ok(()) | Err(ProgramError::NotLoaded) => {}
                Err(source) => return Err(KernelError::Program { program: probe.program(), source }),
            }
        }
        Ok(())
    }

    /// Begins (or with `started_ns` 0 ends) the accounting of a target.
    ///
    /// # Errors
    ///
    /// When the map can't be written.
    pub fn configure(&mut self, cookie: u32, config: &TargetConfig) -> Result<(), KernelError> {
        self.configs.set(cookie, config)
    }

    /// Says where a target has mapped greenlet's extension.
    ///
    /// # Errors
    ///
    /// When the map can't be written.
    pub fn set_module(&mut self, target: u32, module: &Range<u64>) -> Result<(), KernelError> {
        self.modules
            .set(target, &Module { start: Addr(module.start), end: Addr(module.end), told: 0, owner: 0 })
    }

    /// Whether it is known where a target has mapped greenlet's extension: the kernel part finds
    /// it at its first hit.
    ///
    /// # Errors
    ///
    /// When the map can't be read.
    pub fn has_module(&self, target: u32) -> Result<bool, KernelError> {
        Ok(!self.modules.get(target)?.end.is_null())
    }

    /// Hands every waiting record to `take`.
    pub fn drain(&mut self, mut take: impl FnMut(&[u8])) {
        #[cfg(feature = "kernel-log")]
        self.log.flush();
        while let Some(record) = self.ring.next() {
            take(&record);
        }
    }

    /// The file descriptor that is readable when many records wait.
    #[must_use]
    pub fn ring_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// What is exact whatever else is lost.
    ///
    /// # Errors
    ///
    /// When the map can't be read.
    pub fn totals(&self, cookie: u32) -> Result<Totals, KernelError> {
        self.totals.get(cookie)
    }

    /// What a target is configured as.
    ///
    /// # Errors
    ///
    /// When the map can't be read.
    pub fn config(&self, target: u32) -> Result<TargetConfig, KernelError> {
        self.configs.get(target)
    }

    /// Forgets what was kept of a target that runs no more, and gives its number free.
    /// `first_pid` is its pid in the kernel's first pid namespace, if it is known.
    ///
    /// # Errors
    ///
    /// When a map can't be written.
    pub fn retire(&mut self, target: u32, first_pid: Option<u32>, kept: &Kept) -> Result<(), KernelError> {
        for (key, _) in &kept.greenlets {
            self.greenlets.remove(key)?;
        }
        for key in kept.stacks.keys() {
            self.stacks.remove(key)?;
        }
        for (key, _) in &kept.threads {
            self.threads.remove(key)?;
        }
        for (key, _) in self.unstarted.entries()? {
            if key.target == u64::from(target) {
                self.unstarted.remove(&key)?;
            }
        }
        for (key, _) in self.lent.entries()? {
            if key.target == u64::from(target) {
                self.lent.remove(&key)?;
            }
        }
        self.release(target, first_pid)
    }

    /// Gives the number of a target free of which nothing was kept.
    ///
    /// # Errors
    ///
    /// When a map can't be written.
    pub fn release(&mut self, target: u32, first_pid: Option<u32>) -> Result<(), KernelError> {
        if let Some(pid) = first_pid {
            self.unknow(pid, target)?;
        }
        let nothing: Totals = bytemuck::Zeroable::zeroed();
        self.totals.set(target, &nothing)?;
        self.modules.set(target, &bytemuck::Zeroable::zeroed())?;
        self.configs.set(target, &bytemuck::Zeroable::zeroed())?;
        self.codes.set(target, &bytemuck::Zeroable::zeroed())?;
        self.free.push(target, 0).map_err(|source| KernelError::Map { map: FREE, source })
    }
}

fn take_free(ebpf: &mut Ebpf) -> Result<Queue<MapData, u32>, KernelError> {
    let map = ebpf.take_map(FREE).ok_or(KernelError::Missing(FREE))?;
    Queue::try_from(map).map_err(|source| KernelError::Map { map: FREE, source })
}

/// Attaches tracepoints, one after the other.
fn attach(ebpf: &mut Ebpf, names: &[&'static str]) -> Result<(), KernelError> {
    for name in names {
        let failed = |source| KernelError::Program { program: name, source };
        let program: &mut BtfTracePoint =
            ebpf.program_mut(name).ok_or(KernelError::Missing(name))?.try_into().map_err(failed)?;
        program.attach().map_err(failed)?;
    }
    Ok(())
}

pub(super) fn uprobe(ebpf: &mut Ebpf, probe: Probe) -> Result<&mut UProbe, KernelError> {
    let name = probe.program();
    ebpf.program_mut(name)
        .ok_or(KernelError::Missing(name))?
        .try_into()
        .map_err(|source| KernelError::Program { program: name, source })
}
