"""Sync from a manager that is not ours: it pushes, well or badly, and only a
complete file is ever ready."""

import socket
import threading
import time

import grpc
import pytest

from lib import images
from lib.client import refused
from lib.deadline import wait_until
from lib.images import KIB, MIB
from lib.longhorn_daemon import request

NAME, UUID = "a", "6f7a"
SIZE = 24 * MIB + 512
CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """Data, holes, an end within a block."""
    return images.sparse_raw(
        tmp_path_factory.mktemp("pushed") / "image", SIZE,
        (0, 8 * MIB, 21 * MIB + 512), 3 * MIB)


@pytest.fixture
def manager(start_manager, disk):
    return start_manager(disk)


@pytest.fixture
def client(manager, longhorn):
    return longhorn(manager)


def sync(client, sender, image, name=NAME, uuid=UUID, **options):
    return client.sync(name, uuid, sender.address,
                       size=options.pop("size", image.size), **options)


def right(disk, image, name=NAME, uuid=UUID):
    file = disk.ready_file(name, uuid)
    assert images.file_sha512(file) == image.sha512
    assert file.stat().st_blocks <= image.path.stat().st_blocks + 16
    assert not disk.temp_file(name, uuid).exists()


def no_ports(manager):
    wait_until(lambda: not manager.in_range(),
               lambda: f"no port to be open; {manager.in_range()}", 10)


def fails(client, manager, disk, deadline=60):
    """It fails with a reason, and is not ready at any time before."""
    image = client.wait(NAME, UUID, "failed", deadline=deadline)
    assert image.status.error_msg.strip() and "\n" not in image.status.error_msg
    assert not disk.ready_file(NAME, UUID).exists()
    no_ports(manager)
    return image.status.error_msg


def settled_rightly(client, manager, disk, image):
    """It is ready with the right bytes, or failed with a reason."""
    def settled():
        seen = client.get(NAME, UUID)
        return seen.status.state in ("ready", "failed") and seen
    seen = wait_until(settled, "an outcome", 60)
    if seen.status.state == "ready":
        right(disk, image)
    else:
        assert seen.status.error_msg.strip()
        assert not disk.ready_file(NAME, UUID).exists()
    no_ports(manager)


def test_a_good_sender(manager, client, disk, foreign_manager, image):
    sender = foreign_manager()
    sender.has(NAME, UUID, image.path)
    answer = sync(client, sender, image, checksum=image.sha512)
    assert answer.status.state in ("pending", "starting", "in-progress", "ready")
    seen = client.wait(NAME, UUID, "ready")
    assert sender.wait_push().wait().error is None
    assert seen.status.checksum == seen.spec.checksum == image.sha512
    assert seen.spec.size == image.size and seen.status.progress == 100
    assert seen.status.sender_manager_address == sender.address
    right(disk, image)
    (name, uuid, to), = sender.sends
    host, _, port = to.rpartition(":")
    assert (name, uuid, host) == (NAME, UUID, "127.0.0.1")
    assert manager.first_port <= int(port) <= manager.last_port
    no_ports(manager)
    cfg = disk.cfg(NAME, UUID)
    assert cfg["currentChecksum"] == image.sha512


def test_it_returns_at_once_and_tells_of_progress(manager, client, foreign_manager,
                                                  image, disk):
    sender = foreign_manager()
    sender.has(NAME, UUID, image.path, pause_after=2)
    began = time.monotonic()
    sync(client, sender, image)
    assert time.monotonic() - began < 5
    push = sender.wait_push()
    push.wait_paused()

    def under_way():
        status = client.get(NAME, UUID).status
        return status.state == "in-progress" and 0 < status.progress < 100
    wait_until(under_way, lambda: f"progress; {client.get(NAME, UUID).status}")
    assert len(manager.in_range()) == 1
    push.release()
    client.wait(NAME, UUID, "ready")
    right(disk, image)


@pytest.mark.parametrize("options", [
    {}, {"round_up": True}, {"direct_io": True, "round_up": True},
    {"repeat": True}, {"closes": 2}], ids=lambda o: "-".join(o) or "plain")
def test_odd_but_right(manager, client, disk, foreign_manager, image, options):
    sender = foreign_manager()
    sender.has(NAME, UUID, image.path, **options)
    sync(client, sender, image)
    assert client.wait(NAME, UUID, "ready").status.checksum == image.sha512
    right(disk, image)
    no_ports(manager)


