//! What a thread that sleeps waits for, by its stack: events or its next task, or an answer.
//!
//! What waits for events is a hub: other greenlets wait to be resumed by it. It is known by a
//! short list of loops, which is data, or by what it does: it passes control on from one
//! greenlet to another, polls, and what polls is what switches as well. A poll further in is a
//! callback's (a driver's, most often): a block. So is an event loop's that runs in a greenlet of
//! another hub's, which nothing can resume meanwhile.

use std::sync::Arc;

use profiler_common::{
    clock::Off,
    owner::{NO_CALL, OffOwner},
};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::profile::Frame;

/// What a thread waits for that is idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Events, in the hub of a library all of whose greenlets are resumed by it: a run of it goes
    /// from one switch to the next, with at most one poll in it.
    Hub,
    /// Events, in a loop whose callbacks most often don't switch.
    Loop,
    /// Its next task.
    Task,
}

/// A greenlet that rests, in what way; or perhaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It does.
    Rests(Rest),
    /// It polls, and passes control on, and whether what polls is a loop is not known.
    Doubt,
}

/// A function, by its qualified name's and its file's end.
struct Function {
    name: &'static str,
    file: &'static str,
}

macro_rules! functions {
    ($($name:literal in $file:literal,)*) => { &[$(Function { name: $name, file: $file },)*] };
}

/// Roots of hubs whose greenlets have them for a parent.
const HUBS: &[Function] = functions![
    // https://github.com/eventlet/eventlet/blob/v0.40.0/eventlet/hubs/hub.py
    "BaseHub.run" in "eventlet/hubs/hub.py",
    "Hub.run" in "eventlet/hubs/asyncio.py",
];

/// What of these waits. (Without a file to wait for it sleeps.)
const HUB_WAITS: &[Function] = functions![
    ".wait" in "eventlet/hubs/poll.py",
    ".do_poll" in "eventlet/hubs/poll.py",
    ".do_poll" in "eventlet/hubs/epolls.py",
    ".wait" in "eventlet/hubs/selects.py",
    ".wait" in "eventlet/hubs/kqueue.py",
];

/// Loops in Python: between one of these and the poll stands no callback.
const LOOPS: &[Function] = functions![
    "BaseEventLoop._run_once" in "asyncio/base_events.py",
    "_BasePollLoop.doIteration" in "twisted/internet/base.py",
    "unrolled_run" in "trio/_core/_run.py",
];

/// What runs a loop's callbacks.
const CALLBACKS: &[Function] = functions![
    "Handle._run" in "asyncio/events.py",
    "ReactorBase.runUntilCurrent" in "twisted/internet/base.py",
    "Task.run" in "trio/_core/_run.py",
];

/// Loops in C, which poll in the function that runs them.
const C_LOOPS: &[Function] = functions![
    "Runner.run" in "asyncio/runners.py",
    "run" in "uvloop/__init__.py",
    "Hub.run" in "gevent/hub.py",
    "loop.run" in "gevent/_ffi/loop.py",
    "loop.run" in "gevent/libuv/loop.py",
];

/// What a poll goes through.
const POLLS: &[Function] = functions![
    ".select" in "/selectors.py",
    ".get_events" in "trio/_core/_io_epoll.py",
    ".doPoll" in "twisted/internet/epollreactor.py",
    ".doPoll" in "twisted/internet/pollreactor.py",
];

/// What a wait for a lock goes through.
const LOCKS: &[Function] = functions![
    "Condition.wait" in "/threading.py",
    "Event.wait" in "/threading.py",
    "Queue.get" in "/queue.py",
    "Queue.get" in "gevent/_threading.py",
    "Condition.wait" in "gevent/_threading.py",
    "_Condition.wait" in "gevent/_threading.py",
    "acquire_with_timeout" in "gevent/_threading.py",
];

/// Who waits there, at a lock, for a task.
const TASKS: &[Function] = functions![
    "_worker" in "concurrent/futures/thread.py",
    "worker" in "multiprocessing/pool.py",
    "Pool._handle_tasks" in "multiprocessing/pool.py",
    "Pool._handle_results" in "multiprocessing/pool.py",
    "_WorkerGreenlet.run" in "gevent/threadpool.py",
    "_connection_worker_thread" in "aiosqlite/core.py",
    "Connection.run" in "aiosqlite/core.py",
    "Arbiter.wait_for_signals" in "gunicorn/arbiter.py",
    "WorkerThread.run" in "anyio/_backends/_asyncio.py",
    "WorkerThread._handle_job" in "trio/_core/_thread_cache.py",
    "ThreadedTaskDispatcher.handler_thread" in "waitress/task.py",
    "WorkerThread.run" in "cheroot/workers/threadpool.py",
    "tworker" in "eventlet/tpool.py",
    "BackgroundWorker._target" in "sentry_sdk/worker.py",
    "QueueListener.dequeue" in "logging/handlers.py",
    "BatchProcessor.worker" in "opentelemetry/sdk/_shared_internal/__init__.py",
    "BatchSpanProcessor.worker" in "opentelemetry/sdk/trace/export/__init__.py",
    "PeriodicExportingMetricReader._ticker" in "opentelemetry/sdk/metrics/_internal/export/__init__.py",
];

