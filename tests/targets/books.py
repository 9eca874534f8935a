"""The protocol with the test, and the books that a target keeps of itself.

A target prints `ready`, blocks in a read until the test (having seen
`recording`) writes a byte, works, prints `done` with its books, and blocks
again. So everything that the books hold lies inside the recording.
"""

import _thread
import functools
import json
import os
import sys
import time
import weakref

import greenlet

# Taken before anything monkey-patches: the books must never yield.
_read = os.read
_write = os.write
_native_id = _thread.get_native_id
_now_ns = time.monotonic_ns
_cpu_ns = time.thread_time_ns


def say(event, **facts):
    """Print one line of json, whole, without the buffers of sys.stdout."""
    line = memoryview((json.dumps({"event": event, **facts}) + "\n").encode())
    while line:
        line = line[_write(1, line) :]


def wait_for_go():
    """Block this thread, greenlets and all, until the test writes a byte."""
    if not _read(0, 1):
        os._exit(3)  # the test is gone


def ready(**facts):
    """Say that the set-up is done, then block until the recording runs."""
    say("ready", pid=os.getpid(), **facts)
    wait_for_go()


def done(**books):
    """Hand over the books, then block until the recording has ended."""
    say("done", books=books)
    wait_for_go()


def burn(milliseconds):
    """Compute until the thread has had that much of a CPU."""
    end_ns = _cpu_ns() + int(milliseconds * 1e6)
    while _cpu_ns() < end_ns:
        sum(range(100))


def stack_of(frame):
    """A suspended stack as (function, file, line), root first."""
    frames = []
    while frame is not None:
        code = frame.f_code
        frames.append((code.co_qualname, code.co_filename, frame.f_lineno))
        frame = frame.f_back
    frames.reverse()
    return tuple(frames)


def delayed_ns():
    """How long the threads were ready and had no CPU: the second number there."""
    total = 0
    for tid in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{tid}/schedstat") as file:
                total += int(file.read().split()[1])
        except FileNotFoundError:
            pass  # it ended
    return total


def _alive(tid, reference):
    """Whether a greenlet lives; None where no switch tells that it does not."""
    if reference is None:
        return False
    if reference() is None or not os.path.exists(f"/proc/self/task/{tid}"):
        return None
    return True


class Book:
    """Counts each switch of the threads that it watches, and times each wait.

    greenlet calls the trace function once per real switch, on arrival; a
    greenlet that switches to itself is announced as well, but no switch happens.
    """

    def __init__(self, stacks=True, keep=()):
        self.keep_stacks = stacks
        # tid -> count. Each thread writes its own key only.
        self.switches = {}
        # serial -> [tid, main, name, switches_in, weak reference or None once
        # it was seen to die]; the serial lives in the greenlet's own dict, so
        # that a reused address gets a new one and the book keeps none alive.
        self.greenlets = {}
        self.born = 0
        # serial -> (stack, state, since_ns, began before the recording)
        self.open = {}
        # (stack, state, open) -> [count, ns]
        self.waits = {}
        self.hub_type = ()
        if "gevent" in sys.modules:
            from gevent.hub import Hub

            self.hub_type = Hub
        self.begin_ns = None
        self.end_ns = None

    def watch(self):
        """Trace the calling thread's switches from now on."""
        self.switches.setdefault(_native_id(), 0)
        self._entry(greenlet.getcurrent())
        greenlet.settrace(self._trace)
        if self.hub_type:
            # The hub waits by now, and no switch told where: one round tells.
            sys.modules["gevent"].sleep(0)

    def begin(self):
        """Forget what was counted so far: the recording has just begun.

        The waits that are open now began before it.
        """
        self.delayed_ns = delayed_ns()
        self.begin_ns = _now_ns()
        self.begin_unix_ns = time.time_ns()
        for tid in self.switches:
            self.switches[tid] = 0
        for serial, entry in list(self.greenlets.items()):
            entry[3] = 0
            if entry[4] is None or entry[4]() is None:
                del self.greenlets[serial]
        self.waits.clear()
        for serial, (stack, state, _, _) in list(self.open.items()):
            self.open[serial] = (stack, state, self.begin_ns, True)

    def end(self):
        """Close the books, and return them in the form that the test reads."""
        self.end_ns = _now_ns()
        for serial, (stack, state, since, before) in self.open.items():
            self._add(stack, state, "both" if before else "end", self.end_ns - since)
        return {
            "begin_unix_ns": self.begin_unix_ns,
            "end_unix_ns": self.begin_unix_ns + self.end_ns - self.begin_ns,
            "delayed_ns": max(0, delayed_ns() - self.delayed_ns),
            "switches": {str(tid): count for tid, count in self.switches.items()},
            "greenlets": [
                {"serial": serial, "tid": tid, "main": main, "name": name,
                 "switches_in": count, "alive": _alive(tid, reference)}
                for serial, (tid, main, name, count, reference) in self.greenlets.items()
            ],
            "waits": [
                {"frames": [{"function": function, "file": file, "line": line}
                            for function, file, line in stack],
                 "state": state, "open": open_, "count": count, "ns": ns}
                for (stack, state, open_), (count, ns) in self.waits.items()
            ] if self.keep_stacks else [],
        }

    def _entry(self, which):
        facts = greenlet.greenlet.__getattribute__(which, "__dict__")
        serial = facts.get("book_serial")
        if serial is None:
            serial = facts["book_serial"] = self.born
            self.born += 1
            # gevent makes a name when asked; here only one that was given.
            name = facts.get("name")
            main = type(which) is greenlet.greenlet and which.parent is None
            gone = weakref.ref(which, functools.partial(self._freed, serial))
            self.greenlets[serial] = [_native_id(), main, name, 0, gone]
        return serial

    def _freed(self, serial, _):
        """A suspended greenlet of a thread that has ended is freed without a switch."""
        wait = self.open.pop(serial, None)
        if wait is not None:
            stack, state, since, before = wait
            self._add(stack, state, "begin" if before else None, _now_ns() - since)
            self.greenlets[serial][4] = None

    def _trace(self, event, args):
        now = _now_ns()
        origin, target = args
        if origin is target:
            return
        self.switches[_native_id()] += 1
        leaver = self._entry(origin)
        enterer = self._entry(target)
        self.greenlets[enterer][3] += 1
        if origin.dead:
            self.greenlets[leaver][4] = None
        if not self.keep_stacks:
            return
        wait = self.open.pop(enterer, None)
        if wait is not None:
            stack, state, since, before = wait
            self._add(stack, state, "begin" if before else None, now - since)
        if not origin.dead:
            state = "idle" if isinstance(origin, self.hub_type) else "wait"
            self.open[leaver] = (stack_of(origin.gr_frame), state, now, False)

    def _add(self, stack, state, open_, ns):
        entry = self.waits.setdefault((stack, state, open_), [0, 0])
        entry[0] += 1
        entry[1] += ns


class Times:
    """The time spent in each function, calls included, by its own clock."""

    def __init__(self):
        self.ns = {}
        self.calls = {}

    def of(self, function):
        """A decorator that books each call of the function."""
        name = function.__qualname__
        self.ns[name] = 0
        self.calls[name] = 0

        def timed(*args):
            began = time.perf_counter_ns()
            try:
                return function(*args)
            finally:
                self.ns[name] += time.perf_counter_ns() - began
                self.calls[name] += 1

        return timed

    def book(self):
        """Function -> calls and ns, in the form that the test reads."""
        return {
            name: {"calls": self.calls[name], "ns": ns} for name, ns in self.ns.items()
        }
