"""A process whose first thread has ended, and another one has not: `headless.py`."""

import ctypes
import os
import threading

SYS_EXIT = 60  # of one thread, on x86-64


def main():
    threading.Thread(target=os.read, args=(0, 1)).start()
    print(f'{{"event": "ready", "pid": {os.getpid()}}}', flush=True)
    ctypes.CDLL(None).syscall(SYS_EXIT, 0)


if __name__ == "__main__":
    main()
