//! From the stream of switches to intervals, one list a greenlet.

use std::collections::BTreeMap;

use profiler_common::{label::Label, limits::MAX_INTERVALS, walk::StackKey};

use super::lives::{Bounds, Open};

/// A switch, as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// When.
    pub time_ns: u64,
    /// The leaver's identity, 0 if it has none.
    pub from: u64,
    /// The enterer's.
    pub to: u64,
    /// The leaver's stack.
    pub stack: StackKey,
    /// Whose work it did.
    pub label: Label,
}

/// What a greenlet was in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Current on its thread.
    Running,
    /// Suspended with this stack, and that label.
    Waiting(StackKey, Label),
}

/// A greenlet's time in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// When it began.
    pub begin_ns: u64,
    /// When it ended.
    pub end_ns: u64,
    /// In what.
    pub state: State,
    /// Whether it began before the recording or was not over at its end.
    pub open: Option<Open>,
}

/// Builds the intervals, switch by switch.
#[derive(Debug)]
pub struct Intervals {
    started_ns: u64,
    lanes: BTreeMap<u64, Lane>,
    /// Intervals kept so far.
    kept: usize,
    /// When there was no more room: the timeline ends there.
    full_ns: Option<u64>,
    /// Switches since then.
    dropped: u64,
}

#[derive(Debug, Default)]
struct Lane {
    closed: Vec<Interval>,
    current: Option<(u64, State, bool)>,
}

impl Intervals {
    /// None yet.
    #[must_use]
    pub const fn new(started_ns: u64) -> Self {
        Self { started_ns, lanes: BTreeMap::new(), kept: 0, full_ns: None, dropped: 0 }
    }

    /// Switches that there was no room for.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// A switch happened. Switches of one thread come in the order of their times.
    pub fn switched(&mut self, switch: &Switch) {
        if self.full_ns.is_some() {
            self.dropped += 1;
            return;
        }
        self.change(switch.from, switch.time_ns, State::Waiting(switch.stack, switch.label), State::Running);
        // Where a greenlet waited before its first switch is not in the stream.
        let before = State::Waiting(StackKey { id: 0, check: 0 }, Label::NONE);
        self.change(switch.to, switch.time_ns, State::Running, before);
        self.kept += 2;
        if self.kept >= MAX_INTERVALS {
            self.full_ns = Some(switch.time_ns);
        }
    }

    /// The last switch from `from` to `to` did not happen.
    pub fn undone(&mut self, from: u64, to: u64) {
        if self.dropped > 0 {
            return;
        }
        for id in [from, to] {
            if let Some(lane) = self.lanes.get_mut(&id) {
                lane.current = lane
                    .closed
                    .pop()
                    .map(|interval| (interval.begin_ns, interval.state, interval.open.is_some()));
            }
        }
    }

    /// A greenlet was born: it did not wait before its first switch.
    pub fn born(&mut self, id: u64) {
        let lane = self.lanes.entry(id).or_default();
        if let [first, ..] = lane.closed.as_slice()
            && matches!(first.state, State::Waiting(..))
            && first.open == Some(Open::Begin)
        {
            lane.closed.remove(0);
        }
    }

