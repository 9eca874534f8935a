//! Where the time goes: exact clocks and samples against a target's ledger and the
//! scheduler's own sum.

use std::{collections::BTreeMap, fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use tests::book::Wait;
use tests::compare;
use tests::deadline::Deadline;
use tests::place::{Python, as_root, greenscope};
use tests::postgres::Postgres;
use tests::profile::{Block, Frame, Profile, Stack, State};
use tests::recording::Recording;
use tests::runner::Cases;
use tests::target::Target;

/// How long the target works.
pub(crate) const SECONDS: &str = "2";
/// What a greenlet costs beside what it books, in two seconds.
const SLACK_NS: u64 = 15_000_000;

pub(crate) fn cases(cases: &mut Cases) {
    for workload in ["shares", "bursts", "blocked", "driver"] {
        let name = format!("the_wall_clock_is_what_the_ledger_says/{workload}");
        cases.each(name, move |python| greenlets(&recorded(python, workload, &[])?));
    }
    cases.each("the_wall_clock_is_what_the_ledger_says/postgres", |python| {
        as_root()?;
        let server = Postgres::start()?;
        let target = Target::start(python, "wall.py", &["postgres", SECONDS, &server.address()])?;
        greenlets(&recorded_by(Command::new(greenscope()?), target, &[])?)
    });
    cases.each("a_block_is_reported_with_its_victims", blocks);
    cases
        .each("plain_threads_are_what_the_ledger_says", |python| threads(&recorded(python, "threads", &[])?));
    cases.each("a_hub_that_never_switches_idles_no_longer_than_its_thread", |python| {
        let target = Target::start(python, "open_waits.py", &["gevent"])?;
        let profile = Recording::start(target.pid(), &[])?.stop()?;
        ensure!(profile.totals.switches == 0, "{:?}", profile.totals);
        let of_threads = profile.threads.iter().filter_map(|thread| thread.clock.sum_ns());
        let of_greenlets = profile.greenlets.iter().filter_map(|greenlet| greenlet.clock.sum_ns());
        near("its threads", Some(of_threads.sum()), profile.duration_ns, 0.001, 0)?;
        near("its greenlets", Some(of_greenlets.sum()), profile.duration_ns, 0.001, 0)
    });
    cases.each("each_sleep_has_the_stack_that_it_was_in", sleeps);
    cases.each("a_process_without_greenlet_is_recorded", |python| {
        let target = Target::start(python, "idle.py", &[])?;
        let recording = Recording::start(target.pid(), &[])?;
        let profile = recording.stop()?;
        ensure!(profile.targets.iter().all(|target| target.greenlet.is_none()), "{:?}", profile.targets);
        ensure!(profile.greenlets.is_empty() && profile.totals.switches == 0, "{:?}", profile.totals);
        let [thread] = profile.threads.as_slice() else { anyhow::bail!("{:?}", profile.threads) };
        near("all of its time", thread.clock.sum_ns(), profile.duration_ns, 0.001, 0)
    });
}

/// tests/targets/ledger.py.
#[derive(Debug, Deserialize)]
struct Ledger {
    lives: Vec<Life>,
    functions: Vec<Function>,
}

#[derive(Debug, Deserialize)]
struct Life {
    name: String,
    role: String,
    tid: u32,
    cpu_ns: u64,
}

#[derive(Debug, Deserialize)]
struct Function {
    function: String,
    state: String,
    calls: u64,
    cpu_ns: u64,
    wall_ns: u64,
}

/// A workload of wall.py that was recorded.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) profile: Profile,
    ledger: Ledger,
    /// What the scheduler counted meanwhile, by thread.
    spent: BTreeMap<u32, u64>,
    /// What greenscope said.
    pub(crate) said: String,
    /// What the target said when it was done.
    pub(crate) done: Value,
}

impl Recorded {
    /// The names of the greenlets or threads that have this part in the workload.
    pub(crate) fn of_role<'a>(&'a self, role: &'a str) -> impl Iterator<Item = &'a str> {
        self.ledger.lives.iter().filter(move |life| life.role == role).map(|life| life.name.as_str())
    }
}

