"""Fetch from a data source: its file becomes the image by a rename, once."""

import time

import grpc
import pytest

from lib import images
from lib.client import refused
from lib.deadline import SLOWDOWN
from lib.disks import stamp
from lib.images import KIB, MIB
from lib.longhorn import leave_image
from lib.longhorn_daemon import image_path
from lib.processes import proc_io
from lib.ports import free_port
from lib.servers import Answer

NAME, UUID = "a", "6f7a"
SIZE = 64 * MIB
DATA = images.random_bytes(SIZE, 5)
SUM = images.sha512(DATA)
CODE = grpc.StatusCode


@pytest.fixture
def manager(start_manager, disk):
    return start_manager(disk)


@pytest.fixture
def client(manager, longhorn):
    return longhorn(manager)


def taken(disk, before, source_path):
    """The very file is the image now, unread and unwritten."""
    inode, size, mtime, _, _ = stamp(disk.ready_file(NAME, UUID))
    assert (inode, size, mtime) == before[:3]
    assert not source_path.exists()
    assert [p.name for p in (disk.path / "tmp").iterdir()
            if p.suffix != ".lock"] == []


@pytest.mark.parametrize("checksum", ["", SUM], ids=["any", "expected"])
def test_from_a_foreign_data_source(manager, client, disk, foreign_source,
                                    checksum):
    source = foreign_source(disk, NAME, UUID, DATA)
    before, read = stamp(source.path), proc_io(manager.pid)["rchar"]
    began = time.monotonic()
    image = client.fetch(NAME, UUID, size=SIZE, checksum=checksum,
                         address=source.address)
    assert image.status.state in ("pending", "starting", "in-progress", "ready")
    image = client.wait(NAME, UUID, "ready")
    assert time.monotonic() - began < 1 * SLOWDOWN
    assert proc_io(manager.pid)["rchar"] - read < 4 * MIB
    assert image.status.checksum == SUM and image.spec.checksum == checksum
    assert image.spec.size == image.spec.virtualSize == SIZE
    assert image.status.progress == 100
    assert source.transfers >= 1 and source.unexpected == []
    taken(disk, before, source.path)
    cfg = disk.cfg(NAME, UUID)
    assert cfg["currentChecksum"] == SUM and cfg["uuid"] == UUID
    assert cfg["name"] in (image_path(NAME, UUID), str(disk.ready_file(NAME, UUID)))
    info = manager.files.get(image_path(NAME, UUID)).json()
    assert info["modificationTime"] == cfg["modificationTime"]


def test_it_stays_after_a_restart(manager, client, disk, foreign_source, longhorn):
    source = foreign_source(disk, NAME, UUID, DATA)
    client.fetch(NAME, UUID, size=SIZE, address=source.address)
    client.wait(NAME, UUID, "ready")
    before = stamp(disk.ready_file(NAME, UUID))
    manager.restart(kill=True)
    image = longhorn(manager).wait(NAME, UUID, "ready")
    assert image.status.checksum == SUM
    assert stamp(disk.ready_file(NAME, UUID)) == before
    assert proc_io(manager.pid)["rchar"] < 8 * MIB


def test_from_a_data_source_of_ours(manager, client, disk, start_source, nginx,
                                    files):
    image = images.raw(files / "image", SIZE)
    source = start_source(disk, NAME, UUID, "download", {"url": nginx.url("image")})
    source.wait("ready-for-transfer")
    before, read = stamp(source.path), proc_io(manager.pid)["rchar"]
    began = time.monotonic()
    client.fetch(NAME, UUID, size=SIZE, checksum=image.sha512,
                 address=source.address)
    ready = client.wait(NAME, UUID, "ready")
    assert time.monotonic() - began < 1 * SLOWDOWN
    assert proc_io(manager.pid)["rchar"] - read < 4 * MIB
    assert ready.status.checksum == image.sha512
    taken(disk, before, source.path)
    assert source.info()["state"] == "ready"
    assert len(nginx.accesses("image")) == len(nginx.wait_accesses("image", 1))
    # It ends, and takes nothing with it.
    source.stop()
    assert stamp(disk.ready_file(NAME, UUID))[:3] == before[:3]
    assert client.get(NAME, UUID).status.state == "ready"


