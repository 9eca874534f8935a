"""A Python that does nothing: `idle.py [MODULE]`, which it has imported."""

import importlib
import os
import sys

for name in sys.argv[1:]:
    importlib.import_module(name)
sys.stdout.write(f'{{"event": "ready", "pid": {os.getpid()}}}\n')
sys.stdout.flush()
os.read(0, 1)
