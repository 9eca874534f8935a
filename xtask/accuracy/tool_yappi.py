"""yappi by its CPU clock, per greenlet where there are greenlets."""

import sys

import yappi


def prepare():
    """Nothing is to be patched."""


def start():
    """It has no warming up: `begin` starts it."""


def begin():
    # Its greenlet backend imports gevent, which a target without greenlets has not.
    yappi.set_context_backend("greenlet" if "gevent" in sys.modules else "native_thread")
    yappi.set_clock_type("cpu")
    yappi.start(builtins=True)


def end():
    yappi.stop()


def stacks(functions):
    """It keeps no stacks: each function's time with all that it called, in nanoseconds.

    The functions of the books do not call one another, so nothing counts twice; what
    no such function had is the empty stack's.
    """
    whole = rest = 0
    for function in yappi.get_func_stats():
        whole += function.tsub
        name = function.name.rpartition(".")[2]
        if name in functions:
            rest += function.ttot
            yield [name], round(function.ttot * 1e9)
    yield [], max(0, round((whole - rest) * 1e9))
