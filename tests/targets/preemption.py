"""Greenlets that switch without a pause and keep the books of every stack they stop in.

Every function's name says process, greenlet and depth (`p2_g5_d3`), every file
and line too, so that a frame of a neighbour cannot pass for one's own. Each
switch site has an index; the site counts itself on the line of its switch, and
the first time it is reached the stack is noted as Python sees it: by
`sys._getframe` on that same line, or, where the switch happens deeper
(`gevent.sleep`), by the suspended greenlet's `gr_frame`.

The clocks have books as well. The wall's is read right before each switch and right after
it, in the one greenlet and in the other. Nobody here can know when in between the switch
happened, least of all when a preemption fell into it, so each time is booked twice: no
less, and no more. When the process was off the CPU is the scheduler's to tell: the driver
leaves its trace in a file. (A look at the thread's own CPU clock is a call of the kernel's,
and took longer than the switches.)

It says `ready` when every site has been seen and the books were checked against
`greenlet.settrace`, zeroes them, and blocks until a byte comes on stdin. It then
switches until the flag file's first byte is set, says `done`, and blocks again: between the two the books are exactly what a recorder must have
seen, and writes the truth after a last byte. No site waits in the kernel, so that whoever interrupts it is another process.
"""

import argparse
import json
import mmap
import os
import sys
import time
from array import array
from bisect import bisect

import greenlet

VARIANTS = 4
BORN_DEPTH = 3
BIRTH_EVERY = 16
# Written at a switch, on its very line and by C alone, so that no stack has it: the site, or
# BORN where there is none, and the time.
LOOKS = "LOG({0}); LOG(WALL())"
BORN = -1
# The scheduler's trace is cut to it.
MICROSECOND = 1000


class Books:
    """Counts, owners and stacks of every switch site, by index, and the log of the clocks."""

    def __init__(self):
        self.counts = []
        self.owners = []
        self.log = array("q")
        self.seen = []
        self.stacks = []
        self.deaths = [0]
        self.hub = set()
        self.calls = set()

    def names(self):
        """What the code at a switch calls."""
        return {
            "SEEN": self.seen,
            "COUNTS": self.counts,
            "DEATHS": self.deaths,
            "LOG": self.log.append,
            "WALL": time.monotonic_ns,
        }

    def reserve(self, sites, owner):
        first = len(self.counts)
        self.owners.extend([owner] * sites)
        self.counts.extend([0] * sites)
        self.seen.extend([0] * sites)
        self.stacks.extend([None] * sites)
        return first

    def zero(self):
        self.counts[:] = [0] * len(self.counts)
        self.deaths[0] = 0
        del self.log[:]

    def site_switches(self):
        return sum(self.counts)


def frames_of(frame):
    """The stack that ends in `frame`, root first, as hashable rows."""
    rows = []
    while frame is not None:
        code = frame.f_code
        name = getattr(code, "co_qualname", code.co_name)
        rows.append((name, code.co_filename, frame.f_lineno))
        frame = frame.f_back
    rows.reverse()
    return tuple(rows)


def site(index, hop):
    """The source of one switch site."""
    books = f"SEEN[{index}] or LOOK({index}); COUNTS[{index}] += 1"
    return f"{books}; {LOOKS.format(index)}; {hop}; {LOOKS.format(index)}"


def chain(name, depth, first, hops, forever):
    """The source of one greenlet: functions `name_d0` to `name_dN`, each with one site.

    `hops` gives the switch of a depth. Which of two lines calls the next depth
    depends on a bit of `v`; some depths are called from C (`map`), some are
    generators, so that the frames do not all lie side by side.
    """
    lines = []
    for k in range(depth + 1):
        base = first + k * VARIANTS
        head = "()" if k == 0 else "(v)"
        pad = "    "
        lines.append(f"def {name}_d{k}{head}:")
        if k == 0:
            if forever:
                lines.append(f"{pad}while True:")
                pad += "    "
            else:
                lines.append(f"{pad}{LOOKS.format(BORN)}")
            lines.append(f"{pad}for v in {tuple(range(VARIANTS))}:")
            pad += "    "
        lines.append(f"{pad}i = {base} + v")
        lines.append(f"{pad}{site('i', hops(k))}")
        if k < depth:
            callee = f"{name}_d{k + 1}"
            call = {3: f"any(map({callee}, (v,)))", 4: f"any({callee}(v))"}.get(
                (k + 1) % 5, f"{callee}(v)"
            )
            lines.append(f"{pad}if v & {1 << (k & 1)}:")
            lines.append(f"{pad}    {call}")
            lines.append(f"{pad}else:")
            lines.append(f"{pad}    {call}")
        if k % 5 == 4:
            lines.append(f"{pad}yield")
        if k == 0 and not forever:
            lines.append(f"    DEATHS[0] += 1; {LOOKS.format(BORN)}")
        lines.append("")
    return "\n".join(lines) + "\n"


