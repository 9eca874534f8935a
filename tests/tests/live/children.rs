//! Processes that targets fork.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::compare;
use tests::place::Python;
use tests::profile::Profile;
use tests::recording::Recording;
use tests::runner::Cases;
use tests::target::Target;

use crate::prefork::switches_by_process;

pub(crate) fn cases(cases: &mut Cases) {
    for probe in ["switchstack", "pair"] {
        cases.each(format!("forked_processes_are_followed_to_their_end/{probe}"), move |python| {
            forks(python, &["--probe", probe])
        });
    }
    cases.each("children_are_left_out_when_they_are_not_wanted", not_wanted);
    cases.each("the_greenlets_of_an_ended_child_are_counted_once", churn);
}

/// The children's greenlets are looked up among those of a process that goes on.
fn churn(python: &Python) -> Result<()> {
    let mut target = Target::start(python, "churn.py", &[])?;
    let recording = Recording::start(target.pid(), &["--max-greenlets", "1000000"])?;
    target.go()?;
    let done = target.hear("done")?;
    let mut profile = recording.stop()?;
    short_lived(&mut profile);
    compare::complete(&profile)?;
    let own = done.pointer("/books/own").and_then(Value::as_u64).context("own")?;
    let children = done.pointer("/books/children").cloned().context("children")?;
    let mut truth: BTreeMap<u32, u64> = serde_json::from_value(children)?;
    truth.insert(target.pid(), own);
    let seen = switches_by_process(&profile);
    ensure!(seen == truth, "greenscope {seen:?}, books {truth:?}");
    target.finish()
}

fn forks(python: &Python, options: &[&str]) -> Result<()> {
    let mut target = Target::start(python, "forks.py", &[])?;
    let recording = Recording::start(target.pid(), options)?;
    target.go()?;
    let done = target.hear("done")?;
    let count = |name| done.pointer(name).and_then(Value::as_u64).context(name);
    let mut profile = recording.stop()?;
    short_lived(&mut profile);
    compare::complete(&profile)?;
    let (switches, processes) = (count("/books/switches")?, count("/books/processes")?);
    ensure!(profile.totals.switches == switches, "{} instead of {switches}", profile.totals.switches);
    ensure!(profile.switches_in() == switches, "{} by greenlet", profile.switches_in());
    let seen = profile.targets.len() as u64;
    ensure!(seen == processes, "{seen} processes instead of {processes}");
    let child = target.facts.get("child").and_then(Value::as_u64).context("the child's pid")?;
    let parent =
        |pid: u64| profile.targets.iter().find(|target| u64::from(target.pid) == pid).map(|t| t.parent);
    ensure!(parent(child) == Some(Some(target.pid())), "the child that was there: {:?}", parent(child));
    ensure!(parent(target.pid().into()) == Some(None), "the target has a parent");
    target.finish()
}

/// Takes out what is lost of processes that end before anybody could look at them:
/// greenlets that never switched, and the names of code that only they had. In a process
/// that begins and ends all the time a tick meets frames being linked more often, and now and
/// then no thread state. Each begins with a new element of
/// task storage, and a tick in the middle of its making can't have one: its stack is sent
/// by the next. (A switch that was lost so would be missing in the totals.)
pub(crate) fn short_lived(profile: &mut Profile) {
    for fault in [
        "ENUMERATION_INCOMPLETE",
        "CODE_UNREADABLE",
        "CODE_CHANGED",
        "CODE_REUSED",
        "TICK_TORN",
        "THREAD_STATE",
        "NO_TASK_STORAGE",
    ] {
        profile.totals.faults.remove(fault);
    }
}

fn not_wanted(python: &Python) -> Result<()> {
    let mut target = Target::start(python, "forks.py", &[])?;
    let recording = Recording::start(target.pid(), &["--no-children"])?;
    target.go()?;
    let done = target.hear("done")?;
    let own = done.pointer("/books/own").and_then(Value::as_u64).context("own")?;
    let profile = recording.stop()?;
    let pids: Vec<u32> = profile.targets.iter().map(|target| target.pid).collect();
    ensure!(pids == [target.pid()], "recorded {pids:?}");
    ensure!(profile.totals.switches == own, "{} instead of {own}", profile.totals.switches);
    target.finish()
}
