"""The books of traced.py: one of its requests, one of its switches.

Both only append while the service works: nothing is written, and nothing yields,
before the end. tests/traced/README.md describes the lines.
"""

import _thread
import functools
import json
import mmap
import os
import struct
import time

import greenlet

import tracers

_now_ns = time.monotonic_ns
_cpu_ns = time.thread_time_ns
_native_id = _thread.get_native_id
_current = greenlet.getcurrent
_open, _read, _close = os.open, os.read, os.close


def _delayed_ns():
    """How long the thread was ready and had no CPU: the second number there."""
    file = _open("/proc/thread-self/schedstat", os.O_RDONLY)
    try:
        return int(_read(file, 64).split()[1])
    finally:
        _close(file)


class Work:
    """A request, or a greenlet that one spawned: its line in the book."""

    __slots__ = ("labels", "kind", "serial", "of", "sent", "endpoint", "header", "label",
                 "made_ns", "waited_ns", "arrived_ns", "begin_ns", "end_ns", "answered_ns",
                 "ended", "greenlet", "function", "tid", "calls", "spans")

    def __init__(self, labels, kind, serial):
        for name in self.__slots__:
            setattr(self, name, None)
        self.labels = labels
        self.kind = kind
        self.serial = serial
        self.calls = []
        self.spans = []

    def begins(self, function):
        """The calling greenlet does this work from now on."""
        here = _current()
        here.work = self
        self.greenlet = id(here)
        self.function = function
        self.tid = _native_id()
        self.begin_ns = _now_ns()

    def line(self):
        """It as json."""
        label = self.label or dict.fromkeys(
            ("trace_id", "segment_id", "span_id", "operation")
        )
        facts = {"labels": self.labels, "kind": self.kind, "serial": self.serial,
                 "of": self.of, "sent": self.sent, "endpoint": self.endpoint,
                 "header": self.header}
        facts |= {name: label[name]
                  for name in ("trace_id", "segment_id", "span_id", "operation")}
        facts |= {name: getattr(self, name) for name in (
            "made_ns", "waited_ns", "arrived_ns", "begin_ns", "end_ns", "answered_ns",
            "ended", "greenlet", "function", "tid")}
        facts["functions"] = [
            {"function": function, "state": state, "begin_ns": begin_ns, "end_ns": end_ns,
             "cpu_ns": cpu_ns, "delayed_ns": delayed_ns}
            for function, state, begin_ns, end_ns, cpu_ns, delayed_ns in self.calls
        ]
        facts["spans"] = [
            {**{name: label[name]
                for name in ("trace_id", "segment_id", "span_id", "operation")},
             "begin_ns": begin_ns, "end_ns": end_ns}
            for label, begin_ns, end_ns in self.spans
        ]
        return json.dumps(facts)


class Requests:
    """All works, those that are not over at the end too (without an `end_ns`)."""

    def __init__(self):
        self.labels = None
        self.works = []

    def work(self, kind):
        """A new line."""
        work = Work(self.labels, kind, len(self.works) + 1)
        self.works.append(work)
        return work

    def write(self, path):
        """One line a work, in the order of their beginnings."""
        with open(path, "w") as file:
            for work in self.works:
                file.write(work.line() + "\n")


def of(state):
    """A decorator that books each call in the work of its greenlet.

    State is `cpu`, `blocked` or `wait`; only a function that never yields has a CPU time
    of its own.
    """

    def decorate(function):
        name = function.__qualname__

        @functools.wraps(function)
        def timed(*args):
            calls = _current().work.calls
            began_ns, began_cpu_ns = _now_ns(), _cpu_ns()
            # The judge subtracts it from the call's time, so it is read inside of that.
            delayed_ns = _delayed_ns() if state == "blocked" else 0
            try:
                return function(*args)
            finally:
                if state == "blocked":
                    delayed_ns = _delayed_ns() - delayed_ns
                cpu_ns = None if state == "wait" else _cpu_ns() - began_cpu_ns
                ended_ns = _now_ns()
                calls.append((name, state, began_ns, ended_ns, cpu_ns, delayed_ns))

        return timed

    return decorate


class Switches:
    """Who left whom when, and what the tracer's own API said of the leaver's context.

    Records lie in memory that is mapped once and made of no Python objects.
    """

    # When, leaver, enterer, trace or segment id, span id; state, class, depth (or whether
    # it records), whether it ended.
    RECORD = struct.Struct("<QQQ16sQBBBB")

    def __init__(self, tracer, room):
        self.observe = tracer.observe or _nothing
        self.tracer = tracer
        self.room = room
        self.count = 0
        self.lost = 0
        self.memory = mmap.mmap(-1, room * self.RECORD.size, mmap.MAP_PRIVATE)

    def watch(self):
        """Trace the calling thread's switches from now on."""
        greenlet.settrace(self._trace)

    def stop(self):
        """No more."""
        greenlet.settrace(None)

    def _trace(self, _event, pair):
        now_ns = _now_ns()
        leaver, enterer = pair
        if leaver is enterer:
            return
        if self.count == self.room:
            self.lost += 1
            return
        if leaver.dead:
            seen = tracers.DEAD, 0, 0, 0, tracers.NO_ID, 0
        else:
            seen = self.observe(leaver.gr_context)
        state, kind, depth, ended, one, other = seen
        self.RECORD.pack_into(self.memory, self.count * self.RECORD.size, now_ns,
                              id(leaver), id(enterer), one, other, state, kind, depth,
                              ended)
        self.count += 1

    def write(self, path):
        """One line a switch; without what is not known."""
        is_otel = self.tracer.name == "otel"
        with open(path, "w") as file:
            for place in range(self.count):
                when, leaver, enterer, one, other, state, kind, depth, ended = (
                    self.RECORD.unpack_from(self.memory, place * self.RECORD.size)
                )
                facts = {"ns": when, "leaver": leaver, "enterer": enterer,
                         "state": tracers.STATES[state]}
                if state == tracers.SPAN:
                    facts["class"] = tracers.CLASSES[kind]
                    facts["ended"] = bool(ended)
                    known = one.hex() if one != tracers.NO_ID else None
                    if is_otel:
                        facts |= {"recording": bool(depth), "trace_id": known,
                                  "span_id": f"{other:016x}"}
                    else:
                        sid = other - (1 << 64) if other >> 63 else other
                        facts |= {"depth": depth, "segment_id": known, "span_id": sid}
                file.write(json.dumps(facts) + "\n")


def _nothing(context):
    state = tracers.NONE if context is None else tracers.OTHER
    return state, 0, 0, 0, tracers.NO_ID, 0
