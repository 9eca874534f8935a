"""Plain threads that burn a few milliseconds and end, one after the other: `brief.py`.

The books have how many there were and the process's CPU time meanwhile.
"""

import threading
import time

import books

THREADS = 150
BURN_NS = 4_000_000


def burn():
    until = time.thread_time_ns() + BURN_NS
    while time.thread_time_ns() < until:
        pass


def main():
    books.ready()
    begin_ns = time.process_time_ns()
    for _ in range(THREADS):
        thread = threading.Thread(target=burn)
        thread.start()
        thread.join()
    books.done(threads=THREADS, cpu_ns=time.process_time_ns() - begin_ns)


if __name__ == "__main__":
    main()
