"""Requests over sockets, served in every way but a tracer's: `wired.py MODE`.

Ready, go; clients in the same process ask; done, with how many requests of each endpoint there
were, and how long each took at least from its head to its answer's end. What a function
`handle_NAME` does is done for `GET /NAME` alone, and `between` for nobody.
"""

from gevent import monkey

monkey.patch_all()

import contextlib  # noqa: E402
import itertools  # noqa: E402
import select  # noqa: E402
import socket  # noqa: E402
import struct  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import types  # noqa: E402

import gevent  # noqa: E402
from gevent.server import StreamServer  # noqa: E402

import books  # noqa: E402

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
NAMES = {"alpha": 0.012, "beta": 0.004, "gamma": 0.008}
requests = {}


def sleeps(name):
    def handle(seconds):
        gevent.sleep(seconds)

    code = handle.__code__.replace(co_name=f"handle_{name}", co_qualname=f"handle_{name}")
    return types.FunctionType(code, globals(), f"handle_{name}")


HANDLERS = {name: sleeps(name) for name in NAMES}


def work(head):
    """What a request is answered with, after its work."""
    name = head.split()[1].split(b"?")[0].rpartition(b"/")[2].decode()
    HANDLERS[name](NAMES[name])


def between(seconds=0.003):
    gevent.sleep(seconds)


def head(name, method="GET", lines="", target=None):
    key = f"{method} /{name}"
    requests[key] = requests.get(key, 0) + 1
    return f"{method} {target or '/' + name} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode()


def whole_head(sock, data=b""):
    """Up to the empty line that ends it; nothing at the end."""
    while b"\r\n\r\n" not in data.lstrip(b"\r\n"):
        more = sock.recv(65536)
        if not more:
            return b""
        data += more
    return data


def whole_answer(sock, size=2):
    data = b""
    while not data.endswith(b"ok"):
        more = sock.recv(4096)
        if not more:
            break
        data += more
    assert data.endswith(b"ok"), data


def ask(port, first, count, pause=0.002):
    names = list(NAMES) * 2
    with socket.create_connection(("127.0.0.1", port)) as sock:
        for number in range(first, first + count):
            sock.sendall(head(names[number % len(names)]))
            whole_answer(sock)
            gevent.sleep(pause)


def clients(port, count, each=30):
    return [gevent.spawn(ask, port, first, each) for first in range(count)]


def respond(sock, data):
    work(data)
    sock.sendall(ANSWER)


def own():
    """A greenlet for each connection; it polls before it reads."""

    def serve(sock, _address):
        while True:
            between()
            select.select([sock], [], [])
            if not (data := whole_head(sock)):
                return
            respond(sock, data)

    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    return lambda: clients(server.server_port, 3)


def older():
    """Connections from before the recording; each answer goes in two pieces."""

    def serve(sock, _address):
        while data := whole_head(sock):
            work(data)
            sock.sendall(ANSWER[:-2])
            sock.sendall(ANSWER[-2:])
            between()

    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    socks = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(3)]

    def ask_older(sock, count=120):
        for name in (list(NAMES) * count)[:count]:
            sock.sendall(head(name))
            whole_answer(sock)

    for sock in socks:
        ask_older(sock, 1)
    requests.clear()

    def run(sock):
        # Where this one began nobody could know.
        sock.sendall(head("alpha"))
        whole_answer(sock)
        requests["GET /alpha"] -= 1
        ask_older(sock)

    return lambda: [gevent.spawn(run, sock) for sock in socks]


def readers(around=lambda _head: contextlib.nullcontext()):
    """One that reads, and for each request another one that answers and goes on after it."""

    def answer(sock, data):
        with around(data):
            respond(sock, data)
        between()

    def serve(sock, _address):
        while data := whole_head(sock):
            gevent.spawn(answer, sock, data)

    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    return lambda: clients(server.server_port, 3)


def sampled():
    """The same beside a tracer, which makes a span of each third request."""
    from opentelemetry.sdk.trace import TracerProvider

    tracer = TracerProvider().get_tracer("sampled")
    count = itertools.count()

    def around(data):
        if next(count) % 3:
            return contextlib.nullcontext()
        return tracer.start_as_current_span(data.split()[1].decode())

    return readers(around)


def dispatcher():
    """One greenlet accepts, reads and answers for all."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        waiting = []
        while True:
            ready, _, _ = select.select([listener, *waiting], [], [])
            heads = []
            for sock in ready:
                if sock is listener:
                    waiting.append(listener.accept()[0])
                elif data := sock.recv(4096):
                    heads.append((sock, data))
                else:
                    waiting.remove(sock)
                    sock.close()
            between()
            for sock, data in heads:
                respond(sock, data)

    gevent.spawn(serve)
    return lambda: clients(listener.getsockname()[1], 3)


def loop():
    """An event loop in a thread's main greenlet, whose handlers run in greenlets of their own."""
    import asyncio
    import threading

    from greenlet import greenlet

    port = []

    async def serve(reader, writer):
        while data := await reader.read(4096):
            name = data.split()[1][1:].decode()
            bridge = greenlet(lambda: greenlet.getcurrent().parent.switch(NAMES[name]))
            await asyncio.sleep(bridge.switch())
            bridge.switch()
            writer.write(ANSWER)
            await writer.drain()
        writer.close()

    async def run(listening):
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port.append(server.sockets[0].getsockname()[1])
        listening.set()
        await server.serve_forever()

    # Imports what gevent needs for a hub. Two threads that do so at once, each with locks that
    # need a hub to wait, call each other for ever.
    gevent.get_hub()
    listening = monkey.get_original("threading", "Event")()
    thread = lambda: asyncio.run(run(listening))  # noqa: E731
    monkey.get_original("_thread", "start_new_thread")(thread, ())
    while not port:
        gevent.sleep(0.01)
    return lambda: clients(port[0], 3)


