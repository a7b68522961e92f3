"""A disk that becomes read-only: clear state, others unaffected, recovery."""

import threading

import grpc
import pytest

from lib import images
from lib.client import copy_of
from lib.images import MIB
from lib.servers import Content

DATA = images.random_bytes(2 * MIB)


def test_read_only_at_the_start(start_daemon, disks, origin):
    bad, good = disks.loop("bad"), disks.directory("good")
    assert bad.remount("ro")
    client = start_daemon([bad, good]).client
    status = client.disk(bad)
    assert status.state == "read-only" and "read-only" in status.message
    client.ensure("a", origin.serve("/a", Content(DATA)))
    client.wait_copy("a", good, "ready")
    waiting = copy_of(client.get("a"), bad)
    assert waiting.state in ("pending", "unknown") and waiting.message
    assert bad.remount("rw")
    client.wait_disk(bad, "ready")
    client.wait_ready("a")
    assert origin.count("/a") == 1


def ready_on_both(start_daemon, disks, origin):
    bad, good = disks.loop("bad"), disks.directory("good")
    daemon = start_daemon([bad, good])
    daemon.client.ensure("a", origin.serve("/a", Content(DATA)))
    return daemon, bad, good, daemon.client.wait_ready("a")


def test_the_kernel_makes_it_read_only(start_daemon, disks, origin):
    """As after an I/O error, whoever has files open."""
    daemon, bad, good, before = ready_on_both(start_daemon, disks, origin)
    client = daemon.client
    bad.fail_read_only()
    status = client.wait_disk(bad, "read-only")
    assert "read-only" in status.message
    seen = client.wait_copy("a", bad, "unknown")
    assert "read-only" in seen.message
    assert copy_of(client.get("a"), good).state == "ready"
    assert client.disk(good).state == "ready"
    # New work goes on where it can.
    client.ensure("b", origin.serve("/b", Content(DATA)))
    client.wait_copy("b", good, "ready")
    # Mended by unmounting, checking, mounting: nobody holds it.
    bad.repair()
    client.wait_disk(bad, "ready")
    after = client.wait_ready("a")
    assert copy_of(after, bad).verified_at == copy_of(before, bad).verified_at
    client.wait_ready("b")
    assert (origin.count("/a"), origin.count("/b")) == (1, 1)


def test_an_operator_remounts_it(start_daemon, disks, origin):
    """No file of an idle disk is open for writing: remounting works."""
    daemon, bad, good, before = ready_on_both(start_daemon, disks, origin)
    client = daemon.client
    assert bad.remount("ro", check=False), "busy: the daemon has files open for writing"
    client.wait_disk(bad, "read-only")
    client.wait_copy("a", bad, "unknown")
    assert copy_of(client.get("a"), good).state == "ready"
    assert bad.remount("rw")
    client.wait_disk(bad, "ready")
    after = client.wait_ready("a")
    assert copy_of(after, bad).verified_at == copy_of(before, bad).verified_at


def test_in_mid_download(start_daemon, disks, origin):
    bad, good = disks.loop("bad"), disks.directory("good")
    gate = threading.Event()
    data = images.random_bytes(8 * MIB)
    client = start_daemon([bad, good]).client
    client.ensure("a", origin.serve("/a", Content(data, gate=gate,
                                                  gate_after=4 * MIB)), [bad])
    client.ensure("b", origin.serve("/b", Content(data, gate=gate,
                                                  gate_after=4 * MIB)), [good])
    client.wait_copy("a", bad, "in-progress")
    client.wait_copy("b", good, "in-progress")
    bad.fail_read_only()
    gate.set()
    client.wait_copy("b", good, "ready")
    client.wait_disk(bad, "read-only")
    stuck = client.wait_image("a", lambda i: copy_of(i, bad).state in (
        "failed", "unknown", "pending"), "stopped")
    assert "read-only" in copy_of(stuck, bad).message.lower()
    bad.repair()
    client.wait_disk(bad, "ready")
    client.wait_ready("a")


def test_removing_what_lies_there(start_daemon, disks, origin):
    """Not possible now, and nothing is forgotten."""
    daemon, bad, good, _ = ready_on_both(start_daemon, disks, origin)
    client = daemon.client
    bad.fail_read_only()
    client.wait_disk(bad, "read-only")
    try:
        client.remove("a")
        pytest.fail("removed from a read-only disk")
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.UNAVAILABLE,
                                grpc.StatusCode.FAILED_PRECONDITION)
        assert str(bad) in error.details() or "read-only" in error.details()
    bad.repair()
    client.wait_disk(bad, "ready")
    client.remove("a")
    assert bad.image_files() == [] == good.image_files()
