"""A thread that switches in another interpreter, as mod_wsgi's and uWSGI's do: `subinterpreters.py`.

And one that was made there burns for BURNT seconds. Then the main interpreter switches. The books
are how often each did.
"""

import os
import sys
import threading

try:
    import _interpreters

    interpreter = _interpreters.create("legacy")
except ImportError:
    import _xxsubinterpreters as _interpreters

    interpreter = _interpreters.create(isolated=False)

import greenlet

import books

ROUNDS = 200
BURNT = 0.4

ELSEWHERE = f"""
import sys

sys.path[:0] = {sys.path!r}

import os
import threading
import time

import greenlet

switches = 0
home = greenlet.getcurrent()


def trace(_event, _greenlets):
    global switches
    switches += 1


def elsewhere():
    while True:
        home.switch()


def burn():
    end = time.thread_time() + {BURNT}
    while time.thread_time() < end:
        pass


greenlet.settrace(trace)
for _ in range({ROUNDS}):
    other = greenlet.greenlet(elsewhere)
    other.switch()
    time.sleep(0.0001)
    other.switch()
    other.throw()
greenlet.settrace(None)
burner = threading.Thread(target=burn)
burner.start()
burner.join()
os.write(told, str(switches).encode())
"""


def main():
    home = greenlet.getcurrent()

    def here():
        while True:
            home.switch()

    told, tell = os.pipe()
    books.ready()
    code = ELSEWHERE.replace("told", str(tell))
    thread = threading.Thread(target=lambda: _interpreters.run_string(interpreter, code))
    thread.start()
    thread.join()
    switches = 0

    def trace(_event, _greenlets):
        nonlocal switches
        switches += 1

    greenlet.settrace(trace)
    for _ in range(ROUNDS):
        other = greenlet.greenlet(here)
        other.switch()
        other.throw()
    greenlet.settrace(None)
    books.done(elsewhere=int(os.read(told, 20)), here=switches)
    # The end of another interpreter that had threads waits for ever on 3.11.
    os._exit(0)


main()
