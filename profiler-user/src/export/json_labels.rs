//! What the json format says of requests.

use std::collections::BTreeMap;

use serde::Serialize;

use super::json::{FrameDocument, frames};
use crate::{
    profile::{Clocked, EndpointRow, Labelled, Observations, Profile, RequestRow, TracerRow},
    trace::{Called, Source},
};

#[derive(Serialize)]
pub(super) struct Tracer<'a> {
    source: &'static str,
    service: Option<&'a str>,
    instance: Option<&'a str>,
    profiler: Option<bool>,
}

#[derive(Serialize)]
pub(super) struct Looks<'a> {
    own: u64,
    given: u64,
    blank: &'a BTreeMap<&'static str, u64>,
    changed: u64,
    changed_ns: u64,
    outlived: u64,
    outlived_ns: u64,
}

#[derive(Serialize)]
pub(super) struct Label<'a> {
    trace_id: Option<&'a str>,
    segment_id: Option<&'a str>,
    endpoint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    span: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label_source: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inherited: Option<bool>,
}

#[derive(Serialize)]
struct Clock {
    on_cpu_ns: Option<u64>,
    blocked_ns: Option<u64>,
    preempted_ns: Option<u64>,
    gil_wait_ns: Option<u64>,
}

#[derive(Serialize)]
struct Inherited {
    #[serde(flatten)]
    clock: Clock,
    waiting_ns: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct Endpoint<'a> {
    endpoint: Option<&'a str>,
    requests: u64,
    whole: u64,
    wall_p50_ns: Option<u64>,
    wall_p95_ns: Option<u64>,
    #[serde(flatten)]
    clock: Clock,
    waiting_ns: Option<u64>,
    queued_ns: Option<u64>,
    queued_at_most_ns: Option<u64>,
    inherited: Inherited,
    top_wait: Option<TopWait<'a>>,
}

#[derive(Serialize)]
struct TopWait<'a> {
    frames: Vec<FrameDocument<'a>>,
    ns: u64,
}

#[derive(Serialize)]
pub(super) struct Request<'a> {
    pid: u32,
    trace_id: Option<&'a str>,
    segment_id: Option<&'a str>,
    endpoint: Option<&'a str>,
    label_source: Option<&'static str>,
    begin_ns: Option<u64>,
    wall_ns: Option<u64>,
    #[serde(flatten)]
    clock: Clock,
    waiting_ns: Option<u64>,
    queued_ns: Option<u64>,
    queued_at_most_ns: Option<u64>,
    inherited: Inherited,
}

const fn source(source: Source) -> &'static str {
    match source {
        Source::Agent => "agent",
        Source::Otel => "otel",
        Source::Wire => "wire",
    }
}

fn clock(clock: Option<Clocked>) -> Clock {
    Clock {
        on_cpu_ns: clock.map(|clock| clock.on_cpu_ns),
        blocked_ns: clock.map(|clock| clock.blocked_ns),
        preempted_ns: clock.map(|clock| clock.preempted_ns),
        gil_wait_ns: clock.map(|clock| clock.gil_wait_ns),
    }
}

pub(super) fn tracer(row: &TracerRow) -> Tracer<'_> {
    let TracerRow { source: row_source, service, instance, profiler } = row;
    Tracer {
        source: source(*row_source),
        service: service.as_deref(),
        instance: instance.as_deref(),
        profiler: *profiler,
    }
}

pub(super) fn looks(row: &Observations) -> Looks<'_> {
    let Observations { own, given, blank, changed, changed_ns, outlived, outlived_ns } = row;
    Looks {
        own: *own,
        given: *given,
        blank,
        changed: *changed,
        changed_ns: *changed_ns,
        outlived: *outlived,
        outlived_ns: *outlived_ns,
    }
}

pub(super) fn label(label: Labelled, profile: &Profile) -> Label<'_> {
    static NONE: Called = Called::NONE;
    let called = label.and_then(|label| profile.labels.get(usize::try_from(label).ok()?)).unwrap_or(&NONE);
    let Called { source: from, trace_id, segment_id, span, operation, endpoint, inherited } = called;
    Label {
        trace_id: trace_id.as_deref(),
        segment_id: segment_id.as_deref(),
        span: span.as_deref(),
        operation: operation.as_deref(),
        endpoint: endpoint.as_deref(),
        label_source: from.map(source),
        inherited: from.map(|_| *inherited),
    }
}

pub(super) fn endpoint(row: &EndpointRow) -> Endpoint<'_> {
    let EndpointRow {
        endpoint: of,
        requests,
        whole,
        wall_p50_ns,
        wall_p95_ns,
        clock: row_clock,
        waiting_ns,
        queued,
        inherited_clock,
        inherited_waiting_ns,
        top_wait,
    } = row;
    Endpoint {
        endpoint: of.as_deref(),
        requests: *requests,
        whole: *whole,
        wall_p50_ns: *wall_p50_ns,
        wall_p95_ns: *wall_p95_ns,
        clock: clock(*row_clock),
        waiting_ns: *waiting_ns,
        queued_ns: queued.map(|queued| queued.least_ns),
        queued_at_most_ns: queued.map(|queued| queued.most_ns),
        inherited: Inherited { clock: clock(*inherited_clock), waiting_ns: *inherited_waiting_ns },
        top_wait: top_wait.as_ref().map(|(stack, ns)| TopWait { frames: frames(stack), ns: *ns }),
    }
}

pub(super) fn request(row: &RequestRow) -> Request<'_> {
    let RequestRow {
        pid,
        source: from,
        trace_id,
        segment_id,
        endpoint: of,
        begin_ns,
        wall_ns,
        clock: row_clock,
        waiting_ns,
        queued,
        inherited_clock,
        inherited_waiting_ns,
    } = row;
    Request {
        pid: *pid,
        trace_id: trace_id.as_deref(),
        segment_id: segment_id.as_deref(),
        endpoint: of.as_deref(),
        label_source: from.map(source),
        begin_ns: *begin_ns,
        wall_ns: *wall_ns,
        clock: clock(*row_clock),
        waiting_ns: *waiting_ns,
        queued_ns: queued.map(|queued| queued.least_ns),
        queued_at_most_ns: queued.map(|queued| queued.most_ns),
        inherited: Inherited { clock: clock(*inherited_clock), waiting_ns: *inherited_waiting_ns },
    }
}
