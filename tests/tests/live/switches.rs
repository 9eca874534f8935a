//! Every real switch is counted, once, on its thread.

use anyhow::{Result, ensure};
use tests::compare;
use tests::place::Python;
use tests::recording::{Recording, record};
use tests::runner::Cases;
use tests::target::{Target, unobserved};

pub(crate) fn cases(cases: &mut Cases) {
    cases.each("books_add_up", books_add_up);
    for kind in ["greenlet", "gevent", "threads"] {
        for probe in ["switchstack", "pair"] {
            let name = format!("switches_equal_the_targets_own_count/{kind}/{probe}");
            cases.each(name, move |python| {
                let target = Target::start(python, "switches.py", &[kind])?;
                let (profile, books) = record(target, &["--probe", probe])?;
                compare::switches(&profile, &books.book)?;
                compare::greenlets(&profile, &books)?;
                compare::complete(&profile)
            });
        }
    }
    cases.each("switches_as_fast_as_they_come_are_all_counted", |python| {
        let target = Target::start(python, "switches.py", &["greenlet", "300000"])?;
        let (profile, books) = record(target, &[])?;
        compare::switches(&profile, &books.book)?;
        compare::complete(&profile)
    });
    cases.each("two_recordings_of_one_target_are_both_right", two_recordings);
    cases.each("two_targets_in_one_recording_are_kept_apart", two_targets);
    cases.each("a_second_recording_of_a_target_starts_from_zero", second_recording);
}

/// Without the profiler: what a target says of itself fits together.
fn books_add_up(python: &Python) -> Result<()> {
    for (program, argument) in [
        ("switches.py", "greenlet"),
        ("switches.py", "gevent"),
        ("switches.py", "threads"),
        ("waits.py", "greenlet"),
        ("stacks.py", "c_calls"),
        ("open_waits.py", "gevent"),
    ] {
        let book = unobserved(python, program, &[argument])?.book;
        let lives: u64 = book.greenlets.iter().map(|life| life.switches_in).sum();
        ensure!(lives == book.total(), "{program} {argument}: {lives} != {}", book.total());
        ensure!(book.total() > 0, "{program} {argument} did nothing");
        // Each closed wait ended with a switch into the waiting greenlet.
        let ended = |open: Option<tests::profile::Open>| open.is_none_or(|open| !open.at_end());
        let waits = book.waits.iter().filter(|wait| ended(wait.open));
        let waits: u64 = waits.map(|wait| wait.count).sum();
        ensure!(waits <= lives, "{program} {argument}: {waits} waits of {lives} switches");
    }
    Ok(())
}

fn two_recordings(python: &Python) -> Result<()> {
    let mut target = Target::start(python, "switches.py", &["gevent"])?;
    let first = Recording::start(target.pid(), &[])?;
    let second = Recording::start(target.pid(), &["--probe", "pair"])?;
    target.go()?;
    let books = target.books()?;
    for recording in [first, second] {
        let profile = recording.stop()?;
        compare::switches(&profile, &books.book)?;
        compare::greenlets(&profile, &books)?;
        compare::complete(&profile)?;
    }
    target.finish()
}

fn two_targets(python: &Python) -> Result<()> {
    let mut one = Target::start(python, "switches.py", &["greenlet", "2000"])?;
    let mut two = Target::start(python, "switches.py", &["gevent", "5000"])?;
    let recording = Recording::start(one.pid(), &["--pid", &two.pid().to_string()])?;
    one.go()?;
    two.go()?;
    let books = [one.books()?, two.books()?];
    let profile = recording.stop()?;
    for (target, books) in [&one, &two].into_iter().zip(&books) {
        let greenlets = profile.greenlets.iter().filter(|life| life.pid == target.pid());
        let seen: u64 = greenlets.map(|life| life.switches_in).sum();
        ensure!(seen == books.book.total(), "{seen} != {}", books.book.total());
    }
    let total: u64 = books.iter().map(|books| books.book.total()).sum();
    ensure!(profile.totals.switches == total, "{} != {total}", profile.totals.switches);
    ensure!(profile.targets.len() == 2, "{:?}", profile.targets);
    one.finish()?;
    two.finish()
}

fn second_recording(python: &Python) -> Result<()> {
    let mut target = Target::start(python, "probed.py", &["2000"])?;
    for _ in 0..2 {
        let recording = Recording::start(target.pid(), &[])?;
        target.go()?;
        let books = target.books()?;
        let profile = recording.stop()?;
        compare::switches(&profile, &books.book)?;
        compare::complete(&profile)?;
    }
    target.finish()
}
