//! `bench`: what greenscope costs, held against its goals and written down.
//!
//! Everything is measured on the real binary and on targets that time themselves
//! (`xtask/bench`). Ratios are of one round, in which every mode has its turn, so
//! that a machine that grows slower does not make a figure worse.

mod document;
mod labels;
mod recording;
mod switches;
mod target;
mod whole;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};

use self::{
    switches::{Bench, Mode, Workload},
    target::{Inside, Versions},
    whole::Storm,
};
use crate::{
    measure::surroundings,
    process,
    python::{self, Environment},
    run, workspace,
};

/// What the targets need from PyPI: what those of the tests do.
const REQUIREMENTS: &str = "tests/requirements.txt";

/// Where the figures are written.
const DOCUMENT: &str = "docs/performance.md";

/// Fewer rounds than this are for trying.
const ENOUGH: u32 = 9;

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Rounds of each figure; docs/performance.md is written from 9 on.
    #[arg(long, default_value_t = ENOUGH, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only this part, may be repeated; docs/performance.md is not written then.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// The targets' Python
    #[arg(long, default_value = "3.13", value_parser = python::covered)]
    python: (u32, u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// A switch against an empty uprobe
    Switch,
    /// A switch against in-process ways
    Inside,
    /// The fastest thread, and a hundred thousand greenlets
    Storm,
    /// From greenscope's start to the first stack
    Start,
    /// A greenlet's life against an empty uprobe
    Lives,
    /// Ticks, context switches, and what other processes pay
    Clocks,
    /// Labels: of a switch, of a receipt
    Labels,
}

/// All that was measured.
struct Results {
    /// As one would type it.
    command: String,
    surroundings: Vec<(&'static str, String)>,
    rounds: u32,
    /// Whether switches were held against the empty probe.
    switch: bool,
    benches: Vec<(Workload, Bench)>,
    storms: Vec<Storm>,
    first_stacks_ms: Vec<f64>,
}

impl Results {
    fn bench(&self, workload: Workload) -> Option<&Bench> {
        self.benches.iter().find(|(of, _)| *of == workload).map(|(_, bench)| bench)
    }

