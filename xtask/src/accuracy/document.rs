//! docs/accuracy.md: what each tool made of a workload, beside the truth.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{
    Cell, Results, Workload,
    attribution::Row,
    bounds::{Bound, Figure},
    kinds,
    shares::Shares,
    tools::Tool,
};
use crate::measure::spread::median;

const DEFINITIONS: &str = "\
Each tool has runs of its own, on targets (`tests/targets/wall.py`) that keep books of
their own: a function that burns reads its thread's CPU clock at its begin and its end,
and does not yield in between. A tool is held against the books of the same run. Every
figure is the median of the rounds.

Of a greenlet that sleeps, waking it is most of its CPU time: the first that is woken after
100 ms of idling finds the caches cold. So a greenlet that waits for the hub reads the clock
right before it switches away and right after it is back, and the hub does the same around
it. Between the two readings at each end lies the switch itself, a tool's probe included: half
of it is taken to be the greenlet's.
";

const EXACT: &str = "\
The times that greenscope counts (no samples), against the scheduler's `sum_exec_runtime`
for threads and against the books for greenlets. The error is the worst of the rounds, and
every round has to be inside. A row without a bound is shown and not judged: its truth is
made of differences.
";

const RIGHT: &str = "\
## CPU time on the right function

Of all the time that a tool reports, how much it gives to functions that had it, and no
more than they had. What is missing to 100 % is on functions that did not have it, or in
gevent's own code.
";

const SLEEPING: &str = "\
## CPU time on sleeping stacks

Of all the time that a tool reports as CPU time, how much it gives to a greenlet that
sleeps in `gevent.sleep`. The truth is the cost of that call, some microseconds, which a
tool that counts calls makes dearer. The agent of SkyWalking reports elapsed time: there
sleep is due, and what is missing is the burning.
";

const AMOUNT: &str = "\
## CPU time reported, of the CPU time used

The agent of SkyWalking reports no CPU time.
";

const FUNCTIONS: &str = "\
## By function

Each function's share of all the time that a tool reports; in brackets the difference
from the books in points of percent. Books have no line for a sleep's own cost: it is at
most what no function of theirs had.
";

const ATTRIBUTION: &str = "\
## Whose work it was

A service (`tests/targets/traced.py`: Flask on gevent) answers 200 concurrent clients on
ten endpoints that sleep, compute, block, make greenlets, time out, fail and are killed,
and books by Python's own API whose work each greenlet does at each switch, and when each
request was in which function. An observation is a switch, a tick or a sleep with a label, or
where there should be one. Right is the label that is true at that moment: the segment, or the
trace, and the span; blank is none where there is one. Of greenscope every switch of the
recording is in it, matched one to one with the book, and each request's time in each function
is no more than what it booked. The command fails if one label of greenscope's is wrong, or
one of a hundred is missing.

ddtrace's profiler labels its samples with a root span. One is right if its request was in
the sample's function within 20 ms of the sample's time.
";

const KINDS: &str = "\
## Kinds that were told wrong once

Programs of kinds that greenscope answered wrong and said nothing, each as a live test with books
of its own, run once. *Before* is what the greenscope of BEFORE found, the last one that knew none
of them: a run of its own, so that its truth stands beside it where that is another. The command
fails if a test does not pass today.
";

const TOOLS: [(Tool, &str); 5] = [
    (
        Tool::Greenscope,
        "`greenscope record --format json` by its default options; by function: its stacks in the state \
         `cpu`.",
    ),
    (
        Tool::PySpy,
        "`record --format raw --function --rate 100`, without `--gil`: that would hide what computes in C \
         without the GIL, and what is idle py-spy tells by itself.",
    ),
    (
        Tool::Ddtrace,
        "in the target, started before gevent's greenlets, its stack profiler alone; `cpu-time` of the pprof \
         that DD_PROFILING_OUTPUT_PPROF keeps.",
    ),
    (
        Tool::Yappi,
        "in the target, by the CPU clock and the greenlet backend (`native_thread` where there are no \
         greenlets). It counts every call, and slows what calls much.",
    ),
    (
        Tool::Skywalking,
        "in the target, without a backend: its ProfileTaskExecutionContext is given one task by the target, \
         and each greenlet or thread that burns is a segment; one that begins takes the trace hook from the \
         one before, as in a service. Period 10 ms; time as the backend tells it, between two snapshots \
         that follow one another. It is elapsed time, so that waiting belongs there; what burns should be \
         there too. From gevent 25.4.1 on it takes no task.",
    ),
];

