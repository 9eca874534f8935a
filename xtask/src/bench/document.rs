//! docs/performance.md: the figures, each beside its goal.

use std::fmt::Write as _;

use super::{
    Results, labels,
    switches::{Bench, Mode, Workload},
    target::Inside,
    whole::Storm,
};
use crate::measure::spread::{Goal, Spread};

/// The unit of a figure, and how it is written.
#[derive(Clone, Copy)]
pub(super) enum Unit {
    Times,
    Percent,
    Milliseconds,
    Nanoseconds,
}

/// The cases that have goals.
pub(super) const RING_5: Workload = Workload::Ring { greenlets: 10, depth: 5, shims: 0 };
const RING_20: Workload = Workload::Ring { greenlets: 10, depth: 20, shims: 0 };
const RING_SHIMS: Workload = Workload::Ring { greenlets: 10, depth: 20, shims: 4 };
const RING_MANY: Workload = Workload::Ring { greenlets: 100_000, depth: 5, shims: 0 };

/// In order: the case, its workload and mode, what the issue asks of it.
pub(super) const CASES: [(&str, Workload, Mode, Option<Goal>); 6] = [
    ("accounting only", RING_5, Mode::Accounting, Some(Goal(1.4))),
    ("aggregated, depth 5", RING_5, Mode::Aggregated, Some(Goal(1.9))),
    ("aggregated, depth 20", RING_20, Mode::Aggregated, Some(Goal(2.2))),
    ("aggregated, depth 20, four C shims", RING_SHIMS, Mode::Aggregated, Some(Goal(2.75))),
    ("with a record of each switch, depth 20", RING_20, Mode::Recorded, Some(Goal(2.6))),
    ("aggregated, depth 5, 100 000 live greenlets", RING_MANY, Mode::Aggregated, None),
];

/// Growth of the ratio from 10 to 100 000 live greenlets.
const GROWTH: Goal = Goal(5.0);
/// Of what `greenlet.settrace` adds.
const INSIDE: Goal = Goal(0.25);
/// Seconds per million switches.
const CPU: Goal = Goal(1.0);
/// MiB, with 100 000 live greenlets.
const MEMORY: Goal = Goal(64.0);
/// Milliseconds from the program's start.
const FIRST_STACK: Goal = Goal(300.0);

/// The in-process ways, and the goal of what greenscope adds in what they add.
const WAYS: [(&str, Inside, Option<Goal>); 3] = [
    ("settrace", Inside::Settrace, Some(INSIDE)),
    ("settrace with accounts", Inside::Accounts, None),
    ("extract_stack", Inside::Snapshot, None),
];

const INSIDE_WAYS: &str = "\
The same stack (function, file, line of each frame) at each switch, from inside: by a
`greenlet.settrace` callback that walks the leaver's frames and keeps nothing; by one that
also keeps waiting time and count by stack, which greenscope does too; and by one that
calls `traceback.extract_stack`, as SkyWalking's agent does. The ratio is what greenscope
adds to a switch, in what they add. The empty uprobe is the floor of greenscope's side:
where a quarter of the way from inside is less than that, no program can keep the goal.
";

/// Percent of a busy thread's time.
const TICKS: Goal = Goal(1.0);
/// Percent of a second, and context switches in it.
const SCHEDULER: Goal = Goal(3.0);
const OFTEN: f64 = 50_000.0;
/// Nanoseconds.
const BYSTANDER: Goal = Goal(150.0);

const CLOCKS: &str = "\
What the CPU clock and the scheduler's tracepoint add, by the wall clock: to a thread that
burns (`xtask/bench/burn.py`), and to two processes on one processor that hand a byte to and
fro (`xtask/bench/pipes.py`), of which each switch goes from one into a sleep, with its
stack, and wakes the other. Another process pays as well: for a look at each of its context
switches, and, since children are followed by probes in every process, for the trap if it
has the same greenlet library (`--no-children` spares it).
";

const DEFINITIONS: &str = "\
Every figure is the median of the rounds; behind it stands the spread, the least and the
most of the rounds. *Missed* is a goal that the whole spread lies above.

