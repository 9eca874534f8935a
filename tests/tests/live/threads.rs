//! Which thread state is a thread's own: among hundreds, and in a process that C forked.

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use tests::kind;
use tests::place::Python;
use tests::profile::{Profile, Stack, State};
use tests::recording::Recording;
use tests::runner::Cases;
use tests::target::Target;

use crate::clocks::near;

/// So often a second that two hundred ticks meet each of those who burn.
const RATE: &str = "997";

pub(crate) fn cases(cases: &mut Cases) {
    for (name, arguments) in [("beside_a_few_threads", ["4", "2"]), ("beside_500_threads", ["500", "2"])] {
        cases.each(format!("the_oldest_thread_has_its_stacks/{name}"), move |python| {
            let mut target = Target::start(python, "many_threads.py", &arguments)?;
            let pid = target.pid();
            recorded(&mut target, pid)?;
            target.finish()
        });
    }
    cases.each("a_process_that_c_forked_has_its_stacks", |python| {
        let mut target = Target::start(python, "many_threads.py", &["4", "2", "c"])?;
        let child = target.facts.get("pid").and_then(Value::as_u64).context("a pid")?;
        recorded(&mut target, u32::try_from(child)?)?;
        target.finish()
    });
    cases.each("a_process_that_c_forks_is_followed_with_its_stacks", |python: &Python| {
        let mut target = Target::start(python, "many_threads.py", &["4", "2", "follow"])?;
        let pid = target.pid();
        recorded(&mut target, pid)?;
        target.finish()
    });
}

/// What a function did, by the target's own books.
#[derive(Debug, Deserialize)]
struct Booked {
    function: String,
    state: State,
    calls: u64,
    cpu_ns: u64,
}

fn recorded(target: &mut Target, pid: u32) -> Result<()> {
    let recording = Recording::start(pid, &["--rate", RATE])?;
    target.go()?;
    let done = target.hear("done")?;
    let profile = recording.stop()?;
    let functions = done.pointer("/books/cpu/functions").cloned().context("books")?;
    let functions: Vec<Booked> = serde_json::from_value(functions)?;
    let of = |state| functions.iter().filter(move |booked| booked.state == state);
    let seen = &profile;
    let found = |state| of(state).map(move |booked| sum(seen, state, &booked.function));
    kind::row(
        "CPU time under the functions that burn",
        kind::ms(of(State::Cpu).map(|booked| booked.cpu_ns).sum()),
        kind::ms(found(State::Cpu).map(|(ns, _)| ns).sum()),
    );
    kind::row(
        "sleeps under the functions that sleep",
        of(State::Blocked).map(|booked| booked.calls).sum::<u64>(),
        found(State::Blocked).map(|(_, count)| count).sum::<u64>(),
    );
    // None of the ticks of those who ran Python was without a stack.
    let faults = &profile.totals.faults;
    ensure!(!faults.contains_key("THREAD_STATE"), "{faults:?}");
    ensure!(functions.len() == 5, "{functions:?}");
    for Booked { function, state, calls, cpu_ns } in &functions {
        let (ns, count) = sum(&profile, *state, function);
        if *state == State::Cpu {
            near(function, Some(ns), *cpu_ns, 0.25, 5_000_000)?;
            continue;
        }
        ensure!(count.abs_diff(*calls) <= calls / 20 + 2, "{function}: {count} times of {calls}");
        // The sleep without what came after it: 50 ms each, less what its thread was kept from
        // the CPU between its look at the clock and the sleep.
        let kept = profile.threads.iter().filter_map(|thread| thread.clock.preempted_ns).sum::<u64>();
        let truth = calls * 50_000_000;
        near(function, Some(ns.max(truth.min(ns + kept))), truth, 0.03, 5_000_000)?;
    }
    let without = profile.stacks.iter().filter(|stack| {
        stack.state == State::Cpu
            && stack.frames.iter().any(|frame| frame.function.as_deref() == Some("(no Python)"))
    });
    // One that just begins or ends has no thread state.
    let (without, ticks) = (without.map(|stack| stack.count).sum::<u64>(), profile.totals.cpu_samples);
    ensure!(ticks.is_some_and(|ticks| without * 50 <= ticks), "{without} of {ticks:?} ticks without Python");
    Ok(())
}

fn sum(profile: &Profile, state: State, function: &str) -> (u64, u64) {
    let of = profile.stacks.iter().filter(|stack: &&Stack| stack.state == state && stack.contains(function));
    of.fold((0, 0), |sum, stack| (sum.0 + stack.ns, sum.1 + stack.count))
}
