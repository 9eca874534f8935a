"""A service under SkyWalking's agent that reports to a real OAP and keeps books.

    shop.py gevent|threads COLLECTOR SERVICE INSTANCE

`/slow` burns, waits and blocks in functions of its own, one after the other, and lets a child
wait meanwhile, whose function belongs to no tree of a trace. `/other` waits in functions that
belong to another's. When it is told to end it writes, for each call of a booked function: the
segment, the function, begin and end (ns since 1970), the CPU time of the thread in between and
the trace; the library's own clocks, nothing of greenscope's.
"""

import json
import os
import sys

mode, collector, service, instance = sys.argv[1:5]
if mode == "gevent":
    from gevent import monkey

    monkey.patch_all()

import threading
import time
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from skywalking import agent, config

config.init(
    agent_collector_backend_services=collector,
    agent_protocol="grpc",
    agent_name=service,
    agent_instance_name=instance,
    agent_profile_active=False,
    agent_log_reporter_active=False,
    agent_meter_reporter_active=False,
    agent_trace_reporter_max_buffer_size=100_000,
)
agent.start()

from flask import Flask
from skywalking.trace.context import get_context

app = Flask(__name__)
books = []


def booked(function):
    """Writes each call of it down."""

    def call(*arguments):
        segment = get_context().segment
        begin, cpu = time.time_ns(), time.thread_time_ns()
        try:
            return function(*arguments)
        finally:
            cpu, end = time.thread_time_ns() - cpu, time.time_ns()
            trace = segment.related_traces[0]
            books.append((str(segment.segment_id), function.__name__, begin, end, cpu, str(trace)))

    return call


def spin(seconds):
    """Python code for so long by the thread's own clock: others may run beside."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@booked
def burn_a():
    """On the CPU."""
    spin(0.12)


@booked
def wait_a():
    """Waits, and lets others go on."""
    time.sleep(0.3)


@booked
def wait_b():
    """The same for shorter."""
    time.sleep(0.15)


def child_work():
    """Belongs to the request, and is no part of its greenlet."""
    time.sleep(0.2)


def foreign_wait():
    """Of another request."""
    time.sleep(0.5)


@app.route("/slow")
def slow():
    """What is profiled."""
    child = threading.Thread(target=child_work)
    child.start()
    burn_a()
    wait_a()
    wait_b()
    child.join()
    return "slow"


@app.route("/other")
def other():
    """What is beside it."""
    foreign_wait()
    return "other"


def listen():
    """The service, on a free port; returns that."""
    if mode == "gevent":
        from gevent.pywsgi import WSGIServer as GeventServer

        server = GeventServer(("127.0.0.1", 0), app, log=None)
        server.start()
        return server.server_port

    class Quiet(WSGIRequestHandler):
        """Says nothing."""

        def log_message(self, *_):
            """Nothing."""

    class Threads(ThreadingMixIn, WSGIServer):
        """A thread for each request."""

        daemon_threads = True
        request_queue_size = 256

    server = Threads(("127.0.0.1", 0), Quiet)
    server.set_app(app)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def wait_for_go():
    """Until a byte comes; in gevent without stopping the hub."""
    if mode == "gevent":
        import gevent

        gevent.get_hub().threadpool.apply(os.read, (0, 1))
    else:
        os.read(0, 1)


port = listen()
print(json.dumps({"event": "ready", "port": port}), flush=True)
wait_for_go()
print(json.dumps({"event": "done", "books": books}), flush=True)
wait_for_go()
os._exit(0)
