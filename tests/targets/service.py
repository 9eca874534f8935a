"""A Flask service under gevent.pywsgi, which times what its handlers wait for."""

from gevent import monkey

monkey.patch_all()

import gevent  # noqa: E402
from flask import Flask, jsonify, request  # noqa: E402
from gevent.event import Event  # noqa: E402
from gevent.lock import Semaphore  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402
from gevent.queue import Queue  # noqa: E402

import books  # noqa: E402

app = Flask(__name__)
times = books.Times()
finished = Event()
jobs = Queue()
pool = Semaphore(2)


@times.of
def query(seconds):
    """Stands for a database that answers slowly."""
    gevent.sleep(seconds)


@times.of
def render(seconds):
    """Calls the database again, as templates do."""
    query(seconds)


@times.of
def with_connection(seconds):
    """Waits for one of two connections, then for the database."""
    with pool:
        query(seconds)


@times.of
def ask_worker(number):
    """Waits for another greenlet's answer."""
    answer = Queue()
    jobs.put((number, answer))
    return answer.get()


def worker():
    """Answers one job after the other."""
    while True:
        number, answer = jobs.get()
        gevent.sleep(0.01)
        answer.put(2 * number)


@app.before_request
def authenticate():
    if request.path != "/finish":
        check_token(0.01)


@times.of
def check_token(seconds):
    """Runs in Flask's own before_request stack."""
    gevent.sleep(seconds)


@app.get("/page/<int:number>")
def page(number):
    query(0.02)
    render(0.015)
    return jsonify(number=number)


@app.get("/pooled")
def pooled():
    with_connection(0.012)
    return "pooled"


@app.get("/asked/<int:number>")
def asked(number):
    return str(ask_worker(number))


@app.get("/finish")
def finish():
    finished.set()
    return "bye"


def main():
    book = books.Book()
    book.watch()
    server = WSGIServer(("127.0.0.1", 0), app, log=None, error_log=None)
    server.init_socket()
    gevent.spawn(worker)
    gevent.sleep(0)
    books.ready(port=server.server_port)
    book.begin()
    server.start()
    finished.wait()
    gevent.sleep(0.05)  # the last answer goes out
    server.stop(timeout=2)
    books.done(book=book.end(), times=times.book())


if __name__ == "__main__":
    main()