    /// What a greenlet did before `time_ns` is not known.
    pub fn first_seen(&mut self, id: u64, time_ns: u64) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        if let [first, ..] = lane.closed.as_mut_slice()
            && first.open == Some(Open::Begin)
        {
            (first.begin_ns, first.open) = (time_ns, None);
            if first.begin_ns >= first.end_ns {
                lane.closed.remove(0);
            }
        }
    }

    /// Whose the wait is in which a greenlet is at that time is not known after all.
    pub fn unlabel(&mut self, id: u64, time_ns: u64) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        if let Some((begin_ns, State::Waiting(_, label), _)) = &mut lane.current
            && *begin_ns <= time_ns
        {
            *label = Label::NONE;
            return;
        }
        // It went on before this was told.
        let at_that_time =
            |interval: &&mut Interval| interval.begin_ns <= time_ns && time_ns <= interval.end_ns;
        if let Some(interval) = lane.closed.iter_mut().rev().find(at_that_time)
            && let State::Waiting(_, label) = &mut interval.state
        {
            *label = Label::NONE;
        }
    }

    /// A greenlet's life ended.
    pub fn ended(&mut self, id: u64, time_ns: u64) {
        let time_ns = self.full_ns.map_or(time_ns, |full_ns| time_ns.min(full_ns));
        if let Some(lane) = self.lanes.get_mut(&id)
            && let Some((begin_ns, state, open)) = lane.current.take()
            // The interval after its last switch is no part of its life.
            && begin_ns < time_ns
        {
            let open = open.then_some(Open::Begin);
            lane.closed.push(Interval { begin_ns, end_ns: time_ns, state, open });
        }
    }

    fn change(&mut self, id: u64, time_ns: u64, to: State, before: State) {
        if id == 0 {
            return;
        }
        let lane = self.lanes.entry(id).or_default();
        let (begin_ns, state, open) = lane.current.take().unwrap_or((self.started_ns, before, true));
        lane.closed.push(Interval { begin_ns, end_ns: time_ns, state, open: open.then_some(Open::Begin) });
        lane.current = Some((time_ns, to, false));
    }

    /// Every greenlet's intervals, the open ones closed at the end and marked.
    #[must_use]
    pub fn finish(self, bounds: Bounds) -> BTreeMap<u64, Vec<Interval>> {
        let ended_ns = self.full_ns.unwrap_or(bounds.ended_ns);
        let close = |lane: Lane| {
            let mut intervals = lane.closed;
            if let Some((begin_ns, state, open)) = lane.current {
                let open = if open { Open::Both } else { Open::End };
                intervals.push(Interval { begin_ns, end_ns: ended_ns, state, open: Some(open) });
            }
            intervals
        };
        self.lanes.into_iter().map(|(id, lane)| (id, close(lane))).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { started_ns: 0, ended_ns: 1_000 };

    fn key(id: u64) -> StackKey {
        StackKey { id, check: id }
    }

    fn switch(time_ns: u64, from: u64, to: u64) -> Switch {
        Switch { time_ns, from, to, stack: key(from), label: Label::NONE }
    }

    #[test]
    fn a_wait_lies_between_two_switches() {
        let mut intervals = Intervals::new(0);
        intervals.switched(&switch(100, 1, 2));
        intervals.switched(&switch(300, 2, 1));
        let lanes = intervals.finish(BOUNDS);
        let wait =
            Interval { begin_ns: 100, end_ns: 300, state: State::Waiting(key(1), Label::NONE), open: None };
        assert!(lanes[&1].contains(&wait));
    }

    #[test]
    fn what_was_before_a_thread_was_seen_is_left_out() {
        let mut intervals = Intervals::new(0);
        intervals.switched(&switch(100, 1, 2));
        intervals.switched(&switch(300, 2, 1));
        intervals.first_seen(1, 100);
        let lanes = intervals.finish(BOUNDS);
        let wait =
            Interval { begin_ns: 100, end_ns: 300, state: State::Waiting(key(1), Label::NONE), open: None };
        assert_eq!(lanes[&1].first(), Some(&wait));
    }

    #[test]
    fn the_timeline_ends_where_it_is_full() {
        let mut intervals = Intervals::new(0);
        let taken = MAX_INTERVALS as u64 / 2;
        for time in 1..=taken + 3 {
            intervals.switched(&switch(time, 1 + time % 2, 2 - time % 2));
        }
        intervals.ended(1, taken + 10);
        assert_eq!(intervals.dropped(), 3);
        let lanes = intervals.finish(Bounds { started_ns: 0, ended_ns: taken + 20 });
        for lane in lanes.values() {
            assert!(lane.iter().all(|interval| interval.end_ns <= taken));
        }
        assert_eq!(lanes[&2].last().map(|interval| interval.end_ns), Some(taken));
    }

    #[test]
    fn a_switch_taken_back_leaves_no_trace() {
        let mut intervals = Intervals::new(0);
        intervals.switched(&switch(100, 1, 2));
        intervals.switched(&switch(200, 2, 1));
        intervals.switched(&switch(300, 1, 2));
        intervals.undone(1, 2);
        intervals.switched(&switch(400, 1, 2));
        let lanes = intervals.finish(BOUNDS);
        let run = Interval { begin_ns: 200, end_ns: 400, state: State::Running, open: None };
        assert!(lanes[&1].contains(&run), "{:?}", lanes[&1]);
    }

    proptest! {
        #[test]
        fn every_lane_is_gapless_and_one_runs_at_a_time(targets in prop::collection::vec(1_u64..6, 1..60)) {
            let mut intervals = Intervals::new(0);
            let mut current = 1;
            let mut time = 0;
            for to in targets {
                if to != current {
                    time += 10;
                    intervals.switched(&switch(time, current, to));
                    current = to;
                }
            }
            let bounds = Bounds { started_ns: 0, ended_ns: time + 10 };
            let lanes = intervals.finish(bounds);
            let mut running = 0;
            for lane in lanes.values() {
                let mut at = 0;
                for interval in lane {
                    prop_assert_eq!(interval.begin_ns, at);
                    at = interval.end_ns;
                    if interval.state == State::Running {
                        running += interval.end_ns - interval.begin_ns;
                    }
                }
                prop_assert_eq!(at, bounds.ended_ns);
            }
            if !lanes.is_empty() {
                prop_assert_eq!(running, bounds.ended_ns);
            }
        }
    }
}
