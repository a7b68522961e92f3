"""Downloads of a ready file from the HTTP sync service: packed and raw."""

import gzip
import http.client
import os
import zlib

import pytest

from lib import images
from lib.deadline import SLOWDOWN, scaled, wait_until
from lib.images import KIB, MIB
from lib.longhorn import config_of, leave_image
from lib.longhorn_daemon import PeakMemory, Reader, image_path, request

DATA = images.random_bytes(3 * MIB + 512, 5)
SUM = images.sha512(DATA)
UUID = "6f7a"
BIG = 64 * MIB


@pytest.fixture
def manager(start_manager, disk):
    return start_manager(disk)


@pytest.fixture
def client(manager, longhorn):
    return longhorn(manager)


def ready(client, disk, name="a", data=DATA):
    leave_image(disk.path, name, UUID, data, images.sha512(data))
    client.fetch(name, UUID)
    client.wait(name, UUID, "ready")
    return image_path(name, UUID)


def sending(manager, path):
    return manager.files.get(path).json()["sendingReference"]


def test_packed(manager, client, disk):
    reply = manager.files.download(ready(client, disk)).ok()
    assert gzip.decompress(reply.body) == DATA
    assert reply.headers["content-disposition"] == "attachment; filename=a.gz"
    assert reply.headers["content-type"] == "application/octet-stream"
    # The file itself is what is packed, for whoever saves it.
    assert "content-encoding" not in reply.headers
    assert sending(manager, image_path("a", UUID)) == 0


def test_the_name_of_the_file(manager, client, disk):
    for name, shown in (("my-own-image", "my"), ("a.b_c", "a.b_c")):
        reply = manager.files.download(ready(client, disk, name), method="HEAD")
        assert reply.headers["content-disposition"] == (
            f"attachment; filename={shown}.gz")


def test_head(manager, client, disk):
    path = ready(client, disk)
    reply = manager.files.download(path, method="HEAD").ok()
    assert reply.body == b""
    assert reply.headers["content-type"] == "application/octet-stream"
    reply = manager.files.download(path, method="HEAD", forV2Creation="true").ok()
    assert reply.body == b"" and reply.headers["content-length"] == str(len(DATA))
    assert sending(manager, path) == 0


def test_raw(manager, client, disk):
    path = ready(client, disk)
    reply = manager.files.download(path, forV2Creation="true").ok()
    assert reply.body == DATA
    assert reply.headers["content-length"] == str(len(DATA))
    assert reply.headers["content-type"] == "application/octet-stream"
    # Any other value is the packed one.
    reply = manager.files.download(path, forV2Creation="false").ok()
    assert gzip.decompress(reply.body) == DATA


@pytest.mark.parametrize("spec,begin,end", [
    ("0-0", 0, 1), ("0-511", 0, 512), (f"{MIB}-", MIB, len(DATA)),
    ("-512", len(DATA) - 512, len(DATA)),
    (f"1000-{len(DATA) + 5}", 1000, len(DATA))])
def test_a_range_of_raw_bytes(manager, client, disk, spec, begin, end):
    reply = manager.files.download(ready(client, disk), forV2Creation="true",
                                   headers={"Range": f"bytes={spec}"})
    assert reply.status == 206, f"{reply.status}: {reply.text[:200]}"
    assert reply.body == DATA[begin:end]
    assert reply.headers["content-range"] == f"bytes {begin}-{end - 1}/{len(DATA)}"
    assert reply.headers["content-length"] == str(end - begin)


def test_a_range_that_is_not_there(manager, client, disk):
    path = ready(client, disk)
    reply = manager.files.download(path, forV2Creation="true",
                                   headers={"Range": f"bytes={len(DATA)}-"})
    assert reply.status == 416
    assert sending(manager, path) == 0


def test_holes_are_zeros(manager, client, disk):
    folder = disk.image_dir("sparse", UUID)
    folder.mkdir(parents=True)
    image = images.sparse_raw(folder / "backing", 16 * MIB, (0, 9 * MIB))
    client.fetch("sparse", UUID)
    client.wait("sparse", UUID, "ready")
    path = image_path("sparse", UUID)
    assert gzip.decompress(manager.files.download(path).body) == image.data
    assert manager.files.download(path, forV2Creation="true").body == image.data


