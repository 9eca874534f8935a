"""The tracers of traced.py and spans.py, and what each of them says by its own API.

`Agent` is SkyWalking's own, without a backend and without its profiler. Its queue of
finished segments would fill (10 000, then every span is a NoopSpan), so its own option
is raised: SW_AGENT_TRACE_REPORTER_MAX_BUFFER_SIZE, SW_AGENT_MAX_BUFFER_SIZE in 0.8.0.
tests/traced/README.md says which version works on which Python.

A label is a dictionary of `trace_id`, `segment_id`, `span_id`, `operation` and
`endpoint`; for SkyWalking the span's id is a number, for OpenTelemetry the endpoint is
the service's and null here. None is no label.

Everything that is imported here late must be imported after the monkey-patching.
"""

import base64
import contextlib
import importlib.metadata
import os
import socket
import sys

SERVICE = "traced"
INSTANCE = "traced-instance"
IGNORED = "/static-ignored"

# What a switch book knows of the leaver, as it is written into one byte.
STATES = ["none", "dead", "unset", "empty", "span", "other"]
NONE, DEAD, UNSET, EMPTY, SPAN, OTHER = range(len(STATES))
CLASSES = ["", "Span", "EntrySpan", "ExitSpan", "NoopSpan", "_Span", "NonRecordingSpan"]
NO_ID = bytes(16)


def closed_port():
    """A port of the loopback that refuses connections, as long as this process lives."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    _held.append(held)
    return held.getsockname()[1]


_held = []


class Wire:
    """No tracer: what is known of a request are its own headers."""

    name = "wire"
    version = None
    facts = {"service": None, "instance": None}

    def start(self):
        """Nothing to start."""

    def instrument(self, app):
        """Nothing to instrument."""

    def current(self):
        """No label by an API; the service takes the headers."""
        return None

    def child(self, _name):
        """No span."""
        return contextlib.nullcontext()

    observe = None

    @staticmethod
    def of_headers(environ):
        """What the incoming headers say: (which, label)."""
        sw8 = environ.get("HTTP_SW8")
        if sw8:
            parts = sw8.split("-")
            trace_id, segment_id, endpoint = (
                base64.b64decode(parts[place]).decode() for place in (1, 2, 6)
            )
            return "sw8", _label(trace_id, segment_id, int(parts[3]), None, endpoint)
        traceparent = environ.get("HTTP_TRACEPARENT")
        if traceparent:
            _, trace_id, span_id, _ = traceparent.split("-")
            return "traceparent", _label(trace_id, None, span_id, None, None)
        return None, None


class Agent:
    """The agent of SkyWalking."""

    name = "agent"
    by_hand = True
    """Whether its plugin is installed where it does not do that itself."""

    def start(self):
        """Start it as a service does, and its Flask plugin by hand where it does not."""
        self.version = importlib.metadata.version("apache-skywalking")
        port = closed_port()
        options = {
            "SW_AGENT_NAME": SERVICE,
            "SW_AGENT_INSTANCE_NAME": INSTANCE,
            "SW_AGENT_COLLECTOR_BACKEND_SERVICES": f"127.0.0.1:{port}",
            "SW_AGENT_PROFILE_ACTIVE": "False",
            "SW_AGENT_METER_REPORTER_ACTIVE": "False",
            "SW_AGENT_LOG_REPORTER_ACTIVE": "False",
            "SW_AGENT_LOGGING_LEVEL": "CRITICAL",
            "SW_AGENT_TRACE_REPORTER_MAX_BUFFER_SIZE": "100000000",
            "SW_AGENT_TRACE_IGNORE_PATH": IGNORED,
            # The same in 0.8.0.
            "SW_AGENT_INSTANCE": INSTANCE,
            "SW_AGENT_MAX_BUFFER_SIZE": "100000000",
            "SW_TRACE_IGNORE_PATH": IGNORED,
        }
        if sys.version_info >= (3, 12) and self.version in ("0.8.0", "1.0.1", "1.1.0"):
            # They look for plugins by a method that Python 3.12 has no more; start()
            # raises AttributeError unless none is wanted.
            options["SW_AGENT_DISABLE_PLUGINS"] = ".*"
        for option, value in options.items():
            os.environ.setdefault(option, value)
        from skywalking import agent

        agent.start()
        from flask import Flask

        self.plugin = "agent"
        # The agent loads its plugins as modules of their own: `sw_flask`.
        if self.by_hand and Flask.full_dispatch_request.__module__ == "flask.app":
            from skywalking.plugins import sw_flask

            sw_flask.install()
            self.plugin = "by hand"
        from skywalking.trace import context

        self.variable = vars(context)["__spans"]
        self.context = context
        self.facts = {"service": SERVICE, "instance": INSTANCE, "plugin": self.plugin}

    def instrument(self, app):
        """Its plugin has replaced Flask's methods already."""

    def current(self):
        """The label of the innermost span of the calling greenlet's context."""
        spans = self.variable.get(None)
        return self.label(spans[-1], spans) if spans else None

    @staticmethod
    def label(span, spans):
        """What a reader should find at this span, which is live."""
        if type(span).__name__ == "NoopSpan":
            return None
        segment = span.context.segment
        primary = getattr(span.context, "primary_endpoint", None)
        first = primary.span if primary else spans[0]
        return _label(segment.related_traces[0].value, segment.segment_id.value,
                      span.sid, span.op, first.op)

    def child(self, name):
        """A local span in the current segment, or a segment of its own."""
        return self.context.get_context().new_local_span(op=name)

    def observe(self, context):
        """State, class, depth, whether it ended, and the ids of a context's last span."""
        if context is None:
            return NONE, 0, 0, 0, NO_ID, 0
        spans = context.get(self.variable)
        if spans is None:
            return UNSET, 0, 0, 0, NO_ID, 0
        if not spans:
            return EMPTY, 0, 0, 0, NO_ID, 0
        span = spans[-1]
        value = span.context.segment.segment_id.value
        try:
            segment_id = bytes.fromhex(value) if len(value) == 32 else NO_ID
        except ValueError:
            segment_id = NO_ID
        return (SPAN, _class(span), min(span._depth, 255), span.end_time != 0,
                segment_id, span.sid % (1 << 64))


