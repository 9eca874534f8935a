"""The cases of spans.py for OpenTelemetry.

Each function of `CASES` takes its `Case`, makes spans in its own context and holds them.
"""

import contextvars

import spans_both
from spans_both import given, now

tracer = None


def prepare(started):
    """Take the tracer, and OpenTelemetry's own modules."""
    global tracer, trace, context, Context, sdk, without
    tracer = started
    trace = tracer.trace
    sdk = tracer.sdk
    from opentelemetry import context
    from opentelemetry.context.context import Context
    from opentelemetry.sdk.trace import sampling

    without = sdk.TracerProvider(sampler=sampling.ALWAYS_OFF).get_tracer("without")
    spans_both.prepare(tracer, begin)


def begin(name="entry", by=None):
    """A span of the current one, made current."""
    span = (by or tracer.tracer).start_span(name)
    attach(span)
    return span


def attach(span):
    """Make it current; returns what detaches it."""
    return context.attach(trace.set_span_in_context(span))


def remote(trace_id, span_id, flags=1):
    """What a propagator makes of an incoming header."""
    ids = trace.SpanContext(trace_id, span_id, True, trace.TraceFlags(flags))
    return trace.NonRecordingSpan(ids)


# Nesting.


def child_span(me):
    begin("/outer")
    begin("inner")
    me.hold(now())


def hundred_deep(me):
    for depth in range(100):
        begin(f"inner-{depth}")
    me.hold(now())


def inner_span_over(me):
    begin("/outer")
    with tracer.tracer.start_as_current_span("inner"):
        pass
    me.hold(now())


def child_of_remote(me):
    attach(remote(0xA1B2 << 96 | 1, 0xC3))
    begin("/called")
    me.hold(now())


def server_span(me):
    span = tracer.tracer.start_span("/served", kind=trace.SpanKind.SERVER)
    attach(span)
    me.hold(now())


# Spans that do not record: ids, but no name, and nobody may ever see them.


def remote_span(me):
    attach(remote(0xFEED << 100 | 7, 0xBEEF << 40 | 7))
    me.hold(now(), may_be_null=True)


def remote_span_not_sampled(me):
    attach(remote(0xFEED << 100 | 8, 0xBEEF << 40 | 8, flags=0))
    me.hold(now(), may_be_null=True)


def span_not_sampled(me):
    begin("dropped", by=without)
    me.hold(now(), may_be_null=True)


def invalid_span(me):
    attach(trace.INVALID_SPAN)
    me.hold(None)


def no_trace_id(me):
    attach(remote(0, 5))
    me.hold(None)


def no_span_id(me):
    attach(remote(5, 0))
    me.hold(None)


# Ids and names.


def with_ids(me, trace_id, span_id):
    span = begin("ids")
    span._context = trace.SpanContext(trace_id, span_id, False, trace.TraceFlags(1))
    me.hold(now())


def small_ids(me):
    with_ids(me, 1, 1)


def ids_of_one_digit(me):
    # CPython keeps an int in digits of 30 bits.
    with_ids(me, (1 << 30) - 1, (1 << 30) - 1)


def ids_of_two_digits(me):
    with_ids(me, 1 << 30, 1 << 30)


def greatest_ids(me):
    with_ids(me, (1 << 128) - 1, (1 << 64) - 1)


def ids_of_one_bit(me):
    with_ids(me, 1 << 127, 1 << 63)


def ids_with_zeros(me):
    with_ids(me, 0xFF << 60, 0xFF << 30)


def name_changed(me):
    begin("before").update_name("after")
    me.hold(now())


# Forms of instances.


def vars_of_span(me):
    vars(begin())
    me.hold(now())


def repr_of_span(me):
    repr(begin())
    me.hold(now())


def json_of_span(me):
    begin().to_json()
    me.hold(now())


def vars_of_span_context(me):
    vars(begin().get_span_context())
    me.hold(now())


def attribute_added(me):
    begin().added = 1
    me.hold(now())


def attribute_added_by_vars(me):
    vars(begin())["added"] = 1
    me.hold(now())


def many_attributes_added(me):
    span = begin()
    for number in range(300):
        setattr(span, f"added_{number}", number)
    me.hold(now(), may_be_null=True)


def attributes_made_anew(me):
    span = begin()
    for name, value in list(vars(span).items()):
        delattr(span, name)
        setattr(span, name, value)
    me.hold(now())


def assigned(me, change=dict):
    """Give the span a dictionary of its own."""
    span = begin()
    span.__dict__ = change(vars(span))
    me.hold(now(), may_be_null=True)


