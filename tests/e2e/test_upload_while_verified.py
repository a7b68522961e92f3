"""An upload to a copy whose file was modified and is read again: refused for
now, whatever the request, and the copy gets ready once it is proven."""

import os

import pytest

from lib import images
from lib.client import copy_of
from lib.images import MIB
from test_upload import Uploads

SIZE = 4 * MIB
DATA = images.random_bytes(SIZE)
OTHER = images.random_bytes(SIZE, 2)


def refusals(upload, word):
    """All ways to bring bytes now. The daemon lives on."""
    for answer in (upload.put(OTHER), upload.part(0, MIB, OTHER),
                   upload.part(MIB, SIZE, OTHER), upload.patch(0, OTHER[:MIB]),
                   upload.patch(MIB, OTHER[MIB:]), upload.patch(SIZE, b"")):
        assert answer.status == 503 and word in answer.text, (
            answer.status, answer.text)
    head = upload.head()
    assert head.status == 503
    assert head.headers.get("upload-complete") != "?1", "nobody knows"
    assert upload.daemon.running
    assert upload.image().state == "unknown"


def assert_ready_again(upload, disk, before):
    upload.assert_ready(DATA)
    assert disk.ready_file("a", upload.uuid).stat().st_ino == before
    assert upload.head().headers["upload-complete"] == "?1"
    answer = upload.put(OTHER)
    assert answer.status == 409 and "ready" in answer.text


def touched(upload, disk):
    """Ready, and then its file is touched; its inode."""
    assert upload.put(DATA).status == 201
    upload.assert_ready(DATA)
    file = disk.ready_file("a", upload.uuid)
    os.utime(file)
    return file.stat().st_ino


def test_while_it_is_read(start_daemon, disk):
    """64 s long, but for the end of the limit."""
    daemon = start_daemon([disk], {"limits": {"background_read_rate": 65536}})
    upload = Uploads(daemon)
    inode = touched(upload, disk)
    daemon.client.wait_copy("a", disk, "unknown")
    refusals(upload, "worked on")
    daemon.client.set_limits(background_read_rate=0)
    assert_ready_again(upload, disk, inode)


def test_while_it_waits_to_be_read_again(start_daemon, disk):
    """A reading failed, the next one is in 5 s."""
    daemon = start_daemon([disk], env={"BIM_FAILPOINTS": "store.scan.read=error:5"})
    upload = Uploads(daemon)
    inode = touched(upload, disk)
    daemon.client.wait_image(
        "a", lambda i: "trying again" in copy_of(i, disk).message, "read in vain")
    refusals(upload, "is being verified")
    daemon.restart(env={})
    assert_ready_again(upload, disk, inode)


def test_while_it_waits_for_its_turn(start_daemon, disk, files):
    """Others are read before it."""
    daemon = start_daemon([disk], {"sources": {"allow_file": True},
                                   "limits": {"background_read_rate": 65536}})
    client = daemon.client
    (files / "big").write_bytes(DATA)
    uuids = {name: client.ensure(name, f"file://{files}/big").image.spec.uuid
             for name in ("b", "c")}
    for name, uuid in uuids.items():
        client.wait_ready(name)
        os.utime(disk.ready_file(name, uuid))
        client.wait_copy(name, disk, "unknown")
    upload = Uploads(daemon)
    inode = touched(upload, disk)
    client.wait_copy("a", disk, "unknown")
    refusals(upload, "is being verified")
    client.set_limits(background_read_rate=0)
    assert_ready_again(upload, disk, inode)


@pytest.mark.parametrize("kill", [False, True])
def test_a_restart_meanwhile(start_daemon, disk, kill):
    """It is read again after it, and nothing else takes its place."""
    daemon = start_daemon([disk], {"limits": {"background_read_rate": 65536}})
    upload = Uploads(daemon)
    inode = touched(upload, disk)
    daemon.client.wait_copy("a", disk, "unknown")
    daemon.restart(kill=kill)
    daemon.client.wait_copy("a", disk, "unknown")
    answer = upload.put(OTHER)
    assert answer.status == 503, answer.text
    daemon.client.set_limits(background_read_rate=0)
    assert_ready_again(upload, disk, inode)
