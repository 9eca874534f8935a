"""A small gevent service with its own load, for `cargo xtask run`.

Requests come in over loopback, as a client's would. Each goes through a few
functions that wait for different reasons, so that the flame graph of its waiting
says where: a database behind a pool of two connections, a payment provider that
is retried, a cache behind a lock, a queue with one worker. It prints `ready` once
it serves, and ends when its input is closed.
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import random  # noqa: E402
import socket  # noqa: E402

import gevent  # noqa: E402
import gevent.os  # noqa: E402
from gevent.event import AsyncResult  # noqa: E402
from gevent.lock import BoundedSemaphore, RLock  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402
from gevent.queue import Queue  # noqa: E402

CLIENTS = 24

connections = BoundedSemaphore(2)
prices_lock = RLock()
prices = {}
mails = Queue(maxsize=100)


# What the handlers call.


def query_database(sql, seconds):
    """One of two connections, and the time that the database takes."""
    with connections:
        return wait_for_rows(sql, seconds)


def wait_for_rows(sql, seconds):
    gevent.sleep(seconds)
    return [{"sql": sql, "row": row} for row in range(3)]


def call_payment_api(amount):
    """A provider that is busy two times of three."""
    for attempt in range(1, 4):
        gevent.sleep(0.01)
        if attempt == 3 or random.random() < 0.33:
            return {"paid": amount, "attempts": attempt}
        back_off(attempt)
    return None


def back_off(attempt):
    gevent.sleep(0.02 * 2**attempt)


def look_up_price(item):
    """A cache that one request at a time fills; the others wait for the lock."""
    with prices_lock:
        if item not in prices or random.random() < 0.2:
            prices[item] = refresh_price(item)
        return prices[item]


def refresh_price(item):
    gevent.sleep(0.015)
    return item * 7 % 100


def render(name, rows):
    """Work on the CPU: the hub and everybody else waits meanwhile."""
    page = {"page": name, "rows": rows * 50}
    return json.dumps(page, indent=1).encode()


def send_mail_and_wait(address):
    """Hand a mail to the worker and wait for its receipt."""
    receipt = AsyncResult()
    mails.put((address, receipt))
    return receipt.get()


def mail_worker():
    while True:
        address, receipt = mails.get()
        deliver(address)
        receipt.set(f"sent to {address}")


def deliver(address):
    gevent.sleep(0.008)
    return address


# The handlers.


def fetch_profile(user):
    rows = query_database("SELECT * FROM profile", 0.01)
    friends = load_friends(user, 2)
    return render("profile", rows + friends)


def load_friends(user, depth):
    """Recursion, as an object graph is loaded."""
    if depth == 0:
        return query_database("SELECT * FROM friend", 0.005)
    return load_friends(user + 1, depth - 1)


def check_out(user):
    price = sum(look_up_price(item) for item in range(user % 5 + 1))
    payment = call_payment_api(price)
    receipt = send_mail_and_wait(f"user{user}@example.org")
    return render("receipt", [payment, {"mail": receipt}])


def search(user):
    parts = [gevent.spawn(search_shard, shard, user) for shard in range(3)]
    gevent.joinall(parts)
    return render("search", [part.value for part in parts])


def search_shard(shard, user):
    gevent.sleep(0.005 * (shard + 1))
    return {"shard": shard, "hits": user % 11}


ROUTES = {"/profile": fetch_profile, "/checkout": check_out, "/search": search}


def application(environ, start_response):
    handler = ROUTES[environ["PATH_INFO"]]
    body = handler(int(environ["QUERY_STRING"] or 0))
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


# The load: clients in the same process, so that one program is the whole demo.


def client(port, number):
    user = number
    while True:
        for path in ROUTES:
            user += 1
            request(port, f"{path}?{user}")
            think()


def request(port, target):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        line = f"GET {target} HTTP/1.0\r\nHost: demo\r\n\r\n"
        connection.sendall(line.encode())
        read_to_end(connection)


def read_to_end(connection):
    while connection.recv(65536):
        pass


def think():
    gevent.sleep(random.uniform(0.01, 0.05))


def main():
    server = WSGIServer(("127.0.0.1", 0), application, log=None)
    server.start()
    gevent.spawn(mail_worker)
    for number in range(CLIENTS):
        gevent.spawn(client, server.server_port, number)
    print(f"ready on port {server.server_port}", flush=True)
    wait_for_end_of_input()


def wait_for_end_of_input():
    """Whoever started us holds the other end: it closes when that one ends."""
    gevent.os.make_nonblocking(0)
    while gevent.os.nb_read(0, 4096):
        pass


if __name__ == "__main__":
    main()
