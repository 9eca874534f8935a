"""Threads that sleep for a moment in the same function, on many paths: `naps.py SECONDS`.

The leaf is the same frame at the same place for many of them: only who called it, and
where, tells them apart. The books have each nap by its stack.
"""

import functools
import itertools
import random
import sys
import threading
import time

import books

NAP_S = 0.000_05
THREADS = 2


class Sleeper:
    def __init__(self):
        self.naps = {}

    def nap(self):
        frame = sys._getframe()
        began_ns = time.monotonic_ns()
        time.sleep(NAP_S)
        ns = time.monotonic_ns() - began_ns
        entry = self.naps.setdefault(path_of(frame), [0, 0])
        entry[0] += 1
        entry[1] += ns

    def here(self):
        self.nap()

    def there(self, turn=False):
        if turn:
            self.here()
        else:
            self.here()
        self.nap()

    def through_c(self):
        list(map(self.there, (False, True)))
        sorted((2, 1), key=self.keyed)

    def keyed(self, number):
        self.nap()
        return number

    def through_a_generator(self):
        for turn in self.generate():
            self.there(turn)

    def generate(self):
        self.nap()
        yield True
        self.nap()
        yield False

    def down(self, depth):
        if depth:
            self.down(depth - 1)
        else:
            self.nap()

    def deep(self):
        self.down(3)
        self.down(40)


def path_of(frame):
    """What tells a stack, without its names."""
    path = []
    while frame is not None:
        # The line of the nap itself is always the same.
        path.append((frame.f_code, frame.f_lineno if path else 0))
        frame = frame.f_back
    return tuple(path)


def frames_of(path):
    asleep_at = Sleeper.nap.__code__.co_firstlineno + 3
    frames = [
        {"function": code.co_qualname, "file": code.co_filename, "line": line or asleep_at}
        for code, line in path
    ]
    return frames[::-1]


def work(sleeper, end_ns, seed):
    chosen = random.Random(seed)
    ways = [sleeper.here, sleeper.through_c, sleeper.through_a_generator, sleeper.deep,
            sleeper.there, functools.partial(sleeper.there, True)]
    while time.monotonic_ns() < end_ns:
        chosen.choice(ways)()


def main(seconds):
    sleepers = [Sleeper() for _ in range(THREADS)]
    books.ready()
    end_ns = time.monotonic_ns() + int(seconds * 1e9)
    threads = [threading.Thread(target=work, args=(one, end_ns, seed))
               for seed, one in enumerate(sleepers)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    naps = {}
    for path, (count, ns) in itertools.chain(*(one.naps.items() for one in sleepers)):
        entry = naps.setdefault(path, [0, 0])
        entry[0] += count
        entry[1] += ns
    books.done(naps=[
        {"frames": frames_of(path), "state": "blocked", "open": None, "count": count, "ns": ns}
        for path, (count, ns) in naps.items()
    ])


if __name__ == "__main__":
    main(float(sys.argv[1]))