def forms():
    """Heads and answers in every form, one after the other."""
    answers = {
        "/chunked": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\no\r\n", b"1;x\r\nk\r\n0\r\n\r\n"],
    }

    def serve(sock, _address):
        skipped = b""
        while data := whole_head(sock, skipped):
            skipped = b""
            if data.startswith(b"PROXY"):
                data = whole_head(sock, data.partition(b"\r\n")[2])
            elif data.startswith(b"\r\n\r\n\0"):
                rest = data[16 + 12:]
                data = whole_head(sock, rest)
            data = data.lstrip(b"\r\n")
            if b"Expect" in data:
                sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            work(data)
            length = data.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
            body = data.partition(b"\r\n\r\n")[2]
            while length and len(body) < int(length):
                body += sock.recv(4096)
            if data.startswith(b"HEAD"):
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
            elif b"x-chunked" in data:
                for part in answers["/chunked"]:
                    sock.sendall(part)
            elif b"x-none" in data:
                sock.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            else:
                sock.sendall(ANSWER)
            between()

    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    path = tempfile.mkdtemp() + "/socket"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    unix = StreamServer(listener, serve)
    unix.start()

    def sends(sock, pieces, until=b"ok"):
        for piece in pieces:
            sock.sendall(piece)
            gevent.sleep(0.001)
        data = b""
        while not data.endswith(until):
            more = sock.recv(4096)
            assert more, data
            data += more

    def run():
        family = {"address": ("127.0.0.1", server.server_port)}, {"address": path}
        for where in family:
            kind = socket.AF_INET if where["address"] is not path else socket.AF_UNIX
            for before in (b"", b"\r\n", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", b"PROXY UNKNOWN\r\n",
                           b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack(">H", 12) + b"x" * 12):
                with socket.socket(kind) as sock:
                    sock.connect(where["address"])
                    if kind == socket.AF_INET:
                        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    sends(sock, [before + head("alpha")])
                    sends(sock, [head("beta", method="PROPFIND")])
                    sends(sock, [head("gamma", lines="x-chunked: 1\r\n")], until=b"0\r\n\r\n")
                    sends(sock, [head("gamma", lines="x-none: 1\r\n")], until=b"\r\n\r\n")
                    sends(sock, [head("alpha", method="HEAD")], until=b"\r\n\r\n")
                    sends(sock, [head("beta", lines="Cookie: " + "c" * 10_000 + "\r\n")])
                    sends(sock, [head("alpha", target="http://user:pass@x/alpha?secret")])
                    body = head("gamma")
                    requests["GET /gamma"] -= 1
                    posted = head("beta", method="POST", lines=f"Content-Length: {len(body)}\r\n")
                    sends(sock, [posted, body])
                    asked = head("beta", method="POST", lines=f"Expect: 100-continue\r\nContent-Length: {len(body)}\r\n")
                    sends(sock, [asked], until=b"100 Continue\r\n\r\n")
                    sends(sock, [body])
                    for size in (1, 7, 20):
                        text = before * (size == 1 and before == b"\r\n") + head("alpha", lines="Cookie: c\r\n")
                        sends(sock, [text[at:at + size] for at in range(0, len(text), size)])

    return lambda: [gevent.spawn(run)]


def nothing():
    """What begins like a request and is none."""
    line = b"GET /phantom HTTP/1.1 200 5120 0.004\n"

    def collect(sock, _address):
        while sock.recv(4096):
            between()

    def upload(sock, _address):
        data = sock.recv(4096)
        while data:
            sock.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")
            HANDLERS["alpha"](0.004)
            data = sock.recv(4096)

    def datagrams(sock):
        while True:
            sock.recvfrom(4096)
            between()

    logs, uploads = StreamServer(("127.0.0.1", 0), collect), StreamServer(("127.0.0.1", 0), upload)
    for server in (logs, uploads):
        server.start()
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind(("127.0.0.1", 0))
    gevent.spawn(datagrams, listener)
    whole = b"GET /phantom HTTP/1.1\r\nHost: x\r\n\r\n"

    def run():
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", logs.server_port)) as sock:
                for data in (line, line + b"\n", b"GET /phantom HTTP/1.1\r\nno header\r\n\r\n",
                             b"GET /phantom HTTP/1.1\r\n\r\n"):
                    sock.sendall(data)
                    gevent.sleep(0.005)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                for _ in range(5):
                    sock.sendto(whole, listener.getsockname())
                    gevent.sleep(0.005)
            with socket.create_connection(("127.0.0.1", uploads.server_port)) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.sendall(head("alpha", method="POST", lines="Transfer-Encoding: chunked\r\n"))
                for _ in range(3):
                    sock.recv(4096)
                    sock.sendall(b"%x\r\n" % len(whole))
                    sock.recv(4096)
                    sock.sendall(whole)
                    sock.recv(4096)
                    sock.sendall(b"\r\n")
                sock.recv(4096)

    return lambda: [gevent.spawn(run)]


def main():
    modes = (own, older, readers, sampled, dispatcher, loop, forms, nothing)
    begin = {mode.__name__: mode for mode in modes}[sys.argv[1]]()
    books.ready()
    gevent.joinall(begin(), raise_error=True)
    gevent.sleep(0.05)
    books.done(requests=requests)


if __name__ == "__main__":
    main()
