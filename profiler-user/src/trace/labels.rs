//! What the labels of one target mean.

use std::{collections::VecDeque, sync::Arc};

use profiler_common::http::{REQUEST_ANSWERED, REQUEST_PARTLY};
use profiler_common::label::{
    ABOUT_ROOT, ABOUT_SW8, ABOUT_TRACEPARENT, ABOUT_UNOWNED, KIND_INHERITED, KIND_SOURCE, Label, Source, Text,
};
use profiler_common::record::{LabelRecord, RequestRecord};
use rustc_hash::FxHashMap;

use super::wire;

/// Requests remembered of a target; what comes later has times, and no names at the end.
const MAX_REQUESTS: usize = 1 << 20;
/// Of those that come later, so many of the newest are known: who is told of what happens is told by
/// name, however long it goes on.
const MAX_LATE: usize = 1 << 16;
/// Spans remembered of a target.
const MAX_SPANS: usize = 1 << 20;
/// What stands in the place of the end of a text that was cut.
const CUT: char = '…';

/// What a label is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Called {
    /// Where it comes from.
    pub source: Option<Source>,
    /// The trace's id.
    pub trace_id: Option<Arc<str>>,
    /// SkyWalking's segment's id.
    pub segment_id: Option<Arc<str>>,
    /// SkyWalking: the span's number in its segment; OpenTelemetry: its id.
    pub span: Option<String>,
    /// The span's operation.
    pub operation: Option<Arc<str>>,
    /// What the request asked for.
    pub endpoint: Option<Arc<str>>,
    /// It is its maker's.
    pub inherited: bool,
}

impl Called {
    /// What no label is called.
    pub const NONE: Self = Self {
        source: None,
        trace_id: None,
        segment_id: None,
        span: None,
        operation: None,
        endpoint: None,
        inherited: false,
    };
}

/// A request: SkyWalking's segment, OpenTelemetry's trace in this process, one head on a
/// socket.
pub type Request = [u64; 2];

/// A request as it was on its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnWire {
    /// When its head was there.
    pub began_ns: u64,
    /// When its answer was complete.
    pub ended_ns: Option<u64>,
    /// A greenlet's time is its.
    pub owned: bool,
    /// And not all of what was done for it.
    pub partly: bool,
}

#[derive(Debug, Default)]
struct Known {
    trace_id: Option<Arc<str>>,
    endpoint: Option<Arc<str>>,
    /// OpenTelemetry: the span that `endpoint` is of.
    root: u64,
    /// More than one span of it has no parent here.
    several: bool,
    /// It is one of the wire's.
    wire: Option<OnWire>,
    /// When it began by the tracer's own clock, ms since 1970; 0 if that is not known.
    began_ms: u64,
}

/// The labels of one target.
#[derive(Debug, Default)]
pub struct Labels {
    requests: FxHashMap<Request, Known>,
    late: FxHashMap<Request, Known>,
    /// The late ones as they came.
    order: VecDeque<Request>,
    spans: FxHashMap<(Request, u64), Arc<str>>,
    /// Requests on the wire that the tracer made a span of, and a label of that.
    traced: FxHashMap<Request, Label>,
    /// Requests on the wire.
    wired: u64,
    /// The same text once.
    texts: FxHashMap<String, Arc<str>>,
    dropped: u64,
}

impl Labels {
    /// Whether any label was seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Labels that there was no room for.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Takes what the kernel part, or a walk, read of a label.
    pub fn take(&mut self, record: &LabelRecord) {
        let LabelRecord { head: _, label, about } = record;
        let source = source(label);
        if source == Some(Source::Wire) {
            self.wired += 1;
        } else if about.request != [0; 2] && self.traced.len() < MAX_REQUESTS {
            let of_request = Label { span: 0, kind: label.kind & KIND_SOURCE, ..*label };
            self.traced.entry(about.request).or_insert(of_request);
        }
        let endpoint = text(&about.endpoint);
        let operation = text(&about.operation);
        let (endpoint, operation) =
            (endpoint.map(|text| self.intern(text)), operation.map(|text| self.intern(text)));
        // A part of an id is none.
        let trace = whole(&about.trace);
        let trace_id = match source {
            Some(Source::Agent) => trace,
            Some(Source::Otel) => Some(hex(label.id)),
            Some(Source::Wire) if about.flags & ABOUT_SW8 != 0 => trace.and_then(|trace| wire::sw8(&trace)),
            Some(Source::Wire) if about.flags & ABOUT_TRACEPARENT != 0 => {
                trace.and_then(|trace| wire::traceparent(&trace))
            }
            Some(Source::Wire) | None => None,
        };
        let known = self.known_mut(label.id);
        if known.trace_id.is_none() {
            known.trace_id = trace_id.map(Into::into);
        }
        if about.began_ms != 0 {
            known.began_ms = about.began_ms;
        }
        if source == Some(Source::Wire) {
            let [began_ns, _] = label.id;
            let known = known.wire.get_or_insert_default();
            (known.began_ns, known.owned) = (began_ns, about.flags & ABOUT_UNOWNED == 0);
        }
        if source != Some(Source::Otel) {
            known.endpoint = endpoint.or_else(|| known.endpoint.take());
        } else if about.flags & ABOUT_ROOT != 0 {
            known.several |= known.root != 0 && known.root != label.span;
            // Another root's name is not this one's.
            let same = known.root == label.span;
            known.endpoint = operation.clone().or_else(|| known.endpoint.take().filter(|_| same));
            known.root = label.span;
        }
        let Some(operation) = operation else {
            return;
        };
        if self.spans.len() < MAX_SPANS {
            self.spans.insert((label.id, label.span), operation);
        } else {
            self.dropped += 1;
        }
    }

