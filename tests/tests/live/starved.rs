//! Threads that are ready and have no CPU, held against the scheduler's own sum.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tests::kind;
use tests::place::{Python, as_root};
use tests::profile::{Profile, State};
use tests::recording::Recording;
use tests::runner::Cases;
use tests::target::Target;

use crate::clocks::{Sums, near, scheduled};

const SECONDS: &str = "2";
/// What the threads wait for a CPU before and after their work: nobody is in their way then.
const SLACK_NS: u64 = 5_000_000;

pub(crate) fn cases(cases: &mut Cases) {
    for workload in ["napping", "busy"] {
        let name = format!("a_starved_service_is_ready_and_does_not_idle/{workload}");
        cases.each(name, move |python| {
            let starved = starved(python, workload, "2", None)?;
            starved.is_ready(0.02)
        });
        let name = format!("a_service_that_used_up_its_quota_is_ready/{workload}");
        cases.each(name, move |python| {
            as_root()?;
            let quota = Quota::new()?;
            // A service that naps uses up nothing: somebody else of its group does.
            let neighbours = if workload == "busy" { "0" } else { "1" };
            let starved = starved(python, workload, neighbours, Some(&quota))?;
            let throttled = starved.throttled_ns;
            ensure!(throttled > 500_000_000, "{throttled} ns throttled");
            if workload == "busy" {
                // One of its greenlets always could run: it was ready all that time, and more
                // where others had the CPU.
                let preempted = starved.profile.threads.iter().map(|thread| thread.clock.preempted_ns);
                let preempted = preempted.sum::<Option<u64>>().context("clocks")?;
                ensure!(preempted >= throttled - throttled / 20, "{preempted} ns ready of {throttled}");
            }
            starved.is_ready(0.05)
        });
    }
    cases.each("a_sleep_ends_when_its_thread_is_woken", |python| {
        let starved = starved(python, "threads", "2", None)?;
        starved.is_ready(0.02)?;
        let Starved { profile, naps, nap_ns, .. } = &starved;
        let napped = profile.stacks.iter().filter(|stack| {
            stack.state == State::Blocked
                && stack.frames.last().is_some_and(|leaf| leaf.function.as_deref() == Some("nap"))
        });
        // The timer may come a tenth of a millisecond late. A thread that is kept from the CPU
        // between its look at the clock and the sleep sleeps for less.
        let (napped, most) = (napped.map(|stack| stack.ns).sum::<u64>(), naps * (nap_ns + 100_000));
        ensure!(napped > 0 && napped <= most, "{napped} ns asleep in naps of {most}");
        Ok(())
    });
}

/// What was recorded of a service that was kept from the CPU.
struct Starved {
    profile: Profile,
    /// What the scheduler counted meanwhile, by thread.
    truth: BTreeMap<u32, Sums>,
    /// By the cgroup.
    throttled_ns: u64,
    naps: u64,
    nap_ns: u64,
}

fn starved(python: &Python, workload: &str, neighbours: &str, quota: Option<&Quota>) -> Result<Starved> {
    let mut target = Target::start(python, "starved.py", &[workload, neighbours, SECONDS])?;
    let pid = target.pid();
    // The neighbours are its children.
    let recording = Recording::start(pid, &["--no-children"])?;
    if let Some(quota) = quota {
        quota.hold(pid)?;
    }
    let before = scheduled(pid)?;
    target.go()?;
    let done = target.hear("done")?;
    let after = scheduled(pid)?;
    let throttled_ns = quota.map_or(Ok(0), Quota::throttled_ns)?;
    let profile = recording.stop()?;
    target.finish()?;
    let fact = |name: &str| {
        let fact = done.pointer(&format!("/books/{name}")).and_then(serde_json::Value::as_u64);
        fact.with_context(|| format!("no {name}"))
    };
    let truth: BTreeMap<u32, Sums> = after
        .into_iter()
        .map(|(tid, sums)| (tid, sums.since(before.get(&tid).copied().unwrap_or_default())))
        .collect();
    let threads =
        profile.threads.iter().filter(|thread| thread.tid.is_some_and(|tid| truth.contains_key(&tid)));
    let ready = threads.map(|thread| thread.clock.preempted_ns).sum();
    kind::row(
        "ready without a CPU",
        kind::ms(truth.values().map(|sums| sums.delay_ns).sum()),
        kind::ms_if_told(ready),
    );
    Ok(Starved { profile, truth, throttled_ns, naps: fact("naps")?, nap_ns: fact("nap_ns")? })
}

