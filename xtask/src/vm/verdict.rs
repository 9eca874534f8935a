//! Compares what greenscope wrote with what the targets know to be true.
//!
//! A target's truth is every stack in which it can stop, with how often it did
//! so during the recording. A report is right when each of its stacks is one of
//! those of its process, to the line, and the counts are the same: one frame of
//! a neighbour, one switch too few, and it is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ::tests::profile::{Clock, Thread};
use serde::Deserialize;

pub(super) mod clocks;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct Frame {
    /// None is a blank.
    function: Option<String>,
    file: Option<String>,
    line: Option<u32>,
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.as_deref().unwrap_or("?");
        let file = file.rsplit('/').next().unwrap_or(file);
        let function = self.function.as_deref().unwrap_or("[unknown]");
        match self.line {
            Some(line) => write!(f, "{function} ({file}:{line})"),
            None => write!(f, "{function} ({file})"),
        }
    }
}

type Stack = Vec<Frame>;

/// The parts of the json format (version 1) that can be right or wrong here.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Report {
    version: u32,
    duration_ns: u64,
    targets: Vec<Target>,
    totals: Totals,
    threads: Vec<Thread>,
    greenlets: Vec<Greenlet>,
    stacks: Vec<Row>,
}

#[derive(Debug, Clone, Deserialize)]
struct Target {
    pid: u32,
}

#[derive(Debug, Clone, Deserialize)]
struct Totals {
    switches: u64,
    records_lost: Option<u64>,
    stacks_truncated: Option<u64>,
    #[serde(default)]
    faults: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Deserialize)]
struct Greenlet {
    pid: u32,
    name: Option<String>,
    switches_in: Option<u64>,
    running_ns: Option<u64>,
    #[serde(flatten)]
    clock: Clock,
}

#[derive(Debug, Clone, Deserialize)]
struct Row {
    frames: Stack,
    state: String,
    pid: u32,
    ns: u64,
    count: Option<u64>,
    open: Option<String>,
}

/// What one target knows, as tests/targets/preemption.py writes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "TruthFile")]
pub(super) struct Truth {
    pub(super) pid: u32,
    variant: String,
    pub(super) switches: u64,
    /// Greenlets that lived at some time of the recording.
    greenlets: usize,
    /// Each stack in which it stops.
    stops: BTreeMap<Stack, Stop>,
    /// The greenlets whose runs are booked.
    lives: Vec<clocks::Life>,
    /// What may be current: every stack that leads to a stop or is one, by
    /// function and file.
    running: BTreeSet<Vec<(String, Option<String>)>>,
    /// The same, by function alone, for those that are no stop.
    aside: BTreeSet<Vec<String>>,
}

#[derive(Debug, Clone)]
struct Stop {
    state: String,
    count: u64,
    /// Of those that began and ended within the recording.
    time: clocks::Bounds,
}

#[derive(Deserialize)]
struct TruthFile {
    pid: u32,
    variant: String,
    switches: u64,
    greenlets: usize,
    stacks: Vec<TruthRow>,
    clocks: Vec<clocks::Life>,
    running: Vec<Vec<String>>,
}

#[derive(Deserialize)]
struct TruthRow {
    state: String,
    count: u64,
    frames: Vec<(String, String, u32)>,
    time: clocks::Bounds,
}

impl From<TruthFile> for Truth {
    fn from(file: TruthFile) -> Self {
        let TruthFile { pid, variant, switches, greenlets, stacks, clocks: lives, running } = file;
        let mut stops: BTreeMap<Stack, Stop> = BTreeMap::new();
        let mut prefixes = BTreeSet::new();
        for TruthRow { state, count, frames, time } in stacks {
            let stack: Stack = frames
                .into_iter()
                .map(|(function, file, line)| Frame {
                    function: Some(function),
                    file: Some(file),
                    line: Some(line),
                })
                .collect();
            for end in 1..=stack.len() {
                prefixes.insert(outline(stack.get(..end).unwrap_or_default()));
            }
            let stop = stops.entry(stack).or_insert(Stop { state, count: 0, time: Default::default() });
            stop.count += count;
            stop.time.add(time);
        }
        let mut aside = BTreeSet::new();
        for functions in running {
            for end in 1..=functions.len() {
                aside.insert(functions.iter().take(end).cloned().collect());
            }
        }
        Self { pid, variant, switches, greenlets, stops, lives, running: prefixes, aside }
    }
}

