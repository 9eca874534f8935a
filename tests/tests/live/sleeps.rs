//! Threads that sleep when their recording begins.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::compare;
use tests::deadline::Deadline;
use tests::place::Python;
use tests::profile::{Clock, Profile, State, Thread};
use tests::recording::Recording;
use tests::runner::Cases;
use tests::target::Target;

/// How long they sleep before one of them is woken, and after that.
const LONG: Duration = Duration::from_millis(500);

pub(crate) fn cases(cases: &mut Cases) {
    cases.each("a_sleep_from_before_the_recording_has_its_stack", sleepers);
}

fn sleepers(python: &Python) -> Result<()> {
    let mut target = Target::start(python, "sleepers.py", &[])?;
    let recording = Recording::start(target.pid(), &[])?;
    ensure!(!recording.process.ended(Deadline::after(LONG))?, "it ended by itself");
    target.go()?;
    target.hear("done")?;
    ensure!(!recording.process.ended(Deadline::after(LONG))?, "it ended by itself");
    let profile = recording.stop()?;
    compare::complete(&profile)?;
    let all = profile.duration_ns;
    // What a thread was not asleep, and on a busy machine waited for a CPU when it was woken.
    let awake = |thread: &Thread| {
        let Clock { on_cpu_ns, preempted_ns, gil_wait_ns, .. } = thread.clock;
        on_cpu_ns.unwrap_or(0) + preempted_ns.unwrap_or(0) + gil_wait_ns.unwrap_or(0)
    };
    let near = |what: &str, ns: u64, truth: u64| {
        ensure!(ns.abs_diff(truth) <= truth / 100 + 5_000_000, "{what}: {ns} ns instead of {truth}");
        Ok(())
    };
    // A thread that slept in it, and was awake for the rest.
    let slept = |function: &str, ns: u64| {
        let whole = profile.threads.iter().map(|thread| ns + awake(thread));
        near(function, whole.min_by_key(|whole| whole.abs_diff(all)).unwrap_or(ns), all)
    };
    for function in ["locked", "generated", "woken", "wait_for_go"] {
        slept(function, ns_of(&profile, State::Blocked, function))?;
    }
    for function in ["polling", "Hub.run"] {
        slept(function, ns_of(&profile, State::Idle, function))?;
    }
    let (before, after) =
        (ns_of(&profile, State::Blocked, "until_go"), ns_of(&profile, State::Blocked, "after_go"));
    let least = u64::try_from(LONG.as_nanos())? - 5_000_000;
    ensure!(before >= least && after >= least, "{before} ns before it was woken, {after} after");
    near("without a stack", ns_of(&profile, State::Blocked, "(asleep, stack not taken)"), 0)?;
    for thread in &profile.threads {
        near(&format!("{:?}", thread.name), thread.clock.sum_ns().unwrap_or(0), all)?;
    }
    target.finish()
}

/// The time of the stacks with that function.
fn ns_of(profile: &Profile, state: State, function: &str) -> u64 {
    let with = profile.stacks.iter().filter(|stack| {
        stack.state == state && stack.frames.iter().any(|frame| frame.function.as_deref() == Some(function))
    });
    with.map(|stack| stack.ns).sum()
}
