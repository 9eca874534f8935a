//! eBPF profiling tasks of processes: stacks on and off the CPU, in uploads of some seconds.

use std::time::Duration;

use proto::skywalking::{
    EbpfOffCpuProfiling, EbpfOnCpuProfiling, EbpfProfilingData, EbpfProfilingStackMetadata,
    EbpfProfilingStackType, EbpfProfilingTaskMetadata, ebpf_profiling_data::Profiling,
};
use rustc_hash::FxHashMap;

use super::{
    commands::{EbpfTask, Looks},
    on_cpu::OnCpu,
    symbols::clean,
    wall_clock::{WallClock, nanoseconds},
};
use crate::{
    export::{labelled, short},
    profile::{
        Frame, State,
        event::{Event, OffSum, Tick},
    },
};

/// Between two uploads, as Rover has it: what OAP's users can cut a profile into. Those of all tasks
/// come at once, so that the sums are looked at once.
const FLUSH: Duration = Duration::from_secs(5);
/// How long the last look may take to arrive; without it a task is over all the same.
const LATE: Duration = Duration::from_secs(10);
/// Tasks at once, each process for itself; OAP refuses none.
const MOST_TASKS: usize = 4_096;
/// What stands for a stack that could not be taken, so that the sum is whole.
const NO_STACK: &str = "[no Python stack]";
/// What stands below the frames of a thread that waits for the GIL.
const GIL: &str = "[waits for the GIL]";

/// Root first.
pub(super) type Symbols = Vec<String>;

/// The tasks of all processes.
#[derive(Debug)]
pub struct EbpfTasks {
    running: Vec<Running>,
    /// Ids of those that are over, the last ones: OAP may send them again.
    over: Vec<(String, String)>,
    wall: WallClock,
    /// Of the recording's CPU clock.
    tick_ns: u64,
    newest_ms: u64,
}

/// What one upload of a task is: a stream of its own.
#[derive(Clone, Debug)]
pub struct Flush {
    /// The task.
    pub task: String,
    /// What it looks at.
    pub looks: Looks,
    /// The process.
    pub pid: u32,
    /// Its messages, of which the first says what they are of.
    pub messages: Vec<EbpfProfilingData>,
    /// Nothing comes after it.
    pub last: bool,
}

#[derive(Debug)]
struct Running {
    task: EbpfTask,
    pid: u32,
    begin_ns: u64,
    end_ns: u64,
    /// When what is not sent yet is due.
    next_ns: u64,
    /// The clock when it began: OAP's times of a task only grow.
    wall: WallClock,
    /// `profilingStartTime`.
    started_ms: u64,
    /// `currentTime` of the last upload.
    sent_ms: u64,
    /// Up to when the sums were looked at; 0 before the first look.
    looked_ns: u64,
    seen: Seen,
}

#[derive(Debug)]
enum Seen {
    On(OnCpu),
    Off {
        /// What was uploaded, or was there before the task. None before the first look.
        sent: Option<FxHashMap<Symbols, (u64, u64)>>,
        /// What is to be.
        now: FxHashMap<Symbols, (u64, u64)>,
    },
}

impl EbpfTasks {
    /// None yet.
    #[must_use]
    pub const fn new(wall: WallClock, tick_ns: u64) -> Self {
        Self { running: Vec::new(), over: Vec::new(), wall, tick_ns, newest_ms: 0 }
    }

    /// The clock was set: what begins from now on goes by it.
    pub const fn set_clock(&mut self, wall: WallClock) {
        self.wall = wall;
    }

    /// The `latestUpdateTime` of the next question.
    #[must_use]
    pub const fn newest_ms(&self) -> u64 {
        self.newest_ms
    }

