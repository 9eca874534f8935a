//! What greenlets are called: by the names that they were given, never by another's.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::compare;
use tests::place::Python;
use tests::profile::{Greenlet, Profile};
use tests::recording::Recording;
use tests::runner::Cases;
use tests::target::Target;

pub(crate) fn cases(cases: &mut Cases) {
    cases.each("greenlets_that_died_asleep_have_their_names", asleep);
    for rate in ["97", "9999"] {
        let name = format!("a_name_is_never_another_greenlets/{rate}");
        cases.each(name, move |python| churn(python, rate));
    }
}

fn recorded(python: &Python, kind: &str, options: &[&str]) -> Result<(Profile, Value)> {
    let mut target = Target::start(python, "named.py", &[kind])?;
    let recording = Recording::start(target.pid(), options)?;
    target.go()?;
    let done = target.hear("done")?;
    let profile = recording.stop()?;
    target.finish()?;
    let facts = done.pointer("/books").cloned().context("no books")?;
    Ok((profile, facts))
}

fn named<'a>(profile: &'a Profile, name: &str) -> Vec<&'a Greenlet> {
    profile.greenlets.iter().filter(|greenlet| greenlet.name.as_deref() == Some(name)).collect()
}

fn asleep(python: &Python) -> Result<()> {
    // Without ticks: that none met them is certain.
    let (profile, facts) = recorded(python, "asleep", &["--rate", "0"])?;
    compare::complete(&profile)?;
    let names = facts.pointer("/names").and_then(Value::as_array).context("names")?;
    ensure!(names.len() == 15, "{names:?}");
    for name in names.iter().filter_map(Value::as_str) {
        let found = named(&profile, name);
        let [one] = found.as_slice() else { anyhow::bail!("{name}: {found:?}") };
        ensure!(!one.alive && one.switches_in > 0, "{one:?}");
    }
    let nameless = facts.pointer("/nameless").and_then(Value::as_u64).context("nameless")?;
    let seen = named(&profile, "Greenlet").len() as u64;
    ensure!(seen == nameless, "{seen} of {nameless} are nameless");
    Ok(())
}

fn churn(python: &Python, rate: &str) -> Result<()> {
    let (profile, facts) = recorded(python, "churn", &["--rate", rate])?;
    let mut seen = BTreeSet::new();
    for greenlet in &profile.greenlets {
        let Some((_, rest)) = greenlet.name.as_deref().and_then(|name| name.split_once(" is switched to "))
        else {
            continue;
        };
        let times: u64 = rest.trim_end_matches(" times").parse()?;
        ensure!(greenlet.switches_in == times, "another's name: {greenlet:?}");
        ensure!(seen.insert(&greenlet.name), "twice: {greenlet:?}");
    }
    let named = facts.pointer("/named").and_then(Value::as_u64).context("named")?;
    // A third of them live long enough to be asked, those that sleep 30 ms or more.
    ensure!(seen.len() as u64 * 10 > named, "{} of {named} have their names", seen.len());
    Ok(())
}
