//! Identities: one per greenlet, however often an address is reused.

use anyhow::{Result, ensure};
use tests::compare;
use tests::kind;
use tests::place::Python;
use tests::profile::State;
use tests::recording::{Recording, record};
use tests::runner::Cases;
use tests::target::Target;

use crate::clocks::near;

pub(crate) fn cases(cases: &mut Cases) {
    for kind in ["greenlet", "gevent"] {
        cases.each(format!("a_hundred_thousand_lives_never_merge/{kind}"), move |python| {
            let target = Target::start(python, "lives.py", &[kind, "100000"])?;
            let (profile, books) = record(target, &[])?;
            ensure!(books.addresses_reused > 10_000, "{} reused", books.addresses_reused);
            compare::switches(&profile, &books.book)?;
            compare::greenlets(&profile, &books)?;
            compare::complete(&profile)
        });
    }
    cases.each("greenlets_beyond_the_limit_are_summed_and_counted", beyond_the_limit);
    cases.each("cpu_of_two_targets_beyond_the_limit_is_counted_once", two_beyond_the_limit);
}

fn two_beyond_the_limit(python: &Python) -> Result<()> {
    let start = || Target::start(python, "lives.py", &["greenlet", "5000"]);
    let mut targets = [start()?, start()?];
    let [first, second] = targets.each_ref().map(Target::pid);
    let recording = Recording::start(first, &["--pid", &second.to_string(), "--max-greenlets", "2000"])?;
    for target in &mut targets {
        target.go()?;
    }
    for target in &mut targets {
        target.books()?;
    }
    let profile = recording.stop()?;
    for target in targets {
        target.finish()?;
    }
    let stacks = profile.stacks.iter().filter(|stack| stack.state == State::Cpu).map(|stack| stack.ns).sum();
    let clocks = profile.threads.iter().map(|thread| thread.clock.on_cpu_ns).sum::<Option<u64>>();
    kind::row("CPU time of both, by stack", kind::ms_if_told(clocks), kind::ms(stacks));
    ensure!(profile.totals.greenlets_unlisted > 4000, "{:?}", profile.totals);
    near("the stacks on the CPU", Some(stacks), clocks.unwrap_or(0), 0.001, 0)
}

fn beyond_the_limit(python: &Python) -> Result<()> {
    // A wave of a thousand lives at once; five of them die.
    let target = Target::start(python, "lives.py", &["greenlet", "5000"])?;
    let (profile, books) = record(target, &["--max-greenlets", "2000"])?;
    let seen = profile.totals.switches;
    ensure!(seen == books.book.total(), "{seen} instead of {}", books.book.total());
    // All that died, and main.
    ensure!(profile.totals.greenlets_seen == 5001, "{:?}", profile.totals);
    let listed = profile.greenlets.len();
    ensure!(listed <= 2001, "{listed} listed");
    let unlisted = profile.totals.greenlets_unlisted;
    ensure!(listed as u64 + unlisted == 5001, "{listed} listed, {unlisted} not");
    let switches = profile.switches_in() + profile.totals.unlisted_switches_in;
    ensure!(switches == seen, "{switches} instead of {seen} by greenlet");
    Ok(())
}