def test_without_a_cfg_it_is_read(client, disk, foreign_source):
    source = foreign_source(disk, NAME, UUID, DATA, cfg=False)
    before = stamp(source.path)
    client.fetch(NAME, UUID, size=SIZE, checksum=SUM, address=source.address)
    assert client.wait(NAME, UUID, "ready").status.checksum == SUM
    taken(disk, before, source.path)


def test_a_cfg_that_is_not_of_this_file_is_not_trusted(client, disk,
                                                       foreign_source):
    source = foreign_source(disk, NAME, UUID, DATA)
    with open(source.path, "r+b") as file:
        file.seek(SIZE // 2)
        file.write(b"changed since")
    client.fetch(NAME, UUID, size=SIZE, address=source.address)
    image = client.wait(NAME, UUID, "ready")
    assert image.status.checksum == images.file_sha512(disk.ready_file(NAME, UUID))
    assert image.status.checksum != SUM


WRONG = {
    "uuid": {"uuid": "another"},
    "no uuid": {"uuid": ""},
    "disk": {"diskUUID": "11111111-2222-3333-4444-555555555555"},
    "no disk": {"diskUUID": None},
    "path of another": {"filePath": f"/data/tmp/b-{UUID}"},
    "path elsewhere": {"filePath": "/etc/passwd"},
    "path with dots": {"filePath": f"/data/tmp/../tmp/{NAME}-{UUID}"},
    "path of an image": {"filePath": image_path(NAME, UUID)},
    "no path": {"filePath": None},
    "pending": {"state": "pending"}, "starting": {"state": "starting"},
    "in-progress": {"state": "in-progress"}, "failed": {"state": "failed"},
    "unknown": {"state": "unknown"}, "no state": {"state": None},
    "a state that is a number": {"state": 5},
}


@pytest.mark.parametrize("kind", list(WRONG))
def test_what_is_no_file_of_this_disk(client, disk, foreign_source, kind):
    source = foreign_source(disk, NAME, UUID, DATA[:MIB], **WRONG[kind])
    before = stamp(source.path)
    with refused(CODE.FAILED_PRECONDITION):
        client.fetch(NAME, UUID, size=MIB, address=source.address)
    assert source.untouched(before)
    assert source.transfers == 0
    assert client.list() == {} and not disk.image_dir(NAME, UUID).exists()
    # Put right, it is taken at once.
    right = foreign_source(disk, NAME, UUID, DATA[:MIB])
    client.fetch(NAME, UUID, size=MIB, address=right.address)
    client.wait(NAME, UUID, "ready")


def test_its_state_is_told(client, disk, foreign_source):
    source = foreign_source(disk, NAME, UUID, DATA[:MIB], state="in-progress")
    with refused(CODE.FAILED_PRECONDITION, "in-progress"):
        client.fetch(NAME, UUID, address=source.address)


def test_one_that_was_transferred_already(client, disk, foreign_source):
    """The answer to the first transfer may have been lost."""
    source = foreign_source(disk, NAME, UUID, DATA[:MIB], state="ready")
    client.fetch(NAME, UUID, size=MIB, address=source.address)
    client.wait(NAME, UUID, "ready")


@pytest.mark.parametrize("answer", ["nobody", "no json", "huge"])
def test_what_is_no_data_source(client, disk, foreign_source, origin, answer):
    source = foreign_source(disk, NAME, UUID, DATA[:MIB])
    before = stamp(source.path)
    origin.serve("/v1/file", {
        "no json": Answer(200, body=b"<html>"),
        "huge": Answer(200, body=b'{"name":"' + b"a" * (32 * MIB) + b'"}'),
    }.get(answer, Answer(404)))
    port = free_port() if answer == "nobody" else origin.port
    try:
        client.fetch(NAME, UUID, size=MIB, address=f"127.0.0.1:{port}")
        assert client.wait(NAME, UUID, "failed").status.error_msg
    except grpc.RpcError as error:
        assert error.code() in (CODE.FAILED_PRECONDITION, CODE.UNAVAILABLE)
        assert client.list() == {}
    assert source.untouched(before)


def test_reuse_comes_first(client, disk, foreign_source):
    file = leave_image(disk.path, NAME, UUID, DATA[:MIB], images.sha512(DATA[:MIB]))
    before = stamp(file)
    source = foreign_source(disk, NAME, UUID, DATA[:MIB])
    source_before = stamp(source.path)
    client.fetch(NAME, UUID, size=MIB, address=source.address)
    client.wait(NAME, UUID, "ready")
    assert (source.gets, source.transfers) == (0, 0)
    assert stamp(file) == before and source.untouched(source_before)


@pytest.mark.parametrize("cfg", [True, False], ids=["its cfg", "reading it"])
@pytest.mark.parametrize("unfit", ["content", "size"])
def test_what_lies_there_is_not_it(client, disk, foreign_source, unfit, cfg):
    """It is proven wrong, goes, and the data source's file comes."""
    old = DATA[MIB:2 * MIB] if unfit == "content" else DATA[:MIB // 2]
    file = leave_image(disk.path, NAME, UUID, old, images.sha512(old))
    if not cfg:
        file.with_name("backing.cfg").unlink()
    source = foreign_source(disk, NAME, UUID, DATA[:MIB])
    checksum = images.sha512(DATA[:MIB])
    client.fetch(NAME, UUID, size=MIB, checksum=checksum, address=source.address)
    image = client.wait(NAME, UUID, "ready")
    assert image.status.checksum == checksum
    assert file.read_bytes() == DATA[:MIB]
    assert source.transfers == 1 and not source.path.exists()


@pytest.mark.parametrize("source_size", [MIB, MIB // 2])
def test_neither_is_it(client, disk, foreign_source, source_size):
    """The data source's file stays; what lay there was proven wrong."""
    file = leave_image(disk.path, NAME, UUID, DATA[MIB:2 * MIB],
                       images.sha512(DATA[MIB:2 * MIB]))
    source = foreign_source(disk, NAME, UUID, DATA[:source_size])
    client.fetch(NAME, UUID, size=MIB, checksum="1" * 128, address=source.address)
    image = client.wait(NAME, UUID, "failed")
    assert "left alone" in image.status.error_msg, image
    assert not file.exists()
    assert source.path.read_bytes() == DATA[:source_size]


def test_a_second_fetch(client, disk, foreign_source):
    source = foreign_source(disk, NAME, UUID, DATA[:MIB])
    client.fetch(NAME, UUID, size=MIB, address=source.address)
    with refused(CODE.ALREADY_EXISTS, "already exists"):
        client.fetch(NAME, UUID, size=MIB, address=source.address)
    client.wait(NAME, UUID, "ready")
    with refused(CODE.ALREADY_EXISTS, "already exists"):
        client.fetch(NAME, UUID, size=MIB, address=source.address)


@pytest.mark.parametrize("cfg", [True, False], ids=["by its cfg", "by reading"])
@pytest.mark.parametrize("wrong", [{"checksum": "0" * 128}, {"size": 2 * MIB}],
                         ids=["checksum", "size"])
def test_a_wrong_expectation_never_deletes_the_source(
        client, disk, foreign_source, cfg, wrong):
    source = foreign_source(disk, NAME, UUID, DATA[:MIB], cfg=cfg)
    inode = source.path.stat().st_ino
    try:
        client.fetch(NAME, UUID, address=source.address, **wrong)
        image = client.wait(NAME, UUID, "failed")
        assert image.status.error_msg
    except grpc.RpcError as error:
        assert error.code() == CODE.FAILED_PRECONDITION, error
        assert error.details()
    assert source.path.exists() and source.path.stat().st_ino == inode
    assert source.path.read_bytes() == DATA[:MIB]
    assert not disk.ready_file(NAME, UUID).exists()


def test_delete_takes_what_is_left_in_tmp(client, disk):
    folder = disk.path / "tmp"
    folder.mkdir()
    for name in (f"{NAME}-{UUID}.tmp", f"b-{UUID}.tmp"):
        (folder / name).write_bytes(bytes(64 * KIB))
    client.delete(NAME, UUID)
    assert [p.name for p in folder.iterdir()] == [f"b-{UUID}.tmp"]


def test_upload_then_fetch(client, disk, start_source):
    source = start_source(disk, NAME, UUID, "upload", {})
    with refused(CODE.FAILED_PRECONDITION, "pending"):
        client.fetch(NAME, UUID, address=source.address)
    source.upload(DATA[:MIB]).ok()
    source.wait("ready-for-transfer")
    client.fetch(NAME, UUID, size=MIB, address=source.address)
    image = client.wait(NAME, UUID, "ready")
    assert image.status.checksum == images.sha512(DATA[:MIB])
    assert disk.ready_file(NAME, UUID).stat().st_mode & 0o777 == 0o644
