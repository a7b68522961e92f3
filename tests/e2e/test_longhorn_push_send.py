"""Send to a receiver that is not ours, by gRPC and by HTTP: it gets the bytes
and the holes, and what goes wrong there leaves nothing behind here."""

import threading
import time

import grpc
import pytest

from lib import images
from lib.client import refused
from lib.deadline import SLOWDOWN, wait_until
from lib.images import KIB, MIB
from lib.longhorn_daemon import image_path
from lib.ssync import BATCH

NAME, UUID = "a", "6f7a"
CODE = grpc.StatusCode
DATA_AT = (0, 8 * MIB, 21 * MIB + 512)
PIECE = 3 * MIB


@pytest.fixture
def manager(start_manager, disk):
    return start_manager(disk)


@pytest.fixture
def client(manager, longhorn):
    return longhorn(manager)


@pytest.fixture
def image(client, disk):
    """A ready image with holes, and an end within a block."""
    disk.image_dir(NAME, UUID).mkdir(parents=True)
    image = images.sparse_raw(disk.ready_file(NAME, UUID), 24 * MIB + 512,
                              DATA_AT, PIECE)
    client.fetch(NAME, UUID)
    client.wait(NAME, UUID, "ready")
    return image


@pytest.fixture
def ways(manager, client):
    """Both ways to ask for it, each a function of a receiver."""
    return {
        "Send": lambda to: client.send(NAME, UUID, to.address),
        "sendToPeer": lambda to: manager.files.act(
            image_path(NAME, UUID), "sendToPeer", to_address=to.address).ok()}


@pytest.fixture(params=["Send", "sendToPeer"])
def send(request, ways):
    """send(receiver): one of both ways."""
    return ways[request.param]


def sending(client):
    return client.get(NAME, UUID).status.sending_reference


def wait_sending(client, count, deadline=20):
    wait_until(lambda: sending(client) == count,
               lambda: f"{count} to be sent; {sending(client)}", deadline)


def in_the_background(function, *args):
    """Whether it answers at once or at the end."""
    errors = []

    def run():
        try:
            function(*args)
        except (grpc.RpcError, AssertionError, OSError) as error:
            print(f"in the background: {error!r}")
            errors.append(error)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, errors


def got(receiver, image):
    assert images.file_sha512(receiver.path) == image.sha512
    assert receiver.path.stat().st_blocks <= image.path.stat().st_blocks + 8
    seen = receiver.seen
    assert [o[:2] for o in seen.opened] == [(0, image.size)]
    assert seen.bytes <= len(DATA_AT) * (PIECE + 64 * KIB)
    assert all(end - begin <= BATCH for begin, end in seen.data)
    assert max(end for _, end in seen.data + seen.holes) >= image.size


def test_bytes_and_holes(client, image, send, receiver):
    to = receiver()
    send(to)
    to.wait_closed()
    got(to, image)
    assert 1 <= to.seen.most_at_once <= 4
    assert sum(r[0] == "close" for r in to.seen.requests) == 1
    wait_sending(client, 0)
    assert client.get(NAME, UUID).status.state == "ready"


def test_a_receiver_that_has_a_part(client, image, send, receiver):
    first = receiver()
    first.path.write_bytes(image.data)
    with open(first.path, "r+b") as file:
        file.seek(9 * MIB)
        file.write(b"something else")
    first.existed = True
    send(first)
    first.wait_closed()
    assert images.file_sha512(first.path) == image.sha512
    wait_sending(client, 0)


def test_a_receiver_that_listens_late(client, image, send, receiver):
    to = receiver(listening=False)
    thread, errors = in_the_background(send, to)
    wait_sending(client, 1)
    to.listen()
    to.wait_closed()
    got(to, image)
    thread.join(30)
    assert not errors
    wait_sending(client, 0)


def test_three_at_once(client, image, send, receiver):
    hold = threading.Event()
    receivers = [receiver(hold=hold) for _ in range(3)]
    # Held no longer than a sender waits for an answer.
    jobs = [in_the_background(send, to) for to in receivers]
    wait_sending(client, 3, 4)
    other = receiver()
    try:
        client.send(NAME, UUID, other.address)
    except grpc.RpcError as error:
        assert error.code() in (CODE.RESOURCE_EXHAUSTED, CODE.FAILED_PRECONDITION)
        assert "3" in error.details() or "three" in error.details()
    else:
        raise AssertionError("a fourth was taken")
    assert sending(client) == 3
    hold.set()
    for to in receivers:
        to.wait_closed()
        got(to, image)
    wait_sending(client, 0)
    assert all(not errors for _, errors in jobs)
    assert other.seen.requests == []
    send(other)
    other.wait_closed()
    got(other, image)


