"""Greenlets come and go here while children end that have many: `churn.py`.

The books have the switches, and those of each child by its pid.
"""

import mmap
import os
import struct
import time

import greenlet

import books

CHILDREN = 8
SUSPENDED = 3000
_memory = mmap.mmap(-1, 8 * (CHILDREN + 1))


def count(slot):
    """Books in memory that outlives the process."""
    counted = 0

    def trace(_event, _greenlets):
        nonlocal counted
        counted += 1
        struct.pack_into("<Q", _memory, 8 * slot, counted)

    greenlet.settrace(trace)


def suspend_many():
    """And ends with all of them alive."""
    parent = greenlet.getcurrent()
    ones = [greenlet.greenlet(lambda: parent.switch()) for _ in range(SUSPENDED)]
    for one in ones:
        one.switch()
    os._exit(0)


def main():
    books.ready()
    count(0)
    parent = greenlet.getcurrent()
    pids = []
    for number in range(CHILDREN):
        pid = os.fork()
        if pid == 0:
            count(1 + number)
            suspend_many()
        pids.append(pid)
        kept = []
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            ones = [greenlet.greenlet(lambda: parent.switch()) for _ in range(200)]
            for one in ones:
                one.switch()
            kept = ones
    # The last one's books are closed while it goes on.
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        ones = [greenlet.greenlet(lambda: parent.switch()) for _ in range(200)]
        for one in ones:
            one.switch()
    del ones, one, kept
    greenlet.settrace(None)
    counts = struct.unpack_from(f"<{CHILDREN + 1}Q", _memory)
    books.done(own=counts[0], children=dict(zip(map(str, pids), counts[1:])))


if __name__ == "__main__":
    main()
