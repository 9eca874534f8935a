//! Without the CPU clock: said in one line, and all that is exact stays so.

use std::process::Command;

use anyhow::{Result, ensure};
use tests::compare;
use tests::place::{Python, as_root, greenscope, tool};
use tests::profile::{Profile, State};
use tests::recording::{Recording, refused};
use tests::refusing::{Refused, greenscope_refused};
use tests::runner::Cases;
use tests::target::Target;

use crate::clocks;

pub(crate) fn cases(cases: &mut Cases) {
    for workload in ["shares", "blocked"] {
        let name = format!("without_the_cpu_clock_the_ledger_is_met_as_well/{workload}");
        cases.each(name, move |python| {
            let command = greenscope_refused(python, Refused::EveryProcess)?;
            let recorded =
                clocks::recorded_by(command, clocks::workload(python, workload)?, &["--no-children"])?;
            told(&recorded.said)?;
            unsampled(&recorded.profile)?;
            clocks::greenlets(&recorded)
        });
    }
    cases.each("without_the_cpu_clock_waits_and_switches_are_exact", waits);
    cases.each("without_the_cpu_clock_plain_threads_are_exact", |python| {
        let command = greenscope_refused(python, Refused::EveryProcess)?;
        let recorded =
            clocks::recorded_by(command, clocks::workload(python, "threads")?, &["--no-children"])?;
        told(&recorded.said)?;
        unsampled(&recorded.profile)?;
        clocks::threads(&recorded)
    });
    cases.each("without_perf_events_a_process_without_greenlet_is_recorded", |python| {
        let command = greenscope_refused(python, Refused::All)?;
        let target = Target::start(python, "idle.py", &[])?;
        let recording = Recording::start_by(command, target.pid(), &[])?;
        let said = recording.process.stderr.clone();
        let profile = recording.stop()?;
        told(&said.text())?;
        unsampled(&profile)?;
        compare::complete(&profile)?;
        let blocked = profile.threads.iter().map(|thread| thread.clock.blocked_ns).sum::<Option<u64>>();
        ensure!(blocked == Some(profile.duration_ns), "{blocked:?} ns of {}", profile.duration_ns);
        target.finish()
    });
    cases.each("a_cpu_clock_refused_on_one_cpu_ticks_on_none", |python| {
        let command = greenscope_refused(python, Refused::SecondCpu)?;
        let recorded = clocks::recorded_by(command, clocks::workload(python, "shares")?, &[])?;
        told(&recorded.said)?;
        unsampled(&recorded.profile)?;
        clocks::greenlets(&recorded)
    });
    cases.each("a_cpu_clock_that_is_not_wanted_is_not_missed", |python| {
        as_root()?;
        let target = clocks::workload(python, "shares")?;
        let recorded = clocks::recorded_by(Command::new(greenscope()?), target, &["--rate", "0"])?;
        ensure!(!recorded.said.contains("greenscope: "), "{}", recorded.said);
        unsampled(&recorded.profile)?;
        clocks::greenlets(&recorded)
    });
    cases.each("without_perf_events_greenlets_are_not_permitted", |python| {
        not_permitted(python, greenscope_refused(python, Refused::All)?, "perf_event_open")
    });
    cases.each("root_without_its_capabilities_is_not_permitted", |python| {
        as_root()?;
        let mut command = Command::new(tool("setpriv")?);
        command.args(["--bounding-set", "-perfmon,-sys_admin"]).arg(greenscope()?);
        not_permitted(python, command, "CAP_PERFMON")
    });
}

/// One line says what is missing, why, and what it takes.
fn told(said: &str) -> Result<()> {
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("greenscope: ")).collect();
    let [line] = lines.as_slice() else { anyhow::bail!("not one line: {said}") };
    for word in ["no stacks on the CPU", "the rest goes on", "Permission denied", "CAP_PERFMON"] {
        ensure!(line.contains(word), "no {word}: {line}");
    }
    Ok(())
}

/// No tick was counted anywhere; null is not 0.
fn unsampled(profile: &Profile) -> Result<()> {
    ensure!(profile.totals.cpu_samples.is_none(), "{:?}", profile.totals);
    let ticks: u64 =
        profile.stacks.iter().filter(|stack| stack.state == State::Cpu).map(|stack| stack.count).sum();
    ensure!(ticks == 0, "{ticks} ticks");
    Ok(())
}

fn waits(python: &Python) -> Result<()> {
    let command = greenscope_refused(python, Refused::EveryProcess)?;
    let mut target = Target::start(python, "waits.py", &["gevent"])?;
    let recording = Recording::start_by(command, target.pid(), &["--no-children"])?;
    let said = recording.process.stderr.clone();
    target.go()?;
    let books = target.books()?;
    let profile = recording.stop()?;
    target.finish()?;
    told(&said.text())?;
    unsampled(&profile)?;
    compare::switches(&profile, &books.book)?;
    compare::greenlets(&profile, &books)?;
    compare::waits(&profile, &books.book)?;
    compare::function_times(|function| profile.waiting_ns(function), &books.times)?;
    compare::complete(&profile)
}

/// Exit code 3 and one line that has the word.
fn not_permitted(python: &Python, mut command: Command, word: &str) -> Result<()> {
    let target = Target::start(python, "idle.py", &["greenlet"])?;
    let refusal = refused(
        command
            .args(["record", "--pid", &target.pid().to_string(), "--duration", "300ms"])
            .args(["--format", "json"]),
    )?;
    ensure!(refusal.code == 3 && refusal.line.contains(word), "{refusal:?}");
    target.finish()
}
