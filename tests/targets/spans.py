"""Greenlets and threads that hold spans in every form: `spans.py --labels agent|otel`.

Each case is a greenlet (or a thread) whose outermost function has the case's name, and
who waits inside of it. Each is there twice: one is switched to every 10 ms, its twin (the
name ends in `_still`) never again. `ready` says for each what a reader should find:

    label         trace_id, segment_id, span_id, operation, endpoint; null for no label
    may_be_null   no label is right as well: the form is one that no tracer makes
    inherited     the label is its spawner's, by the rule that children inherit

Greenlets that are born while it runs are listed under `births` by their function: what
they inherit, if greenscope saw them made (a null `span_id`: each has another one), and
whether they have an `own` label, another one each, that nobody else has. The main greenlet
and its threads that are not listed have none.

Until its standard input is closed it goes on, then says in `done` how often each was
switched to, and since when `changes` had which label: another one after each switch to it,
most often at the addresses of the one before.
"""

import argparse
import importlib
import os
import select
import sys
import threading
import time
import traceback
import types

import greenlet

import books
import tracers

PERIOD_S = 0.01
CHANGES = 100_000
"""After so many it keeps its label."""

cases = []
births = {}
nursery = []
main = greenlet.getcurrent()


class Case:
    """One greenlet or thread, and what it should be found with."""

    def __init__(self, name, switches, thread):
        self.name = name
        self.switches = switches
        self.thread = thread
        self.facts = None
        self.count = 0
        self.greenlet = None
        self.changes = []

    def hold(self, label, may_be_null=False, inherited=False):
        """Say what is right from now on, and wait for ever."""
        self.expect(label, may_be_null, inherited)
        while True:
            self.wait()

    def expect(self, label, may_be_null=False, inherited=False):
        """Say what is right from now on."""
        self.facts = {"label": label, "may_be_null": may_be_null, "inherited": inherited}

    def wait(self):
        """Wait for the next turn, if there is one."""
        if not self.thread:
            main.switch()
            return
        self.settled.set()
        if self.switches:
            time.sleep(PERIOD_S)
        else:
            threading.Event().wait()

    def changed(self, label):
        """It has another label from now on."""
        self.changes.append({"since_ns": time.monotonic_ns(), "label": label})

    def start(self, function):
        """Let it come to its wait."""
        if self.thread:
            self.settled = threading.Event()
            threading.Thread(target=function, args=(self,), daemon=True).start()
            if not self.settled.wait(10):
                raise TimeoutError(self.name)
        else:
            self.greenlet = greenlet.greenlet(function)
            self.greenlet.switch(self)
        if self.facts is None:
            raise RuntimeError(f"{self.name} says nothing")

    def line(self):
        """It as the test reads it."""
        return {"function": self.name, "switches": self.switches, "thread": self.thread,
                **self.facts}


def renamed(function, name):
    """The same function, called otherwise in stacks."""
    code = function.__code__.replace(co_name=name, co_qualname=name)
    return types.FunctionType(code, function.__globals__, name, None, function.__closure__)


def add(function, thread=False, twin=True):
    """Start the case and its twin."""
    for switches in (True, False) if twin else (True,):
        name = function.__name__ + ("" if switches else "_still")
        case = Case(name, switches, thread)
        cases.append(case)
        case.start(renamed(function, name))


def bear(function, label, own=False):
    """A greenlet that main will run in the next turn, and once more in the one after."""
    name = function.__name__
    births[name] = {"function": name, "label": label, "own": own,
                    "inherited": label is not None}
    # When it ends main goes on, and not who made it.
    nursery.append([2, greenlet.greenlet(function, main)])


def born_outside():
    """Made by main, who has no span."""
    main.switch()


def turn():
    """Everyone who switches does so once."""
    for case in cases:
        if case.switches and not case.thread:
            case.greenlet.switch()
            case.count += 1
    bear(born_outside, None)
    for entry in nursery:
        entry[0] -= 1
    for _, ready in [entry for entry in nursery if entry[0] <= 0]:
        ready.switch()
    nursery[:] = [entry for entry in nursery if not entry[1].dead]


def agree(tracer):
    """What is said to be right is still what the tracer says of the suspended ones."""
    for case in cases:
        if not case.thread and case.facts["label"] is not None:
            said = case.greenlet.gr_context.copy().run(tracer.current)
            if said != case.facts["label"]:
                raise RuntimeError(f"{case.name}: {case.facts} is wrong, {said} is right")


def asked_to_end():
    """Whether standard input is closed; waits a little for it."""
    readable, _, _ = select.select([0], [], [], PERIOD_S)
    return bool(readable) and not os.read(0, 4096)


def run(labels):
    tracer = tracers.named(labels)
    tracer.start()
    written = importlib.import_module(f"spans_{labels}")
    written.prepare(tracer)
    for function in written.CASES:
        add(function)
    for function in written.THREADS:
        add(function, thread=True)
    for function in written.LIVELY:
        add(function, twin=False)
    # Births tell their labels at their first turn.
    for _ in range(4):
        turn()
    agree(tracer)
    books.say("ready", pid=os.getpid(), labels=labels, version=tracer.version,
              cases=[case.line() for case in cases], births=list(births.values()),
              **tracer.facts)
    while not asked_to_end():
        turn()
    books.say("done", books={
        "switched_to": {case.name: case.count for case in cases if not case.thread},
        "changes": [change for case in cases for change in case.changes],
    })
    os._exit(0)


if __name__ == "__main__":
    # The cases import this module too; there must be one of it.
    sys.modules["spans"] = sys.modules["__main__"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", choices=("agent", "otel"), required=True)
    try:
        run(parser.parse_args().labels)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the agent's own end takes long without a backend
