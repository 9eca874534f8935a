"""Rules that are compiled for each job, run once and freed: `rules.py KIND`.

Forty rules in four forms: a function, a class with a method that waits in a generator, a
template's module, and an expression. Twelve workers take them in turn, for `SECONDS`. Each rule
naps for as long as nobody else does. The kinds: `jobs`; `wire`, where each job is a request to a
server in the same process; `spans`, where it is a span of OpenTelemetry. The books have what each
rule waited, and how many waits there were.
"""

import itertools
import sys
import time

from gevent import monkey

monkey.patch_all()
import gevent  # noqa: E402
import gevent.server  # noqa: E402
import gevent.socket  # noqa: E402

import books  # noqa: E402

RULES = 40
WORKERS = 12
SECONDS = 4.0

FUNCTION = "def {name}(nap):\n    nap()\n"
CLASS = "class Of:\n    def {name}(self, nap):\n        yield nap()\ndef run(nap):\n    list(Of().{name}(nap))\n"
TEMPLATE = "{lines}def {name}(nap):\n    out = ['<p>']\n    nap()\n    out.append('</p>')\n    return out\n"
EXPRESSION = "(lambda nap: nap())(nap)"

times = {}


def job(number):
    """Run a rule, and keep books of its nap."""
    name = f"rule_{number:02d}"
    seconds = 0.001 + number * 0.0003

    def nap():
        begin = time.monotonic_ns()
        gevent.sleep(seconds)
        entry = times.setdefault(name, {"ns": 0, "calls": 0})
        entry["ns"] += time.monotonic_ns() - begin
        entry["calls"] += 1

    form = number % 4
    space = {"nap": nap}
    if form == 0:
        exec(compile(FUNCTION.format(name=name), f"<{name}>", "exec"), space)
        space[name](nap)
    elif form == 1:
        exec(compile(CLASS.format(name=name), f"<{name}>", "exec"), space)
        space["run"](nap)
    elif form == 2:
        lines = "\n" * number
        exec(compile(TEMPLATE.format(name=name, lines=lines), f"<{name}>", "exec"), space)
        space[name](nap)
    else:
        # All that it shows is its file.
        eval(compile(EXPRESSION, f"<{name}>", "eval"), space)


def by_jobs(number):
    job(number)


def by_spans():
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    trace.set_tracer_provider(TracerProvider())
    tracer = trace.get_tracer("rules")

    # Before its first instance a class has no place for its attributes.
    with tracer.start_as_current_span("first", kind=trace.SpanKind.SERVER):
        pass

    def run(number):
        name = f"rule_{number:02d}"
        with tracer.start_as_current_span(name, kind=trace.SpanKind.SERVER):
            job(number)

    return run


def serve(connection, _address):
    while head := connection.recv(4096):
        number = int(head.split(b" ", 2)[1].rsplit(b"_", 1)[1])
        job(number)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def by_wire():
    server = gevent.server.StreamServer(("127.0.0.1", 0), serve)
    server.start()
    # Now, for it takes threads to look for the address, which have greenlets of their own.
    free = [gevent.socket.create_connection(server.address) for _ in range(WORKERS)]
    gevent.get_hub().threadpool.kill()
    taken = {}

    def run(number):
        me = gevent.getcurrent()
        if me not in taken:
            taken[me] = free.pop()
        connection = taken[me]
        connection.sendall(f"GET /rule_{number:02d} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
        connection.recv(4096)

    return run


def work(first, run, until):
    for number in itertools.count(first, 7):
        if time.monotonic() > until:
            return
        run(number % RULES)


def main(kind):
    run = {"jobs": lambda: by_jobs, "wire": by_wire, "spans": by_spans}[kind]()
    book = books.Book(stacks=False)
    book.watch()
    books.ready()
    book.begin()
    until = time.monotonic() + SECONDS
    gevent.joinall([gevent.spawn(work, first, run, until) for first in range(WORKERS)], raise_error=True)
    books.done(book=book.end(), times=times)


if __name__ == "__main__":
    main(sys.argv[1])
