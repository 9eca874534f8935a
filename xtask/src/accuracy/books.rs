//! The truth: a target's own books (tests/targets/ledger.py), and the scheduler's.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// What a target says of itself; times in nanoseconds.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Books {
    pub(super) threads: Vec<Thread>,
    pub(super) lives: Vec<Life>,
    pub(super) functions: Vec<Function>,
}

/// A thread, from the begin of its work to its end.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Thread {
    pub(super) tid: u32,
    pub(super) wall_ns: u64,
    /// By `CLOCK_THREAD_CPUTIME_ID`.
    pub(super) cpu_ns: u64,
}

/// A greenlet, or what a plain thread did.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Life {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) tid: u32,
    /// Between its own readings.
    pub(super) cpu_ns: u64,
    /// Around these, by the hub's readings before it switches to it and when it is back.
    pub(super) switch_ns: u64,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    Burns,
    /// It burns, and blocks its thread.
    Blocks,
    Sleeps,
}

/// The calls of a function; none of them calls another.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Function {
    pub(super) function: String,
    pub(super) state: State,
    pub(super) cpu_ns: u64,
    pub(super) wall_ns: u64,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Cpu,
    Blocked,
    Wait,
}

/// What the scheduler knows of a thread; times in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Scheduled {
    /// `se.sum_exec_runtime`.
    pub(super) cpu_ns: u64,
    /// Ready, without a CPU.
    pub(super) delayed_ns: u64,
}

/// What the scheduler says at one moment.
#[derive(Debug)]
pub(super) struct Scheduler {
    threads: BTreeMap<u32, Scheduled>,
    /// Of all processors, in the kernel's ticks.
    steal_ticks: u64,
}

/// What the scheduler counted between two moments.
#[derive(Clone, Debug, Default)]
pub(super) struct Between {
    pub(super) threads: BTreeMap<u32, Scheduled>,
    pub(super) steal_ms: u64,
}

/// Milliseconds of a tick, which is the same on every architecture that we know.
const TICK_MS: u64 = 10;

impl Scheduler {
    /// Asks for every thread of a process that is asleep: of one that runs, the time
    /// since the last tick would lack.
    pub(super) fn ask(pid: u32) -> Result<Self> {
        let folder = format!("/proc/{pid}/task");
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {folder}"))? {
            let path = entry?.path();
            let tid = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            // A thread may end meanwhile.
            if let (Some(tid), Ok(text)) = (tid, fs::read_to_string(path.join("schedstat"))) {
                threads.insert(tid, scheduled(&text).with_context(|| format!("{tid}: `{text}`"))?);
            }
        }
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Ok(Self { threads, steal_ticks: steal(&stat).context("/proc/stat has no steal")? })
    }

    /// What came since.
    pub(super) fn until(&self, later: &Self) -> Between {
        let since = |tid: &u32| self.threads.get(tid).copied().unwrap_or_default();
        let threads = later.threads.iter().map(|(tid, now)| {
            let before = since(tid);
            let cpu_ns = now.cpu_ns.saturating_sub(before.cpu_ns);
            let delayed_ns = now.delayed_ns.saturating_sub(before.delayed_ns);
            (*tid, Scheduled { cpu_ns, delayed_ns })
        });
        let steal_ms = later.steal_ticks.saturating_sub(self.steal_ticks) * TICK_MS;
        Between { threads: threads.collect(), steal_ms }
    }
}

impl Life {
    /// Its CPU time: between the two readings at a switch lies the switch, which is half the
    /// hub's.
    pub(super) const fn on_cpu_ns(&self) -> u64 {
        self.cpu_ns + self.switch_ns / 2
    }
}

impl Books {
    /// CPU time of all threads of the books; a tool's own threads are none of them.
    pub(super) fn cpu_ns(&self) -> u64 {
        self.threads.iter().map(|thread| thread.cpu_ns).sum()
    }

    /// The thread that the greenlets run in: that of the first life.
    pub(super) fn tid(&self) -> Option<u32> {
        self.lives.first().map(|life| life.tid)
    }
}

/// `schedstat`: on the CPU, ready without one, how often.
fn scheduled(text: &str) -> Option<Scheduled> {
    let mut numbers = text.split_whitespace().map_while(|word| word.parse().ok());
    Some(Scheduled { cpu_ns: numbers.next()?, delayed_ns: numbers.next()? })
}

/// The eighth number of the first line.
fn steal(stat: &str) -> Option<u64> {
    stat.lines().next()?.split_whitespace().nth(8)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheduler_is_read() {
        assert_eq!(scheduled("123 45 6\n"), Some(Scheduled { cpu_ns: 123, delayed_ns: 45 }));
        assert_eq!(scheduled("\n"), None);
        assert_eq!(steal("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1\n"), Some(8));
    }

    #[test]
    fn only_what_came_since_counts() {
        let at = |cpu_ns, steal_ticks| Scheduler {
            threads: BTreeMap::from([(7, Scheduled { cpu_ns, delayed_ns: 0 })]),
            steal_ticks,
        };
        let between = at(100, 1).until(&at(350, 3));
        assert_eq!(between.threads[&7].cpu_ns, 250);
        assert_eq!(between.steal_ms, 20);
    }
}
