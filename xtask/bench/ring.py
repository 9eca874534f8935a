"""Greenlets in a ring, all as deep, that hand the switch on:
`ring.py GREENLETS DEPTH SHIMS [VARIABLES]`.

Each frame of a stack is Python's; SHIMS of the calls between them go through C. With
VARIABLES each greenlet has a context of so many, one of them with a live span of
SkyWalking's agent (which is not started: nothing else runs).
A unit is a switch: one pass around the ring is GREENLETS of them.
"""

import contextvars
import functools
import sys
import time

from greenlet import getcurrent, greenlet

import worker

BATCH = 5_000
"""Switches in a batch, about: short enough to be whole between two interruptions."""


def descend(state):
    """So many frames deeper, then `innermost(index)`."""
    left, ways, innermost, index = state
    if left == 1:
        return innermost(index)
    deeper = (left - 1, ways, innermost, index)
    way = ways.get(left)
    if way == "map":
        return next(map(descend, [deeper]))
    if way == "sorted":
        return sorted([deeper], key=descend)
    if way == "partial":
        return functools.partial(descend, deeper)()
    if way == "max":
        return max([deeper], key=descend)
    return descend(deeper)


def work_for(index, variables):
    """From here on the calling greenlet works for a request of its own."""
    from skywalking.trace import context, span

    for number in range(variables - 1):
        contextvars.ContextVar(f"variable-{number}").set(number)
    entry = span.EntrySpan(context=context.SpanContext(), sid=0, pid=-1, op=f"/{index}")
    entry.start()


def depth(one):
    frame = one.gr_frame
    count = 0
    while frame is not None:
        count += 1
        frame = frame.f_back
    return count


def main(size, deep, shims, variables=0):
    worker.pin()
    kinds = ["map", "sorted", "partial", "max"]
    ways = {4 * (number + 1): kinds[number % 4] for number in range(shims)}
    assert all(left < deep - 2 for left in ways), "too shallow for so many shims"
    starter = getcurrent()
    ring = []

    def member(index):
        if variables:
            work_for(index, variables)
        starter.switch()
        switch = ring[(index + 1) % size].switch
        while True:
            switch()

    def leader(index):
        if variables:
            work_for(index, variables)
        starter.switch()
        switch = ring[1].switch
        passes = max(1, BATCH // size)

        def batch():
            started = time.thread_time_ns()
            for _ in range(passes):
                switch()
            return time.thread_time_ns() - started

        batch()  # from here on, everybody is in the loop
        worker.ready()
        worker.serve(batch, passes * size)

    for index in range(size):
        innermost, below = (member, 1) if index else (leader, 3)
        one = greenlet(descend)
        ring.append(one)
        one.switch((deep - below, ways, innermost, index))
    assert all(depth(one) == deep for one in ring[1:])
    ring[0].switch()


main(*map(int, sys.argv[1:]))