/// Who waits there for signals, or for its workers to end, by any call.
const SIGNALS: &[Function] = functions![
    "ThreadPool._wait_for_updates" in "multiprocessing/pool.py",
    "Arbiter.sleep" in "gunicorn/arbiter.py",
    "Arbiter.wait_for_signals" in "gunicorn/arbiter.py",
];

/// Who waits for what it began itself to end: a pool worker's thread, outside of its greenlet.
const SUSPENDED: &[Function] = functions![
    "_WorkerGreenlet._begin" in "gevent/threadpool.py",
];

/// The number of `futex`, in x86-64's table and in the one of the others.
const FUTEX: [u16; 2] = [202, 98];

impl Function {
    fn is(&self, frame: &Frame) -> bool {
        let Frame { function: Some(function), file: Some(file), line: _ } = frame else {
            return false;
        };
        let named = match self.name.starts_with('.') {
            true => function.ends_with(self.name),
            false => **function == *self.name,
        };
        named && file.ends_with(self.file)
    }
}

fn is_one(frame: &Frame, list: &[Function]) -> bool {
    list.iter().any(|function| function.is(frame))
}

/// The stack without what a wait goes through.
fn without<'a>(mut frames: &'a [Frame], list: &[Function]) -> &'a [Frame] {
    while let [rest @ .., leaf] = frames
        && is_one(leaf, list)
    {
        frames = rest;
    }
    frames
}

/// Whether a greenlet that is suspended there idles.
pub(super) fn suspended(frames: &[Frame]) -> bool {
    frames.first().is_some_and(|root| is_one(root, HUBS))
        || frames.last().is_some_and(|leaf| is_one(leaf, SUSPENDED))
}

/// Whether the stack is the hub's of a library that is known by its root.
fn is_hub(frames: &[Frame]) -> bool {
    frames.first().is_some_and(|root| is_one(root, HUBS))
}

/// It waits for its next task.
fn for_task(off: &OffOwner, frames: &[Frame]) -> bool {
    let at_lock = off.call == NO_CALL || FUTEX.contains(&off.call);
    let inner = without(frames, LOCKS);
    let Some(leaf) = inner.last() else {
        return false;
    };
    is_one(leaf, SIGNALS)
        || at_lock && (is_one(leaf, TASKS) || inner.len() < frames.len() && is_a_threads_own(frames, inner))
}

/// A queue's consumer: what a thread was made to run takes from a queue itself.
fn is_a_threads_own(frames: &[Frame], inner: &[Frame]) -> bool {
    const STARTS: &[Function] = functions![
        "Thread._bootstrap" in "/threading.py",
        "Thread._bootstrap_inner" in "/threading.py",
        "Thread.run" in "/threading.py",
    ];
    const QUEUE: &[Function] = functions!["Queue.get" in "/queue.py",];
    let own = inner.iter().skip_while(|frame| is_one(frame, STARTS));
    let started = inner.first().is_some_and(|root| is_one(root, STARTS));
    let next = frames.get(inner.len());
    started && own.count() == 1 && next.is_some_and(|frame| is_one(frame, QUEUE))
}

/// A loop of the list is the innermost thing that it runs.
fn in_a_loop(frames: &[Frame]) -> bool {
    if frames.last().is_some_and(|leaf| is_one(leaf, C_LOOPS)) {
        return true;
    }
    let marks = |frame: &&Frame| is_one(frame, LOOPS) || is_one(frame, CALLBACKS);
    let polls = frames.last().is_some_and(|leaf| is_one(leaf, POLLS) || is_one(leaf, LOOPS));
    polls && frames.iter().rev().find(marks).is_some_and(|frame| is_one(frame, LOOPS))
}

