"""Greenlets with names, and without: `named.py asleep|churn`.

    asleep   some that sleep for half a second and are dead at the end, named in each way;
             and some that were there before, whose addresses nameless ones have later
    churn    thousands that live for a moment or for half a second, whose names say how
             often they are switched to, and as many without, at the same addresses

The books have the names (`names`), and of `churn` how many there were.
"""

import gc
import random
import sys

import gevent
import gevent.event
import greenlet

import books

SLEEP_S = 0.5
WAVES = 14
WAVE = 150


class Worker(gevent.Greenlet):
    """A type of the service's own, which names itself."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def _run(self):
        self.name = f"worker-{self.number}"
        gevent.sleep(SLEEP_S)


def sleeper():
    gevent.sleep(SLEEP_S)


def spawned(name):
    one = gevent.spawn(sleeper)
    one.name = name
    return one


def raw(name):
    """One of greenlet's own, switched by hand."""
    hub = gevent.get_hub()
    one = greenlet.greenlet(sleeper, parent=hub)
    one.name = name
    hub.loop.run_callback(one.switch)
    return one


def asleep():
    gevent.sleep(0.3)  # what is there at the beginning was looked at by now
    ones = [spawned(name) for name in ("plain", "größer", "名前 two")]
    ones += [Worker(number) for number in range(3)]
    for one in ones[3:]:
        one.start()
    hand = raw("by hand")
    gevent.joinall(ones)
    while not hand.dead:
        gevent.sleep(0.01)
    names = [one.name for one in ones] + ["by hand"]
    del ones, one, hand
    more, nameless = end_those_from_before()
    return {"names": names + more, "nameless": nameless}


def end_those_from_before():
    """They end, and nameless ones take their addresses; their names, and how many come."""
    names = [one.name for one in before]
    addresses = {id(one) for one in before}
    release.set()
    gevent.joinall(before)
    before.clear()
    gc.collect()
    heirs = []
    while len(addresses) > len(names) // 2:
        heirs.append(gevent.spawn(sleeper))
        addresses.discard(id(heirs[-1]))
        assert len(heirs) < 10_000, "the addresses are not used again"
    gevent.joinall(heirs)
    return names, len(heirs)


def churn():
    chance = random.Random(1)
    serial = 0

    def life(turns, seconds):
        for _ in range(turns):
            gevent.sleep(seconds)
            # Some work, so that ticks meet them too.
            sum(range(3000))

    counts = {"named": 0, "nameless": 0}
    for _ in range(WAVES):
        wave = []
        for _ in range(WAVE):
            turns = chance.randrange(1, 6)
            one = gevent.spawn(life, turns, chance.choice((0, 0, 0.001, 0.03, 0.1)))
            if chance.random() < 0.5:
                one.name = f"{serial} is switched to {turns + 1} times"
                counts["named"] += 1
            else:
                counts["nameless"] += 1
            wave.append(one)
            serial += 1
        # The next wave begins before the last of this one has ended.
        gevent.joinall(wave, count=WAVE * 9 // 10)
        del wave, one
    gevent.sleep(0.7)
    return counts


def main(kind):
    global release
    release = gevent.event.Event()
    if kind == "asleep":
        for number in range(8):
            one = gevent.spawn(release.wait)
            one.name = f"before {number}"
            before.append(one)
        del one
    gevent.sleep(0)
    books.ready()
    facts = {"asleep": asleep, "churn": churn}[kind]()
    books.done(**facts)


before = []

if __name__ == "__main__":
    main(sys.argv[1])
