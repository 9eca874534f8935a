"""A service that makes a span when a request is answered, in the same run of its greenlet.

The request itself has none. `close` is called after the last byte was sent; what it does is a
trace of its own.
"""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402

import gevent  # noqa: E402
from gevent.event import Event  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402

import books  # noqa: E402


tracer = TracerProvider().get_tracer("after")
stopping = Event()


def request_wait():
    gevent.sleep(0.004)


def after_wait():
    gevent.sleep(0.003)


class Answer:
    def __init__(self):
        self.rest = [b"answered"]

    def __iter__(self):
        return self

    def __next__(self):
        if not self.rest:
            raise StopIteration
        return self.rest.pop()

    def close(self):
        with tracer.start_as_current_span("after"):
            # In it, and before the greenlet leaves: a look of greenscope's.
            books.burn(3)
            after_wait()


def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "8")])
    if environ["PATH_INFO"] == "/finish":
        stopping.set()
        return [b"finished"]
    request_wait()
    return Answer()


def main():
    server = WSGIServer(("127.0.0.1", 0), application, log=None, error_log=None)
    server.start()
    books.ready(port=server.server_port)
    stopping.wait()
    books.done()


if __name__ == "__main__":
    main()
    os._exit(0)
