//! OpenTelemetry's SDK in a process, from 1.20 on.
//!
//! <https://github.com/open-telemetry/opentelemetry-python/tree/v1.30.0>

use profiler_common::{
    address::Addr,
    fault::Fault,
    label::{NO_ATTRIBUTE, Source},
};

use super::{Identity, Look, Tracer, agent::string, shape::Places};
use crate::{
    memory::Bytes,
    python::{dict, instance},
};

/// The module of the SDK's spans; the API alone makes none that are reported.
pub(super) const MODULE: &str = "opentelemetry.sdk.trace";
const CONTEXT: &str = "opentelemetry.context";
/// What holds the variable, an instance of `ContextVarsRuntimeContext`.
const RUNTIME: &str = "_RUNTIME_CONTEXT";
const VARIABLE: &str = "_current_context";
const PROPAGATION: &str = "opentelemetry.trace.propagation";
const KEY: &str = "_SPAN_KEY";

pub(super) fn find<M: Bytes>(look: &mut Look<'_, M>) -> Result<Option<Tracer>, Fault> {
    let objects = *look.objects();
    let Some(runtime) = look.global(CONTEXT, RUNTIME)? else {
        return Ok(None);
    };
    let Some(variable) = instance::attribute(look.memory, &objects, runtime, VARIABLE)? else {
        return Ok(None);
    };
    let Some(mut config) = look.config(Source::Otel, variable)? else {
        return Ok(None);
    };
    let (Some(key), Some(dictionary), Some(tuple)) = (
        look.global(PROPAGATION, KEY)?,
        look.global("opentelemetry.context.context", "Context")?,
        look.global("opentelemetry.trace.span", "SpanContext")?,
    ) else {
        return Ok(None);
    };
    config.key = key;
    config.dict_class = dictionary;
    config.tuple_class = tuple;
    let spans = look.globals(MODULE)?.unwrap_or_default();
    // `_Span` is what the tracer makes.
    let classes = [look.pick(&spans, "_Span"), look.pick(&spans, "Span")];
    let mut places = Places { whole: true };
    let span = places.make(look, &classes, &["_context", "_end_time", "_name", "_parent"])?;
    let made = span.shapes.iter().any(|shape| {
        // A place without a class asks for attributes at 0.
        !shape.class.is_null() && shape.at.first().is_some_and(|at| *at != NO_ATTRIBUTE)
    });
    let [first, ..] = &mut config.places;
    *first = span;
    let identity = identity(look).unwrap_or_default();
    Ok(Some(Tracer { source: Source::Otel, identity, config, whole: made }))
}

fn identity<M: Bytes>(look: &mut Look<'_, M>) -> Result<Identity, Fault> {
    let resource = resource(look)?;
    let mut attribute = |name| {
        let objects = *look.objects();
        let at = dict::get(look.memory, &objects, resource?, name).ok()??;
        string(look, at)
    };
    Ok(Identity {
        service: attribute("service.name"),
        instance: attribute("service.instance.id"),
        profiler: None,
    })
}

/// The attributes of the global provider's resource: a dictionary.
fn resource<M: Bytes>(look: &mut Look<'_, M>) -> Result<Option<Addr>, Fault> {
    let objects = *look.objects();
    let Some(mut at) = look.global("opentelemetry.trace", "_TRACER_PROVIDER")? else {
        return Ok(None);
    };
    for name in ["_resource", "_attributes", "_dict"] {
        match instance::attribute(look.memory, &objects, at, name)? {
            Some(next) => at = next,
            None => return Ok(None),
        }
    }
    Ok(Some(at))
}
