"""A Python that never loads greenlet."""

import os
import sys

sys.stdout.write(f'{{"event": "ready", "pid": {os.getpid()}}}\n')
sys.stdout.flush()
os.read(0, 1)
