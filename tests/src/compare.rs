//! A profile held against the target's own books.
//!
//! Every comparison lists what differs; its unit tests show that it does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anyhow::{Result, bail};

use crate::book::{Book, Books, Time, Wait};
use crate::profile::{Frame, Open, Profile, Stack, State};

/// Waiting times agree within one hundredth.
const TOLERANCE: u64 = 100;
/// Beside that, what lies between two clocks that are read one after the other; and
/// the time that the target was kept from a CPU, which may lie there too.
const SLACK_NS: u64 = 1_000_000;
/// Waits shorter than this, on average, are counted but not timed.
const TIMED_WAIT_NS: u64 = 5_000_000;
/// So many differences are shown.
const SHOWN: usize = 12;

/// What did not agree.
#[derive(Debug, Default)]
struct Differences(Vec<String>);

impl Differences {
    fn expect<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, seen: &T, truth: &T) {
        if seen != truth {
            self.0.push(format!("{what}: {seen:?} instead of {truth:?}"));
        }
    }

    fn into_result(self) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut text = format!("{} differences", self.0.len());
        for difference in self.0.iter().take(SHOWN) {
            write!(text, "\n  {difference}")?;
        }
        bail!(text);
    }
}

/// Of the inner 128 frames and C calls of a sleep's stack so many at least are Python's.
const DEEP: usize = 64;

/// Nothing was lost, cut or unreadable, and the times fit into the recording.
///
/// # Errors
///
/// Lists what is not so.
pub fn complete(profile: &Profile) -> Result<()> {
    let mut differences = Differences::default();
    differences.expect("records lost", &profile.totals.records_lost, &0);
    differences.expect("stacks truncated", &profile.totals.stacks_truncated, &0);
    let suspended = |stack: &&Stack| matches!(stack.state, State::Wait | State::Idle);
    let blank = profile.stacks.iter().filter(suspended).any(|stack| stack.frames.iter().any(Frame::is_blank));
    for (fault, &count) in &profile.totals.faults {
        // The code of a module that is just imported is gone before its name is read; it
        // is seen on the CPU and asleep in a read, never suspended.
        let gone = ["CODE_CHANGED", "CODE_UNREADABLE", "CODE_REUSED"].contains(&fault.as_str());
        if gone && !blank {
            continue;
        }
        // A sleep's stack is cut where it is deep, and then it is there, deep and not suspended.
        if fault == "SLEEP_TRUNCATED"
            && profile.stacks.iter().any(|stack| !suspended(&stack) && stack.frames.len() >= DEEP)
        {
            continue;
        }
        // Some switches of a CPU are told to nobody: the clocks are right all the same.
        if fault == "CAME_UNSEEN" {
            continue;
        }
        // A tick comes at any instruction: now and then where frames are being linked.
        if fault == "TICK_TORN" && count * 50 <= profile.totals.cpu_samples.unwrap_or(0).max(50) {
            continue;
        }
        differences.expect(&format!("fault {fault}"), &count, &0);
    }
    consistent(profile, &mut differences);
    differences.into_result()
}

fn consistent(profile: &Profile, differences: &mut Differences) {
    let ids: BTreeSet<String> = profile.greenlets.iter().map(|greenlet| greenlet.id.to_string()).collect();
    differences.expect("distinct greenlet ids", &ids.len(), &profile.greenlets.len());
    differences.expect("sum of switches_in", &profile.switches_in(), &profile.totals.switches);
    let duration = profile.duration_ns + SLACK_NS;
    for greenlet in &profile.greenlets {
        let time = greenlet.running_ns.unwrap_or(0) + greenlet.waiting_ns.unwrap_or(0);
        if time > duration {
            differences.0.push(format!("greenlet {} fills {time} of {duration} ns", greenlet.id));
        }
        if let Some(sum) = greenlet.clock.sum_ns()
            && Some(sum) != greenlet.running_ns
        {
            differences.0.push(format!(
                "greenlet {} ran {:?} ns and its parts are {sum}",
                greenlet.id, greenlet.running_ns
            ));
        }
    }
    for stack in &profile.stacks {
        if stack.open.is_some() && !ids.contains(&stack.greenlet.to_string()) {
            differences.0.push(format!("open wait of unlisted greenlet {}", stack.greenlet));
        }
        if stack.open.is_some() && stack.ns > duration {
            differences.0.push(format!("open wait of {} ns in {duration} ns", stack.ns));
        }
        if stack.open.is_none() && stack.greenlet != serde_json::Value::Null {
            differences.0.push(format!("closed wait of one greenlet, {}", stack.greenlet));
        }
    }
}