A **ratio** compares what is added to a switch, the trap included: (with greenscope - bare)
/ (with an empty uprobe - bare). All three are taken in each round, on the same process,
the same instruction and the same number of greenlets; the rounds' ratios are what median
and spread are of. *Whole switch* is the other reading, (with greenscope) / (with an empty
uprobe), greenlet's own work included; no goal is about it.

The targets (`xtask/bench/ring.py`) hand a switch on around a ring of greenlets, all as
deep, and time themselves by their thread's processor time, in batches of about 5 000
switches; a sample is the median batch. Sampling begins when greenscope has settled, and
without its count of what a hit costs, which makes the first second of a recording dearer.
Every stack has one C shim at its root; the case with four has four more, through `map`,
`sorted`, `functools.partial` and `max`.
";

/// The document.
pub(super) fn text(results: &Results) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = write(results, &mut out);
    out
}

fn write(results: &Results, out: &mut String) -> std::fmt::Result {
    writeln!(out, "# Performance\n\nWritten by `{}`; edits are lost.\n", results.command)?;
    writeln!(out, "| | |\n|---|---|")?;
    for (name, value) in &results.surroundings {
        writeln!(out, "| {name} | {value} |")?;
    }
    writeln!(out, "| rounds | {} |", results.rounds)?;
    writeln!(out, "\n{DEFINITIONS}")?;
    switches(results, out)?;
    inside(results, out)?;
    storms(results, out)?;
    if !results.first_stacks_ms.is_empty() {
        writeln!(out, "## Start\n\n| | goal | measured | spread | |\n|---|---|---|---|---|")?;
        let spread = Spread::of(&results.first_stacks_ms);
        let name = "greenscope's start to the first stack of a running target";
        row(out, name, Some(FIRST_STACK), &spread, Unit::Milliseconds)?;
        writeln!(out)?;
    }
    lives(results, out)?;
    clocks(results, out)?;
    labels::write(results, out)?;
    let notes = results.notes();
    if !notes.is_empty() {
        writeln!(out, "## Losses while measuring\n")?;
        for note in notes {
            writeln!(out, "- {note}")?;
        }
        writeln!(out)?;
    }
    let length = out.trim_end().len();
    out.truncate(length);
    writeln!(out)
}

fn switches(results: &Results, out: &mut String) -> std::fmt::Result {
    let cases: Vec<_> = CASES
        .iter()
        .filter_map(|(name, workload, mode, goal)| {
            let bench = results.bench(*workload)?;
            let has = !bench.figure(|round| round.ratio(*mode)).is_empty();
            has.then_some((name, bench, *mode, *goal))
        })
        .collect();
    if cases.is_empty() || !results.switch {
        return Ok(());
    }
    writeln!(out, "## A switch against an empty uprobe\n")?;
    writeln!(out, "| | goal | ratio | spread | |\n|---|---|---|---|---|")?;
    for (name, bench, mode, goal) in &cases {
        row(out, name, *goal, &bench.spread(|round| round.ratio(*mode)), Unit::Times)?;
    }
    if let (Some(few), Some(many)) = (results.bench(RING_5), results.bench(RING_MANY)) {
        let growth = growth(few, many);
        row(out, "growth of that ratio from 10 live greenlets", Some(GROWTH), &growth, Unit::Percent)?;
    }
    writeln!(out, "\nThe same in nanoseconds, and the other reading:\n")?;
    writeln!(out, "| | bare switch | empty uprobe adds | greenscope adds | whole switch |")?;
    writeln!(out, "|---|---|---|---|---|")?;
    for (name, bench, mode, _) in &cases {
        let bare = bench.spread(super::switches::Round::bare).median;
        let empty = bench.spread(|round| round.added(Mode::Empty)).median;
        let added = bench.spread(|round| round.added(*mode)).median;
        let whole = bench.spread(|round| round.whole(*mode)).median;
        writeln!(out, "| {name} | {bare:.0} | {empty:.0} | {added:.0} | {whole:.2}x |")?;
    }
    writeln!(out)
}

