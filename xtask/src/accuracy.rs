//! `accuracy`: greenscope and other profilers against targets that keep their own books.
//!
//! Each tool has a run of its own, and each run books of its own: profilers in one
//! process displace one another, and no two runs are the same.

mod attribution;
mod books;
mod bounds;
mod document;
mod greenscope;
mod kinds;
mod outside;
mod shares;
mod subject;
mod tools;

use std::{collections::BTreeMap, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, anyhow, bail};

use self::{
    attribution::Attribution,
    bounds::{Figure, Verdict},
    kinds::Kinds,
    shares::Shares,
    tools::{Run, Tool},
};
use crate::{
    measure::surroundings,
    process,
    python::{self, Environment, Python},
    run, workspace,
};

/// What each tool's target needs from PyPI, by the tool.
const REQUIREMENTS: &str = "xtask/accuracy";

/// Where the table is written.
const DOCUMENT: &str = "docs/accuracy.md";

/// Fewer rounds or shorter ones are for trying.
const ENOUGH: u32 = 3;
const LONG_ENOUGH: u32 = 5;

/// Options of `accuracy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Runs of each workload under each tool; docs/accuracy.md is written from 3 on.
    #[arg(long, default_value_t = ENOUGH, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Length of a run; docs/accuracy.md is written from 5 on.
    #[arg(long, default_value_t = LONG_ENOUGH, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Only this workload, may be repeated; docs/accuracy.md is not written then.
    #[arg(long, value_enum)]
    workload: Vec<Workload>,
    /// Only this tool, may be repeated; docs/accuracy.md is not written then.
    #[arg(long, value_enum)]
    tool: Vec<Tool>,
    /// Only whose work it was; docs/accuracy.md is not written then.
    #[arg(long, conflicts_with_all = ["workload", "tool"])]
    attribution: bool,
    /// Only the kinds that were told wrong once; docs/accuracy.md is not written then.
    #[arg(long, conflicts_with_all = ["workload", "tool", "attribution"])]
    kinds: bool,
    /// The targets' Python
    #[arg(long, default_value = "3.13", value_parser = python::covered)]
    python: (u32, u32),
}

/// A workload of tests/targets/wall.py.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Workload {
    /// Four greenlets burn 12, 9, 6 and 3 ms in turn
    Shares,
    /// A greenlet burns 10 ms and sleeps 20 ms
    Bursts,
    /// A greenlet blocks its thread in time.sleep
    Blocked,
    /// A greenlet blocks its thread in sqlite3
    Driver,
    /// A hundred greenlets that sleep
    Sleepers,
    /// Plain threads that burn, hold the GIL and sleep
    Threads,
}

impl Workload {
    const ALL: [Self; 6] =
        [Self::Shares, Self::Bursts, Self::Blocked, Self::Driver, Self::Sleepers, Self::Threads];

    const fn name(self) -> &'static str {
        match self {
            Self::Shares => "shares",
            Self::Bursts => "bursts",
            Self::Blocked => "blocked",
            Self::Driver => "driver",
            Self::Sleepers => "sleepers",
            Self::Threads => "threads",
        }
    }
}

/// What a tool made of a workload, by round.
#[derive(Default)]
struct Cell {
    /// The books and what was seen.
    rounds: Vec<(Shares, Shares)>,
    /// Why there is nothing, in the last round that had nothing.
    missing: Option<String>,
}

/// All that was measured.
struct Results {
    command: String,
    surroundings: Vec<(&'static str, String)>,
    /// A tool's packages, as pinned.
    packages: Vec<(Tool, String)>,
    rounds: u32,
    seconds: u32,
    workloads: Vec<Workload>,
    tools: Vec<Tool>,
    cells: BTreeMap<(Workload, Tool), Cell>,
    /// By round.
    figures: BTreeMap<Workload, Vec<Vec<Figure>>>,
    /// The most of a run.
    steal_ms: u64,
    /// Whose work it was; none where only some workloads or tools were asked for.
    attribution: Option<Attribution>,
    /// None where only something else was asked for.
    kinds: Option<Kinds>,
}

impl Results {
    /// The worst of all judgements on greenscope.
    fn verdict(&self) -> Verdict {
        let figures = self.figures.values().flatten().flatten();
        figures.map(Figure::verdict).max().unwrap_or(Verdict::NotJudged)
    }

