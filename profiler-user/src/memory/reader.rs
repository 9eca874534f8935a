//! Work on another process's memory on a thread of its own, which can be left behind.
//!
//! A read of a page that nobody serves (`userfaultfd`, a file of FUSE's) waits until somebody
//! does, and no signal but a deadly one ends it. So whoever reads does it on another thread, and
//! goes on without that one when it does not answer. It ends with greenscope, or when it is
//! answered after all.
//! <https://github.com/torvalds/linux/blob/v6.12/fs/userfaultfd.c> (`handle_userfault`)

use std::{
    fs,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI32, AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError, SyncSender},
    },
    thread,
    time::Duration,
};

type Job = Box<dyn FnOnce() + Send>;

/// The threads that wait for work. There are as many as work at a time: one, most often.
static IDLE: Mutex<Vec<SyncSender<Job>>> = Mutex::new(Vec::new());

/// So many times as long is waited for what may be answered yet: on a busy machine the holder of a
/// lock may have no CPU for seconds (`khugepaged`, which is nice, holds a process's `mmap_lock`).
const MORE_PATIENCE: u32 = 15;
/// Where a thread sleeps whom a process has to answer, by `/proc/PID/wchan`.
const ASKS_A_PROCESS: [&str; 2] = ["userfault", "fuse"];

/// How far some work is: it counts while it goes on.
#[derive(Clone, Debug, Default)]
pub(super) struct Pulse(Arc<Work>);

#[derive(Debug, Default)]
struct Work {
    count: AtomicU64,
    /// Of the thread that does it; 0 until it does.
    tid: AtomicI32,
}

impl Pulse {
    pub(super) fn beat(&self) {
        self.0.count.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.count.load(Ordering::Relaxed)
    }

    /// That thread does it; 0: one will.
    fn is_done_by(&self, tid: i32) {
        self.0.tid.store(tid, Ordering::Relaxed);
    }

    fn tid(&self) -> i32 {
        self.0.tid.load(Ordering::Relaxed)
    }

    /// Whether the thread could go on, and has no CPU: that is no memory's fault.
    fn is_ready(&self) -> bool {
        let tid = self.tid();
        tid == 0 || told(tid, "stat").rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('R'))
    }

    /// Whether the thread sleeps where a process has to answer, who perhaps never does.
    fn asks_a_process(&self) -> bool {
        let place = told(self.tid(), "wchan");
        ASKS_A_PROCESS.iter().any(|name| place.contains(name))
    }
}

/// What the kernel tells of a thread of this process.
fn told(tid: i32, file: &str) -> String {
    fs::read_to_string(format!("/proc/self/task/{tid}/{file}")).unwrap_or_default()
}

/// Does the work elsewhere; none if it panicked, or if its pulse did not change and it is asleep for
/// so long where a process has to answer, or for [`MORE_PATIENCE`] times as long elsewhere.
pub(super) fn apart<R: Send + 'static>(
    pulse: &Pulse,
    patience: Duration,
    work: impl FnOnce() -> R + Send + 'static,
) -> Option<R> {
    let (answer, answered) = mpsc::sync_channel(1);
    let own = pulse.clone();
    // Whoever did the last one may sleep.
    pulse.is_done_by(0);
    let mut job: Job = Box::new(move || {
        own.is_done_by(rustix::thread::gettid().as_raw_pid());
        // Nobody may wait any more.
        let _sent = answer.send(work());
    });
    let idle = || IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    let worker = loop {
        let waiting = idle().pop();
        let worker = match waiting {
            Some(worker) => worker,
            None => start()?,
        };
        match worker.send(job) {
            Ok(()) => break worker,
            // That thread is gone.
            Err(refused) => job = refused.0,
        }
    };
    let mut seen = pulse.count();
    let mut waited = 0;
    let result = loop {
        match answered.recv_timeout(patience) {
            Ok(result) => break Some(result),
            Err(RecvTimeoutError::Timeout) if pulse.count() != seen || pulse.is_ready() => {
                seen = pulse.count();
                waited = 0;
            }
            Err(RecvTimeoutError::Timeout) if waited < MORE_PATIENCE && !pulse.asks_a_process() => {
                waited += 1;
            }
            // It may have answered since.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                break answered.try_recv().ok();
            }
        }
    };
    // Without its sender the thread ends when it comes back.
    if result.is_some() {
        idle().push(worker);
    }
    result
}

fn start() -> Option<SyncSender<Job>> {
    let (sender, jobs) = mpsc::sync_channel::<Job>(1);
    thread::Builder::new()
        .name("reader".into())
        .spawn(move || {
            for job in jobs {
                job();
            }
        })
        .ok()?;
    Some(sender)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn what_does_not_answer_is_left_behind() {
        let (release, stuck) = mpsc::sync_channel::<()>(1);
        let patience = Duration::from_millis(20);
        let waiting = move || stuck.recv().is_err();
        assert_eq!(apart(&Pulse::default(), patience, waiting), None);
        // Others go on.
        assert_eq!(apart(&Pulse::default(), Duration::from_secs(60), || 7), Some(7));
        drop(release);
    }

    #[test]
    fn what_is_ready_to_run_is_waited_for() {
        let patience = Duration::from_millis(1);
        let busy = move || {
            let begin = Instant::now();
            while begin.elapsed() < 50 * patience {}
            7
        };
        assert_eq!(apart(&Pulse::default(), patience, busy), Some(7));
    }

    #[test]
    fn what_goes_on_may_take_its_time() {
        let pulse = Pulse::default();
        let (tick, ticked) = mpsc::sync_channel::<()>(1);
        let own = pulse.clone();
        let slow = move || {
            let mut beats = 0;
            // Longer in all than anybody has patience.
            while ticked.recv_timeout(Duration::from_millis(5)).is_err() && beats < 100 {
                own.beat();
                beats += 1;
            }
            beats
        };
        assert_eq!(apart(&pulse, Duration::from_millis(250), slow), Some(100));
        drop(tick);
    }

    #[test]
    fn a_thread_is_used_again() {
        for number in 0..1_000 {
            assert_eq!(apart(&Pulse::default(), Duration::from_secs(60), move || number), Some(number));
        }
        assert!(IDLE.lock().unwrap_or_else(PoisonError::into_inner).len() < 20);
    }
}