def load(source, name, process, number, names):
    """Runs generated source under a file name and lines of its own; gives its names."""
    shift = "\n" * (1000 * (process + 1) + 120 * number)
    space = dict(names)
    exec(compile(shift + source, f"/generated/{name}.py", "exec"), space)
    return space


class Raw:
    """A ring of plain greenlets: the main greenlet, each worker in turn, the main again."""

    def __init__(self, options, books):
        self.books = books
        process = options.process
        names = {**books.names(), "LOOK": self.look}
        self.main = greenlet.getcurrent()
        self.workers = []
        spaces = []
        for g in range(options.greenlets):
            name = f"p{process}_g{g}"
            first = books.reserve((options.depth + 1) * VARIANTS, name)
            source = chain(name, options.depth, first, lambda k: "HOP()", True)
            space = load(source, name, process, g, names)
            spaces.append(space)
            worker = greenlet.greenlet(space[f"{name}_d0"])
            worker.name = name
            self.workers.append(worker)
        for space, following in zip(spaces, self.workers[1:] + [self.main]):
            space["HOP"] = following.switch
        first = books.reserve((BORN_DEPTH + 1) * VARIANTS, BORN)
        name = f"p{process}_born"
        source = chain(name, BORN_DEPTH, first, lambda k: "HOP()", False)
        born = load(
            source, name, process, options.greenlets, {**names, "HOP": self.main.switch}
        )
        name = f"p{process}_main"
        sites = books.reserve(2, name)
        source = f"""
def {name}_d0(limit):
    n = 0
    while n != limit and not FLAG[0]:
        {site(sites, "HOP()")}
        n += 1
        if n % {BIRTH_EVERY} == 0:
            {name}_d1()

def {name}_d1():
    child = BORN(p{process}_born_d0)
    while not child.dead:
        {site(sites + 1, "child.switch()")}
"""
        space = load(
            source,
            name,
            process,
            options.greenlets + 1,
            {
                **names,
                **born,
                "HOP": self.workers[0].switch,
                "BORN": greenlet.greenlet,
                "FLAG": options.flag,
            },
        )
        self.turn = space[f"{name}_d0"]

    def look(self, i):
        self.books.stacks[i] = frames_of(sys._getframe(1))
        self.books.seen[i] = 1

    def hub_switches(self):
        return 0

    def greenlets(self):
        """Those that live through the whole recording: the main one and the workers."""
        return 1 + len(self.workers)


