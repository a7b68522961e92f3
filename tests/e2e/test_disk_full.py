"""A real small file system that fills up."""

import errno
import os

import grpc

from lib import images
from lib.client import copy_of
from lib.images import MIB
from lib.servers import Content

DATA = images.random_bytes(24 * MIB)


def fill(disk, leave):
    """A file that leaves so many bytes free, or a few less."""
    filler = disk.path / "filler"
    with open(filler, "wb", buffering=0) as file:
        free = os.statvfs(disk.path)
        size = free.f_bavail * free.f_frsize - leave
        try:
            os.posix_fallocate(file.fileno(), 0, max(size - 65536, 1))
            if leave == 0:
                file.seek(0, os.SEEK_END)
                while True:
                    file.write(b"x" * 4096)
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return filler


def test_full_then_freed(start_daemon, disks, origin):
    small, large = disks.loop("small", mib=64), disks.directory("large")
    filler = fill(small, 8 * MIB)
    daemon = start_daemon([small, large])
    client = daemon.client
    uuid = client.ensure("a", origin.serve("/a", Content(DATA)),
                         sha512=images.sha512(DATA)).image.spec.uuid
    # The other disk gets it all the same.
    copy = client.wait_copy("a", large, "ready")
    assert images.file_sha512(copy.file_path) == images.sha512(DATA)
    full = client.wait_copy("a", small, "failed")
    assert "space" in full.message.lower() or "full" in full.message.lower()
    assert str(small) in full.message
    assert full.HasField("next_attempt")
    assert not small.ready_file("a", uuid).exists()
    assert client.disk(small).state == "ready", "a full disk is not a broken one"
    assert client.disk(large).state == "ready"

    # Freed: it gets ready without a restart, from the other disk.
    filler.unlink()
    client.wait_ready("a")
    assert images.file_sha512(small.ready_file("a", uuid)) == images.sha512(DATA)
    assert origin.count("/a") <= 2
    # No bytes of the failed attempts are left behind.
    assert not small.temp_files()


def test_full_as_the_only_disk(start_daemon, disks, origin):
    small = disks.loop("small", mib=64)
    filler = fill(small, 8 * MIB)
    client = start_daemon([small]).client
    ready_before = images.random_bytes(MIB, 2)
    client.ensure("old", origin.serve("/old", Content(ready_before)))
    client.wait_ready("old")
    client.ensure("a", origin.serve("/a", Content(DATA)))
    failed = client.wait_state("a", "failed")
    assert failed.copies[0].HasField("next_attempt")
    # What was ready stays ready, and whole.
    assert client.get("old").state == "ready"
    assert client.verify("old")[-1].ok
    filler.unlink()
    assert client.wait_ready("a").current_sha512 == images.sha512(DATA)


def test_too_large_is_known_from_the_start(start_daemon, disks, origin):
    """The length says that it can't fit: not all of it is fetched."""
    small = disks.loop("small", mib=20)
    client = start_daemon([small]).client
    client.ensure("a", origin.serve("/a", Content(images.random_bytes(48 * MIB))))
    failed = client.wait_state("a", "failed")
    assert "space" in failed.message.lower()
    assert origin.requests[0].body_sent < 48 * MIB


def test_not_one_byte_for_metadata(start_daemon, disks, origin):
    """Completely full: Ensure is refused or fails with the reason; nothing
    that is there gets lost."""
    small = disks.loop("small", mib=24)
    daemon = start_daemon([small])
    client = daemon.client
    data = images.random_bytes(MIB)
    client.ensure("old", origin.serve("/old", Content(data)))
    client.wait_ready("old")
    filler = fill(small, 0)
    try:
        client.ensure("a", origin.serve("/a", Content(data)))
        failed = client.wait_state("a", "failed")
        assert "space" in failed.message.lower()
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED,
                                grpc.StatusCode.UNAVAILABLE)
        assert "space" in error.details().lower()
    assert client.get("old").state == "ready"
    daemon.restart()
    client = daemon.client
    # A full disk cannot take an owner record, and says so.
    if client.disk(small).state == "ready":
        assert client.get("old").state == "ready"
    else:
        assert "space" in client.disk(small).message.lower()
    filler.unlink()
    client.wait_disk(small, "ready")
    ready = client.wait_ready("old")
    assert ready.current_sha512 == images.sha512(data)
    client.ensure("b", origin.serve("/b", Content(data)))
    client.wait_ready("b")
    assert copy_of(client.get("b"), small).state == "ready"
