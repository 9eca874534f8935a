//! The CPU clock, which interrupts whatever runs so many times a second.

use aya::{
    programs::{
        PerfEvent, ProgramError,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
    },
    util::online_cpus,
};

use super::{Engine, KernelError};

pub(super) const PROGRAM: &str = "cpu_clock";

/// ns from one tick to the next.
#[must_use]
pub fn tick_ns(rate: u32) -> u64 {
    1_000_000_000 / u64::from(rate.max(1))
}

impl Engine {
    /// Has the CPU clock tick ([`super::Parts::ticks`]) `rate` times a second on every CPU; on
    /// none if one refuses, for the ticks would tell of a part of the time only.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it (`CAP_PERFMON`, seccomp).
    pub fn start_ticks(&mut self, rate: u32) -> Result<(), KernelError> {
        let cpus = online_cpus().map_err(|(_, source)| KernelError::Cpus(source))?;
        self.ticks.take().map_or(Ok(()), Err)?;
        let program = self.clock()?;
        for cpu in cpus {
            let attached = program.attach(
                PerfEventConfig::Software(SoftwareEvent::CpuClock),
                PerfEventScope::AllProcessesOneCpu { cpu },
                SamplePolicy::Period(tick_ns(rate)),
                false,
            );
            if let Err(source) = attached {
                self.stop_ticks();
                return Err(KernelError::Ticks { cpu, source });
            }
        }
        Ok(())
    }

    /// Ends the ticking, if there was any.
    pub(super) fn stop_ticks(&mut self) {
        if let Ok(program) = self.clock() {
            // It may never have been loaded. Unloading drops the program's links with it.
            let _unloaded = program.unload();
        }
    }

    fn clock(&mut self) -> Result<&mut PerfEvent, KernelError> {
        self.ebpf
            .program_mut(PROGRAM)
            .ok_or(KernelError::Missing(PROGRAM))?
            .try_into()
            .map_err(|source: ProgramError| KernelError::Program { program: PROGRAM, source })
    }
}
