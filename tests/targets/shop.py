"""A service under SkyWalking's agent that reports to a real OAP and keeps books.

    shop.py gevent|threads|gunicorn COLLECTOR SERVICE INSTANCE

`/slow` burns, waits and blocks in functions of its own, one after the other, and lets a child
wait meanwhile, whose function belongs to no tree of a trace. `/other` waits in functions that
belong to another's. When it is told to end it writes, for each call of a booked function: the
segment, the function, begin and end (ns since 1970), the CPU time of the thread in between, the
trace and the pid; the library's own clocks, nothing of greenscope's.

Under gunicorn (two workers of gevent) each worker starts an agent of its own, when its library
is patched, and is an instance of its own.
"""

import json
import os
import sys

mode, collector, service, instance = sys.argv[1:5]
if mode == "gevent":
    from gevent import monkey

    monkey.patch_all()

import shop_service

GO = 0


def wait_for_go():
    """Until a byte comes; in gevent without stopping the hub."""
    if mode == "gevent":
        import gevent

        gevent.get_hub().threadpool.apply(os.read, (GO, 1))
    else:
        os.read(GO, 1)


def say(event, **facts):
    """A line for the test."""
    print(json.dumps({"event": event, **facts}), flush=True)


def listen(app):
    """The service, on a free port; returns that."""
    if mode == "gevent":
        from gevent.pywsgi import WSGIServer as GeventServer

        server = GeventServer(("127.0.0.1", 0), app, log=None)
        server.start()
        return server.server_port

    import threading
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

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


def under_gunicorn():
    """The same by gunicorn, whose master this is."""
    import pathlib
    import signal
    import socket
    import tempfile
    import threading

    from gunicorn.app.base import BaseApplication

    place = tempfile.TemporaryDirectory()
    folder = pathlib.Path(place.name)
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    os.set_inheritable(held.fileno(), True)
    held.listen(256)

    def write(_server, worker):
        (folder / str(worker.pid)).write_text(json.dumps(shop_service.books))

    class Application(BaseApplication):
        """Two workers."""

        def load_config(self):
            """What gunicorn is told."""
            for name, value in {
                "bind": f"fd://{held.fileno()}",
                "workers": 2,
                "worker_class": "gevent",
                "loglevel": "critical",
                "worker_exit": write,
            }.items():
                self.cfg.set(name, value)

        def load(self):
            """In a worker, patched by now."""
            return shop_service.start(collector, service, f"{instance}-{os.getpid()}")

    def end():
        wait_for_go()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end, daemon=True).start()
    say("ready", port=held.getsockname()[1])
    master = os.getpid()
    try:
        Application().run()
    except SystemExit:
        # A worker ends in here too.
        if os.getpid() != master:
            os._exit(0)
    with place:
        return [call for file in folder.iterdir() for call in json.loads(file.read_text())]


if mode == "gunicorn":
    books = under_gunicorn()
else:
    say("ready", port=listen(shop_service.start(collector, service, instance)))
    wait_for_go()
    books = shop_service.books
say("done", books=books)
wait_for_go()
os._exit(0)
