"""Loops that wait for events, pools that wait for tasks, and what blocks them: `loops.py KIND`.

    eventlet    its hub, and a greenlet that sleeps for real
    asyncio     asyncio's loop under a greenlet bridge, and a callback that asks a driver
    uvloop      the same in C
    dispatcher  a greenlet with a selector of its own, and one of its greenlets that asks a driver
    gevent      its hub (GEVENT_LOOP says which); a greenlet, the main greenlet and a callback of the
                hub's that ask a driver
    beside      asyncio.run in a greenlet of gevent's: the hub is blocked by a loop that idles
    pool        gevent's thread pool, run dry
    celery      a worker of celery's with greenlets for its tasks, some of which resolve a name
    futures     the pools of concurrent.futures and multiprocessing, a queue's consumer; no greenlets
    gil         a greenlet that waits for the GIL of a thread
    starved     a greenlet that has its CPU taken

A driver's call is a poll of its own socket. `done` comes with `spans` (function, state and ns:
"idle" of the loop's own polls, "blocked") and `blocks`, how many runs are long.
"""

import os
import select
import selectors
import socket
import sys
import threading
import time

import greenlet

import books

now = time.monotonic_ns
sleep_for_real = time.sleep
LONG_S = 0.25
SHORT_S = 0.03
# How long each works.
SECONDS = 1.5

spans = {}
blocks = []


def book(function, state, began):
    key = (function, state)
    spans[key] = spans.get(key, 0) + now() - began


def driver():
    """Polls its own socket, as libpq does, and blocks its thread."""
    ours, theirs = socket.socketpair()
    began = now()
    select.select([ours], [], [], LONG_S)
    book("driver", "blocked", began)
    blocks.append("driver")
    ours.close()
    theirs.close()


def hold():
    began = now()
    sleep_for_real(LONG_S)
    book("hold", "blocked", began)
    blocks.append("hold")


def over(began):
    return now() - began > SECONDS * 1e9


def run_eventlet():
    import eventlet
    import eventlet.hubs

    hub = eventlet.hubs.get_hub()

    def booked(seconds, inner=hub.do_poll):
        began = now()
        try:
            return inner(seconds)
        finally:
            book("run_eventlet.<locals>.booked", "idle", began)

    hub.do_poll = booked

    def naps(seconds):
        began = now()
        while not over(began):
            eventlet.sleep(seconds)

    def once():
        eventlet.sleep(0.5)
        hold()

    # Without a listener it would sleep, and not poll.
    ours, _theirs = socket.socketpair()
    hub.add(hub.READ, ours.fileno(), lambda _: None, lambda _: None, lambda: None)
    eventlet.sleep(0)
    books.ready()
    for thread in [eventlet.spawn(naps, 0.15), eventlet.spawn(naps, SHORT_S), eventlet.spawn(once)]:
        thread.wait()


def await_(awaitable):
    return greenlet.getcurrent().parent.switch(awaitable)


async def bridge(function):
    child = greenlet.greenlet(function)
    result = child.switch()
    while not child.dead:
        result = child.switch(await result)
    return result


class Timed(selectors.DefaultSelector):
    def select(self, timeout=None):
        began = now()
        ready = super().select(timeout)
        book("Timed.select", "idle", began)
        return ready


def run_asyncio(loop=None):
    import asyncio

    def work():
        await_(asyncio.sleep(SHORT_S))
        await_(asyncio.sleep(0.15))

    async def task(began):
        while not over(began):
            await bridge(work)
            await asyncio.sleep(SHORT_S)

    async def main():
        asyncio.get_running_loop().call_later(0.5, driver)
        began = now()
        await asyncio.gather(*(task(began) for _ in range(3)))

    loop = loop or asyncio.SelectorEventLoop(Timed())
    books.ready()
    spans.clear()
    loop.run_until_complete(main())


def run_uvloop():
    import uvloop

    run_asyncio(uvloop.new_event_loop())


def run_dispatcher():
    """Handlers are resumed by a function of the loop's, not by the loop itself."""
    began = now()
    due = []
    selector = selectors.DefaultSelector()
    ours, _theirs = socket.socketpair()
    selector.register(ours, selectors.EVENT_READ)

    def nap(seconds):
        due.append((now() + int(seconds * 1e9), greenlet.getcurrent()))
        dispatcher.switch()

    def handler(seconds):
        while not over(began):
            nap(seconds)

    def asks():
        nap(0.5)
        driver()

    def resume(which):
        which.switch()

    def dispatch():
        while due:
            timeout = max(0, min(when for when, _ in due) - now()) / 1e9
            polled = now()
            selector.select(timeout)
            book("run_dispatcher.<locals>.dispatch", "idle", polled)
            for entry in [entry for entry in due if entry[0] <= now()]:
                due.remove(entry)
                resume(entry[1])

    books.ready()
    began = now()
    dispatcher = greenlet.greenlet(dispatch)
    bodies = [lambda: handler(SHORT_S), lambda: handler(0.15), asks]
    due.extend((number, greenlet.greenlet(body, dispatcher)) for number, body in enumerate(bodies))
    dispatcher.switch()