/// The document.
pub(super) fn text(results: &Results) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = write(results, &mut out);
    out
}

fn write(results: &Results, out: &mut String) -> std::fmt::Result {
    writeln!(out, "# Accuracy\n\nWritten by `{}`; edits are lost.\n", results.command)?;
    writeln!(out, "| | |\n|---|---|")?;
    for (name, value) in &results.surroundings {
        writeln!(out, "| {name} | {value} |")?;
    }
    for (tool, packages) in &results.packages {
        writeln!(out, "| under {} | {packages} |", tool.title())?;
    }
    for (kind, packages) in results.attribution.iter().flat_map(|attribution| &attribution.packages) {
        writeln!(out, "| service with {kind} | {packages} |")?;
    }
    if !results.workloads.is_empty() || results.attribution.is_some() {
        writeln!(out, "| runs | {} of {} s each |", results.rounds, results.seconds)?;
        writeln!(out, "| steal, the most of a run | {} ms of all processors |", results.steal_ms)?;
    }
    writeln!(out)?;
    if !results.workloads.is_empty() {
        writeln!(out, "{DEFINITIONS}\n| workload | |\n|---|---|")?;
        for workload in &results.workloads {
            writeln!(out, "| {} | {} |", workload.name(), meaning(*workload))?;
        }
        writeln!(out)?;
    }
    exact(results, out)?;
    let burns: Vec<Workload> =
        results.workloads.iter().copied().filter(|workload| *workload != Workload::Sleepers).collect();
    let sleeps: Vec<Workload> =
        burns.iter().copied().filter(|workload| *workload != Workload::Threads).collect();
    attribution(results, out)?;
    kinds(results, out)?;
    by_tool(results, out, RIGHT, &burns, |_, truth, seen| Some(seen.right(truth)))?;
    by_tool(results, out, SLEEPING, &sleeps, |_, _, seen| Some(seen.sleeping))?;
    by_tool(results, out, AMOUNT, &results.workloads, |tool, truth, seen| {
        (tool != Tool::Skywalking).then(|| seen.total_ns / truth.total_ns)
    })?;
    if !burns.is_empty() {
        functions(results, out)?;
    }
    reasons(results, out)?;
    if !results.tools.is_empty() {
        writeln!(out, "## How each was run\n")?;
    }
    for (tool, how) in TOOLS.iter().filter(|(tool, _)| results.tools.contains(tool)) {
        writeln!(out, "- {}: {how}", tool.title())?;
    }
    Ok(())
}

fn exact(results: &Results, out: &mut String) -> std::fmt::Result {
    if results.figures.is_empty() {
        return Ok(());
    }
    writeln!(out, "## greenscope's own times\n\n{EXACT}")?;
    writeln!(out, "| workload | | books | greenscope | error | bound | |\n|---|---|---|---|---|---|---|")?;
    for (workload, rounds) in &results.figures {
        let Some(first) = rounds.first() else { continue };
        for Figure { what, bound, .. } in first {
            let of_rounds: Vec<&Figure> =
                rounds.iter().flatten().filter(|figure| figure.what == *what).collect();
            let truth = median_ms(of_rounds.iter().map(|figure| Some(figure.truth_ns)));
            let seen = median_ms(of_rounds.iter().map(|figure| figure.seen_ns));
            let errors = of_rounds.iter().filter_map(|figure| figure.error());
            let worst = errors.max_by(|one, other| one.abs().total_cmp(&other.abs()));
            let digits = if matches!(bound, Bound::OfRecording(_)) { 3 } else { 2 };
            let error = worst.map_or_else(dash, |error| format!("{:+.digits$} %", error * 100.0));
            let verdict = of_rounds.iter().map(|figure| figure.verdict()).max();
            let verdict = verdict.map_or_else(String::new, |verdict| verdict.to_string());
            let workload = workload.name();
            writeln!(out, "| {workload} | {what} | {truth} | {seen} | {error} | {bound} | {verdict} |")?;
        }
    }
    writeln!(out)
}

