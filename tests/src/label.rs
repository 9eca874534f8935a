//! What greenscope's json says of requests: labels, and what has them.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::profile::{Clock, Frame, Open};

/// Where a label comes from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// SkyWalking's agent.
    Agent,
    /// OpenTelemetry.
    Otel,
    /// The request's own head.
    Wire,
}

/// Whose work something was.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Label {
    /// The trace.
    pub trace_id: Option<String>,
    /// SkyWalking's segment.
    pub segment_id: Option<String>,
    /// What was asked for.
    pub endpoint: Option<String>,
    /// SkyWalking's number of the span, OpenTelemetry's id.
    pub span: Option<String>,
    /// The span's name.
    pub operation: Option<String>,
    /// Null for no label.
    #[serde(rename = "label_source")]
    pub source: Option<Source>,
    /// Whether it is the maker's.
    pub inherited: Option<bool>,
}

impl Label {
    /// Whether it is the maker's.
    #[must_use]
    pub fn is_inherited(&self) -> bool {
        self.inherited == Some(true)
    }
}

/// A greenlet's time in one state.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Line")]
pub struct Interval {
    /// Whose.
    pub greenlet: u64,
    /// From the start of the recording.
    pub begin_ns: u64,
    /// The same.
    pub end_ns: u64,
    /// Whether it waited; else it was the current one of its thread.
    pub is_wait: bool,
    /// Of a wait.
    pub label: Label,
    /// Which end of the recording cut it.
    pub open: Option<Open>,
}

/// An interval as it stands, without its frames: most of the text, and not asked for here.
#[derive(Deserialize)]
struct Line {
    greenlet: u64,
    begin_ns: u64,
    end_ns: u64,
    state: Doing,
    open: Option<Open>,
    trace_id: Option<String>,
    segment_id: Option<String>,
    endpoint: Option<String>,
    span: Option<String>,
    operation: Option<String>,
    label_source: Option<Source>,
    inherited: Option<bool>,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Doing {
    Running,
    Wait,
}

impl From<Line> for Interval {
    fn from(line: Line) -> Self {
        let Line {
            greenlet,
            begin_ns,
            end_ns,
            state,
            open,
            trace_id,
            segment_id,
            endpoint,
            span,
            operation,
            label_source: source,
            inherited,
        } = line;
        let label = Label { trace_id, segment_id, endpoint, span, operation, source, inherited };
        Self { greenlet, begin_ns, end_ns, is_wait: state == Doing::Wait, label, open }
    }
}

/// What came of the looks for labels.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Looks {
    /// In the greenlet's own context.
    pub own: u64,
    /// Of its request or its maker.
    pub given: u64,
    /// None, by reason.
    pub blank: BTreeMap<String, u64>,
    /// Labels of makers that were taken back.
    #[serde(default)]
    pub outlived: u64,
}

/// What tells of requests in a process.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub struct Tracer {
    /// Which.
    pub source: Source,
    /// What it reports.
    pub service: Option<String>,
    /// The same.
    pub instance: Option<String>,
    /// Whether its own profiler is on.
    pub profiler: Option<bool>,
}

/// A request that was seen.
#[derive(Clone, Debug, Deserialize)]
pub struct Request {
    /// Its trace.
    pub trace_id: Option<String>,
    /// SkyWalking's segment.
    pub segment_id: Option<String>,
    /// What was asked for.
    pub endpoint: Option<String>,
    /// What tells of it.
    #[serde(rename = "label_source")]
    pub source: Option<Source>,
    /// When it was first seen, from the start of the recording.
    pub begin_ns: Option<u64>,
    /// From there to when it was last seen.
    pub wall_ns: Option<u64>,
    /// Where the time of its own greenlets went.
    #[serde(flatten)]
    pub clock: Clock,
    /// How long its own greenlets waited, if it is known which these are.
    pub waiting_ns: Option<u64>,
    /// The same of those that they made.
    pub inherited: InheritedTime,
}

/// The time of greenlets that a request's own made.
#[derive(Clone, Debug, Deserialize)]
pub struct InheritedTime {
    /// Suspended, if it is known which these are.
    pub waiting_ns: Option<u64>,
}

/// Requests by what they asked for.
#[derive(Clone, Debug, Deserialize)]
pub struct Endpoint {
    /// What; null where it is not known.
    pub endpoint: Option<String>,
    /// How many.
    pub requests: u64,
    /// How many of them from begin to end.
    pub whole: u64,
    /// How long their own greenlets waited.
    #[serde(default)]
    pub waiting_ns: Option<u64>,
    /// Where its own greenlets waited most.
    pub top_wait: Option<TopWait>,
}

/// A stack that waited.
#[derive(Clone, Debug, Deserialize)]
pub struct TopWait {
    /// Root first.
    pub frames: Vec<Frame>,
}
