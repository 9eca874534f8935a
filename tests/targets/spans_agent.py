"""The cases of spans.py for SkyWalking's agent.

Each function of `CASES` takes its `Case`, makes spans in its own context and holds them.
"""

import contextvars

import spans
import spans_both
import tracers
from spans_both import given, live_value, now

tracer = None


def prepare(started):
    """Take the tracer, and the agent's own modules."""
    global tracer, EntrySpan, Carrier, ID, NoopContext, NoopSpan, Component
    tracer = started
    from skywalking import Component
    from skywalking.trace import ID
    from skywalking.trace.carrier import Carrier
    from skywalking.trace.context import NoopContext
    from skywalking.trace.span import EntrySpan, NoopSpan

    spans_both.prepare(tracer, begin)


def begin(op="/entry", carrier=None):
    """An entry span, started."""
    span = tracer.context.get_context().new_entry_span(op=op, carrier=carrier)
    span.start()
    return span


def local(op):
    """A local span, started."""
    span = tracer.context.get_context().new_local_span(op=op)
    span.start()
    return span


def exits(op):
    """An exit span, started."""
    span = tracer.context.get_context().new_exit_span(op=op, peer="10.0.0.1:80")
    span.start()
    return span


# Nesting.


def local_span_inside(me):
    begin("/outer")
    local("inner")
    me.hold(now())


def exit_span_inside(me):
    begin("/outer")
    exits("out")
    me.hold(now())


def three_deep(me):
    begin("/outer")
    local("middle")
    exits("inner")
    me.hold(now())


def hundred_deep(me):
    begin("/outer")
    for depth in range(99):
        local(f"inner-{depth}")
    me.hold(now())


def local_span_alone(me):
    local("no entry")
    me.hold(now())


def inner_span_over(me):
    begin("/outer")
    local("over").stop()
    me.hold(now())


def renamed_entry(me):
    begin("/first").component = Component.General
    tracer.context.get_context().new_entry_span(op="/second",
                                                inherit=Component.General).start()
    me.hold(now())


# Ids and names.


def upstream(me, trace_id, op="/called"):
    carrier = Carrier(trace_id=trace_id, segment_id="1" * 32, span_id="0",
                      service="gateway", service_instance="gateway-1", endpoint="/ask",
                      client_address="10.0.0.1:80")
    begin(op, carrier)
    label = now()
    assert label["trace_id"] == trace_id
    me.hold(label)


def upstream_trace(me):
    upstream(me, "a1b2c3.42.16094012345670001")


def long_trace_id(me):
    upstream(me, "t" * 400)


def segment_id_no_hex(me):
    begin("/own").context.segment.segment_id = ID("this segment was named by a person")
    me.hold(now(), may_be_null=True)


def segment_id_upper_case(me):
    begin("/own").context.segment.segment_id = ID("ABCDEF0123456789" * 2)
    me.hold(now(), may_be_null=True)


# Forms of instances: what `vars()` and attributes of one's own make of them.


def vars_of_span(me):
    vars(begin())
    me.hold(now())


def str_of_span(me):
    str(begin())
    me.hold(now())


def vars_of_context(me):
    vars(begin().context)
    me.hold(now())


def vars_of_segment(me):
    vars(begin().context.segment)
    me.hold(now())


def vars_of_id(me):
    vars(begin().context.segment.segment_id)
    me.hold(now())


def vars_of_trace_id(me):
    vars(begin().context.segment.related_traces[0])
    me.hold(now())


def all_of(span):
    """Every object on the way from the span to its label."""
    found = [span, span.context, span.context.segment, span.context.segment.segment_id,
             span.context.segment.related_traces[0]]
    primary = getattr(span.context, "primary_endpoint", None)
    return [*found, primary] if primary else found


def vars_of_all(me):
    for one in all_of(begin()):
        vars(one)
    me.hold(now())


def vars_of_all_kept(me):
    kept = [vars(one) for one in all_of(begin())]
    me.hold(now() if kept else None)


def attribute_added(me):
    for one in all_of(begin()):
        one.added = 1
    me.hold(now())


def attribute_added_by_vars(me):
    for one in all_of(begin()):
        vars(one)["added"] = 1
    me.hold(now())


def many_attributes_added(me):
    for one in all_of(begin()):
        for number in range(300):
            setattr(one, f"added_{number}", number)
    me.hold(now(), may_be_null=True)


def attribute_removed(me):
    span = begin()
    del span.peer, span.context._correlation, span.context.segment.spans
    me.hold(now())


def attributes_made_anew(me):
    for one in all_of(begin()):
        for name, value in list(vars(one).items()):
            delattr(one, name)
            setattr(one, name, value)
    me.hold(now())


def assigned(me, change=dict, of=None):
    """Give the instances a dictionary of their own."""
    span = begin()
    for one in all_of(span) if of is None else [of(span)]:
        one.__dict__ = change(vars(one))
    me.hold(now(), may_be_null=True)


def dict_assigned(me):
    assigned(me)


def dict_assigned_to_span(me):
    assigned(me, of=lambda span: span)


def dict_assigned_to_context(me):
    assigned(me, of=lambda span: span.context)


def dict_assigned_to_segment(me):
    assigned(me, of=lambda span: span.context.segment)


def dict_assigned_to_id(me):
    assigned(me, of=lambda span: span.context.segment.segment_id)