fn attribution(results: &Results, out: &mut String) -> std::fmt::Result {
    let Some(attribution) = &results.attribution else { return Ok(()) };
    writeln!(out, "{ATTRIBUTION}")?;
    writeln!(
        out,
        "| what tells of requests | by | requests | observations | right | wrong | blank | blank by reason | |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|---|---|")?;
    for row in &attribution.rows {
        let Row { workload, tool, runs: _, requests, counts, reasons, wrong_sums } = row;
        let (observations, right) = (counts.labelled(), counts.right);
        let share = |count: u64| percent(count as f64 / observations.max(1) as f64);
        let wrong = if counts.wrong == 0 { "0".to_owned() } else { with_share(counts.wrong, &share) };
        let blank = if counts.blank == 0 { "0".to_owned() } else { with_share(counts.blank, &share) };
        let reasons: Vec<String> =
            reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        let verdict = match (*tool == "greenscope", row.is_good()) {
            (false, _) => String::new(),
            (true, true) => "inside".to_owned(),
            (true, false) if *wrong_sums > 0 => format!("**outside**: {wrong_sums} sums"),
            (true, false) => "**outside**".to_owned(),
        };
        let reasons = reasons.join(", ");
        writeln!(
            out,
            "| {workload} | {tool} | {requests} | {observations} | {right} | {wrong} | {blank} | {reasons} | {verdict} |"
        )?;
    }
    writeln!(out)?;
    if let Some(missing) = &attribution.missing {
        writeln!(out, "Without ddtrace: {missing}\n")?;
    }
    Ok(())
}

fn kinds(results: &Results, out: &mut String) -> std::fmt::Result {
    let Some(kinds) = &results.kinds else { return Ok(()) };
    writeln!(out, "{}", KINDS.replace("BEFORE", kinds::BEFORE.get(..12).unwrap_or_default()))?;
    writeln!(out, "| kind | | truth | found | before | live test | |\n|---|---|---|---|---|---|---|")?;
    for kinds::Row { kind, what, truth, found, before, case, verdict } in &kinds.rows {
        writeln!(out, "| {kind} | {what} | {truth} | {found} | {before} | `{case}` | {verdict} |")?;
    }
    writeln!(out)
}

fn with_share(count: u64, share: &impl Fn(u64) -> String) -> String {
    format!("{count} ({})", share(count))
}

/// A table of workloads by tools: the median of a share in each round.
fn by_tool(
    results: &Results,
    out: &mut String,
    title: &str,
    workloads: &[Workload],
    share: impl Fn(Tool, &Shares, &Shares) -> Option<f64>,
) -> std::fmt::Result {
    if workloads.is_empty() {
        return Ok(());
    }
    writeln!(out, "{title}")?;
    head(results, out, "| workload |")?;
    for workload in workloads {
        write!(out, "| {} |", workload.name())?;
        for tool in &results.tools {
            let shares = rounds(results, *workload, *tool).map(|(truth, seen)| share(*tool, truth, seen));
            let shares: Option<Vec<f64>> = shares.collect();
            let shares = shares.filter(|shares| !shares.is_empty());
            write!(out, " {} |", shares.map_or_else(dash, |shares| percent(median(&shares))))?;
        }
        writeln!(out)?;
    }
    writeln!(out)
}

fn functions(results: &Results, out: &mut String) -> std::fmt::Result {
    writeln!(out, "{FUNCTIONS}")?;
    head(results, out, "| workload | function | books |")?;
    // Where everybody sleeps, no function has CPU time by the books.
    for workload in results.workloads.iter().filter(|workload| **workload != Workload::Sleepers) {
        let all = || results.tools.iter().flat_map(|tool| rounds(results, *workload, *tool));
        let names: BTreeSet<&String> = all().flat_map(|(truth, _)| truth.functions.keys()).collect();
        for name in names {
            let of = |shares: &Shares| shares.functions.get(name).copied().unwrap_or_default();
            let truth: Vec<f64> = all().map(|(truth, _)| of(truth)).collect();
            write!(out, "| {} | `{name}` | {} |", workload.name(), percent(median(&truth)))?;
            for tool in &results.tools {
                let (seen, error): (Vec<f64>, Vec<f64>) = rounds(results, *workload, *tool)
                    .map(|(truth, seen)| (of(seen), (of(seen) - of(truth)) * 100.0))
                    .unzip();
                if seen.is_empty() {
                    write!(out, " - |")?;
                } else {
                    write!(out, " {} ({:+.1}) |", percent(median(&seen)), median(&error))?;
                }
            }
            writeln!(out)?;
        }
        let unbooked: Vec<f64> =
            all().map(|(truth, _)| 1.0 - truth.functions.values().sum::<f64>()).collect();
        if *workload == Workload::Threads || unbooked.is_empty() {
            continue;
        }
        write!(out, "| {} | sleeping | at most {} |", workload.name(), percent(median(&unbooked)))?;
        for tool in &results.tools {
            let seen: Vec<f64> = rounds(results, *workload, *tool).map(|(_, seen)| seen.sleeping).collect();
            write!(out, " {} |", if seen.is_empty() { dash() } else { percent(median(&seen)) })?;
        }
        writeln!(out)?;
    }
    writeln!(out)
}

