//! From what a request's greenlet did to the snapshots of its segment.
//!
//! OAP adds up, for each frame, the time between the first and the last of snapshots that
//! follow one another and have it; what lies between two snapshots of different stacks goes to
//! what these have in common. So each stack gets a snapshot at its begin and one at its end.
//! Where a greenlet waits or its thread sleeps both are known to the nanosecond. Where it runs
//! the ticks of the CPU clock tell which stacks were there, and a change lies between two of
//! them: it is put in the middle, which is wrong by half a period at most and by nothing on
//! average. The last stack that a tick met is taken to have lasted until the greenlet left,
//! the first one to have begun when it came; without a tick in between nothing is said, and
//! the time goes to the frames that both ends have.

use std::{sync::Arc, time::Duration};

use proto::skywalking::{ThreadSnapshot, ThreadStack};
use rustc_hash::FxHashMap;

use super::{symbols::clean, wall_clock::WallClock};
use crate::profile::Frame;

/// What OAP analyses of a segment (`maxSizeOfAnalyzeProfileSnapshot`).
const MOST_SNAPSHOTS: u32 = 12_000;
/// Stacks whose signatures are kept for the next time.
const MOST_SIGNATURES: usize = 4_096;

/// A stack as OAP shows it, root first.
pub type Signatures = Arc<[String]>;

/// The stacks' signatures, each made once.
#[derive(Debug, Default)]
pub struct Signed(FxHashMap<Arc<[Frame]>, Signatures>);

impl Signed {
    /// Those of a stack; the same ones for the same stack.
    pub fn of(&mut self, frames: &Arc<[Frame]>) -> Signatures {
        if let Some(known) = self.0.get(frames) {
            return Arc::clone(known);
        }
        if self.0.len() >= MOST_SIGNATURES {
            self.0.clear();
        }
        let signed: Signatures = frames.iter().map(signature).collect();
        self.0.insert(Arc::clone(frames), Arc::clone(&signed));
        signed
    }
}

