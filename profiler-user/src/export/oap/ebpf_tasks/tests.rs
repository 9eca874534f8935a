//! The tasks' tests: what is uploaded, and when.

use std::sync::Arc;

use super::*;
use crate::{
    export::oap::wall_clock::NS_PER_MS as MS,
    profile::event::{Lane, OnCpuSum},
};

const SECOND: u64 = 1_000 * MS;
const UNIX_MS: u64 = 1_795_366_184_000;

fn tasks() -> EbpfTasks {
    EbpfTasks::new(WallClock { ahead_ns: i64::try_from(UNIX_MS * MS).unwrap() }, 2 * MS)
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
        thread: 1,
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
    let off = sums.iter().map(sum).collect();
    Event::Sums { pid: 1, time_ns, off, on_cpu: Vec::new(), ticks: true }
}

/// What the only thread had of the CPU by then.
fn clock(time_ns: u64, on_cpu_ns: u64, ticks: bool) -> Event {
    Event::Sums {
        pid: 1,
        time_ns,
        off: Vec::new(),
        on_cpu: vec![OnCpuSum { thread: 1, watched_ns: 0, ns: on_cpu_ns }],
        ticks,
    }
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
    assert_eq!(tasks.wants_sums_at(1), Some(0));
    tasks.take(&tick(0, "before"));
    tasks.take(&clock(0, 500 * MS, true));
    for number in 0..10 {
        tasks.take(&tick(number * 10 * MS, if number < 7 { "a" } else { "b" }));
    }
    assert!(tasks.due(SECOND).is_empty());
    assert_eq!(tasks.wants_sums_at(1), Some(5 * SECOND));
    tasks.take(&clock(5 * SECOND, 520 * MS, true));
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
fn a_task_begins_when_its_ticks_do_and_ends_with_a_look() {
    let mut tasks = tasks();
    assert!(tasks.begin(task("t", Looks::OnCpu), 1, 0));
    // Of another task's.
    tasks.take(&clock(SECOND / 2, 0, false));
    assert!(tasks.wants_sums_at(1) > Some(SECOND / 2));
    tasks.take(&clock(SECOND, MS, true));
    tasks.take(&tick(2 * SECOND, "a"));
    assert!(tasks.due(61 * SECOND).is_empty());
    tasks.take(&clock(60 * SECOND, 5 * MS, true));
    let last = tasks.due(61 * SECOND);
    assert_eq!(said(&last), [("a".to_owned(), 2, 0)]);
    assert!(last[0].last);
    let metadata = last[0].messages[0].task.clone().unwrap();
    assert_eq!(metadata.profiling_start_time, i64::try_from(UNIX_MS + 1_000).unwrap());
    assert_eq!(metadata.current_time, i64::try_from(UNIX_MS + 60_000).unwrap());
}

#[test]
fn only_what_was_added_since_the_task_began_is_told() {
    let mut tasks = tasks();
    assert!(tasks.begin(task("t", Looks::OffCpu), 1, 0));
    assert_eq!((tasks.wants_sums_at(1), tasks.wants_sums_at(2)), (Some(0), None));
    tasks.take(&sums(1, &[("wait", State::Wait, 100, 1), ("hub", State::Idle, 900, 9)]));
    assert!(tasks.due(SECOND).is_empty());
    assert_eq!(tasks.wants_sums_at(1), Some(5 * SECOND));
    tasks.take(&sums(5 * SECOND, &[("wait", State::Wait, 350, 3), ("hub", State::Idle, 999, 99)]));
    assert_eq!(said(&tasks.due(5 * SECOND)), [("wait".to_owned(), 2, 250)]);
    // The same again is nothing new.
    tasks.take(&sums(10 * SECOND, &[("wait", State::Wait, 350, 3)]));
    assert!(tasks.due(10 * SECOND).is_empty());
}

#[test]
fn uploads_of_all_tasks_come_at_once() {
    let mut tasks = tasks();
    for second in [1, 3, 4] {
        assert!(tasks.begin(task(&second.to_string(), Looks::OffCpu), 1, second * SECOND));
        tasks.take(&sums(second * SECOND, &[]));
    }
    assert_eq!(tasks.wants_sums_at(1), Some(5 * SECOND));
    tasks.take(&sums(5 * SECOND, &[("wait", State::Wait, 1, 1)]));
    // Nobody looks again meanwhile.
    assert_eq!(tasks.wants_sums_at(1), None);
    assert_eq!(tasks.due(6 * SECOND).len(), 3);
    assert_eq!(tasks.wants_sums_at(1), Some(10 * SECOND));
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
    assert_eq!(tasks.wants_sums_at(1), Some(5 * SECOND));
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
    tasks.take(&clock(0, 0, true));
    assert!(tasks.begin(task("off", Looks::OffCpu), 1, 0));
    tasks.take(&sums(1, &[]));
    tasks.take(&tick(SECOND, "a"));
    tasks.take(&clock(2 * SECOND, 2 * MS, true));
    tasks.take(&Event::Ended { pid: 1, time_ns: 2 * SECOND });
    let last = tasks.due(3 * SECOND);
    assert_eq!(last.iter().filter(|flush| flush.last).count(), 2);
    assert_eq!(said(&last), [("a".to_owned(), 1, 0)]);
}
#[test]
fn a_task_that_nobody_looks_at_is_over_all_the_same() {
    let mut tasks = tasks();
    for (id, looks) in [("on", Looks::OnCpu), ("off", Looks::OffCpu)] {
        assert!(tasks.begin(task(id, looks), 1, 0));
    }
    assert!(tasks.due(69 * SECOND).is_empty());
    assert_eq!(tasks.due(71 * SECOND).iter().filter(|flush| flush.last).count(), 2);
    assert_eq!((tasks.count(), tasks.wants_sums_at(1)), (0, None));
}

#[test]
fn after_its_end_nothing_is_counted() {
    let mut tasks = tasks();
    assert!(tasks.begin(task("on", Looks::OnCpu), 1, 0));
    tasks.take(&clock(0, 0, true));
    tasks.take(&clock(60 * SECOND, 4 * MS, true));
    tasks.take(&tick(60 * SECOND + 1, "after"));
    tasks.take(&clock(61 * SECOND, 8 * MS, true));
    assert_eq!(said(&tasks.due(61 * SECOND)), [("(unsampled)".to_owned(), 2, 0)]);
}
