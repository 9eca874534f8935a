//! Targets that leave while they are recorded, and a profiler that is killed.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tests::deadline::Deadline;
use tests::place::{Python, reader_program};
use tests::recording::{Recording, parse, run};
use tests::runner::Cases;
use tests::target::Target;

pub(crate) fn cases(cases: &mut Cases) {
    for way in ["exit", "killed"] {
        cases.each(format!("a_target_that_ends_ends_the_recording_well/{way}"), move |python| {
            let mut target = Target::start(python, "leaves.py", &[way])?;
            let recording = Recording::start(target.pid(), &[])?;
            target.go()?;
            let books = target.books()?;
            let profile = parse(&recording.finish()?)?;
            let seen = profile.totals.switches;
            ensure!(seen == books.book.total(), "{seen} instead of {}", books.book.total());
            Ok(())
        });
    }
    for way in ["exec", "thread"] {
        cases.each(format!("what_was_seen_before_an_exec_is_written/{way}"), move |python| {
            let mut target = Target::start(python, "leaves.py", &[way])?;
            let recording = Recording::start(target.pid(), &[])?;
            target.go()?;
            let books = target.books()?;
            target.hear("after")?;
            // It may end with the old program, or go on until it is told.
            let ended = recording.process.ended(Deadline::after(Duration::from_secs(2)))?;
            let text = if ended { recording.finish()? } else { recording.stop_with(Signal::TERM)? };
            let seen = parse(&text)?.totals.switches;
            ensure!(seen == books.book.total(), "{seen} instead of {}", books.book.total());
            target.finish()
        });
    }
    cases.each("a_target_told_to_wait_for_greenlet_is_recorded_from_then", wait_for_greenlet);
    for (probe, sites) in [
        ("switchstack", ["g_switchstack"].as_slice()),
        ("pair", &["user_g_switch", "main_g_switch", "g_initialstub"]),
    ] {
        let name = format!("a_killed_profiler_leaves_no_link_and_no_breakpoint/{probe}");
        cases.each(name, move |python| killed_profiler(python, probe, sites));
        let name = format!("an_ended_profiler_leaves_no_link_and_no_breakpoint/{probe}");
        cases.each(name, move |python| ended_profiler(python, probe, sites));
    }
}

fn wait_for_greenlet(python: &Python) -> Result<()> {
    tests::place::as_root()?;
    let mut target = Target::start(python, "late.py", &[])?;
    let command = Command::new(tests::place::greenscope()?);
    let recording = Recording::launch(command, target.pid(), &["--wait-greenlet"])?;
    // Long enough to look once: it must still be there, waiting.
    let gave_up = recording.process.ended(Deadline::after(Duration::from_millis(700)))?;
    ensure!(!gave_up, "it did not wait: {}", recording.process.stderr.text());
    target.go()?;
    target.hear("ready")?;
    recording.wait_until_recording()?;
    target.go()?;
    let books = target.books()?;
    let profile = recording.stop()?;
    tests::compare::switches(&profile, &books.book)?;
    target.finish()
}

/// The bytes at the probe sites, as the target's memory holds them.
fn bytes_at(target: &Target, sites: &[&str]) -> Result<Vec<[u8; 16]>> {
    let memory = File::open(format!("/proc/{}/mem", target.pid()))?;
    let mut found = Vec::new();
    for site in sites {
        let address = target.facts.pointer(&format!("/sites/{site}")).and_then(Value::as_u64);
        let mut bytes = [0; 16];
        memory.read_exact_at(&mut bytes, address.context("a site")?)?;
        found.push(bytes);
    }
    Ok(found)
}

/// The BPF links that a process holds.
fn links_of(pid: u32) -> Result<BTreeSet<u32>> {
    let mut links = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may be gone by now; a link stays open.
        let Ok(text) = std::fs::read_to_string(entry?.path()) else {
            continue;
        };
        let id = text.lines().find_map(|line| line.strip_prefix("link_id:"));
        links.extend(id.and_then(|id| id.trim().parse::<u32>().ok()));
    }
    Ok(links)
}

/// The BPF links of this kernel.
fn all_links(python: &Python) -> Result<BTreeSet<u32>> {
    let output = run(Command::new(&python.exe).arg(reader_program("links.py")))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().filter_map(|id| id.parse().ok()).collect())
}

/// Waits until the target is as it was; links are freed a moment after their holder.
fn unprobed(
    python: &Python,
    target: &Target,
    sites: &[&str],
    before: &[[u8; 16]],
    links: &BTreeSet<u32>,
) -> Result<()> {
    Deadline::usual().until("the links to go", || Ok(all_links(python)?.is_disjoint(links).then_some(())))?;
    let after = bytes_at(target, sites)?;
    ensure!(after == before, "{after:x?} instead of {before:x?}");
    Ok(())
}

fn killed_profiler(python: &Python, probe: &str, sites: &[&str]) -> Result<()> {
    let mut target = Target::start(python, "probed.py", &["100000"])?;
    let before = bytes_at(&target, sites)?;
    let mut recording = Recording::start(target.pid(), &["--probe", probe])?;
    let during = bytes_at(&target, sites)?;
    let links = links_of(recording.process.pid())?;
    for (before, during) in before.iter().zip(&during) {
        ensure!(before != during, "no breakpoint at {sites:?}: this test sees nothing");
    }
    ensure!(!links.is_empty() && links.is_subset(&all_links(python)?), "links: {links:?}");
    target.go()?;
    // In the middle of its hundred thousand switches.
    recording.process.signal(Signal::KILL)?;
    recording.process.wait(Deadline::usual())?;
    unprobed(python, &target, sites, &before, &links)?;
    let first = target.books()?.book.total();
    target.go()?;
    let second = target.books()?.book.total();
    ensure!(first == second && first > 0, "{first} and {second}");
    target.finish()
}

fn ended_profiler(python: &Python, probe: &str, sites: &[&str]) -> Result<()> {
    let target = Target::start(python, "probed.py", &["2000"])?;
    let before = bytes_at(&target, sites)?;
    let recording = Recording::start(target.pid(), &["--probe", probe])?;
    let links = links_of(recording.process.pid())?;
    recording.stop_with(Signal::INT)?;
    unprobed(python, &target, sites, &before, &links)
}
