"""Waits whose end was due at a known moment, under a hub that is busy or not: `queued.py busy|calm`.

Each wait is booked with how long its greenlet had been ready: since the sender's time stamp, since
the timer's due time, since another greenlet set what it waited for.
"""

import socket
import subprocess
import sys
import time

import gevent
from gevent.event import AsyncResult, Event
from gevent.queue import Queue
from gevent.socket import socket as GreenSocket

import books

SECONDS = 2.0
NAP = 0.005
# Sends the time it is, again and again, until the other end is closed.
SENDER = """
import socket, sys, time
end = socket.socket(fileno=int(sys.argv[1]))
try:
    while True:
        end.send(time.monotonic_ns().to_bytes(8, "big"))
        time.sleep(0.007)
except OSError:
    pass
"""

now = time.monotonic_ns
waits = {}


def waited(name, begin, ready):
    """A wait is over that began then, and could have been since `ready`."""
    end = now()
    if ready < begin:
        return  # it did not wait
    entry = waits.setdefault(name, {"ns": 0, "count": 0, "queued_ns": 0})
    entry["ns"] += end - begin
    entry["count"] += 1
    entry["queued_ns"] += end - ready


def over():
    return now() > finish


def burn(milliseconds):
    end = now() + milliseconds * 1_000_000
    while now() < end:
        pass


def receive(end):
    begin = now()
    stamp = end.recv(8)
    waited("receive", begin, int.from_bytes(stamp, "big"))


def nap():
    begin = now()
    gevent.sleep(NAP)
    waited("nap", begin, begin + int(NAP * 1e9))


def result(value):
    begin = now()
    waited("result", begin, value.get())


def event(flag):
    begin = now()
    flag.wait()
    waited("event", begin, flag.set_ns)


def take(queue):
    begin = now()
    waited("take", begin, queue.get())


def receiver(end):
    while not over():
        receive(end)


def napper():
    while not over():
        nap()


def pair(wait, make, give):
    """One greenlet waits for what another gives it."""
    while not over():
        thing = make()
        other = gevent.spawn(wait, thing)
        gevent.sleep(0.004)
        give(thing)
        burn(1)
        other.join()


def give_event(flag):
    flag.set_ns = now()
    flag.set()


class Flag(Event):
    """Says when it was set."""


def burner():
    while not over():
        burn(3)
        gevent.sleep(0.0005)


def main(kind):
    global finish
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gevent.sleep(0)
    books.ready()
    finish = now() + int(SECONDS * 1e9)
    sender = subprocess.Popen([sys.executable, "-c", SENDER, str(far.fileno())], pass_fds=[far.fileno()])
    far.close()
    green = GreenSocket(fileno=near.detach())
    ones = [
        gevent.spawn(receiver, green),
        gevent.spawn(napper),
        gevent.spawn(pair, result, AsyncResult, lambda value: value.set(now())),
        gevent.spawn(pair, event, Flag, give_event),
        gevent.spawn(pair, take, Queue, lambda queue: queue.put(now())),
    ]
    if kind == "busy":
        ones += [gevent.spawn(burner) for _ in range(4)]
    gevent.joinall(ones, raise_error=True)
    green.close()
    sender.wait()
    books.done(waits=waits)


if __name__ == "__main__":
    main(sys.argv[1])