/// Whether a greenlet polls in what it switches in, which it left last with the stack `left`;
/// none if that is in doubt.
fn polls_where_it_switches(frames: &[Frame], left: &[Frame]) -> Option<bool> {
    let mut inner = without(frames, POLLS);
    let asks = inner.len() < frames.len();
    // A selector of its own around it.
    while asks
        && let [rest @ .., leaf] = inner
        && leaf.function.as_deref().is_some_and(|function| function.ends_with(".select"))
    {
        inner = rest;
    }
    let [outer @ .., polls] = inner else {
        return Some(false);
    };
    let same = |a: &Frame, b: &Frame| a.function.is_some() && a.function == b.function && a.file == b.file;
    let under =
        outer.len() < left.len() && outer.iter().zip(left).all(|(a, b)| same(a, b) && a.line == b.line);
    let Some(switches) = left.get(outer.len()).filter(|switches| under && same(polls, switches)) else {
        return Some(false);
    };
    // What polls switches itself; or is in one call of a loop in C; or asks a selector.
    let sure = left.len() == inner.len() || polls.line == switches.line || asks;
    sure.then_some(true)
}

/// A greenlet with a number on its thread: the thread's id, and that.
pub(super) type Place = (u32, u32);

/// What is known of who idles.
#[derive(Debug, Default)]
pub(super) struct Idle {
    /// The threads that have a library's hub.
    pub(super) hub_threads: FxHashSet<u32>,
    /// With what stack a greenlet was left last, or, of one that is over, those of its type were;
    /// known at the end.
    pub(super) left: FxHashMap<Place, Vec<Arc<[Frame]>>>,
    /// Who passed control on, sooner or later; known at the end.
    pub(super) passing: FxHashSet<Place>,
    /// What greenlets were seen to do, by the kernel's identity.
    pub(super) roles: FxHashMap<u64, Role>,
}

impl Idle {
    /// A stack of a sleep came.
    pub(super) fn meet(&mut self, off: &OffOwner, frames: &[Frame]) {
        if !off.plain && is_hub(frames) {
            self.hub_threads.insert(off.tid);
        }
    }

    /// What it waits for, if that is idle or may be.
    pub(super) fn role(&self, off: &OffOwner, frames: &[Frame]) -> Option<Role> {
        if off.why != Off::Blocked as u32 && off.why != Off::Polled as u32 {
            return None;
        }
        let leaf = frames.last()?;
        if for_task(off, frames) {
            return Some(Role::Rests(Rest::Task));
        }
        if is_hub(frames) && (is_one(leaf, HUB_WAITS) || in_a_loop(frames)) {
            return Some(Role::Rests(Rest::Hub));
        }
        let other_hub = off.beside || self.hub_threads.contains(&off.tid);
        if off.plain || other_hub || off.why != Off::Polled as u32 {
            return None;
        }
        if in_a_loop(frames) {
            return Some(Role::Rests(Rest::Loop));
        }
        if !off.passes && !self.passing.contains(&(off.tid, off.place)) {
            return None;
        }
        let Some(left) = self.left.get(&(off.tid, off.place)) else {
            // While it is recorded its last stack is not at hand.
            return Some(Role::Doubt);
        };
        let polls: Vec<_> = left.iter().map(|left| polls_where_it_switches(frames, left)).collect();
        if polls.contains(&Some(true)) {
            Some(Role::Rests(Rest::Loop))
        } else {
            polls.contains(&None).then_some(Role::Doubt)
        }
    }

    /// Whether it idles.
    pub(super) fn rests(&self, off: &OffOwner, frames: &[Frame]) -> bool {
        matches!(self.role(off, frames), Some(Role::Rests(_)))
    }