/// Why a cell is empty.
fn reasons(results: &Results, out: &mut String) -> std::fmt::Result {
    let missing: Vec<_> =
        results.cells.iter().filter_map(|(at, cell)| Some((at, cell.missing.as_ref()?))).collect();
    if missing.is_empty() {
        return Ok(());
    }
    writeln!(out, "## What is not there\n")?;
    for ((workload, tool), reason) in missing {
        writeln!(out, "- {} under {}: {reason}", workload.name(), tool.title())?;
    }
    writeln!(out)
}

fn rounds(results: &Results, workload: Workload, tool: Tool) -> impl Iterator<Item = &(Shares, Shares)> {
    results.cells.get(&(workload, tool)).map_or(&[][..], |cell: &Cell| &cell.rounds).iter()
}

/// The head of a table that ends with a column for each tool.
fn head(results: &Results, out: &mut String, first: &str) -> std::fmt::Result {
    let titles: Vec<&str> = results.tools.iter().map(|tool| tool.title()).collect();
    let columns = first.matches('|').count() - 1 + titles.len();
    writeln!(out, "{first} {} |\n|{}", titles.join(" | "), "---|".repeat(columns))
}

fn meaning(workload: Workload) -> &'static str {
    match workload {
        Workload::Shares => "four greenlets burn 12, 9, 6 and 3 ms in turn, ten sleep",
        Workload::Bursts => "one greenlet burns 10 ms and sleeps 20 ms, ten sleep",
        Workload::Blocked => {
            "one burns 5 ms, is blocked 20 ms in `time.sleep` and sleeps 5 ms; one burns 10 ms and sleeps 10 ms"
        }
        Workload::Driver => "the same, blocked in sqlite3's wait for another connection's lock",
        Workload::Sleepers => "a hundred greenlets sleep 100 ms, again and again",
        Workload::Threads => {
            "no greenlets: a thread burns in Python, one in a C function that keeps the GIL, one sleeps"
        }
    }
}

/// The median in milliseconds; a dash when a round has none.
fn median_ms(rounds: impl Iterator<Item = Option<u64>>) -> String {
    let ms: Option<Vec<f64>> = rounds.map(|ns| Some(ns? as f64 / 1e6)).collect();
    ms.map_or_else(dash, |ms| format!("{:.2} ms", median(&ms)))
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn dash() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_tool_without_figures_has_a_dash_and_its_reason() {
        let shares = |burn| Shares {
            functions: BTreeMap::from([("burn".to_owned(), burn)]),
            sleeping: 0.25,
            total_ns: 1e9,
        };
        let seen = Cell { rounds: vec![(shares(1.0), shares(0.5))], missing: None };
        let missing = Cell { rounds: Vec::new(), missing: Some("no wheel".to_owned()) };
        let at = |tool| (Workload::Bursts, tool);
        let results = Results {
            command: "cargo xtask accuracy".to_owned(),
            surroundings: Vec::new(),
            packages: Vec::new(),
            rounds: 1,
            seconds: 1,
            workloads: vec![Workload::Bursts],
            tools: vec![Tool::PySpy, Tool::Ddtrace],
            cells: BTreeMap::from([(at(Tool::PySpy), seen), (at(Tool::Ddtrace), missing)]),
            figures: BTreeMap::new(),
            steal_ms: 0,
            attribution: None,
            kinds: None,
        };
        let text = text(&results);
        assert!(text.contains("\n| workload | py-spy | ddtrace |\n|---|---|---|\n| bursts | 50.0 % | - |\n"));
        assert!(text.contains("| bursts | `burn` | 100.0 % | 50.0 % (-50.0) | - |\n"));
        assert!(text.contains("- bursts under ddtrace: no wheel\n"));
        assert!(!text.contains("greenscope's own times"));
    }
}
