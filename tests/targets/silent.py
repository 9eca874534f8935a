"""A process a page of whose memory never answers: `silent.py`.

The name of a function of its lies there, in a page that a userfaultfd serves and nobody fills.
Python does not look at it, whoever wants to show the stack of its greenlet does. The books are how often it
switched.
"""

import ctypes
import fcntl
import mmap
import os
import struct
import sys

import greenlet

import books

ROUNDS = 500
PAGE = 4096
USERFAULTFD = {"x86_64": 323, "aarch64": 282}[os.uname().machine]
UFFDIO_API = 0xC018AA3F
UFFDIO_REGISTER = 0xC020AA00
MISSING = 1


def silent_page():
    """The address of a page; whoever reads there waits for ever."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(USERFAULTFD, os.O_CLOEXEC)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    fcntl.ioctl(fd, UFFDIO_API, bytearray(struct.pack("QQQ", 0xAA, 0, 0)))
    memory = mmap.mmap(-1, PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(fd, UFFDIO_REGISTER, bytearray(struct.pack("QQQQ", address, PAGE, MISSING, 0)))
    return memory, address


def hide(code, address):
    """Puts the names of a code object there."""
    words = (ctypes.c_uint64 * (sys.getsizeof(code) // 8)).from_address(id(code))
    # Before: afterwards to ask for them is to wait.
    names = {id(code.co_name), id(code.co_qualname)}
    hidden = 0
    for at, word in enumerate(words):
        if word in names:
            words[at] = address
            hidden += 1
    assert hidden > 0


def other_side():
    parent = greenlet.getcurrent().parent
    while True:
        parent.switch()


def main():
    _memory, address = silent_page()
    other = greenlet.greenlet(other_side)
    other.switch()
    # Never runs again: to know what it waits in, one has to read it.
    still = greenlet.greenlet(other_side)
    still.switch()
    hide(other_side.__code__, address)
    books.ready()
    switches = 0

    def trace(_event, _greenlets):
        nonlocal switches
        switches += 1

    greenlet.settrace(trace)
    for _ in range(ROUNDS):
        other.switch()
    greenlet.settrace(None)
    # Until the recorder has come to that page: of what is gone it reads nothing.
    books.say("switched")
    books.wait_for_go()
    books.done(switches=switches, still=bool(still))
    # Nothing of it may be looked at any more.
    os._exit(0)


main()
