"""A thousand connections that say nothing hold up nobody."""

import resource
import socket
import time
from contextlib import ExitStack

import pytest

from lib import images
from lib.deadline import SLOWDOWN
from lib.images import MIB
from lib.longhorn import leave_image
from lib.longhorn_daemon import image_path
from lib.processes import proc_status_kib, proc_text

COUNT = 1000
DATA = images.random_bytes(MIB, 5)
NAME, UUID = "a", "6f7a"


@pytest.fixture
def silent():
    """silent(port, first words) -> so many connections, closed afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, min(hard, 2 * COUNT + 256))
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    with ExitStack() as stack:
        def connect(port, words=b""):
            for _ in range(COUNT):
                sock = stack.enter_context(
                    socket.create_connection(("127.0.0.1", port), 20))
                if words:
                    sock.sendall(words)
        yield connect
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


WORDS = {"nothing": b"", "half a line": b"GET /v1/fi",
         "half a head": b"GET /v1/files HTTP/1.1\r\nHost: x\r\nX-Long: a",
         "half a body": b"POST /v1/files?action=upload&size=512 HTTP/1.1\r\n"
                        b"Host: x\r\nContent-Length: 1000000\r\n\r\nabc"}


@pytest.mark.parametrize("words", list(WORDS))
def test_the_sync_port(start_manager, disk, longhorn, silent, words):
    leave_image(disk.path, NAME, UUID, DATA, images.sha512(DATA))
    manager = start_manager(disk)
    client = longhorn(manager)
    client.fetch(NAME, UUID)
    client.wait(NAME, UUID, "ready")
    before = proc_status_kib(manager.pid, "RssAnon")
    silent(manager.sync_port, WORDS[words])
    for _ in range(3):
        began = time.monotonic()
        assert manager.files.get(image_path(NAME, UUID)).json()["state"] == "ready"
        # Those that are refused get 2 s each to be read, 256 at a time.
        assert time.monotonic() - began < (
            15 if words == "half a body" else 2) * SLOWDOWN
    reply = manager.files.download(image_path(NAME, UUID), forV2Creation="true")
    assert reply.ok().body == DATA
    assert client.get(NAME, UUID).status.state == "ready"
    assert int(proc_text(manager.pid, "status").split("Threads:")[1].split()[0]) < 200
    assert proc_status_kib(manager.pid, "RssAnon") - before < 128 * 1024


def test_the_port_of_a_data_source(start_source, disk, silent):
    source = start_source(disk, NAME, UUID, "upload", {})
    silent(source.port)
    silent(source.sync_port)
    began = time.monotonic()
    assert source.info()["state"] == "pending"
    assert time.monotonic() - began < 2 * SLOWDOWN
    source.upload(DATA).ok()
    source.wait("ready-for-transfer")


def test_a_receiving_port(start_manager, disk, longhorn, silent, foreign_manager,
                          files):
    image = images.raw(files / "image", 24 * MIB)
    sender = foreign_manager()
    sender.has(NAME, UUID, image.path, pause_after=2)
    manager = start_manager(disk)
    client = longhorn(manager)
    client.sync(NAME, UUID, sender.address, size=image.size)
    push = sender.wait_push()
    push.wait_paused()
    silent(int(push.to.rpartition(":")[2]))
    push.release()
    client.wait(NAME, UUID, "ready", deadline=60)
    assert images.file_sha512(disk.ready_file(NAME, UUID)) == image.sha512
