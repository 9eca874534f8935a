//! Whole recordings: the fastest thread, a hundred thousand greenlets, the start.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    recording::{Json, Recording, Usage},
    switches::Workload,
};

/// How long a thread switches as fast as it can.
const STORM: Duration = Duration::from_secs(10);

/// A recording of a thread that switched as fast as it could.
pub(super) struct Storm {
    pub(super) greenlets: u32,
    /// By the target's own count.
    pub(super) switches: u64,
    pub(super) json: Json,
    pub(super) usage: Usage,
}

impl Storm {
    /// Records it from its first switch to its last: it blocks before and after.
    pub(super) fn record(python: &Path, greenlets: u32) -> Result<Self> {
        let mut target = Workload::Ring { greenlets, depth: 5, shims: 0 }.start(python)?;
        let recording = Recording::start_json(target.pid(), &[])?;
        let switches = target.work(STORM)?;
        let (json, usage) = recording.stop_json()?;
        Ok(Self { greenlets, switches, json, usage })
    }

    pub(super) fn is_exact(&self) -> bool {
        self.json.totals.switches == self.switches
    }

    /// Seconds of greenscope's own per million switches.
    pub(super) fn cpu_per_million(&self) -> f64 {
        self.usage.cpu.as_secs_f64() / (self.switches as f64 / 1e6)
    }

    /// What was lost, in json's words.
    pub(super) fn losses(&self) -> Option<String> {
        let totals = &self.json.totals;
        let mut losses: Vec<String> =
            totals.faults.iter().map(|(name, count)| format!("{name} {count}")).collect();
        if totals.records_lost > 0 {
            losses.push(format!("records lost {}", totals.records_lost));
        }
        let storm = format!("storm of {} greenlets", self.greenlets);
        (!losses.is_empty()).then(|| format!("{storm}: {}", losses.join(", ")))
    }
}

/// From greenscope's start to the first stack of a target that is switching, in ms.
pub(super) fn first_stacks_ms(python: &Path, rounds: u32) -> Result<Vec<f64>> {
    let mut target = Workload::Ring { greenlets: 10, depth: 5, shims: 0 }.start(python)?;
    (0..rounds)
        .map(|_| {
            target.go()?;
            let recording = Recording::start_json(target.pid(), &["--duration", "500ms"])?;
            let (json, _usage) = recording.end_json()?;
            target.halt()?;
            let ns = json.first_stack_ns.context("no stack in half a second")?;
            Ok(ns as f64 / 1e6)
        })
        .collect()
}
