"""Prints the ids of all BPF links of this kernel, one per line.

What `bpftool link` shows, without bpftool: bpf(BPF_LINK_GET_NEXT_ID).
"""

import ctypes
import errno
import os
import sys

NUMBERS = {"x86_64": 321, "aarch64": 280}
LINK_GET_NEXT_ID = 31


class Attributes(ctypes.Structure):
    _fields_ = [
        ("start_id", ctypes.c_uint32),
        ("next_id", ctypes.c_uint32),
        ("open_flags", ctypes.c_uint32),
    ]


number = NUMBERS[os.uname().machine]
call = ctypes.CDLL(None, use_errno=True).syscall
at = Attributes()
while call(number, LINK_GET_NEXT_ID, ctypes.byref(at), ctypes.sizeof(at)) == 0:
    print(at.next_id)
    at.start_id = at.next_id
if ctypes.get_errno() != errno.ENOENT:
    sys.exit(os.strerror(ctypes.get_errno()))
