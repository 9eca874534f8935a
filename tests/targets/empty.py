"""Greenlets that run no Python while they wait: what they run is C."""

import gevent
import gevent.event

import books

CROWD = 12
SECONDS = 0.2


def main():
    event = gevent.event.Event()
    book = books.Book()
    book.watch()
    books.ready()
    book.begin()
    crowd = [gevent.spawn(event.wait) for _ in range(CROWD)]
    gevent.sleep(SECONDS)
    event.set()
    gevent.joinall(crowd)
    books.done(book=book.end())


if __name__ == "__main__":
    main()
