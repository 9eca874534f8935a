//! A second opinion on who was on the CPU: yappi's, from inside of the target.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use tests::place::{Python, as_root, greenscope};
use tests::runner::Cases;
use tests::target::Target;

use crate::clocks::{self, SECONDS, near};

/// What yappi gives to a greenlet beside its own CPU time, at each switch: the hub's in C
/// until the next greenlet calls a function. In 54 runs, 18 of them beside three busy
/// processes, it was 1 to 51 us (the most where the hub polls after each burst), but for
/// greenlets that had a neighbour's time in a run that was not seen to begin.
const A_SWITCH_NS: u64 = 100_000;
/// A run that was not seen to begin (`CAME_UNSEEN`) may be another greenlet's by a tick of
/// the scheduler, 10 ms at most.
const UNSEEN_NS: u64 = 10_000_000;
/// What the target does before yappi starts, and after it has been asked.
const OUTSIDE_NS: u64 = 10_000_000;

pub(crate) fn cases(cases: &mut Cases) {
    for workload in ["shares", "bursts", "blocked"] {
        let name = format!("yappi_has_the_same_opinion/{workload}");
        cases.each(name, move |python| opinions(python, workload));
    }
}

/// What yappi says of a greenlet.
#[derive(Debug, Deserialize)]
struct Opinion {
    /// None for one without a name of its own, the hub and the main one among them.
    name: Option<String>,
    cpu_ns: u64,
}

fn opinions(python: &Python, workload: &str) -> Result<()> {
    as_root()?;
    let target = Target::start(python, "oracle.py", &[workload, SECONDS])?;
    let recorded = clocks::recorded_by(Command::new(greenscope()?), target, &[])?;
    // Both look at the same run, and the ledger too.
    clocks::greenlets(&recorded)?;
    let opinions = recorded.done.pointer("/books/oracle").cloned().context("no opinions")?;
    let opinions: Vec<Opinion> = serde_json::from_value(opinions)?;
    let profile = &recorded.profile;
    let unseen = profile.totals.faults.get("CAME_UNSEEN").copied().unwrap_or(0).min(2) * UNSEEN_NS;
    let mut compared = 0;
    // Of a greenlet that sleeps most is the hub's.
    for name in recorded.of_role("burns").chain(recorded.of_role("blocks")) {
        let opinion = opinions.iter().find(|opinion| opinion.name.as_deref() == Some(name));
        let opinion = opinion.with_context(|| format!("yappi knows no {name}"))?;
        let seen = profile.greenlets.iter().find(|one| one.name.as_deref() == Some(name));
        let seen = seen.with_context(|| format!("greenscope knows no {name}"))?;
        let slack = seen.switches_in * A_SWITCH_NS + unseen;
        near(&format!("{name}, by yappi"), seen.clock.on_cpu_ns, opinion.cpu_ns, 0.0, slack)?;
        compared += 1;
    }
    ensure!(compared > 0, "nobody was compared");
    // yappi leaves nothing out: together they are the thread.
    let sum = profile.greenlets.iter().map(|greenlet| greenlet.clock.on_cpu_ns).sum::<Option<u64>>();
    let unseen = recorded.done.pointer("/books/unseen_ns").and_then(Value::as_u64).context("no unseen_ns")?;
    let truth = opinions.iter().map(|opinion| opinion.cpu_ns).sum::<u64>() + unseen;
    near("all of them, by yappi", sum, truth, 0.002, OUTSIDE_NS)
}