class Gevent:
    """gevent greenlets: half the sites switch to the hub at once, half by gevent.sleep(0)."""

    def __init__(self, options, books):
        import gevent
        import gevent.hub

        self.books = books
        self.hub = gevent.get_hub()
        self.run_callback = self.hub.loop.run_callback
        process = options.process
        self.sleeps = set()
        names = {
            **books.names(),
            "LOOK": self.look,
            "CB": self.run_callback,
            "HUB": self.hub.switch,
            "SLEEP": gevent.sleep,
        }
        self.workers = []
        for g in range(options.greenlets):
            name = f"p{process}_g{g}"
            first = books.reserve((options.depth + 1) * VARIANTS, name)
            for k in range(1, options.depth + 1, 2):
                self.sleeps.update(range(first + k * VARIANTS, first + (k + 1) * VARIANTS))
            source = chain(name, options.depth, first, self.hop, True)
            space = load(source, name, process, g, names)
            worker = gevent.Greenlet(space[f"{name}_d0"])
            space["ME"] = worker.switch
            worker.name = name
            self.workers.append(worker)
        first = books.reserve((BORN_DEPTH + 1) * VARIANTS, BORN)
        self.sleeps.update(range(first, first + (BORN_DEPTH + 1) * VARIANTS))
        name = f"p{process}_born"
        source = chain(name, BORN_DEPTH, first, lambda k: "SLEEP(0)", False)
        born = load(source, name, process, options.greenlets, names)
        self.births = [0]
        name = f"p{process}_main"
        sites = books.reserve(2, name)
        source = f"""
def {name}_d0(limit):
    n = 0
    while n != limit and not FLAG[0]:
        {site(sites, "CB(ME); HUB()")}
        n += 1
        if n % {BIRTH_EVERY} == 0:
            BIRTHS[0] += 1
            BORN(p{process}_born_d0).start()
    {name}_d1()

def {name}_d1():
    while True:
        {site(sites + 1, "CB(ME); HUB()")}
        if DEATHS[0] == BIRTHS[0]:
            return
"""
        space = load(
            source,
            name,
            process,
            options.greenlets + 1,
            {
                **names,
                **born,
                "ME": greenlet.getcurrent().switch,
                "BORN": gevent.Greenlet,
                "BIRTHS": self.births,
                "FLAG": options.flag,
            },
        )
        self.main_turn = space[f"{name}_d0"]
        for worker in self.workers:
            worker.start()

    @staticmethod
    def hop(k):
        return "SLEEP(0)" if k % 2 else "CB(ME); HUB()"

    def turn(self, limit):
        self.births[0] = 0
        self.main_turn(limit)

    def look(self, i):
        self.books.seen[i] = 1
        if self.hub.gr_frame is not None:
            self.books.hub.add(frames_of(self.hub.gr_frame))
        if i in self.sleeps:
            self.run_callback(self.look_suspended, greenlet.getcurrent(), i)
        else:
            self.books.stacks[i] = frames_of(sys._getframe(1))

    def look_suspended(self, sleeper, i):
        self.books.stacks[i] = frames_of(sleeper.gr_frame)

    def hub_switches(self):
        """Every greenlet that stopped was entered again from the hub, and so was every birth."""
        return self.books.site_switches() + self.births[0]

    def greenlets(self):
        return 2 + len(self.workers)


def switches(ring, books):
    return books.site_switches() + books.deaths[0] + ring.hub_switches()


class Tracer:
    """Compares the books with greenlet's own tracing over a few turns.

    Beside it Python's own profiling hook notes which functions are called: some
    that are no switch site are (gevent's constructor reads gevent's settings), and
    may be current when a tick comes.
    """

    def __init__(self, books):
        self.books = books
        self.traced = 0

    def note(self, event, args):
        self.traced += 1

    def call(self, frame, event, arg):
        if event == "call":
            self.books.calls.add(tuple(name for name, _, _ in frames_of(frame)))

    def start(self):
        greenlet.settrace(self.note)
        sys.setprofile(self.call)

    def check(self, ring, books):
        sys.setprofile(None)
        greenlet.settrace(None)
        own = switches(ring, books)
        if own != self.traced:
            raise SystemExit(
                f"preemption.py: own books say {own} switches, greenlet.settrace {self.traced}"
            )
        if len(books.hub) > 1:
            raise SystemExit(
                f"preemption.py: the hub stops in {len(books.hub)} places, one expected"
            )


def phases(books):
    """The turns to make and why: until every site was seen, traced, then for the record.

    All of them are made by one line of `main`, because that line is part of the
    main greenlet's stacks.
    """
    for _ in range(2000):
        yield BIRTH_EVERY * VARIANTS, "settle"
        if all(books.stacks):
            yield BIRTH_EVERY * 5, "check"
            yield -1, "record"
            return
    raise SystemExit("preemption.py: some switch site is never reached")


class Bounds:
    """Times that were over when the recording was, summed: no less, and no more."""

    def __init__(self):
        self.closed = self.least = self.most = 0

    def add(self, least, most):
        self.closed += 1
        self.least += least
        self.most += most

    def row(self):
        return {"closed": self.closed, "least_ns": self.least, "most_ns": self.most}


class OffCpu:
    """How long the process was off the CPU, by the scheduler's trace."""

    def __init__(self, path):
        with open(path) as trace:
            times = json.load(trace)
        self.begins = [begin for begin, _ in times]
        self.least, self.most = [0], [0]
        for begin, end in times:
            self.least.append(self.least[-1] + max(0, end - begin - MICROSECOND))
            self.most.append(self.most[-1] + end - begin + MICROSECOND)

    def within(self, inside, around):
        """No less and no more, of two spans that the process began and ended on the CPU.

        A begin that is cut may seem to lie before the moment that it came after.
        """
        first, last = bisect(self.begins, inside[0]), bisect(self.begins, inside[1] - MICROSECOND)
        least = self.least[max(first, last)] - self.least[first]
        first, last = bisect(self.begins, around[0] - MICROSECOND), bisect(self.begins, around[1])
        return least, self.most[last] - self.most[first]


