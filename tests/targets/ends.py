"""The ways that a greenlet's life turns or ends: `ends.py SCENARIO`.

Each scenario asserts what it believes happened, so that the books of a
scenario that did not take place are never compared.
"""

import os
import sys
import threading
import time

import greenlet

import books

kept = []


def suspended(*tail):
    """A started greenlet that waits in its parent's switch."""

    def waits():
        try:
            main.switch("waits")
        finally:
            for step in tail:
                step()

    one = greenlet.greenlet(waits)
    assert one.switch() == "waits"
    return one


def join(thread):
    """Until the thread is gone from the kernel too: join() is a moment too early."""
    thread.join()
    while os.path.exists(f"/proc/self/task/{thread.native_id}"):
        time.sleep(0.001)


def throw():
    """An exception thrown in, and caught there; another one comes out."""

    def catches():
        for _ in range(50):
            try:
                main.switch("waits")
            except KeyError:
                continue
        raise LookupError

    one = greenlet.greenlet(catches)
    one.switch()
    for _ in range(49):
        assert one.throw(KeyError) == "waits"
    try:
        one.throw(KeyError)
    except LookupError:
        pass
    assert one.dead


def throw_before_start():
    """An exception thrown into a greenlet that never ran."""
    for _ in range(20):
        one = greenlet.greenlet(lambda: None)
        try:
            one.throw(KeyError)
        except KeyError:
            pass
        assert one.dead


def greenlet_exit():
    """GreenletExit thrown, and raised."""

    def exits():
        main.switch()
        raise greenlet.GreenletExit("gone")

    for _ in range(20):
        one = suspended()
        assert isinstance(one.throw(), greenlet.GreenletExit)
        other = greenlet.greenlet(exits)
        other.switch()
        assert isinstance(other.switch(), greenlet.GreenletExit)
        assert one.dead and other.dead


def kill():
    """gevent.kill of a sleeper, of an unstarted, and one that refuses at first."""
    import gevent

    def sleeper():
        gevent.sleep(100)

    def stubborn():
        try:
            gevent.sleep(100)
        except gevent.GreenletExit:
            gevent.sleep(0.01)

    for function in (sleeper, stubborn) * 10:
        one = gevent.spawn(function)
        gevent.sleep(0)
        one.kill()
        assert one.dead
    unstarted = gevent.spawn(sleeper)
    unstarted.kill()
    group = [gevent.spawn(sleeper) for _ in range(10)]
    gevent.sleep(0)
    gevent.killall(group)
    with gevent.Timeout(0.01, False):
        gevent.sleep(100)


def parent_dies():
    """The parent ends first: the end goes to the parent's parent."""

    def child():
        main.switch("child waits")
        return "end"

    def parent():
        one = greenlet.greenlet(child)
        kept.append(one)
        return one.switch()

    for _ in range(20):
        elder = greenlet.greenlet(parent)
        assert elder.switch() == "child waits"
        # The elder waits inside child's first switch; end it.
        assert isinstance(elder.throw(), greenlet.GreenletExit)
        assert elder.dead and not kept[-1].dead
        assert kept[-1].switch() == "end"


def uncaught():
    """An exception runs through three generations, each of which dies of it."""

    def raises(left):
        kept.append(greenlet.getcurrent())
        if left:
            greenlet.greenlet(raises).switch(left - 1)
        main.switch()
        raise ArithmeticError

    for _ in range(10):
        kept.clear()
        greenlet.greenlet(raises).switch(2)
        assert len(kept) == 3
        try:
            kept[2].switch()
        except ArithmeticError:
            pass
        assert all(one.dead for one in kept)


def dealloc():
    """The last reference goes while it is suspended: killed in place."""
    for _ in range(20):
        one = suspended()
        del one


def dealloc_refused():
    """Killed by its last reference's end, but it switches on: it lives again."""
    for _ in range(20):
        one = suspended(lambda: main.switch("once more"))
        del one


def dealloc_in_another_thread():
    """Dropped elsewhere: killed by its own thread, later."""
    for _ in range(20):
        box = [suspended()]
        other = threading.Thread(target=box.clear)
        other.start()
        join(other)
        greenlet.getcurrent()
    time.sleep(0)
    greenlet.getcurrent()


def thread_ends():
    """A thread ends, and its suspended greenlets are killed as it returns."""

    def body():
        book.watch()
        here = greenlet.getcurrent()
        ones = [greenlet.greenlet(lambda: here.switch()) for _ in range(5)]
        for one in ones:
            one.switch()

    for _ in range(5):
        one = threading.Thread(target=body)
        one.start()
        join(one)