class OpenTelemetry:
    """OpenTelemetry's SDK, all spans sampled and none sent anywhere."""

    name = "otel"
    ratio = None
    """Of the traces that begin here, how many are sampled; None for all."""

    def start(self):
        """A provider whose exporter drops what it gets."""
        self.version = importlib.metadata.version("opentelemetry-sdk")
        from opentelemetry import trace
        from opentelemetry.sdk import trace as sdk
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import export, sampling
        from opentelemetry.trace import propagation

        class Nowhere(export.SpanExporter):
            """Takes every span and keeps none."""

            def export(self, _spans):
                return export.SpanExportResult.SUCCESS

        self.trace = trace
        self.sdk = sdk
        facts = {"service.name": SERVICE, "service.instance.id": INSTANCE}
        sampler = sampling.ALWAYS_ON
        if self.ratio is not None:
            sampler = sampling.ParentBasedTraceIdRatio(self.ratio)
        provider = sdk.TracerProvider(sampler=sampler, resource=Resource.create(facts))
        provider.add_span_processor(export.SimpleSpanProcessor(Nowhere()))
        trace.set_tracer_provider(provider)
        self.tracer = trace.get_tracer("traced")
        self.key = propagation._SPAN_KEY
        from opentelemetry import context

        context.get_current()  # 1.20 makes its variable at the first use
        self.context = context
        self.variable = context._RUNTIME_CONTEXT._current_context
        self.facts = {"service": SERVICE, "instance": INSTANCE}

    def instrument(self, app):
        """Flask's instrumentation, without spans for what is ignored."""
        from opentelemetry.instrumentation.flask import FlaskInstrumentor

        FlaskInstrumentor().instrument_app(app, excluded_urls=IGNORED.strip("/"))

    def current(self):
        """The label of the current span."""
        return self.label(self.trace.get_current_span())

    @staticmethod
    def label(span):
        """What a reader should find at this span, if it is valid."""
        ids = span.get_span_context()
        if not ids.is_valid:
            return None
        return _label(f"{ids.trace_id:032x}", None, f"{ids.span_id:016x}",
                      getattr(span, "name", None), None)

    def child(self, name):
        """A span below the current one, or the root of a trace of its own."""
        return self.tracer.start_as_current_span(name)

    def observe(self, context):
        """State, class, whether it records, whether it ended, and the current span's ids."""
        if context is None:
            return NONE, 0, 0, 0, NO_ID, 0
        values = context.get(self.variable)
        if values is None:
            return UNSET, 0, 0, 0, NO_ID, 0
        span = values.get(self.key)
        if span is None:
            return EMPTY, 0, 0, 0, NO_ID, 0
        ids = span.get_span_context()
        ended = getattr(span, "_end_time", None) is not None
        return (SPAN, _class(span), span.is_recording(), ended,
                ids.trace_id.to_bytes(16, "big"), ids.span_id)


def named(name):
    """The tracer for `--labels`."""
    return {"agent": Agent, "otel": OpenTelemetry, "wire": Wire}[name]()


def _class(span):
    name = type(span).__name__
    return CLASSES.index(name) if name in CLASSES else 0


def _label(trace_id, segment_id, span_id, operation, endpoint):
    return {"trace_id": trace_id, "segment_id": segment_id, "span_id": span_id,
            "operation": operation, "endpoint": endpoint}