/// The switches, in total and by thread, are the target's own count.
///
/// # Errors
///
/// Lists what differs.
pub fn switches(profile: &Profile, book: &Book) -> Result<()> {
    let mut differences = Differences::default();
    differences.expect("totals.switches", &profile.totals.switches, &book.total());
    let mut threads: BTreeMap<u32, u64> = BTreeMap::new();
    for greenlet in profile.greenlets.iter().filter(|greenlet| greenlet.switches_in > 0) {
        *threads.entry(greenlet.tid.unwrap_or(0)).or_default() += greenlet.switches_in;
    }
    let truth: BTreeMap<u32, u64> =
        book.switches.iter().filter(|(_, count)| **count > 0).map(|(&tid, &n)| (tid, n)).collect();
    differences.expect("switches by thread", &threads, &truth);
    differences.into_result()
}

/// Greenlets of one thread and kind that were switched to equally often.
type Kind = (u32, bool, u64);

/// No greenlet twice, none missing, none merged with another one.
///
/// `books.dead` stands for greenlets that `book.greenlets` leaves out.
///
/// # Errors
///
/// Lists what differs.
pub fn greenlets(profile: &Profile, books: &Books) -> Result<()> {
    let mut differences = Differences::default();
    let mut seen: BTreeMap<Kind, (u64, u64)> = BTreeMap::new();
    // Main greenlets that never switched: nothing tells the thread of one whose thread
    // has no other, if the process has several threads.
    let mut anywhere = 0;
    for greenlet in &profile.greenlets {
        if greenlet.tid.is_none() && greenlet.main && greenlet.switches_in == 0 {
            anywhere += 1;
            continue;
        }
        let kind = (greenlet.tid.unwrap_or(0), greenlet.main, greenlet.switches_in);
        let entry = seen.entry(kind).or_default();
        entry.0 += 1;
        entry.1 += u64::from(greenlet.alive);
    }
    // How many, and at least and at most how many of them alive.
    let mut truth: BTreeMap<Kind, (u64, u64, u64)> = BTreeMap::new();
    for life in &books.book.greenlets {
        let entry = truth.entry((life.tid, life.main, life.switches_in)).or_default();
        entry.0 += 1;
        entry.1 += u64::from(life.alive == Some(true));
        entry.2 += u64::from(life.alive != Some(false));
    }
    if let Some(&tid) = books.book.switches.keys().next() {
        for dead in &books.dead {
            truth.entry((tid, false, dead.switches_in)).or_default().0 += dead.greenlets;
        }
    }
    let kinds: BTreeSet<&Kind> = seen.keys().chain(truth.keys()).collect();
    for kind in kinds {
        let (count, alive) = seen.get(kind).copied().unwrap_or_default();
        let (expected, least, most) = truth.get(kind).copied().unwrap_or_default();
        let (tid, main, switches_in) = *kind;
        // A thread that only loaded greenlet has a main greenlet that no book knows, and
        // a thread without a book (a worker of gevent's thread pool) may have others.
        let unwatched = main || !books.book.switches.contains_key(&tid);
        if unwatched && switches_in == 0 && count >= expected {
            continue;
        }
        if main && switches_in == 0 && count + anywhere >= expected {
            anywhere -= expected - count;
            continue;
        }
        let name = format!("thread {tid}, main {main}, switched to {switches_in} times");
        differences.expect(&format!("greenlets of {name}"), &count, &expected);
        if count == expected && !(least..=most).contains(&alive) {
            differences.0.push(format!("alive of {name}: {alive}, not in {least}..={most}"));
        }
    }
    let listed = u64::try_from(profile.greenlets.len())?;
    differences.expect("totals.greenlets_seen", &profile.totals.greenlets_seen, &listed);
    differences.into_result()
}

/// A stack in one state, cut by one end or none.
type Place<'a> = (&'a [Frame], State, Option<Open>);