def run_gevent():
    import gevent

    gevent.get_hub()

    def naps(seconds):
        began = now()
        while not over(began):
            gevent.sleep(seconds)

    def once():
        gevent.sleep(0.5)
        driver()

    gevent.sleep(0)
    books.ready()
    all_of_them = [gevent.spawn(naps, 0.15), gevent.spawn(naps, SHORT_S), gevent.spawn(once)]
    gevent.sleep(1)
    driver()
    gevent.get_hub().loop.run_callback(driver)
    gevent.joinall(all_of_them)


def run_beside():
    import asyncio

    import gevent

    def naps():
        began = now()
        while not over(began):
            gevent.sleep(SHORT_S)

    def asks():
        gevent.sleep(0.5)
        began = now()
        asyncio.run(asyncio.sleep(LONG_S))
        book("run_beside.<locals>.asks", "blocked", began)
        blocks.append("asks")

    gevent.sleep(0)
    books.ready()
    gevent.joinall([gevent.spawn(naps), gevent.spawn(asks)])


def nap_task():
    began = now()
    sleep_for_real(0.02)
    book("nap_task", "blocked", began)


def run_pool():
    import gevent
    from gevent.threadpool import ThreadPool

    pool = ThreadPool(2, idle_task_timeout=0.4)
    gevent.sleep(0)
    books.ready()
    for _ in range(8):
        pool.spawn(nap_task).get()
    gevent.sleep(SECONDS)


def run_celery():
    from gevent import monkey

    monkey.patch_all(select=False)  # a driver's poll is none of Python's

    import gevent
    from celery import Celery
    from celery.contrib.testing.worker import start_worker

    app = Celery(broker="memory://", set_as_current=True)
    ended = []

    @app.task
    def resolve():
        socket.getaddrinfo("localhost", 80)
        ended.append("resolve")

    @app.task
    def ask():
        driver()
        ended.append("ask")

    with start_worker(app, pool="gevent", concurrency=4, perform_ping_check=False):
        books.ready()
        began = now()
        for task in [resolve, resolve, ask]:
            task.delay()
        while not over(began) or len(ended) < 3:
            gevent.sleep(SHORT_S)
        finish()


def consume(tasks):
    while task := tasks.get():
        task()


def run_futures():
    import concurrent.futures
    import multiprocessing.pool
    import queue

    tasks = queue.Queue()
    consumer = threading.Thread(target=consume, args=[tasks])
    consumer.start()
    with (concurrent.futures.ThreadPoolExecutor(2) as pool,
          multiprocessing.pool.ThreadPool(2) as other):
        pool.submit(nap_task).result()
        other.apply(nap_task)
        books.ready()
        spans.clear()
        began = now()
        for _ in range(8):
            pool.submit(nap_task).result()
        tasks.put(nap_task)
        sleep_for_real(SECONDS)
        book("run_futures", "blocked", began)
        finish()
    tasks.put(None)
    consumer.join()


def run_gil():
    import gevent

    hogs = threading.Event()
    started = []
    power = 7 ** 150_000

    def hog():
        hogs.wait()
        started.append(1)
        # In C, without letting go of the GIL.
        until = now() + int(LONG_S * 1e9)
        value = power
        while now() < until:
            value = power * power * power * power

    thread = threading.Thread(target=hog, name="hog")
    thread.start()
    gevent.sleep(0)
    # Nobody asks for it to be let go.
    sys.setswitchinterval(10)
    books.ready()
    gevent.spawn(gevent.sleep, 0.01).join()
    hogs.set()
    while not started:
        sleep_for_real(0.001)  # lets go of the GIL, and waits for it
    thread.join()
    blocks.append("gil")
    gevent.sleep(0.01)


def run_starved():
    import subprocess

    import gevent

    cpu = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, [cpu])
    gevent.sleep(0)
    books.ready()
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    os.nice(10)

    def burn():
        until = time.thread_time_ns() + 40_000_000
        while time.thread_time_ns() < until:
            pass

    gevent.sleep(0.2)
    gevent.spawn(burn).join()
    blocks.append("burn")
    burner.kill()
    burner.wait()
    gevent.sleep(0.01)


def finish():
    rows = [{"function": function, "state": state, "ns": ns} for (function, state), ns in spans.items()]
    books.done(spans=rows, blocks=len(blocks))


if __name__ == "__main__":
    kind = sys.argv[1]
    globals()["run_" + kind]()
    if kind not in ("futures", "celery"):
        finish()
