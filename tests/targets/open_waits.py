"""Waits that cross the recording's ends: `open_waits.py greenlet|gevent|threads`.

resumed: began before, ends inside. parted: the same, and waits again until the
end. late: begins inside, open at the end. asleep: began before and never ends.
"""

import sys
import threading
import time

import greenlet

import books

kept = {}


def wait(name):
    """The suspended function of every greenlet here."""
    pause(name)


def resumed():
    wait("resumed")


def parted():
    wait("parted")
    wait("parted once more")


def late():
    wait("late")


def asleep(depth=5):
    if depth:
        asleep(depth - 1)
    else:
        wait("asleep")


def plain():
    """Greenlets of greenlet alone; the set-up and the work on them."""
    global pause
    here = greenlet.getcurrent()

    def pause(name):
        here.switch(name)

    for function in (resumed, parted, asleep):
        one = kept[function.__name__] = greenlet.greenlet(function)
        one.switch()

    def work():
        time.sleep(0.6)
        kept["resumed"].switch()
        kept["parted"].switch()
        one = kept["late"] = greenlet.greenlet(late)
        one.switch()
        time.sleep(0.6)

    return work


def with_gevent():
    """The same with gevent's; the hub waits as well."""
    global pause
    import gevent
    from gevent.event import Event

    gates = {name: Event() for name in ("resumed", "parted", "late", "asleep")}
    gates["parted once more"] = Event()

    def pause(name):
        gates[name].wait()

    for function in (resumed, parted, asleep):
        kept[function.__name__] = gevent.spawn(function)
    gevent.sleep(0)

    def work():
        gevent.sleep(0.6)
        gates["resumed"].set()
        gates["parted"].set()
        kept["late"] = gevent.spawn(late)
        gevent.sleep(0.6)

    return work


def main(kind):
    book = books.Book()
    if kind == "threads":
        # Two threads that sit in the kernel for good, each with its sleepers.
        gate = threading.Barrier(3)
        never = threading.Lock()
        never.acquire()

        def body():
            book.watch()
            here = greenlet.getcurrent()

            def parked(left):
                if left:
                    parked(left - 1)
                else:
                    here.switch()

            ones = [greenlet.greenlet(parked) for _ in range(3)]
            for depth, one in enumerate(ones):
                one.switch(depth)
            gate.wait()
            never.acquire()
            assert ones

        for _ in range(2):
            threading.Thread(target=body, daemon=True).start()
        gate.wait()

        def work():
            time.sleep(0.6)
    else:
        if kind == "gevent":
            import gevent

            gevent.sleep(0)
            book = books.Book()
        book.watch()
        work = with_gevent() if kind == "gevent" else plain()
    books.ready()
    book.begin()
    work()
    books.done(book=book.end())


if __name__ == "__main__":
    main(sys.argv[1])
