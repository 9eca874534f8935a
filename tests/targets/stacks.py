"""Stacks of every shape, suspended: `stacks.py SHAPE`.

Each shape is a function that calls `leave` somewhere inside; it runs in a
greenlet, often enough that CPython specialises its instructions. `leave`
looks at its own stack just before the switch, and main compares that with
what the book sees from outside.
"""

import contextlib
import functools
import itertools
import json
import re
import sys

import greenlet

import books

TIMES = 60


def leave():
    """Hand the own stack to main; both happen on one line."""
    main.switch(books.stack_of(sys._getframe()))


@functools.cache
def made(name, file, source):
    """The function of that name, compiled once: its code object stays.

    Code that is gone when it is looked up is reuse.py's subject.
    """
    space = {"leave": leave}
    exec(compile(source, file, "exec"), space)
    return space[name]


def deep():
    """200 frames of different functions and lines."""

    def build(depth):
        source = ["def level_0():\n    leave()\n"]
        for level in range(1, depth):
            pad = "\n" * (level % 7)
            source.append(f"{pad}def level_{level}():\n{pad}    level_{level - 1}()\n")
        return made(f"level_{depth - 1}", "deep/of/200.py", "".join(source))

    # Our own frames (run, deep, level_0 ... and leave) make it 200.
    build(198)()


def recursion():
    """One function many times, from two lines."""

    def down(left):
        if not left:
            leave()
        elif left % 3:
            down(left - 1)
        else:
            return [
                down(
                    left - 1
                )
            ]

    down(60)


def mutual():
    """Two methods that call each other, with a keyword and a star."""

    class Pair:
        def even(self, left, *rest, **more):
            if left:
                return self.odd(left - 1, *rest, **more)
            return leave()

        def odd(self, left, *rest, more=None):
            return self.even(*(left - 1, *rest), **{"more": more})

    Pair().even(20, 1, 2, more=3)


def generators():
    """yield from chains, and generator frames in the middle of the stack."""

    def leaf(number):
        leave()
        yield number
        leave()

    def branch(depth):
        if depth:
            yield from branch(depth - 1)
        else:
            yield from leaf(1)
        leave()
        yield 2

    def consumer(values):
        for value in values:
            yield value
            leave()

    total = 0
    for value in consumer(branch(5)):
        total += value
    assert total == 1 + 2 * 6
    sum(value for value in branch(3))
    list(itertools.chain.from_iterable(leaf(n) for n in range(2)))
    sent = branch(2)
    sent.send(None)
    with contextlib.suppress(ValueError):
        sent.throw(ValueError())


def coroutines():
    """await chains and an async generator, driven by hand."""

    class Pause:
        def __await__(self):
            leave()
            yield 1
            leave()

    async def ticks():
        for number in range(3):
            leave()
            yield number
            await Pause()

    async def inner():
        await Pause()
        async for _ in ticks():
            leave()

    async def outer():
        async with contextlib.AsyncExitStack():
            await inner()
        return [number async for number in ticks()]

    body = outer()
    with contextlib.suppress(StopIteration):
        while True:
            body.send(None)


def c_calls():
    """C functions in the middle that call back into Python."""

    def key(value):
        leave()
        return -value

    def add(left, right):
        leave()
        return left + right

    class Odd:
        def __init__(self, value):
            self.value = value

        def __lt__(self, other):
            leave()
            return self.value < other.value

        def __eq__(self, other):
            leave()
            return True

        __hash__ = None

        def __len__(self):
            leave()
            return 1

        def __getattr__(self, name):
            leave()
            return name

        def __call__(self, value):
            leave()
            return value

    assert list(map(key, [1, 2])) == [-1, -2]
    assert sorted([1, 2, 3], key=key) == [3, 2, 1]
    assert functools.partial(add, 1)(2) == 3
    assert functools.partial(functools.partial(add, 1), 2)() == 3
    assert functools.reduce(add, [1, 2, 3]) == 6
    assert functools.reduce(
        functools.partial(lambda scale, left, right: scale * add(left, right), 1),
        map(Odd(0), sorted([3, 1], key=functools.cmp_to_key(lambda a, b: key(b) or 1))),
    ) == 4
    assert re.sub("b", lambda found: leave() or "c", "abab") == "acac"
    assert json.dumps({1: {2}}, default=lambda _: leave()) == '{"1": null}'
    assert min(Odd(2), Odd(1)).value == 1
    assert [Odd(1)] == [Odd(2)]
    assert bool(Odd(1)) and getattr(Odd(1), "there") == "there"
    list(filter(key, [1, 2]))
    sum(map(functools.lru_cache(None)(key), [5, 5, 6]))


