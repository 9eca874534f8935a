"""A thread that only burns; a unit is a million turns of a loop, timed by the wall."""

import time

import worker

# Some twenty ticks of the CPU clock at greenscope's usual rate.
BATCH_NS = 200_000_000


def spin(turns):
    for _ in range(turns):
        pass


def timed(turns):
    started = time.perf_counter_ns()
    spin(turns)
    return time.perf_counter_ns() - started


worker.pin()
timed(1_000_000)
millions = max(1, BATCH_NS // timed(1_000_000))
worker.ready()
worker.serve(lambda: timed(millions * 1_000_000), millions)
