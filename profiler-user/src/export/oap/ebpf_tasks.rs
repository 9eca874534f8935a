//! eBPF profiling tasks of processes: stacks on and off the CPU, in uploads of some seconds.

use std::{sync::Arc, time::Duration};

use proto::skywalking::{
    EbpfOffCpuProfiling, EbpfOnCpuProfiling, EbpfProfilingData, EbpfProfilingStackMetadata,
    EbpfProfilingStackType, EbpfProfilingTaskMetadata, ebpf_profiling_data::Profiling,
};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    commands::{EbpfTask, Looks},
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

/// Between two uploads, as Rover has it: what OAP's users can cut a profile into.
const FLUSH: Duration = Duration::from_secs(5);
/// How long the last records of a task may take to arrive.
const GRACE: Duration = Duration::from_millis(300);
/// Tasks at once, each process for itself; OAP refuses none.
const MOST_TASKS: usize = 4_096;
/// What stands for a stack that could not be taken, so that the sum is whole.
const NO_STACK: &str = "[no Python stack]";
/// What stands below the frames of a thread that waits for the GIL.
const GIL: &str = "[waits for the GIL]";

/// Root first.
type Symbols = Vec<String>;

/// The tasks of all processes.
#[derive(Debug)]
pub struct EbpfTasks {
    running: Vec<Running>,
    /// Ids of those that are over, the last ones: OAP may send them again.
    over: Vec<(String, String)>,
    /// The processes whose ticks are told.
    ticking: FxHashSet<u32>,
    wall: WallClock,
    newest_ms: u64,
}

/// What one upload of a task is: a stream of its own.
#[derive(Clone, Debug)]
pub struct Flush {
    /// The task.
    pub task: String,
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
    seen: Seen,
}

#[derive(Debug)]
enum Seen {
    /// Ticks since the last upload, by stack.
    On(FxHashMap<Arc<[Frame]>, u64>),
    Off {
        /// What was uploaded, or was there before the task. None before the first look.
        sent: Option<FxHashMap<Symbols, (u64, u64)>>,
        /// What is to be.
        now: FxHashMap<Symbols, (u64, u64)>,
        /// Up to when that is.
        looked_ns: u64,
    },
}