def thread_abandons():
    """A thread ends, and its suspended greenlets outlive it; freed without a switch."""

    def body():
        book.watch()
        here = greenlet.getcurrent()
        for _ in range(5):
            one = greenlet.greenlet(lambda: here.switch())
            one.switch()
            kept.append(one)

    for _ in range(5):
        one = threading.Thread(target=body)
        one.start()
        join(one)
    del kept[:15]


def started_while_in_python():
    """`run` is looked up by Python code that itself starts the greenlet.

    The outer switch then finds it started (GreenletStartedWhileInPython).
    """

    class Eager(greenlet.greenlet):
        def __init__(self):
            super().__init__()
            object.__setattr__(self, "asked", 0)

        def __getattribute__(self, name):
            if name == "run":
                asked = object.__getattribute__(self, "asked")
                object.__setattr__(self, "asked", asked + 1)
                if not asked:
                    assert greenlet.greenlet.switch(self) == "first"
                return object.__getattribute__(self, "body")
            return super().__getattribute__(name)

        def body(self):
            main.switch("first")
            main.switch("second")
            return "third"

    for _ in range(20):
        one = Eager()
        assert one.switch() == "second"
        assert one.switch() == "third"
        assert one.dead


def switches_while_looked_up():
    """`run`'s lookup switches elsewhere and back before the start."""

    class Wanderer(greenlet.greenlet):
        def __getattribute__(self, name):
            if name == "run":
                assert other.switch() == "back"
                return lambda: "ran"
            return super().__getattribute__(name)

    def echo():
        while True:
            main.switch("back")

    other = greenlet.greenlet(echo)
    for _ in range(20):
        assert Wanderer().switch() == "ran"
    other.throw()


def lookup_raises():
    """`run`'s lookup raises: no switch at all."""

    class Refuses(greenlet.greenlet):
        @property
        def run(self):
            raise KeyError("run")

    for _ in range(20):
        try:
            Refuses().switch()
        except KeyError:
            continue
        raise AssertionError("it ran")
    suspended().throw()


def self_switch():
    """A switch to itself is none."""

    def selfish():
        for _ in range(50):
            assert greenlet.getcurrent().switch(7) == 7
        main.switch()

    one = greenlet.greenlet(selfish)
    one.switch()
    assert main.switch(3) == 3
    one.throw()


def dead_switch():
    """A switch to a dead greenlet goes to its first live ancestor."""

    def family():
        here = greenlet.getcurrent()
        dead = greenlet.greenlet(lambda: greenlet.greenlet(lambda: None))
        grandchild = dead.switch()
        grandchild.switch()
        grandchild.parent = dead
        assert grandchild.dead and dead.dead and dead.parent is here
        # Both lead here: no switch.
        assert dead.switch(4) == 4
        assert grandchild.switch(5) == 5
        main.switch(dead)
        return "end"

    for _ in range(20):
        one = greenlet.greenlet(family)
        dead = one.switch()
        # From main it is one switch, to `one`.
        assert dead.switch(6) == "end"
        assert one.dead


def wrong_thread():
    """A switch to another thread's greenlet raises; none happens."""
    held = suspended()
    errors = []

    def body():
        book.watch()
        here = greenlet.getcurrent()
        for _ in range(20):
            for way in (held.switch, held.throw, main.switch):
                try:
                    way()
                except greenlet.error as error:
                    errors.append(error)
        greenlet.greenlet(lambda: here.switch()).switch()

    other = threading.Thread(target=body)
    other.start()
    join(other)
    assert len(errors) == 60
    held.throw()


def finalizer_switches():
    """A __del__ that switches, while a stack is unwound."""

    class Last:
        def __del__(self):
            main.switch("del")

    def holds():
        last = Last()
        main.switch("waits")
        del last
        return "end"

    for _ in range(20):
        one = greenlet.greenlet(holds)
        assert one.switch() == "waits"
        assert one.switch() == "del"
        assert one.switch() == "end"


SCENARIOS = [
    throw, throw_before_start, greenlet_exit, kill, parent_dies, uncaught, dealloc,
    dealloc_refused, dealloc_in_another_thread, thread_ends, thread_abandons,
    started_while_in_python, switches_while_looked_up, lookup_raises, self_switch,
    dead_switch, wrong_thread, finalizer_switches,
]


def main_(name):
    global main, book
    main = greenlet.getcurrent()
    if name == "kill":
        import gevent

        gevent.sleep(0)
    book = books.Book()
    book.watch()
    books.ready()
    book.begin()
    {scenario.__name__: scenario for scenario in SCENARIOS}[name]()
    books.done(book=book.end())


if __name__ == "__main__":
    if sys.argv[1] == "--list":
        print("\n".join(scenario.__name__ for scenario in SCENARIOS))
    else:
        main_(sys.argv[1])
