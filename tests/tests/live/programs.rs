//! Processes that another Python takes the place of.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tests::compare;
use tests::place::Python;
use tests::recording::Recording;
use tests::runner::Cases;
use tests::target::Target;

use crate::children::short_lived;

pub(crate) fn cases(cases: &mut Cases) {
    for probe in ["switchstack", "pair"] {
        cases.each(format!("a_python_that_takes_a_programs_place_is_followed/{probe}"), move |python| {
            followed(python, &["--probe", probe])
        });
    }
    cases.each("a_python_that_cant_be_recorded_is_counted/killed", |python| left_out(python, &[]));
    cases.each("a_python_that_cant_be_recorded_is_counted/version", |python| {
        let old = Python::bare("py3.10")?;
        left_out(python, &[old.exe.to_str().context("a path")?])
    });
    cases.each("a_target_that_loads_greenlet_is_recorded_with_it/children", |python| late(python, &[]));
    cases.each("a_target_that_loads_greenlet_is_recorded_with_it/alone", |python| {
        late(python, &["--no-children"])
    });
}

/// Children that become Pythons which can't be recorded: that is said.
fn left_out(python: &Python, arguments: &[&str]) -> Result<()> {
    let mut target = Target::start(python, "gone.py", arguments)?;
    let recording = Recording::start(target.pid(), &[])?;
    target.go()?;
    let done = target.hear("done")?;
    let most = done.pointer("/books/most").and_then(Value::as_u64).context("most")?;
    let mut profile = recording.stop()?;
    let left_out = profile.totals.faults.remove("EXEC_LEFT_OUT");
    short_lived(&mut profile);
    compare::complete(&profile)?;
    // One may be up before it is killed.
    let others = profile.targets.len() as u64 - 1;
    let all = left_out.is_some_and(|count| count > 0 && count + others <= most);
    ensure!(all, "EXEC_LEFT_OUT {left_out:?} of {most}, and {:?}", profile.targets);
    target.finish()
}

/// A process that loads greenlet while it is recorded, and no other target has.
fn late(python: &Python, options: &[&str]) -> Result<()> {
    let mut target = Target::start(python, "late.py", &["seen"])?;
    let recording = Recording::start(target.pid(), options)?;
    target.go()?;
    target.hear("ready")?;
    target.go()?;
    let books = target.books()?;
    let mut profile = recording.stop()?;
    compare::switches(&profile, &books.book)?;
    let late = profile.totals.faults.remove("GREENLET_LATE");
    ensure!(late == Some(1), "GREENLET_LATE {late:?}");
    compare::complete(&profile)?;
    let [before, after] = profile.targets.as_slice() else { bail!("{:?}", profile.targets) };
    ensure!(before.pid == after.pid && before.began_ns < after.began_ns, "{before:?} {after:?}");
    ensure!(before.greenlet.is_none() && after.greenlet.is_some(), "{before:?} {after:?}");
    ensure!(after.unseen_ns.is_none() && after.parent.is_none(), "{after:?}");
    target.finish()
}

fn followed(python: &Python, options: &[&str]) -> Result<()> {
    let mut target = Target::start(python, "programs.py", &[])?;
    let pid = target.pid();
    let recording = Recording::start(pid, options)?;
    target.go()?;
    let done = target.hear("done")?;
    let mut profile = recording.stop()?;
    short_lived(&mut profile);
    compare::complete(&profile)?;
    let truth: Vec<u64> =
        serde_json::from_value(done.pointer("/books/switches").cloned().context("switches")?)?;
    let sum: u64 = truth.iter().sum();
    ensure!(truth.iter().all(|count| *count > 0), "{truth:?}");
    ensure!(profile.totals.switches == sum, "{} instead of {truth:?}", profile.totals.switches);
    ensure!(profile.switches_in() == sum, "{} by greenlet instead of {sum}", profile.switches_in());
    let own: u64 = profile.greenlets.iter().filter(|g| g.pid == pid).map(|g| g.switches_in).sum();
    let second = done.pointer("/books/second").and_then(Value::as_u64).context("second")?;
    let expected = truth.first().zip(truth.get(usize::try_from(second)?)).map(|(a, b)| a + b);
    ensure!(Some(own) == expected, "{own} by the target itself instead of {expected:?}");
    let rows: Vec<_> = profile.targets.iter().filter(|row| row.pid == pid).collect();
    let [before, after] = rows.as_slice() else { bail!("the target is there {} times", rows.len()) };
    ensure!(before.parent.is_none() && after.parent.is_none(), "the target has a parent");
    ensure!(before.unseen_ns.is_none() && before.began_ns == 0, "{before:?}");
    ensure!(after.unseen_ns.is_some_and(|ns| ns < after.began_ns), "{after:?}");
    // multiprocessing has one of its own; the shell is none.
    let others: Vec<_> = profile.targets.iter().filter(|row| row.pid != pid).collect();
    ensure!(others.len() == truth.len() - 1, "{others:?}");
    for row in others {
        ensure!(row.parent == Some(pid) && row.unseen_ns.is_some(), "{row:?}");
    }
    target.finish()
}
