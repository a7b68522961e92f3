"""file:// only where the operator allows it."""

import os

import grpc
import pytest

from lib import images
from lib.client import refused
from lib.servers import redirect


@pytest.fixture
def image(files):
    return images.raw(files / "a.raw", 2 * images.MIB)


def not_allowed(client, url):
    with pytest.raises(grpc.RpcError) as error:
        client.ensure("a", url)
    assert error.value.code() in (
        grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION), error.value
    assert not client.list_all()
    return error.value.details()


def test_refused_by_default(start_daemon, disk, image):
    message = not_allowed(start_daemon([disk]).client, f"file://{image.path}")
    assert "allow_file" in message


def test_allowed(start_daemon, disks, image):
    both = [disks.directory("one"), disks.directory("two")]
    client = start_daemon(both, {"sources": {"allow_file": True}}).client
    client.ensure("a", f"file://{image.path}", sha512=image.sha512)
    ready = client.wait_ready("a")
    for disk in both:
        assert disk.ready_file("a", ready.spec.uuid).read_bytes() == image.data
    assert image.path.exists(), "the source stays"


def test_only_below_the_roots(start_daemon, disk, files, scratch, image):
    outside = images.raw(scratch / "outside.raw", images.MIB, 2)
    (files / "link.raw").symlink_to(outside.path)
    (files / "linked").symlink_to(scratch)
    client = start_daemon([disk], {"sources": {"allow_file": True,
                                               "file_roots": [files]}}).client
    client.ensure("ok", f"file://{image.path}")
    client.wait_ready("ok")
    client.remove("ok")
    for path in (outside.path, f"{files}/../outside.raw", "/etc/passwd",
                 f"{files}x/a.raw"):
        not_allowed(client, f"file://{path}")
    # A link below a root that leads out of it: found when it is opened.
    for name in ("link.raw", "linked/outside.raw"):
        client.ensure("a", f"file://{files}/{name}")
        failed = client.wait_state("a", "failed")
        assert not disk.ready_file("a", failed.spec.uuid).exists()
        client.remove("a")


def test_not_through_a_redirect(start_daemon, disk, origin, image):
    """A server must not make us read our own files."""
    client = start_daemon([disk], {"sources": {"allow_file": True}}).client
    client.ensure("a", origin.serve("/a", redirect(f"file://{image.path}")))
    failed = client.wait_state("a", "failed")
    assert failed.message
    assert not disk.ready_file("a", failed.spec.uuid).exists()


def test_missing_or_no_file(start_daemon, disk, files, scratch):
    client = start_daemon([disk], {"sources": {"allow_file": True}}).client
    os.mkfifo(files / "fifo")
    (files / "dir").mkdir()
    for name in ("nothing.raw", "fifo", "dir"):
        client.ensure("a", f"file://{files}/{name}")
        failed = client.wait_state("a", "failed")
        assert str(files / name) in failed.message, failed.message
        client.remove("a")
    for url in ("file://host/etc/passwd", "file:a.raw", "file://"):
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            client.ensure("a", url)


def test_devices_are_no_files(start_daemon, disk):
    client = start_daemon([disk], {"sources": {"allow_file": True}}).client
    client.ensure("a", "file:///dev/zero")
    assert client.wait_state("a", "failed").message


def test_holes_stay_holes(start_daemon, disks, files):
    both = [disks.directory("one"), disks.directory("two")]
    image = images.sparse_raw(files / "sparse.raw", 64 * images.MIB)
    client = start_daemon(both, {"sources": {"allow_file": True}}).client
    client.ensure("a", f"file://{image.path}", sha512=image.sha512)
    ready = client.wait_ready("a")
    for copy in ready.copies:
        stat = os.stat(copy.file_path)
        assert stat.st_size == image.size
        assert stat.st_blocks * 512 < 2 * images.MIB
        assert copy.real_size == stat.st_blocks * 512


def test_wrong_digest_of_a_file(start_daemon, disk, image):
    client = start_daemon([disk], {"sources": {"allow_file": True}}).client
    client.ensure("a", f"file://{image.path}", sha512="ab" * 64)
    failed = client.wait_state("a", "failed")
    assert "ab" * 64 in failed.message and image.sha512 in failed.message
    assert image.path.read_bytes() == image.data, "the source is not ours"
    assert not disk.temp_files()
