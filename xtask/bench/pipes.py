"""Two processes on one processor that hand a byte to and fro; a unit is a context switch.

Batch processes do not preempt one another when they are woken, so each switch is a sleep.
"""

import os
import time

import worker

ROUNDS = 2_000

worker.pin()
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
there, here = os.pipe(), os.pipe()
if os.fork() == 0:
    os.close(there[1])
    while byte := os.read(there[0], 1):
        os.write(here[1], byte)
    os._exit(0)
os.close(there[0])


def batch():
    started = time.perf_counter_ns()
    for _ in range(ROUNDS):
        os.write(there[1], b"x")
        os.read(here[0], 1)
    return time.perf_counter_ns() - started


batch()
worker.ready()
worker.serve(batch, 2 * ROUNDS)