    /// How many are under way.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.running.len()
    }

    /// Whether there is no room for another.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.running.len() >= MOST_TASKS
    }

    /// A task came for a process; false for one that is known, that is over, that looks at
    /// the network, or that there is no room for.
    pub fn begin(&mut self, task: EbpfTask, pid: u32, now_ns: u64) -> bool {
        self.newest_ms = self.newest_ms.max(task.updated_ms);
        let begin_ns = self.wall.time_ns(task.start_ms);
        let end_ns = begin_ns.saturating_add(nanoseconds(task.duration));
        let same = |id: &str, process: &str| id == task.id && process == task.process;
        let known = self.running.iter().any(|running| same(&running.task.id, &running.task.process))
            || self.over.iter().any(|(id, process)| same(id, process));
        if known || end_ns <= now_ns || self.is_full() {
            return false;
        }
        let seen = match task.looks {
            Looks::OnCpu => Seen::On(OnCpu::default()),
            Looks::OffCpu => Seen::Off { sent: None, now: FxHashMap::default() },
            Looks::Network => return false,
        };
        // What was before the task came is nobody's.
        let begin_ns = begin_ns.max(now_ns);
        let started_ms = self.wall.ms(begin_ns);
        self.running.push(Running {
            task,
            pid,
            begin_ns,
            end_ns,
            next_ns: next_flush(begin_ns),
            wall: self.wall,
            started_ms,
            sent_ms: started_ms,
            looked_ns: 0,
            seen,
        });
        true
    }

    /// Whether ticks are wanted of a process.
    #[must_use]
    pub fn wants_ticks(&self, pid: u32) -> bool {
        self.running.iter().any(|running| running.pid == pid && matches!(running.seen, Seen::On(_)))
    }

    /// When the sums are wanted of a process.
    #[must_use]
    pub fn wants_sums_at(&self, pid: u32) -> Option<u64> {
        let of = self.running.iter().filter(|running| running.pid == pid);
        let at = of.filter_map(|running| {
            let due_ns = if running.has_begun() { running.due_ns() } else { running.begin_ns };
            (!running.has_begun() || running.looked_ns < due_ns).then_some(due_ns)
        });
        at.min()
    }

    /// Something happened.
    pub fn take(&mut self, event: &Event) {
        match event {
            Event::Tick(Tick { pid, thread, frames, .. }) => {
                let of = |running: &&mut Running| running.pid == *pid && !running.is_over();
                for running in self.running.iter_mut().filter(of) {
                    if let Seen::On(on) = &mut running.seen {
                        on.tick(*thread, frames);
                    }
                }
            }
            Event::Sums { pid, time_ns, off, on_cpu, ticks } => {
                let tick_ns = self.tick_ns;
                let of = |running: &&mut Running| {
                    running.pid == *pid && running.begin_ns <= *time_ns && !running.is_over()
                };
                let mut by_stack = None;
                for running in self.running.iter_mut().filter(of) {
                    let begins = !running.has_begun();
                    match &mut running.seen {
                        Seen::On(_) if begins && !ticks => {
                            // It was looked for another task: some ticks are not told yet.
                            running.begin_ns = *time_ns + 1;
                            continue;
                        }
                        Seen::On(on) => {
                            on.look(on_cpu, tick_ns);
                            if *time_ns >= running.end_ns {
                                on.end();
                            }
                        }
                        Seen::Off { sent, now } => {
                            now.clone_from(by_stack.get_or_insert_with(|| by_symbols(off)));
                            // What was before is the base.
                            sent.get_or_insert_with(|| now.clone());
                        }
                    }
                    running.looked_ns = *time_ns;
                    if begins {
                        running.started_ms = running.wall.ms(*time_ns);
                        running.sent_ms = running.started_ms;
                    }
                }
            }
            Event::Ended { pid, time_ns } => {
                for running in self.running.iter_mut().filter(|running| running.pid == *pid) {
                    running.end_ns = running.end_ns.min(*time_ns);
                    // Nothing more can be looked at.
                    running.looked_ns = running.looked_ns.max(*time_ns);
                    if let Seen::On(on) = &mut running.seen {
                        on.end();
                    }
                }
            }
            _ => {}
        }
    }

    /// What is to be uploaded by now.
    pub fn due(&mut self, now_ns: u64) -> Vec<Flush> {
        let mut due = Vec::new();
        for running in &mut self.running {
            let late = now_ns >= running.end_ns.saturating_add(nanoseconds(LATE));
            if running.looked_ns < running.due_ns() && !late {
                continue;
            }
            // The last look at the sums was at the end.
            let last = running.looked_ns >= running.end_ns || late;
            running.next_ns = next_flush(now_ns);
            let messages = running.flush(now_ns, self.tick_ns);
            if !messages.is_empty() || last {
                let Running { task, pid, .. } = running;
                due.push(Flush { task: task.id.clone(), looks: task.looks, pid: *pid, messages, last });
            }
            if last {
                running.end_ns = 0;
            }
        }
        for running in self.running.extract_if(.., |running| running.end_ns == 0) {
            if self.over.len() >= MOST_TASKS {
                self.over.remove(0);
            }
            self.over.push((running.task.id, running.task.process));
        }
        due
    }
}

impl Running {
    /// Whether the sums were looked at once: what was before is nobody's.
    const fn has_begun(&self) -> bool {
        match &self.seen {
            Seen::On(on) => on.has_begun(),
            Seen::Off { sent, .. } => sent.is_some(),
        }
    }

    /// Whether the look at its end was there.
    const fn is_over(&self) -> bool {
        self.has_begun() && self.looked_ns >= self.end_ns
    }

