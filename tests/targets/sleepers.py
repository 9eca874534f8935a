"""Threads that sleep when the recording begins: `sleepers.py`. Some never wake."""

import os
import select
import threading
import time

import gevent

import books

_go = threading.Event()


def locked():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def polling():
    read, _write = os.pipe()
    select.select([read], [], [])


def nap():
    gevent.sleep(3600)


def spawned():
    gevent.spawn(nap).join()


def generated():
    def frames():
        yield time.sleep(3600)

    list(frames())


def until_go():
    _go.wait()


def after_go():
    threading.Event().wait()


def woken():
    until_go()
    after_go()


def main():
    for body in (locked, polling, spawned, generated, woken):
        threading.Thread(target=body, name=body.__name__, daemon=True).start()
    # Until each is where it stays.
    time.sleep(0.3)
    books.ready()
    _go.set()
    books.done()


if __name__ == "__main__":
    main()
