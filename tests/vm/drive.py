"""Drives targets and greenscopes inside the test machine, as /test/plan.json says.

Writes one folder per phase to the results: what each target knows to be true
(`truth-PID.json`), what each greenscope wrote (`out-N.json`, `greenscope-N.log`)
and what was seen around them (`facts.json`). It judges nothing: that is
`cargo xtask vm`'s work. It runs outside a machine as well: `drive.py PLAN`.
"""

import json
import mmap
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time

from canary import Canary

TRACING = "/sys/kernel/tracing"


def say(text):
    print(f"vm: {text}", flush=True)


class Failed(Exception):
    """A step that did not come about; its text says which and why."""


class Child:
    """A process with its output, line by line, and a deadline on every wait."""

    def __init__(self, command, log, stream="stdout", cpu=None):
        self.name = os.path.basename(command[0]) if stream == "stderr" else command[1]
        self.log_path = log
        self.log = open(log, "wb")
        pipes = {"stdin": subprocess.PIPE, "stdout": self.log, "stderr": self.log}
        pipes[stream] = subprocess.PIPE
        self.process = subprocess.Popen(command, **pipes)
        self.pid = self.process.pid
        self.source = getattr(self.process, stream).fileno()
        self.rest = b""
        if cpu is not None:
            os.sched_setaffinity(self.pid, {cpu})

    def line(self, deadline):
        """The next line, or None at the end of the stream."""
        while b"\n" not in self.rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.source], [], [], left)[0]:
                raise Failed(f"{self.name} (pid {self.pid}) said nothing in time")
            piece = os.read(self.source, 65536)
            self.log.write(piece)
            self.log.flush()
            if not piece:
                return None
            self.rest += piece
        line, _, self.rest = self.rest.partition(b"\n")
        return line.decode(errors="replace")

    def wait_line(self, start, seconds):
        deadline = time.monotonic() + seconds
        while (line := self.line(deadline)) is not None:
            if line.startswith(start):
                return line
        raise Failed(f"{self.name} (pid {self.pid}) ended before `{start}`: {self.last_words()}")

    def go(self):
        self.process.stdin.write(b"g")
        self.process.stdin.flush()

    def finish(self, seconds):
        """Its exit code, once it has ended and its stream is read to the end."""
        deadline = time.monotonic() + seconds
        while self.line(deadline) is not None:
            pass
        try:
            code = self.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} (pid {self.pid}) did not end in {seconds} s") from None
        return code

    def last_words(self):
        self.log.flush()
        with open(self.log_path, errors="replace") as log:
            return " | ".join(log.read().strip().splitlines()[-3:]) or "no word"

    def end(self):
        """Kills it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()


def read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError as error:
        return f"unreadable: {error}"


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def involuntary_switches(pid):
    found = re.search(r"^nonvoluntary_ctxt_switches:\s*(\d+)", read(f"/proc/{pid}/status"), re.M)
    return int(found.group(1)) if found else None


def scheduled(pid, seconds):
    """What the scheduler says of a process that sleeps: ns on a CPU, and ready without one.

    Of one that runs its sums lack the time since the last tick.
    """
    deadline = time.monotonic() + seconds
    while read(f"/proc/{pid}/stat").rpartition(") ")[2][:1] != "S":
        if time.monotonic() > deadline:
            raise Failed(f"pid {pid} does not sleep")
        os.sched_yield()
    return [int(word) for word in read(f"/proc/{pid}/schedstat").split()[:2]]


def verified_instructions(pid):
    """What the verifier walked through for each BPF program that a process holds."""
    found = []
    folder = f"/proc/{pid}/fdinfo"
    for name in os.listdir(folder):
        match = re.search(r"^verified_insns:\s*(\d+)", read(f"{folder}/{name}"), re.M)
        if match:
            found.append(int(match.group(1)))
    return sorted(found, reverse=True)


def file_offset(path, symbol):
    """Where a dynamic symbol of a 64-bit little-endian ELF file lies in the file."""
    with open(path, "rb") as file:
        data = file.read()
    phoff, shoff = struct.unpack_from("<QQ", data, 32)
    phentsize, phnum, shentsize, shnum = struct.unpack_from("<HHHH", data, 54)
    sections = [
        struct.unpack_from("<IIQQQQIIQQ", data, shoff + i * shentsize) for i in range(shnum)
    ]
    segments = [struct.unpack_from("<IIQQQQQQ", data, phoff + i * phentsize) for i in range(phnum)]
    for section in sections:
        if section[1] != 11:  # SHT_DYNSYM
            continue
        strings = sections[section[6]][4]
        for at in range(section[4], section[4] + section[5], 24):
            name, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", data, at)
            end = data.index(b"\0", strings + name)
            if data[strings + name : end] != symbol:
                continue
            for kind, _, offset, vaddr, _, size, _, _ in segments:
                if kind == 1 and vaddr <= value < vaddr + size:  # PT_LOAD
                    return value - vaddr + offset
    raise Failed(f"{path} has no dynamic symbol {symbol.decode()}")


class PreemptionTrace:
    """The kernel stacks in which a Python process was scheduled away, counted in the kernel."""

    TRIGGER = 'hist:keys=stacktrace:size=4096 if prev_comm ~ "python*"'

    def __init__(self):
        self.event = f"{TRACING}/events/sched/sched_switch"
        try:
            write(f"{self.event}/trigger", self.TRIGGER)
            self.error = None
        except OSError as error:
            self.error = f"no histogram trigger: {error}"

    def close(self):
        """Counts by place: in a BPF program, in a uprobe's handling at all, anywhere."""
        if self.error:
            return {"error": self.error}, ""
        text = read(f"{self.event}/hist")
        write(f"{self.event}/trigger", "!" + self.TRIGGER)
        places = {"in_bpf_program": 0, "in_uprobe": 0, "involuntary": 0, "switches": 0}
        for stack, hits in re.findall(r"^\{ (.*?)\} hitcount:\s*(\d+)", text, re.S | re.M):
            places["switches"] += int(hits)
            functions = re.findall(r"^\s*(\w+)[.\w]*\+", stack, re.M)
            if not self.is_involuntary(functions):
                continue
            places["involuntary"] += int(hits)
            if any(re.match(r"uprobe_|handler_chain|arch_uprobe_", name) for name in functions):
                places["in_uprobe"] += int(hits)
            if any(re.match(r"bpf_prog_[0-9a-f]+", name) for name in functions):
                places["in_bpf_program"] += int(hits)
        dropped = re.search(r"^\s*Dropped: (\d+)", text, re.M)
        places["dropped"] = int(dropped.group(1)) if dropped else 0
        return places, text

    @staticmethod
    def is_involuntary(functions):
        """Preempted in the kernel, or on the way back from an interrupt to the program."""
        if functions[1:2] == ["schedule"]:
            return re.match(r"irqentry_exit|exit_to_user_mode", "".join(functions[2:3]))
        return re.match(r"preempt_schedule", "".join(functions[1:2]))


