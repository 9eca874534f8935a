//! Waiting time by function and stack, also where the recording cuts it.

use anyhow::{Context, Result, ensure};
use tests::compare;
use tests::place::Python;
use tests::profile::{Open, State};
use tests::recording::record;
use tests::runner::Cases;
use tests::target::Target;

pub(crate) fn cases(cases: &mut Cases) {
    for kind in ["gevent", "greenlet"] {
        cases.each(format!("nested_waits_are_timed_by_function/{kind}"), move |python| {
            let target = Target::start(python, "waits.py", &[kind])?;
            let (profile, books) = record(target, &[])?;
            compare::function_times(|function| profile.waiting_ns(function), &books.times)?;
            compare::waits(&profile, &books.book)?;
            compare::switches(&profile, &books.book)?;
            compare::greenlets(&profile, &books)?;
            compare::complete(&profile)
        });
    }
    for kind in ["greenlet", "gevent", "threads"] {
        let name = format!("waits_open_at_the_ends_count_only_their_part/{kind}");
        cases.each(name, move |python| open_at_the_ends(python, kind));
    }
    cases.each("a_wait_without_python_has_an_empty_stack", without_python);
    cases.each("greenlets_that_never_switch_are_listed_with_their_stack", never_switched);
}

fn open_at_the_ends(python: &Python, kind: &str) -> Result<()> {
    let target = Target::start(python, "open_waits.py", &[kind])?;
    let (profile, books) = record(target, &[])?;
    compare::waits(&profile, &books.book)?;
    compare::switches(&profile, &books.book)?;
    compare::greenlets(&profile, &books)?;
    compare::complete(&profile)
}

fn without_python(python: &Python) -> Result<()> {
    let target = Target::start(python, "empty.py", &[])?;
    let (profile, books) = record(target, &[])?;
    let empty = profile.stacks.iter().filter(|stack| stack.frames.is_empty() && stack.state == State::Wait);
    let ns: u64 = empty.map(|stack| stack.ns).sum();
    ensure!(ns >= 12 * 190_000_000, "{ns} ns by twelve greenlets, 0.2 s each");
    compare::waits(&profile, &books.book)?;
    compare::switches(&profile, &books.book)?;
    compare::greenlets(&profile, &books)?;
    compare::complete(&profile)
}

fn never_switched(python: &Python) -> Result<()> {
    let target = Target::start(python, "open_waits.py", &["threads"])?;
    let (profile, books) = record(target, &[])?;
    ensure!(profile.totals.switches == 0, "{} switches", profile.totals.switches);
    for wait in &books.book.waits {
        let waiting: Vec<_> = profile
            .stacks
            .iter()
            .filter(|stack| stack.frames == wait.frames && stack.state == State::Wait)
            .collect();
        ensure!(waiting.len() == 2, "one in each thread: {waiting:?}");
        for stack in waiting {
            ensure!(stack.open == Some(Open::Both), "{stack:?}");
            let greenlet = profile.greenlets.iter().find(|one| one.id == stack.greenlet);
            let greenlet = greenlet.context("an open wait without a greenlet")?;
            ensure!(greenlet.switches_in == 0 && greenlet.alive && !greenlet.main, "{greenlet:?}");
            ensure!(stack.ns == profile.duration_ns, "{} of {}", stack.ns, profile.duration_ns);
        }
    }
    Ok(())
}
