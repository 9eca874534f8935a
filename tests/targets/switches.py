"""Switches as fast as they come, counted: `switches.py greenlet|gevent|threads [rounds]`."""

import sys
import threading

import greenlet

import books


def ping_pong(rounds):
    """Two greenlets that hand one value to and fro."""

    def echo(value):
        while True:
            value = parent.switch(value + 1)

    parent = greenlet.getcurrent()
    other = greenlet.greenlet(echo)
    value = 0
    for _ in range(rounds):
        value = other.switch(value)
    assert value == rounds
    other.throw()


def ring(size, rounds):
    """Greenlets that each switch to the next one."""

    def member(index):
        following = (index + 1) % size
        for _ in range(rounds):
            members[following].switch(following)
        # Whoever finishes first goes to its parent, the starter.

    members = [greenlet.greenlet(member) for _ in range(size)]
    members[0].switch(0)
    for one in members:
        if not one.dead:
            one.throw()


def nest(depth):
    """Each greenlet starts another one inside itself."""

    def level(left):
        if left:
            inner = greenlet.greenlet(level)
            inner.switch(left - 1)
        greenlet.getcurrent().parent.switch()

    greenlet.greenlet(level).switch(depth)


def no_switches():
    """What looks like a switch, and is none."""
    current = greenlet.getcurrent()
    for _ in range(500):
        assert current.switch(1) == 1
    dead = greenlet.greenlet(lambda: None)
    dead.switch()
    for _ in range(500):
        assert dead.switch(2) == 2  # goes to the parent, which is current


def plain(rounds):
    """All of the above on the calling thread."""
    ping_pong(rounds)
    ring(7, rounds // 100)
    nest(40)
    no_switches()


def with_gevent(rounds):
    """What gevent's own primitives switch."""
    import gevent
    from gevent.event import Event
    from gevent.lock import Semaphore
    from gevent.queue import Queue

    queue = Queue(3)
    lock = Semaphore(2)
    go = Event()

    def producer():
        go.wait()
        for number in range(rounds // 50):
            queue.put(number)
        queue.put(None)

    def consumer():
        while queue.get() is not None:
            with lock:
                gevent.sleep(0)
        queue.put(None)

    def idler():
        for _ in range(rounds // 200):
            gevent.sleep(0)

    workers = [gevent.spawn(one) for one in [producer] + [consumer] * 3 + [idler] * 40]
    gevent.sleep(0.001)
    go.set()
    gevent.joinall(workers)


def main(kind, rounds):
    if kind == "gevent":
        import gevent

        gevent.sleep(0)  # starts the hub
    book = books.Book(stacks=False)
    if kind == "threads":
        gate = threading.Barrier(4)

        def thread():
            book.watch()
            gate.wait()  # set up
            gate.wait()  # the recording runs
            plain(rounds)
            gate.wait()  # done
            gate.wait()  # the recording has ended

        threads = [threading.Thread(target=thread, daemon=True) for _ in range(3)]
        for one in threads:
            one.start()
        gate.wait()
        books.ready()
        book.begin()
        gate.wait()
        gate.wait()
        books.done(book=book.end())
        gate.wait()
    else:
        book.watch()
        books.ready()
        book.begin()
        (with_gevent if kind == "gevent" else plain)(rounds)
        books.done(book=book.end())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10_000)
