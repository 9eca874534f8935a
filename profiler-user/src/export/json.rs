//! The json format, version 1 (docs/json-format.md).

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use serde::Serialize;

use super::{
    Exporter, View,
    json_labels::{Endpoint, Label, Looks, Request, Tracer, endpoint, label, looks, request, tracer},
};
use crate::{
    profile::{
        BlockKind, BlockRow, Frame, GreenletRow, Holder, IntervalRow, Profile, RunRow, StackRow, State,
        TargetRow, ThreadRow, TotalsRow, endpoints,
    },
    timeline::lives::Open,
};

/// The json format.
#[derive(Clone, Copy, Debug)]
pub struct Json {
    /// Which stacks; all, idle ones too, if none is given.
    pub view: Option<View>,
}

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    targets: Vec<Target<'a>>,
    started_unix_ns: u64,
    started_monotonic_ns: u64,
    duration_ns: u64,
    first_stack_ns: Option<u64>,
    totals: Totals<'a>,
    threads: Vec<Thread<'a>>,
    greenlets: Vec<Greenlet<'a>>,
    stacks: Vec<Stack<'a>>,
    runs: Vec<Run<'a>>,
    blocks: Vec<Block<'a>>,
    endpoints: Vec<Endpoint<'a>>,
    requests: Vec<Request<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    intervals: Option<Vec<Interval<'a>>>,
    cost_ns_per_hit: Option<u64>,
}

#[derive(Serialize)]
struct Target<'a> {
    pid: u32,
    parent: Option<u32>,
    python: &'a str,
    greenlet: Option<&'a str>,
    command: &'a str,
    began_ns: u64,
    unseen_ns: Option<u64>,
    tracer: Option<Tracer<'a>>,
}

#[derive(Serialize)]
struct Totals<'a> {
    switches: u64,
    greenlets_seen: u64,
    greenlets_unstarted: u64,
    greenlets_unlisted: u64,
    unlisted_switches_in: u64,
    unlisted_running_ns: u64,
    unlisted_on_cpu_ns: Option<u64>,
    unlisted_blocked_ns: Option<u64>,
    unlisted_preempted_ns: Option<u64>,
    unlisted_gil_wait_ns: Option<u64>,
    unlisted_waiting_ns: u64,
    cpu_samples: Option<u64>,
    records_lost: u64,
    stacks_truncated: u64,
    probe_hits: u64,
    labels: Option<Looks<'a>>,
    faults: &'a BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct Thread<'a> {
    pid: u32,
    tid: Option<u32>,
    name: Option<&'a str>,
    switched: bool,
    on_cpu_ns: Option<u64>,
    blocked_ns: Option<u64>,
    preempted_ns: Option<u64>,
    gil_wait_ns: Option<u64>,
    switching_ns: Option<u64>,
    idle_ns: Option<u64>,
}

#[derive(Serialize)]
struct Greenlet<'a> {
    id: u64,
    pid: u32,
    tid: Option<u32>,
    name: Option<&'a str>,
    main: bool,
    alive: bool,
    switches_in: u64,
    running_ns: Option<u64>,
    on_cpu_ns: Option<u64>,
    blocked_ns: Option<u64>,
    preempted_ns: Option<u64>,
    gil_wait_ns: Option<u64>,
    idle_ns: Option<u64>,
    waiting_ns: Option<u64>,
    queued_ns: Option<u64>,
    #[serde(flatten)]
    label: Label<'a>,
}

#[derive(Serialize)]
pub(super) struct FrameDocument<'a> {
    function: Option<&'a str>,
    file: Option<&'a str>,
    line: Option<u32>,
}

#[derive(Serialize)]
struct Stack<'a> {
    frames: Vec<FrameDocument<'a>>,
    state: &'static str,
    pid: u32,
    ns: u64,
    count: u64,
    queued_ns: Option<u64>,
    queued_at_most_ns: Option<u64>,
    greenlet: Option<u64>,
    #[serde(flatten)]
    label: Label<'a>,
    open: Option<&'static str>,
}

#[derive(Serialize)]
struct Run<'a> {
    ns: u64,
    greenlet: Option<u64>,
    name: Option<&'a str>,
    pid: u32,
    frames: Vec<FrameDocument<'a>>,
}

#[derive(Serialize)]
struct Block<'a> {
    pid: u32,
    tid: Option<u32>,
    greenlet: Option<u64>,
    name: Option<&'a str>,
    begin_ns: u64,
    ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gil_holder: Option<GilHolder<'a>>,
    on_cpu_ns: Option<u64>,
    blocked_ns: Option<u64>,
    preempted_ns: Option<u64>,
    gil_wait_ns: Option<u64>,
    idle_ns: Option<u64>,
    frames: Vec<FrameDocument<'a>>,
    ticks: Vec<Ticks<'a>>,
    #[serde(flatten)]
    label: Label<'a>,
    victims: Option<u64>,
    held_at_most_ns: Option<u64>,
    held_most_ns: Option<u64>,
}

