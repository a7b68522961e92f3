"""The stand-ins for what is not ours, against each other: what they do well
and what they do badly, so that other tests may rely on both."""

import os

import grpc
import pytest

from lib import images
from lib.client import refused
from lib.deadline import wait_until
from lib.foreign import decode_volume_export
from lib.images import KIB, MIB
from lib.longhorn import Longhorn
from lib.longhorn_daemon import request
from lib.ssync import Receiver, batches, intervals

pytestmark = pytest.mark.without_binary

ODD = 9 * MIB + 512


@pytest.fixture
def image(files):
    """Data, holes, and an end within a block."""
    path = files / "image"
    images.sparse_raw(path, ODD, (0, 4 * MIB, 9 * MIB - 64 * KIB), 64 * KIB + 512)
    return path


def same(one, other):
    return images.file_sha512(one) == images.file_sha512(other)


def test_a_good_push(image, receiver, push):
    to = receiver()
    sender = push(image, to.address).wait()
    assert sender.error is None
    to.wait_closed()
    assert same(image, to.path)
    assert to.path.stat().st_blocks <= image.stat().st_blocks + 8
    assert to.seen.opened == [(0, ODD, "false")]
    assert sorted(to.seen.data) == batches(image)
    assert sender.existed is False and sender.count("getChecksum") == 0


def test_a_push_in_whole_blocks(image, receiver, push):
    to = receiver()
    assert push(image, to.address, round_up=True, direct_io=True).wait().error is None
    assert same(image, to.path)
    assert max(end for _, end in to.seen.data) == -(-ODD // 4096) * 4096
    assert to.seen.opened == [(0, ODD, "true")]


def test_a_push_of_what_is_there(image, scratch, push):
    path = scratch / "there"
    path.write_bytes(image.read_bytes())
    os.truncate(path, 5 * MIB)
    to = Receiver(path)
    try:
        sender = push(image, to.address).wait()
        assert sender.existed is True and sender.error is None
        assert same(image, path)
        assert sender.sent < sum(e - b for b, e in batches(image))
    finally:
        to.close()


def test_many_batches_at_once(files, receiver, push):
    big = images.raw(files / "big", 16 * MIB).path
    to = receiver(pause=0.05)
    assert push(big, to.address).wait().error is None
    assert same(big, to.path)
    assert 2 <= to.seen.most_at_once <= 4
    assert to.seen.data != sorted(to.seen.data)


@pytest.mark.parametrize("options", [
    {"close_after": 1}, {"die_after": 1}, {"leave_out": (1,)}, {"beyond": 512},
    {"short_body": True}, {"long_body": True},
    {"repeat": True, "other_bytes": True}, {"open_size": ODD - 512}],
    ids=lambda o: next(iter(o)))
def test_a_bad_push(image, receiver, push, options):
    to = receiver()
    sender = push(image, to.address, **options).wait()
    if "die_after" in options:
        assert not to.closed.is_set() and sender.count("close") == 0
    else:
        to.wait_closed()
    broken = {"die_after", "short_body", "long_body", "beyond", "open_size"}
    assert (sender.error is not None) == bool(broken & set(options))
    assert same(image, to.path) == ("beyond" in options)


def test_closes(image, receiver, push):
    for closes in (0, 2):
        to = receiver()
        assert push(image, to.address, closes=closes).wait().error is None
        assert same(image, to.path)
        assert sum(r[0] == "close" for r in to.seen.requests) == closes


def test_a_push_that_pauses(files, receiver, push):
    big = images.raw(files / "big", 16 * MIB).path
    to = receiver()
    sender = push(big, to.address, pause_after=2)
    sender.wait_paused()
    assert not to.closed.is_set() and not same(big, to.path)
    sender.release()
    assert sender.wait().error is None
    assert same(big, to.path)


def test_a_receiver_that_listens_late(image, receiver, push):
    to = receiver(listening=False)
    sender = push(image, to.address)
    assert not sender.done.wait(0.3)
    to.listen()
    assert sender.wait().error is None
    assert same(image, to.path)


@pytest.mark.parametrize("options", [
    {"refuse_open": True}, {"fail_at": 3}, {"break_at": 3}],
    ids=lambda o: next(iter(o)))
def test_a_bad_receiver(image, receiver, push, options):
    to = receiver(**options)
    assert push(image, to.address).wait().error is not None


def test_a_receiver_that_stops_reading(image, receiver, push):
    to = receiver(stop_at=3)
    assert isinstance(push(image, to.address).wait().error, TimeoutError)


def test_the_foreign_manager(image, foreign_manager, receiver):
    manager = foreign_manager()
    manager.has("a", "u", image)
    manager.has("no", "u", image, refuse=grpc.StatusCode.RESOURCE_EXHAUSTED)
    client, to = Longhorn(manager.address), receiver()
    try:
        assert client.version().backing_image_manager_api_version == 3
        client.send("a", "u", to.address)
        assert manager.wait_push().wait().error is None
        assert same(image, to.path)
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
            client.send("no", "u", to.address)
        with refused(grpc.StatusCode.NOT_FOUND, "cannot find"):
            client.send("b", "u", to.address)
        assert [s[:2] for s in manager.sends] == [("a", "u"), ("no", "u"), ("b", "u")]
    finally:
        client.close()


def test_the_foreign_data_source(disk, foreign_source):
    data = images.random_bytes(MIB)
    source = foreign_source(disk, "a", "u", data)
    info = request(source.address, "GET", "/v1/file").json()
    assert info["state"] == "ready-for-transfer" and info["diskUUID"] == disk.uuid
    assert info["currentChecksum"] == images.sha512(data)
    for _ in range(2):
        request(source.address, "POST", "/v1/file?action=transfer").ok()
    assert request(source.address, "GET", "/v1/file").json()["state"] == "ready"
    assert (source.gets, source.transfers) == (2, 2)
    assert source.path.read_bytes() == data and source.cfg.exists()
    request(source.address, "GET", "/v1/files").bad(status=404)


def export(address, body):
    host, _, port = address.rpartition(":")
    with grpc.insecure_channel(f"{host}:{int(port) + 2}") as channel:
        return channel.unary_unary("/ptypes.SyncAgentService/VolumeExport")(
            body, timeout=30)


def test_the_replica(image, replica, receiver):
    to = receiver()
    body = (b"\x0a\x02s1" b"\x12\x09127.0.0.1" b"\x18"
            + bytes([to.port & 127 | 128, to.port >> 7 & 127 | 128, to.port >> 14])
            + b"\x20\x01\x28\x3c")
    call = decode_volume_export(body)
    assert (call.snapshot, call.host, call.port) == ("s1", "127.0.0.1", to.port)
    assert (call.export_backing_image, call.timeout) == (True, 60)
    good = replica(image)
    export(good.address, body)
    assert same(image, to.path) and to.seen.opened == [(0, ODD, "true")]
    assert good.calls == [call]
    for how in ("at once", "late"):
        bad = replica(image, fail=how)
        with refused(grpc.StatusCode.INTERNAL):
            export(bad.address, body)
        wait_until(lambda: all(p.done.is_set() for p in bad.pushes), "its end")


def test_intervals(image):
    found = intervals(image)
    assert found[0][0] and found[-1][2] == ODD
    assert all(a[2] == b[1] and a[0] != b[0] for a, b in zip(found, found[1:]))
