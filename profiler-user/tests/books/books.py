"""A target that keeps its own books: it prints what every greenlet of it is doing,
as one line of json, and then holds still until its standard input ends."""

import functools
import gc
import sys
import threading

import greenlet

GEVENT = "gevent" in sys.argv[1:]
SMALL = "small" in sys.argv[1:]
hold = []
# The greenlets that stay current on their threads.
current = {id(greenlet.getcurrent())}


def dumps(value):
    # Not the module json: it brings thousands of objects into the recorded memory.
    if isinstance(value, dict):
        return "{%s}" % ",".join(f"{dumps(key)}:{dumps(one)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return "[%s]" % ",".join(map(dumps, value))
    if isinstance(value, str):
        units = value.encode("utf-16-be").hex(" ", 2).replace(" ", "\\u")
        return value.isascii() and value.isprintable() and f'"{value}"' or f'"\\u{units}"'
    return {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, (bool, type(None))) else str(value)


def leave():
    # The way out of every greenlet here: back to whoever started it.
    return greenlet.getcurrent().parent.switch()


def nested(depth):
    if depth:
        return nested(depth - 1)
    return leave()


def generator():
    for number in range(3):
        yield number
        leave()


def through_generator():
    for _ in (outer for outer in generator()):
        pass


def through_c(function):
    return list(map(function, [1]))


def through_sort():
    return sorted([3, 1, 2], key=lambda number: leave() or number)


def class_body():
    class Body:
        value = leave()
    return Body


def größe_и_函数(
    first,
    second=2,
):
    return nested(
        first
        if second
        else 0,
    )


class Sub(greenlet.greenlet):
    def run(self, *args):
        self.seen = args
        return self.deeper(1)

    def deeper(self, count, /, *, more=None):
        try:
            raise ValueError(count)
        except ValueError:
            return leave()


class Outer:
    class Named(greenlet.greenlet):
        pass


def start(made, *args):
    made.switch(*args)
    hold.append(made)
    return made


def started():
    start(greenlet.greenlet(nested), 0)
    start(greenlet.greenlet(nested), 7)
    start(greenlet.greenlet(nested), 60)
    if not SMALL:
        start(greenlet.greenlet(nested), 600)
    start(greenlet.greenlet(through_generator))
    start(greenlet.greenlet(functools.partial(through_c, lambda _: leave())))
    start(greenlet.greenlet(through_sort))
    start(greenlet.greenlet(class_body))
    start(greenlet.greenlet(größe_и_函数), 2)
    start(Sub(), 1, 2)
    start(Outer.Named(lambda: leave())).name = "named ü"
    start(Outer.Named(lambda: leave())).name = 17
    many = start(greenlet.greenlet(nested), 1)
    for number in range(40):
        setattr(many, f"attribute_{number}", number)
    many.name = "among many"
    hold.append(greenlet.greenlet(nested))
    done = greenlet.greenlet(lambda: None)
    done.switch()
    hold.append(done)


def in_thread(ready, until):
    start(greenlet.greenlet(nested), 3)
    current.add(id(greenlet.getcurrent()))
    ready.set()
    until.wait()


def with_gevent():
    import gevent
    from gevent.event import Event

    never = Event()
    hold.append(gevent.spawn(never.wait))
    hold.append(gevent.spawn(lambda: gevent.sleep(1000)))
    hold[-1].name = "sleeper"
    gevent.sleep(0.01)


def state_of(found):
    if found.dead:
        return "Finished"
    if not found:
        return "Unstarted"
    return "Running" if id(found) in current else "Suspended"


def frames_of(found):
    frames, frame = [], found.gr_frame
    while frame is not None:
        code = frame.f_code
        frames.append([code.co_qualname, code.co_filename, frame.f_lineno])
        frame = frame.f_back
    return frames


def entry(found):
    kind = type(found)
    name = getattr(found, "__dict__", {}).get("name")
    return {
        "object": id(found),
        "type": kind.__qualname__,
        "module": kind.__module__,
        "name": name if isinstance(name, str) and name else None,
        "main": found.parent is None and kind is greenlet.greenlet,
        "state": state_of(found),
        "frames": frames_of(found),
    }


def code_lines(code):
    lines = []
    for begin, end, line in code.co_lines():
        lines += [line] * ((end - begin) // 2)
    yield {
        "first": code.co_firstlineno,
        "table": code.co_linetable.hex(),
        "lines": lines,
    }
    for constant in code.co_consts:
        if hasattr(constant, "co_code"):
            yield from code_lines(constant)


def lines_of(name):
    module = __import__(name)
    with open(module.__file__, encoding="utf-8") as file:
        return list(code_lines(compile(file.read(), name, "exec")))


def main():
    if "lines" in sys.argv[1:]:
        print(dumps([one for name in ("bisect", "contextlib", "heapq") for one in lines_of(name)]))
        return
    ready, until = threading.Event(), threading.Event()
    thread = threading.Thread(target=in_thread, args=(ready, until), name="second thread", daemon=True)
    thread.start()
    ready.wait()
    started()
    gc.collect()
    gc.freeze()
    start(greenlet.greenlet(nested), 2)
    if GEVENT:
        with_gevent()
    gc.disable()
    books = {
        "greenlets": [entry(one) for one in gc.get_objects() if isinstance(one, greenlet.greenlet)],
        "threads": [[one.ident, one.native_id, one.name] for one in threading.enumerate()],
    }
    # Frozen objects are not in gc.get_objects().
    known = {one["object"] for one in books["greenlets"]}
    books["greenlets"] += [entry(one) for one in hold if id(one) not in known]
    print(dumps(books), flush=True)
    sys.stdin.read()


main()