/// How much the ratio grew in each round, in percent.
fn growth(few: &Bench, many: &Bench) -> Spread {
    let ratios = |bench: &Bench| bench.figure(|round| round.ratio(Mode::Aggregated));
    let grown: Vec<f64> =
        ratios(few).into_iter().zip(ratios(many)).map(|(few, many)| (many / few - 1.0) * 100.0).collect();
    Spread::of(&grown)
}

fn inside(results: &Results, out: &mut String) -> std::fmt::Result {
    let benches: Vec<(u32, &Bench)> = [(5, RING_5), (20, RING_20)]
        .into_iter()
        .filter_map(|(depth, workload)| Some((depth, results.bench(workload)?)))
        .filter(|(_, bench)| !bench.figure(|round| round.added_inside(Inside::Settrace)).is_empty())
        .collect();
    if benches.is_empty() {
        return Ok(());
    }
    writeln!(out, "## Beside the in-process ways\n\n{INSIDE_WAYS}")?;
    writeln!(out, "| | goal | ratio | spread | |\n|---|---|---|---|---|")?;
    for (depth, bench) in &benches {
        for (name, way, goal) in WAYS {
            let ratio = bench.spread(|round| Some(round.added(Mode::Aggregated)? / round.added_inside(way)?));
            row(out, &format!("to {name}, depth {depth}"), goal, &ratio, Unit::Times)?;
        }
    }
    writeln!(out, "\nIn nanoseconds, added to a switch:\n")?;
    writeln!(out, "| | greenscope | the empty uprobe alone | settrace | with accounts | extract_stack |")?;
    writeln!(out, "|---|---|---|---|---|---|")?;
    for (depth, bench) in &benches {
        let added = bench.spread(|round| round.added(Mode::Aggregated)).median;
        let empty = bench.spread(|round| round.added(Mode::Empty)).median;
        let [settrace, accounts, snapshot] =
            WAYS.map(|(_, way, _)| bench.spread(|round| round.added_inside(way)).median);
        writeln!(
            out,
            "| depth {depth} | {added:.0} | {empty:.0} | {settrace:.0} | {accounts:.0} | {snapshot:.0} |"
        )?;
    }
    writeln!(out)
}

fn storms(results: &Results, out: &mut String) -> std::fmt::Result {
    if results.storms.is_empty() {
        return Ok(());
    }
    writeln!(out, "## One thread, switching as fast as it can for 10 s\n")?;
    writeln!(
        out,
        "By default options, once. The processor time is greenscope's, from its start to its end\n\
         (user and system); its memory is the most that was resident, and what its maps and\n\
         programs hold in the kernel; the end is when the result is made.\n"
    )?;
    writeln!(out, "| | goal | measured | |\n|---|---|---|---|")?;
    for storm in &results.storms {
        let of = format!("{} greenlets", storm.greenlets);
        let Storm { switches, json, .. } = storm;
        let counted = json.totals.switches;
        let verdict = if storm.is_exact() { "met" } else { "**missed**" };
        writeln!(out, "| switches counted, {of} | exact | {counted} of {switches} | {verdict} |")?;
        let cpu = Spread::of(&[storm.cpu_per_million()]);
        let verdict = cpu.against(CPU);
        let (goal, cpu) = (CPU.0, cpu.median);
        writeln!(out, "| CPU per million switches, {of} | {goal:.1} s | {cpu:.3} s | {verdict} |")?;
    }
    if let Some(storm) = results.storms.iter().max_by_key(|storm| storm.greenlets) {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (resident, kernel) = (mib(storm.usage.resident_bytes), mib(storm.usage.kernel_bytes));
        let during = mib(storm.usage.resident_before_bytes);
        let verdict = Spread::of(&[resident + kernel]).against(MEMORY);
        writeln!(
            out,
            "| memory, {} greenlets | {:.0} MiB | {:.1} MiB ({resident:.1} resident at most, {during:.1} \
             before the end, {kernel:.1} in the kernel) | {verdict} |",
            storm.greenlets,
            MEMORY.0,
            resident + kernel
        )?;
    }
    writeln!(out)
}