fn recorded(python: &Python, name: &str, options: &[&str]) -> Result<Recorded> {
    as_root()?;
    recorded_by(Command::new(greenscope()?), workload(python, name)?, options)
}

/// A workload of wall.py that needs nothing else.
pub(crate) fn workload(python: &Python, name: &str) -> Result<Target> {
    Target::start(python, "wall.py", &[name, SECONDS])
}

/// Records a workload by a greenscope that this command starts.
pub(crate) fn recorded_by(command: Command, mut target: Target, options: &[&str]) -> Result<Recorded> {
    let pid = target.pid();
    let recording = Recording::start_by(command, pid, options)?;
    let said = recording.process.stderr.clone();
    let before = scheduled(pid)?;
    target.go()?;
    let done = target.hear("done")?;
    let after = scheduled(pid)?;
    let profile = recording.stop()?;
    target.finish()?;
    let ledger = done.pointer("/cpu").or_else(|| done.pointer("/books/cpu")).cloned().context("no ledger")?;
    let ledger = serde_json::from_value(ledger).context("the target's ledger")?;
    let ran = |sums: Option<&Sums>| sums.map_or(0, |sums| sums.ran_ns);
    let spent = after.iter().map(|(tid, sums)| (*tid, sums.ran_ns - ran(before.get(tid))));
    Ok(Recorded { profile, ledger, spent: spent.collect(), said: said.text(), done })
}

/// The scheduler's own sums of a thread.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums {
    /// On a CPU: `se.sum_exec_runtime`.
    pub(crate) ran_ns: u64,
    /// Ready and on none: `sched_info.run_delay`.
    pub(crate) delay_ns: u64,
}

impl Sums {
    /// What came to them since.
    pub(crate) fn since(self, before: Self) -> Self {
        Self { ran_ns: self.ran_ns - before.ran_ns, delay_ns: self.delay_ns - before.delay_ns }
    }
}

