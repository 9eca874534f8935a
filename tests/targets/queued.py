"""Waits whose end was due at a known moment: `queued.py KIND`.

    calm      the hub is seldom busy
    busy      it is always
    beside    a greenlet runs an event loop of its own now and then
    callback  a driver polls its own file in a callback of the hub's
    crowd     more sockets are ready at once than libev's poll takes

Each wait is booked with how long its greenlet had been ready: since the sender's time stamp, since
the timer's due time, since another greenlet set what it waited for.
"""

import asyncio
import os
import select
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
# Sends the time it is to each of the sockets, again and again, until one of them is closed: with a
# pause after each, and one after all of them.
SENDER = """
import socket, sys, time
each, all_of_them = map(float, sys.argv[1:3])
ends = [socket.socket(fileno=int(number)) for number in sys.argv[3:]]
try:
    while True:
        for end in ends:
            end.send(time.monotonic_ns().to_bytes(8, "big"))
            if each:
                time.sleep(each)
        if all_of_them:
            time.sleep(all_of_them)
except OSError:
    pass
"""
CROWDED = 200

now = time.monotonic_ns
waits = {}
polls = 0


def polled():
    global polls
    polls += 1


def begin_wait():
    return now(), polls


def waited(name, began, ready):
    """A wait is over that began then, and could have been since `ready`."""
    end = now()
    begin, before = began
    if ready < begin and polls == before:
        return  # it did not wait
    # A sender that was held up looked at its clock long before its message came.
    ready = max(ready, begin)
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


def _receive(name, end):
    began = begin_wait()
    stamp = end.recv(8)
    waited(name, began, int.from_bytes(stamp, "big"))


def receive(end):
    _receive("receive", end)


def receive_tcp(end):
    _receive("receive_tcp", end)


def receive_udp(end):
    _receive("receive_udp", end)


def receive_crowded(end):
    _receive("receive_crowded", end)
    burn(0.2)


def hurry(end):
    """Waits for a message, and only so long: either may make it ready, and both may have come."""
    began = begin_wait()
    try:
        stamp = end.recv(8)
    except TimeoutError:
        waited("hurry", began, began[0] + int(NAP * 1e9))
    else:
        waited("hurry", began, int.from_bytes(stamp, "big"))


class Killed(Exception):
    """By another greenlet, which says when."""


def killed(end):
    began = begin_wait()
    try:
        end.recv(8)
    except Killed as kill:
        waited("killed", began, *kill.args)


def killer(near, far):
    """Something comes for who is killed already."""
    while not over():
        one = gevent.spawn(killed, near)
        gevent.sleep(0.004)
        one.kill(Killed(now()), block=False)
        burn(2)
        far.send(bytes(8))
        burn(1)
        one.join()
        near.recv(8)


def peek(end, other):
    """Waits for what it then leaves there, after a look at another socket."""
    try:
        other.recv(8)
    except BlockingIOError:
        pass
    began = begin_wait()
    stamp = end.recv(8, socket.MSG_PEEK)
    waited("peek", began, int.from_bytes(stamp, "big"))
    end.recv(8)


def stolen(end):
    began = begin_wait()
    stamp = end.recv(8)
    waited("stolen", began, int.from_bytes(stamp, "big"))


def thief(near, far):
    """Takes the first message that another waits for, which goes on with the second."""
    hand = socket.socket(fileno=os.dup(near.fileno()))
    while not over():
        one = gevent.spawn(stolen, near)
        gevent.sleep(0.004)
        far.send(now().to_bytes(8, "big"))
        burn(3)
        hand.recv(8)
        burn(1)
        far.send(now().to_bytes(8, "big"))
        burn(1)
        one.join()


def look(end):
    """Looks for a message between naps, which that does not end."""
    try:
        end.recv(8)
    except BlockingIOError:
        pass
    began = begin_wait()
    gevent.sleep(NAP)
    waited("look", began, began[0] + int(NAP * 1e9))