    fn due_ns(&self) -> u64 {
        self.next_ns.min(self.end_ns)
    }

    fn flush(&mut self, now_ns: u64, tick_ns: u64) -> Vec<EbpfProfilingData> {
        // Strictly later: it is a part of OAP's keys.
        let now_ms = self.wall.ms(now_ns.min(self.looked_ns)).max(self.sent_ms + 1);
        let mut profiled = match &mut self.seen {
            Seen::On(on) => on_cpu(on.take(tick_ns)),
            Seen::Off { sent, now } => sent.as_mut().map_or_else(Vec::new, |sent| off_cpu(sent, now)),
        }
        .into_iter()
        .map(|profiling| EbpfProfilingData { task: None, profiling: Some(profiling) })
        .collect::<Vec<_>>();
        if let Some(first) = profiled.first_mut() {
            self.sent_ms = now_ms;
            first.task = Some(EbpfProfilingTaskMetadata {
                task_id: self.task.id.clone(),
                process_id: self.task.process.clone(),
                profiling_start_time: i64::try_from(self.started_ms).unwrap_or(i64::MAX),
                current_time: i64::try_from(now_ms).unwrap_or(i64::MAX),
            });
        }
        profiled
    }
}

/// When what is seen from now on is due.
fn next_flush(now_ns: u64) -> u64 {
    let every_ns = nanoseconds(FLUSH).max(1);
    (now_ns / every_ns + 1).saturating_mul(every_ns)
}

/// A count is a tick.
fn on_cpu(counts: Vec<(Symbols, u64)>) -> Vec<Profiling> {
    (1..)
        .zip(counts)
        .map(|(number, (symbols, count))| {
            Profiling::OnCpu(EbpfOnCpuProfiling {
                stacks: vec![stack(number, symbols)],
                dump_count: i32::try_from(count).unwrap_or(i32::MAX),
            })
        })
        .collect()
}

/// What was added since the last upload.
fn off_cpu(
    sent: &mut FxHashMap<Symbols, (u64, u64)>,
    now: &FxHashMap<Symbols, (u64, u64)>,
) -> Vec<Profiling> {
    let mut added: FxHashMap<Symbols, (u64, u64)> = FxHashMap::default();
    for (symbols, (ns, count)) in now {
        let known = sent.entry(symbols.clone()).or_default();
        // A wait that ended while the sums were read may be in them twice, until the next time.
        let (Some(more_ns), Some(more)) = (ns.checked_sub(known.0), count.checked_sub(known.1)) else {
            continue;
        };
        // What does not fit comes with the next one.
        let more = more.min(i32::MAX.unsigned_abs().into());
        if more_ns > 0 || more > 0 {
            *known = (*ns, known.1 + more);
            added.insert(symbols.clone(), (more_ns, more));
        }
    }
    (1..)
        .zip(sorted(added))
        .map(|(number, (symbols, (ns, count)))| {
            Profiling::OffCpu(EbpfOffCpuProfiling {
                stacks: vec![stack(number, symbols)],
                switch_count: i32::try_from(count).unwrap_or(i32::MAX),
                duration: i64::try_from(ns).unwrap_or(i64::MAX),
            })
        })
        .collect()
}

fn by_symbols(sums: &[OffSum]) -> FxHashMap<Symbols, (u64, u64)> {
    let mut by_symbols: FxHashMap<Symbols, (u64, u64)> = FxHashMap::default();
    for OffSum { frames, state, ns, count } in sums {
        if matches!(state, State::Wait | State::Blocked | State::Gil) {
            let sum = by_symbols.entry(symbols(frames, *state)).or_default();
            sum.0 += ns;
            sum.1 += count;
        }
    }
    by_symbols
}

pub(super) fn symbols(frames: &[Frame], state: State) -> Symbols {
    if frames.is_empty() {
        return vec![NO_STACK.to_owned()];
    }
    let named = frames.iter().map(|frame| clean(&labelled(frame, short)).into_owned());
    named.chain((state == State::Gil).then(|| GIL.to_owned())).collect()
}

fn stack(number: i32, mut symbols: Symbols) -> EbpfProfilingStackMetadata {
    symbols.reverse();
    EbpfProfilingStackMetadata {
        stack_type: EbpfProfilingStackType::ProcessUserSpace.into(),
        stack_id: number,
        stack_symbols: symbols,
    }
}

/// The same order each time.
pub(super) fn sorted<T>(by_symbols: FxHashMap<Symbols, T>) -> Vec<(Symbols, T)> {
    let mut sorted: Vec<(Symbols, T)> = by_symbols.into_iter().collect();
    sorted.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    sorted
}

#[cfg(test)]
mod tests;
