"""What no label can be read of: TLS and HTTP/2, on gevent's own sockets.

`unreadable.py`: ready, go; two clients ask a server three times by TLS, two once by HTTP/2;
done.
"""

from gevent import monkey

monkey.patch_all()

import socket  # noqa: E402
import ssl  # noqa: E402

import gevent  # noqa: E402
from gevent.server import StreamServer  # noqa: E402

import books  # noqa: E402

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# Empty ones: the settings, and what begins a request.
FRAMES = b"\0\0\0\x04\0\0\0\0\0" + b"\0\0\0\x01\x05\0\0\0\x01"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def context(purpose):
    """Encrypted without a certificate: nobody has to be sure of whom he talks to here."""
    made = ssl.SSLContext(purpose)
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers("AECDH-AES128-SHA:ADH-AES128-SHA:@SECLEVEL=0")
    if purpose is ssl.PROTOCOL_TLS_CLIENT:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    return made


def serve(connection, _address):
    """Answers what it reads, whatever that is."""
    while connection.recv(4096):
        gevent.sleep(0.01)
        connection.sendall(ANSWER)


def by_tls(port):
    plain = socket.create_connection(("127.0.0.1", port))
    with context(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(plain) as connection:
        for _ in range(3):
            connection.sendall(b"GET /secret HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(4096) == ANSWER


def by_http2(port):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(PREFACE + FRAMES)
        assert connection.recv(4096) == ANSWER


def main():
    plain = StreamServer(("127.0.0.1", 0), serve)
    encrypted = StreamServer(("127.0.0.1", 0), serve, ssl_context=context(ssl.PROTOCOL_TLS_SERVER))
    for server in (plain, encrypted):
        server.start()
    books.ready()
    clients = [gevent.spawn(by_tls, encrypted.server_port) for _ in range(2)]
    clients += [gevent.spawn(by_http2, plain.server_port) for _ in range(2)]
    gevent.joinall(clients, raise_error=True)
    books.done()


if __name__ == "__main__":
    main()
