"""Children that become Pythons which can't be recorded: `gone.py [PYTHON]`.

Without PYTHON they are this one, and killed before their interpreters are up: a few, for now
and then one is killed before it is another program.
"""

import os
import signal
import sys

import books

KILLED = 5


def child(python, code):
    # It returns when the child is about to be another program.
    return os.posix_spawn(python, [python, "-c", code], os.environ)


books.ready()
if sys.argv[1:]:
    os.waitpid(child(sys.argv[1], "import time; time.sleep(1)"), 0)
    most = 1
else:
    for _ in range(KILLED):
        pid = child(sys.executable, "")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    most = KILLED
books.done(most=most)
