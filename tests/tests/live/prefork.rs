//! Masters and workers, gunicorn's and uWSGI's: recycled, reloaded, and replaced.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tests::compare;
use tests::deadline::Deadline;
use tests::kind;
use tests::place::{Python, target_program};
use tests::process::Process;
use tests::profile::{Profile, Stack, State};
use tests::recording::{Recording, parse};
use tests::runner::{Cases, skip};

use crate::children::short_lived;

const REQUESTS: usize = 150;

pub(crate) fn cases(cases: &mut Cases) {
    cases.each("recycled_gunicorn_workers_are_counted_whole", recycled);
    cases.each("reloaded_gunicorn_workers_are_counted_whole", reloaded);
    cases.each("a_gunicorn_that_takes_anothers_place_is_counted_whole", replaced);
    cases.once("recycled_uwsgi_workers_are_counted_whole", || uwsgi(&Python::find("uwsgi")?));
}

/// A master with its recording, and its workers' books.
struct Service {
    master: Process,
    recording: Recording,
    books: TempDir,
    /// How often each worker answered.
    answers: BTreeMap<u32, usize>,
}

/// Who answered.
#[derive(Clone, Copy)]
struct Answer {
    worker: u32,
    master: u32,
}

impl Service {
    fn gunicorn(python: &Python) -> Result<Self> {
        let mut command = Command::new(&python.exe);
        // Not by `-m`: on USR2 it starts itself again by its own path.
        command.arg(python.exe.with_file_name("gunicorn"));
        command.arg("-c").arg(target_program("prefork.py")).arg("prefork:application");
        // Said when it listens, before its first fork.
        Self::start(command, TempDir::new()?, "Using worker", &[])
    }

    fn uwsgi(python: &Python) -> Result<Self> {
        let books = TempDir::new()?;
        let exe = python.exe.with_file_name("uwsgi");
        if !exe.exists() {
            return Err(skip("uWSGI could not be built"));
        }
        let mut command = Command::new(exe);
        let venv = python.exe.parent().and_then(Path::parent).context("an environment")?;
        command.arg("--virtualenv").arg(venv).arg("--http-socket").arg(books.path().join("socket"));
        command.args(["--module", "prefork_uwsgi", "--master", "--gevent", "10", "--processes", "2"]);
        command.args(["--max-requests", "20", "--min-worker-lifetime", "1", "--worker-reload-mercy", "3"]);
        command.args(["--reload-mercy", "3", "--die-on-term"]);
        // So often that some ticks meet Python: each worker computes for milliseconds only.
        Self::start(command, books, "spawned uWSGI worker 2", &["--rate", "997"])
    }

    /// Starts what says `line` before it switches for the first time.
    fn start(mut command: Command, books: TempDir, line: &str, options: &[&str]) -> Result<Self> {
        let config = target_program("prefork.py");
        let folder = config.parent().context("a folder")?;
        let master = Process::start(
            command
                .current_dir(folder)
                .env("PYTHONPATH", folder)
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .env("BOOKS", books.path()),
        )?;
        master.stderr.line(0, Deadline::usual(), line, |said| said.contains(line))?;
        let recording = Recording::start(master.pid(), options)?;
        fs::write(books.path().join("go"), "")?;
        Ok(Self { master, recording, books, answers: BTreeMap::new() })
    }

    /// A request over a connection of its own; tried again while a worker that ends resets it.
    fn ask(&mut self) -> Result<Answer> {
        let socket: PathBuf = self.books.path().join("socket");
        let deadline = Deadline::usual();
        while !deadline.passed() {
            let mut answer = String::new();
            let asked = UnixStream::connect(&socket).and_then(|mut stream| {
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
                stream.read_to_string(&mut answer)
            });
            if asked.is_ok() && answer.starts_with("HTTP/1.0 200") {
                let (_, body) = answer.split_once("\r\n\r\n").context("a body")?;
                let (worker, master) = body.split_once(' ').context("two pids")?;
                let worker = worker.parse()?;
                *self.answers.entry(worker).or_default() += 1;
                return Ok(Answer { worker, master: master.parse()? });
            }
        }
        bail!("no answer in time after {:?}", self.answers)
    }

    fn ask_often(&mut self) -> Result<()> {
        (0..REQUESTS).try_for_each(|_| self.ask().map(drop))
    }

    /// Asks until somebody new answers.
    fn ask_until(&mut self, new: impl Fn(Answer) -> bool) -> Result<Answer> {
        Deadline::usual()
            .until("another one to answer", || Ok(Some(self.ask()?).filter(|answer| new(*answer))))
    }

    /// Asks until both workers of a master have answered: one that is told to end before it
    /// listens to signals does not.
    fn ask_both(&mut self, new: impl Fn(Answer) -> bool) -> Result<Answer> {
        let first = self.ask_until(&new)?;
        self.ask_until(|answer| new(answer) && answer.master == first.master && answer.worker != first.worker)
    }

    /// Waits until every process has ended, and compares what each did with its books.
    fn finish(self) -> Result<Profile> {
        self.finish_unowned(false)
    }