    /// What the recordings lost or miscounted.
    fn notes(&self) -> Vec<String> {
        let benches = self.benches.iter().flat_map(|(_, bench)| bench.notes.iter().cloned());
        benches.chain(self.storms.iter().filter_map(Storm::losses)).collect()
    }
}

/// Build, measure, print, and write it down if it is all and of enough rounds.
///
/// # Errors
///
/// When something is missing, or a target or greenscope does not do its part. A goal
/// that is missed is no error: the document says so.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if !process::is_root() {
        bail!("greenscope needs root to be measured: sudo -E cargo xtask bench");
    }
    let load = surroundings::load();
    let not_clean = surroundings::not_clean();
    if let Some(why) = not_clean {
        println!("{DOCUMENT} will not be written: {why}");
    }
    let python = python(arguments.python, REQUIREMENTS, "py")?;
    run::build()?;
    let results = measure(arguments, &python, &load)?;
    let text = document::text(&results);
    println!("{text}");
    if let Some(why) = not_clean {
        println!("not written to {DOCUMENT}: {why}");
    } else if arguments.only.is_empty() && arguments.rounds >= ENOUGH {
        let path = workspace::root().join(DOCUMENT);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("written to {DOCUMENT}");
    } else {
        println!("not written to {DOCUMENT}: that takes every part and {ENOUGH} rounds");
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(arguments: &Arguments, python: &Path, load: &str) -> Result<Results> {
    let wants = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let rounds = arguments.rounds;
    let mut benches = Vec::new();
    for (workload, modes, inside) in plan(wants) {
        println!("starting {workload:?}");
        let own = match workload {
            Workload::Spans { .. } => {
                Some(self::python(arguments.python, labels::REQUIREMENTS, "labelled-py")?)
            }
            _ => None,
        };
        let python = own.as_deref().unwrap_or(python);
        benches.push((workload, Bench::start(python, workload, &modes, &inside)?));
    }
    for round in 1..=rounds {
        for (workload, bench) in &mut benches {
            println!("round {round} of {rounds}: {workload:?}");
            bench.round()?;
        }
    }
    let mut storms = Vec::new();
    if wants(Part::Storm) {
        for greenlets in [10, 100_000] {
            println!("storm of {greenlets} greenlets");
            storms.push(Storm::record(python, greenlets)?);
        }
    }
    let mut first_stacks_ms = Vec::new();
    if wants(Part::Start) {
        println!("{rounds} starts");
        first_stacks_ms = whole::first_stacks_ms(python, rounds)?;
    }
    let versions = match benches.first() {
        Some((_, bench)) => bench.versions().clone(),
        None => Workload::Lives.start(python)?.versions.clone(),
    };
    Ok(Results {
        command: command(arguments),
        surroundings: surroundings::describe(&target(&versions), load),
        rounds,
        switch: wants(Part::Switch),
        benches,
        storms,
        first_stacks_ms,
    })
}

/// Each workload once, with all that is wanted of it.
fn plan(wants: impl Fn(Part) -> bool) -> Vec<(Workload, Vec<Mode>, Vec<Inside>)> {
    let mut plan: Vec<(Workload, BTreeSet<Mode>, Vec<Inside>)> = Vec::new();
    for (_, workload, mode, _) in document::CASES {
        let at = plan.iter().position(|(known, _, _)| *known == workload).unwrap_or(plan.len());
        if at == plan.len() {
            plan.push((workload, BTreeSet::new(), Vec::new()));
        }
        if let (true, Some((_, modes, _))) = (wants(Part::Switch), plan.get_mut(at)) {
            modes.extend([Mode::Empty, mode]);
        }
    }
    for (workload, modes, inside) in &mut plan {
        if let (true, Workload::Ring { greenlets: 10, shims: 0, .. }) = (wants(Part::Inside), *workload) {
            modes.insert(Mode::Aggregated);
            modes.insert(Mode::Empty);
            inside.extend([Inside::Settrace, Inside::Accounts, Inside::Snapshot]);
        }
    }
    if wants(Part::Lives) {
        plan.push((Workload::Lives, BTreeSet::from([Mode::Empty, Mode::Aggregated]), Vec::new()));
    }
    if wants(Part::Clocks) {
        plan.push((Workload::Burn, BTreeSet::from([Mode::Aggregated]), Vec::new()));
        plan.push((Workload::Pipes, BTreeSet::from([Mode::Aggregated, Mode::Bystander]), Vec::new()));
        for (_, modes, _) in plan.iter_mut().filter(|(workload, ..)| *workload == document::RING_5) {
            modes.extend([Mode::Empty, Mode::Bystander]);
        }
    }
    if wants(Part::Labels) {
        for (workload, modes) in labels::PLAN {
            match plan.iter_mut().find(|(known, ..)| known == workload) {
                Some((_, known, _)) => known.extend(*modes),
                None => plan.push((*workload, modes.iter().copied().collect(), Vec::new())),
            }
        }
    }
    let wanted = plan.into_iter().filter(|(_, modes, inside)| !modes.is_empty() || !inside.is_empty());
    wanted.map(|(workload, modes, inside)| (workload, modes.into_iter().collect(), inside)).collect()
}

/// The interpreter of an environment with what a file asks for.
fn python(wanted: (u32, u32), requirements: &str, name: &str) -> Result<PathBuf> {
    let (major, minor) = wanted;
    let pythons = python::interpreters();
    let Some(python) = python::of_version(&pythons, wanted) else {
        bail!("no Python {major}.{minor} with venv on this machine: choose another --python");
    };
    let requirements = workspace::root().join(requirements);
    let packages = fs::read_to_string(&requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    let environment = Environment::new(&format!("{name}{major}.{minor}"), python, &packages);
    environment.make(python, &requirements)?;
    Ok(environment.python())
}

fn target(versions: &Versions) -> String {
    let Versions { python, greenlet } = versions;
    format!("CPython {python}, greenlet {greenlet}")
}

fn command(arguments: &Arguments) -> String {
    let Arguments { rounds, only: _, python: (major, minor) } = arguments;
    let mut command = "cargo xtask bench".to_owned();
    if *rounds != ENOUGH {
        command.push_str(&format!(" --rounds {rounds}"));
    }
    if (*major, *minor) != (3, 13) {
        command.push_str(&format!(" --python {major}.{minor}"));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_started_once() {
        let all = plan(|_| true);
        let workloads: BTreeSet<Workload> = all.iter().map(|(workload, _, _)| *workload).collect();
        assert_eq!(workloads.len(), all.len());
        let without = |workload: &Workload| {
            matches!(workload, Workload::Burn | Workload::Pipes | Workload::Sockets { .. })
        };
        let with = all.iter().filter(|(workload, ..)| !without(workload));
        assert!(
            with.clone().count() > 0 && with.into_iter().all(|(_, modes, _)| modes.contains(&Mode::Empty))
        );
        let inside = plan(|part| part == Part::Inside);
        assert_eq!(inside.len(), 2);
        assert!(inside.iter().all(|(_, modes, _)| *modes == [Mode::Empty, Mode::Aggregated]));
        assert!(plan(|part| part == Part::Storm).is_empty());
    }
}
