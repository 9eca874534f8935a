//! Memory that never answers: that target is left alone, and no other one suffers.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::kind;
use tests::place::Python;
use tests::recording::Recording;
use tests::runner::Cases;
use tests::target::Target;

use crate::prefork::switches_by_process;

pub(crate) fn cases(cases: &mut Cases) {
    cases.each("memory_that_never_answers_stops_nothing", silent);
}

fn silent(python: &Python) -> Result<()> {
    let mut silent = Target::start(python, "silent.py", &[])?;
    let mut other = Target::start(python, "switches.py", &["greenlet", "2000"])?;
    let pid = other.pid().to_string();
    let recording = Recording::start(silent.pid(), &["--pid", &pid])?;
    silent.go()?;
    silent.hear("switched")?;
    let says = |line: &str| line.contains("does not answer");
    let line = "line that it does not answer";
    let told = recording.process.stderr.line(0, tests::deadline::Deadline::usual(), line, says);
    kind::row("told that it does not answer", 1, u8::from(told.is_ok()));
    told?;
    silent.go()?;
    let done = silent.hear("done")?;
    // The other one begins when nothing is to be had of the first one any more.
    other.go()?;
    let books = other.books()?;
    let profile = recording.stop()?;
    let switches = done.pointer("/books/switches").and_then(Value::as_u64).context("switches")?;
    let seen = switches_by_process(&profile);
    let truth: BTreeMap<u32, u64> = [(silent.pid(), switches), (other.pid(), books.book.total())].into();
    kind::row("switches of both", truth.values().sum::<u64>(), seen.values().sum::<u64>());
    ensure!(seen == truth, "switches {seen:?} instead of {truth:?}");
    ensure!(profile.totals.faults.get("NO_ANSWER") == Some(&1), "{:?}", profile.totals.faults);
    other.finish()?;
    silent.finish()
}
