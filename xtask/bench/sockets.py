"""A greenlet that receives what it sent itself: `sockets.py BYTES|head`.

A unit is one send and one receipt over a pair of connected sockets, of so many bytes or
of the head of a request, as a browser sends it.
"""

import socket
import sys
import time

from greenlet import greenlet

import worker

ROUNDS = 2_000
HEAD = (
    b"GET /shop/articles/4711?session=x HTTP/1.1\r\n"
    b"Host: shop.example.org\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
    b"Accept-Language: en-US,en;q=0.5\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\n"
    b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n"
    b"Connection: keep-alive\r\n\r\n"
)


def main(what):
    worker.pin()
    payload = HEAD if what == "head" else bytes(int(what))
    here, there = socket.socketpair()

    def batch():
        # Seen by greenscope once, so that it knows which greenlet is current.
        greenlet(int).switch()
        send, receive = here.send, there.recv
        started = time.thread_time_ns()
        for _ in range(ROUNDS):
            send(payload)
            receive(4096)
        return time.thread_time_ns() - started

    batch()
    worker.ready()
    worker.serve(batch, ROUNDS)


main(sys.argv[1])
