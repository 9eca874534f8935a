"""A Flask service on gevent whose every request tells what it worked for.

    traced.py --labels agent|otel|wire --books FILE [--switches FILE]
              [--port-file FILE] [--port N] [--seconds N]

It prints `ready` with its pid and port, serves until SIGTERM (or for --seconds), writes
its books and prints `done`. The books' lines are described in tests/traced/README.md.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import contextlib  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402
from gevent.event import Event  # noqa: E402
from gevent.pywsgi import WSGIHandler, WSGIServer  # noqa: E402
from gevent.queue import Queue  # noqa: E402
from greenlet import getcurrent  # noqa: E402

import books  # noqa: E402
import traced_books  # noqa: E402
import tracers  # noqa: E402

SWITCHES = 4_000_000
"""More are counted as lost."""

_now_ns = time.monotonic_ns
_block = monkey.get_original("time", "sleep")
_of = traced_books.of

requests = traced_books.Requests()
doomed = Queue()
tracer = None
views = {}


def view(path):
    """The function answers requests for the path, each with a line in the book."""

    def decorate(function):
        def handled():
            from flask import request

            work = requests.work("request")
            work.sent = request.args.get("n")
            work.endpoint = path
            work.label = tracer.current()
            if tracer.name == "wire":
                work.header, work.label = tracer.of_headers(request.environ)
            else:
                work.header = tracers.Wire.of_headers(request.environ)[0]
            here = getcurrent()
            work.begins(here._run.__qualname__)
            try:
                answer = function()
                work.ended = "returned"
                return answer
            except BaseException as error:
                work.ended = type(error).__name__
                raise
            finally:
                work.end_ns = _now_ns()

        handled.__name__ = handled.__qualname__ = f"handle_{function.__name__}"
        views[path] = handled
        return function

    return decorate


def spawn(function, *args):
    """A greenlet of the current work: what it does is booked as its spawner's."""
    work = requests.work("child")
    work.of = getcurrent().work.serial
    work.endpoint = getcurrent().work.endpoint
    work.label = getcurrent().work.label if tracer.name == "wire" else tracer.current()
    work.made_ns = _now_ns()
    return gevent.spawn(child, work, function, args)


def child(work, function, args):
    """Where a spawned greenlet begins and ends."""
    work.begins(function.__qualname__)
    try:
        function(*args)
        work.ended = "returned"
    except BaseException as error:
        work.ended = type(error).__name__
        raise
    finally:
        work.end_ns = _now_ns()


@contextlib.contextmanager
def own_span(name):
    """A span of one's own in the tracer, booked with its time."""
    work = getcurrent().work
    with tracer.child(name):
        label = tracer.current()
        span = [label, _now_ns(), None]
        if label is not None:
            work.spans.append(span)
        try:
            yield
        finally:
            span[2] = _now_ns()


@_of("wait")
def slow_first_wait():
    gevent.sleep(0.04)


@_of("wait")
def slow_second_wait():
    gevent.sleep(0.06)


@view("/slow")
def slow():
    slow_first_wait()
    slow_second_wait()
    return "slow"


@_of("wait")
def chatty_wait():
    gevent.sleep(0.001)


@view("/chatty")
def chatty():
    """Most of what is to be labelled, for little of a CPU."""
    for _ in range(25):
        chatty_wait()
    return "chatty"


@_of("cpu")
def busy_burn():
    books.burn(5)


@_of("wait")
def busy_wait():
    gevent.sleep(0.005)


@view("/busy")
def busy():
    busy_burn()
    busy_wait()
    return "busy"


@_of("cpu")
def mixed_burn():
    books.burn(2)


@_of("wait")
def mixed_wait():
    gevent.sleep(0.01)


@_of("wait")
def mixed_inner_wait():
    gevent.sleep(0.01)


@_of("cpu")
def mixed_inner_burn():
    books.burn(1)


@_of("blocked")
def mixed_block():
    _block(0.002)


@view("/mixed")
def mixed():
    mixed_burn()
    mixed_wait()
    with own_span("mixed-inner"):
        mixed_inner_wait()
        mixed_inner_burn()
    mixed_block()
    return "mixed"


@_of("wait")
def early_wait():
    gevent.sleep(0.01)


@_of("cpu")
def early_burn():
    books.burn(2)


def spawned_early():
    """Has no context of its own."""
    early_wait()
    early_burn()


@_of("wait")
def late_wait():
    gevent.sleep(0.02)


@_of("wait")
def late_own_wait():
    gevent.sleep(0.01)


