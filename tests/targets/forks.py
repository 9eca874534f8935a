"""Forks while it is recorded: `forks.py`. The books have each process's switches.

One child is there before, and waits for the go as well. Then come: one that switches and
ends at once, one whose own child does, one that becomes another program, one that
multiprocessing makes, one killed in the middle of its switches, and CHURN that end one
after the other, more than may be recorded at once.
"""

import mmap
import multiprocessing
import os
import signal
import struct

import greenlet

import books

ROUNDS = 500
CHURN = 300
_memory = mmap.mmap(-1, 8 * (CHURN + 16))
_next = 1


def _count(slot):
    """Books from now on, in memory that outlives the process."""
    count = 0

    def trace(_event, _greenlets):
        nonlocal count
        count += 1
        struct.pack_into("<Q", _memory, 8 * slot, count)

    greenlet.settrace(trace)


def switch(rounds):
    parent = greenlet.getcurrent()

    def echo():
        while True:
            parent.switch()

    other = greenlet.greenlet(echo)
    for _ in range(rounds):
        other.switch()
    other.throw()
    greenlet.settrace(None)


def fork(work):
    """A child with books of its own; its pid."""
    global _next
    slot, _next = _next, _next + 1
    pid = os.fork()
    if pid == 0:
        _count(slot)
        work()
        os._exit(0)
    return pid


def wait(pid, status=0):
    assert os.waitpid(pid, 0)[1] == status


def grandchild():
    switch(ROUNDS)
    _count(14)
    wait(fork_into(15))
    switch(ROUNDS)


def fork_into(slot):
    pid = os.fork()
    if pid == 0:
        _count(slot)
        switch(ROUNDS)
        os._exit(0)
    return pid


def another_program():
    switch(ROUNDS)
    os.execv("/bin/sh", ["sh", "-c", ":"])


def killed():
    switch(ROUNDS)
    os.kill(os.getpid(), signal.SIGKILL)


def main():
    global _next
    read, write = os.pipe()
    said, say = os.pipe()

    def early():
        os.write(say, b"x")
        os.read(read, 1)
        switch(ROUNDS)

    there = fork(early)
    os.read(said, 1)
    _count(0)
    books.ready(child=there)
    switch(ROUNDS)
    os.write(write, b"x")
    wait(there)
    wait(fork(lambda: switch(ROUNDS)))
    wait(fork(grandchild))
    wait(fork(another_program))
    wait(fork(killed), signal.SIGKILL)
    slot, _next = _next, 16
    made = multiprocessing.get_context("fork").Process(target=work_of_multiprocessing, args=(slot,))
    made.start()
    made.join()
    for _ in range(CHURN):
        wait(fork(lambda: switch(5)))
    counts = struct.unpack_from(f"<{CHURN + 16}Q", _memory)
    # Itself, the seven before and the churn.
    books.done(switches=sum(counts), own=counts[0], processes=8 + CHURN)


def work_of_multiprocessing(slot):
    _count(slot)
    switch(ROUNDS)


if __name__ == "__main__":
    main()
