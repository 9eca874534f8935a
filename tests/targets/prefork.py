"""gunicorn's settings for tests: `gunicorn -c prefork.py prefork:application`.

Its workers keep books of their switches from their first one to their last, in a file
each in $BOOKS. None is forked before $BOOKS/go is there, so that a recording of the
master that began before has all that they did. An answer is the pids of worker and master.
"""

import mmap
import os
import struct
import time

BOOKS = os.environ["BOOKS"]

bind = f"unix:{BOOKS}/socket"
worker_class = "gevent"
workers = 2
# So that each worker ends soon and another one follows.
max_requests = 20
if "GUNICORN_PID" in os.environ:
    # Another master's successor (USR2): no worker before the recorder has surely seen it.
    time.sleep(1)
# Its own way to talk to a running master needs a place in the home directory.
control_socket_disable = True


def pre_fork(_arbiter, _worker):
    while not os.path.exists(f"{BOOKS}/go"):
        pass


def post_fork(_arbiter, _worker):
    import greenlet

    path = f"{BOOKS}/worker-{os.getpid()}"
    with open(path, "wb") as file:
        file.write(bytes(8))
    with open(path, "r+b") as file:
        memory = mmap.mmap(file.fileno(), 8)
    count = 0

    def trace(_event, _greenlets):
        nonlocal count
        count += 1
        struct.pack_into("<Q", memory, 0, count)

    greenlet.settrace(trace)


def query():
    import gevent

    gevent.sleep(0.01)


def application(_environ, start_response):
    query()
    answer = f"{os.getpid()} {os.getppid()}".encode()
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]
