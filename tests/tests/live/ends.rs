//! Throws, kills, deaths and the rare ways into a greenlet.

use anyhow::ensure;
use tests::compare;
use tests::recording::record;
use tests::runner::Cases;
use tests::target::Target;

/// The scenarios of tests/targets/ends.py.
const SCENARIOS: [&str; 18] = [
    "throw",
    "throw_before_start",
    "greenlet_exit",
    "kill",
    "parent_dies",
    "uncaught",
    "dealloc",
    "dealloc_refused",
    "dealloc_in_another_thread",
    "thread_ends",
    "thread_abandons",
    "started_while_in_python",
    "switches_while_looked_up",
    "lookup_raises",
    "self_switch",
    "dead_switch",
    "wrong_thread",
    "finalizer_switches",
];

/// What the pair of sites cannot see: a switch that follows the lookup of `run` without
/// another call of either function, because the lookup itself switched.
const BEYOND_THE_PAIR: [&str; 2] = ["started_while_in_python", "switches_while_looked_up"];

pub(crate) fn cases(cases: &mut Cases) {
    for scenario in SCENARIOS {
        cases.each(format!("ends_are_followed/{scenario}/switchstack"), move |python| {
            let target = Target::start(python, "ends.py", &[scenario])?;
            let (profile, books) = record(target, &["--probe", "switchstack"])?;
            compare::switches(&profile, &books.book)?;
            compare::greenlets(&profile, &books)?;
            compare::waits(&profile, &books.book)?;
            compare::complete(&profile)
        });
        if BEYOND_THE_PAIR.contains(&scenario) {
            cases.each(format!("ends_are_followed/{scenario}/pair"), move |python| {
                let target = Target::start(python, "ends.py", &[scenario])?;
                let (profile, books) = record(target, &["--probe", "pair"])?;
                // It is not seen, but noticed, once for each.
                let noticed = profile.totals.faults.get("OUT_OF_STEP").copied().unwrap_or(0);
                let (seen, truth) = (profile.totals.switches, books.book.total());
                ensure!(noticed > 0 && seen + noticed == truth, "{seen} and {noticed} of {truth}");
                Ok(())
            });
            continue;
        }
        cases.each(format!("ends_are_followed/{scenario}/pair"), move |python| {
            let target = Target::start(python, "ends.py", &[scenario])?;
            let (profile, books) = record(target, &["--probe", "pair"])?;
            compare::switches(&profile, &books.book)?;
            compare::greenlets(&profile, &books)
        });
    }
}