    /// What a greenlet is known to do; what is sure goes before a doubt.
    pub(super) fn learn(&mut self, greenlet: u64, role: Role) -> bool {
        let known = self.roles.entry(greenlet).or_insert(Role::Doubt);
        let new = *known != role && role != Role::Doubt;
        if new {
            *known = role;
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLLED: OffOwner = OffOwner {
        why: Off::Polled as u32,
        plain: false,
        call: 232,
        tid: 7,
        place: 1,
        passes: false,
        beside: false,
    };
    const LOCKED: OffOwner = OffOwner { why: Off::Blocked as u32, plain: true, call: 202, ..POLLED };
    const ASYNCIO: [&str; 3] =
        ["main app.py 9", "BaseEventLoop.run_forever asyncio/base_events.py 1", RUN_ONCE];
    const RUN_ONCE: &str = "BaseEventLoop._run_once asyncio/base_events.py 2";
    const SELECT: &str = "EpollSelector.select lib/selectors.py 3";
    const HANDLE: &str = "Handle._run asyncio/events.py 4";

    /// `function file line` each, root first.
    fn stack(frames: &[&str]) -> Vec<Frame> {
        let frame = |text: &&str| {
            let mut words = text.split(' ').map(Into::into);
            let (function, file) = (words.next(), words.next());
            Frame { function, file, line: words.next().and_then(|line: Arc<str>| line.parse().ok()) }
        };
        frames.iter().map(frame).collect()
    }

    fn role(off: OffOwner, frames: &[&str]) -> Option<Role> {
        Idle::default().role(&off, &stack(frames))
    }

    #[test]
    fn a_loops_own_poll_is_idle_and_a_callbacks_is_not() {
        let loop_ = Some(Role::Rests(Rest::Loop));
        let poll = |rest: &[&str]| role(POLLED, &[&ASYNCIO[..], rest].concat());
        assert_eq!(poll(&[SELECT]), loop_);
        assert_eq!(poll(&["Timed.select app.py 5", SELECT]), loop_);
        assert_eq!(poll(&[HANDLE, "query app.py 6"]), None);
        assert_eq!(poll(&[HANDLE, "query app.py 6", SELECT]), None);
        // A loop in a callback of a loop's.
        assert_eq!(poll(&[HANDLE, RUN_ONCE, SELECT]), loop_);
        assert_eq!(role(POLLED, &["Runner.run asyncio/runners.py 1"]), loop_);
        let hub = ["BaseHub.run eventlet/hubs/hub.py 1", "Hub.wait eventlet/hubs/poll.py 2"];
        assert_eq!(role(POLLED, &hub), Some(Role::Rests(Rest::Hub)));
        assert_eq!(role(POLLED, &[hub[0], hub[1], "callback app.py 3"]), None);
    }

    #[test]
    fn a_loop_beside_a_hub_blocks_it() {
        let frames = [&ASYNCIO[..], &[SELECT]].concat();
        assert_eq!(role(OffOwner { beside: true, ..POLLED }, &frames), None);
        let mut idle = Idle::default();
        idle.meet(&POLLED, &stack(&["BaseHub.run eventlet/hubs/hub.py 1"]));
        assert_eq!(idle.role(&POLLED, &stack(&frames)), None);
    }

    #[test]
    fn who_polls_where_it_switches_is_a_hub() {
        let left = |left: &[&str], frames: &[&str]| {
            let mut idle = Idle::default();
            idle.left.insert((7, 1), vec![stack(left).into()]);
            idle.role(&OffOwner { passes: true, ..POLLED }, &stack(frames))
        };
        let hub = Some(Role::Rests(Rest::Loop));
        assert_eq!(left(&["main a 1", "loop a 3"], &["main a 1", "loop a 2"]), hub);
        assert_eq!(left(&["main a 1", "loop a 3", "resume a 4"], &["main a 1", "loop a 2", SELECT]), hub);
        // A loop in C: the same call polls and runs what switches.
        assert_eq!(left(&["main a 1", "task a 5", "spawn a 6"], &["main a 1"]), hub);
        // Perhaps, and perhaps another call.
        assert_eq!(
            left(&["main a 1", "loop a 3", "resume a 4"], &["main a 1", "loop a 2"]),
            Some(Role::Doubt)
        );
        // A driver's, further in or elsewhere.
        assert_eq!(left(&["main a 1", "loop a 3"], &["main a 1", "loop a 2", "query a 9"]), None);
        assert_eq!(left(&["main a 1", "loop a 3"], &["main a 2", "query a 9"]), None);
        assert_eq!(role(POLLED, &["main a 1", "loop a 2"]), None);
        assert_eq!(role(OffOwner { passes: true, ..POLLED }, &["main a 1"]), Some(Role::Doubt));
    }

    #[test]
    fn a_wait_for_a_task_is_at_a_lock_and_by_who_takes_it() {
        let task = Some(Role::Rests(Rest::Task));
        let start = ["Thread._bootstrap lib/threading.py 1", "Thread._bootstrap_inner lib/threading.py 2"];
        let run = "Thread.run lib/threading.py 3";
        let worker = "_worker concurrent/futures/thread.py 4";
        let get = ["Queue.get lib/queue.py 5", "Condition.wait lib/threading.py 6"];
        let of = |off, rest: &[&str]| role(off, &[&start[..], rest].concat());
        assert_eq!(of(LOCKED, &[run, worker]), task);
        assert_eq!(of(LOCKED, &[run, worker, "_WorkItem.run concurrent/futures/thread.py 7"]), None);
        // A call in C of the same function: a disk, not a lock.
        assert_eq!(
            of(OffOwner { call: 0, ..LOCKED }, &[run, "_connection_worker_thread aiosqlite/core.py 1"]),
            None
        );
        assert_eq!(of(LOCKED, &[run, "consume app.py 8", get[0], get[1]]), task);
        assert_eq!(of(LOCKED, &["Consumer.run app.py 8", get[0], get[1]]), task);
        // An answer that it asked for, or no queue.
        assert_eq!(of(LOCKED, &[run, "work app.py 8", "ask app.py 9", get[0], get[1]]), None);
        assert_eq!(of(LOCKED, &[run, "work app.py 8", "Event.wait lib/threading.py 1", get[1]]), None);
        assert_eq!(role(LOCKED, &[]), None);
    }
}