class Clocks:
    """What the log says of waits by stack, and of runs by owner."""

    def __init__(self, books, off_cpu):
        self.waits = {stack: Bounds() for stack in books.stacks}
        self.hub = Bounds()
        self.running = {owner: Bounds() for owner in books.owners}
        self.off_cpu = {owner: Bounds() for owner in books.owners}
        # By site, of whoever left it and is not back: when, and when the next one came.
        away = {}
        before = None
        for at in range(0, len(books.log), 4):
            leaver, left, comer, came = books.log[at : at + 4]
            # A site of those that are born is left by several, and their sum is the same
            # whoever of them comes back first.
            if leaver != BORN:
                away.setdefault(leaver, []).append((left, came))
            # Who waits there since before the recording has no closed wait.
            if comer != BORN and away.get(comer):
                was_left, was_followed = away[comer].pop()
                self.waits[books.stacks[comer]].add(left - was_followed, came - was_left)
            if before is not None:
                owner = books.owners[leaver] if leaver != BORN else BORN
                inside, around = (before[1], left), (before[0], came)
                self.running[owner].add(left - before[1], came - before[0])
                self.hub.add(left - before[1], came - before[0])
                self.off_cpu[owner].add(*off_cpu.within(inside, around))
            before = left, came


def truth(options, ring, books):
    """What a recorder must report: one row per distinct stack, and what may run."""
    clocks = Clocks(books, OffCpu(options.off_cpu))
    rows = {}
    for stack, count in zip(books.stacks, books.counts):
        rows[stack] = rows.get(stack, 0) + count
    stacks = [
        {"state": "wait", "count": count, "frames": stack, "time": clocks.waits[stack].row()}
        for stack, count in rows.items()
    ]
    stacks += [
        {
            "state": "idle",
            "count": ring.hub_switches(),
            "frames": stack,
            "time": clocks.hub.row(),
        }
        for stack in books.hub
    ]
    return {
        "pid": os.getpid(),
        "variant": options.variant,
        "process": options.process,
        "switches": switches(ring, books),
        "births": books.deaths[0],
        "greenlets": ring.greenlets() + books.deaths[0],
        "stacks": stacks,
        # By name, of those that wait at both ends.
        "clocks": [
            {
                "name": worker.name,
                "running": clocks.running[worker.name].row(),
                "off_cpu": clocks.off_cpu[worker.name].row(),
            }
            for worker in ring.workers
        ],
        # Functions that are current without being a switch site, root first.
        "running": [
            ["<module>", "main", "pause"],
            ["<module>", "main", "phases"],
            *sorted(books.calls),
        ],
    }


def save(options, ring, books):
    with open(options.truth, "w") as out:
        json.dump(truth(options, ring, books), out)


def pause(word):
    """Says a word and blocks, outside every greenlet switch, until a byte comes."""
    os.write(1, word.encode() + b"\n")
    if os.read(0, 1) == b"":
        raise SystemExit("preemption.py: the driver has gone")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--process", type=int, required=True)
    parser.add_argument("--variant", choices=["raw", "gevent"], required=True)
    parser.add_argument("--greenlets", type=int, default=8)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--flag", required=True, help="file whose first byte ends the work")
    parser.add_argument("--off-cpu", required=True, help="file with the scheduler's trace")
    parser.add_argument("--truth", required=True, help="file to write the truth to")
    options = parser.parse_args()
    with open(options.flag, "rb") as flag:
        options.flag = mmap.mmap(flag.fileno(), 1, prot=mmap.PROT_READ)
    books = Books()
    ring = (Raw if options.variant == "raw" else Gevent)(options, books)
    tracer = Tracer(books)
    for turns, why in phases(books):
        books.zero()
        if why == "check":
            tracer.start()
        elif why == "record":
            pause("ready")
        ring.turn(turns)
        if why == "check":
            tracer.check(ring, books)
    pause("done")
    save(options, ring, books)
    os._exit(0)


if __name__ == "__main__":
    main()