class OffCpu:
    """When each process left the CPU and when it came back, by the clock that Python reads."""

    # A quarter of a million context switches; one that finds no room fails the phase.
    KILOBYTES = 16384

    def __init__(self):
        self.event = f"{TRACING}/events/sched/sched_switch"
        write(f"{TRACING}/trace_clock", "mono")
        write(f"{TRACING}/buffer_size_kb", str(self.KILOBYTES))
        write(f"{self.event}/filter", 'prev_comm ~ "python*" || next_comm ~ "python*"')
        write(f"{self.event}/enable", "1")

    def stop(self):
        write(f"{self.event}/enable", "0")
        write(f"{self.event}/filter", "0")

    def times(self, pids, cpu):
        """Pairs of ns by process; the trace is emptied."""
        lost = re.search(r"^overrun: (\d+)", read(f"{TRACING}/per_cpu/cpu{cpu}/stats"), re.M)
        if lost is None or lost.group(1) != "0":
            raise Failed("the scheduler's trace is not whole")
        left, times = {}, {pid: [] for pid in pids}
        line = re.compile(r" (\d+)\.(\d{6}): sched_switch: .* prev_pid=(\d+) .* next_pid=(\d+) ")
        for seconds, micro, leaver, comer in line.findall(read(f"{TRACING}/trace")):
            now = int(seconds) * 1_000_000_000 + int(micro) * 1_000
            left[int(leaver)] = now
            if int(comer) in times and int(comer) in left:
                times[int(comer)].append((left.pop(int(comer)), now))
        write(f"{TRACING}/trace", "")
        return times