@_of("cpu")
def late_own_burn():
    books.burn(1)


def spawned_late():
    """Made inside an inner span; ends with a span of its own."""
    late_wait()
    with own_span("spawned-late"):
        late_own_wait()
        late_own_burn()


@_of("wait")
def spawn_join(children):
    gevent.joinall(children)


@view("/spawn")
def spawning():
    children = [spawn(spawned_early)]
    with own_span("spawn-inner"):
        children.append(spawn(spawned_late))
    spawn_join(children)
    return "spawn"


@_of("wait")
def orphan_wait():
    gevent.sleep(0.005)


@_of("wait")
def outlive_wait(finished):
    finished.wait()
    gevent.sleep(0.1)


@_of("cpu")
def outlive_burn():
    books.burn(1)


def outlives(finished):
    outlive_wait(finished)
    outlive_burn()


@view("/orphan")
def orphan():
    finished = Event()
    spawn(outlives, finished)
    orphan_wait()
    finished.set()
    return "orphan"


@_of("wait")
def timeout_wait():
    gevent.sleep(5)


@_of("wait")
def timeout_after_wait():
    gevent.sleep(0.005)


@view("/timeout")
def timeout():
    with gevent.Timeout(0.02, False):
        timeout_wait()
    timeout_after_wait()
    return "cut", 504


@_of("wait")
def fail_wait():
    gevent.sleep(0.005)


@view("/fail")
def fail():
    fail_wait()
    raise RuntimeError("as it should")


@_of("wait")
def killed_wait():
    gevent.sleep(5)


@view("/killed")
def killed():
    doomed.put(getcurrent())
    killed_wait()
    return "not killed"


def reaper():
    """Kills what asks for it, each in the middle of its wait."""
    while True:
        victim = doomed.get()
        gevent.sleep(0.005)
        victim.kill(block=False)


@_of("wait")
def ignored_wait():
    gevent.sleep(0.01)


@view(tracers.IGNORED)
def ignored():
    with own_span("ignored-inner"):
        ignored_wait()
    return "ignored"


class Handler(WSGIHandler):
    """Books when a request's greenlet began to read for it, had read its head, and had answered."""

    def read_requestline(self):
        self.waited_ns = _now_ns()
        return super().read_requestline()

    def read_request(self, raw_requestline):
        done = super().read_request(raw_requestline)
        self.arrived_ns = _now_ns()
        return done

    def handle_one_response(self):
        here = getcurrent()
        here.work = None
        try:
            super().handle_one_response()
        finally:
            if here.work is not None:
                here.work.waited_ns = self.waited_ns
                here.work.arrived_ns = self.arrived_ns
                here.work.answered_ns = _now_ns()
                here.work = None


def application():
    from flask import Flask

    app = Flask(__name__)
    app.logger.setLevel(logging.CRITICAL + 1)  # what fails should
    for path, handled in views.items():
        app.add_url_rule(path, handled.__name__, handled)
    tracer.instrument(app)
    return app


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", choices=("agent", "otel", "wire"), required=True)
    parser.add_argument("--books", required=True)
    parser.add_argument("--switches")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--port-file")
    parser.add_argument("--seconds", type=float)
    return parser.parse_args()


def main():
    global tracer
    asked = arguments()
    tracer = tracers.named(asked.labels)
    tracer.start()
    requests.labels = asked.labels
    server = WSGIServer(("127.0.0.1", asked.port), application(), log=None, error_log=None,
                        handler_class=Handler, backlog=1024)
    server.start()
    gevent.spawn(reaper)
    stopped = Event()
    gevent.signal_handler(signal.SIGTERM, stopped.set)
    switches = None
    if asked.switches:
        switches = traced_books.Switches(tracer, SWITCHES)
        switches.watch()
    if asked.port_file:
        with open(asked.port_file + ".part", "w") as file:
            file.write(f"{server.server_port}\n")
        os.replace(asked.port_file + ".part", asked.port_file)
    books.say("ready", pid=os.getpid(), port=server.server_port, labels=asked.labels,
              version=tracer.version, **tracer.facts)
    stopped.wait(asked.seconds)
    if switches:
        switches.stop()
        switches.write(asked.switches)
    requests.write(asked.books)
    books.say("done", books={
        "works": len(requests.works),
        "switches": switches.count if switches else None,
        "switches_lost": switches.lost if switches else None,
    })
    # The agent would wait for ever for its queue to become empty.
    os._exit(0)


if __name__ == "__main__":
    main()
