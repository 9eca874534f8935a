"""A service that is ready and may not run: usage `starved.py WORKLOAD NEIGHBOURS SECONDS`.

It stays on one CPU. With neighbours it has the lowest priority there beside so many
processes that do nothing but burn, while it works; without it is for the test to keep it
from the CPU. The truth is the scheduler's: what each thread's schedstat gained.
"""

import os
import subprocess
import sys
import threading
import time

import books

NAP_S = 0.02

cpu_ns = time.thread_time_ns
now_ns = time.monotonic_ns
blocking_sleep = time.sleep
naps = [0]


def spin(ns):
    until = cpu_ns() + ns
    while cpu_ns() < until:
        pass


def nap():
    """It sleeps for just so long, however long it takes until it runs again."""
    blocking_sleep(NAP_S)
    naps[0] += 1


def repeat(end_ns, work, rest):
    while now_ns() < end_ns:
        work()
        rest()


def greenlets(seconds, burn_ns, rest):
    import gevent

    work = lambda: spin(burn_ns)
    gevent.sleep(0)  # the hub is there

    def run():
        end_ns = now_ns() + int(seconds * 1e9)
        gevent.joinall([gevent.spawn(repeat, end_ns, work, lambda: gevent.sleep(rest)) for _ in range(3)])

    return run


def threads(seconds):
    ended = threading.Semaphore(0)

    def body(end_ns, work):
        repeat(end_ns, work, nap)
        ended.release()
        threading.Event().wait()  # its sums stay readable in /proc

    def run():
        end_ns = now_ns() + int(seconds * 1e9)
        for work in (lambda: spin(100_000), lambda: None):
            threading.Thread(target=body, args=(end_ns, work), daemon=True).start()
        for _ in range(2):
            ended.acquire()

    return run


WORKLOADS = {
    # A hub that mostly has nothing to do, and one whose greenlets are always ready.
    "napping": lambda seconds: greenlets(seconds, 20_000, 0.005),
    "busy": lambda seconds: greenlets(seconds, 1_000_000, 0),
    "threads": threads,
}


def begin_neighbours(count):
    neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    if neighbours:
        os.nice(19)
    return neighbours


def end_neighbours(neighbours):
    for one in neighbours:
        one.kill()
        one.wait()


def main(workload, neighbours, seconds):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    run = WORKLOADS[workload](float(seconds))
    books.ready()
    beside = begin_neighbours(int(neighbours))
    run()
    end_neighbours(beside)
    books.done(naps=naps[0], nap_ns=int(NAP_S * 1e9))


main(*sys.argv[1:])
