//! Trace profiling tasks of one service's instance: which segments are taken, and for how long.

use std::{sync::Arc, time::Duration};

use proto::skywalking::ThreadSnapshot;
use rustc_hash::FxHashMap;

use super::{
    commands::TraceTask,
    snapshots::{Signed, Snapshots},
    wall_clock::{WallClock, nanoseconds},
};
use crate::{
    profile::event::{Event, Lane, Off, Tick, Work},
    trace::Source,
};

/// Tasks that are known of at once, those that are over included: OAP sends these again while
/// it has them in its cache, a minute or two.
const MOST_TASKS: usize = 64;
/// Segments of one task that are looked at and may turn out too short.
const MOST_CANDIDATES: usize = 1_024;
/// How long what was under way at the end of a task is waited for.
const GRACE: Duration = Duration::from_secs(2);

/// The tasks of one instance of a service.
#[derive(Debug)]
pub struct TraceTasks {
    tasks: Vec<Running>,
    signed: Signed,
    wall: WallClock,
    tick_ns: u64,
    /// From when on all is told of a process that a segment takes.
    told_from_ns: FxHashMap<u32, u64>,
    /// The newest one's `CreateTime`: OAP is asked for later ones.
    newest_ms: u64,
    counts: Counts,
}

/// What came of the segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Taken.
    pub segments: u64,
    /// Too short for their task.
    pub short: u64,
    /// That made room for others before they were long enough.
    pub left_out: u64,
    /// Snapshots beyond what OAP looks at.
    pub cut: u64,
}

/// A task that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its id.
    pub id: String,
    /// What it was of.
    pub endpoint: String,
    /// How many segments it has.
    pub segments: usize,
}

/// What is to be sent.
#[derive(Debug, Default)]
pub struct Due {
    /// In the order of each segment.
    pub snapshots: Vec<ThreadSnapshot>,
    /// The tasks that are over, each once.
    pub finished: Vec<Finished>,
}

#[derive(Debug)]
struct Running {
    task: TraceTask,
    begin_ns: u64,
    end_ns: u64,
    segments: FxHashMap<(u32, Arc<str>), Segment>,
    /// Of these, how many lasted long enough.
    taken: usize,
    reported: bool,
}

#[derive(Debug)]
struct Segment {
    lane: Lane,
    begin_ns: u64,
    /// When something was told of it last.
    heard_ns: u64,
    taken: bool,
    over: bool,
    snapshots: Snapshots,
}

impl TraceTasks {
    /// None yet.
    #[must_use]
    pub fn new(wall: WallClock, tick_ns: u64) -> Self {
        Self {
            tasks: Vec::new(),
            signed: Signed::default(),
            wall,
            tick_ns,
            told_from_ns: FxHashMap::default(),
            newest_ms: 0,
            counts: Counts::default(),
        }
    }

    /// The clock was set: what begins from now on goes by it.
    pub const fn set_clock(&mut self, wall: WallClock) {
        self.wall = wall;
    }

    /// The `lastCommandTime` of the next question.
    #[must_use]
    pub const fn newest_ms(&self) -> u64 {
        self.newest_ms
    }

    /// What came of the segments so far.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether waits and ticks are wanted.
    #[must_use]
    pub fn is_busy(&self, now_ns: u64) -> bool {
        self.count(now_ns) > 0
    }

    /// How many are under way.
    #[must_use]
    pub fn count(&self, now_ns: u64) -> usize {
        self.tasks.iter().filter(|running| running.begin_ns <= now_ns && !running.reported).count()
    }

    /// A task came; false for one that is known, that is over, or that there is no room for.
    pub fn begin(&mut self, task: TraceTask, now_ns: u64) -> bool {
        self.newest_ms = self.newest_ms.max(task.created_ms);
        let begin_ns = self.wall.time_ns(task.start_ms);
        let end_ns = begin_ns.saturating_add(nanoseconds(task.duration));
        // Those that are over stay known while they may be sent again.
        self.tasks.retain(|running| !running.reported || running.end_ns + nanoseconds(GRACE) * 60 > now_ns);
        let known = self.tasks.iter().any(|running| running.task.id == task.id);
        if known || end_ns <= now_ns || self.tasks.len() >= MOST_TASKS {
            return false;
        }
        self.tasks.push(Running {
            task,
            begin_ns,
            end_ns,
            segments: FxHashMap::default(),
            taken: 0,
            reported: false,
        });
        true
    }