impl EbpfTasks {
    /// None yet.
    #[must_use]
    pub fn new(wall: WallClock) -> Self {
        Self { running: Vec::new(), over: Vec::new(), ticking: FxHashSet::default(), wall, newest_ms: 0 }
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
            Looks::OnCpu => Seen::On(FxHashMap::default()),
            Looks::OffCpu => Seen::Off { sent: None, now: FxHashMap::default(), looked_ns: 0 },
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
            next_ns: begin_ns.saturating_add(nanoseconds(FLUSH)),
            wall: self.wall,
            started_ms,
            sent_ms: started_ms,
            seen,
        });
        true
    }

    /// Whether ticks are wanted of a process.
    #[must_use]
    pub fn wants_ticks(&self, pid: u32) -> bool {
        self.running.iter().any(|running| running.pid == pid && matches!(running.seen, Seen::On(_)))
    }

    /// Whether the sums of the time off the CPU are wanted of a process, now.
    #[must_use]
    pub fn wants_sums(&self, pid: u32, now_ns: u64) -> bool {
        self.running.iter().filter(|running| running.pid == pid).any(|running| match &running.seen {
            Seen::On(_) => false,
            Seen::Off { sent: None, .. } => now_ns >= running.begin_ns,
            Seen::Off { looked_ns, .. } => {
                let due_ns = running.next_ns.min(running.end_ns);
                now_ns >= due_ns && *looked_ns < due_ns
            }
        })
    }

    /// Something happened.
    pub fn take(&mut self, event: &Event) {
        match event {
            Event::Tick(Tick { pid, time_ns, frames, .. }) => {
                for running in self.running.iter_mut().filter(|running| running.pid == *pid) {
                    if let Seen::On(seen) = &mut running.seen
                        && (running.begin_ns..running.end_ns).contains(time_ns)
                    {
                        *seen.entry(Arc::clone(frames)).or_default() += 1;
                    }
                }
            }
            Event::OffSums { pid, time_ns, sums } => {
                for running in self.running.iter_mut().filter(|running| running.pid == *pid) {
                    if let Seen::Off { sent, now, looked_ns } = &mut running.seen
                        && *time_ns >= running.begin_ns
                    {
                        *now = by_symbols(sums);
                        *looked_ns = *time_ns;
                        if sent.is_none() {
                            // What was before is the base.
                            *sent = Some(now.clone());
                            running.started_ms = running.wall.ms(*time_ns);
                            running.sent_ms = running.started_ms;
                        }
                    }
                }
            }
            Event::Telling { pid, wants, from_ns } => {
                // They may have been told before, and something else was not.
                if !wants.ticks {
                    self.ticking.remove(pid);
                } else if self.ticking.insert(*pid) {
                    self.ticks_begin(*pid, *from_ns);
                }
            }
            Event::Ended { pid, time_ns } => {
                for running in self.running.iter_mut().filter(|running| running.pid == *pid) {
                    running.end_ns = running.end_ns.min(*time_ns);
                    running.next_ns = running.next_ns.min(*time_ns);
                    if let Seen::Off { looked_ns, .. } = &mut running.seen {
                        // Nothing more can be looked at.
                        *looked_ns = u64::MAX;
                    }
                }
            }
            _ => {}
        }
    }

    /// Before that some of a process's ticks are missing.
    fn ticks_begin(&mut self, pid: u32, from_ns: u64) {
        let on = |running: &&mut Running| running.pid == pid && matches!(running.seen, Seen::On(_));
        for running in self.running.iter_mut().filter(on) {
            if running.sent_ms == running.started_ms {
                running.begin_ns = running.begin_ns.max(from_ns);
                running.started_ms = running.wall.ms(running.begin_ns);
                running.sent_ms = running.started_ms;
            }
        }
    }

    /// What is to be uploaded by now.
    pub fn due(&mut self, now_ns: u64) -> Vec<Flush> {
        let mut due = Vec::new();
        for running in &mut self.running {
            let last = now_ns >= running.end_ns.saturating_add(nanoseconds(GRACE));
            let ready = match &running.seen {
                Seen::On(_) => last || now_ns >= running.next_ns,
                Seen::Off { looked_ns, .. } => *looked_ns >= running.next_ns.min(running.end_ns),
            };
            if !ready {
                continue;
            }
            // The last look at the sums was at the end.
            let last =
                last || matches!(&running.seen, Seen::Off { looked_ns, .. } if *looked_ns >= running.end_ns);
            running.next_ns = now_ns.saturating_add(nanoseconds(FLUSH));
            let messages = running.flush(now_ns);
            if last {
                running.end_ns = 0;
            }
            if !messages.is_empty() || last {
                due.push(Flush { task: running.task.id.clone(), pid: running.pid, messages, last });
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
    fn flush(&mut self, now_ns: u64) -> Vec<EbpfProfilingData> {
        let seen_ns = match &self.seen {
            // What was after its end was not taken.
            Seen::On(_) => now_ns.min(self.end_ns),
            Seen::Off { looked_ns, .. } => now_ns.min(*looked_ns),
        };
        // Strictly later: it is a part of OAP's keys.
        let now_ms = self.wall.ms(seen_ns).max(self.sent_ms + 1);
        let mut profiled = match &mut self.seen {
            Seen::On(seen) => on_cpu(seen),
            Seen::Off { sent, now, .. } => sent.as_mut().map_or_else(Vec::new, |sent| off_cpu(sent, now)),
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

/// A count is a tick.
fn on_cpu(seen: &mut FxHashMap<Arc<[Frame]>, u64>) -> Vec<Profiling> {
    let mut counts: FxHashMap<Symbols, u64> = FxHashMap::default();
    for (frames, count) in seen.drain() {
        // Another stack may look the same.
        *counts.entry(symbols(&frames, State::Cpu)).or_default() += count;
    }
    (1..)
        .zip(sorted(counts))
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

fn symbols(frames: &[Frame], state: State) -> Symbols {
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
fn sorted<T>(by_symbols: FxHashMap<Symbols, T>) -> Vec<(Symbols, T)> {
    let mut sorted: Vec<(Symbols, T)> = by_symbols.into_iter().collect();
    sorted.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        export::oap::wall_clock::NS_PER_MS as MS,
        profile::event::{Lane, Wants},
    };

    const SECOND: u64 = 1_000 * MS;
    const UNIX_MS: u64 = 1_795_366_184_000;

    fn tasks() -> EbpfTasks {
        EbpfTasks::new(WallClock { ahead_ns: i64::try_from(UNIX_MS * MS).unwrap() })
    }

    fn task(id: &str, looks: Looks) -> EbpfTask {
        EbpfTask {
            id: id.to_owned(),
            process: "process".to_owned(),
            updated_ms: UNIX_MS,
            looks,
            start_ms: UNIX_MS,
            duration: Duration::from_secs(60),
        }
    }

    fn stack_of(name: &str) -> Arc<[Frame]> {
        Arc::new([Frame::label("root"), Frame::label(name)])
    }

    fn tick(time_ns: u64, name: &str) -> Event {
        Event::Tick(Tick {
            pid: 1,
            lane: Lane::Greenlet(1),
            time_ns,
            frames: stack_of(name),
            is_sure: true,
            work: None,
        })
    }

    fn sums(time_ns: u64, sums: &[(&str, State, u64, u64)]) -> Event {
        let sum = |(name, state, ns, count): &(&str, State, u64, u64)| OffSum {
            frames: stack_of(name),
            state: *state,
            ns: *ns,
            count: *count,
        };
        Event::OffSums { pid: 1, time_ns, sums: sums.iter().map(sum).collect() }
    }

    /// Of each upload's messages: the leaf, the count, the ns.
    fn said(flushes: &[Flush]) -> Vec<(String, i32, i64)> {
        let messages = flushes.iter().flat_map(|flush| &flush.messages);
        messages
            .map(|message| match message.profiling.clone().unwrap() {
                Profiling::OnCpu(on) => (on.stacks[0].stack_symbols[0].clone(), on.dump_count, 0),
                Profiling::OffCpu(off) => {
                    (off.stacks[0].stack_symbols[0].clone(), off.switch_count, off.duration)
                }
            })
            .collect()
    }

    #[test]
    fn ticks_become_counts_by_stack() {
        let mut tasks = tasks();
        assert!(tasks.begin(task("t", Looks::OnCpu), 1, 0));
        for number in 0..10 {
            tasks.take(&tick(number * 10 * MS, if number < 7 { "a" } else { "b" }));
        }
        assert!(tasks.due(SECOND).is_empty());
        let flushed = tasks.due(5 * SECOND);
        assert_eq!(said(&flushed), [("a".to_owned(), 7, 0), ("b".to_owned(), 3, 0)]);
        let metadata = flushed[0].messages[0].task.clone().unwrap();
        assert_eq!(metadata.profiling_start_time, i64::try_from(UNIX_MS).unwrap());
        assert_eq!(metadata.current_time, i64::try_from(UNIX_MS + 5_000).unwrap());
        assert!(flushed[0].messages[1].task.is_none());
        let ids: Vec<i32> = flushed[0]
            .messages
            .iter()
            .map(|message| match &message.profiling {
                Some(Profiling::OnCpu(on)) => on.stacks[0].stack_id,
                _ => 0,
            })
            .collect();
        assert_eq!(ids, [1, 2]);
    }

    #[test]
    fn a_task_begins_when_its_ticks_do_and_no_later() {
        let mut tasks = tasks();
        assert!(tasks.begin(task("t", Looks::OnCpu), 1, 0));
        let telling = |off_from_ns, from_ns| Event::Telling {
            pid: 1,
            wants: Wants { ticks: true, off_from_ns, ..Wants::default() },
            from_ns,
        };
        tasks.take(&telling(None, SECOND));
        tasks.take(&tick(2 * SECOND, "a"));
        // Something else is wanted as well.
        tasks.take(&telling(Some(0), 3 * SECOND));
        tasks.take(&tick(60 * SECOND, "after its end"));
        let last = tasks.due(61 * SECOND);
        assert_eq!(said(&last), [("a".to_owned(), 1, 0)]);
        let metadata = last[0].messages[0].task.clone().unwrap();
        assert_eq!(metadata.profiling_start_time, i64::try_from(UNIX_MS + 1_000).unwrap());
        assert_eq!(metadata.current_time, i64::try_from(UNIX_MS + 60_000).unwrap());
    }

    #[test]
    fn only_what_was_added_since_the_task_began_is_told() {
        let mut tasks = tasks();
        assert!(tasks.begin(task("t", Looks::OffCpu), 1, 0));
        assert!(tasks.wants_sums(1, 0) && !tasks.wants_sums(2, 0));
        tasks.take(&sums(1, &[("wait", State::Wait, 100, 1), ("hub", State::Idle, 900, 9)]));
        assert!(!tasks.wants_sums(1, SECOND) && tasks.due(SECOND).is_empty());
        assert!(tasks.wants_sums(1, 5 * SECOND));
        tasks.take(&sums(5 * SECOND, &[("wait", State::Wait, 350, 3), ("hub", State::Idle, 999, 99)]));
        assert_eq!(said(&tasks.due(5 * SECOND)), [("wait".to_owned(), 2, 250)]);
        // The same again is nothing new.
        tasks.take(&sums(10 * SECOND, &[("wait", State::Wait, 350, 3)]));
        assert!(tasks.due(10 * SECOND).is_empty());
    }

    #[test]
    fn what_was_counted_too_early_is_made_up_for() {
        let mut tasks = tasks();
        assert!(tasks.begin(task("t", Looks::OffCpu), 1, 0));
        let mut ns = 0;
        for (number, sum) in (0..).zip([0, 500, 400, 700]) {
            let at = number * 5 * SECOND + u64::from(number == 0);
            tasks.take(&sums(at, &[("wait", State::Wait, sum, 0)]));
            ns += said(&tasks.due(at)).iter().map(|(_, _, ns)| ns).sum::<i64>();
        }
        assert_eq!(ns, 700);
    }

    #[test]
    fn a_wait_for_the_gil_stands_below_its_frames() {
        let mut tasks = tasks();
        assert!(tasks.begin(task("t", Looks::OffCpu), 1, 0));
        tasks.take(&sums(1, &[]));
        tasks.take(&sums(5 * SECOND, &[("f", State::Gil, 5, 1), ("f", State::Blocked, 7, 1)]));
        assert_eq!(said(&tasks.due(5 * SECOND)), [("f".to_owned(), 1, 7), (GIL.to_owned(), 1, 5)]);
    }

    #[test]
    fn a_task_ends_once_and_is_not_begun_again() {
        let mut tasks = tasks();
        for (id, looks) in [("on", Looks::OnCpu), ("off", Looks::OffCpu)] {
            assert!(tasks.begin(task(id, looks), 1, 0));
            assert!(!tasks.begin(task(id, looks), 1, 0));
        }
        assert!(!tasks.begin(task("net", Looks::Network), 1, 0));
        assert!(!tasks.begin(task("late", Looks::OnCpu), 1, 60 * SECOND));
        tasks.take(&sums(1, &[]));
        tasks.take(&tick(59 * SECOND, "a"));
        tasks.take(&tick(60 * SECOND, "a"));
        assert!(tasks.wants_sums(1, 60 * SECOND));
        tasks.take(&sums(60 * SECOND, &[("wait", State::Wait, 1, 1)]));
        let last = tasks.due(61 * SECOND);
        assert!(last.iter().all(|flush| flush.last) && last.len() == 2);
        assert_eq!(said(&last), [("a".to_owned(), 1, 0), ("wait".to_owned(), 1, 1)]);
        assert_eq!(tasks.count(), 0);
        assert!(!tasks.begin(task("on", Looks::OnCpu), 1, SECOND));
    }

    #[test]
    fn a_process_that_ends_has_its_last_upload() {
        let mut tasks = tasks();
        assert!(tasks.begin(task("on", Looks::OnCpu), 1, 0));
        assert!(tasks.begin(task("off", Looks::OffCpu), 1, 0));
        tasks.take(&sums(1, &[]));
        tasks.take(&tick(SECOND, "a"));
        tasks.take(&Event::Ended { pid: 1, time_ns: 2 * SECOND });
        let last = tasks.due(3 * SECOND);
        assert_eq!(last.iter().filter(|flush| flush.last).count(), 2);
        assert_eq!(said(&last), [("a".to_owned(), 1, 0)]);
    }
}