def dict_assigned(me):
    assigned(me)


def dict_reversed(me):
    assigned(me, lambda old: dict(reversed(old.items())))


def dict_large(me):
    assigned(me, lambda old: {f"more_{number}": 0 for number in range(1000)} | old)


def dict_with_number(me):
    assigned(me, lambda old: {7: 7} | old)


def inline_of_another(me):
    # What it had before its dictionary was assigned is another span's.
    span = begin("/this one")
    other = tracer.tracer.start_span("/not this one")
    other.__dict__ = dict(vars(span))
    attach(other)
    me.hold(now(), may_be_null=True)


# Contexts: OpenTelemetry's values in Python's own.


def values(count):
    """That many values beside the span's, made before it."""
    for number in range(count):
        context.attach(context.set_value(f"value-{number}", number))


def values_2(me):
    values(1)
    begin()
    me.hold(now())


def values_6(me):
    values(5)
    begin()
    me.hold(now())


def values_85(me):
    # Real ones have a few; greenscope looks at no more.
    values(84)
    begin()
    me.hold(now())


def values_300(me):
    values(299)
    begin()
    me.hold(now(), may_be_null=True)


def values_after(me):
    begin()
    values(20)
    me.hold(now())


def values_of_equal_key(me):
    # The same text as the key and not the same object.
    span = tracer.tracer.start_span("/equal")
    context.attach(Context({tracer.key[:1] + tracer.key[1:]: span}))
    me.hold(now(), may_be_null=True)


def values_with_number(me):
    # Keys that are not all strings make another kind of table.
    span = tracer.tracer.start_span("/number")
    context.attach(Context({7: 7, tracer.key: span}))
    me.hold(now(), may_be_null=True)


def plain_dict(me):
    context.attach({tracer.key: tracer.tracer.start_span("/plain")})
    me.hold(now(), may_be_null=True)


def key_by_another_name(me):
    span = tracer.tracer.start_span("/not current")
    context.attach(context.set_value("current-span-of-another", span))
    me.hold(None)


# Impostors.


def impostor_class(me):
    other = type("_Span", (), {"__module__": "opentelemetry.sdk.trace"})()
    vars(other).update(vars(tracer.tracer.start_span("/not this one")))
    context.attach(context.set_value(tracer.key, other))
    me.hold(None)


def no_span_at_the_key(me):
    context.attach(context.set_value(tracer.key, "a text"))
    me.hold(None)


def subclassed_span(me):
    class Own(sdk._Span):
        pass

    span = tracer.tracer.start_span("/own")
    span.__class__ = Own
    attach(span)
    me.hold(now(), may_be_null=True)


# No span, or none that is live.


def empty_values(me):
    context.attach(Context())
    me.hold(None)


def other_values(me):
    values(3)
    me.hold(None)


def detached(me):
    context.detach(attach(tracer.tracer.start_span("/over")))
    me.hold(None)


def ended_and_current(me):
    begin("/over").end()
    me.hold(None)


def ended_over_live(me):
    begin("/live")
    begin("over").end()
    me.hold(None)


def suppressed(me):
    # What an exporter does while it sends; the span is still the current one.
    begin("/sending")
    context.attach(context.set_value(context._SUPPRESS_INSTRUMENTATION_KEY, True))
    me.hold(now())


def ended_in_a_copy(me):
    def elsewhere():
        with tracer.tracer.start_as_current_span("/over"):
            return contextvars.copy_context()

    given(contextvars.Context().run(elsewhere))
    me.hold(None)


CASES = [
    *spans_both.CASES, child_span, hundred_deep, inner_span_over, child_of_remote,
    server_span, remote_span, remote_span_not_sampled, span_not_sampled, invalid_span,
    no_trace_id, no_span_id, small_ids, ids_of_one_digit, ids_of_two_digits, greatest_ids,
    ids_of_one_bit, ids_with_zeros, name_changed, vars_of_span, repr_of_span, json_of_span,
    vars_of_span_context, attribute_added, attribute_added_by_vars, many_attributes_added,
    attributes_made_anew, dict_assigned, dict_reversed, dict_large, dict_with_number,
    inline_of_another, values_2, values_6, values_85, values_300, values_after,
    values_of_equal_key, values_with_number, plain_dict, key_by_another_name,
    impostor_class, no_span_at_the_key, subclassed_span, empty_values, other_values,
    detached, ended_and_current, ended_over_live, suppressed, ended_in_a_copy,
]
THREADS = spans_both.THREADS
LIVELY = spans_both.LIVELY