class SwitchEvent:
    """An event of tracefs at every greenlet switch, independent of greenscope."""

    def __init__(self, extension):
        offset = file_offset(extension, b"_ZN8greenlet8Greenlet13g_switchstackEv")
        write(f"{TRACING}/uprobe_events", f"p:check/switch {extension}:{offset:#x}\n")
        self.path = f"{TRACING}/events/check/switch"

    def close(self):
        write(f"{TRACING}/uprobe_events", "")


class SwitchCounter:
    """Counts the greenlet switches by process in the kernel."""

    TRIGGER = "hist:keys=common_pid"

    def __init__(self, extension):
        self.event = SwitchEvent(extension)
        write(f"{self.event.path}/trigger", self.TRIGGER)

    def close(self):
        text = read(f"{self.event.path}/hist")
        write(f"{self.event.path}/trigger", "!" + self.TRIGGER)
        self.event.close()
        rows = re.findall(r"common_pid:\s*(\d+) .*?(\d+)\s*$", text, re.M)
        return {pid: int(hits) for pid, hits in rows}


class Phase:
    """Some targets, recorded by some greenscopes, from the first `ready` to the last exit."""

    def __init__(self, plan, phase):
        self.plan = plan
        self.phase = phase
        self.folder = os.path.join(plan["results"], phase["name"])
        os.makedirs(self.folder, exist_ok=True)
        self.children = []
        self.facts = {"name": phase["name"], "greenscopes": []}

    def path(self, name):
        return os.path.join(self.folder, name)

    def run(self):
        try:
            self.record()
        except (Failed, OSError) as failed:
            self.facts["error"] = str(failed)
            say(f"{self.phase['name']}: {failed}")
        finally:
            for child in self.children:
                child.end()
            write(self.path("facts.json"), json.dumps(self.facts))

    def start_targets(self):
        flag_path = self.path("flag")
        write(flag_path, "\0")
        self.flag = mmap.mmap(os.open(flag_path, os.O_RDWR), 1)
        targets = []
        for number, variant in enumerate(self.phase["variants"]):
            command = [
                sys.executable,
                self.plan["target"],
                *("--process", str(number), "--variant", variant),
                *("--greenlets", str(self.plan["greenlets"])),
                *("--depth", str(self.plan["depth"])),
                *("--flag", flag_path, "--truth", self.path(f"truth-{number}.json")),
                *("--off-cpu", self.path(f"off-cpu-{number}.json")),
            ]
            write(self.path(f"off-cpu-{number}.json"), "[]")
            child = Child(command, self.path(f"target-{number}.log"), cpu=self.plan.get("cpu"))
            self.children.append(child)
            targets.append(child)
        for target in targets:
            target.wait_line("ready", self.plan["patience"])
        return targets

    def start_greenscopes(self, pids):
        greenscopes = []
        started = time.monotonic()
        for number in range(self.phase["greenscopes"]):
            command = [self.plan["greenscope"], "record"]
            for pid in pids:
                command += ["--pid", str(pid)]
            command += ["--format", "json", "-o", self.path(f"out-{number}.json")]
            command += self.plan["greenscope_options"]
            child = Child(command, self.path(f"greenscope-{number}.log"), stream="stderr")
            self.children.append(child)
            greenscopes.append(child)
        for child in greenscopes:
            child.wait_line("recording", self.plan["patience"])
        if greenscopes:
            self.facts["start_ms"] = int((time.monotonic() - started) * 1000)
        return greenscopes

    def record(self):
        patience = self.plan["patience"]
        targets = self.start_targets()
        pids = [target.pid for target in targets]
        say(f"{self.phase['name']}: {len(pids)} targets are ready")
        greenscopes = self.start_greenscopes(pids)
        counter = SwitchCounter(self.plan["extension"]) if self.phase.get("count") else None
        if self.phase.get("canary"):
            event = SwitchEvent(self.plan["extension"])
            canary = Canary(event.path, self.plan["cpu"])
        trace = PreemptionTrace() if self.phase.get("trace") else None
        off_cpu = OffCpu() if self.phase["greenscopes"] else None
        before = {pid: involuntary_switches(pid) for pid in pids}
        booked = {pid: scheduled(pid, patience) for pid in pids}
        for target in targets:
            target.go()
        # The measured time itself; whatever a target says before its end is an error.
        early = select.select([target.source for target in targets], [], [], self.phase["seconds"])
        self.flag[0] = 1
        if early[0]:
            raise Failed("a target ended before it was told to")
        for target in targets:
            target.wait_line("done", patience)
        self.facts["involuntary"] = {
            pid: (involuntary_switches(pid) or 0) - (before[pid] or 0) for pid in pids
        }
        self.facts["scheduled"] = {
            pid: [now - then for now, then in zip(scheduled(pid, patience), booked[pid])]
            for pid in pids
        }
        if off_cpu:
            off_cpu.stop()
        if trace:
            places, text = trace.close()
            self.facts["preempted"] = places
            write(self.path("preempted.txt"), text)
        if self.phase.get("canary"):
            self.facts["canary"] = canary.close()
            event.close()
        if counter:
            self.facts["counted"] = counter.close()
        for child in greenscopes:
            child.process.send_signal(signal.SIGTERM)
        for number, child in enumerate(greenscopes):
            code = child.finish(patience)
            self.facts["greenscopes"].append({"exit": code, "out": f"out-{number}.json"})
        if off_cpu:
            for number, times in enumerate(off_cpu.times(pids, self.plan["cpu"]).values()):
                write(self.path(f"off-cpu-{number}.json"), json.dumps(times))
        for target in targets:
            target.go()
            if (code := target.finish(patience)) != 0:
                raise Failed(f"a target ended with {code}: {target.last_words()}")
        self.facts["uptime_s"] = read("/proc/uptime").split()[0]
        involuntary = sum(self.facts["involuntary"].values())
        say(f"{self.phase['name']}: done, {involuntary} involuntary switches")


