//! The books that traced.py keeps of its requests and its switches (tests/traced/README.md).

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::label::Source;

/// What is true of a label by the tracer's own API; all null for none.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
pub struct Truth {
    /// The trace.
    pub trace_id: Option<String>,
    /// SkyWalking's segment.
    pub segment_id: Option<String>,
    /// SkyWalking's number of the span, or OpenTelemetry's id.
    #[serde(deserialize_with = "text")]
    pub span_id: Option<String>,
    /// The span's name.
    #[serde(default)]
    pub operation: Option<String>,
}

/// A request, or a greenlet that one made.
#[derive(Clone, Debug, Deserialize)]
pub struct Work {
    /// What tells of requests there.
    pub labels: Source,
    /// Which of both.
    pub kind: Kind,
    /// Its number.
    pub serial: u64,
    /// Of a child, its request's.
    pub of: Option<u64>,
    /// The path without the query.
    pub endpoint: String,
    /// Its own label; of a child, what its maker had.
    #[serde(flatten)]
    pub truth: Truth,
    /// When its greenlet began to read for it.
    pub waited_ns: Option<u64>,
    /// When it had read the first line.
    pub arrived_ns: Option<u64>,
    /// The view, or the child's function.
    pub begin_ns: Option<u64>,
    /// Null for what was not over.
    pub end_ns: Option<u64>,
    /// When the answer was sent.
    pub answered_ns: Option<u64>,
    /// Its greenlet's address.
    pub greenlet: Option<u64>,
    /// What it called, one after the other.
    pub functions: Vec<Call>,
    /// Spans inside of it.
    pub spans: Vec<Span>,
}

/// Which of both a work is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A request.
    Request,
    /// A greenlet that one made.
    Child,
}

/// The call of a named function.
#[derive(Clone, Debug, Deserialize)]
pub struct Call {
    /// Which.
    pub function: String,
    /// What it does.
    pub state: Doing,
    /// When it began.
    pub begin_ns: u64,
    /// When it ended.
    pub end_ns: u64,
    /// By the thread's CPU clock.
    pub cpu_ns: Option<u64>,
    /// Of one that blocks: how long the thread was ready and had no CPU.
    #[serde(default)]
    pub delayed_ns: u64,
}

/// What a function does.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Doing {
    /// It computes.
    Cpu,
    /// It blocks its thread.
    Blocked,
    /// It waits.
    Wait,
}

/// A span inside of a work.
#[derive(Clone, Debug, Deserialize)]
pub struct Span {
    /// Its label.
    #[serde(flatten)]
    pub truth: Truth,
    /// When it began.
    pub begin_ns: u64,
    /// Null if it was not over.
    pub end_ns: Option<u64>,
}

/// A switch, and what the leaver's context was.
#[derive(Clone, Debug, Deserialize)]
pub struct Switch {
    /// Some moments after it, by `CLOCK_MONOTONIC`.
    pub ns: u64,
    /// Its address.
    pub leaver: u64,
    /// The same of who goes on.
    pub enterer: u64,
    /// The leaver's context.
    pub state: Context,
    /// Of a span: its class, if a tracer makes it.
    #[serde(default)]
    pub class: String,
    /// Whether it ended.
    #[serde(default)]
    pub ended: bool,
    /// SkyWalking: how often it was begun and not ended.
    #[serde(default)]
    pub depth: Option<u64>,
    /// OpenTelemetry: whether it is told to anybody.
    #[serde(default)]
    pub recording: Option<bool>,
    /// SkyWalking.
    #[serde(default)]
    pub segment_id: Option<String>,
    /// OpenTelemetry.
    #[serde(default)]
    pub trace_id: Option<String>,
    /// Both.
    #[serde(default, deserialize_with = "text")]
    pub span_id: Option<String>,
}

/// The context of who left.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Context {
    /// It ended here.
    Dead,
    /// None.
    None,
    /// Without the tracer's variable.
    Unset,
    /// Without a span.
    Empty,
    /// With one.
    Span,
    /// Some; there is no tracer.
    Other,
}

impl Work {
    /// Whether the request's answer was sent by then.
    #[must_use]
    pub fn is_answered(&self, ns: u64) -> bool {
        self.answered_ns.is_some_and(|answered_ns| answered_ns <= ns)
    }

    /// The innermost label that is true at that moment, and whether it is a span's of this
    /// work; else it is the work's own, or of a child its maker's.
    #[must_use]
    pub fn at(&self, ns: u64) -> (&Truth, bool) {
        let open = |span: &&Span| span.begin_ns <= ns && span.end_ns.is_none_or(|end_ns| ns <= end_ns);
        match self.spans.iter().rev().find(open) {
            Some(span) => (&span.truth, true),
            None => (&self.truth, false),
        }
    }
}

impl Truth {
    /// Whether there is a label at all.
    #[must_use]
    pub fn is_none(&self) -> bool {
        let Self { trace_id, segment_id, span_id, operation: _ } = self;
        trace_id.is_none() && segment_id.is_none() && span_id.is_none()
    }
}

impl Switch {
    /// Whether the leaver had a span that works for a request.
    #[must_use]
    pub fn is_live(&self) -> bool {
        let tells = match (self.depth, self.recording) {
            (Some(depth), _) => depth > 0 && ["Span", "EntrySpan", "ExitSpan"].contains(&self.class.as_str()),
            (None, Some(recording)) => recording,
            (None, None) => false,
        };
        self.state == Context::Span && !self.ended && tells
    }

    /// Why greenscope should see no label here, by its own name; `None` where it has one.
    #[must_use]
    pub fn reason(&self) -> Option<&'static str> {
        match self.state {
            Context::Dead | Context::None => Some("NO_CONTEXT"),
            Context::Unset => Some("NOT_SET"),
            Context::Empty => Some("NO_SPAN"),
            Context::Other => Some("NO_REQUEST"),
            Context::Span if self.is_live() => None,
            Context::Span if self.ended || self.depth == Some(0) && self.class != "NoopSpan" => {
                Some("FINISHED")
            }
            Context::Span => Some("UNREPORTED"),
        }
    }
}

/// The lines of one of the books.
///
/// # Errors
///
/// When the file can't be read, or a line is of another form.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    BufReader::new(file)
        .lines()
        .map(|line| {
            let line = line?;
            serde_json::from_str(&line).with_context(|| format!("the book's line {line}"))
        })
        .collect()
}

/// A number or a text, as text.
fn text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    })
}
