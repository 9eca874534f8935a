//! Holds a report's clocks against the targets' books and the scheduler's own sums.
//!
//! A target looks at the time right before and right after each switch, and cannot know when in
//! between the switch was: it books each time twice, no less and no more, and of what it was off
//! the CPU in it the same by the scheduler's trace. What greenscope says must lie between the
//! two, without any tolerance: a preemption that is charged to another greenlet, or twice,
//! leaves them where it is not within the switch itself.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use tests::profile::Clock;

use super::{Greenlet, Report, Stack, Truth, show};

/// How the live tests hold a thread's clock against the scheduler's sums: these begin and end
/// at another instruction of the same context switch, and leave interrupts out.
const ONE_IN: u64 = 50;
const SLACK_NS: u64 = 5_000_000;
/// The same of a thread's whole time, which has no other clock in it.
const WHOLE_ONE_IN: u64 = 1_000;

/// A sum of times that were over when the recording was.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct Bounds {
    /// How many times.
    closed: u64,
    least_ns: i64,
    most_ns: i64,
}

impl Bounds {
    pub(super) fn add(&mut self, other: Self) {
        let Self { closed, least_ns, most_ns } = other;
        self.closed += closed;
        self.least_ns += least_ns;
        self.most_ns += most_ns;
    }

    fn hold(&self, ns: u64) -> bool {
        i64::try_from(ns).is_ok_and(|ns| (self.least_ns..=self.most_ns).contains(&ns))
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { closed, least_ns, most_ns } = self;
        write!(f, "{least_ns} to {most_ns} ns in {closed} times")
    }
}

/// The runs of a greenlet that waits at both ends of the recording.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Life {
    name: String,
    running: Bounds,
    /// The part of them that was not on a CPU.
    off_cpu: Bounds,
}

/// What the scheduler counted of a target's thread: ns on a CPU, and ready without one.
pub(in crate::vm) type Scheduled = BTreeMap<u32, [u64; 2]>;

/// What was compared.
#[derive(Debug, Default)]
pub(in crate::vm) struct Clocks {
    waits: Bounds,
    runs: Bounds,
    off_cpu: Bounds,
    threads: usize,
    pub(in crate::vm) wrong: Vec<String>,
}

impl fmt::Display for Clocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { waits, runs, off_cpu, threads, wrong } = self;
        write!(
            f,
            "clocks checked: waits {waits}, runs {runs}, off the CPU in them {off_cpu}, {threads} threads, {} wrong",
            wrong.len()
        )
    }
}

/// Compares the clocks of a report with the truth of every target.
pub(in crate::vm) fn compare(report: &Report, truths: &[Truth], scheduled: &Scheduled) -> Clocks {
    let mut clocks = Clocks::default();
    let mut timed: BTreeMap<(u32, &Stack), (u64, u64)> = BTreeMap::new();
    for row in report.stacks.iter().filter(|row| row.open.is_none()) {
        let (count, ns) = timed.entry((row.pid, &row.frames)).or_default();
        if row.state == "wait" || row.state == "idle" {
            *count += row.count.unwrap_or(0);
            *ns += row.ns;
        }
    }
    for truth in truths {
        for (stack, stop) in &truth.stops {
            let (count, ns) = timed.get(&(truth.pid, stack)).copied().unwrap_or_default();
            // Where the counts differ that is what is wrong, or was said to be blank.
            if count == stop.time.closed {
                clocks.waits.add(stop.time);
                clocks.hold(&stop.time, ns, || format!("pid {} waited, in {}", truth.pid, show(stack)));
            }
        }
        let of_target = report.greenlets.iter().filter(|greenlet| greenlet.pid == truth.pid);
        let greenlets: Vec<&Greenlet> = of_target.collect();
        for life in &truth.lives {
            clocks.life(truth.pid, life, &greenlets);
        }
        clocks.thread(report, truth.pid, scheduled, &greenlets);
    }
    clocks
}

impl Clocks {
    fn hold(&mut self, bounds: &Bounds, ns: u64, what: impl Fn() -> String) {
        if !bounds.hold(ns) {
            self.wrong.push(format!("{}: {ns} ns, in truth {bounds}", what()));
        }
    }

    fn near(&mut self, pid: u32, what: &str, seen: Option<u64>, truth: u64, bound: u64) {
        match seen {
            Some(seen) if seen.abs_diff(truth) <= bound => {}
            Some(seen) => self.wrong.push(format!("pid {pid}, {what}: {seen} ns, in truth {truth}")),
            None => self.wrong.push(format!("pid {pid}, {what}: not measured")),
        }
    }

    fn life(&mut self, pid: u32, life: &Life, greenlets: &[&Greenlet]) {
        let Life { name, running, off_cpu } = life;
        let greenlet = greenlets.iter().find(|greenlet| greenlet.name.as_ref() == Some(name));
        let times = greenlet.and_then(|greenlet| Some((greenlet.running_ns?, greenlet.clock.on_cpu_ns?)));
        let Some((ran_ns, on_cpu_ns)) = times else {
            self.wrong.push(format!("pid {pid}: no greenlet {name} with a clock"));
            return;
        };
        self.runs.add(*running);
        self.off_cpu.add(*off_cpu);
        self.hold(running, ran_ns, || format!("pid {pid}, {name} ran"));
        let off_cpu_ns = ran_ns.saturating_sub(on_cpu_ns);
        self.hold(off_cpu, off_cpu_ns, || format!("pid {pid}, {name} ran, off the CPU"));
    }

    /// The thread is what the scheduler says, its greenlets together are the thread, and each
    /// one's parts are its whole.
    fn thread(&mut self, report: &Report, pid: u32, scheduled: &Scheduled, greenlets: &[&Greenlet]) {
        let thread = report.threads.iter().find(|thread| thread.pid == pid && thread.tid == Some(pid));
        let (Some(thread), Some([ran_ns, delayed_ns])) = (thread, scheduled.get(&pid)) else {
            self.wrong.push(format!("pid {pid}: no thread, or nobody asked the scheduler"));
            return;
        };
        self.threads += 1;
        let Clock { on_cpu_ns, blocked_ns, preempted_ns, gil_wait_ns, idle_ns } = thread.clock;
        self.near(pid, "on a CPU", on_cpu_ns, *ran_ns, ran_ns / ONE_IN + SLACK_NS);
        self.near(pid, "ready", preempted_ns, *delayed_ns, delayed_ns / ONE_IN + SLACK_NS);
        let whole_ns = report.duration_ns;
        self.near(pid, "all of it", thread.clock.sum_ns(), whole_ns, whole_ns / WHOLE_ONE_IN);
        let mut part = |what, of_thread: Option<u64>, of: fn(&Clock) -> Option<u64>| {
            let sum = greenlets.iter().map(|greenlet| of(&greenlet.clock)).sum();
            self.near(pid, what, sum, of_thread.unwrap_or(0), 0);
        };
        part("its greenlets on a CPU", on_cpu_ns, |clock| clock.on_cpu_ns);
        part("its greenlets blocked", blocked_ns, |clock| clock.blocked_ns);
        part("its greenlets ready", preempted_ns, |clock| clock.preempted_ns);
        part("its greenlets without the GIL", gil_wait_ns, |clock| clock.gil_wait_ns);
        part("its greenlets idle", idle_ns, |clock| clock.idle_ns);
        for greenlet in greenlets {
            let ran_ns = greenlet.running_ns.unwrap_or(0);
            self.near(pid, "the parts of a greenlet", greenlet.clock.sum_ns(), ran_ns, 0);
        }
    }
}