    /// The recording is over: so are its tasks.
    pub fn end(&mut self, now_ns: u64) {
        let over_ns = now_ns.saturating_sub(nanoseconds(GRACE));
        // One that did not begin yet is nobody's.
        self.tasks.retain(|running| running.begin_ns < now_ns);
        for running in &mut self.tasks {
            running.end_ns = running.end_ns.min(over_ns);
        }
    }

    /// Something happened in a process of the instance.
    pub fn take(&mut self, event: &Event) {
        match event {
            Event::Tick(Tick { work: None, is_sure: false, .. }) => {}
            Event::Tick(Tick { pid, lane, time_ns, frames, work, .. }) => {
                self.end_others(*pid, *lane, work.as_ref());
                let Some(work) = work else {
                    return;
                };
                let stack = self.signed.of(frames);
                self.each(*pid, *lane, work, *time_ns, |snapshots| snapshots.tick(*time_ns, &stack));
            }
            Event::Off(Off { pid, lane, begin_ns, end_ns, frames, work, .. }) => {
                self.end_others(*pid, *lane, Some(work));
                let stack = self.signed.of(frames);
                self.each(*pid, *lane, work, *end_ns, |snapshots| snapshots.off(*begin_ns, *end_ns, &stack));
            }
            Event::Telling { pid, wants, from_ns } => {
                if wants.ticks && wants.off_from_ns == Some(0) {
                    self.told_from_ns.insert(*pid, *from_ns);
                } else {
                    self.told_from_ns.remove(pid);
                }
            }
            Event::LaneEnded { pid, lane } => self.end_others(*pid, *lane, None),
            Event::Ended { pid, .. } => {
                self.told_from_ns.remove(pid);
                for running in &mut self.tasks {
                    for ((of, _), segment) in &mut running.segments {
                        if of == pid {
                            segment.finish();
                        }
                    }
                }
            }
            _ => {}
        }
    }

    /// A greenlet does other work now: what it did before is over.
    fn end_others(&mut self, pid: u32, lane: Lane, work: Option<&Work>) {
        let now = work.and_then(|work| work.called.segment_id.as_ref());
        for running in &mut self.tasks {
            for ((of, id), segment) in &mut running.segments {
                if *of == pid && segment.lane == lane && Some(id) != now {
                    segment.finish();
                }
            }
        }
    }

    /// Tells the segment of each task that wants it.
    fn each(&mut self, pid: u32, lane: Lane, work: &Work, now_ns: u64, mut tell: impl FnMut(&mut Snapshots)) {
        let called = &work.called;
        // OAP knows one stack of a segment at a time: that of the greenlet whose spans these are.
        let (Some(Source::Agent), Some(id), false, Some(began_ms)) =
            (called.source, &called.segment_id, called.inherited, work.began_unix_ms)
        else {
            return;
        };
        let begin_ns = self.wall.time_ns(began_ms);
        let told = self.told_from_ns.get(&pid).is_some_and(|from_ns| begin_ns >= *from_ns);
        for running in &mut self.tasks {
            let key = (pid, Arc::clone(id));
            if !running.segments.contains_key(&key) {
                // As the agents do: one that had begun before is not taken.
                let inside = told && (running.begin_ns..running.end_ns).contains(&begin_ns);
                let wanted = called.endpoint.as_deref() == Some(running.task.endpoint.as_str());
                if !inside || !wanted || now_ns >= running.end_ns || running.taken >= running.task.segments {
                    continue;
                }
                if running.segments.len() >= MOST_CANDIDATES {
                    // Of a thread's end nothing is told: most likely that is one.
                    self.counts.left_out += 1;
                    running.forget_one();
                }
                let snapshots = Snapshots::new(self.wall, begin_ns, self.tick_ns, running.task.dump_period);
                let segment =
                    Segment { lane, begin_ns, heard_ns: now_ns, taken: false, over: false, snapshots };
                running.segments.insert(key.clone(), segment);
            }
            if let Some(segment) = running.segments.get_mut(&key)
                && segment.lane == lane
                && !segment.over
            {
                tell(&mut segment.snapshots);
                segment.heard_ns = now_ns;
                let long = now_ns.saturating_sub(segment.begin_ns) > nanoseconds(running.task.threshold);
                if long && !segment.taken && running.taken < running.task.segments {
                    segment.taken = true;
                    running.taken += 1;
                    self.counts.segments += 1;
                }
            }
        }
    }

