"""Truncated, empty and non-512 files; servers that lie about the length."""

import os

import pytest

from lib import images
from lib.images import KIB, MIB
from lib.servers import Content, Endless

DATA = images.random_bytes(2 * MIB)


@pytest.fixture
def client(start_daemon, disk):
    return start_daemon([disk], {"backoff": {"first": "1h", "max": "1h"},
                                 "sources": {"max_image_size": "8MiB"}}).client


def fails(client, url, *words, permanent=True, **spec):
    client.ensure("a", url, **spec)
    failed = client.wait_state("a", "failed")
    for word in words:
        assert str(word).lower() in failed.message.lower(), failed.message
    assert failed.copies[0].HasField("next_attempt") != permanent, failed.message
    assert not failed.copies[0].file_path or not os.path.exists(
        failed.copies[0].file_path)
    return failed


@pytest.mark.parametrize("size", [1, 511, 513, MIB + 1, MIB + 511])
def test_not_a_multiple_of_512(client, origin, disk, size):
    """Refused before the first byte is stored."""
    failed = fails(client, origin.serve("/a", Content(DATA[:size])), "512", size)
    assert origin.count("/a") == 1
    directory = disk.image_dir("a", failed.spec.uuid)
    assert not directory.exists() or not list(directory.iterdir())


def test_nothing_is_stored_before_the_size_is_judged(start_daemon, origin, disk,
                                                     scratch):
    """Seen by the failpoints of the ingest: none of its writes is reached."""
    trace = scratch / "trace"
    client = start_daemon([disk], env={"BIM_FAILPOINTS": f"*=trace:{trace}"}).client
    client.ensure("a", origin.serve("/a", Content(DATA[:MIB + 1])))
    client.wait_state("a", "failed")
    client.ensure("b", origin.serve("/b", Content(DATA)))
    client.wait_ready("b")
    reached = trace.read_text().split()
    assert reached.count("store.ingest.temp_made") == 1, reached


def test_not_a_multiple_of_512_without_length(client, origin, disk):
    fails(client, origin.serve("/a", Content(DATA[:MIB + 1], no_length=True)), "512")
    assert not disk.temp_files()


def test_empty(client, origin, disk):
    fails(client, origin.serve("/a", Content(b"")), "empty")
    assert not disk.temp_files()


def test_empty_without_length(client, origin, disk):
    failed = fails(client, origin.serve("/a", Content(b"", no_length=True)))
    assert "empty" in failed.message or "nothing" in failed.message
    assert not disk.temp_files()


def test_more_bytes_than_announced(client, origin, disk):
    """Nobody knows which of the two is true."""
    fails(client, origin.serve("/a", Content(DATA, announce=MIB)), MIB, "more")
    assert origin.count("/a") == 1
    client.remove("a")
    assert not disk.image_files()


def test_fewer_bytes_than_announced(client, origin, disk):
    """The connection ends early, each time: never ready."""
    url = origin.serve("/a", Content(DATA, announce=len(DATA) + 512, ranges=False,
                                     close_after=len(DATA)))
    failed = fails(client, url, permanent=False)
    assert origin.count("/a") == 4  # retry_tries
    assert not disk.ready_file("a", failed.spec.uuid).exists()


@pytest.mark.parametrize("chunked", [False, True])
def test_an_endless_body(client, origin, disk, chunked):
    """Ends at max_image_size."""
    fails(client, origin.serve("/a", Endless(chunked)), 8 * MIB)
    assert origin.count("/a") == 1
    assert not disk.temp_files()


def test_an_endless_body_with_a_stated_size(client, origin, disk):
    fails(client, origin.serve("/a", Endless()), MIB, size=MIB)
    assert origin.requests[0].body_sent < 64 * MIB
    assert not disk.temp_files()


def test_larger_than_allowed(client, origin, disk):
    fails(client, origin.serve("/a", Content(bytes(9 * MIB))), "max_image_size")
    assert not disk.temp_files()


def test_an_absurd_announced_size(client, origin, disk):
    fails(client, origin.serve("/a", Content(DATA, announce=1 << 62,
                                             close_after=len(DATA))), "max_image_size")


@pytest.mark.parametrize("length", ["-1", "12a", "99999999999999999999999", "1,2"])
def test_a_length_that_is_none(client, origin, disk, length):
    url = origin.serve("/a", Content(DATA, headers={"Content-Length": length}))
    client.ensure("a", url, sha512=images.sha512(DATA))
    image = client.wait_image("a", lambda i: i.state in ("failed", "ready"), "ended")
    assert image.state == "failed" or image.size == len(DATA)


def test_no_length_is_fine(client, origin, disk):
    client.ensure("a", origin.serve("/a", Content(DATA, no_length=True)),
                  sha512=images.sha512(DATA))
    ready = client.wait_ready("a")
    assert ready.size == len(DATA)


def test_no_length_and_cut_short(client, origin):
    """Only the checksum can tell."""
    client.ensure("a", origin.serve("/a", Content(DATA, no_length=True,
                                                  close_after=MIB)),
                  sha512=images.sha512(DATA))
    failed = client.wait_state("a", "failed")
    assert images.sha512(DATA[:MIB]) in failed.message


@pytest.mark.parametrize("keep", [512, 65536, 3 * 65536, -65536, -MIB])
def test_a_truncated_qcow2(client, origin, files, disk, keep):
    image = images.qcow2(files / "a.qcow2", 16 * MIB, ((0, 2 * MIB),))
    data = image.data[:keep]
    assert len(data) % 512 == 0
    fails(client, origin.serve("/a", Content(data)), "qcow2")
    assert not disk.temp_files()


def test_a_truncated_iso(client, origin, files):
    image = images.iso(files / "a.iso")
    data = image.data[:64 * KIB]
    fails(client, origin.serve("/a", Content(data)), "iso")


def test_a_file_of_less_than_a_sector(client, origin):
    fails(client, origin.serve("/a", Content(b"x" * 100)), 100)
