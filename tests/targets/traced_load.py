"""Load for traced.py: many clients on kept-alive connections, with or without trace headers.

    traced_load.py --port N [--concurrency 200] (--requests N | --seconds S)
                   [--headers none|sw8|traceparent|both-kinds] [--without SHARE]
                   [--before BYTES] [--pieces SHARE] [--only /slow,/busy] [--seed K]
                   [--sent FILE]

Prints one line, `done`, with the counts by endpoint and status, and fails if an answer
was not what it should be. What a client sends depends on the seed and its number only.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import base64  # noqa: E402
import json  # noqa: E402
import random  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402

import books  # noqa: E402

MIX = {
    # What is asked for how often, and the status that it should have.
    "/slow": (30, 200),
    "/chatty": (15, 200),
    "/busy": (15, 200),
    "/mixed": (12, 200),
    "/spawn": (8, 200),
    "/orphan": (5, 200),
    "/timeout": (5, 504),
    "/fail": (4, 500),
    "/killed": (3, 500),
    "/static-ignored": (3, 200),
}
NAMES = {"sw8": ("sw8", "SW8", "Sw8"),
         "traceparent": ("traceparent", "Traceparent", "TRACEPARENT")}

_now_ns = time.monotonic_ns


def encoded(text):
    return base64.b64encode(text.encode()).decode()


def sw8(chance, number):
    """A header as SkyWalking's agents send it, and the ids in it."""
    trace_id = f"{chance.getrandbits(128):032x}"
    if chance.random() < 0.5:  # as the agents for Java and Go make them
        trace_id += f".{chance.randrange(1000)}.{chance.randrange(10**17)}"
    segment_id = f"{chance.getrandbits(128):032x}"
    span_id = chance.randrange(4)
    value = "-".join(["1", encoded(trace_id), encoded(segment_id), str(span_id),
                      encoded("gateway"), encoded("gateway-1"),
                      encoded(f"/ask/{number}"), encoded("127.0.0.1:5000")])
    return value, {"trace_id": trace_id, "segment_id": segment_id, "span_id": span_id}


def traceparent(chance, _number):
    """A header of W3C's trace context, and the ids in it."""
    trace_id = f"{chance.getrandbits(128) | 1:032x}"
    span_id = f"{chance.getrandbits(64) | 1:016x}"
    flags = chance.choice(("00", "01", "01"))
    return (f"00-{trace_id}-{span_id}-{flags}",
            {"trace_id": trace_id, "segment_id": None, "span_id": span_id})


class Client:
    """One connection after the other, one request at a time."""

    def __init__(self, number, asked):
        self.number = number
        self.asked = asked
        self.chance = random.Random(f"{asked.seed}/{number}")
        self.socket = None
        self.rest = b""

    def ask(self, serial, path):
        """One request; returns its line for the file of what was sent."""
        chance, asked = self.chance, self.asked
        name = f"{self.number}-{serial}"
        lines = [f"GET {path}?n={name}&secret=never-to-be-read HTTP/1.1",
                 "Host: localhost", "Accept: */*"]
        if asked.before:
            # What other headers may stand before the one that counts.
            lines.append("Cookie: " + "c" * asked.before)
        kinds = {"none": [], "both-kinds": ["sw8", "traceparent"]}.get(
            asked.headers, [asked.headers])
        kind, ids = None, dict.fromkeys(("trace_id", "segment_id", "span_id"))
        if kinds and chance.random() >= asked.without:
            kind = chance.choice(kinds)
            value, ids = {"sw8": sw8, "traceparent": traceparent}[kind](chance, name)
            lines.insert(chance.randrange(1, len(lines) + 1),
                         f"{chance.choice(NAMES[kind])}: {value}")
        if path == "/killed":
            lines.append("Connection: close")
        message = ("\r\n".join(lines) + "\r\n\r\n").encode()
        if self.socket is None:
            self.socket = socket.create_connection(("127.0.0.1", asked.port))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.rest = b""
        began_ns = _now_ns()
        if chance.random() < asked.pieces:
            cut = chance.randrange(1, len(message))
            self.socket.sendall(message[:cut])
            gevent.sleep(0.002)
            message = message[cut:]
        self.socket.sendall(message)
        status, closes = self.answer()
        if closes:
            self.socket.close()
            self.socket = None
        return {"n": name, "endpoint": path, "header": kind, **ids, "status": status,
                "begin_ns": began_ns, "end_ns": _now_ns()}

    def answer(self):
        """The status of the answer, and whether the connection is over."""
        while b"\r\n\r\n" not in self.rest:
            if not self.more():
                return 0, True
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip()
                  for name, _, value in (line.partition(":") for line in rest)}
        length = int(fields.get("content-length", 0))
        while len(self.rest) < length:
            if not self.more():
                return 0, True
        self.rest = self.rest[length:]
        return int(first.split()[1]), fields.get("connection", "").lower() == "close"

    def more(self):
        received = self.socket.recv(65536)
        self.rest += received
        return bool(received)

    def work(self, go_on, lines):
        """Ask until it is enough."""
        only = self.asked.only.split(",") if self.asked.only else MIX
        paths = [path for path in MIX if path in only]
        weights = [MIX[path][0] for path in paths]
        serial = 0
        while go_on():
            path = self.chance.choices(paths, weights)[0]
            lines.append(self.ask(serial, path))
            serial += 1
        if self.socket is not None:
            self.socket.close()


def limit(asked):
    """A function that says whether another request may be sent."""
    if asked.requests is not None:
        left = iter(range(asked.requests))
        return lambda: next(left, None) is not None
    end_ns = _now_ns() + int(asked.seconds * 1e9)
    return lambda: _now_ns() < end_ns


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--concurrency", type=int, default=200)
    much = parser.add_mutually_exclusive_group(required=True)
    much.add_argument("--requests", type=int)
    much.add_argument("--seconds", type=float)
    parser.add_argument("--headers", default="none",
                        choices=("none", "sw8", "traceparent", "both-kinds"))
    parser.add_argument("--without", type=float, default=0.1)
    parser.add_argument("--before", type=int, default=0)
    parser.add_argument("--pieces", type=float, default=0.0)
    parser.add_argument("--only")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sent")
    return parser.parse_args()


def main():
    asked = arguments()
    lines = []
    go_on = limit(asked)
    began_ns = _now_ns()
    clients = [gevent.spawn(Client(number, asked).work, go_on, lines)
               for number in range(asked.concurrency)]
    gevent.joinall(clients, raise_error=True)
    seconds = (_now_ns() - began_ns) / 1e9
    if asked.sent:
        with open(asked.sent, "w") as file:
            for line in lines:
                file.write(json.dumps(line) + "\n")
    counts = {path: {} for path in MIX}
    for line in lines:
        by_status = counts[line["endpoint"]]
        by_status[line["status"]] = by_status.get(line["status"], 0) + 1
    wrong = sum(line["status"] != MIX[line["endpoint"]][1] for line in lines)
    books.say("done", books={"requests": len(lines), "seconds": round(seconds, 3),
                             "wrong": wrong, "counts": counts})
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