#[derive(Serialize)]
struct GilHolder<'a> {
    tid: u32,
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct Ticks<'a> {
    frames: Vec<FrameDocument<'a>>,
    count: u64,
}

#[derive(Serialize)]
struct Interval<'a> {
    greenlet: u64,
    begin_ns: u64,
    end_ns: u64,
    state: &'static str,
    frames: Option<Vec<FrameDocument<'a>>>,
    #[serde(flatten)]
    label: Option<Label<'a>>,
    open: Option<&'static str>,
}

pub(super) fn frames(frames: &[Frame]) -> Vec<FrameDocument<'_>> {
    frames
        .iter()
        .map(|Frame { function, file, line }| FrameDocument {
            function: function.as_deref(),
            file: file.as_deref(),
            line: *line,
        })
        .collect()
}

const fn state(state: State) -> &'static str {
    match state {
        State::Cpu => "cpu",
        State::Wait => "wait",
        State::Blocked => "blocked",
        State::Gil => "gil",
        State::Preempted => "preempted",
        State::Idle => "idle",
    }
}

const fn kind(kind: BlockKind) -> &'static str {
    match kind {
        BlockKind::OnCpu => "cpu",
        BlockKind::Blocked => "blocked",
        BlockKind::Gil => "gil",
        BlockKind::Starved => "starved",
    }
}

const fn open(open: Open) -> &'static str {
    match open {
        Open::Begin => "begin",
        Open::End => "end",
        Open::Both => "both",
    }
}

fn target(row: &TargetRow) -> Target<'_> {
    let TargetRow { pid, parent, python, greenlet, command, began_ns, unseen_ns, tracer: row_tracer } = row;
    Target {
        pid: *pid,
        parent: *parent,
        python,
        greenlet: greenlet.as_deref(),
        command,
        began_ns: *began_ns,
        unseen_ns: *unseen_ns,
        tracer: row_tracer.as_ref().map(tracer),
    }
}

fn totals(row: &TotalsRow) -> Totals<'_> {
    let TotalsRow {
        switches,
        greenlets_seen,
        greenlets_unstarted,
        greenlets_unlisted,
        unlisted_switches_in,
        unlisted_running_ns,
        unlisted_clock,
        unlisted_waiting_ns,
        cpu_samples,
        records_lost,
        stacks_truncated,
        probe_hits,
        faults,
        observations,
    } = row;
    Totals {
        switches: *switches,
        greenlets_seen: *greenlets_seen,
        greenlets_unstarted: *greenlets_unstarted,
        greenlets_unlisted: *greenlets_unlisted,
        unlisted_switches_in: *unlisted_switches_in,
        unlisted_running_ns: *unlisted_running_ns,
        unlisted_on_cpu_ns: unlisted_clock.map(|clock| clock.on_cpu_ns),
        unlisted_blocked_ns: unlisted_clock.map(|clock| clock.blocked_ns),
        unlisted_preempted_ns: unlisted_clock.map(|clock| clock.preempted_ns),
        unlisted_gil_wait_ns: unlisted_clock.map(|clock| clock.gil_wait_ns),
        unlisted_waiting_ns: *unlisted_waiting_ns,
        cpu_samples: *cpu_samples,
        records_lost: *records_lost,
        stacks_truncated: *stacks_truncated,
        probe_hits: *probe_hits,
        labels: observations.as_ref().map(looks),
        faults,
    }
}

fn thread(row: &ThreadRow) -> Thread<'_> {
    let ThreadRow { pid, tid, name, switched, clock, switching_ns } = row;
    Thread {
        pid: *pid,
        tid: *tid,
        name: name.as_deref(),
        switched: *switched,
        on_cpu_ns: clock.map(|clock| clock.on_cpu_ns),
        blocked_ns: clock.map(|clock| clock.blocked_ns),
        preempted_ns: clock.map(|clock| clock.preempted_ns),
        gil_wait_ns: clock.map(|clock| clock.gil_wait_ns),
        switching_ns: *switching_ns,
        idle_ns: clock.map(|clock| clock.idle_ns),
    }
}

fn greenlet<'a>(row: &'a GreenletRow, profile: &'a Profile) -> Greenlet<'a> {
    let GreenletRow {
        id,
        pid,
        tid,
        name,
        main,
        alive,
        switches_in,
        running_ns,
        clock,
        waiting_ns,
        label: row_label,
    } = row;
    Greenlet {
        id: *id,
        pid: *pid,
        tid: *tid,
        name: name.as_deref(),
        main: *main,
        alive: *alive,
        switches_in: *switches_in,
        running_ns: *running_ns,
        on_cpu_ns: clock.map(|clock| clock.on_cpu_ns),
        blocked_ns: clock.map(|clock| clock.blocked_ns),
        preempted_ns: clock.map(|clock| clock.preempted_ns),
        gil_wait_ns: clock.map(|clock| clock.gil_wait_ns),
        idle_ns: clock.map(|clock| clock.idle_ns),
        waiting_ns: *waiting_ns,
        queued_ns: None,
        label: label(*row_label, profile),
    }
}

