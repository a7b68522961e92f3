"""A disk that goes away, and comes back."""

import threading

import grpc
import pytest

from lib import images
from lib.client import copy_of, refused
from lib.deadline import wait_until
from lib.images import MIB
from lib.processes import open_files
from lib.servers import Content

DATA = images.random_bytes(2 * MIB)


@pytest.fixture
def world(start_daemon, disks, origin):
    away, stays = disks.loop("away"), disks.directory("stays")
    daemon = start_daemon([away, stays])
    daemon.client.ensure("a", origin.serve("/a", Content(DATA)))
    before = daemon.client.wait_ready("a")
    return daemon, away, stays, before


def test_unmounted_and_mounted_again(world, origin):
    daemon, away, stays, before = world
    client = daemon.client
    away.unmount()
    status = client.wait_disk(away, "missing")
    assert "longhorn-disk.cfg" in status.message and "mounted" in status.message
    assert status.uuid == away.uuid, "what it was is still known"
    seen = client.wait_copy("a", away, "unknown")
    assert seen.message
    image = client.get("a")
    assert image.state == "unknown"
    assert copy_of(image, stays).state == "ready"
    assert client.disk(stays).state == "ready"
    # Nothing is written into the empty mount point.
    assert list(away.mountpoint.iterdir()) == []
    # Its files are let go, so that the device can be taken away.
    wait_until(lambda: not [f for f in open_files(daemon.pid) if str(away) in f],
               lambda: f"files closed: {open_files(daemon.pid)}")
    # New images get ready where they can.
    client.ensure("b", origin.serve("/b", Content(DATA)))
    client.wait_copy("b", stays, "ready")
    assert list(away.mountpoint.iterdir()) == []

    away.mount()
    client.wait_disk(away, "ready")
    after = client.wait_ready("a")
    assert copy_of(after, away).verified_at == copy_of(before, away).verified_at
    client.wait_ready("b")
    assert (origin.count("/a"), origin.count("/b")) == (1, 1)


def test_missing_at_the_start(start_daemon, disks, origin):
    away, stays = disks.loop("away"), disks.directory("stays")
    daemon = start_daemon([away, stays])
    daemon.client.ensure("a", origin.serve("/a", Content(DATA)))
    daemon.client.ensure("only", origin.serve("/only", Content(DATA)), [away])
    daemon.client.wait_ready("a")
    daemon.client.wait_ready("only")
    daemon.stop()
    away.unmount()
    daemon.start()
    client = daemon.client
    assert client.disk(away).state == "missing"
    assert client.disk(stays).state == "ready"
    assert copy_of(client.wait_copy("a", stays, "ready") and client.get("a"),
                   stays).state == "ready"
    away.mount()
    client.wait_disk(away, "ready")
    client.wait_ready("a")
    client.wait_ready("only")
    assert (origin.count("/a"), origin.count("/only")) == (1, 1)


def test_in_mid_download(start_daemon, disks, origin):
    away, stays = disks.loop("away"), disks.directory("stays")
    gate = threading.Event()
    data = images.random_bytes(8 * MIB)
    client = start_daemon([away, stays]).client
    client.ensure("a", origin.serve("/a", Content(data, gate=gate,
                                                  gate_after=4 * MIB)), [away])
    client.wait_copy("a", away, "in-progress")
    away.unmount()
    client.wait_disk(away, "missing")
    gate.set()
    seen = client.wait_image("a", lambda i: copy_of(i, away).state in (
        "unknown", "pending", "failed"), "stopped")
    assert copy_of(seen, away).message
    assert list(away.mountpoint.iterdir()) == []
    away.mount()
    client.wait_disk(away, "ready")
    client.wait_ready("a")


def test_what_is_wanted_there_is_refused_or_waits(world):
    """An image for a missing disk only."""
    daemon, away, stays, _ = world
    away.unmount()
    daemon.client.wait_disk(away, "missing")
    with refused(grpc.StatusCode.UNAVAILABLE, str(away)):
        daemon.client.ensure("b", "http://127.0.0.1:9/b", [away])
    assert [i.spec.name for i in daemon.client.list_all()] == ["a"]


def test_remove_while_a_disk_is_missing(world):
    """What cannot be deleted is not forgotten silently."""
    daemon, away, stays, _ = world
    client = daemon.client
    away.unmount()
    client.wait_disk(away, "missing")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, away.uuid, "force"):
        client.remove("a")
    assert client.get("a")
    away.mount()
    client.wait_disk(away, "ready")
    client.wait_ready("a")
    client.remove("a")
    assert away.image_files() == [] == stays.image_files()


def test_forced_remove_while_a_disk_is_missing(world):
    """The copy that cannot be deleted now goes when the disk is back."""
    daemon, away, stays, _ = world
    client = daemon.client
    away.unmount()
    client.wait_disk(away, "missing")
    client.remove("a", force=True)
    assert stays.image_files() == []
    away.mount()
    client.wait_disk(away, "ready")
    wait_until(lambda: away.image_files() == [],
               lambda: f"its files gone: {away.image_files()}")
    assert not client.list_all()
    daemon.restart()
    assert not daemon.client.list_all()


def test_the_directory_is_gone(start_daemon, disks, origin):
    """A disk that is a plain directory, renamed away and back."""
    away, stays = disks.directory("away"), disks.directory("stays")
    client = start_daemon([away, stays]).client
    client.ensure("a", origin.serve("/a", Content(DATA)))
    client.wait_ready("a")
    elsewhere = away.path.with_name("elsewhere")
    away.path.rename(elsewhere)
    client.wait_disk(away, "missing")
    client.wait_copy("a", away, "unknown")
    assert not away.path.exists(), "it was made again"
    elsewhere.rename(away.path)
    client.wait_disk(away, "ready")
    client.wait_ready("a")
    assert origin.count("/a") == 1
