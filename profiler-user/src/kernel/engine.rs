//! The kernel part while it is loaded.

use std::{
    fs,
    num::NonZeroU32,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::RingBuf,
    programs::{
        BtfTracePoint, PerfEvent, ProgramError, RawTracePoint, UProbe,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeScope},
    },
    sys::{Stats, enable_stats},
    util::online_cpus,
};
use profiler_common::{
    address::Addr,
    clock::OFF_KINDS,
    record::{Greenlet, GreenletKey, SLOT_BYTES, StackTotals, TargetConfig, Thread, Totals, Watch},
    walk::StackKey,
};

#[cfg(feature = "kernel-log")]
use super::log::{self, OBJECT};
use super::{
    KernelError, btf,
    map::{Row, Storage, Table},
    trap,
};

/// The kernel's own type information.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

#[cfg(not(feature = "kernel-log"))]
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../profiler-ebpf/greenscope.bpf.o");

/// A program that fires at an instruction of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// At `g_switchstack`.
    Switchstack,
    /// At both `g_switch`.
    Switch,
    /// At `g_initialstub`.
    Initialstub,
    /// At the deleting destructors.
    Freed,
    /// Does nothing: what a probe alone costs.
    Empty,
}

impl Probe {
    const ALL: [Self; 5] = [Self::Switchstack, Self::Switch, Self::Initialstub, Self::Freed, Self::Empty];

    const fn program(self) -> &'static str {
        match self {
            Self::Switchstack => "g_switchstack",
            Self::Switch => "g_switch",
            Self::Initialstub => "g_initialstub",
            Self::Freed => "greenlet_freed",
            Self::Empty => "empty",
        }
    }
}

/// An instruction of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Which program.
    pub probe: Probe,
    /// The file, by a path that leads to the inode that the target maps.
    pub path: PathBuf,
    /// The instruction's offset in the file.
    pub offset: u64,
}

/// The kernel part while it is loaded. Dropping it detaches every probe.
pub struct Engine {
    // Before the maps: when it goes, so do the programs and their links.
    ebpf: Ebpf,
    configs: Row<TargetConfig, { size_of::<TargetConfig>() }>,
    totals: Row<Totals, { size_of::<Totals>() }>,
    greenlets: Table<GreenletKey, Greenlet, { size_of::<GreenletKey>() }, { size_of::<Greenlet>() }>,
    stacks: Table<StackKey, StackTotals, { size_of::<StackKey>() }, { size_of::<StackTotals>() }>,
    threads: Table<u64, Thread, 8, { size_of::<Thread>() }>,
    slots: Storage<SLOT_BYTES>,
    ring: RingBuf<aya::maps::MapData>,
    clocks: bool,
    // While it is open the kernel counts the programs' runs and their time.
    stats: Option<OwnedFd>,
    #[cfg(feature = "kernel-log")]
    log: log::Lines,
}

impl Engine {
    /// Loads the kernel part, with room for `greenlets` greenlets alive at once, and of
    /// its probes those that will be attached: the verifier takes its time for each.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it, for want of a right or of a feature.
    ///
    /// # Kernel
    ///
    /// 5.17 (`bpf_loop`); 5.15 for the attach cookie, 5.11 for task storage.
    pub fn load(greenlets: u32, probes: &[Probe]) -> Result<Self, KernelError> {
        let btf = Btf::from_sys_fs().ok();
        let runtime = fs::read(VMLINUX)
            .ok()
            .and_then(|data| btf::Types::parse(&data)?.nested("task_struct", "se", "sum_exec_runtime"));
        let runtime = runtime.unwrap_or_default();
        let mut ebpf = EbpfLoader::new()
            .btf(btf.as_ref())
            .override_global("TASK_RUNTIME", &runtime, true)
            .allow_unsupported_maps()
            .map_max_entries("GREENLETS", greenlets)
            .load(OBJECT)?;
        #[cfg(feature = "kernel-log")]
        let log = log::lines(&mut ebpf)?;
        for probe in probes.iter().copied().chain([Probe::Empty]) {
            uprobe(&mut ebpf, probe)?
                .load()
                .map_err(|source| KernelError::Program { program: probe.program(), source })?;
        }
        for name in ["sched_process_exit", "sched_process_exec"] {
            let program: &mut RawTracePoint = ebpf
                .program_mut(name)
                .ok_or(KernelError::Missing(name))?
                .try_into()
                .map_err(|source| KernelError::Program { program: name, source })?;
            program.load().map_err(|source| KernelError::Program { program: name, source })?;
            program.attach(name).map_err(|source| KernelError::Program { program: name, source })?;
        }
        let clocks = match &btf {
            Some(btf) => clocks(&mut ebpf, btf).is_ok(),
            None => false,
        };
        let ring = ebpf.take_map("RING").ok_or(KernelError::Missing("RING"))?;
        let ring = RingBuf::try_from(ring).map_err(|source| KernelError::Map { map: "RING", source })?;
        Ok(Self {
            configs: Row::take(&mut ebpf, "CONFIGS")?,
            totals: Row::take(&mut ebpf, "TOTALS")?,
            greenlets: Table::take(&mut ebpf, "GREENLETS")?,
            stacks: Table::take(&mut ebpf, "STACKS")?,
            threads: Table::take(&mut ebpf, "THREADS")?,
            slots: Storage::take(&mut ebpf, "SLOTS")?,
            ring,
            clocks,
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
        self.clocks
    }

    /// Has the CPU clock tick `rate` times a second on every CPU.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it (`kernel.perf_event_paranoid`, `CAP_PERFMON`).
    pub fn start_ticks(&mut self, rate: u32) -> Result<(), KernelError> {
        const NAME: &str = "cpu_clock";
        let failed = |source| KernelError::Program { program: NAME, source };
        let cpus = online_cpus().map_err(|(_, source)| KernelError::Cpus(source))?;
        let program: &mut PerfEvent =
            self.ebpf.program_mut(NAME).ok_or(KernelError::Missing(NAME))?.try_into().map_err(failed)?;
        program.load().map_err(failed)?;
        for cpu in cpus {
            let _link = program
                .attach(
                    PerfEventConfig::Software(SoftwareEvent::CpuClock),
                    PerfEventScope::AllProcessesOneCpu { cpu },
                    SamplePolicy::Period(tick_ns(rate)),
                    false,
                )
                .map_err(failed)?;
        }
        Ok(())
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
                off_before_ns: 0,
                ticks_lost: 0,
            };
            self.threads.insert(&watch.thread, &thread)?;
        }
        Ok(fresh)
    }

