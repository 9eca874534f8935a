//! Targets in states that a profiler meets at 3 a.m.: stopped, traced, ending.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tests::compare;
use tests::deadline::Deadline;
use tests::place::Python;
use tests::process::Process;
use tests::profile::{Profile, Stack, State};
use tests::recording::Recording;
use tests::runner::Cases;
use tests::target::Target;

/// Takes a process under trace until its input ends: `seized` without stopping it,
/// `attached` and stopped by it until its input's first byte.
const TRACER: &str = "
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
ptrace = libc.ptrace
ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
PTRACE_CONT, PTRACE_ATTACH, PTRACE_SEIZE = 7, 16, 0x4206
way, pid = sys.argv[1], int(sys.argv[2])
def ask(request):
    if ptrace(request, pid, None, None) != 0:
        sys.exit(f'ptrace: {os.strerror(ctypes.get_errno())}')
ask(PTRACE_SEIZE if way == 'seized' else PTRACE_ATTACH)
if way == 'attached':
    os.waitpid(pid, 0)
print('traced', flush=True)
if way == 'attached':
    os.read(0, 1)
    ask(PTRACE_CONT)
os.read(0, 1)
";

pub(crate) fn cases(cases: &mut Cases) {
    cases.each("a_stopped_target_is_recorded_and_stays_stopped", stopped);
    for way in ["seized", "attached"] {
        cases.each(format!("a_traced_target_is_recorded_exactly/{way}"), move |python| traced(python, way));
    }
    cases.each("threads_that_end_at_once_keep_their_time", brief);
    for place in ["before", "parent", "child", "libc"] {
        let name = format!("a_target_inside_a_fork_is_recorded_exactly/{place}");
        cases.each(name, move |python| inside_fork(python, place, false));
    }
    for place in ["child", "libc"] {
        let name = format!("a_child_still_inside_its_fork_is_recorded_exactly/{place}");
        cases.each(name, move |python| inside_fork(python, place, true));
    }
}

fn stopped(python: &Python) -> Result<()> {
    let mut target = Target::start(python, "switches.py", &["greenlet"])?;
    target.process.signal(Signal::STOP)?;
    until_in(&target, 'T')?;
    let recording = Recording::start(target.pid(), &[])?;
    let began = Instant::now();
    // It would go on, were it let.
    target.go()?;
    stays(&recording)?;
    ensure!(state(&target)? == 'T', "greenscope let it run");
    let stopped = began.elapsed();
    target.process.signal(Signal::CONT)?;
    let books = target.books()?;
    let profile = recording.stop()?;
    compare::switches(&profile, &books.book)?;
    compare::complete(&profile)?;
    was_kept(&profile, target.pid(), stopped)?;
    target.finish()
}

fn traced(python: &Python, way: &str) -> Result<()> {
    let mut target = Target::start(python, "switches.py", &["greenlet"])?;
    let pid = target.pid().to_string();
    let mut tracer = Process::start(Command::new(&python.exe).args(["-c", TRACER, way, &pid]))?;
    tracer.stdout.line(0, Deadline::usual(), "traced", |line| line == "traced")?;
    let mut stopped = Duration::ZERO;
    if way == "attached" {
        until_in(&target, 't')?;
    }
    let recording = Recording::start(target.pid(), &[])?;
    let began = Instant::now();
    target.go()?;
    if way == "attached" {
        stays(&recording)?;
        ensure!(state(&target)? == 't', "greenscope let it run");
        stopped = began.elapsed();
        tracer.write(b"x")?;
    }
    let books = target.books()?;
    let profile = recording.stop()?;
    compare::switches(&profile, &books.book)?;
    compare::complete(&profile)?;
    was_kept(&profile, target.pid(), stopped)?;
    tracer.close_stdin();
    tracer.wait(Deadline::usual())?;
    target.finish()
}

fn until_in(target: &Target, wanted: char) -> Result<()> {
    Deadline::usual().until("the state", || Ok((state(target)? == wanted).then_some(())))
}

