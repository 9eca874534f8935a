"""Greenlets that are born, run and die, one after the other; a unit is a life."""

import time

from greenlet import greenlet

import worker

BATCH = 2_000


def life():
    pass


def batch():
    started = time.thread_time_ns()
    for _ in range(BATCH):
        greenlet(life).switch()
    return time.thread_time_ns() - started


worker.pin()
batch()
worker.ready()
worker.serve(batch, BATCH)