fn lives(results: &Results, out: &mut String) -> std::fmt::Result {
    let Some(bench) = results.bench(Workload::Lives) else {
        return Ok(());
    };
    writeln!(out, "## A greenlet's life\n")?;
    writeln!(
        out,
        "Born, switched to, dead and freed: two switches, and a probe of greenscope's at the end.\n\
         It has no goal.\n"
    )?;
    writeln!(out, "| | goal | ratio | spread | |\n|---|---|---|---|---|")?;
    row(out, "a life", None, &bench.spread(|round| round.ratio(Mode::Aggregated)), Unit::Times)?;
    let bare = bench.spread(super::switches::Round::bare).median;
    let empty = bench.spread(|round| round.added(Mode::Empty)).median;
    let added = bench.spread(|round| round.added(Mode::Aggregated)).median;
    writeln!(
        out,
        "\nIn nanoseconds: {bare:.0} bare, {empty:.0} added by the empty uprobe (two hits), {added:.0}\n\
         added by greenscope.\n"
    )
}

fn clocks(results: &Results, out: &mut String) -> std::fmt::Result {
    let (Some(burn), Some(pipes)) = (results.bench(Workload::Burn), results.bench(Workload::Pipes)) else {
        return Ok(());
    };
    writeln!(out, "## Clocks\n\n{CLOCKS}")?;
    writeln!(out, "| | goal | measured | spread | |\n|---|---|---|---|---|")?;
    let ticks = burn.spread(|round| round.percent(Mode::Aggregated));
    row(out, "CPU samples at 97 Hz, of a thread that burns", Some(TICKS), &ticks, Unit::Percent)?;
    let share = pipes.spread(|round| Some(round.added(Mode::Aggregated)? * OFTEN * 100.0 / 1e9));
    let name = "a target's context switches, 50 000 a second";
    row(out, name, Some(SCHEDULER), &share, Unit::Percent)?;
    let added = pipes.spread(|round| round.added(Mode::Aggregated));
    row(out, "the same, each", None, &added, Unit::Nanoseconds)?;
    let added = pipes.spread(|round| round.added(Mode::Bystander));
    row(out, "another process's context switch", Some(BYSTANDER), &added, Unit::Nanoseconds)?;
    if let Some(ring) = results.bench(RING_5) {
        let ratio = ring.spread(|round| round.ratio(Mode::Bystander));
        let name = "another process's switch of greenlets, same library, against an empty uprobe";
        row(out, name, None, &ratio, Unit::Times)?;
        let added = ring.spread(|round| round.added(Mode::Bystander));
        row(out, "the same, each", None, &added, Unit::Nanoseconds)?;
    }
    writeln!(out)
}

pub(super) fn row(
    out: &mut String,
    name: &str,
    goal: Option<Goal>,
    spread: &Spread,
    unit: Unit,
) -> std::fmt::Result {
    let Spread { median, least, most } = *spread;
    let goal_text = goal.map_or_else(|| "-".to_owned(), |goal| format!("at most {}", figure(goal.0, unit)));
    let verdict = goal.map_or_else(String::new, |goal| spread.against(goal).to_string());
    writeln!(
        out,
        "| {name} | {goal_text} | {} | {} to {} | {verdict} |",
        figure(median, unit),
        figure(least, unit),
        figure(most, unit)
    )
}

fn figure(number: f64, unit: Unit) -> String {
    match unit {
        Unit::Times => format!("{number:.2}x"),
        Unit::Percent => format!("{number:.1} %"),
        Unit::Milliseconds => format!("{number:.0} ms"),
        Unit::Nanoseconds => format!("{number:.0} ns"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_stands_beside_its_figure() {
        let mut out = String::new();
        let spread = Spread { median: 2.5, least: 2.3, most: 2.6 };
        row(&mut out, "a", Some(Goal(2.2)), &spread, Unit::Times).unwrap();
        row(&mut out, "b", None, &spread, Unit::Percent).unwrap();
        assert_eq!(
            out,
            "| a | at most 2.20x | 2.50x | 2.30x to 2.60x | **missed** |\n\
             | b | - | 2.5 % | 2.3 % to 2.6 % |  |\n"
        );
    }
}
