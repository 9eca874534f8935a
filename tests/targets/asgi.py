"""Requests to uvicorn: `asgi.py LOOP`, where LOOP is `asyncio` or `uvloop`.

Its handlers wait in greenlets of their own, as under SQLAlchemy's asyncio engine. Threads of the
same process ask; the books are wired.py's.
"""

import asyncio
import http.client
import sys
import threading

import uvicorn
from greenlet import getcurrent, greenlet

import books

ROUNDS = 10
CLIENTS = 3


def sleep(seconds):
    getcurrent().parent.switch(asyncio.sleep(seconds))


def handle_alpha():
    sleep(0.012)


def handle_beta():
    sleep(0.004)


def handle_gamma():
    sleep(0.008)


HANDLERS = {f"/{handle.__name__[7:]}": handle for handle in (handle_alpha, handle_beta, handle_gamma)}


async def bridge(function):
    child = greenlet(function)
    result = child.switch()
    while not child.dead:
        result = child.switch(await result)


async def application(scope, _receive, send):
    await bridge(HANDLERS[scope["path"]])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


class Server(uvicorn.Server):
    listening = threading.Event()

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.listening.set()


def ask(port):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for path in list(HANDLERS) * ROUNDS:
        connection.request("GET", path)
        assert connection.getresponse().read() == b"ok"
    connection.close()


def work(server):
    server.listening.wait()
    port = server.servers[0].sockets[0].getsockname()[1]
    books.ready()
    clients = [threading.Thread(target=ask, args=[port]) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    books.done(requests={f"GET {path}": ROUNDS * CLIENTS for path in HANDLERS})
    server.should_exit = True


server = Server(uvicorn.Config(application, port=0, loop=sys.argv[1], lifespan="off", log_level="error"))
threading.Thread(target=work, args=[server]).start()
server.run()
