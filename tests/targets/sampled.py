"""A service whose tracer makes a span of some requests, or of none.

    sampled.py --labels otel|agent|plugless

OpenTelemetry samples one trace in ten, SkyWalking's agent two in three seconds; `plugless` is the
agent as it is where it installs none of its plugins. Half of the requests come over connections
that stay open. `/again` and `/once` wait, compute and make a greenlet, each in functions of
their own; between requests a greenlet works for nobody.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import os  # noqa: E402

import gevent  # noqa: E402
from gevent.event import Event  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402

import books  # noqa: E402
import tracers  # noqa: E402


times = books.Times()
answered = {"/again": 0, "/once": 0}
stopping = Event()


@times.of
def again_wait():
    gevent.sleep(0.004)


@times.of
def again_burn():
    books.burn(2)


@times.of
def again_child_wait():
    gevent.sleep(0.003)


def again():
    child = gevent.spawn(again_child_wait)
    for _ in range(3):
        again_burn()
        again_wait()
    child.join()
    answered["/again"] += 1
    return "again"


@times.of
def once_wait():
    gevent.sleep(0.006)


@times.of
def once_burn():
    books.burn(1)


def once():
    once_wait()
    once_burn()
    once_wait()
    answered["/once"] += 1
    return "once"


@times.of
def nobodys_wait():
    gevent.sleep(0.002)


@times.of
def nobodys_burn():
    books.burn(1)


def nobodys():
    while not stopping.is_set():
        nobodys_wait()
        nobodys_burn()


def finish():
    stopping.set()
    return "finished"


def application(labels):
    if labels == "otel":
        tracer = tracers.OpenTelemetry()
        tracer.ratio = 0.1
    else:
        tracer = tracers.Agent()
        tracer.by_hand = labels != "plugless"
        os.environ["SW_SAMPLE_N_PER_3_SECS"] = "2"
        os.environ["SW_AGENT_SAMPLE_N_PER_3_SECS"] = "2"
    tracer.start()
    from flask import Flask

    app = Flask(__name__)
    app.add_url_rule("/again", "again", again)
    app.add_url_rule("/once", "once", once)
    app.add_url_rule(tracers.IGNORED, "finish", finish)
    tracer.instrument(app)
    return app


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", choices=("otel", "agent", "plugless"), required=True)
    return parser.parse_args()


def main():
    server = WSGIServer(("127.0.0.1", 0), application(arguments().labels), log=None, error_log=None)
    server.start()
    beside = gevent.spawn(nobodys)
    books.ready(port=server.server_port)
    stopping.wait()
    beside.join()
    books.done(answered=answered, times=times.book())


if __name__ == "__main__":
    main()
    os._exit(0)