    /// The same where whose a request is may not be known, and is counted.
    fn finish_unowned(self, unowned: bool) -> Result<Profile> {
        let Self { recording, books, answers, .. } = self;
        let requests: usize = answers.values().sum();
        let mut profile = parse(&recording.finish()?)?;
        let truth = worker_books(books.path())?;
        let sum: u64 = truth.values().sum();
        kind::row("switches", sum, profile.totals.switches);
        kind::row("ticks in the workers' Python", "some", ticks(&profile).0);
        short_lived(&mut profile);
        if unowned && let Some(count) = profile.totals.faults.remove("WIRE_UNOWNED") {
            ensure!(count <= requests as u64, "{count} of {requests} requests");
        }
        compare::complete(&profile)?;
        // The first two, and one at least in the place of one of them.
        ensure!(truth.len() > 2, "{} workers", truth.len());
        let seen = switches_by_process(&profile);
        ensure!(seen == truth, "greenscope {seen:?}, books {truth:?}");
        ensure!(profile.totals.switches == sum, "{} instead of {sum}", profile.totals.switches);
        // Each request slept 10 ms, in whichever worker.
        let slept = profile.waiting_ns("query");
        let least = requests as u64 * 10_000_000;
        ensure!(slept >= least && slept < 2 * least, "{slept} ns asleep in {requests} requests");
        Ok(profile)
    }
}

fn recycled(python: &Python) -> Result<()> {
    let mut service = Service::gunicorn(python)?;
    service.ask_often()?;
    let master = service.master.pid();
    service.master.signal(Signal::TERM)?;
    service.master.wait(Deadline::usual())?;
    let profile = service.finish()?;
    // It waits for signals, and once in between for a worker to end.
    let waits = |stack: &&Stack| stack.pid == master && stack.contains("Arbiter.wait_for_signals");
    let blocked = profile.stacks.iter().filter(waits).find(|stack| stack.state == State::Blocked);
    ensure!(blocked.is_none(), "a master that waits for signals is blocked: {blocked:?}");
    let idle: u64 = profile.stacks.iter().filter(waits).map(|stack| stack.ns).sum();
    ensure!(idle > 0, "a master that never waited for signals");
    Ok(())
}

fn reloaded(python: &Python) -> Result<()> {
    let mut service = Service::gunicorn(python)?;
    service.ask_both(|_| true)?;
    let before: Vec<u32> = worker_books(service.books.path())?.into_keys().collect();
    service.master.signal(Signal::HUP)?;
    service.ask_both(|answer| !before.contains(&answer.worker))?;
    service.ask_often()?;
    service.master.signal(Signal::TERM)?;
    service.master.wait(Deadline::usual())?;
    service.finish().map(drop)
}

fn replaced(python: &Python) -> Result<()> {
    let mut service = Service::gunicorn(python)?;
    service.ask_both(|_| true)?;
    let old = service.master.pid();
    service.master.signal(Signal::USR2)?;
    let new = service.ask_both(|answer| answer.master != old)?.master;
    service.master.signal(Signal::TERM)?;
    service.master.wait(Deadline::usual())?;
    service.ask_often()?;
    let pid = i32::try_from(new).ok().and_then(Pid::from_raw).context("a pid")?;
    kill_process(pid, Signal::TERM)?;
    let profile = service.finish()?;
    let row = profile.targets.iter().find(|target| target.pid == new && target.unseen_ns.is_some());
    let row = row.context("the new master is not among the targets")?;
    ensure!(row.parent == Some(old), "its parent is {:?}", row.parent);
    let workers = profile.targets.iter().filter(|target| target.parent == Some(new)).count();
    ensure!(workers >= 2, "{workers} workers of the new master");
    Ok(())
}

fn uwsgi(python: &Python) -> Result<()> {
    let mut service = Service::uwsgi(python)?;
    let first = service.ask_both(|_| true)?;
    let before: Vec<u32> = worker_books(service.books.path())?.into_keys().collect();
    // Each lives for a second, however many it answers.
    service.ask_both(|answer| answer.master == first.master && !before.contains(&answer.worker))?;
    // One that is not about to be recycled: told to end when it begins it waits for a minute.
    Deadline::usual().until("two young workers", || {
        let second = service.ask_both(|_| true)?;
        let other = service.ask_until(|answer| answer.worker != second.worker)?;
        let young = |worker| service.answers.get(&worker).is_some_and(|answers| *answers < 10);
        Ok((young(second.worker) && young(other.worker)).then_some(()))
    })?;
    service.master.signal(Signal::TERM)?;
    service.master.wait(Deadline::usual())?;
    // Its core reads for a greenlet that it had before.
    let profile = service.finish_unowned(true)?;
    // C forks its workers, and tells Python nothing of it: they have their stacks all the same.
    let (python, native) = ticks(&profile);
    ensure!(python > 0, "no tick in the workers' Python, {native} elsewhere");
    Ok(())
}

/// How many met the workers' Python, and how many something else.
fn ticks(profile: &Profile) -> (u64, u64) {
    let cpu = profile.stacks.iter().filter(|stack| stack.state == State::Cpu);
    let (python, native): (Vec<_>, Vec<_>) = cpu.partition(|stack| {
        stack.contains("application") || stack.contains("Hub.run") || stack.contains("begin")
    });
    let count = |stacks: Vec<&Stack>| stacks.iter().map(|stack| stack.count).sum::<u64>();
    (count(python), count(native))
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

pub(crate) fn switches_by_process(profile: &Profile) -> BTreeMap<u32, u64> {
    let mut sums = BTreeMap::new();
    for greenlet in profile.greenlets.iter().filter(|greenlet| greenlet.switches_in > 0) {
        *sums.entry(greenlet.pid).or_default() += greenlet.switches_in;
    }
    sums
}
