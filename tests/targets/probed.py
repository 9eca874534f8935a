"""Tells where greenlet's probe sites lie, and switches before and after.

With `go` it works and says `done` once; after a second `go` it works again, to
show that it goes on when the profiler was killed.
"""

import ctypes

import greenlet

import books
import switches

SITES = {
    "g_switchstack": "_ZN8greenlet8Greenlet13g_switchstackEv",
    "user_g_switch": "_ZN8greenlet12UserGreenlet8g_switchEv",
    "main_g_switch": "_ZN8greenlet12MainGreenlet8g_switchEv",
    "g_initialstub": "_ZN8greenlet12UserGreenlet13g_initialstubEPv",
}


def main():
    library = ctypes.CDLL(greenlet._greenlet.__file__)
    sites = {
        name: ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value
        for name, symbol in SITES.items()
    }
    book = books.Book(stacks=False)
    book.watch()
    books.ready(sites=sites)
    for _ in range(2):
        book.begin()
        switches.plain(2_000)
        books.done(book=book.end())


if __name__ == "__main__":
    main()