@pytest.mark.waits
@pytest.mark.parametrize("options,checked", [
    ({"close_after": 1}, False), ({"close_after": 0}, False),
    ({"close_after": 3}, True),
    ({"die_after": 2}, False), ({"leave_out": (2,)}, False),
    ({"leave_out": (0,)}, True), ({"holes": False}, False),
    ({"short_body": True}, False), ({"long_body": True}, False),
    ({"open_size": SIZE - 512}, False), ({"open_size": SIZE + 512}, False),
    ({"open_size": 1 << 62}, False)],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None)
def test_an_incomplete_push_fails(manager, client, disk, foreign_manager, image,
                                  options, checked):
    sender = foreign_manager()
    sender.has(NAME, UUID, image.path, **options)
    sync(client, sender, image, checksum=image.sha512 if checked else "")
    fails(client, manager, disk)
    # It stays failed until it is deleted; then it works.
    with refused(CODE.ALREADY_EXISTS, "already exists"):
        sync(client, sender, image)
    sender.has(NAME, UUID, image.path)
    client.delete(NAME, UUID)
    assert not disk.image_dir(NAME, UUID).exists()
    sync(client, sender, image)
    client.wait(NAME, UUID, "ready")
    right(disk, image)


@pytest.mark.waits
@pytest.mark.parametrize("options", [
    {"beyond": 512}, {"beyond": 64 * KIB}, {"beyond": MIB},
    {"repeat": True, "other_bytes": True}, {"closes": 0}],
    ids=lambda o: "-".join(map(str, [*o, *o.values()])))
def test_a_contradictory_push_is_never_taken_wrongly(
        manager, client, disk, foreign_manager, image, options):
    """All the bytes were sent, and more or others: it fails, or the right ones
    are taken."""
    sender = foreign_manager()
    sender.has(NAME, UUID, image.path, **options)
    sync(client, sender, image)
    push = sender.wait_push().wait()
    if "beyond" in options:
        assert push.error is not None  # refused
    settled_rightly(client, manager, disk, image)


def test_other_bytes_with_a_checksum(manager, client, disk, foreign_manager, image):
    sender = foreign_manager()
    sender.has(NAME, UUID, image.path)
    sync(client, sender, image, checksum="0" * 128)
    assert "512" in fails(client, manager, disk)


def test_e_beyond_size_counts_up_to_64_kib(manager, client, disk, foreign_manager,
                                           scratch):
    """The end of the last block, not the start of another."""
    path = scratch / "short"
    path.write_bytes(images.random_bytes(MIB + 512))
    image = images.Image(path, "raw")
    sender = foreign_manager()
    sender.has(NAME, UUID, path, round_up=True)
    sync(client, sender, image)
    client.wait(NAME, UUID, "ready")
    assert disk.ready_file(NAME, UUID).stat().st_size == MIB + 512
    right(disk, image)


def test_raw_requests_of_intervals(manager, client, disk, foreign_manager, image):
    """What no sender sends is refused, and nothing of it is taken."""
    sender = foreign_manager()
    sender.has(NAME, UUID, image.path, pause_after=1)
    sync(client, sender, image)
    push = sender.wait_push()
    push.wait_paused()
    def ask(method, target, length=0):
        # Who breaks the rules ends the receiver.
        try:
            return request(push.to, method, f"/{target}", body=b"z" * length)
        except ConnectionError:
            return None

    for method, target in [("GET", "v1-ssync/getRecordedMetadata"),
                           ("GET", "v1/files"), ("GET", ""),
                           ("POST", "v1-ssync/other")]:
        assert ask(method, target).status == 404
    refused_ = 0
    for begin, end, length in [
            (0, 0, 0), (512, 0, 0), (-512, 512, 512), (0, SIZE + 64 * KIB, 512),
            (SIZE, SIZE + 512, 512), (0, 1 << 63, 512), ("x", 512, 512),
            (0, "x", 512), (SIZE - 512, SIZE + 512, 1024), (0, 512, 511),
            ("", "", 0), (0, 64 * MIB, 0)]:
        reply = ask("POST", f"v1-ssync/writeData?begin={begin}&end={end}", length)
        assert reply is None or 400 <= reply.status < 600, (begin, end, reply)
        refused_ += reply is not None
    assert refused_ > 0
    push.release()
    settled_rightly(client, manager, disk, image)


def test_a_sender_that_refuses(manager, client, disk, foreign_manager, image):
    sender = foreign_manager()
    sender.has(NAME, UUID, image.path, refuse=CODE.RESOURCE_EXHAUSTED)
    sync(client, sender, image)
    assert "refused as it was told to" in fails(client, manager, disk)
    assert sender.address in client.get(NAME, UUID).status.error_msg