def nap():
    began = begin_wait()
    gevent.sleep(NAP)
    waited("nap", began, began[0] + int(NAP * 1e9))


def result(value):
    began = begin_wait()
    waited("result", began, value.get())


def event(flag):
    began = begin_wait()
    flag.wait()
    waited("event", began, flag.set_ns)


def take(queue):
    began = begin_wait()
    waited("take", began, queue.get())


def again(function, *args):
    while not over():
        function(*args)


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


def loops():
    """Waits in a loop that is none of the hub's."""
    loop = asyncio.new_event_loop()
    while not over():
        loop.run_until_complete(asyncio.sleep(0.003))
        gevent.sleep(0.002)
    loop.close()


def asks_in_callbacks():
    """A driver's call, while others become ready."""
    read, _write = os.pipe()
    driver = select.poll()
    driver.register(read, select.POLLIN)
    while not over():
        gevent.get_hub().loop.run_callback(driver.poll, 10)
        gevent.sleep(0.005)


def start_sender(pairs, each=0, all_of_them=0):
    """Over the far ends of them."""
    fds = [far.fileno() for _, far in pairs]
    arguments = map(str, [each, all_of_them, *fds])
    process = subprocess.Popen([sys.executable, "-c", SENDER, *arguments], pass_fds=fds)
    for _, far in pairs:
        far.close()
    return process


def unix_pair():
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def udp_pair():
    near, far = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for end in (near, far):
        end.bind(("127.0.0.1", 0))
    near.connect(far.getsockname())
    far.connect(near.getsockname())
    return near, far


def main(kind):
    global finish
    pairs = [unix_pair(), tcp_pair(), udp_pair(), unix_pair(), unix_pair(), unix_pair(), unix_pair()]
    watcher = gevent.get_hub().loop.prepare()
    watcher.start(polled)
    gevent.sleep(0)
    books.ready()
    finish = now() + int(SECONDS * 1e9)
    senders = [start_sender(pairs, each=0.0015)]
    looked_at, other = (near for near, _ in pairs[5:])
    looked_at.setblocking(False)
    other.setblocking(False)
    unix, tcp, udp, hurried, peeked = (GreenSocket(fileno=near.detach()) for near, _ in pairs[:5])
    hurried.settimeout(NAP)
    ones = [
        gevent.spawn(again, receive, unix),
        gevent.spawn(again, receive_tcp, tcp),
        gevent.spawn(again, receive_udp, udp),
        gevent.spawn(again, hurry, hurried),
        gevent.spawn(again, look, looked_at),
        gevent.spawn(again, nap),
        gevent.spawn(again, peek, peeked, other),
        gevent.spawn(killer, *(GreenSocket(fileno=end.detach()) for end in unix_pair())),
        gevent.spawn(thief, *(GreenSocket(fileno=end.detach()) for end in udp_pair())),
        gevent.spawn(pair, result, AsyncResult, lambda value: value.set(now())),
        gevent.spawn(pair, event, Flag, give_event),
        gevent.spawn(pair, take, Queue, lambda queue: queue.put(now())),
    ]
    if kind == "busy":
        ones += [gevent.spawn(burner) for _ in range(4)]
    elif kind == "beside":
        ones.append(gevent.spawn(loops))
    elif kind == "callback":
        ones.append(gevent.spawn(asks_in_callbacks))
    ends = [unix, tcp, udp, hurried, peeked, looked_at, other]
    if kind == "crowd":
        pairs = [unix_pair() for _ in range(CROWDED)]
        senders.append(start_sender(pairs, all_of_them=0.1))
        crowd = [GreenSocket(fileno=near.detach()) for near, _ in pairs]
        ones += [gevent.spawn(again, receive_crowded, end) for end in crowd]
        ends += crowd
    gevent.joinall(ones, raise_error=True)
    for end in ends:
        end.close()
    for sender in senders:
        sender.wait()
    books.done(waits=waits)


if __name__ == "__main__":
    main(sys.argv[1])
