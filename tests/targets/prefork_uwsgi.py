"""prefork.py's service for uWSGI: `uwsgi --module prefork_uwsgi`.

The master loads greenlet; its workers keep books from $BOOKS/go on.
"""

import os

import gevent  # noqa: F401
import uwsgi

import prefork
from prefork import application  # noqa: F401


def begin():
    while not os.path.exists(f"{prefork.BOOKS}/go"):
        pass
    prefork.post_fork(None, None)


uwsgi.post_fork_hook = begin