    /// A request of the wire is over.
    pub fn ended(&mut self, record: &RequestRecord) {
        let RequestRecord { head, id, flags, .. } = *record;
        let [began_ns, _] = id;
        let known = self.known_mut(id).wire.get_or_insert_default();
        known.began_ns = began_ns;
        known.ended_ns = (flags & REQUEST_ANSWERED != 0).then_some(head.time_ns);
        known.partly |= flags & REQUEST_PARTLY != 0;
    }

    /// The requests of the wire.
    pub fn on_wire(&self) -> impl Iterator<Item = (&Request, OnWire)> {
        let all = self.requests.iter().chain(&self.late);
        all.filter_map(|(request, known)| Some((request, known.wire?)))
    }

    /// How many requests were seen on the wire.
    #[must_use]
    pub fn wired(&self) -> u64 {
        self.wired
    }

    /// The label of a request: the tracer's word for it, where it made a span of what was seen on
    /// the wire.
    #[must_use]
    pub fn request_of(&self, label: &Label) -> Label {
        let own = Label { span: 0, kind: label.kind & KIND_SOURCE, ..*label };
        if source(label) == Some(Source::Wire) {
            self.traced.get(&label.id).copied().unwrap_or(own)
        } else {
            own
        }
    }

    fn known(&self, request: &Request) -> Option<&Known> {
        self.requests.get(request).or_else(|| self.late.get(request))
    }

    fn known_mut(&mut self, request: Request) -> &mut Known {
        if self.requests.len() < MAX_REQUESTS || self.requests.contains_key(&request) {
            return self.requests.entry(request).or_default();
        }
        if !self.late.contains_key(&request) {
            self.dropped += 1;
            self.order.push_back(request);
            if self.order.len() > MAX_LATE
                && let Some(oldest) = self.order.pop_front()
            {
                self.late.remove(&oldest);
            }
        }
        self.late.entry(request).or_default()
    }

    /// What a label is called; what is not known for sure is left out.
    #[must_use]
    pub fn called(&self, label: &Label) -> Called {
        if let Some(traced) = self.traced.get(&label.id).filter(|_| source(label) == Some(Source::Wire)) {
            // Which span it was nobody says.
            let root = Label { kind: traced.kind | label.kind & KIND_INHERITED, ..*traced };
            return Called { span: None, operation: None, ..self.called_itself(&root) };
        }
        self.called_itself(label)
    }

    fn called_itself(&self, label: &Label) -> Called {
        let Some(source) = source(label) else {
            return Called::default();
        };
        let known = self.known(&label.id);
        let operation = self.spans.get(&(label.id, label.span)).cloned();
        let endpoint = known.and_then(|known| {
            // A process that calls itself has several spans without a parent in one trace.
            if source != Source::Otel || !known.several || known.root == label.span {
                known.endpoint.clone()
            } else {
                None
            }
        });
        Called {
            source: Some(source),
            trace_id: match source {
                Source::Otel => Some(hex(label.id).into()),
                Source::Agent | Source::Wire => known.and_then(|known| known.trace_id.clone()),
            },
            segment_id: (source == Source::Agent).then(|| hex(label.id).into()),
            span: match source {
                Source::Agent => label.span.checked_sub(1).map(|span| span.to_string()),
                Source::Otel => Some(format!("{:016x}", label.span)),
                Source::Wire => None,
            },
            operation,
            endpoint,
            inherited: label.kind & KIND_INHERITED != 0,
        }
    }

    /// Whether a request is several: a trace that came to the process more than once.
    #[must_use]
    pub fn is_several(&self, request: &Request) -> bool {
        self.known(request).is_some_and(|known| known.several)
    }

    /// When a request began by its tracer's own clock, ms since 1970.
    #[must_use]
    pub fn began_ms(&self, request: &Request) -> Option<u64> {
        self.known(request).map(|known| known.began_ms).filter(|began| *began != 0)
    }

    fn intern(&mut self, text: String) -> Arc<str> {
        if let Some(known) = self.texts.get(&text) {
            return Arc::clone(known);
        }
        let shared: Arc<str> = text.as_str().into();
        if self.texts.len() < MAX_SPANS {
            self.texts.insert(text, Arc::clone(&shared));
        }
        shared
    }
}

/// Where a label comes from; `None` for no label.
fn source(label: &Label) -> Option<Source> {
    [Source::Agent, Source::Otel, Source::Wire]
        .into_iter()
        .find(|source| *source as u32 == label.kind & KIND_SOURCE)
}

fn hex([high, low]: [u64; 2]) -> String {
    format!("{high:016x}{low:016x}")
}

