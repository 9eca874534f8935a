"""A BPF program that is known to be wrong, to prove that this machine would show it.

At every greenlet switch it fills a per-CPU buffer with its process's number and
reads it back. Where the kernel preempts uprobe programs, another process on the
same processor fills the buffer in between, and the two differ. A machine on
which that never happens can't tell whether greenscope stands preemption.
"""

import ctypes
import os
import struct

WORDS = 128

NR_PERF_EVENT_OPEN, NR_BPF = 298, 321  # x86-64
BPF_MAP_CREATE, BPF_MAP_LOOKUP_ELEM, BPF_PROG_LOAD = 0, 1, 5
BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PERCPU_ARRAY = 2, 6
BPF_PROG_TYPE_KPROBE = 2
PERF_TYPE_TRACEPOINT = 2
PERF_EVENT_IOC_ENABLE, PERF_EVENT_IOC_SET_BPF = 0x2400, 0x40042408
MAP_LOOKUP_ELEM, GET_CURRENT_PID_TGID = 1, 14
R0, R1, R2, R6, R7, R8, R10 = 0, 1, 2, 6, 7, 8, 10

libc = ctypes.CDLL(None, use_errno=True)


def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, 128)
    result = libc.syscall(NR_BPF, command, buffer, 128)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf command {command} failed")
    return result


def create_map(kind, value_size, entries):
    return bpf(BPF_MAP_CREATE, struct.pack("<4I", kind, 4, value_size, entries))


def instruction(code, target=0, source=0, offset=0, value=0):
    return struct.pack("<BBhi", code, source << 4 | target, offset, value)


def map_address(target, fd):
    return instruction(0x18, target, 1, 0, fd) + instruction(0)


def lookup(fd, key):
    """r0 = address of the map's value at `key`, or the end of the program."""
    return b"".join(
        [
            instruction(0x62, R10, 0, -4, key),  # *(u32 *)(r10 - 4) = key
            map_address(R1, fd),
            instruction(0xBF, R2, R10),  # r2 = r10
            instruction(0x07, R2, 0, 0, -4),  # r2 += -4
            instruction(0x85, 0, 0, 0, MAP_LOOKUP_ELEM),
            instruction(0x55, R0, 0, 2, 0),  # if r0 != 0 go on
            instruction(0xB7, R0),
            instruction(0x95),
        ]
    )


def add_one():
    return instruction(0xB7, R1, 0, 0, 1) + instruction(0xDB, R0, R1)  # lock *(u64 *)r0 += 1


def program(scratch, counts):
    parts = [
        instruction(0x85, 0, 0, 0, GET_CURRENT_PID_TGID),
        instruction(0xBF, R6, R0),
        lookup(scratch, 0),
        instruction(0xBF, R7, R0),
    ]
    parts += [instruction(0x7B, R7, R6, 8 * word) for word in range(WORDS)]
    parts.append(instruction(0xB7, R8))
    for word in range(WORDS):
        parts.append(instruction(0x79, R1, R7, 8 * word))
        parts.append(instruction(0xAF, R1, R6))  # r1 ^= r6
        parts.append(instruction(0x4F, R8, R1))  # r8 |= r1
    parts += [lookup(counts, 0), add_one()]
    parts.append(instruction(0x55, R8, 0, 2, 0))  # if r8 != 0 count it
    parts += [instruction(0xB7, R0), instruction(0x95)]
    parts += [lookup(counts, 1), add_one(), instruction(0xB7, R0), instruction(0x95)]
    return b"".join(parts)


class Canary:
    """The program, attached to an event of tracefs on one processor."""

    def __init__(self, event, cpu):
        scratch = create_map(BPF_MAP_TYPE_PERCPU_ARRAY, 8 * WORDS, 1)
        self.counts = create_map(BPF_MAP_TYPE_ARRAY, 8, 2)
        code = ctypes.create_string_buffer(program(scratch, self.counts))
        licence = ctypes.create_string_buffer(b"GPL")
        self.program = bpf(
            BPF_PROG_LOAD,
            struct.pack(
                "<IIQQIIQII16s",
                BPF_PROG_TYPE_KPROBE,
                (len(code) - 1) // 8,
                ctypes.addressof(code),
                ctypes.addressof(licence),
                *(0, 0, 0),  # no log
                *(0, 0),
                b"canary",
            ),
        )
        with open(f"{event}/id") as file:
            config = int(file.read())
        # struct perf_event_attr, its first 64 bytes: type, size, config, period, ...
        attributes = struct.pack("<IIQQQQQQQ", PERF_TYPE_TRACEPOINT, 64, config, 1, 0, 0, 0, 0, 0)
        buffer = ctypes.create_string_buffer(attributes[:64], 64)
        self.event = libc.syscall(NR_PERF_EVENT_OPEN, buffer, -1, cpu, -1, 0)
        if self.event < 0:
            raise OSError(ctypes.get_errno(), "perf_event_open failed")
        for request, value in [
            (PERF_EVENT_IOC_SET_BPF, self.program),
            (PERF_EVENT_IOC_ENABLE, 0),
        ]:
            if libc.ioctl(self.event, request, value) < 0:
                raise OSError(ctypes.get_errno(), f"ioctl {request:#x} failed")

    def count(self, key):
        key_bytes = ctypes.create_string_buffer(struct.pack("<I", key), 4)
        value = ctypes.create_string_buffer(8)
        bpf(
            BPF_MAP_LOOKUP_ELEM,
            struct.pack(
                "<IIQQ", self.counts, 0, ctypes.addressof(key_bytes), ctypes.addressof(value)
            ),
        )
        return struct.unpack("<Q", value.raw)[0]

    def close(self):
        os.close(self.event)
        return {"runs": self.count(0), "overwritten": self.count(1)}
