//! SkyWalking's agent in a process, versions 0.8 to 1.3.
//!
//! <https://github.com/apache/skywalking-python/tree/v1.1.0/skywalking/trace>

use profiler_common::{
    address::Addr,
    fault::Fault,
    label::{Place, Source},
};

use super::{Identity, Look, Tracer, shape::Places};
use crate::{
    memory::Bytes,
    python::{class, text},
};

/// The module with the variable.
pub(super) const MODULE: &str = "skywalking.trace.context";
/// The variable: the list of spans, the innermost last.
const VARIABLE: &str = "__spans";
const SPANS: &str = "skywalking.trace.span";
const SEGMENTS: &str = "skywalking.trace.segment";
const IDENTITIES: &str = "skywalking.trace";
const CONFIG: &str = "skywalking.config";

pub(super) fn find<M: Bytes>(look: &mut Look<'_, M>) -> Result<Option<Tracer>, Fault> {
    let Some(variable) = look.global(MODULE, VARIABLE)? else {
        return Ok(None);
    };
    let Some(mut config) = look.config(Source::Agent, variable)? else {
        return Ok(None);
    };
    let contexts = look.globals(MODULE)?.unwrap_or_default();
    let spans = look.globals(SPANS)?.unwrap_or_default();
    let segments = look.globals(SEGMENTS)?.unwrap_or_default();
    let identities = look.globals(IDENTITIES)?.unwrap_or_default();
    let mut places = Places { whole: true };
    // Those that are reported; `NoopSpan` is not among them.
    let classes = ["Span", "EntrySpan", "ExitSpan"].map(|name| look.pick(&spans, name));
    let span_place = places.make(look, &classes, &["_depth", "context", "end_time", "sid", "op"])?;
    let context = look.pick(&contexts, "SpanContext");
    let primary = look.pick(&contexts, "PrimaryEndpoint");
    // Up to 0.8 a context has no primary endpoint.
    let names: &[&str] = if primary.is_some() { &["segment", "primary_endpoint"] } else { &["segment"] };
    let context_place = places.make(look, &[context], names)?;
    let segment = look.pick(&segments, "Segment");
    let segment_place = places.make(look, &[segment], &["segment_id", "related_traces", "timestamp"])?;
    // The id of a trace that was begun here is of a class of its own.
    let classes = [look.pick(&identities, "ID"), look.pick(&segments, "_NewID")];
    let identity_place = places.make(look, &classes, &["value"])?;
    let endpoint_place = match primary {
        Some(_) => places.make(look, &[primary], &["span"])?,
        None => Place::default(),
    };
    config.places = [span_place, context_place, segment_place, identity_place, endpoint_place];
    let identity = identity(look).unwrap_or_default();
    Ok(Some(Tracer { source: Source::Agent, identity, config, whole: places.whole }))
}

fn identity<M: Bytes>(look: &mut Look<'_, M>) -> Result<Identity, Fault> {
    let globals = look.globals(CONFIG)?.unwrap_or_default();
    // The names before 1.0 and after.
    let mut string = |names: [&str; 2]| {
        let at = names.into_iter().find_map(|name| look.pick(&globals, name))?;
        string(look, at)
    };
    let service = string(["agent_name", "service_name"]);
    let instance = string(["agent_instance_name", "service_instance"]);
    let profiler = ["agent_profile_active", "profile_active"]
        .into_iter()
        .find_map(|name| look.pick(&globals, name))
        .map(|value| value == look.natives.truth);
    Ok(Identity { service, instance, profiler })
}

pub(super) fn string<M: Bytes>(look: &mut Look<'_, M>, at: Addr) -> Option<String> {
    let objects = *look.objects();
    class::is_string(look.memory, &objects, at)
        .is_ok_and(|is| is)
        .then(|| text::string(look.memory, &objects, at).ok())
        .flatten()
}