/// A text that is there from its begin to its end.
fn whole(text: &Text) -> Option<String> {
    let (text, cut) = decode(text)?;
    (!cut).then_some(text)
}

/// A text, marked if its end was cut.
fn text(text: &Text) -> Option<String> {
    let (mut text, cut) = decode(text)?;
    if cut {
        text.push(CUT);
    }
    Some(text)
}

fn decode(text: &Text) -> Option<(String, bool)> {
    let Text { length, width, words } = text;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let width_bytes = usize::try_from(*width).ok().filter(|width| matches!(width, 1 | 2 | 4))?;
    let kept = (bytes.len() / width_bytes).min(usize::try_from(*length).ok()?);
    let point = |bytes: &[u8]| {
        let number = bytes.iter().rev().fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
        // It ends up on terminals.
        char::from_u32(number).filter(|c| !c.is_control()).unwrap_or(char::REPLACEMENT_CHARACTER)
    };
    let text: String = bytes.chunks_exact(width_bytes).take(kept).map(point).collect();
    Some((text, kept < usize::try_from(*length).ok()?)).filter(|(text, _)| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use profiler_common::{
        label::{About, TEXT_WORDS},
        record::RecordHead,
    };

    use super::*;

    fn of(text: &str) -> Text {
        let mut words = [0; TEXT_WORDS];
        for (word, bytes) in words.iter_mut().zip(text.as_bytes().chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_le_bytes(whole);
        }
        Text { length: text.len() as u32, width: 1, words }
    }

    fn record(source: Source, span: u64, about: About) -> LabelRecord {
        let head = RecordHead { kind: 0, version: 0, target: 0, time_ns: 0 };
        LabelRecord { head, label: Label { id: [1, 2], span, kind: source as u32, target: 0 }, about }
    }

    #[test]
    fn a_segment_says_its_trace_and_its_endpoint() {
        let mut labels = Labels::default();
        let about =
            About { trace: of("a.b.c"), endpoint: of("/slow"), operation: of("query"), ..About::default() };
        let record = record(Source::Agent, 3, about);
        labels.take(&record);
        let called = labels.called(&record.label);
        assert_eq!(called.trace_id.as_deref(), Some("a.b.c"));
        assert_eq!(called.segment_id.as_deref(), Some("00000000000000010000000000000002"));
        assert_eq!((called.span.as_deref(), called.endpoint.as_deref()), (Some("2"), Some("/slow")));
        assert_eq!(called.operation.as_deref(), Some("query"));
        // Another span of the segment whose operation never came.
        let called = labels.called(&Label { span: 1, ..record.label });
        assert_eq!((called.operation, called.endpoint.as_deref()), (None, Some("/slow")));
    }

    #[test]
    fn a_cut_id_is_none_and_a_cut_name_is_marked() {
        let mut labels = Labels::default();
        let long = "x".repeat(TEXT_WORDS * 8);
        let mut cut = of(&long);
        cut.length += 1;
        let about = About { trace: cut, endpoint: cut, ..About::default() };
        let record = record(Source::Agent, 1, about);
        labels.take(&record);
        let called = labels.called(&record.label);
        assert_eq!(called.trace_id, None);
        assert_eq!(called.endpoint.as_deref(), Some(format!("{long}…").as_str()));
    }

    #[test]
    fn a_trace_that_comes_back_to_its_process_has_two_endpoints() {
        let mut labels = Labels::default();
        let root = |span, name| {
            record(Source::Otel, span, About { operation: of(name), flags: ABOUT_ROOT, ..About::default() })
        };
        labels.take(&root(7, "GET /a"));
        let child = Label { span: 9, ..root(7, "").label };
        assert_eq!(labels.called(&child).endpoint.as_deref(), Some("GET /a"));
        labels.take(&root(8, "GET /b"));
        assert_eq!(labels.called(&child).endpoint, None);
        assert_eq!(labels.called(&root(8, "").label).endpoint.as_deref(), Some("GET /b"));
    }

    #[test]
    fn the_newest_requests_have_names_when_there_is_no_room_any_more() {
        let mut labels = Labels::default();
        let most = MAX_REQUESTS as u64;
        labels.requests.extend((0..most).map(|number| ([0, number], Known::default())));
        let of_number = |number: u64| {
            let about = About { endpoint: of("/slow"), began_ms: number, ..About::default() };
            let mut record = record(Source::Agent, 1, about);
            record.label.id = [1, number];
            record
        };
        for number in 1..=MAX_LATE as u64 + 1 {
            labels.take(&of_number(number));
        }
        let last = of_number(MAX_LATE as u64 + 1).label;
        assert_eq!(labels.called(&last).endpoint.as_deref(), Some("/slow"));
        assert_eq!([[1, 1], [1, 2]].map(|request| labels.began_ms(&request)), [None, Some(2)]);
        assert_eq!((labels.dropped(), labels.late.len()), (MAX_LATE as u64 + 1, MAX_LATE));
    }

    #[test]
    fn no_label_is_called_nothing() {
        assert_eq!(Labels::default().called(&Label::NONE), Called::default());
    }
}
