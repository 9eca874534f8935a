//! Targets in states that a profiler meets at 3 a.m.: stopped, traced, ending.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tests::compare;
use tests::deadline::Deadline;
use tests::place::Python;
use tests::process::Process;
use tests::recording::Recording;
use tests::runner::Cases;
use tests::target::Target;

/// Takes a process under trace without stopping it, until its input ends.
const TRACER: &str = "
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE = 0x4206
if libc.ptrace(PTRACE_SEIZE, int(sys.argv[1]), None, None) != 0:
    sys.exit(f'ptrace: {os.strerror(ctypes.get_errno())}')
print('traced', flush=True)
sys.stdin.read()
";

pub(crate) fn cases(cases: &mut Cases) {
    cases.each("a_stopped_target_is_recorded_and_stays_stopped", stopped);
    cases.each("a_traced_target_is_recorded_exactly", traced);
    cases.each("threads_that_end_at_once_keep_their_time", brief);
}

fn stopped(python: &Python) -> Result<()> {
    let mut target = Target::start(python, "switches.py", &["greenlet"])?;
    target.process.signal(Signal::STOP)?;
    let deadline = Deadline::usual();
    while state(&target)? != 'T' {
        ensure!(!deadline.passed(), "it does not stop");
    }
    let recording = Recording::start(target.pid(), &[])?;
    // It would go on, were it let.
    target.go()?;
    ensure!(state(&target)? == 'T', "greenscope let it run");
    target.process.signal(Signal::CONT)?;
    let books = target.books()?;
    let profile = recording.stop()?;
    compare::switches(&profile, &books.book)?;
    target.finish()
}

fn traced(python: &Python) -> Result<()> {
    let mut target = Target::start(python, "switches.py", &["greenlet"])?;
    let mut tracer =
        Process::start(Command::new(&python.exe).args(["-c", TRACER, &target.pid().to_string()]))?;
    tracer.stdout.line(0, Deadline::usual(), "traced", |line| line == "traced")?;
    let recording = Recording::start(target.pid(), &[])?;
    target.go()?;
    let books = target.books()?;
    let profile = recording.stop()?;
    compare::switches(&profile, &books.book)?;
    compare::complete(&profile)?;
    tracer.close_stdin();
    tracer.wait(Deadline::usual())?;
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
    target.finish()
}

/// What the process is in, by the kernel's letter.
fn state(target: &Target) -> Result<char> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", target.pid()))?;
    let (_, rest) = stat.rsplit_once(") ").context("a state")?;
    rest.chars().next().context("a letter")
}
