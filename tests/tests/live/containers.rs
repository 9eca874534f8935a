//! Containers of one image: one library to the kernel, several to everybody else.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use tests::kind;
use tests::place::{Python, as_root, tool};
use tests::profile::Profile;
use tests::recording::Recording;
use tests::runner::Cases;
use tests::target::Target;

use crate::prefork::switches_by_process;

pub(crate) fn cases(cases: &mut Cases) {
    cases.each("containers_of_one_image_are_each_counted_once", with_children);
    cases.each("containers_of_one_image_are_each_counted_once_without_their_children", without_children);
    cases.each("containers_of_one_image_that_load_greenlet_late_are_counted_once", late);
    cases.once("twenty_containers_of_one_image_are_exact", twenty);
}

/// What a process did.
#[derive(Debug, Deserialize)]
struct Book {
    switches: u64,
    freed: u64,
}

/// Records processes on that many mounts, and compares each with its books.
fn recorded(python: &Python, arguments: &[&str], options: &[&str]) -> Result<()> {
    as_root()?;
    let mut command = Command::new(tool("unshare")?);
    command.arg("--mount").arg(&python.exe);
    let mut target = Target::start_by(&mut command, "containers.py", arguments)?;
    let members: Vec<u32> = serde_json::from_value(target.facts.get("members").cloned().context("members")?)?;
    let mut named = Vec::from(options);
    let pids: Vec<String> = members.iter().map(u32::to_string).collect();
    for pid in pids.iter().skip(1) {
        named.extend(["--pid", pid]);
    }
    let recording = Recording::start(*members.first().context("nobody")?, &named)?;
    target.go()?;
    let done = target.hear("done")?;
    let profile = recording.stop()?;
    let mut books: BTreeMap<u32, Book> =
        serde_json::from_value(done.get("books").cloned().context("books")?)?;
    if options.contains(&"--no-children") {
        books.retain(|pid, _| members.contains(pid));
    }
    exact(&profile, &books)?;
    target.finish()
}

fn exact(profile: &Profile, books: &BTreeMap<u32, Book>) -> Result<()> {
    let truth: BTreeMap<u32, u64> = books.iter().map(|(pid, book)| (*pid, book.switches)).collect();
    let found = profile.totals.probe_hits;
    // Each switch is hit once, and each end.
    let hits: u64 = books.values().map(|book| book.switches + book.freed).sum();
    kind::row("switches", truth.values().sum::<u64>(), profile.totals.switches);
    kind::row("hits of probes", hits, found);
    let seen = switches_by_process(profile);
    ensure!(seen == truth, "switches {seen:?} instead of {truth:?}; {:?}", profile.totals);
    for fault in ["OUT_OF_STEP", "SWITCH_UNDONE", "NOT_A_GREENLET", "WRONG_THREAD", "THREAD_STATE"] {
        ensure!(!profile.totals.faults.contains_key(fault), "{fault}: {:?}", profile.totals.faults);
    }
    ensure!(found == hits, "{found} hits instead of {hits}");
    Ok(())
}

fn with_children(python: &Python) -> Result<()> {
    recorded(python, &["3", "2", "1", "300"], &[])
}

fn without_children(python: &Python) -> Result<()> {
    recorded(python, &["3", "2", "1", "300"], &["--no-children"])
}

fn late(python: &Python) -> Result<()> {
    recorded(python, &["3", "2", "0", "300", "late"], &[])
}

fn twenty() -> Result<()> {
    recorded(&Python::find("py3.12")?, &["20", "1", "1", "40"], &[])
}