def test_a_fourth_over_http(manager, client, image, receiver):
    hold = threading.Event()
    receivers = [receiver(hold=hold) for _ in range(3)]
    jobs = [in_the_background(client.send, NAME, UUID, to.address)
            for to in receivers]
    wait_sending(client, 3, 4)
    assert all(not errors for _, errors in jobs)
    path = image_path(NAME, UUID)
    assert manager.files.get(path).json()["sendingReference"] == 3
    reply = manager.files.act(path, "sendToPeer", to_address=receiver().address)
    assert reply.status in (400, 500) and reply.text.strip(), reply
    hold.set()
    wait_sending(client, 0)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("options", [
    {"refuse_open": True}, {"fail_at": 4}, {"break_at": 4}, {"break_at": 1}],
    ids=lambda o: "-".join(map(str, [*o, *o.values()])))
def test_a_receiver_that_fails(client, image, send, receiver, options):
    """Whatever it does, the sender is done with it in bounded time."""
    to = receiver(**options)
    in_the_background(send, to)
    wait_until(lambda: to.seen.requests, "a first request")
    wait_sending(client, 0, 150)
    assert client.get(NAME, UUID).status.state == "ready"
    # And sends to the next one.
    good = receiver()
    send(good)
    good.wait_closed()
    got(good, image)


@pytest.mark.waits
@pytest.mark.timeout(250)
def test_receivers_that_fall_silent(client, image, ways, receiver):
    """At once, since each is waited for."""
    def begin(way, **options):
        to = receiver(**options)
        in_the_background(ways[way], to)
        wait_until(lambda: to.seen.requests, "a first request")
    began = time.monotonic()
    begin("Send", stop_at=1)
    begin("sendToPeer", stop_at=1)
    begin("Send", stop_at=5)
    wait_sending(client, 3)
    wait_sending(client, 2, 60)
    begin("sendToPeer", stop_at=5)
    wait_sending(client, 3)
    wait_sending(client, 0, 150)
    assert time.monotonic() - began < 150 * SLOWDOWN
    assert client.get(NAME, UUID).status.state == "ready"
    for send in ways.values():
        good = receiver()
        send(good)
        good.wait_closed()
        got(good, image)


def test_a_slow_receiver(client, image, send, receiver):
    to = receiver(pause=0.3)
    in_the_background(send, to)
    wait_sending(client, 1)
    to.wait_closed()
    got(to, image)
    wait_sending(client, 0)


def test_delete_ends_it(client, image, receiver, disk):
    hold = threading.Event()
    to = receiver(hold=hold)
    in_the_background(client.send, NAME, UUID, to.address)
    wait_sending(client, 1)
    began = time.monotonic()
    client.delete(NAME, UUID)
    assert time.monotonic() - began < 10
    assert client.list() == {} and not disk.image_dir(NAME, UUID).exists()
    hold.set()


def test_what_cannot_be_sent(manager, client, image, receiver):
    to = receiver()
    with refused(CODE.NOT_FOUND, "cannot find"):
        client.send("b", UUID, to.address)
    client.fetch("missing", UUID, size=512)
    client.wait("missing", UUID, "failed")
    with refused(CODE.FAILED_PRECONDITION):
        client.send("missing", UUID, to.address)
    for address in ("", "nowhere", ":", "127.0.0.1:", "127.0.0.1:0",
                    "127.0.0.1:65536", "http://127.0.0.1:1/"):
        with refused(CODE.INVALID_ARGUMENT):
            client.send(NAME, UUID, address)
        manager.files.act(image_path(NAME, UUID), "sendToPeer",
                          to_address=address).bad("to-address")
    manager.files.act(image_path(NAME, UUID), "sendToPeer").bad("to-address")
    reply = manager.files.act(image_path("b", UUID), "sendToPeer",
                              to_address=to.address)
    assert reply.status in (400, 404, 500)
    assert sending(client) == 0 and to.seen.requests == []
