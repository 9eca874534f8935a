"""Functions with known waits, nested three deep: `waits.py gevent|greenlet`."""

import heapq
import sys
import time

import greenlet

import books

times = books.Times()

# Concurrent greenlets, so that one second per function passes in a fraction.
CROWD = 12
ROUNDS = 4


class Loop:
    """A scheduler of plain greenlets, so small that it can be trusted."""

    def __init__(self):
        self.main = greenlet.getcurrent()
        self.due = []
        self.turn = 0

    def spawn(self, function, *args):
        self.turn += 1
        one = greenlet.greenlet(lambda: function(*args))
        heapq.heappush(self.due, (time.monotonic(), self.turn, one))

    def sleep(self, seconds):
        self.turn += 1
        entry = (time.monotonic() + seconds, self.turn, greenlet.getcurrent())
        heapq.heappush(self.due, entry)
        self.main.switch()

    def run(self):
        while self.due:
            at, _, one = heapq.heappop(self.due)
            left = at - time.monotonic()
            if left > 0:
                time.sleep(left)
            one.switch()


@times.of
def inner(seconds):
    """The deepest: one wait."""
    sleep(seconds)


@times.of
def middle(seconds):
    """A wait of its own, and the deepest's."""
    sleep(seconds)
    inner(2 * seconds)


@times.of
def outer(seconds):
    """Waits before, inside and after."""
    sleep(seconds / 2)
    middle(seconds)
    sleep(seconds / 2)


@times.of
def elsewhere(seconds):
    """Calls the deepest by another way."""
    inner(seconds)


def work(number):
    for _ in range(ROUNDS):
        outer(0.012 + number * 0.001)
        elsewhere(0.025)


def main(kind):
    global sleep
    if kind == "gevent":
        import gevent

        sleep = gevent.sleep
        sleep(0)

        def run():
            gevent.joinall([gevent.spawn(work, number) for number in range(CROWD)])
    else:
        loop = Loop()
        sleep = loop.sleep

        def run():
            for number in range(CROWD):
                loop.spawn(work, number)
            loop.run()

    book = books.Book()
    book.watch()
    books.ready()
    book.begin()
    run()
    books.done(book=book.end(), times=times.book())


if __name__ == "__main__":
    main(sys.argv[1])
