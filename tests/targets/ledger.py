"""Who spent what of the wall clock: the books of wall.py.

A burn never yields, so the thread's own CPU clock (CLOCK_THREAD_CPUTIME_ID) read at
its two ends is its CPU time, whoever else is on the machine. No trace hook is needed,
and none of a profiler's in the same process is displaced.

What is woken after a while finds cold caches, and the switch to it can cost more than
all that it does: `Life.around` books that, in the hub.
"""

import _thread
import functools
import time

_cpu_ns = time.thread_time_ns
_now_ns = time.monotonic_ns
_native_id = _thread.get_native_id


class Life:
    """A greenlet, or a plain thread: its CPU time from `enter` to `leave`, summed.

    `switch_ns` is what `around` found outside of these.
    """

    def __init__(self, name, role):
        self.name = name
        self.role = role
        self.tid = None
        self.cpu_ns = 0
        self.switch_ns = 0
        self.since_ns = 0

    def enter(self):
        """It has just been switched to, or begins."""
        self.tid = _native_id()
        self.since_ns = _cpu_ns()

    def leave(self):
        """It is about to switch away, or ends."""
        self.cpu_ns += _cpu_ns() - self.since_ns

    def around(self, switch, *args):
        """In the hub, which is back when the greenlet waits again: switch to it."""
        booked_ns, since_ns = self.cpu_ns, _cpu_ns()
        switch(*args)
        self.switch_ns += _cpu_ns() - since_ns - (self.cpu_ns - booked_ns)


class Function:
    """The calls of a function: how many, their time on the CPU and by the wall."""

    def __init__(self, state):
        self.state = state
        self.calls = 0
        self.cpu_ns = 0
        self.wall_ns = 0


class Ledger:
    """The lives and functions of a target, and the CPU time of each thread."""

    def __init__(self):
        self.lives = []
        self.functions = {}
        self.threads = {}

    def life(self, name, role):
        """A new line: role is `burns`, `blocks` or `sleeps`."""
        life = Life(name, role)
        self.lives.append(life)
        return life

    def of(self, state):
        """A decorator that books each call: state is `cpu`, `blocked` or `wait`.

        The CPU time of a function that switches is its greenlet's, and not booked here.
        """

        def decorate(function):
            entry = self.functions[function.__qualname__] = Function(state)

            @functools.wraps(function)
            def timed(*args):
                began_ns, cpu_ns = _now_ns(), _cpu_ns()
                try:
                    return function(*args)
                finally:
                    if state != "wait":
                        entry.cpu_ns += _cpu_ns() - cpu_ns
                    entry.wall_ns += _now_ns() - began_ns
                    entry.calls += 1

            return timed

        return decorate

    def begin(self):
        """The calling thread begins what is booked."""
        self.threads[_native_id()] = [_now_ns(), _cpu_ns()]

    def end(self):
        """The calling thread has done its part."""
        line = self.threads[_native_id()]
        line[:] = [_now_ns() - line[0], _cpu_ns() - line[1]]

    def book(self):
        """All of it, in the form that the test reads; times in nanoseconds."""
        return {
            "threads": [
                {"tid": tid, "wall_ns": wall_ns, "cpu_ns": cpu_ns}
                for tid, (wall_ns, cpu_ns) in self.threads.items()
            ],
            "lives": [
                {"name": life.name, "role": life.role, "tid": life.tid,
                 "cpu_ns": life.cpu_ns, "switch_ns": life.switch_ns}
                for life in self.lives
            ],
            "functions": [
                {"function": name, "state": entry.state, "calls": entry.calls,
                 "cpu_ns": entry.cpu_ns, "wall_ns": entry.wall_ns}
                for name, entry in self.functions.items()
                if entry.calls
            ],
        }
