"""Load for service.py from plain threads: `load.py PORT CLIENTS ROUNDS`."""

import http.client
import sys
import threading

import books


def client(port, rounds, answers):
    """Asks for each page in turn, on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for number in range(rounds):
        for path in (f"/page/{number}", "/pooled", f"/asked/{number}"):
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            answers.append(answer.status)
    connection.close()


def main(port, clients, rounds):
    answers = []
    threads = [
        threading.Thread(target=client, args=(port, rounds, answers))
        for _ in range(clients)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    last = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    last.request("GET", "/finish")
    last.getresponse().read()
    last.close()
    books.say("done", books={"answered": answers.count(200), "asked": len(answers)})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
