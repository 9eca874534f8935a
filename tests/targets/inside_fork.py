"""Is recorded from the middle of a fork on: `inside_fork.py WHERE`.

WHERE is where the handler stands that waits for the go: `before`, `parent` and `child`
are Python's (os.register_at_fork), `libc` is the C library's in the child, which runs
before Python has noticed that it is in another process. The other process waits for the
handler's end. The books have the switches of both; `waits` is the pid of the one that is
in the handler.
"""

import ctypes
import mmap
import os
import struct
import sys

import greenlet

import books

ROUNDS = 300
_memory = mmap.mmap(-1, 16)
_gate, _open = os.pipe()
_inside = False


def count(slot):
    """Books from now on, in memory that both processes have."""
    counted = 0

    def trace(_event, _greenlets):
        nonlocal counted
        counted += 1
        struct.pack_into("<Q", _memory, 8 * slot, counted)

    greenlet.settrace(trace)


def switch():
    parent = greenlet.getcurrent()

    def echo():
        while True:
            parent.switch()

    other = greenlet.greenlet(echo)
    for _ in range(ROUNDS):
        other.switch()
    other.throw()
    greenlet.settrace(None)


def handler():
    """The slow one."""
    if _inside:
        books.say("ready", pid=main_pid, waits=os.getpid())
        books.wait_for_go()
        os.write(_open, b"x")


def at_fork_of_libc(function):
    """What pthread_atfork calls, which is no symbol of the library's own."""
    register = ctypes.CDLL(None).__register_atfork
    register.argtypes = [ctypes.c_void_p] * 4
    assert register(None, None, ctypes.cast(function, ctypes.c_void_p), None) == 0


def main(where):
    global _inside, main_pid
    main_pid = os.getpid()
    # Both have it loaded, and have switched.
    switch()
    if where == "libc":
        kept = ctypes.PYFUNCTYPE(None)(handler)
        at_fork_of_libc(kept)
    else:
        name = "before" if where == "before" else f"after_in_{where}"
        os.register_at_fork(**{name: handler})
    _inside = True
    done, say_done = os.pipe()
    end, say_end = os.pipe()
    pid = os.fork()
    _inside = False
    in_child = pid == 0
    if (where in ("child", "libc")) != in_child:
        if in_child:
            os.close(_open)  # so that the parent's end ends the wait
        os.read(_gate, 1)
    count(1 if in_child else 0)
    switch()
    if in_child:
        # It stays to the end: there is time to look at it.
        os.close(say_end)
        os.write(say_done, b"x")
        os.read(end, 1)
        os._exit(0)
    os.read(done, 1)
    counts = struct.unpack_from("<QQ", _memory)
    books.done(parent=counts[0], child=counts[1], child_pid=pid)
    os.close(say_end)
    assert os.waitpid(pid, 0)[1] == 0


if __name__ == "__main__":
    main(sys.argv[1])