/// Every wait is at the right stack, frame by frame, counted exactly and timed.
///
/// # Errors
///
/// Lists what differs.
pub fn waits(profile: &Profile, book: &Book) -> Result<()> {
    let mut differences = Differences::default();
    let mut seen: BTreeMap<Place<'_>, (u64, u64)> = BTreeMap::new();
    for stack in &profile.stacks {
        if matches!(stack.state, State::Wait | State::Idle)
            && !elsewhere(profile, book, stack)
            && !waits_for_a_task(book, stack)
        {
            let entry = seen.entry((&stack.frames, stack.state, stack.open)).or_default();
            entry.0 += stack.count;
            entry.1 += stack.ns;
        }
    }
    let before = book.begin_unix_ns.saturating_sub(profile.started_unix_ns);
    let after = profile.ended_unix_ns().saturating_sub(book.end_unix_ns);
    for wait in &book.waits {
        let Some((count, ns)) = seen.remove(&(wait.frames.as_slice(), wait.state, wait.open)) else {
            differences.0.push(format!(
                "missing {} x {:?} {:?} {}",
                wait.count,
                wait.state,
                wait.open,
                shown(&wait.frames)
            ));
            continue;
        };
        if count != wait.count {
            let place = shown(&wait.frames);
            differences.0.push(format!("{count} instead of {} waits at {place}", wait.count));
            continue;
        }
        // The recording is longer than the books at both ends.
        let mut truth = wait.ns;
        truth += if wait.open.is_some_and(Open::at_begin) { before * count } else { 0 };
        truth += if wait.open.is_some_and(Open::at_end) { after * count } else { 0 };
        if truth / count.max(1) >= TIMED_WAIT_NS && !close(ns, truth, book.delayed_ns) {
            let (state, place) = (wait.state, shown(&wait.frames));
            differences.0.push(format!("{ns} instead of {truth} ns ({state:?}, {:?}) at {place}", wait.open));
        }
    }
    for ((frames, state, open), (count, _)) in seen {
        differences.0.push(format!("invented {count} x {state:?} {open:?} {}", shown(frames)));
    }
    differences.into_result()
}

/// Whether it is an idle thread's sleep: a pool's worker waits for its next task. A hub is idle
/// where it is suspended, and then the books have one that begins so.
fn waits_for_a_task(book: &Book, stack: &Stack) -> bool {
    let hub = |wait: &Wait| wait.state == State::Idle && wait.frames.first() == stack.frames.first();
    stack.state == State::Idle && stack.open.is_none() && !book.waits.iter().any(hub)
}

/// Whether nothing but one wait from end to end happened, on a thread without a book
/// (such as a worker of gevent's thread pool).
fn elsewhere(profile: &Profile, book: &Book, stack: &Stack) -> bool {
    let waiter = profile.greenlets.iter().find(|greenlet| greenlet.id == stack.greenlet);
    stack.open == Some(Open::Both)
        && waiter.and_then(|waiter| waiter.tid).is_some_and(|tid| !book.switches.contains_key(&tid))
}

/// Within the tolerance, and what two clocks of a loaded machine differ by.
fn close(seen: u64, truth: u64, delayed_ns: u64) -> bool {
    seen.abs_diff(truth) <= truth / TOLERANCE + SLACK_NS + delayed_ns
}

/// Waiting time per function, calls included, within one hundredth of its books.
///
/// # Errors
///
/// Lists what differs, and every function whose books are too small to tell.
pub fn function_times(waiting_ns: impl Fn(&str) -> u64, times: &BTreeMap<String, Time>) -> Result<()> {
    const LEAST_NS: u64 = 1_000_000_000;
    let mut differences = Differences::default();
    if times.is_empty() {
        bail!("no function kept books");
    }
    for (function, time) in times {
        let seen = waiting_ns(function);
        if time.ns < LEAST_NS {
            differences.0.push(format!("the books of {function} hold {} ns only", time.ns));
        }
        if seen.abs_diff(time.ns) > time.ns / TOLERANCE {
            let off = 100 * (i128::from(seen) - i128::from(time.ns));
            let percent = off / i128::from(time.ns.max(1));
            differences.0.push(format!("{function}: {seen} instead of {} ns ({percent} %)", time.ns));
        }
    }
    differences.into_result()
}

/// The inner end of a stack, which tells most; long ones are cut.
fn shown(frames: &[Frame]) -> String {
    const INNER: usize = 12;
    let cut = frames.len().saturating_sub(INNER);
    let names: Vec<String> = frames.iter().skip(cut).map(Frame::to_string).collect();
    let dots = if cut > 0 { format!("[{cut} more] ") } else { String::new() };
    format!("{dots}{}", names.join(" > "))
}

#[cfg(test)]
mod tests;