def dict_reversed(me):
    assigned(me, lambda old: dict(reversed(old.items())))


def dict_with_holes(me):
    def holes(old):
        new = {f"gone_{number}": 0 for number in range(10)} | old
        for number in range(10):
            del new[f"gone_{number}"]
        return new

    assigned(me, holes)


def dict_large(me):
    assigned(me, lambda old: {f"more_{number}": 0 for number in range(1000)} | old)


def dict_with_number(me):
    assigned(me, lambda old: {7: 7} | old)


def dict_with_equal_keys(me):
    # Keys that are equal to the attributes' names and not the same objects.
    assigned(me, lambda old: {name[:1] + name[1:]: value for name, value in old.items()})


class Dictionary(dict):
    """No reader knows it."""


def dict_subclassed(me):
    assigned(me, Dictionary)


def inline_of_another(me):
    # The instance has its own dictionary with the values of this span; what it had
    # before, another span's, lies behind it still.
    begin("/other")
    span = tracer.variable.get()[-1]
    other = EntrySpan(context=tracer.context.SpanContext(), sid=7, op="/not this one")
    other._depth = 1
    other.__dict__ = dict(vars(span))
    tracer.variable.set([other])
    me.hold(now(), may_be_null=True)


# Contexts.


def set_often(me):
    for _ in range(1000):
        tracer.variable.set([])
    begin()
    me.hold(now())


# Impostors: no label, though something looks like one.


def impostor_class(me):
    other = type("EntrySpan", (), {"__module__": "skywalking.trace.span"})()
    vars(other).update(vars(live_value()[0]))
    tracer.variable.set([other])
    me.hold(None)


def tuple_of_spans(me):
    tracer.variable.set(tuple(live_value()))
    me.hold(None)


def none_for_a_list(me):
    tracer.variable.set(None)
    me.hold(None)


def subclassed_span(me):
    class Own(EntrySpan):
        pass

    tracer.variable.set([])
    span = Own(context=tracer.context.SpanContext(), sid=0, op="/own")
    span.start()
    me.hold(now(), may_be_null=True)


def subclassed_list(me):
    tracer.variable.set(type("List", (list,), {})(live_value()))
    me.hold(now(), may_be_null=True)


# No span, none that is live, or one that is nobody's.


def empty_list(me):
    tracer.variable.set([])
    me.hold(None)


def all_over(me):
    begin().stop()
    me.hold(None)


def noop_span(me):
    begin(tracers.IGNORED)
    me.hold(None)


def noop_by_hand(me):
    tracer.variable.set([])  # up to 1.1.0 a span can't start without a list
    NoopSpan(NoopContext()).start()
    me.hold(None)


def noop_inside_of_noop(me):
    begin(tracers.IGNORED)
    local("inside")
    me.hold(None)


def finished_in_a_copy(me):
    def elsewhere():
        span = begin("/over")
        copy = contextvars.copy_context()
        span.stop()
        return copy

    given(contextvars.Context().run(elsewhere))
    me.hold(None)


def live_over_finished(me):
    def elsewhere():
        span = begin("/over")
        span.peer = "10.0.0.1:80"  # as the Flask plugin does; a new segment refers to it
        copy = contextvars.copy_context()
        span.stop()
        return copy

    given(contextvars.Context().run(elsewhere))
    local("after it")
    me.hold(now())


def finished_over_live(me):
    # Its innermost span is over. The one below is live, but a new span here would not
    # be its child: the agent begins a segment of its own.
    def elsewhere():
        begin("/live")
        span = local("over")
        copy = contextvars.copy_context()
        span.stop()
        return copy

    given(contextvars.Context().run(elsewhere))
    me.hold(None)


def thread_with_noop_span(me):
    begin(tracers.IGNORED)
    me.hold(None)


def bears_in_noop(me):
    """What is ignored has nothing to inherit."""
    begin(tracers.IGNORED)
    me.expect(None)
    while True:
        spans.bear(born_in_noop, None)
        me.wait()


def born_in_noop():
    """Nobody's."""
    spans.main.switch()


CASES = [
    *spans_both.CASES, local_span_inside, exit_span_inside, three_deep, hundred_deep,
    local_span_alone, inner_span_over, renamed_entry, upstream_trace, long_trace_id,
    segment_id_no_hex, segment_id_upper_case, vars_of_span, str_of_span, vars_of_context,
    vars_of_segment, vars_of_id, vars_of_trace_id, vars_of_all, vars_of_all_kept,
    attribute_added, attribute_added_by_vars, many_attributes_added, attribute_removed,
    attributes_made_anew, dict_assigned, dict_assigned_to_span, dict_assigned_to_context,
    dict_assigned_to_segment, dict_assigned_to_id, dict_reversed, dict_with_holes,
    dict_large, dict_with_number, dict_with_equal_keys, dict_subclassed, inline_of_another,
    set_often, impostor_class, tuple_of_spans, none_for_a_list, subclassed_span,
    subclassed_list, empty_list, all_over, noop_span, noop_by_hand, noop_inside_of_noop,
    finished_in_a_copy, live_over_finished, finished_over_live,
]
THREADS = [*spans_both.THREADS, thread_with_noop_span]
LIVELY = [*spans_both.LIVELY, bears_in_noop]
