"""Every phase of a transfer has a deadline: no server can hold one for good."""

import os
import socket
import threading
import time

import pytest

from lib import images
from lib.deadline import scaled, wait_until
from lib.servers import Behaviour, Content

DATA = images.random_bytes(images.MIB)


@pytest.fixture
def client(start_daemon, disk):
    return start_daemon([disk], {
        "sources": {"connect_timeout": "500ms", "first_byte_timeout": "500ms",
                    "stall_timeout": "500ms", "retry_tries": 1},
        "backoff": {"first": "1h", "max": "1h"}}).client


def fails_in_time(client, url):
    begin = time.monotonic()
    client.ensure("a", url)
    failed = client.wait_state("a", "failed", deadline=15)
    assert failed.copies[0].HasField("next_attempt"), failed.message
    assert time.monotonic() - begin < scaled(10)
    return failed.message


def test_connecting(client):
    """A listener whose queue is full answers no SYN."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        waiting = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            waiting.append(sock)
        try:
            message = fails_in_time(client, f"http://127.0.0.1:{port}/a")
            assert str(port) in message
        finally:
            for sock in waiting:
                sock.close()


def test_a_tls_handshake_that_never_ends(client):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        fails_in_time(client, f"https://127.0.0.1:{port}/a")


class SlowHead(Behaviour):
    """A header line now and then, for ever."""

    def __call__(self, connection, request):
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\n")
        while not connection.stopping.wait(0.1):
            connection.sock.sendall(b"X-More: to come\r\n")
        return False


def test_a_head_that_never_ends(client, origin):
    fails_in_time(client, origin.serve("/a", SlowHead()))


class EndlessHead(Behaviour):
    """As many header bytes as one likes."""

    def __call__(self, connection, request):
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\n")
        while not connection.stopping.is_set():
            connection.sock.sendall(b"X-More: " + b"x" * 8000 + b"\r\n")
        return False


def test_a_head_of_any_size(start_daemon, disk, origin):
    daemon = start_daemon([disk], {"sources": {"retry_tries": 1},
                                   "backoff": {"first": "1h", "max": "1h"}})
    daemon.client.ensure("a", origin.serve("/a", EndlessHead()))
    assert daemon.client.wait_state("a", "failed").message


class Garbage(Behaviour):
    def __call__(self, connection, request):
        connection.sock.sendall(b"\x00\xff" * 2000 + b"\r\n\r\n")
        return False


def test_no_http_at_all(client, origin):
    client.ensure("a", origin.serve("/a", Garbage()))
    assert client.wait_state("a", "failed").message


def test_a_stall_between_two_bytes(client, origin):
    url = origin.serve("/a", Content(DATA, stall_after=images.MIB // 2))
    assert fails_in_time(client, url)


def test_waiting_transfers_do_not_starve_the_api(start_daemon, disk, origin):
    """All transfers hang; the daemon answers as ever, and what waits for its
    turn can be removed."""
    gate = threading.Event()
    daemon = start_daemon([disk], {"transfers": {"max": 4},
                                   "sources": {"stall_timeout": "60s"}})
    for number in range(12):
        daemon.client.ensure(f"i{number}", origin.serve(
            f"/{number}", Content(DATA, gate=gate, gate_after=4096)))
    begin = time.monotonic()
    for _ in range(20):
        assert len(daemon.client.list_all()) == 12
        daemon.client.version_get()
        daemon.client.list_disks()
    daemon.client.remove("i11")
    daemon.client.remove("i0")
    assert time.monotonic() - begin < scaled(5)
    gate.set()
    for number in range(1, 11):
        daemon.client.wait_ready(f"i{number}")


def test_waiting_transfers_do_not_hold_up_verify(start_daemon, disk, origin):
    """Nor what a changed file needs: it has nothing to do with the network."""
    gate = threading.Event()
    daemon = start_daemon([disk], {"transfers": {"max": 2},
                                   "sources": {"stall_timeout": "60s"}})
    client = daemon.client
    client.ensure("old", origin.serve("/old", Content(DATA)))
    file = client.wait_ready("old").copies[0].file_path
    for number in range(4):
        client.ensure(f"i{number}", origin.serve(
            f"/{number}", Content(DATA, gate=gate, gate_after=4096)))
    wait_until(lambda: len(origin.requests) >= 3, "two downloads that hang")
    assert client.verify("old", deadline=10)[-1].ok
    os.utime(file)
    client.wait_image("old", lambda i: i.state == "ready"
                      and i.copies[0].origin, "ready", 10)
    gate.set()
    for number in range(4):
        client.wait_ready(f"i{number}")
