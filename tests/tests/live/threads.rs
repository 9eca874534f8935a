//! Which thread state is a thread's own: among hundreds, and in a process that C forked.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
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

fn recorded(target: &mut Target, pid: u32) -> Result<()> {
    let recording = Recording::start(pid, &["--rate", RATE])?;
    target.go()?;
    let done = target.hear("done")?;
    let profile = recording.stop()?;
    // None of the ticks of those who ran Python was without a stack.
    let faults = &profile.totals.faults;
    ensure!(!faults.contains_key("THREAD_STATE"), "{faults:?}");
    let functions = done.pointer("/books/cpu/functions").and_then(Value::as_array).context("books")?;
    ensure!(functions.len() == 5, "{functions:?}");
    for entry in functions {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).context("a name");
        let number = |name: &str| entry.get(name).and_then(Value::as_u64).context("a number");
        let function = text("function")?;
        let (calls, cpu_ns) = (number("calls")?, number("cpu_ns")?);
        if text("state")? == "cpu" {
            let (ns, _) = sum(&profile, State::Cpu, function);
            near(function, Some(ns), cpu_ns, 0.25, 5_000_000)?;
            continue;
        }
        let (ns, count) = sum(&profile, State::Blocked, function);
        ensure!(count.abs_diff(calls) <= calls / 20 + 2, "{function}: {count} times of {calls}");
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