    /// What is to be sent by now.
    pub fn due(&mut self, now_ns: u64) -> Due {
        let mut due = Due::default();
        for running in self.tasks.iter_mut().filter(|running| !running.reported) {
            let ended = now_ns >= running.end_ns.saturating_add(nanoseconds(GRACE));
            for ((_, id), segment) in &mut running.segments {
                if ended {
                    segment.finish();
                }
                if segment.taken {
                    due.snapshots.extend(segment.snapshots.take(&running.task.id, id));
                }
            }
            let full = running.taken >= running.task.segments;
            let counts = &mut self.counts;
            running.segments.retain(|_, segment| {
                // Too short, or the task has all that it wants.
                let gone = !segment.taken && (segment.over || full);
                counts.short += u64::from(gone);
                !gone
            });
            if ended {
                running.reported = true;
                counts.cut += running.segments.values().map(|segment| segment.snapshots.cut()).sum::<u64>();
                running.segments.clear();
                due.finished.push(Finished {
                    id: running.task.id.clone(),
                    endpoint: running.task.endpoint.clone(),
                    segments: running.taken,
                });
            }
        }
        due
    }
}

impl Running {
    /// Leaves the candidate out of which nothing was heard for longest.
    fn forget_one(&mut self) {
        let candidates = self.segments.iter().filter(|(_, segment)| !segment.taken);
        let oldest = candidates.min_by_key(|(_, segment)| segment.heard_ns).map(|(key, _)| key.clone());
        if let Some(oldest) = oldest {
            self.segments.remove(&oldest);
        }
    }
}

