//! How long greenlets were ready and their hub busy: the truth lies between the bounds, and where a
//! socket tells, both are it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use tests::kind;
use tests::place::Python;
use tests::profile::{Profile, State};
use tests::recording::Recording;
use tests::runner::Cases;
use tests::target::Target;

pub(crate) fn cases(cases: &mut Cases) {
    for kind in ["busy", "calm", "beside", "callback", "crowd"] {
        let name = format!("the_time_queued_lies_between_its_bounds/{kind}");
        cases.each(name, move |python| between(python, kind));
    }
}

/// What waits, and whether a socket tells since when it was ready.
const FUNCTIONS: [(&str, bool); 12] = [
    ("receive", true),
    ("receive_tcp", true),
    ("receive_udp", true),
    ("peek", true),
    ("stolen", false),
    ("hurry", false),
    ("killed", false),
    ("look", false),
    ("nap", false),
    ("result", false),
    ("event", false),
    ("take", false),
];
/// And, where there are many.
const CROWDED: (&str, bool) = ("receive_crowded", true);
/// Between the sender's look at its clock and the message's arrival, and between the greenlet's
/// going on and its own look.
const STAMP_NS: u64 = 50_000;

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
    /// None where one of them is not told.
    least_ns: Option<u64>,
    most_ns: Option<u64>,
}

fn found(profile: &Profile, function: &str) -> Result<Found> {
    let mut sum = Found { least_ns: Some(0), most_ns: Some(0), ..Found::default() };
    let add = |sum: Option<u64>, ns: Option<u64>| Some(sum? + ns?);
    for stack in profile.stacks.iter().filter(|stack| stack.contains(function)) {
        if stack.state == State::Wait && stack.open.is_none() {
            sum.ns += stack.ns;
            sum.count += stack.count;
            sum.least_ns = add(sum.least_ns, stack.queued_ns);
            sum.most_ns = add(sum.most_ns, stack.queued_at_most_ns);
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
    let mut seen = Vec::new();
    let crowded = (kind == "crowd").then_some(CROWDED);
    for (function, exact) in FUNCTIONS.into_iter().chain(crowded) {
        let truth = waits.get(function).with_context(|| format!("no wait in {function}"))?;
        let found = found(&profile, function)?;
        println!("      {function}: {truth:?}, {found:?}");
        let bounds = found.least_ns.zip(found.most_ns);
        let told = bounds.map(|(least, most)| format!("{} to {}", kind::ms(least), kind::ms(most)));
        let told = told.unwrap_or_else(|| format!("not told: part of {} of waiting", kind::ms(found.ns)));
        kind::row(&format!("queued in `{function}`"), kind::ms(truth.queued_ns), told);
        seen.push((function, exact, truth, found, bounds));
    }
    for (function, exact, truth, found, bounds) in seen {
        let (least_ns, most_ns) = bounds.context("a wait that is over without its time queued")?;
        ensure!(truth.count > 10, "{function}: {truth:?}");
        ensure!(found.count.abs_diff(truth.count) <= 1, "{function}: {truth:?}, {found:?}");
        ensure!(least_ns <= truth.queued_ns, "{function}: {truth:?}, {found:?}");
        ensure!(most_ns <= found.ns, "{function}: {found:?}");
        // The target reads its clock a moment after it goes on, and takes a receipt for a wait
        // whose message came just before.
        let late_ns = truth.ns.saturating_sub(found.ns) + truth.count * STAMP_NS;
        ensure!(most_ns + late_ns >= truth.queued_ns, "{function}: {truth:?}, {found:?}");
        if exact {
            let near_ns = truth.queued_ns / 20 + late_ns;
            ensure!(truth.queued_ns - least_ns <= near_ns, "{function}: {truth:?}, {found:?}");
            ensure!(most_ns <= truth.queued_ns + near_ns, "{function}: {truth:?}, {found:?}");
        }
    }
    Ok(())
}
