"""A Python that loads greenlet only when it is told to, then switches: `late.py [seen]`.

With `seen` it lets a recorder that is there already see that it did.
"""

import os
import sys
import time

sys.stdout.write(f'{{"event": "ready", "pid": {os.getpid()}}}\n')
sys.stdout.flush()
if not os.read(0, 1):
    os._exit(3)

import books  # noqa: E402
import switches  # noqa: E402

assert "greenlet" in sys.modules
if sys.argv[1:] == ["seen"]:
    time.sleep(1)
book = books.Book(stacks=False)
book.watch()
# The second `ready`: greenlet is there, the recording may take its time.
books.ready()
book.begin()
switches.plain(2_000)
books.done(book=book.end())