/// As the agent writes it: `FILE.FUNCTION: LINE`, of which the function's is the code's name,
/// without that of its class.
/// <https://github.com/apache/skywalking-python/blob/v1.1.0/skywalking/profile/profile_context.py>
fn signature(frame: &Frame) -> String {
    let function = frame.function.as_deref().unwrap_or("[unknown]");
    let name = function.rsplit_once('.').map_or(function, |(_, name)| name);
    let text = match (frame.file.as_deref(), frame.line) {
        (Some(file), Some(line)) => format!("{file}.{name}: {line}"),
        (Some(file), None) => format!("{file}.{name}"),
        (None, _) => name.to_owned(),
    };
    clean(&text).into_owned()
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Snapshot {
    time_ms: u64,
    stack: Signatures,
}

/// What was seen last.
#[derive(Clone, Debug)]
enum Last {
    /// Nothing yet.
    Nothing,
    /// It waited, or its thread slept, until then.
    Off { end_ns: u64 },
    /// A tick met this stack.
    Tick { time_ns: u64, stack: Signatures },
}

/// The snapshots of a segment, from what its greenlet did in the order of time.
#[derive(Debug)]
pub struct Snapshots {
    /// The same for the whole task.
    wall: WallClock,
    /// Before it no stack is taken to have begun.
    begun_ns: u64,
    /// From one tick of the CPU clock to the next.
    tick_ns: u64,
    dump_period: Duration,
    last: Last,
    /// Not sent yet.
    made: Vec<Snapshot>,
    /// The last one that was made.
    newest: Option<Snapshot>,
    /// How many were made.
    count: u32,
    /// How many there was no room for.
    cut: u64,
    /// How many were sent: the next one's number.
    sent: u32,
}

impl Snapshots {
    /// Of a segment that began at `begun_ns`.
    #[must_use]
    pub const fn new(wall: WallClock, begun_ns: u64, tick_ns: u64, dump_period: Duration) -> Self {
        Self {
            wall,
            begun_ns,
            tick_ns,
            dump_period,
            last: Last::Nothing,
            made: Vec::new(),
            newest: None,
            count: 0,
            cut: 0,
            sent: 0,
        }
    }

    /// A tick met it with that stack.
    pub fn tick(&mut self, time_ns: u64, stack: &Signatures) {
        if stack.is_empty() {
            return;
        }
        match std::mem::replace(&mut self.last, Last::Nothing) {
            Last::Nothing => {
                // Since the tick before, or the segment's begin.
                self.push(time_ns.saturating_sub(self.tick_ns).max(self.begun_ns), stack);
            }
            Last::Off { end_ns } => self.push(end_ns, stack),
            Last::Tick { time_ns: before_ns, stack: before } if before != *stack => {
                let change_ns = before_ns.midpoint(time_ns);
                self.push(change_ns, &before);
                self.push(change_ns, stack);
            }
            Last::Tick { .. } => {
                let since_ms = self.newest.as_ref().map_or(0, |newest| newest.time_ms);
                let elapsed_ms = self.wall.ms(time_ns).saturating_sub(since_ms);
                if u128::from(elapsed_ms) >= self.dump_period.as_millis() {
                    self.push(time_ns, stack);
                }
            }
        }
        self.last = Last::Tick { time_ns, stack: Arc::clone(stack) };
    }

    /// It waited, or its thread slept, with that stack.
    pub fn off(&mut self, begin_ns: u64, end_ns: u64, stack: &Signatures) {
        if let Last::Tick { stack: before, .. } = std::mem::replace(&mut self.last, Last::Off { end_ns }) {
            self.push(begin_ns, &before);
        }
        if !stack.is_empty() {
            self.push(begin_ns, stack);
            self.push(end_ns, stack);
        }
    }

    /// The segment, or the task, is over: nothing more is said of it.
    pub fn finish(&mut self) {
        if let Last::Tick { time_ns, stack } = std::mem::replace(&mut self.last, Last::Nothing) {
            self.push(time_ns, &stack);
        }
    }

    /// How many had no room, for OAP looks at no more of a segment.
    #[must_use]
    pub const fn cut(&self) -> u64 {
        self.cut
    }

    /// Takes what was made since the last time, numbered.
    pub fn take(&mut self, task: &str, segment: &str) -> Vec<ThreadSnapshot> {
        let first = self.sent;
        let made = std::mem::take(&mut self.made);
        self.sent += u32::try_from(made.len()).unwrap_or(u32::MAX);
        (first..)
            .zip(made)
            .map(|(number, Snapshot { time_ms, stack })| ThreadSnapshot {
                task_id: task.to_owned(),
                trace_segment_id: segment.to_owned(),
                time: i64::try_from(time_ms).unwrap_or(i64::MAX),
                sequence: i32::try_from(number).unwrap_or(i32::MAX),
                stack: Some(ThreadStack { code_signatures: stack.to_vec() }),
            })
            .collect()
    }

    fn push(&mut self, time_ns: u64, stack: &Signatures) {
        let time_ms = self.wall.ms(time_ns);
        // Each boundary is rounded by itself, and the same for both of its stacks: nothing adds up.
        let time_ms = self.newest.as_ref().map_or(time_ms, |newest| newest.time_ms.max(time_ms));
        let snapshot = Snapshot { time_ms, stack: Arc::clone(stack) };
        if self.newest.as_ref() == Some(&snapshot) {
            return;
        }
        if self.count >= MOST_SNAPSHOTS {
            self.cut += 1;
            return;
        }
        self.count += 1;
        self.newest = Some(snapshot.clone());
        self.made.push(snapshot);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::export::oap::wall_clock::NS_PER_MS as MS;

    const TICK: u64 = 2 * MS;
    const WALL: WallClock = WallClock { ahead_ns: 1_795_366_184_000_000_000 };

    fn stack(names: &[&str]) -> Signatures {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn snapshots() -> Snapshots {
        Snapshots::new(WALL, 0, TICK, Duration::from_millis(10))
    }

    /// OAP's arithmetic (`ProfileStackNode`, `ProfileAnalyzer`): the durations of the functions
    /// in all trees, a function's nodes together. No function is in a stack twice here.
    fn analyse(sent: &[ThreadSnapshot]) -> BTreeMap<String, i64> {
        let of = |snapshot: &ThreadSnapshot| snapshot.stack.clone().unwrap_or_default().code_signatures;
        let mut nodes: BTreeMap<Vec<String>, Vec<(i32, i64)>> = BTreeMap::new();
        for snapshot in sent {
            let frames = of(snapshot);
            assert!(!frames.is_empty(), "an empty stack breaks the segment");
            for depth in 1..=frames.len() {
                nodes.entry(frames[..depth].to_vec()).or_default().push((snapshot.sequence, snapshot.time));
            }
        }
        let mut durations = BTreeMap::new();
        for (path, mut seen) in nodes {
            seen.sort_unstable();
            let mut windows: Vec<(i32, i64, i64)> = Vec::new();
            for (sequence, time) in seen {
                match windows.last_mut() {
                    Some((last, _, end)) if *last + 1 == sequence => (*last, *end) = (sequence, time),
                    _ => windows.push((sequence, time, time)),
                }
            }
            let sum: i64 = windows.iter().map(|(_, begin, end)| end - begin).sum();
            *durations.entry(path.last().unwrap().clone()).or_default() += sum;
        }
        durations
    }

    fn check_order(sent: &[ThreadSnapshot]) {
        for (number, pair) in (0..).zip(sent.windows(2)) {
            assert_eq!(pair[0].sequence, number);
            assert!(pair[0].time <= pair[1].time, "a time goes backwards");
        }
    }

    #[test]
    fn a_wait_is_exact_to_the_millisecond() {
        let mut snapshots = snapshots();
        snapshots.off(10 * MS + 400_000, 310 * MS + 600_000, &stack(&["root", "wait"]));
        snapshots.off(320 * MS, 400 * MS, &stack(&["root", "other"]));
        let sent = snapshots.take("task", "segment");
        check_order(&sent);
        let durations = analyse(&sent);
        assert_eq!((durations["wait"], durations["other"]), (300, 80));
        // What lies between the two is their common root's.
        assert_eq!(durations["root"], 390);
    }

    #[test]
    fn what_burns_has_the_time_from_one_wait_to_the_next() {
        let mut snapshots = snapshots();
        snapshots.off(0, 50 * MS, &stack(&["root", "wait"]));
        let mut at = 51 * MS;
        while at < 150 * MS {
            snapshots.tick(at, &stack(&["root", "burn"]));
            at += TICK;
        }
        snapshots.off(150 * MS, 200 * MS, &stack(&["root", "wait"]));
        let durations = analyse(&snapshots.take("task", "segment"));
        assert_eq!((durations["burn"], durations["wait"], durations["root"]), (100, 100, 200));
    }

    #[test]
    fn a_change_between_two_ticks_lies_in_the_middle() {
        let mut snapshots = snapshots();
        for at in 0..10 {
            snapshots.tick(10 * MS * at, &stack(&["root", if at < 5 { "a" } else { "b" }]));
        }
        snapshots.finish();
        let durations = analyse(&snapshots.take("task", "segment"));
        assert_eq!((durations["a"], durations["b"]), (45, 45));
    }

    #[test]
    fn numbers_go_on_from_one_upload_to_the_next() {
        let mut snapshots = snapshots();
        let mut sent = Vec::new();
        for number in 0..5 {
            snapshots.off(number * 10 * MS, (number * 10 + 5) * MS, &stack(&["root"]));
            sent.extend(snapshots.take("task", "segment"));
        }
        check_order(&sent);
        assert_eq!(sent.last().map(|last| last.sequence), Some(9));
    }

    #[test]
    fn no_more_than_oap_looks_at() {
        let mut snapshots = snapshots();
        for number in 0..u64::from(MOST_SNAPSHOTS) {
            snapshots.off(number * 10 * MS, (number * 10 + 5) * MS, &stack(&["root"]));
        }
        assert_eq!(snapshots.take("task", "segment").len(), 12_000);
        assert_eq!(snapshots.cut(), 12_000);
    }

    #[test]
    fn signatures_are_the_agents() {
        let frame = Frame {
            function: Some("Shop.artist".into()),
            file: Some("/services/provider.py".into()),
            line: Some(31),
        };
        assert_eq!(signature(&frame), "/services/provider.py.artist: 31");
        assert_eq!(signature(&Frame::UNKNOWN), "[unknown]");
        let local = Frame { function: Some("make.<locals>.inner".into()), ..frame };
        assert_eq!(signature(&local), "/services/provider.py.inner: 31");
    }

    /// What a request does: it burns in a function, or waits in one.
    #[derive(Clone, Debug)]
    struct Part {
        function: usize,
        burns: bool,
        us: u64,
    }

    fn parts() -> impl Strategy<Value = Vec<Part>> {
        let part = (0..4_usize, any::<bool>(), 500_u64..200_000).prop_map(|(function, burns, us)| Part {
            function,
            burns,
            us,
        });
        prop::collection::vec(part, 1..30)
    }

    proptest! {
        #[test]
        fn every_function_has_its_time(parts in parts(), phase in 0..TICK) {
            let mut snapshots = snapshots();
            let mut truth: BTreeMap<String, u64> = BTreeMap::new();
            // The ends of its parts, at each of which a tick may be half a period off.
            let mut ends: BTreeMap<String, u64> = BTreeMap::new();
            let (mut now, mut tick) = (0, phase);
            for Part { function, burns, us } in parts {
                let name = format!("{}_{function}", if burns { "burn" } else { "wait" });
                let end = now + us * 1_000;
                let frames = stack(&["root", "handler", &name]);
                if burns {
                    while tick < end {
                        if tick >= now {
                            snapshots.tick(tick, &frames);
                        }
                        tick += TICK;
                    }
                } else {
                    snapshots.off(now, end, &frames);
                    // The clock goes on with the CPU's.
                    tick = end + (tick.saturating_sub(now) % TICK);
                }
                *truth.entry(name.clone()).or_default() += end - now;
                *ends.entry(name).or_default() += if burns { TICK / 2 + MS } else { MS };
                now = end;
            }
            snapshots.finish();
            let sent = snapshots.take("task", "segment");
            check_order(&sent);
            let durations = analyse(&sent);
            for (name, ns) in truth {
                let measured = durations.get(&name).copied().unwrap_or_default();
                let off_ns = (measured * 1_000_000).abs_diff(i64::try_from(ns).unwrap());
                let doubt_ns = 2 * ends[&name];
                prop_assert!(off_ns <= doubt_ns, "{name}: {measured} ms of {ns} ns, more than {doubt_ns} ns off");
                if ns >= 100 * MS && ends[&name] <= 4 * MS {
                    prop_assert!(off_ns <= ns / 20, "{name}: {measured} ms of {ns} ns");
                }
            }
        }
    }
}
