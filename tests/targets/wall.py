"""Known shares of the wall clock: `wall.py WORKLOAD SECONDS [ADDRESS]`.

    shares    four greenlets burn 12, 9, 6 and 3 ms in turn, ten sleep
    bursts    one greenlet burns 10 ms and sleeps 20 ms, ten sleep
    blocked   one burns 5 ms, blocks its thread 20 ms in time.sleep and sleeps 5 ms;
              one burns 10 ms and sleeps 10 ms, and is held up by the first
    driver    the same, blocked in sqlite3's wait for another connection's lock
    postgres  the same, blocked in psycopg2's wait for the PostgreSQL at ADDRESS
    sleepers  a hundred greenlets sleep 100 ms, again and again
    threads   no greenlets: a thread burns in Python, one in a C function that keeps
              the GIL, one sleeps

Its books are ledger.py's. `done` comes with `cpu`: threads, lives, functions.
"""

import os
import sqlite3
import sys
import tempfile
import threading
import time

import books
import ledger

MS = 1_000_000
NAP_S = 0.1
DRIVER_S = 0.02

cpu_ns = time.thread_time_ns
now_ns = time.monotonic_ns
# A profiler in this process may have patched it: the blocking one is wanted.
blocking_sleep = time.sleep

book = ledger.Ledger()


def spin(ns):
    """Burns so much CPU time, in Python."""
    until = cpu_ns() + ns
    while cpu_ns() < until:
        for _ in range(100):
            pass


@book.of("cpu")
def burn_four():
    spin(12 * MS)


@book.of("cpu")
def burn_three():
    spin(9 * MS)


@book.of("cpu")
def burn_two():
    spin(6 * MS)


@book.of("cpu")
def burn_one():
    spin(3 * MS)


@book.of("cpu")
def burn_ten():
    spin(10 * MS)


@book.of("cpu")
def burn_five():
    spin(5 * MS)


@book.of("cpu")
def hold():
    """Burns in C, some 20 ms, and lets nobody else have the GIL."""
    sum(range(2_000_000))


@book.of("blocked")
def block():
    """The call that should have been cooperative."""
    blocking_sleep(0.02)


@book.of("blocked")
def ask_driver(connection):
    """Waits inside of a C driver until it gives up."""
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
    else:
        raise AssertionError("the other connection has lost its lock")


@book.of("blocked")
def ask_postgres(cursor):
    """Waits inside of libpq for the server's answer."""
    cursor.execute("SELECT pg_sleep(%s)", (DRIVER_S,))


@book.of("wait")
def doze(seconds):
    gevent_sleep(seconds)


class Booked:
    """A watcher whose greenlet is booked as near to its switches as Python comes.

    The hub's `wait` starts it right before it switches away, and stops it right after.
    """

    def __init__(self, watcher, life):
        self.watcher = watcher
        self.life = life

    def start(self, switch, *args):
        self.watcher.start(self.life.around, switch, *args)
        self.life.leave()

    def stop(self):
        self.life.enter()
        self.watcher.stop()


def wait_booked(watcher):
    """The hub's `wait`, which `gevent.sleep` calls."""
    hub_wait(Booked(watcher, resting))


def rest(life, seconds):
    """The only way by which a greenlet here switches."""
    global resting
    resting = life  # nobody else runs before it waits
    if seconds > 0:
        doze(seconds)
    else:
        # A callback of the loop, and no watcher.
        life.leave()
        doze(seconds)
        life.enter()


def repeat(life, end_ns, work, seconds):
    """The main function of each greenlet: work, rest, and again."""
    life.enter()
    while now_ns() < end_ns:
        work()
        rest(life, seconds)
    life.leave()
    # Whoever looks for its name at the end finds it.
    ended.release()
    gevent.get_hub().switch()


def nothing():
    """What a sleeper does between its naps."""


def spawn_all(end_ns, crew):
    """One greenlet for each (name, role, work, seconds of rest); waits for all."""
    global ended
    ended = gevent.lock.Semaphore(0)
    greenlets = []
    for name, role, work, seconds in crew:
        one = gevent.Greenlet(repeat, book.life(name, role), end_ns, work, seconds)
        one.name = name
        one.start()
        greenlets.append(one)
    for _ in greenlets:
        ended.acquire()


def sleepers(count):
    return [(f"sleeper {number}", "sleeps", nothing, NAP_S) for number in range(count)]


def shares():
    burns = [burn_four, burn_three, burn_two, burn_one]
    return [(burn.__name__, "burns", burn, 0) for burn in burns] + sleepers(10)


def bursts():
    return [("burn_ten", "burns", burn_ten, 0.02), *sleepers(10)]


def held_up(blocking):
    """One that blocks its thread by `blocking`, and a victim."""

    def work():
        burn_five()
        blocking()

    return [
        ("blocker", "blocks", work, 0.005),
        ("victim", "burns", burn_ten, 0.01),
        *sleepers(10),
    ]


def driver():
    folder = tempfile.TemporaryDirectory()
    path = os.path.join(folder.name, "locked.db")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("CREATE TABLE t (c)")
    holder.execute("BEGIN IMMEDIATE")
    asker = sqlite3.connect(path, isolation_level=None, timeout=DRIVER_S)

    def ask(folder=folder, holder=holder):
        # The folder and the lock live as long as the question.
        ask_driver(asker)

    return held_up(ask)


def postgres():
    import psycopg2

    connection = psycopg2.connect(address)
    connection.autocommit = True
    cursor = connection.cursor()
    # The connection lives as long as the question.
    return held_up(lambda connection=connection: ask_postgres(cursor))


CREWS = {
    "shares": shares,
    "bursts": bursts,
    "blocked": lambda: held_up(block),
    "driver": driver,
    "postgres": postgres,
    "sleepers": lambda: sleepers(100),
}


def run_greenlets(workload, seconds):
    global gevent, gevent_sleep, hub_wait
    import gevent
    import gevent.lock

    gevent_sleep = gevent.sleep
    crew = CREWS[workload]()
    gevent_sleep(0)  # the hub is there, and waits
    hub = gevent.get_hub()
    hub_wait, hub.wait = hub.wait, wait_booked
    books.ready()
    book.begin()
    spawn_all(now_ns() + int(seconds * 1e9), crew)
    book.end()
    books.done(cpu=book.book())


def run_threads(seconds):
    go, closed = threading.Event(), threading.Event()
    ended = threading.Semaphore(0)

    def body(name, role, work):
        life = book.life(name, role)
        go.wait()
        book.begin()
        end_ns = now_ns() + int(seconds * 1e9)
        life.enter()
        while now_ns() < end_ns:
            work()
        life.leave()
        book.end()
        ended.release()
        closed.wait()  # its times stay readable in /proc

    def hold_and_block():
        hold()
        block()

    crew = [
        ("burner", "burns", burn_ten),
        ("holder", "burns", hold_and_block),
        ("sleeper", "sleeps", block),
    ]
    threads = [threading.Thread(target=body, args=line, name=line[0]) for line in crew]
    for one in threads:
        one.start()
    books.ready()
    book.begin()
    go.set()
    for _ in threads:
        ended.acquire()
    book.end()
    books.done(cpu=book.book())
    closed.set()
    for one in threads:
        one.join()


def main(workload, seconds, where=None):
    global address
    address = where
    if workload == "threads":
        run_threads(seconds)
    else:
        run_greenlets(workload, seconds)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), *sys.argv[3:])
