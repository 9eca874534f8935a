//! How long greenlets were ready and their hub busy: the truth lies between the bounds.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use tests::place::Python;
use tests::profile::{Profile, State};
use tests::recording::Recording;
use tests::runner::Cases;
use tests::target::Target;

pub(crate) fn cases(cases: &mut Cases) {
    for kind in ["busy", "calm"] {
        let name = format!("the_time_queued_lies_between_its_bounds/{kind}");
        cases.each(name, move |python| between(python, kind));
    }
}

/// The completed waits of a function, by the target's own clock.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Waits {
    ns: u64,
    count: u64,
    queued_ns: u64,
}

/// The same as greenscope has them.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    ns: u64,
    count: u64,
    least_ns: u64,
    most_ns: u64,
}

fn found(profile: &Profile, function: &str) -> Result<Found> {
    let mut sum = Found::default();
    for stack in profile.stacks.iter().filter(|stack| stack.contains(function)) {
        if stack.state == State::Wait && stack.open.is_none() {
            sum.ns += stack.ns;
            sum.count += stack.count;
            sum.least_ns += stack.queued_ns.context("a wait that is over without queued_ns")?;
            sum.most_ns += stack.queued_at_most_ns.context("and without queued_at_most_ns")?;
        } else {
            ensure!(stack.queued_ns.is_none() && stack.queued_at_most_ns.is_none(), "{stack:?}");
        }
    }
    Ok(sum)
}

fn between(python: &Python, kind: &str) -> Result<()> {
    let mut target = Target::start(python, "queued.py", &[kind])?;
    let recording = Recording::start(target.pid(), &[])?;
    target.go()?;
    let done = target.hear("done")?;
    let profile = recording.stop()?;
    target.finish()?;
    let waits = done.pointer("/books/waits").cloned().context("no books")?;
    let waits: BTreeMap<String, Waits> = serde_json::from_value(waits)?;
    for function in ["receive", "nap", "result", "event", "take"] {
        let truth = waits.get(function).with_context(|| format!("no wait in {function}"))?;
        let found = found(&profile, function)?;
        println!("      {function}: {truth:?}, {found:?}");
        ensure!(truth.count > 10, "{function}: {truth:?}");
        ensure!(found.least_ns <= truth.queued_ns, "{function}: {truth:?}, {found:?}");
        // The target reads its clock a moment after it goes on, and takes a receipt for a wait
        // whose message came just before.
        let late_ns = truth.ns.saturating_sub(found.ns);
        ensure!(found.most_ns + late_ns >= truth.queued_ns, "{function}: {truth:?}, {found:?}");
        ensure!(found.most_ns <= found.ns, "{function}: {found:?}");
    }
    Ok(())
}