fn outline(frames: &[Frame]) -> Vec<(String, Option<String>)> {
    frames.iter().map(|frame| (frame.function.clone().unwrap_or_default(), frame.file.clone())).collect()
}

impl Truth {
    fn switch_outs(&self) -> u64 {
        self.stops.values().map(|stop| stop.count).sum()
    }

    fn may_run(&self, frames: &[Frame]) -> bool {
        self.running.contains(&outline(frames))
            || self.aside.contains(
                &frames.iter().map(|frame| frame.function.clone().unwrap_or_default()).collect::<Vec<_>>(),
            )
    }
}

/// What the comparison found; right when `wrong` is empty.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) distinct: usize,
    pub(super) switch_outs: u64,
    /// Stacks of running threads that were checked as well.
    pub(super) running: u64,
    /// Switch-outs whose stack is blank, and counted as a fault.
    pub(super) blank: u64,
    pub(super) wrong: Vec<String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { distinct, switch_outs, running, blank, wrong } = self;
        write!(f, "stacks checked: {distinct} distinct, {switch_outs} switch-outs, {} wrong", wrong.len())?;
        if *blank > 0 {
            write!(f, ", {blank} blank and counted ({BLANK})")?;
        }
        if *running > 0 {
            write!(f, " ({running} stacks of running threads among them)")?;
        }
        Ok(())
    }
}

/// The fault of a stack that could not be read.
const BLANK: &str = "READ_FRAME";
/// Faults that stacks of running threads have: of code that is gone by the time that its
/// name is read, and of frames that are just being linked.
const RUNNING: [&str; 4] = ["CODE_CHANGED", "CODE_UNREADABLE", "CODE_REUSED", "TICK_TORN"];
/// So many switches for each of them at least.
const BLANKS_ONE_IN: u64 = 10_000;

/// Compares a report with the truth of every target that it was to record.
pub(super) fn compare(report: &Report, truths: &[Truth], allowed_faults: &[String]) -> Verdict {
    let Report { version, duration_ns: _, targets, totals, threads: _, greenlets, stacks } = report;
    let mut verdict = Verdict::default();
    if *version != 1 {
        verdict.wrong.push(format!("the json's version is {version}, not 1"));
    }
    check_totals(totals, truths, allowed_faults, &mut verdict);
    let by_pid: BTreeMap<u32, &Truth> = truths.iter().map(|truth| (truth.pid, truth)).collect();
    let mut observed: BTreeMap<(u32, &Stack), u64> = BTreeMap::new();
    let mut missing = Vec::new();
    for row in stacks {
        check_row(row, &by_pid, &mut observed, &mut verdict);
    }
    verdict.distinct = observed.len();
    verdict.switch_outs = observed.values().sum();
    for truth in truths {
        let Truth { pid, variant, switches, greenlets: lived, stops, lives: _, running: _, aside: _ } = truth;
        if !targets.iter().any(|target| target.pid == *pid) {
            verdict.wrong.push(format!("pid {pid} is not among the json's targets"));
        }
        if truth.switch_outs() == 0 {
            verdict.wrong.push(format!("pid {pid} ({variant}) never switched: nothing compared"));
        }
        let own = || greenlets.iter().filter(|greenlet| greenlet.pid == *pid);
        let entered: u64 = own().filter_map(|greenlet| greenlet.switches_in).sum();
        if entered != *switches {
            verdict.wrong.push(format!(
                "pid {pid} ({variant}) switched {switches} times, its greenlets' switches_in add up to {entered}"
            ));
        }
        if own().count() != *lived {
            verdict.wrong.push(format!(
                "pid {pid} ({variant}) had {lived} greenlets, the json lists {}",
                own().count()
            ));
        }
        for (stack, Stop { count, .. }) in stops {
            let seen = observed.get(&(*pid, stack)).copied().unwrap_or(0);
            let text = || {
                let stack = show(stack);
                format!("pid {pid} ({variant}) stopped {count} times, the json says {seen}, in {stack}")
            };
            if seen < *count {
                missing.push((count - seen, text()));
            } else if seen > *count {
                verdict.wrong.push(text());
            }
        }
    }
    // What is missing must have been said to be: each blank is a counted fault.
    let absent: u64 = missing.iter().map(|(count, _)| count).sum();
    if absent <= totals.faults.get(BLANK).copied().unwrap_or(0) {
        verdict.blank = absent;
    } else {
        verdict.wrong.extend(missing.into_iter().map(|(_, text)| text));
    }
    verdict
}