def test_what_is_not_there_or_not_ready(manager, client, disk):
    path = ready(client, disk)
    manager.files.download(image_path("other", UUID)).bad(status=404)
    assert manager.files.download(image_path("other", UUID),
                                  method="HEAD").status == 404
    client.fetch("missing", UUID, size=512)
    client.wait("missing", UUID, "failed")
    for query in ({}, {"forV2Creation": "true"}):
        manager.files.download(image_path("missing", UUID), **query).bad("failed")
    assert manager.files.download(path).status == 200


def test_prepare_download_names_it(manager, client, disk):
    ready(client, disk)
    answer = client.prepare_download("a", UUID)
    assert answer.address == manager.sync_address
    target = manager.files.target(answer.src_file_path, "/download")
    reply = request(answer.address, "GET", target, deadline=60).ok()
    assert gzip.decompress(reply.body) == DATA


@pytest.mark.parametrize("query", [{}, {"forV2Creation": "true"}],
                         ids=["packed", "raw"])
def test_a_reader_that_goes_away_is_noticed(manager, client, disk, query):
    path = ready(client, disk, data=images.random_bytes(BIG, 3))
    target = manager.files.target(path, "/download", **query)
    readers = [Reader(manager.sync_address, target) for _ in range(3)]
    assert sending(manager, path) == 3
    assert client.get("a", UUID).status.sending_reference == 3
    for left in (2, 1, 0):
        readers[left].go_away()
        wait_until(lambda: sending(manager, path) == left,
                   f"{left} readers left", 10)
    assert client.get("a", UUID).status.sending_reference == 0


def test_stalled_readers_hold_up_nobody(manager, client, disk, receiver):
    data = images.random_bytes(BIG, 3)
    path = ready(client, disk, data=data)
    target = manager.files.target(path, "/download")
    readers = [Reader(manager.sync_address, target) for _ in range(5)]
    assert sending(manager, path) == 5
    assert gzip.decompress(manager.files.download(path).body) == data
    to = receiver()
    client.send("a", UUID, to.address)
    to.wait_closed()
    assert images.file_sha512(to.path) == images.sha512(data)
    for reader in readers:
        reader.go_away()


def test_delete_ends_a_download(manager, client, disk):
    path = ready(client, disk, data=images.random_bytes(BIG, 3))
    reader = Reader(manager.sync_address, manager.files.target(path, "/download"))
    client.delete("a", UUID)
    assert not disk.image_dir("a", UUID).exists()
    reader.go_away()
    manager.files.download(path).bad(status=404)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("query", [{}, {"forV2Creation": "true"}],
                         ids=["packed", "raw"])
def test_the_memory_is_bounded(manager, client, disk, query):
    folder = disk.image_dir("big", UUID)
    folder.mkdir(parents=True)
    backing, size = folder / "backing", 1024 * MIB
    with open(backing, "wb") as file:
        for at in range(0, size, 128 * MIB):
            file.seek(at)
            file.write(images.random_bytes(8 * MIB, at + 1))
        file.truncate(size)
    digest = images.file_sha512(backing)
    (folder / "backing.cfg").write_text(config_of(
        backing, image_path("big", UUID), UUID, digest))
    client.fetch("big", UUID)
    client.wait("big", UUID, "ready")
    target = manager.files.target(image_path("big", UUID), "/download", **query)
    received = unpacked_size = 0
    unpack = zlib.decompressobj(31)
    with PeakMemory(manager.pid) as memory:
        wait_until(lambda: memory.peak, "a first look")
        before = memory.peak
        connection = http.client.HTTPConnection(*manager.sync_address.split(":"),
                                                timeout=scaled(60))
        connection.request("GET", target)
        response = connection.getresponse()
        assert response.status == 200
        while piece := response.read(256 * KIB):
            received += len(piece)
            unpacked_size += len(piece if query else unpack.decompress(piece))
        connection.close()
    assert unpacked_size == size and (query or received < size // 2)
    # (A sanitizer keeps what was freed for a while.)
    assert memory.peak - before < 48 * KIB * (8 if SLOWDOWN > 1 else 1), \
        f"{before} KiB, then {memory.peak}"
    assert os.stat(backing).st_blocks * 512 < size // 4
