"""Links planted on a disk are never followed, and never lead out of it."""

import os

import grpc
import pytest

from lib import images
from lib.client import copy_of
from lib.servers import Content

DATA = images.random_bytes(images.MIB)
UUID = "u1"


@pytest.fixture
def elsewhere(scratch):
    """What must stay as it is."""
    path = scratch / "elsewhere"
    path.mkdir()
    (path / "precious").write_bytes(b"precious")
    return path


def untouched(elsewhere):
    return ([p.name for p in elsewhere.rglob("*")] == ["precious"]
            and (elsewhere / "precious").read_bytes() == b"precious")


@pytest.fixture
def world(start_daemon, disks, origin, elsewhere):
    """A daemon that ran once, so that its folders exist; now it is stopped."""
    bad, good = disks.directory("bad"), disks.directory("good")
    daemon = start_daemon([bad, good])
    daemon.stop()
    origin.serve("/a", Content(DATA))
    yield daemon, bad, good
    assert untouched(elsewhere)


def ensure(daemon, origin, bad, good):
    """The good disk gets the image, whatever the bad one is like."""
    daemon.start()
    daemon.client.ensure("a", origin.url("/a"), uuid=UUID)
    daemon.client.wait_copy("a", good, "ready")
    return daemon.client.wait_image(
        "a", lambda i: copy_of(i, bad).state == "ready" or copy_of(i, bad).message,
        "a result on the bad disk")


def test_backing_images_is_a_link(world, origin, elsewhere):
    daemon, bad, good = world
    (bad.path / "backing-images").rmdir()
    (bad.path / "backing-images").symlink_to(elsewhere)
    image = ensure(daemon, origin, bad, good)
    assert copy_of(image, bad).state != "ready"
    assert (bad.path / "backing-images").is_symlink()


def test_the_image_directory_is_a_link(world, origin, elsewhere):
    daemon, bad, good = world
    bad.image_dir("a", UUID).symlink_to(elsewhere)
    image = ensure(daemon, origin, bad, good)
    assert copy_of(image, bad).state != "ready"
    assert copy_of(image, bad).message


@pytest.mark.parametrize("name", ["backing", "backing.tmp", "backing.cfg",
                                  "backing.bim", "backing.bim.new",
                                  "backing.cfg.new"])
@pytest.mark.parametrize("target", ["precious", "new"])
def test_a_file_is_a_link(world, origin, elsewhere, name, target):
    daemon, bad, good = world
    directory = bad.image_dir("a", UUID)
    directory.mkdir()
    (directory / name).symlink_to(elsewhere / target)
    image = ensure(daemon, origin, bad, good)
    copy = copy_of(image, bad)
    if copy.state == "ready":
        # The link was put aside; the file itself is a file.
        file = bad.ready_file("a", UUID)
        assert not file.is_symlink() and file.read_bytes() == DATA


def test_bim_is_a_link(start_daemon, disks, origin, elsewhere):
    bad, good = disks.directory("bad"), disks.directory("good")
    (bad.path / ".bim").symlink_to(elsewhere)
    client = start_daemon([bad, good]).client
    assert client.disk(bad).state == "failed" and client.disk(bad).message
    assert client.disk(good).state == "ready"
    assert untouched(elsewhere)


@pytest.mark.parametrize("name", ["owner", "format", "lock", "desired"])
def test_what_lies_in_bim_is_a_link(world, origin, elsewhere, name):
    daemon, bad, good = world
    path = bad.path / ".bim" / name
    path.rmdir() if path.is_dir() else path.unlink()
    path.symlink_to(elsewhere if name == "desired" else elsewhere / "new")
    daemon.start()
    assert daemon.client.disk(bad).state == "failed"
    assert daemon.client.disk(good).state == "ready"
    daemon.client.ensure("a", origin.serve("/a", Content(DATA)))
    daemon.client.wait_copy("a", good, "ready")


def test_the_identity_is_a_link(start_daemon, disks, elsewhere):
    bad = disks.directory("bad", init=False)
    (elsewhere / "precious").write_text('{"diskUUID": "stolen"}')
    (bad.path / "longhorn-disk.cfg").symlink_to(elsewhere / "precious")
    status = start_daemon([bad]).client.disk(bad)
    assert status.state == "failed" and not status.uuid


def test_remove_follows_no_link(world, origin, elsewhere):
    """The directory is swapped for a link behind the daemon's back."""
    daemon, bad, good = world
    daemon.start()
    daemon.client.ensure("a", origin.url("/a"), uuid=UUID)
    daemon.client.wait_ready("a")
    directory = bad.image_dir("a", UUID)
    directory.rename(bad.path / "moved")
    (elsewhere / "precious").rename(elsewhere / "backing")
    directory.symlink_to(elsewhere)
    try:
        daemon.client.remove("a", force=True)
    except grpc.RpcError:  # refused is as good
        pass
    assert (elsewhere / "backing").read_bytes() == b"precious"
    (elsewhere / "backing").rename(elsewhere / "precious")


def test_the_disk_path_itself_may_be_a_link(start_daemon, disks, origin):
    """The operator's own path is his business."""
    real = disks.directory("real")
    link = disks.root / "link"
    link.symlink_to(real.path)
    client = start_daemon([link]).client
    client.ensure("a", origin.serve("/a", Content(DATA)), uuid=UUID)
    client.wait_ready("a")
    assert real.ready_file("a", UUID).read_bytes() == DATA


def test_fifos_and_devices_are_no_files(world, origin, elsewhere):
    """A daemon that opens a fifo hangs."""
    daemon, bad, good = world
    directory = bad.image_dir("a", UUID)
    directory.mkdir()
    for name in ("backing", "backing.tmp", "backing.cfg", "backing.bim"):
        os.mkfifo(directory / name)
    ensure(daemon, origin, bad, good)
    assert daemon.client.version_get().api_version == 4
