"""Processes that another Python takes the place of: `programs.py`.

The target itself switches, has multiprocessing make two gevent children by `spawn`, has a
shell run one more, and at last replaces itself. Each counts its switches in a file that
all of them share; before its first one it waits until the recorder has surely seen it.
"""

import mmap
import multiprocessing
import os
import struct
import subprocess
import sys
import tempfile
import time

ROUNDS = 300
FILE = "PROGRAMS_BOOKS"
SLOTS = 8
SPAWNED = 2
IN_SHELL = 3
SECOND = 4


def count(slot):
    """Books from now on, in memory that outlives the process."""
    import greenlet

    with open(os.environ[FILE], "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    count = 0

    def trace(_event, greenlets):
        nonlocal count
        origin, target = greenlets
        if origin is not target:
            count += 1
            struct.pack_into("<Q", memory, 8 * slot, count)

    greenlet.settrace(trace)


def switch():
    import greenlet

    parent = greenlet.getcurrent()

    def echo():
        while True:
            parent.switch()

    other = greenlet.greenlet(echo)
    for _ in range(ROUNDS):
        other.switch()
    other.throw()


def seen():
    """Long after the program began, by the standards of a recorder."""
    time.sleep(1)


def nap():
    import gevent

    gevent.sleep(0.001)


def spawned(slot):
    seen()
    count(slot)
    for _ in range(ROUNDS):
        nap()


def leaf(slot):
    seen()
    count(slot)
    switch()


def first():
    import books

    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(bytes(8 * SLOTS))
    os.environ[FILE] = file.name
    count(0)
    books.ready()
    switch()
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=spawned, args=(1 + each,)) for each in range(SPAWNED)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    # The shell stays in between, and does more than that.
    again = f"'{sys.executable}' '{__file__}'"
    shell = f"/bin/true; {again} shell {IN_SHELL}; /bin/true"
    subprocess.run(["/bin/sh", "-c", shell], check=True)
    os.execv(sys.executable, [sys.executable, __file__, "second", str(SECOND)])


def second(slot):
    leaf(slot)
    import greenlet

    greenlet.settrace(None)
    import books

    with open(os.environ[FILE], "rb") as file:
        counts = struct.unpack(f"<{SLOTS}Q", file.read())
    os.unlink(os.environ[FILE])
    books.done(switches=counts[: SECOND + 1], in_shell=IN_SHELL, second=SECOND)


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            first()
        case ["shell", slot]:
            leaf(int(slot))
        case ["second", slot]:
            second(int(slot))
