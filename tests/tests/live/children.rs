//! Processes that targets fork.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tests::compare;
use tests::deadline::Deadline;
use tests::place::{Python, target_program};
use tests::process::Process;
use tests::profile::Profile;
use tests::recording::{Recording, parse};
use tests::runner::Cases;
use tests::target::Target;

const REQUESTS: usize = 150;

pub(crate) fn cases(cases: &mut Cases) {
    for probe in ["switchstack", "pair"] {
        cases.each(format!("forked_processes_are_followed_to_their_end/{probe}"), move |python| {
            forks(python, &["--probe", probe])
        });
    }
    cases.each("children_are_left_out_when_they_are_not_wanted", not_wanted);
    cases.each("recycled_gunicorn_workers_are_counted_whole", gunicorn);
    cases.each("the_greenlets_of_an_ended_child_are_counted_once", churn);
}

/// The children's greenlets are looked up among those of a process that goes on.
fn churn(python: &Python) -> Result<()> {
    let mut target = Target::start(python, "churn.py", &[])?;
    let recording = Recording::start(target.pid(), &["--max-greenlets", "1000000"])?;
    target.go()?;
    let done = target.hear("done")?;
    let mut profile = recording.stop()?;
    short_lived(&mut profile);
    compare::complete(&profile)?;
    let own = done.pointer("/books/own").and_then(Value::as_u64).context("own")?;
    let children = done.pointer("/books/children").cloned().context("children")?;
    let mut truth: BTreeMap<u32, u64> = serde_json::from_value(children)?;
    truth.insert(target.pid(), own);
    let seen = switches_by_process(&profile);
    ensure!(seen == truth, "greenscope {seen:?}, books {truth:?}");
    target.finish()
}

fn forks(python: &Python, options: &[&str]) -> Result<()> {
    let mut target = Target::start(python, "forks.py", &[])?;
    let recording = Recording::start(target.pid(), options)?;
    target.go()?;
    let done = target.hear("done")?;
    let count = |name| done.pointer(name).and_then(Value::as_u64).context(name);
    let mut profile = recording.stop()?;
    short_lived(&mut profile);
    compare::complete(&profile)?;
    let (switches, processes) = (count("/books/switches")?, count("/books/processes")?);
    ensure!(profile.totals.switches == switches, "{} instead of {switches}", profile.totals.switches);
    ensure!(profile.switches_in() == switches, "{} by greenlet", profile.switches_in());
    let seen = profile.targets.len() as u64;
    ensure!(seen == processes, "{seen} processes instead of {processes}");
    let child = target.facts.get("child").and_then(Value::as_u64).context("the child's pid")?;
    let parent =
        |pid: u64| profile.targets.iter().find(|target| u64::from(target.pid) == pid).map(|t| t.parent);
    ensure!(parent(child) == Some(Some(target.pid())), "the child that was there: {:?}", parent(child));
    ensure!(parent(target.pid().into()) == Some(None), "the target has a parent");
    target.finish()
}

/// Takes out what is lost of processes that end before anybody could look at them:
/// greenlets that never switched, and the names of code that only they had. In a process
/// that begins and ends all the time a tick meets frames being linked more often, and in
/// the middle of an exec the thread state is not there. Each begins with a new element of
/// task storage, and a tick in the middle of its making can't have one: its stack is sent
/// by the next. (A switch that was lost so would be missing in the totals.)
fn short_lived(profile: &mut Profile) {
    for fault in [
        "ENUMERATION_INCOMPLETE",
        "CODE_UNREADABLE",
        "CODE_CHANGED",
        "CODE_REUSED",
        "TICK_TORN",
        "THREAD_STATE",
        "NO_TASK_STORAGE",
    ] {
        profile.totals.faults.remove(fault);
    }
}

fn not_wanted(python: &Python) -> Result<()> {
    let mut target = Target::start(python, "forks.py", &[])?;
    let recording = Recording::start(target.pid(), &["--no-children"])?;
    target.go()?;
    let done = target.hear("done")?;
    let own = done.pointer("/books/own").and_then(Value::as_u64).context("own")?;
    let profile = recording.stop()?;
    let pids: Vec<u32> = profile.targets.iter().map(|target| target.pid).collect();
    ensure!(pids == [target.pid()], "recorded {pids:?}");
    ensure!(profile.totals.switches == own, "{} instead of {own}", profile.totals.switches);
    target.finish()
}

fn gunicorn(python: &Python) -> Result<()> {
    let books = TempDir::new()?;
    let config = target_program("prefork.py");
    let folder = config.parent().context("a folder")?;
    let mut master = Process::start(
        Command::new(&python.exe)
            .args(["-m", "gunicorn", "-c"])
            .arg(&config)
            .arg("prefork:application")
            .current_dir(folder)
            .env("PYTHONPATH", folder)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("BOOKS", books.path()),
    )?;
    // Said when it listens, before its first fork.
    master.stderr.line(0, Deadline::usual(), "Using worker", |line| line.contains("Using worker"))?;
    let recording = Recording::start(master.pid(), &[])?;
    fs::write(books.path().join("go"), "")?;
    for number in 0..REQUESTS {
        ask(&books.path().join("socket")).with_context(|| format!("request {number}"))?;
    }
    master.signal(Signal::TERM)?;
    master.wait(Deadline::usual())?;
    let mut profile = parse(&recording.finish()?)?;
    short_lived(&mut profile);
    compare::complete(&profile)?;
    let truth = worker_books(books.path())?;
    // The first two, and one at least in the place of one of them.
    ensure!(truth.len() > 2, "{} workers", truth.len());
    let seen = switches_by_process(&profile);
    ensure!(seen == truth, "greenscope {seen:?}, books {truth:?}");
    let sum: u64 = truth.values().sum();
    ensure!(profile.totals.switches == sum, "{} instead of {sum}", profile.totals.switches);
    // Each request slept 10 ms, in whichever worker.
    let slept = profile.waiting_ns("query");
    let least = REQUESTS as u64 * 10_000_000;
    ensure!(slept >= least && slept < 2 * least, "{slept} ns asleep");
    Ok(())
}

/// A request over a connection of its own; tried again while a worker that ends resets it.
fn ask(socket: &Path) -> Result<()> {
    let deadline = Deadline::usual();
    while !deadline.passed() {
        let mut answer = String::new();
        let asked = UnixStream::connect(socket).and_then(|mut stream| {
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            stream.read_to_string(&mut answer)
        });
        if asked.is_ok() && answer.starts_with("HTTP/1.0 200") {
            return Ok(());
        }
    }
    bail!("no answer in time")
}

fn worker_books(folder: &Path) -> Result<BTreeMap<u32, u64>> {
    let mut books = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix("worker-")) else {
            continue;
        };
        let count: [u8; 8] = fs::read(entry.path())?.try_into().ok().context("eight bytes")?;
        books.insert(pid.parse()?, u64::from_le_bytes(count));
    }
    Ok(books)
}

fn switches_by_process(profile: &Profile) -> BTreeMap<u32, u64> {
    let mut sums = BTreeMap::new();
    for greenlet in profile.greenlets.iter().filter(|greenlet| greenlet.switches_in > 0) {
        *sums.entry(greenlet.pid).or_default() += greenlet.switches_in;
    }
    sums
}