/// Long enough to be seen in the clocks.
fn stays(recording: &Recording) -> Result<()> {
    let ended = recording.process.ended(Deadline::after(Duration::from_millis(300)))?;
    ensure!(!ended, "it ended: {}", recording.process.stderr.text());
    Ok(())
}

/// All of its first thread's time is in the clocks, and it was kept from running as long
/// as it was stopped.
fn was_kept(profile: &Profile, tid: u32, stopped: Duration) -> Result<()> {
    let thread = profile.threads.iter().find(|thread| thread.tid == Some(tid)).context("its thread")?;
    let sum = thread.clock.sum_ns().context("a clock")?;
    ensure!(sum.abs_diff(profile.duration_ns) <= profile.duration_ns / 1000, "{sum} of {thread:?}");
    let kept = thread.clock.preempted_ns.map(Duration::from_nanos);
    ensure!(kept >= Some(stopped), "kept from running {kept:?}, stopped {stopped:?}");
    Ok(())
}

/// Recorded is the first process with its children, or the `child` alone.
fn inside_fork(python: &Python, place: &str, child: bool) -> Result<()> {
    let mut target = Target::start(python, "inside_fork.py", &[place])?;
    let waits = target.facts.get("waits").and_then(Value::as_u64).context("who waits")?;
    let recorded = if child { u32::try_from(waits)? } else { target.pid() };
    let recording = Recording::start(recorded, &[])?;
    target.go()?;
    let done = target.hear("done")?;
    let count = |name| done.pointer(name).and_then(Value::as_u64).context(name);
    let truth = count("/books/child")? + if child { 0 } else { count("/books/parent")? };
    let profile = recording.stop()?;
    ensure!(profile.totals.switches == truth, "{} instead of {truth}", profile.totals.switches);
    ensure!(profile.switches_in() == truth, "{} by greenlet", profile.switches_in());
    compare::complete(&profile)?;
    let child_pid = u32::try_from(count("/books/child_pid")?)?;
    let pids: BTreeSet<u32> = profile.targets.iter().map(|target| target.pid).collect();
    let expected = if child { [child_pid].into() } else { BTreeSet::from([target.pid(), child_pid]) };
    ensure!(pids == expected, "recorded {pids:?} instead of {expected:?}");
    target.finish()
}

fn brief(python: &Python) -> Result<()> {
    let mut target = Target::start(python, "brief.py", &[])?;
    let recording = Recording::start(target.pid(), &[])?;
    target.go()?;
    let done = target.hear("done")?;
    let count = |name| done.pointer(name).and_then(Value::as_u64).context(name);
    let (threads, cpu_ns) = (count("/books/threads")?, count("/books/cpu_ns")?);
    let profile = recording.stop()?;
    let seen = profile.threads.len() as u64;
    ensure!(seen == threads + 1, "{seen} threads instead of {threads} and the main one");
    let on_cpu: Option<u64> = profile.threads.iter().map(|thread| thread.clock.on_cpu_ns).sum();
    let on_cpu = on_cpu.context("a thread without a clock")?;
    // Some of it lies before and behind the target's own two looks.
    ensure!(on_cpu.abs_diff(cpu_ns) < cpu_ns / 100 + 5_000_000, "{on_cpu} ns on the CPU, books {cpu_ns}");
    ensure!(profile.totals.cpu_samples.is_some_and(|ticks| ticks > 20), "{:?}", profile.totals.cpu_samples);
    // Ticks of threads that were dead before anybody looked have their stacks all the same.
    let ticks = |wanted: &dyn Fn(&&Stack) -> bool| -> u64 {
        let cpu = profile.stacks.iter().filter(|stack| stack.state == State::Cpu);
        cpu.filter(wanted).map(|stack| stack.count).sum()
    };
    let (burning, all) = (ticks(&|stack| stack.contains("burn")), ticks(&|_| true));
    ensure!(burning * 10 >= all * 8, "{burning} of {all} ticks in what burns");
    target.finish()
}

/// What the process is in, by the kernel's letter.
fn state(target: &Target) -> Result<char> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", target.pid()))?;
    let (_, rest) = stat.rsplit_once(") ").context("a state")?;
    rest.chars().next().context("a letter")
}