fn check_totals(totals: &Totals, truths: &[Truth], allowed: &[String], verdict: &mut Verdict) {
    let Totals { switches, records_lost, stacks_truncated, faults } = totals;
    let expected: u64 = truths.iter().map(|truth| truth.switches).sum();
    if *switches != expected {
        verdict.wrong.push(format!("the targets switched {expected} times, totals.switches is {switches}"));
    }
    for (name, value) in [("records_lost", records_lost), ("stacks_truncated", stacks_truncated)] {
        if let Some(lost @ 1..) = value {
            verdict.wrong.push(format!("totals.{name} is {lost}, not 0"));
        }
    }
    for (name, count) in faults {
        // A page that is away or just being moved can't be read by a program that must not
        // wait for it. That is rare, or it is something else.
        let rare = name == BLANK && count.saturating_mul(BLANKS_ONE_IN) <= expected;
        let running = RUNNING.contains(&name.as_str());
        if *count > 0 && !rare && !running && !allowed.contains(name) {
            verdict.wrong.push(format!("fault {name} happened {count} times (--allow-fault {name})"));
        }
    }
}

fn check_row<'a>(
    row: &'a Row,
    by_pid: &BTreeMap<u32, &Truth>,
    observed: &mut BTreeMap<(u32, &'a Stack), u64>,
    verdict: &mut Verdict,
) {
    let Row { frames, state, pid, ns: _, count, open } = row;
    let Some(truth) = by_pid.get(pid) else {
        verdict.wrong.push(format!("a stack of pid {pid}, which is no target: {}", show(frames)));
        return;
    };
    if state != "wait" && state != "idle" {
        // No frames is a blank, as is one without a name, and a blank is not wrong. What has
        // no file is no frame but a line for time without a stack.
        let known = frames.iter().all(|frame| frame.function.is_some() && frame.file.is_some());
        if !frames.is_empty() && known {
            verdict.running += 1;
            if !truth.may_run(frames) {
                verdict.wrong.push(format!(
                    "pid {pid} ({}) can't be in state {state} {}",
                    truth.variant,
                    blame(frames, by_pid)
                ));
            }
        }
        return;
    }
    let Some(Stop { state: expected_state, .. }) = truth.stops.get(frames) else {
        verdict.wrong.push(format!("pid {pid} ({}) never stops {}", truth.variant, blame(frames, by_pid)));
        return;
    };
    if state != expected_state {
        verdict.wrong.push(format!(
            "pid {pid} ({}): state {state} instead of {expected_state} in {}",
            truth.variant,
            show(frames)
        ));
    }
    // A wait that began before the recording is no switch-out inside it.
    match open.as_deref() {
        None | Some("end") => match count {
            Some(count) => *observed.entry((*pid, frames)).or_insert(0) += count,
            None => verdict.wrong.push(format!("pid {pid}: no count with {}", show(frames))),
        },
        Some("begin" | "both") => {
            observed.entry((*pid, frames)).or_insert(0);
        }
        Some(other) => verdict.wrong.push(format!("pid {pid}: `open` is `{other}`")),
    }
}

fn show(frames: &[Frame]) -> String {
    if frames.is_empty() {
        return "a stack without frames".to_owned();
    }
    frames.iter().map(Frame::to_string).collect::<Vec<_>>().join(";")
}

/// The stack, and whose it is if it is another target's.
fn blame(frames: &[Frame], by_pid: &BTreeMap<u32, &Truth>) -> String {
    let owner = by_pid.values().find(|truth| truth.stops.contains_key(frames));
    let owner = owner.map_or(String::new(), |truth| format!(" (a stack of pid {})", truth.pid));
    format!("in {}{owner}", show(frames))
}

#[cfg(test)]
mod tests;