    /// Sets a probe for the process `pid`, whose target number is `cookie`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn attach(&mut self, pid: u32, cookie: u32, site: &Site) -> Result<(), KernelError> {
        let scope = UProbeScope::OneProcess(NonZeroU32::new(pid).ok_or(KernelError::PidZero)?);
        let point = UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(site.offset),
            cookie: Some(u64::from(cookie)),
        };
        let _link =
            uprobe(&mut self.ebpf, site.probe)?.attach(point, &site.path, scope).map_err(|source| {
                KernelError::Attach { path: site.path.clone(), offset: site.offset, pid, source }
            })?;
        Ok(())
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
        self.attach(std::process::id(), 0, &site)?;
        let probed = trap::ns_per_call();
        Ok(Some(probed.saturating_sub(bare) + ns / runs))
    }

    /// Removes every probe. What was kept stays readable, and does not change any more.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn detach(&mut self) -> Result<(), KernelError> {
        if let Some(program) = self.ebpf.program_mut("cpu_clock")
            && let Ok(program) = TryInto::<&mut PerfEvent>::try_into(program)
        {
            // It may never have been loaded.
            let _unloaded = program.unload();
        }
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

    /// The greenlets alive.
    ///
    /// # Errors
    ///
    /// When the map can't be read.
    pub fn greenlets(&self) -> Result<Vec<(GreenletKey, Greenlet)>, KernelError> {
        self.greenlets.entries()
    }

    /// The completed waits of every stack.
    ///
    /// # Errors
    ///
    /// When the map can't be read.
    pub fn stacks(&self) -> Result<Vec<(StackKey, StackTotals)>, KernelError> {
        self.stacks.entries()
    }

    /// The completed waits of one stack.
    ///
    /// # Errors
    ///
    /// When the map can't be read.
    pub fn stack(&self, key: &StackKey) -> Result<Option<StackTotals>, KernelError> {
        self.stacks.get(key)
    }

    /// The threads that switched, by `bpf_get_current_pid_tgid`.
    ///
    /// # Errors
    ///
    /// When the map can't be read.
    pub fn threads(&self) -> Result<Vec<(u64, Thread)>, KernelError> {
        self.threads.entries()
    }
}

/// ns from one tick to the next.
#[must_use]
pub fn tick_ns(rate: u32) -> u64 {
    1_000_000_000 / u64::from(rate.max(1))
}

fn clocks(ebpf: &mut Ebpf, btf: &Btf) -> Result<(), KernelError> {
    for name in ["task_newtask", "sched_switch"] {
        let failed = |source| KernelError::Program { program: name, source };
        let program: &mut BtfTracePoint =
            ebpf.program_mut(name).ok_or(KernelError::Missing(name))?.try_into().map_err(failed)?;
        program.load(name, btf).map_err(failed)?;
        program.attach().map_err(failed)?;
    }
    Ok(())
}

fn uprobe(ebpf: &mut Ebpf, probe: Probe) -> Result<&mut UProbe, KernelError> {
    let name = probe.program();
    ebpf.program_mut(name)
        .ok_or(KernelError::Missing(name))?
        .try_into()
        .map_err(|source| KernelError::Program { program: name, source })
}