impl Segment {
    fn finish(&mut self) {
        if !self.over {
            self.over = true;
            self.snapshots.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        export::oap::wall_clock::NS_PER_MS as MS,
        profile::{Frame, State, event::Wants},
        trace::Called,
    };

    const SECOND: u64 = 1_000 * MS;
    /// The wall clock at our time 0.
    const UNIX_MS: u64 = 1_795_366_184_000;

    fn task(id: &str, start_ms: u64, segments: usize, threshold_ms: u64) -> TraceTask {
        TraceTask {
            id: id.to_owned(),
            endpoint: "/slow".to_owned(),
            start_ms: UNIX_MS + start_ms,
            created_ms: UNIX_MS + start_ms,
            duration: Duration::from_secs(60),
            threshold: Duration::from_millis(threshold_ms),
            dump_period: Duration::from_millis(10),
            segments,
        }
    }

    fn tasks() -> TraceTasks {
        let mut tasks = TraceTasks::new(WallClock { ahead_ns: i64::try_from(UNIX_MS * MS).unwrap() }, 2 * MS);
        tasks.take(&telling(0));
        tasks
    }

    fn telling(from_ns: u64) -> Event {
        let wants = Wants { ticks: true, off_from_ns: Some(0), ..Wants::default() };
        Event::Telling { pid: 1, wants, from_ns }
    }

    fn off(segment: &str, greenlet: u64, begin_ms: u64, end_ms: u64, change: impl FnOnce(&mut Off)) -> Event {
        let called = Called {
            source: Some(Source::Agent),
            segment_id: Some(segment.into()),
            endpoint: Some("/slow".into()),
            ..Called::default()
        };
        let mut off = Off {
            pid: 1,
            lane: Lane::Greenlet(greenlet),
            begin_ns: begin_ms * MS,
            end_ns: end_ms * MS,
            state: State::Wait,
            queued: None,
            frames: Arc::new([Frame::label("wait")]),
            work: Work { called, began_unix_ms: Some(UNIX_MS + begin_ms) },
        };
        change(&mut off);
        Event::Off(off)
    }

    #[test]
    fn a_segment_of_the_endpoint_is_taken_and_no_other() {
        let mut tasks = tasks();
        assert!(tasks.begin(task("t", 0, 5, 0), 0));
        tasks.take(&off("a", 1, 100, 400, |_| {}));
        tasks.take(&off("b", 2, 100, 400, |off| off.work.called.endpoint = Some("/other".into())));
        tasks.take(&off("a", 3, 100, 400, |off| off.work.called.inherited = true));
        tasks.take(&off("c", 4, 100, 400, |off| off.work.called.source = Some(Source::Otel)));
        tasks.take(&off("a", 5, 100, 300, |_| {}));
        let sent = tasks.due(SECOND).snapshots;
        assert!(sent.iter().all(|snapshot| snapshot.trace_segment_id == "a" && snapshot.task_id == "t"));
        let times: Vec<i64> = sent.iter().map(|snapshot| snapshot.time).collect();
        assert_eq!(times, [100, 400].map(|ms| i64::try_from(UNIX_MS + ms).unwrap()));
    }

    #[test]
    fn a_segment_from_before_the_task_is_not_taken() {
        let mut tasks = tasks();
        assert!(tasks.begin(task("t", 5_000, 5, 0), 0));
        tasks.take(&off("a", 1, 4_000, 6_000, |_| {}));
        tasks.take(&off("b", 2, 5_100, 5_200, |_| {}));
        assert!(tasks.due(6 * SECOND).snapshots.iter().all(|snapshot| snapshot.trace_segment_id == "b"));
        assert_eq!(tasks.counts().segments, 1);
    }

    #[test]
    fn a_segment_of_which_a_part_may_be_missing_is_not_taken() {
        let mut tasks = tasks();
        assert!(tasks.begin(task("t", 0, 5, 0), 0));
        tasks.take(&Event::Telling { pid: 1, wants: Wants::default(), from_ns: 0 });
        tasks.take(&off("a", 1, 100, 200, |_| {}));
        tasks.take(&telling(250 * MS));
        tasks.take(&off("b", 2, 200, 300, |_| {}));
        tasks.take(&off("c", 3, 300, 400, |_| {}));
        assert!(tasks.due(SECOND).snapshots.iter().all(|snapshot| snapshot.trace_segment_id == "c"));
        assert_eq!(tasks.counts().segments, 1);
    }

    #[test]
    fn what_begins_after_the_clock_was_set_goes_by_it() {
        let mut tasks = tasks();
        assert!(tasks.begin(task("t", 0, 5, 0), 0));
        tasks.take(&off("a", 1, 100, 200, |_| {}));
        // An hour back.
        let hour_ms = 3_600_000;
        let ahead_ns = i64::try_from((UNIX_MS - hour_ms) * MS).unwrap();
        tasks.set_clock(WallClock { ahead_ns });
        let back = UNIX_MS - hour_ms + 300;
        tasks.take(&off("b", 2, 300, 400, |off| off.work.began_unix_ms = Some(back)));
        tasks.take(&off("a", 1, 400, 500, |off| off.work.began_unix_ms = Some(UNIX_MS + 100)));
        let sent = tasks.due(SECOND).snapshots;
        let first = |id| sent.iter().find(|snapshot| snapshot.trace_segment_id == id).map(|first| first.time);
        let times = [first("a"), first("b")].map(|time| time.and_then(|time| u64::try_from(time).ok()));
        assert_eq!(times, [Some(UNIX_MS + 100), Some(back)]);
    }

    #[test]
    fn no_more_segments_than_asked_for_and_none_too_short() {
        let mut tasks = tasks();
        assert!(tasks.begin(task("t", 0, 2, 150), 0));
        for (number, ms) in (1..).zip([100, 200, 50, 300, 400]) {
            let name = number.to_string();
            tasks.take(&off(&name, number, 10, 10 + ms, |_| {}));
            // The greenlet goes on to something else.
            tasks.take(&off("none", number, 500, 501, |off| off.work.called.endpoint = None));
        }
        let sent = tasks.due(SECOND).snapshots;
        let mut segments: Vec<&str> =
            sent.iter().map(|snapshot| snapshot.trace_segment_id.as_str()).collect();
        segments.sort_unstable();
        segments.dedup();
        assert_eq!(segments, ["2", "4"]);
        assert_eq!(tasks.counts().segments, 2);
    }

    #[test]
    fn a_greenlet_that_ends_ends_its_segment() {
        let mut tasks = tasks();
        assert!(tasks.begin(task("t", 0, 2, 150), 0));
        tasks.take(&off("a", 1, 10, 110, |_| {}));
        tasks.take(&Event::LaneEnded { pid: 1, lane: Lane::Greenlet(1) });
        assert!(tasks.due(SECOND).snapshots.is_empty());
        assert_eq!((tasks.counts().short, tasks.tasks[0].segments.len()), (1, 0));
    }

    #[test]
    fn one_of_which_nothing_was_heard_makes_room() {
        let mut tasks = tasks();
        assert!(tasks.begin(task("t", 0, 2, 150), 0));
        let most = u64::try_from(MOST_CANDIDATES).unwrap();
        for number in 0..=most {
            tasks.take(&off(&number.to_string(), number + 1, 10 + number, 11 + number, |_| {}));
        }
        let first_last = [0, most].map(|number| (1, Arc::from(number.to_string())));
        let known = first_last.map(|key| tasks.tasks[0].segments.contains_key(&key));
        assert_eq!((known, tasks.counts().left_out), ([false, true], 1));
    }

    #[test]
    fn what_came_before_the_threshold_is_sent_too() {
        let mut tasks = tasks();
        assert!(tasks.begin(task("t", 0, 2, 150), 0));
        tasks.take(&off("a", 1, 10, 110, |_| {}));
        assert!(tasks.due(SECOND).snapshots.is_empty());
        tasks.take(&off("a", 1, 120, 200, |off| off.work.began_unix_ms = Some(UNIX_MS + 10)));
        assert_eq!(tasks.due(SECOND).snapshots.len(), 4);
    }

    #[test]
    fn a_task_is_known_once_and_reported_once() {
        let mut tasks = tasks();
        assert!(tasks.begin(task("t", 0, 2, 0), 0));
        assert!(!tasks.begin(task("t", 0, 2, 0), SECOND));
        assert!(!tasks.begin(task("over", 0, 2, 0), 61 * SECOND));
        assert!(tasks.begin(task("second", 1_000, 2, 0), SECOND));
        assert_eq!(tasks.newest_ms(), UNIX_MS + 1_000);
        assert!(tasks.is_busy(0) && tasks.due(61 * SECOND).finished.is_empty());
        let finished: Vec<String> = tasks.due(64 * SECOND).finished.into_iter().map(|over| over.id).collect();
        assert_eq!(finished, ["t", "second"]);
        assert!(tasks.due(65 * SECOND).finished.is_empty() && !tasks.is_busy(65 * SECOND));
        // OAP sends it again while it has it.
        assert!(!tasks.begin(task("t", 0, 2, 0), 66 * SECOND));
    }

    #[test]
    fn a_segment_is_over_when_its_greenlet_does_other_work() {
        let mut tasks = tasks();
        assert!(tasks.begin(task("t", 0, 5, 0), 0));
        tasks.take(&off("a", 1, 100, 200, |_| {}));
        tasks.take(&off("b", 1, 300, 400, |_| {}));
        // A late one of the first is of nobody.
        tasks.take(&off("a", 1, 500, 600, |_| {}));
        let sent = tasks.due(SECOND).snapshots;
        assert_eq!(sent.iter().filter(|snapshot| snapshot.trace_segment_id == "a").count(), 2);
    }
}