impl Starved {
    /// Each thread that is left was ready for as long as the scheduler says, and what its
    /// greenlets were together is the same.
    fn is_ready(&self, share: f64) -> Result<()> {
        let Self { profile, truth, .. } = self;
        ensure!(truth.values().any(|sums| sums.delay_ns > 500_000_000), "nobody starved: {truth:?}");
        for (tid, sums) in truth {
            let thread = profile.threads.iter().find(|thread| thread.tid == Some(*tid));
            let thread = thread.with_context(|| format!("no thread {tid}: {:?}", profile.threads))?;
            let clock = thread.clock;
            near("ready", clock.preempted_ns, sums.delay_ns, share, SLACK_NS)?;
            near("on a CPU", clock.on_cpu_ns, sums.ran_ns, 0.02, SLACK_NS)?;
            if *tid != thread.pid {
                continue;
            }
            near("all of its time", clock.sum_ns(), profile.duration_ns, 0.001, 0)?;
            let of_thread = profile.greenlets.iter().filter(|greenlet| greenlet.tid == Some(*tid));
            let idle = of_thread.clone().map(|greenlet| greenlet.clock.idle_ns).sum::<Option<u64>>();
            let ready = of_thread.map(|greenlet| greenlet.clock.preempted_ns).sum::<Option<u64>>();
            if profile.totals.switches > 0 {
                near("its greenlets ready", ready, sums.delay_ns, share, SLACK_NS)?;
                let most = profile.duration_ns - sums.delay_ns - sums.ran_ns;
                ensure!(idle.is_some_and(|idle| idle <= most + SLACK_NS), "{idle:?} ns idle of {most}");
            }
        }
        let preempted = |stack: &&tests::profile::Stack| stack.state == State::Preempted;
        let stacks: u64 = profile.stacks.iter().filter(preempted).map(|stack| stack.ns).sum();
        let clocks = profile.threads.iter().map(|thread| thread.clock.preempted_ns).sum::<Option<u64>>();
        near("the stacks", Some(stacks), clocks.context("clocks")?, 0.001, 0)
    }
}

/// A cgroup of ours, whose processes have a fifth of a CPU; gone when dropped.
struct Quota {
    path: PathBuf,
    /// Whether it is one of the second version.
    unified: bool,
}

impl Quota {
    fn new() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let old = mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (path, kind, options) = (words.next()?, words.next()?, words.next()?);
            (kind == "cgroup" && options.split(',').any(|option| option == "cpu")).then_some(path)
        });
        let unified = old.is_none();
        let root = PathBuf::from(old.unwrap_or("/sys/fs/cgroup"));
        if unified {
            fs::write(root.join("cgroup.subtree_control"), "+cpu").context("the controller of the CPU")?;
        }
        let quota = Self { path: root.join(format!("greenscope-{}", std::process::id())), unified };
        fs::create_dir(&quota.path).with_context(|| format!("{}", quota.path.display()))?;
        if unified {
            quota.set("cpu.max", "20000 100000")?;
        } else {
            quota.set("cpu.cfs_period_us", "100000")?;
            quota.set("cpu.cfs_quota_us", "20000")?;
        }
        Ok(quota)
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        fs::write(self.path.join(file), value).with_context(|| format!("{file} of {}", self.path.display()))
    }

    /// Its processes are held to it from now on.
    fn hold(&self, pid: u32) -> Result<()> {
        self.set("cgroup.procs", &pid.to_string())
    }

    fn throttled_ns(&self) -> Result<u64> {
        let stat = fs::read_to_string(self.path.join("cpu.stat"))?;
        let (name, unit) = if self.unified { ("throttled_usec ", 1_000) } else { ("throttled_time ", 1) };
        let value = stat.lines().find_map(|line| line.strip_prefix(name)).context("cpu.stat")?;
        Ok(value.parse::<u64>()? * unit)
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        // Whoever is left there is killed or about to be.
        let root = self.path.parent().unwrap_or_else(|| Path::new("/")).join("cgroup.procs");
        for pid in fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default().lines() {
            let _moved = fs::write(&root, pid);
        }
        let _removed = fs::remove_dir(&self.path);
    }
}
