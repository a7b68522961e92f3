"""What was Ensured is wanted until it is Removed, across restarts."""

import threading

import grpc
import pytest

from lib import images
from lib.client import refused
from lib.images import MIB
from lib.servers import Answer, Content

DATA = images.random_bytes(8 * MIB)


def test_specs_survive(start_daemon, disks, origin):
    one, two = disks.directory("one"), disks.directory("two")
    daemon = start_daemon([one, two])
    small = DATA[:MIB]
    url = origin.serve("/a", Content(small))
    daemon.client.ensure("plain", url)
    daemon.client.ensure("full", url, [two], uuid="u1", sha512=images.sha512(small),
                         sha256=images.sha256(small), size=len(small))
    daemon.client.ensure("query", url + "?token=x&y=%20z")
    for name in ("plain", "full", "query"):
        daemon.client.wait_ready(name)
    before = {i.spec.name: i.spec for i in daemon.client.list_all()}
    for kill in (False, True):
        daemon.restart(kill=kill)
        assert {i.spec.name: i.spec for i in daemon.client.list_all()} == before
    # Idempotence holds across restarts, too.
    assert not daemon.client.ensure("plain", url).created


def test_an_acknowledged_ensure_survives_kill9(start_daemon, disk, origin):
    """Killed right after the answer, before any work."""
    daemon = start_daemon([disk])
    gate = threading.Event()
    url = origin.serve("/a", Content(DATA, gate=gate))
    for number in range(5):
        daemon.client.ensure(f"i{number}", url, uuid="u")
    daemon.kill9()
    gate.set()
    daemon.start()
    assert len(daemon.client.list_all()) == 5
    for number in range(5):
        daemon.client.wait_ready(f"i{number}")


def test_interrupted_work_goes_on(start_daemon, disk, origin):
    """SIGTERM in mid-download: resumable, and resumed by itself."""
    gate = threading.Event()
    url = origin.serve("/a", Content(DATA, gate=gate, gate_after=5 * MIB),
                       Content(DATA))
    daemon = start_daemon([disk])
    daemon.client.ensure("a", url, sha512=images.sha512(DATA))
    daemon.client.wait_image(
        "a", lambda i: i.copies[0].processed_bytes >= 4 * MIB, "4 MiB there")
    daemon.stop()
    assert disk.temp_files(), "the bytes are kept"
    daemon.start()
    ready = daemon.client.wait_ready("a")
    assert ready.copies[0].origin == "resumed download"
    assert ready.current_sha512 == images.sha512(DATA)
    second = origin.requests_of("/a")[1]
    assert second.range_begin >= 4 * MIB
    assert second.body_sent == len(DATA) - second.range_begin
    assert not disk.temp_files()


def test_removed_means_removed(start_daemon, disk, origin):
    daemon = start_daemon([disk])
    daemon.client.ensure("a", origin.serve("/a", Content(DATA)))
    daemon.client.wait_ready("a")
    daemon.client.remove("a")
    daemon.restart(kill=True)
    with refused(grpc.StatusCode.NOT_FOUND):
        daemon.client.get("a")


def test_a_wait_survives_a_restart(start_daemon, disk, origin):
    """Failed for a while: tried again after the restart, not before the
    window would have ended - or at once, but then it gets ready."""
    daemon = start_daemon([disk], {"sources": {"retry_tries": 1}})
    daemon.client.ensure("a", origin.serve("/a", Answer(503), Content(DATA)))
    daemon.client.wait_state("a", "failed")
    daemon.restart()
    daemon.client.wait_ready("a")
    assert origin.count("/a") == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"\0" * 100, b'{"version": 99}'],
                         ids=["empty", "cut", "zeros", "other"])
def test_a_damaged_record_stops_the_disk_with_a_message(start_daemon, disks, origin,
                                                        damage):
    """What was wanted is never guessed; the daemon and other disks go on."""
    bad, good = disks.directory("bad"), disks.directory("good")
    daemon = start_daemon([bad, good])
    daemon.client.ensure("a", origin.serve("/a", Content(DATA[:MIB])), [bad])
    daemon.client.ensure("b", origin.serve("/b", Content(DATA[:MIB])), [good])
    daemon.client.wait_ready("a")
    daemon.client.wait_ready("b")
    daemon.stop()
    record = next((bad.path / ".bim" / "desired").iterdir())
    saved = record.read_bytes()
    record.write_bytes(damage)
    daemon.start()
    status = daemon.client.disk(bad)
    assert status.state == "failed"
    assert record.name in status.message or "desired" in status.message
    assert daemon.client.disk(good).state == "ready"
    daemon.client.wait_ready("b")
    assert record.read_bytes() == damage
    record.write_bytes(saved)
    daemon.client.wait_disk(bad, "ready")
    daemon.client.wait_ready("a")
    assert origin.count("/a") == 1


@pytest.mark.parametrize("first", ["one", "two"])
def test_the_disk_that_has_bytes_goes_on(start_daemon, disks, origin, first):
    """On several disks: after a restart the download continues where its bytes
    are, whichever disk is taken first."""
    made = {name: disks.directory(name, uuid="00000000-x" if name == first
                                  else "ffffffff-x") for name in ("one", "two")}
    gate = threading.Event()
    url = origin.serve("/a", Content(DATA, gate=gate, gate_after=5 * MIB),
                       Content(DATA))
    daemon = start_daemon(made.values())
    daemon.client.ensure("a", url)
    daemon.client.wait_image(
        "a", lambda i: max(c.processed_bytes for c in i.copies) >= 4 * MIB,
        "4 MiB there")
    daemon.stop()
    daemon.start()
    daemon.client.wait_ready("a")
    second = origin.requests_of("/a")[1]
    assert second.range_begin and second.range_begin >= 4 * MIB
    assert second.body_sent == len(DATA) - second.range_begin
    for disk in made.values():
        assert not disk.temp_files()