class LoadPhase(Phase):
    """`greenscope doctor`, then one second of one target: does the kernel take the programs?"""

    def record(self):
        targets = self.start_targets()
        pid = str(targets[0].pid)
        out = self.path("out-0.json")
        for name, arguments in [
            ("doctor", ["doctor"]),
            ("doctor-pid", ["doctor", "--pid", pid]),
            ("record", ["record", "--pid", pid, "--duration", "1s", "--format", "json", "-o", out]),
        ]:
            log = self.path(f"{name}.log")
            started = time.monotonic()
            child = Child([self.plan["greenscope"], *arguments], log, stream="stderr")
            self.children.append(child)
            ended = {"name": name, "exit": -1, "log": os.path.basename(log)}
            self.facts["greenscopes"].append(ended)
            if name == "record":
                # The verifier gets the processor for itself.
                child.wait_line("recording", self.plan["patience"])
                self.facts["start_ms"] = int((time.monotonic() - started) * 1000)
                self.facts["verified"] = verified_instructions(child.pid)
                targets[0].go()
            ended["exit"] = child.finish(self.plan["patience"])
            say(f"greenscope {name}: exit {ended['exit']} after {time.monotonic() - started:.1f} s")
        self.flag[0] = 1
        targets[0].wait_line("done", self.plan["patience"])
        targets[0].go()
        targets[0].finish(self.plan["patience"])


def shorten_slices(slice_us):
    """Makes the scheduler change processes far more often than by its tick alone."""
    scheduler = "/sys/kernel/debug/sched"
    if slice_us == 0:
        return
    for name, value in [
        ("base_slice_ns", slice_us * 1000),
        ("min_granularity_ns", slice_us * 1000),  # its name before 6.6
        ("features", "HRTICK"),
    ]:
        path = f"{scheduler}/{name}"
        if os.path.exists(path):
            write(path, f"{value}\n")


def main():
    with open(sys.argv[1] if len(sys.argv) > 1 else "/test/plan.json") as file:
        plan = json.load(file)
    shorten_slices(plan.get("slice_us", 0))
    for phase in plan["phases"]:
        (LoadPhase if phase.get("load") else Phase)(plan, phase).run()


if __name__ == "__main__":
    main()