def test_a_sender_that_has_it_not(manager, client, disk, foreign_manager, image):
    sync(client, foreign_manager(), image)
    assert "cannot find" in fails(client, manager, disk)


@pytest.mark.waits
@pytest.mark.timeout(200)
def test_a_sender_that_never_comes(manager, client, disk, foreign_manager, image):
    sender = foreign_manager()
    sender.has(NAME, UUID, image.path, quiet=True)
    sync(client, sender, image)
    fails(client, manager, disk, 120)


@pytest.mark.waits
@pytest.mark.timeout(200)
def test_a_sender_that_stops(manager, client, disk, foreign_manager, image):
    sender = foreign_manager()
    sender.has(NAME, UUID, image.path, pause_after=2)
    sync(client, sender, image)
    sender.wait_push().wait_paused()
    fails(client, manager, disk, 60)


def test_delete_during_a_push(manager, client, disk, foreign_manager, image):
    sender = foreign_manager()
    sender.has(NAME, UUID, image.path, pause_after=2)
    sync(client, sender, image)
    push = sender.wait_push()
    push.wait_paused()
    began = time.monotonic()
    client.delete(NAME, UUID)
    assert not disk.image_dir(NAME, UUID).exists()
    no_ports(manager)
    assert time.monotonic() - began < 5
    assert client.list() == {}
    push.release()
    push.wait()
    assert push.error is not None
    assert not disk.image_dir(NAME, UUID).exists()
    sender.has(NAME, UUID, image.path)
    sync(client, sender, image)
    client.wait(NAME, UUID, "ready")
    right(disk, image)


def test_the_ports_run_out(start_manager, disk, longhorn, foreign_manager, image):
    manager = start_manager(disk, ports=2)
    client, sender = longhorn(manager), foreign_manager()
    for name in "abcd":
        sender.has(name, UUID, image.path, pause_after=1)
    for number, name in enumerate("ab"):
        sync(client, sender, image, name)
        sender.wait_push(number).wait_paused()
    assert manager.in_range() == {manager.first_port, manager.last_port}
    try:
        sync(client, sender, image, "c")
        message = client.wait("c", UUID, "failed").status.error_msg
    except grpc.RpcError as error:
        assert error.code() == CODE.RESOURCE_EXHAUSTED, error
        message = error.details()
    assert "port" in message.lower(), message
    client.delete("c", UUID)
    # One that ends makes room.
    sender.pushes[0].release()
    client.wait("a", UUID, "ready")
    wait_until(lambda: len(manager.in_range()) == 1, "a free port")
    sender.has("d", UUID, image.path)
    sync(client, sender, image, "d")
    client.wait("d", UUID, "ready")
    right(disk, image, "d")
    sender.pushes[1].release()
    client.wait("b", UUID, "ready")


def test_a_port_of_the_range_that_is_taken(start_manager, disk, longhorn,
                                           foreign_manager, image):
    manager = start_manager(disk, ports=2)
    client, sender = longhorn(manager), foreign_manager()
    sender.has(NAME, UUID, image.path)
    with socket.create_server(("127.0.0.1", manager.first_port)):
        sync(client, sender, image)
        client.wait(NAME, UUID, "ready")
    assert sender.sends[0][2] == f"127.0.0.1:{manager.last_port}"


def test_several_at_once(manager, client, disk, foreign_manager, image):
    sender = foreign_manager()
    names = [f"i{n}" for n in range(6)]
    for name in names:
        sender.has(name, UUID, image.path)
    threads = [threading.Thread(target=sync, args=(client, sender, image, name))
               for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        client.wait(name, UUID, "ready", deadline=60)
        right(disk, image, name)
    no_ports(manager)


def test_kill9_during_a_push(manager, client, disk, foreign_manager, image,
                             longhorn):
    sender = foreign_manager()
    sender.has(NAME, UUID, image.path, pause_after=2)
    sync(client, sender, image)
    push = sender.wait_push()
    push.wait_paused()
    manager.kill9()
    push.stop()
    manager.start()
    client = longhorn(manager)
    if NAME in client.list():
        assert client.get(NAME, UUID).status.state == "failed"
    assert not disk.ready_file(NAME, UUID).exists()
    client.delete(NAME, UUID)
    sender.has(NAME, UUID, image.path)
    sync(client, sender, image)
    client.wait(NAME, UUID, "ready")
    right(disk, image)
