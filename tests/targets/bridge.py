"""Two endpoints of different cost, as tasks of asyncio that call into greenlets.

A greenlet that runs blocking-style code has the very context of its task, as SQLAlchemy's
bridge does it, and hands what it waits for to the task. Tasks change inside of one run of the
main greenlet, without a switch. The books say for each endpoint how many requests there were,
what CPU time they had, that in the greenlet apart, and how long the greenlet waited.

    bridge.py --of thread|gevent

With `gevent` the event loop runs in a greenlet of gevent's beside others.
"""

import argparse
import asyncio
import time

import greenlet

import books
import tracers

ROUNDS = 30
_cpu_ns = time.thread_time_ns
_now_ns = time.monotonic_ns

tracer = tracers.OpenTelemetry()
spent = {
    name: {"requests": 0, "cpu_ns": 0, "inside_cpu_ns": 0, "waiting_ns": 0, "wall_ns": 0}
    for name in ("/costly", "/cheap")
}


class Bridge(greenlet.greenlet):
    """Runs a function that asks its driver, the task, for what it waits for."""

    def __init__(self, function, *args):
        super().__init__(lambda: function(*args))
        self.gr_context = greenlet.getcurrent().gr_context


async def bridged(function, *args):
    bridge = Bridge(function, *args)
    wanted = bridge.switch()
    while not bridge.dead:
        wanted = bridge.switch(await wanted)
    return wanted


def await_only(awaitable):
    return greenlet.getcurrent().parent.switch(awaitable)


def burn(name, milliseconds, kind="cpu_ns"):
    begin_ns = _cpu_ns()
    end_ns = begin_ns + int(milliseconds * 1e6)
    while _cpu_ns() < end_ns:
        sum(range(100))
    gone_ns = _cpu_ns() - begin_ns
    spent[name]["cpu_ns"] += gone_ns
    if kind != "cpu_ns":
        spent[name][kind] += gone_ns


def costly_burn(milliseconds):
    burn("/costly", milliseconds)


def cheap_burn(milliseconds):
    burn("/cheap", milliseconds)


def costly_inside(milliseconds):
    burn("/costly", milliseconds, "inside_cpu_ns")


def cheap_inside(milliseconds):
    burn("/cheap", milliseconds, "inside_cpu_ns")


def costly_wait():
    await_only(asyncio.sleep(0.01))


def cheap_wait():
    await_only(asyncio.sleep(0.03))


def waited(name, wait):
    begin_ns = _now_ns()
    wait()
    spent[name]["waiting_ns"] += _now_ns() - begin_ns


def costly_query():
    for _ in range(2):
        costly_inside(3)
        waited("/costly", costly_wait)


def cheap_query():
    cheap_inside(0.5)
    waited("/cheap", cheap_wait)


async def costly():
    with tracer.child("/costly"):
        begin_ns = _now_ns()
        costly_burn(4)
        await bridged(costly_query)
        costly_burn(4)
        spent["/costly"]["requests"] += 1
        spent["/costly"]["wall_ns"] += _now_ns() - begin_ns


async def cheap():
    with tracer.child("/cheap"):
        begin_ns = _now_ns()
        cheap_burn(0.5)
        await bridged(cheap_query)
        await asyncio.sleep(0)
        cheap_burn(0.5)
        spent["/cheap"]["requests"] += 1
        spent["/cheap"]["wall_ns"] += _now_ns() - begin_ns


async def client(view, rounds):
    for _ in range(rounds):
        await asyncio.create_task(view())


async def main(rounds):
    clients = [client(costly, rounds), client(cheap, 2 * rounds), client(cheap, 2 * rounds)]
    await asyncio.gather(*clients)


def loop(of, rounds):
    if of == "thread":
        asyncio.run(main(rounds))
        return
    import gevent

    beside = gevent.spawn(lambda: [gevent.sleep(0.001) for _ in range(5)])
    gevent.joinall([gevent.spawn(asyncio.run, main(rounds)), beside])


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--of", choices=("thread", "gevent"), required=True)
    return parser.parse_args()


if __name__ == "__main__":
    asked = arguments()
    tracer.start()
    # The first span of its class, before anything counts.
    loop(asked.of, 1)
    for sums in spent.values():
        sums.update(dict.fromkeys(sums, 0))
    books.ready()
    cpu_ns = time.process_time_ns()
    loop(asked.of, ROUNDS)
    books.done(endpoints=spent, cpu_ns=time.process_time_ns() - cpu_ns)