def constructors():
    """__init__, class bodies, properties, decorators, context managers."""

    class Base:
        def __init__(self, value):
            self.value = value
            leave()

        def __del__(self):
            leave()

    class Derived(Base):
        def __init__(self):
            super().__init__(3)
            leave()

        @property
        def seen(self):
            leave()
            return self.value

        @functools.cached_property
        def once(self):
            return leave()

        @classmethod
        def make(cls):
            return cls()

        @contextlib.contextmanager
        def held(self):
            leave()
            yield self
            leave()

    for _ in range(5):
        with Derived.make().held() as one:
            one.seen
            one.once
        del one

    class Late(type):
        def __new__(mcs, name, bases, space):
            leave()
            return super().__new__(mcs, name, bases, space)

    class Body(metaclass=Late):
        leave()
        inside = [leave() for _ in range(2)]


def lines():
    """The line of the suspended call, where the layout is not plain."""

    def many(*args, **more):
        return args

    many(
        1,
        leave(),
        [
            leave()
            for _ in range(2)
        ],
        more=many(
            leave(
            ),
        ),
    )
    try:
        raise ValueError(
            leave()
        )
    except (
        leave() or KeyError,
        ValueError,
    ):
        leave()
    finally:
        leave()
    assert (
        not leave()
    ), "never"
    with contextlib.nullcontext(
        leave()
    ):
        leave()
    f"{leave()} {leave()}"
    (lambda: (
        leave()
    ))()
    while not leave():
        break


def unusual():
    """Names and files of each unicode kind, far lines, long bodies."""

    def run(name, file, source, skip=0):
        made(name, file, "\n" * skip + source)()

    for name in ["plain", "né", "имя", "\U00010400\U00010428", "n" * 200]:
        run(name, f"dir/{name}.py", f"def {name}():\n    leave()\n")
    run("far", "far.py", "def far():\n    leave()\n", skip=70_000)
    body = "".join(f"    x = {n} if {n} else 0\n" for n in range(3000))
    run("long", "long.py", f"def long():\n{body}    leave()\n{body}    leave()\n")
    wide = "    x = [" + ", ".join(["1"] * 3000) + ", leave()]\n"
    run("wide", "wide.py", f"def wide():\n{wide}")
    back = "def back():\n    for x in (0, 1):\n" + "        x = 1\n" * 400
    run("back", "back.py", back + "        leave()\n")
    run("f", "", "def f():\n    leave()\n")
    run("f", "with space;semi(colon)&<xml>\"quote\".py", "f = lambda: leave()\n")


def too_deep():
    """Deeper than any profiler wants to go."""
    sys.setrecursionlimit(20_000)

    def down(left):
        if left:
            down(left - 1)
        else:
            leave()

    down(5_000)


SHAPES = [
    deep, recursion, mutual, generators, coroutines, c_calls, constructors, lines,
    unusual, too_deep,
]


def in_gevent(shape):
    """The same shape in greenlets of gevent, which wait in its own functions."""
    global leave
    import gevent

    def leave():
        """A wait in gevent's Python and C parts."""
        gevent.sleep(0)

    return lambda: gevent.joinall([gevent.spawn(shape) for _ in range(3)])


def in_greenlets(shape, times):
    """Each run in a greenlet of its own; main compares the two views of a stack."""
    checked = 0
    for _ in range(times):
        one = greenlet.greenlet(shape)
        seen = one.switch()
        while not one.dead:
            assert seen == books.stack_of(one.gr_frame), (seen, one.gr_frame)
            checked += 1
            seen = one.switch()
    return checked


def main_(name, kind):
    global main
    main = greenlet.getcurrent()
    shape = {shape.__name__: shape for shape in SHAPES}[name]
    if kind == "gevent":
        import gevent

        gevent.sleep(0)
        work = in_gevent(shape)
    else:
        times = 2 if shape in (too_deep, unusual) else TIMES

        def work():
            return in_greenlets(shape, times)

    book = books.Book()
    book.watch()
    books.ready()
    book.begin()
    work()
    books.done(book=book.end())


if __name__ == "__main__":
    main_(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "greenlet")
