"""wall.py with yappi inside, a second opinion: `oracle.py WORKLOAD SECONDS`.

yappi's CPU clock with its greenlet backend gives each greenlet what its thread's own
clock (CLOCK_THREAD_CPUTIME_ID) gains from one call or return of a function in it to the
first in another greenlet. So its cost is in its figures as it is in the thread's. What
the hub does in C before the next greenlet calls anything is the leaver's: exact are the
greenlets that burn much between two switches. `done` comes with `oracle` as well.
"""

import gc
import os
import runpy
import sys
import time

import gevent
import yappi

import books


def opinions():
    """The CPU time of each greenlet that has a name, as yappi has it."""
    named = {
        one._yappi_tid: one.__dict__["name"]
        for one in gc.get_objects()
        if isinstance(one, gevent.Greenlet) and "_yappi_tid" in one.__dict__
    }
    return [
        {"name": named.get(stat.id), "cpu_ns": round(stat.ttot * 1e9)}
        for stat in yappi.get_greenlet_stats()
    ]


def main():
    ready, done = books.ready, books.done

    def ready_with_yappi(**facts):
        ready(**facts)
        yappi.set_context_backend("greenlet")
        yappi.set_clock_type("cpu")
        yappi.start()

    def done_with_yappi(**facts):
        stopped = time.thread_time_ns()
        yappi.stop()
        asked = opinions()
        # What it takes to ask is the thread's, and no longer yappi's.
        done(oracle=asked, unseen_ns=time.thread_time_ns() - stopped, **facts)

    books.ready, books.done = ready_with_yappi, done_with_yappi
    folder = os.path.dirname(os.path.abspath(__file__))
    runpy.run_path(os.path.join(folder, "wall.py"), run_name="__main__")


if __name__ == "__main__":
    main()
