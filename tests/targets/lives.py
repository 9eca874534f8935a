"""Greenlets born and dead by the wave: `lives.py greenlet|gevent COUNT`.

A wave's objects are freed before the next one is made, so that addresses are
reused. The greenlet number n is switched to `1 + n % 7` times.
"""

import collections
import gc
import os
import sys

import greenlet

import books

WAVE = 1000
KINDS = 7


class Seen:
    """greenlet's own addresses, to show that they were reused."""

    def __init__(self):
        self.addresses = set()
        self.reused = 0

    def note(self, one):
        self.reused += id(one) in self.addresses
        self.addresses.add(id(one))


def plain_wave(first, seen):
    def life(turns):
        for _ in range(turns):
            parent.switch()

    parent = greenlet.getcurrent()
    alive = []
    for number in range(first, first + WAVE):
        one = greenlet.greenlet(life)
        seen.note(one)
        # The last switch in is the one that it dies of.
        one.switch(number % KINDS)
        if not one.dead:
            alive.append(one)
    while alive:
        for one in alive:
            one.switch()
        alive = [one for one in alive if not one.dead]


def gevent_wave(first, seen):
    import gevent

    def life(turns):
        for _ in range(turns):
            gevent.sleep(0)

    wave = [gevent.spawn(life, number % KINDS) for number in range(first, first + WAVE)]
    for one in wave:
        seen.note(one)
    gevent.joinall(wave)


def main(kind, count):
    if kind == "gevent":
        import gevent

        gevent.sleep(0)
    book = books.Book(stacks=False)
    book.watch()
    seen = Seen()
    gc.collect()
    books.ready()
    book.begin()
    wave = gevent_wave if kind == "gevent" else plain_wave
    for first in range(0, count, WAVE):
        wave(first, seen)
    closed = book.end()
    # 100 000 rows say no more than how many there were of each.
    own = os.getpid()
    lives = collections.Counter(
        one["switches_in"] for one in closed["greenlets"] if one["alive"] is False
    )
    closed["greenlets"] = [one for one in closed["greenlets"] if one["alive"] is not False]
    assert all(one["tid"] == own for one in closed["greenlets"])
    expected = collections.Counter(1 + number % KINDS for number in range(count))
    assert lives == expected, (lives, expected)
    books.done(
        book=closed,
        dead=[{"switches_in": turns, "greenlets": n} for turns, n in lives.items()],
        addresses_reused=seen.reused,
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
