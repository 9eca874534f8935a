"""A service whose first request starts what goes on for ever.

    flusher.py --labels agent|otel|wire

`/first` makes a flusher in three ways that differ in the context it has, and one that waits
long for its first work. `/inside` makes greenlets that work for it and waits for them. The
books say how long each request took, and what time each function had.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402
import greenlet  # noqa: E402
from gevent.event import Event  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402

import books  # noqa: E402
import tracers  # noqa: E402

_now_ns = time.monotonic_ns

times = books.Times()
walls = {"/first": 0, "/inside": 0, "/later": 0}
over = Event()
stopping = Event()
started = []


@times.of
def flush_wait():
    gevent.sleep(0.03)


@times.of
def flush_burn():
    books.burn(3)


def flusher():
    while not stopping.is_set():
        flush_wait()
        flush_burn()


@times.of
def first_work_wait():
    over.wait()


def late():
    first_work_wait()
    flusher()


@times.of
def inside_wait():
    gevent.sleep(0.02)


@times.of
def inside_burn():
    books.burn(2)


def inside():
    inside_wait()
    inside_burn()


@times.of
def first_wait():
    gevent.sleep(0.2)


def first():
    if not started:
        started.extend([gevent.spawn(flusher), gevent.spawn(late), gevent.spawn_later(0.01, flusher)])
        bare = greenlet.greenlet(flusher, gevent.get_hub())
        gevent.get_hub().loop.run_callback(bare.switch)
    first_wait()


def inside_view():
    children = [gevent.spawn(inside) for _ in range(3)]
    for _ in range(2):
        bare = greenlet.greenlet(inside, gevent.get_hub())
        gevent.get_hub().loop.run_callback(bare.switch)
    gevent.joinall(children)
    gevent.sleep(0.03)


@times.of
def later_wait():
    gevent.sleep(0.01)


def later():
    books.burn(1)
    later_wait()


def finish():
    over.set()
    gevent.sleep(0.2)
    stopping.set()


VIEWS = {"/first": first, "/inside": inside_view, "/later": later}


def application(asked):
    from flask import Flask

    tracer = tracers.named(asked.labels)
    tracer.start()
    app = Flask(__name__)

    def handled(path, view):
        def handle():
            begin_ns = _now_ns()
            view()
            walls[path] += _now_ns() - begin_ns
            return "done"

        handle.__name__ = path.strip("/")
        return handle

    for path, view in VIEWS.items():
        app.add_url_rule(path, path.strip("/"), handled(path, view))
    app.add_url_rule(tracers.IGNORED, "finish", lambda: finish() or "finished")
    tracer.instrument(app)
    return app


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", choices=("agent", "otel", "wire"), required=True)
    return parser.parse_args()


def main():
    app = application(arguments())
    server = WSGIServer(("127.0.0.1", 0), app, log=None, error_log=None)
    server.start()
    books.ready(port=server.server_port)
    while not stopping.is_set():
        gevent.sleep(0.05)
    gevent.joinall(started)
    books.done(walls=walls, times=times.book())


if __name__ == "__main__":
    main()
    import os

    # The agent would wait for its queue.
    os._exit(0)