fn stack<'a>(row: &'a StackRow, profile: &'a Profile) -> Stack<'a> {
    let StackRow {
        frames: row_frames,
        state: row_state,
        pid,
        ns,
        count,
        queued,
        greenlet,
        open: row_open,
        label: row_label,
    } = row;
    Stack {
        frames: frames(row_frames),
        state: state(*row_state),
        pid: *pid,
        ns: *ns,
        count: *count,
        queued_ns: queued.map(|queued| queued.least_ns),
        queued_at_most_ns: queued.map(|queued| queued.most_ns),
        greenlet: *greenlet,
        label: label(*row_label, profile),
        open: row_open.map(open),
    }
}

fn run(row: &RunRow) -> Run<'_> {
    let RunRow { ns, greenlet, name, pid, frames: row_frames } = row;
    Run { ns: *ns, greenlet: *greenlet, name: name.as_deref(), pid: *pid, frames: frames(row_frames) }
}

fn block<'a>(row: &'a BlockRow, profile: &'a Profile) -> Block<'a> {
    let BlockRow {
        pid,
        tid,
        greenlet,
        name,
        begin_ns,
        ns,
        clock,
        gil_holder,
        frames: row_frames,
        ticks,
        victims,
        label: row_label,
    } = row;
    Block {
        pid: *pid,
        tid: *tid,
        greenlet: *greenlet,
        name: name.as_deref(),
        begin_ns: *begin_ns,
        ns: *ns,
        kind: clock.and_then(|clock| clock.kind()).map(kind),
        gil_holder: gil_holder
            .as_ref()
            .map(|Holder { tid, name }| GilHolder { tid: *tid, name: name.as_deref() }),
        on_cpu_ns: clock.map(|clock| clock.on_cpu_ns),
        blocked_ns: clock.map(|clock| clock.blocked_ns),
        preempted_ns: clock.map(|clock| clock.preempted_ns),
        gil_wait_ns: clock.map(|clock| clock.gil_wait_ns),
        idle_ns: clock.map(|clock| clock.idle_ns),
        frames: frames(row_frames),
        ticks: ticks.iter().map(|(met, count)| Ticks { frames: frames(met), count: *count }).collect(),
        label: label(*row_label, profile),
        victims: victims.map(|victims| victims.count),
        held_at_most_ns: victims.map(|victims| victims.held_ns),
        held_most_ns: victims.map(|victims| victims.held_most_ns),
    }
}

fn interval<'a>(row: &'a IntervalRow, profile: &'a Profile) -> Interval<'a> {
    let IntervalRow { greenlet, begin_ns, end_ns, frames: row_frames, open: row_open, label: row_label } =
        row;
    Interval {
        greenlet: *greenlet,
        begin_ns: *begin_ns,
        end_ns: *end_ns,
        state: if row_frames.is_some() { "wait" } else { "running" },
        frames: row_frames.as_deref().map(frames),
        label: row_label.map(|_| label(*row_label, profile)),
        open: row_open.map(open),
    }
}

impl Exporter for Json {
    fn export(&self, profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
        let Profile {
            targets,
            started_unix_ns,
            started_monotonic_ns,
            duration_ns,
            first_stack_ns,
            totals: profile_totals,
            threads,
            greenlets,
            stacks,
            runs,
            blocks,
            only: _,
            labels: _,
            requests,
            intervals,
            cost,
        } = profile;
        let by_endpoint = endpoints(profile);
        let document = Document {
            version: 1,
            targets: targets.iter().map(target).collect(),
            started_unix_ns: *started_unix_ns,
            started_monotonic_ns: *started_monotonic_ns,
            duration_ns: *duration_ns,
            first_stack_ns: *first_stack_ns,
            totals: totals(profile_totals),
            threads: threads.iter().map(thread).collect(),
            greenlets: greenlets.iter().map(|row| greenlet(row, profile)).collect(),
            stacks: stacks
                .iter()
                .filter(|row| self.view.is_none_or(|view| view.shows(row.state)))
                .map(|row| stack(row, profile))
                .collect(),
            runs: runs.iter().map(run).collect(),
            blocks: blocks.iter().map(|row| block(row, profile)).collect(),
            endpoints: by_endpoint.iter().map(endpoint).collect(),
            requests: requests.iter().map(request).collect(),
            intervals: intervals.as_ref().map(|rows| rows.iter().map(|row| interval(row, profile)).collect()),
            cost_ns_per_hit: cost.map(|cost| cost.ns_per_hit),
        };
        serde_json::to_writer(&mut *out, &document)?;
        writeln!(out)
    }
}
