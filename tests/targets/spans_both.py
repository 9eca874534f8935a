"""The cases of spans.py that are the same for both tracers."""

import contextvars

import greenlet

import crowds
import spans

tracer = None
begin = None


def prepare(started, begins):
    """Take the tracer, and what begins a span and makes it current."""
    global tracer, begin
    tracer = started
    begin = begins


def now():
    """What is right, by the tracer's own API."""
    return tracer.current()


def given(context):
    """The calling greenlet has this context from now on."""
    greenlet.getcurrent().gr_context = context


def one_span(me):
    begin("/one")
    me.hold(now())


# Names.


def long_name(me):
    begin("/" + "n" * 5000)
    me.hold(now())


def latin_name(me):
    begin("/größe")
    me.hold(now())


def wide_name(me):
    begin("/имя/\u2603")
    me.hold(now())


def widest_name(me):
    begin("/\U0001f40d")
    me.hold(now())


def empty_name(me):
    begin("")
    me.hold(now())


# Contexts.


def context_of_1(me):
    begin("/alone")
    me.hold(now())


def context_of_45(me):
    crowds.fill(44)
    begin("/crowd")
    me.hold(now())


def context_of_3000(me):
    crowds.fill(2999)
    begin("/crowd")
    me.hold(now())


def hash_met(me):
    crowds.meet(tracer.variable, 1)
    begin("/met")
    me.hold(now())


def hash_met_often(me):
    begin("/met")
    crowds.meet(tracer.variable, 20)
    me.hold(now())


def hash_met_in_a_crowd(me):
    crowds.fill(500)
    crowds.meet(tracer.variable, 3)
    begin("/met")
    me.hold(now())


def seven_levels(me):
    crowds.meet_below(tracer.variable, 30)
    begin("/deep")
    me.hold(now())


def seven_levels_and_met(me):
    crowds.meet_below(tracer.variable, 31)
    crowds.meet(tracer.variable, 2)
    crowds.crowd_below(tracer.variable, 10, 31)
    begin("/deep")
    me.hold(now())


def array_below(me):
    crowds.crowd_below(tracer.variable, 5, 31)
    crowds.crowd_below(tracer.variable, 20, 17)
    begin("/deep")
    me.hold(now())


def inside_of_run(me):
    begin("/around")

    def inner():
        with tracer.child("inside"):
            me.hold(now())

    contextvars.copy_context().run(inner)


def inside_of_empty_run(me):
    # Python's current context is the empty one; the other one only comes back.
    begin("/around")
    contextvars.Context().run(me.hold, None)


def live_in_a_copy(me):
    given(contextvars.Context().run(lambda: begin("/shared") and contextvars.copy_context()))
    me.hold(now())


def no_context(me):
    me.hold(None)


def variable_not_set(me):
    crowds.fill(3)
    me.hold(None)


# Impostors: no label, though something looks like one.


def live_value():
    """The variable's value with a live span, made in another context."""
    return contextvars.Context().run(lambda: begin("/not mine") and tracer.variable.get())


def impostor_with_the_hash(me):
    crowds.with_hash(hash(tracer.variable)).set(live_value())
    me.hold(None)


def impostor_with_the_name(me):
    crowds.named(tracer.variable.name).set(live_value())
    me.hold(None)


# Threads, which have no greenlets.


def thread_with_span(me):
    begin("/in a thread")
    me.hold(now())


def thread_with_inner_span(me):
    begin("/in a thread")
    with tracer.child("inner"):
        me.hold(now())


def thread_without_span(me):
    me.hold(None)


# What changes while it runs.


def changes(me):
    """Another label after each switch, most often at the last one's addresses."""
    me.expect(None, may_be_null=True)
    while len(me.changes) < spans.CHANGES:
        with tracer.child("changes"):
            me.changed(now())
            me.wait()
    me.hold(None)


def bears_inside(me):
    """Makes a greenlet at each turn, inside of its span."""
    begin("/bears")
    me.expect(now())
    while True:
        spans.bear(born_inside, now())
        with tracer.child("bears-inner"):
            spans.bear(born_in_inner, {**now(), "span_id": None})
        spans.bear(born_to_own, None, own=True)
        me.wait()


def born_inside():
    """Has its spawner's label, and hands it on."""
    spans.bear(born_of_born, spans.births["born_inside"]["label"])
    spans.main.switch()


def born_of_born():
    """Made by one who has inherited."""
    spans.main.switch()


def born_in_inner():
    """Made inside of a span that is over when it first runs."""
    spans.main.switch()


def born_to_own():
    """Begins a trace of its own at once, so nothing is inherited."""
    with tracer.child("own"):
        spans.main.switch()


CASES = [
    one_span, long_name, latin_name, wide_name, widest_name, empty_name, context_of_1,
    context_of_45, context_of_3000, hash_met, hash_met_often, hash_met_in_a_crowd,
    seven_levels, seven_levels_and_met, array_below, inside_of_run, inside_of_empty_run,
    live_in_a_copy, no_context, variable_not_set, impostor_with_the_hash,
    impostor_with_the_name,
]
THREADS = [thread_with_span, thread_with_inner_span, thread_without_span]
LIVELY = [changes, bears_inside]
