//! Pid namespaces: exact, or refused; never silently nothing.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use tests::book::Books;
use tests::compare;
use tests::deadline::Deadline;
use tests::place::{Python, as_root, greenscope, tool};
use tests::process::descendants;
use tests::profile::Profile;
use tests::recording::Recording;
use tests::runner::Cases;
use tests::target::Target;

pub(crate) fn cases(cases: &mut Cases) {
    cases.each("a_target_in_a_pid_namespace_is_recorded_from_outside", from_outside);
    cases.each("a_profiler_in_the_targets_pid_namespace_is_exact", from_inside);
    cases.each("programs_of_a_pid_namespace_are_followed/from_outside", |python| {
        programs(python, |pid| Recording::start(pid, &[]))
    });
    cases.each("programs_of_a_pid_namespace_are_followed/from_inside", |python| programs(python, inside));
    cases.each("a_profiler_in_a_pid_namespace_of_its_own_never_counts_wrong", from_elsewhere);
}

/// A target that is pid 1 of its namespace, and its pid outside.
fn contained(python: &Python, program: &str, arguments: &[&str]) -> Result<(Target, u32)> {
    as_root()?;
    let mut command = Command::new(tool("unshare")?);
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).arg(&python.exe);
    let target = Target::start_by(&mut command, program, arguments)?;
    ensure!(target.facts.get("pid") == Some(&1.into()), "{}", target.facts);
    let children = descendants(target.pid())?;
    let pid = *children.first().context("unshare has no child")?;
    Ok((target, pid))
}

/// Everything but the thread ids, which differ between the namespaces.
fn exact(profile: &Profile, books: &Books) -> Result<()> {
    let (seen, truth) = (profile.totals.switches, books.book.total());
    ensure!(seen == truth, "{seen} instead of {truth} switches");
    compare::waits(profile, &books.book)?;
    compare::function_times(|function| profile.waiting_ns(function), &books.times)?;
    compare::complete(profile)
}

fn from_outside(python: &Python) -> Result<()> {
    let (mut target, pid) = contained(python, "waits.py", &["gevent"])?;
    let recording = Recording::start(pid, &[])?;
    target.go()?;
    let books = target.books()?;
    exact(&recording.stop()?, &books)?;
    target.finish()
}

fn from_inside(python: &Python) -> Result<()> {
    let (mut target, pid) = contained(python, "waits.py", &["gevent"])?;
    let recording = inside(pid)?;
    target.go()?;
    let books = target.books()?;
    exact(&recording.stop()?, &books)?;
    target.finish()
}

/// A recording of the process from inside of its pid namespace.
fn inside(pid: u32) -> Result<Recording> {
    let mut command = Command::new(tool("nsenter")?);
    command.args(["--target", &pid.to_string(), "--pid", "--mount"]).arg(greenscope()?);
    let mut recording = Recording::start_by(command, 1, &[])?;
    let inner = descendants(recording.process.pid())?;
    recording.signal_instead(*inner.first().context("nsenter has no child")?);
    Ok(recording)
}

/// Every Python that takes a program's place there has its switches.
fn programs(python: &Python, record: impl Fn(u32) -> Result<Recording>) -> Result<()> {
    let (mut target, pid) = contained(python, "programs.py", &[])?;
    let recording = record(pid)?;
    target.go()?;
    let done = target.hear("done")?;
    let profile = recording.stop()?;
    let truth: Vec<u64> =
        serde_json::from_value(done.pointer("/books/switches").cloned().context("switches")?)?;
    let sum: u64 = truth.iter().sum();
    ensure!(profile.totals.switches == sum, "{} instead of {truth:?}", profile.totals.switches);
    let unseen = profile.targets.iter().filter(|row| row.unseen_ns.is_some()).count();
    // All but the first; multiprocessing has one of its own.
    ensure!(unseen == truth.len(), "{unseen} of {:?}", profile.targets);
    target.finish()
}

/// With the host's /proc, but pids of its own: most calls know no such target.
fn from_elsewhere(python: &Python) -> Result<()> {
    as_root()?;
    let mut target = Target::start(python, "waits.py", &["gevent"])?;
    let mut command = Command::new(tool("unshare")?);
    command.args(["--pid", "--fork", "--kill-child"]).arg(greenscope()?);
    let mut recording = Recording::launch(command, target.pid(), &[])?;
    if recording.wait_until_recording().is_ok() {
        let inner = descendants(recording.process.pid())?;
        recording.signal_instead(*inner.first().context("unshare has no child")?);
        target.go()?;
        let books = target.books()?;
        return exact(&recording.stop()?, &books);
    }
    let status = recording.process.wait(Deadline::usual())?;
    let said = recording.process.stderr.text();
    let code = status.code().context("an exit code")?;
    ensure!((1..=4).contains(&code), "{status}: {said}");
    ensure!(said.starts_with("greenscope: ") && said.lines().count() == 1, "{said}");
    Ok(())
}
