"""What the targets of `cargo xtask bench` have in common: work when told, time it.

One line of standard input is one order, one line of JSON the answer:

    sample SECONDS   batches until the time is over: {"ns": [one number a batch], "units": all}
    for SECONDS      the same for long: {"units": all}
    go               the same until the next line comes
    inside WAY       none, settrace, accounts or snapshot: the in-process ways

In between, the process blocks in read() and does nothing. The end of its input is
its own.
"""

import json
import os
import select
import sys
import time
import traceback

import greenlet

LEAST_BATCHES = 3


def pin():
    """One processor for the whole run: a migration costs more than a probe."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def answer(**members):
    os.write(1, json.dumps(members).encode() + b"\n")


def ready(**members):
    answer(
        python=".".join(map(str, sys.version_info[:3])),
        greenlet=greenlet.__version__,
        **members,
    )


def take_stack(event, args):
    """The leaver's stack, as greenscope takes it: function, file, line of each frame."""
    frame = args[0].gr_frame
    stack = []
    while frame is not None:
        code = frame.f_code
        stack.append((code.co_qualname, code.co_filename, frame.f_lineno))
        frame = frame.f_back


since = {}
waited = {}


def keep_accounts(event, args):
    """What greenscope keeps too: waiting time and count by stack."""
    now = time.perf_counter_ns()
    origin, target = args
    frame = origin.gr_frame
    stack = []
    while frame is not None:
        code = frame.f_code
        stack.append((code.co_qualname, code.co_filename, frame.f_lineno))
        frame = frame.f_back
    since[origin] = now, tuple(stack)
    begin, stack = since.get(target, (now, None))
    total = waited.setdefault(stack, [0, 0])
    total[0] += now - begin
    total[1] += 1


def take_snapshot(event, args):
    """The same by the means of SkyWalking's agent."""
    traceback.extract_stack(args[0].gr_frame)


WAYS = {
    "none": None,
    "settrace": take_stack,
    "accounts": keep_accounts,
    "snapshot": take_snapshot,
}


def orders():
    """The lines of standard input; read without a buffer, so that select() sees them."""
    line = b""
    while byte := os.read(0, 1):
        if byte == b"\n":
            yield line.decode().split()
            line = b""
        else:
            line += byte


def told():
    return bool(select.select([0], [], [], 0)[0])


def serve(batch, units):
    """Follows the orders. `batch()` does so many units and returns the ns they took."""
    for order, *operands in orders():
        if order == "inside":
            greenlet.settrace(WAYS[operands[0]])
            answer()
        elif order == "go":
            batches = 0
            while not told():
                batch()
                batches += 1
            answer(units=batches * units)
        else:
            end = time.perf_counter() + float(operands[0])
            times = []
            while len(times) < LEAST_BATCHES or time.perf_counter() < end:
                times.append(batch())
            if order == "for":
                answer(units=len(times) * units)
            else:
                answer(units=len(times) * units, ns=[ns / units for ns in times])
    os._exit(0)