    fn keep(&mut self, workload: Workload, tool: Tool, run: Result<Run>) -> Result<()> {
        let cell = self.cells.entry((workload, tool)).or_default();
        let run = match run {
            Ok(run) => run,
            Err(error) if tool == Tool::Greenscope => return Err(error),
            Err(error) => {
                // Where the tree lies here is nobody's business.
                let here = format!("{}/", workspace::root().display());
                cell.missing = Some(format!("{error:#}").replace(&here, ""));
                return Ok(());
            }
        };
        self.steal_ms = self.steal_ms.max(run.between.steal_ms);
        match &run.stacks {
            Ok(stacks) => {
                cell.rounds.push((Shares::booked(&run.books), Shares::seen(stacks, &run.books)));
            }
            Err(reason) => cell.missing = Some(reason.clone()),
        }
        if let Some(profile) = &run.profile {
            let figures = bounds::figures(workload, &run.books, &run.between, profile);
            self.figures.entry(workload).or_default().push(figures);
        }
        Ok(())
    }
}

/// Build, measure, print, and write it down if it is all and long enough.
///
/// # Errors
///
/// When something is missing, or a target or greenscope does not do its part. A tool
/// that fails is no error, and a bound that greenscope does not keep is none either:
/// it is a failure's exit code.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if !process::is_root() {
        bail!("profilers need root here: sudo -E cargo xtask accuracy");
    }
    let load = surroundings::load();
    let not_clean = surroundings::not_clean();
    if let Some(why) = not_clean {
        println!("{DOCUMENT} will not be written: {why}");
    }
    run::build()?;
    let results = measure(arguments, &load)?;
    let text = document::text(&results);
    println!("{text}");
    let some = arguments.workload.is_empty() && arguments.tool.is_empty();
    let whole = some && !arguments.attribution && !arguments.kinds;
    if let Some(why) = not_clean {
        println!("not written to {DOCUMENT}: {why}");
    } else if whole && arguments.rounds >= ENOUGH && arguments.seconds >= LONG_ENOUGH {
        let path = workspace::root().join(DOCUMENT);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("written to {DOCUMENT}");
    } else {
        println!("not written to {DOCUMENT}: that takes everything, {ENOUGH} rounds of {LONG_ENOUGH} s");
    }
    let labels = results.attribution.as_ref().is_none_or(Attribution::is_good);
    if !labels {
        eprintln!("error: a label of greenscope's is wrong, or one of a hundred is missing");
    }
    let times = matches!(results.verdict(), Verdict::NotJudged | Verdict::Inside);
    if !times {
        eprintln!("error: a time of greenscope's is outside of its bound, or not measured");
    }
    let kinds = results.kinds.as_ref().is_none_or(Kinds::are_good);
    if !kinds {
        eprintln!("error: a live test of a kind that was told wrong once did not pass");
    }
    Ok(if labels && times && kinds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(arguments: &Arguments, load: &str) -> Result<Results> {
    let Arguments { rounds, seconds, workload, tool, attribution, kinds, python: (major, minor) } = arguments;
    let pythons = python::interpreters();
    let Some(python) = python::of_version(&pythons, (*major, *minor)) else {
        bail!("no Python {major}.{minor} with venv on this machine: choose another --python");
    };
    let mut results = Results {
        command: command(arguments),
        surroundings: Vec::new(),
        packages: Vec::new(),
        rounds: *rounds,
        seconds: *seconds,
        workloads: if *attribution || *kinds { Vec::new() } else { chosen(workload, &Workload::ALL) },
        tools: if *attribution || *kinds { Vec::new() } else { chosen(tool, &Tool::ALL) },
        cells: BTreeMap::new(),
        figures: BTreeMap::new(),
        steal_ms: 0,
        attribution: None,
        kinds: None,
    };
    let (tools, workloads) = (results.tools.clone(), results.workloads.clone());
    let mut environments = BTreeMap::new();
    for tool in &tools {
        let (packages, made) = environment(*tool, python)?;
        results.packages.push((*tool, packages));
        environments.insert(*tool, made);
    }
    for round in 1..=*rounds {
        for workload in &workloads {
            for tool in &tools {
                println!("round {round} of {rounds}: {} under {}", workload.name(), tool.title());
                let run = match environments.get(tool) {
                    Some(Ok(python)) => tool.run(python, *workload, f64::from(*seconds)),
                    Some(Err(reason)) => Err(anyhow!("{reason}")),
                    None => continue,
                };
                results.keep(*workload, *tool, run)?;
            }
        }
    }
    let some = workload.is_empty() && tool.is_empty();
    if some && !*kinds {
        results.attribution = Some(attribution::measure(python, *seconds)?);
    }
    if some && !*attribution {
        results.kinds = Some(kinds::measure()?);
    }
    let (major, minor, micro) = python.version;
    let target = format!("CPython {major}.{minor}.{micro}");
    results.surroundings = surroundings::describe(&target, load);
    Ok(results)
}

/// What was asked for, in our order; all when nothing was.
fn chosen<T: Copy + PartialEq>(asked: &[T], all: &[T]) -> Vec<T> {
    all.iter().copied().filter(|one| asked.is_empty() || asked.contains(one)).collect()
}

/// A tool's packages, and its interpreter; or why pip could not make it for another tool
/// than greenscope.
fn environment(tool: Tool, python: &Python) -> Result<(String, Result<PathBuf, String>)> {
    let name = tool.environment();
    let requirements = workspace::root().join(REQUIREMENTS).join(format!("{name}.txt"));
    let text = fs::read_to_string(&requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    let pinned = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let packages = pinned.collect::<Vec<_>>().join(", ");
    let (major, minor, _) = python.version;
    let environment = Environment::new(&format!("accuracy-{name}-py{major}.{minor}"), python, &text);
    match environment.make(python, &requirements) {
        Ok(()) => Ok((packages, Ok(environment.python()))),
        Err(error) if tool == Tool::Greenscope => Err(error),
        Err(error) => Ok((packages, Err(format!("{error:#}")))),
    }
}

fn command(arguments: &Arguments) -> String {
    let Arguments { rounds, seconds, workload: _, tool: _, attribution, kinds, python: (major, minor) } =
        arguments;
    let mut command = "cargo xtask accuracy".to_owned();
    if *rounds != ENOUGH {
        command.push_str(&format!(" --rounds {rounds}"));
    }
    if *seconds != LONG_ENOUGH {
        command.push_str(&format!(" --seconds {seconds}"));
    }
    if *attribution {
        command.push_str(" --attribution");
    }
    if *kinds {
        command.push_str(" --kinds");
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
    fn what_is_asked_for_keeps_our_order() {
        assert_eq!(chosen(&[3, 1], &[1, 2, 3]), [1, 3]);
        assert_eq!(chosen(&[], &[1, 2, 3]), [1, 2, 3]);
    }

    #[test]
    fn every_workload_is_one_of_the_targets() {
        let source = fs::read_to_string(workspace::root().join("tests/targets/wall.py")).unwrap();
        for workload in Workload::ALL {
            assert!(source.contains(&format!("\"{}\"", workload.name())), "{workload:?}");
        }
    }
}
