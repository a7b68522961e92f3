"""Verify reads everything again; a copy that differs is failed, and kept."""

import os

import grpc
import pytest

from lib import images
from lib.client import EVENT, copy_of, pb, refused
from lib.servers import Content

SIZE = 8 * images.MIB


@pytest.fixture
def image(files):
    return images.raw(files / "a.raw", SIZE)


@pytest.fixture
def ready(start_daemon, disks, origin, image):
    both = [disks.directory("one"), disks.directory("two")]
    # Only Verify itself shall find anything here.
    daemon = start_daemon(both, {"disks": {"check_interval": "1h"}})
    uuid = daemon.client.ensure("a", origin.serve("/a", Content(image.data)),
                                sha512=image.sha512).image.spec.uuid
    daemon.client.wait_ready("a")
    return daemon, both, uuid


def flip(file, offset):
    """Changes one bit and keeps size and times."""
    stat = os.stat(file)
    with open(file, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)
        f.seek(offset)
        f.write(bytes([byte[0] ^ 1]))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert os.stat(file).st_mtime_ns == stat.st_mtime_ns


def test_a_good_image(ready, image):
    daemon, both, uuid = ready
    before = daemon.client.get("a")
    messages = daemon.client.verify("a")
    last = messages[-1]
    assert last.done and last.ok, last
    assert [m.done for m in messages[:-1]] == [False] * (len(messages) - 1)
    assert last.verified_bytes == last.total_bytes == 2 * SIZE
    progress = [m.verified_bytes for m in messages]
    assert progress == sorted(progress)
    assert last.image.spec.name == "a" and last.image.state == "ready"
    after = daemon.client.get("a")
    for disk in both:
        old, new = copy_of(before, disk), copy_of(after, disk)
        assert old.verification == "" and new.verification == "ok"
        assert new.verified_at.ToNanoseconds() > old.verified_at.ToNanoseconds()
        assert new.state == "ready" and new.origin == old.origin
    daemon.restart()
    again = daemon.client.wait_ready("a")
    for disk in both:
        assert copy_of(again, disk).verified_at == copy_of(after, disk).verified_at


@pytest.mark.parametrize("offset", [0, SIZE // 2 + 12345, SIZE - 1])
def test_a_flipped_bit(ready, image, offset):
    daemon, (one, two), uuid = ready
    file = two.ready_file("a", uuid)
    flip(file, offset)
    last = daemon.client.verify("a")[-1]
    assert last.done and not last.ok
    assert str(file) in last.message or str(two) in last.message
    seen = daemon.client.get("a")
    good, bad = copy_of(seen, one), copy_of(seen, two)
    assert (good.state, good.verification) == ("ready", "ok")
    assert (bad.state, bad.verification) == ("failed", "failed")
    assert bad.message and seen.state == "failed"
    assert file.stat().st_size == SIZE, "the file is kept"
    # Also after a restart it is not taken for good.
    daemon.restart()
    seen = daemon.client.wait_copy("a", two, "failed")
    assert file.stat().st_size == SIZE
    assert copy_of(daemon.client.get("a"), one).state == "ready"


def test_only_the_named_disk(ready):
    daemon, (one, two), uuid = ready
    flip(two.ready_file("a", uuid), 4711)
    last = daemon.client.verify("a", disks=[one])[-1]
    assert last.done and last.ok and last.total_bytes == SIZE
    seen = daemon.client.get("a")
    assert copy_of(seen, one).verification == "ok"
    assert copy_of(seen, two).verification == ""
    with refused(grpc.StatusCode.NOT_FOUND):
        daemon.client.verify("a", disks=["/no/such/disk"])


def test_a_copy_that_is_being_read_again_anyway(start_daemon, disks, origin, image):
    """Found modified a moment before: "ok" is about that copy, too."""
    one, two = disks.directory("one"), disks.directory("two")
    client = start_daemon([one, two], {"limits": {
        "background_read_rate": 4 * images.MIB}}).client
    uuid = client.ensure("a", origin.serve("/a", Content(image.data))).image.spec.uuid
    client.wait_ready("a")
    flip(two.ready_file("a", uuid), SIZE - 1)
    client.wait_copy("a", two, "unknown")
    last = client.verify("a")[-1]
    assert last.done and not last.ok, [c.state for c in last.image.copies]


def test_a_file_that_was_cut(ready):
    daemon, (one, two), uuid = ready
    file = two.ready_file("a", uuid)
    stat = os.stat(file)
    os.truncate(file, SIZE - 512)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    last = daemon.client.verify("a")[-1]
    assert last.done and not last.ok
    assert copy_of(daemon.client.get("a"), two).state == "failed"
    assert file.stat().st_size == SIZE - 512


def test_nothing_to_verify(start_daemon, origin, disk):
    daemon = start_daemon([disk])
    daemon.client.ensure("a", origin.url("/nothing"))
    daemon.client.wait_state("a", "failed")
    with refused(grpc.StatusCode.FAILED_PRECONDITION):
        daemon.client.verify("a")


def test_ending_the_call_does_not_end_it(ready):
    daemon, both, uuid = ready
    stream = daemon.client.images.Verify(pb.VerifyRequest(name="a"))
    next(stream)
    stream.cancel()
    daemon.client.wait_image(
        "a", lambda i: [c.verification for c in i.copies] == ["ok", "ok"],
        "verified on both disks")


def test_a_failed_copy_can_be_brought_back(ready, origin, image):
    """Remove and Ensure: the way the messages tell."""
    daemon, (one, two), uuid = ready
    flip(two.ready_file("a", uuid), 99)
    assert not daemon.client.verify("a")[-1].ok
    daemon.client.remove("a")
    daemon.client.ensure("a", origin.url("/a"), uuid=uuid, sha512=image.sha512)
    daemon.client.wait_ready("a")
    assert daemon.client.verify("a")[-1].ok


def test_progress(start_daemon, disks, files):
    """Of a file that takes a while: in the stream, and in Watch."""
    big = images.raw(files / "big.raw", 128 * images.MIB)
    both = [disks.directory("one"), disks.directory("two")]
    client = start_daemon(both, {"sources": {"allow_file": True}}).client
    client.ensure("a", f"file://{big.path}")
    client.wait_ready("a")
    watch = client.watch()
    watch.wait_type(EVENT.TYPE_SNAPSHOT_END)
    messages = client.verify("a")
    between = [m.verified_bytes for m in messages
               if 0 < m.verified_bytes < m.total_bytes]
    assert between == sorted(between) and between, messages
    assert all(m.total_bytes == 2 * big.size for m in messages)
    watch.wait(lambda events: [c.verification for c in events[-1].image.copies]
               == ["ok", "ok"], "both verified")
    shown = [c.verification_progress for e in watch.events
             if e.type == EVENT.TYPE_IMAGE for c in e.image.copies
             if c.verification == "running"]
    assert [p for p in shown if 0 < p < 100], shown
    # It stays ready all the while.
    assert {e.image.state for e in watch.events if e.type == EVENT.TYPE_IMAGE} == {"ready"}
