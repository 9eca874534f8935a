"""Ends while it is recorded: `leaves.py exit|exec|killed|thread`.

The books are printed before, without waiting for the test.
"""

import os
import signal
import sys
import threading

import books
import switches


def main(way):
    book = books.Book(stacks=False)
    book.watch()
    books.ready()
    book.begin()
    switches.plain(2_000)
    books.say("done", books={"book": book.end()})
    if way == "exit":
        os._exit(0)
    if way == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    after = 'import os; os.write(1, b\'{"event": "after"}\\n\'); os.read(0, 1)'
    command = [sys.executable, "-c", after]
    if way == "exec":
        os.execv(sys.executable, command)
    # An exec from another thread ends the main thread as well.
    threading.Thread(target=os.execv, args=(sys.executable, command)).start()
    books.wait_for_go()


if __name__ == "__main__":
    main(sys.argv[1])
