//! Long waits and blocks as events on the spans that they were in.

use std::time::Duration;

use proto::skywalking::{
    Instant, KeyIntValuePair, KeyStringValuePair, SpanAttachedEvent,
    span_attached_event::{SpanReference, SpanReferenceType},
};
use rustc_hash::FxHashSet;

use super::{
    symbols::clean,
    wall_clock::{NS_PER_S, WallClock},
};
use crate::{
    export::{labelled, short},
    profile::{Queued, State, event::Off},
    trace::Source,
};

/// Lines of a stack that an event shows, the leaf first.
const LINES: usize = 8;
/// Begins that are remembered, so that no two events of a segment have the same.
const MOST_BEGINS: usize = 1 << 16;

/// The events of long waits and blocks.
#[derive(Debug)]
pub struct SpanEvents {
    longer_than: Duration,
    wall: WallClock,
    begins: FxHashSet<(String, &'static str, u64)>,
}

impl SpanEvents {
    /// Of waits that last `longer_than` at least.
    #[must_use]
    pub fn new(longer_than: Duration, wall: WallClock) -> Self {
        Self { longer_than, wall, begins: FxHashSet::default() }
    }

    /// The clock was set.
    pub const fn set_clock(&mut self, wall: WallClock) {
        self.wall = wall;
    }

    /// The event of a wait that is over; none if it was short, or not in a span that
    /// SkyWalking's agent reports.
    pub fn of(&mut self, off: &Off) -> Option<SpanAttachedEvent> {
        let Off { begin_ns, end_ns, state, queued, frames, work, .. } = off;
        let called = &work.called;
        let ns = end_ns.saturating_sub(*begin_ns);
        if u128::from(ns) < self.longer_than.as_nanos() || called.source != Some(Source::Agent) {
            return None;
        }
        let (trace, segment, span) =
            (called.trace_id.as_ref()?, called.segment_id.as_ref()?, called.span.as_ref()?);
        let name = match state {
            State::Wait => "greenlet waited",
            State::Blocked => "thread blocked",
            State::Gil => "waited for the GIL",
            State::Cpu | State::Preempted | State::Idle => return None,
        };
        let begin = self.unique(segment, name, self.wall.ns(*begin_ns));
        let end = self.wall.ns(*end_ns).max(begin);
        let lines: Vec<String> =
            frames.iter().rev().take(LINES).map(|frame| labelled(frame, short)).collect();
        let tag = |key: &str, value: &str| KeyStringValuePair {
            key: key.to_owned(),
            value: clean(value).into_owned(),
        };
        let mut tags = vec![tag("state", name)];
        if let Some(Queued { least_ns, most_ns }) = queued {
            tags.push(tag("queued at least, ns", &least_ns.to_string()));
            tags.push(tag("queued at most, ns", &most_ns.to_string()));
        }
        tags.extend((1..).zip(&lines).map(|(number, line)| tag(&format!("frame {number}"), line)));
        Some(SpanAttachedEvent {
            start_time: Some(instant(begin)),
            event: name.to_owned(),
            end_time: Some(instant(end)),
            tags,
            summary: vec![KeyIntValuePair {
                key: "ns".to_owned(),
                value: i64::try_from(ns).unwrap_or(i64::MAX),
            }],
            trace_context: Some(SpanReference {
                r#type: SpanReferenceType::Skywalking.into(),
                trace_id: trace.to_string(),
                trace_segment_id: segment.to_string(),
                span_id: span.clone(),
            }),
        })
    }

    /// OAP's key is the segment, the begin and the name, and a second one of a key takes other
    /// rows along: then it begins a nanosecond later.
    fn unique(&mut self, segment: &str, name: &'static str, begin: u64) -> u64 {
        if self.begins.len() >= MOST_BEGINS {
            self.begins.clear();
        }
        let free = (begin..).find(|at| self.begins.insert((segment.to_owned(), name, *at)));
        free.unwrap_or(begin)
    }
}

fn instant(unix_ns: u64) -> Instant {
    Instant {
        seconds: i64::try_from(unix_ns / NS_PER_S).unwrap_or(i64::MAX),
        nanos: i32::try_from(unix_ns % NS_PER_S).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        profile::{
            Frame,
            event::{Lane, Work},
        },
        trace::Called,
    };

    const UNIX: u64 = 1_795_366_184_000_000_000;

    fn off(begin_ns: u64, end_ns: u64) -> Off {
        let called = Called {
            source: Some(Source::Agent),
            trace_id: Some("trace".into()),
            segment_id: Some("segment".into()),
            span: Some("1".to_owned()),
            ..Called::default()
        };
        let frame = |function: &str, line| Frame {
            function: Some(function.into()),
            file: Some("/app/shop.py".into()),
            line: Some(line),
        };
        Off {
            pid: 1,
            lane: Lane::Greenlet(1),
            begin_ns,
            end_ns,
            state: State::Wait,
            queued: Some(Queued { least_ns: 3, most_ns: 7 }),
            frames: Arc::new([frame("main", 1), frame("query", 7)]),
            work: Work { called, began_unix_ms: None },
        }
    }

    fn events() -> SpanEvents {
        SpanEvents::new(Duration::from_millis(10), WallClock { ahead_ns: i64::try_from(UNIX).unwrap() })
    }

    #[test]
    fn a_long_wait_stands_on_its_span() {
        let event = events().of(&off(5, 20_000_005)).unwrap();
        assert_eq!(event.event, "greenlet waited");
        assert_eq!(event.start_time, Some(Instant { seconds: 1_795_366_184, nanos: 5 }));
        assert_eq!(event.end_time, Some(Instant { seconds: 1_795_366_184, nanos: 20_000_005 }));
        assert_eq!(event.summary.first().map(|ns| ns.value), Some(20_000_000));
        let context = event.trace_context.unwrap();
        assert_eq!((context.trace_segment_id.as_str(), context.span_id.as_str()), ("segment", "1"));
        let tags: Vec<&str> = event.tags.iter().map(|tag| tag.value.as_str()).collect();
        assert_eq!(tags.get(..4), Some(&["greenlet waited", "3", "7", "query (app/shop.py:7)"][..]));
    }

    #[test]
    fn what_is_short_or_of_no_known_span_has_none() {
        let mut events = events();
        assert_eq!(events.of(&off(0, 9_999_999)), None);
        let mut unknown = off(0, 20_000_000);
        unknown.work.called.span = None;
        assert_eq!(events.of(&unknown), None);
        let mut of_others = off(0, 20_000_000);
        of_others.work.called.source = Some(Source::Otel);
        assert_eq!(events.of(&of_others), None);
    }

    #[test]
    fn no_two_of_a_segment_begin_together() {
        let mut events = events();
        let begins: Vec<i32> = (0..3)
            .map(|_| events.of(&off(5, 20_000_005)).and_then(|event| event.start_time).unwrap().nanos)
            .collect();
        assert_eq!(begins, [5, 6, 7]);
    }
}