/// The sums of each thread, once all of them sleep: of one that runs they lack the time since
/// the last tick.
pub(crate) fn scheduled(pid: u32) -> Result<BTreeMap<u32, Sums>> {
    Deadline::usual().until("every thread asleep", || {
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let stat = fs::read_to_string(task?.path().join("stat"))?;
            if !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S')) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })?;
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = task?.path();
        let tid = path.file_name().and_then(|name| name.to_str()).context("a tid")?.parse()?;
        let text = fs::read_to_string(path.join("schedstat"))?;
        let mut sums = text.split_whitespace().map(str::parse);
        let mut sum = || anyhow::Ok(sums.next().context("schedstat")??);
        threads.insert(tid, Sums { ran_ns: sum()?, delay_ns: sum()? });
    }
    Ok(threads)
}

/// Within that share of the truth, and the slack.
pub(crate) fn near(what: &str, seen: Option<u64>, truth: u64, share: f64, slack: u64) -> Result<()> {
    let seen = seen.with_context(|| format!("{what} was not measured"))?;
    let bound = (truth as f64 * share) as u64 + slack;
    ensure!(seen.abs_diff(truth) <= bound, "{what}: {seen} ns, in truth {truth}");
    Ok(())
}

/// Each greenlet is what the ledger says.
pub(crate) fn greenlets(recorded: &Recorded) -> Result<()> {
    let Recorded { profile, ledger, spent, .. } = recorded;
    compare::complete(profile)?;
    let tid = ledger.lives.first().context("a life")?.tid;
    let truth = spent.get(&tid).copied().context("its thread")?;
    let thread = profile.threads.iter().find(|thread| thread.tid == Some(tid)).context("the thread")?;
    // It ran a little outside of the books as well: it read a pipe, and wrote.
    near("the thread on a CPU", thread.clock.on_cpu_ns, truth, 0.01, 2_000_000)?;
    near("all of the thread's time", thread.clock.sum_ns(), profile.duration_ns, 0.001, 0)?;
    let of_thread = profile.greenlets.iter().filter(|greenlet| greenlet.tid == Some(tid));
    let unknown: Vec<_> = of_thread.clone().filter(|one| one.clock.on_cpu_ns.is_none()).collect();
    ensure!(unknown.is_empty(), "without a clock: {unknown:?}");
    let sum = of_thread.map(|greenlet| greenlet.clock.on_cpu_ns).sum::<Option<u64>>();
    near("its greenlets on a CPU", sum, truth, 0.01, 2_000_000)?;
    for life in &ledger.lives {
        let greenlet = profile.greenlets.iter().find(|one| one.name.as_deref() == Some(&life.name));
        let greenlet = greenlet.with_context(|| format!("no greenlet {}", life.name))?;
        near(&life.name, greenlet.clock.on_cpu_ns, life.cpu_ns, 0.02, SLACK_NS)?;
        if life.role == "blocks" {
            let blocked = ledger.functions.iter().filter(|function| function.state == "blocked");
            let truth: u64 = blocked.map(|function| function.wall_ns - function.cpu_ns).sum();
            // By the wall it is off the CPU as well while it is ready and not let.
            let kept = greenlet.clock.preempted_ns.unwrap_or(0);
            let seen = greenlet.clock.blocked_ns.map(|ns| ns.max(truth.min(ns + kept)));
            near("blocked", seen, truth, 0.01, SLACK_NS)?;
        }
    }
    blocked(profile, ledger)?;
    samples(profile, ledger)
}

/// The stacks that blocked are of the calls that did, at least once each.
fn blocked(profile: &Profile, ledger: &Ledger) -> Result<()> {
    for function in ledger.functions.iter().filter(|function| function.state == "blocked") {
        let of_call = |stack: &&Stack| stack.state == State::Blocked && stack.contains(&function.function);
        let stacks: Vec<&Stack> = profile.stacks.iter().filter(of_call).collect();
        let (ns, count) = stacks.iter().fold((0, 0), |sum, stack| (sum.0 + stack.ns, sum.1 + stack.count));
        let truth = function.wall_ns - function.cpu_ns;
        let kept: u64 = profile.threads.iter().filter_map(|thread| thread.clock.preempted_ns).sum();
        near(&function.function, Some(ns.max(truth.min(ns + kept))), truth, 0.01, SLACK_NS)?;
        ensure!(
            count >= function.calls,
            "{count} times in {} of {} calls",
            function.function,
            function.calls
        );
    }
    Ok(())
}

/// The stacks on the CPU sum to the clocks, and are of those who burn as often as their books
/// say, but for a tenth: there are some seventy samples.
fn samples(profile: &Profile, ledger: &Ledger) -> Result<()> {
    let cpu: Vec<&Stack> = profile.stacks.iter().filter(|stack| stack.state == State::Cpu).collect();
    let sum: u64 = cpu.iter().map(|stack| stack.ns).sum();
    let clocks = profile.threads.iter().map(|thread| thread.clock.on_cpu_ns).sum::<Option<u64>>();
    let clocks = clocks.context("clocks")?;
    near("the stacks on the CPU", Some(sum), clocks, 0.001, 0)?;
    if profile.totals.cpu_samples.is_none() {
        // Nothing ticked.
        let sampled = cpu.iter().find(|stack| stack.count > 0);
        ensure!(sampled.is_none(), "{sampled:?}");
        return Ok(());
    }
    let sampled: u64 = cpu.iter().filter(|stack| stack.count > 0).map(|stack| stack.ns).sum();
    let burns = |stack: &&&Stack| {
        let names = stack.frames.iter().filter_map(|frame| frame.function.as_deref());
        let mut burning = ledger.functions.iter().filter(|function| function.state == "cpu");
        let names: Vec<&str> = names.collect();
        burning.any(|function| names.iter().any(|name| name.starts_with(function.function.as_str())))
            || names.contains(&"spin")
    };
    let burning: u64 = cpu.iter().filter(burns).map(|stack| stack.ns).sum();
    let booked: u64 = ledger
        .functions
        .iter()
        .filter(|function| function.state == "cpu")
        .map(|function| function.cpu_ns)
        .sum();
    let (seen, truth) = (burning as f64 / sampled as f64, booked as f64 / clocks as f64);
    ensure!(seen >= truth - 0.1, "{seen:.3} of the samples on what burns, in truth {truth:.3}: {cpu:?}");
    Ok(())
}

fn blocks(python: &Python) -> Result<()> {
    let Recorded { profile, ledger, .. } = recorded(python, "blocked", &["--block-threshold", "20ms"])?;
    let truth = ledger.functions.iter().find(|function| function.state == "blocked").context("who blocks")?;
    // Each time it burns 5 ms and blocks 20; whoever else is preempted may seem to block.
    let of_blocker = |block: &&Block| block.name.as_deref() == Some("blocker");
    let blocks: Vec<&Block> = profile.blocks.iter().filter(of_blocker).collect();
    ensure!(blocks.len() as u64 == truth.calls, "{} of {} blocks", blocks.len(), truth.calls);
    let mut held = 0;
    for block in &blocks {
        ensure!(block.clock.sum_ns() == Some(block.ns), "{block:?}");
        ensure!(block.clock.blocked_ns.is_some_and(|ns| ns >= 19_000_000), "{block:?}");
        // Ten sleepers and the victim; after the last block the main greenlet, which waits for all.
        ensure!(block.victims.is_none_or(|victims| victims <= 12), "{block:?}");
        ensure!(block.held_most_ns.is_none_or(|ns| ns <= block.ns), "{block:?}");
        held += u64::from(block.victims.is_some_and(|victims| victims > 0));
    }
    ensure!(held * 2 > truth.calls, "only {held} of {} blocks held anybody up", truth.calls);
    Ok(())
}

/// What sleeps in the same leaf on many paths, each path as often as by its books, and no
/// path that is not in them.
fn sleeps(python: &Python) -> Result<()> {
    let mut target = Target::start(python, "naps.py", &[SECONDS])?;
    let recording = Recording::start(target.pid(), &[])?;
    target.go()?;
    let done = target.hear("done")?;
    let profile = recording.stop()?;
    target.finish()?;
    compare::complete(&profile)?;
    let naps = done.pointer("/books/naps").cloned().context("no naps")?;
    let naps: Vec<Wait> = serde_json::from_value(naps)?;
    ensure!(naps.len() == 15, "{} paths: {naps:?}", naps.len());
    let asleep = naps.first().and_then(|nap| nap.frames.last());
    let seen: BTreeMap<&[Frame], &Stack> = profile
        .stacks
        .iter()
        .filter(|stack| stack.state == State::Blocked && stack.frames.last() == asleep)
        .map(|stack| (stack.frames.as_slice(), stack))
        .collect();
    for nap in &naps {
        let stack = seen.get(nap.frames.as_slice()).with_context(|| format!("not seen: {nap:?}"))?;
        // One that was preempted on its way to sleep may find that its time has come.
        let slack = nap.count / 20 + 5;
        ensure!(stack.count.abs_diff(nap.count) <= slack, "{} of {} naps: {nap:?}", stack.count, nap.count);
        ensure!(stack.ns <= nap.ns, "{} of {} ns: {nap:?}", stack.ns, nap.ns);
    }
    let strange: Vec<_> =
        seen.values().filter(|stack| naps.iter().all(|nap| nap.frames != stack.frames)).collect();
    ensure!(strange.is_empty(), "none of its paths: {strange:?}");
    Ok(())
}

/// Each thread is what the ledger says.
pub(crate) fn threads(recorded: &Recorded) -> Result<()> {
    let Recorded { profile, ledger, spent, .. } = recorded;
    ensure!(profile.totals.switches == 0, "{:?}", profile.totals);
    for life in &ledger.lives {
        let thread =
            profile.threads.iter().find(|thread| thread.tid == Some(life.tid)).context("a thread")?;
        ensure!(thread.name.as_deref() == Some(&life.name), "{thread:?}");
        let truth = spent.get(&life.tid).copied().context("its time")?;
        near(&life.name, thread.clock.on_cpu_ns, truth, 0.01, 2_000_000)?;
        near("all of its time", thread.clock.sum_ns(), profile.duration_ns, 0.001, 0)?;
    }
    samples(profile, ledger)
}
