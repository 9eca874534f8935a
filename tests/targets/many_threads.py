"""More threads than anybody looks through: usage `many_threads.py COUNT SECONDS [HOW]`.

So many native threads beside a hub. The oldest, the newest and the main thread's greenlets
burn and sleep by their books; the others sleep. If HOW is `c` all that is done by a child that
C forked, which nobody told Python of; if it is `follow`, by one that C forks when it may go.
"""

import ctypes
import os
import sys
import threading
import time

import books
import ledger

blocking_sleep = time.sleep
book = ledger.Ledger()
BURNS_NS, NAP_S = 2_000_000, 0.05


def spin(ns):
    until = time.thread_time_ns() + ns
    while time.thread_time_ns() < until:
        pass


@book.of("cpu")
def burn_oldest():
    spin(BURNS_NS)


@book.of("cpu")
def burn_newest():
    spin(BURNS_NS)


@book.of("cpu")
def burn_main():
    spin(BURNS_NS)


@book.of("blocked")
def nap_oldest():
    blocking_sleep(NAP_S)


@book.of("blocked")
def nap_newest():
    blocking_sleep(NAP_S)


def body(up, go, ended, work):
    up.release()
    go.wait()
    if work is not None:
        work()
        ended.release()
        go.clear()
    threading.Event().wait()  # it stays where it is in the list


def repeat(end_ns, burn, rest):
    while time.monotonic_ns() < end_ns[0]:
        burn()
        rest()


def main(count, seconds):
    import gevent

    end_ns = [0]
    works = [lambda: repeat(end_ns, burn_oldest, nap_oldest)] * 2
    works += [None] * count
    works += [lambda: repeat(end_ns, burn_newest, nap_newest)] * 2
    up, ended = threading.Semaphore(0), threading.Semaphore(0)
    goes = []
    for work in works:
        go = threading.Event()
        goes.append((go, work))
        threading.Thread(target=body, args=(up, go, ended, work), daemon=True).start()
        up.acquire()
    gevent.sleep(0)
    if HOW != "follow":
        books.ready()
    book.begin()
    end_ns[0] = time.monotonic_ns() + int(seconds * 1e9)
    for go, work in goes:
        if work is not None:
            go.set()
    greenlets = [gevent.spawn(repeat, end_ns, burn_main, lambda: gevent.sleep(0.02)) for _ in range(2)]
    gevent.joinall(greenlets)
    for go, work in goes:
        if work is not None:
            ended.acquire()
    book.end()
    books.done(cpu=book.book())


HOW = sys.argv[3] if len(sys.argv) > 3 else ""
if HOW == "follow":
    books.ready()
if HOW:
    child = ctypes.PyDLL(None).fork()
    if child:
        os.close(0)
        os.waitpid(child, 0)
        os._exit(0)
main(int(sys.argv[1]), float(sys.argv[2]))
