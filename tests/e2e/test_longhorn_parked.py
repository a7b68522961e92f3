"""What came and was verified of a Sync that failed is kept when the image is
deleted, and used by the next Sync of the same name, uuid and size."""

import pytest

from lib import images
from lib.client import Client
from lib.deadline import wait_until
from lib.images import MIB
from lib.longhorn import leave_image

NAME, UUID = "a", "6f7a"
SIZE = 48 * MIB
DATA = images.random_bytes(SIZE, 5)
SUM = images.sha512(DATA)


@pytest.fixture
def image(files):
    path = files / "image"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def manager(start_manager, disks):
    return start_manager(disks.directory("two"))


@pytest.fixture
def client(manager, longhorn):
    return longhorn(manager)


@pytest.fixture
def start_sender(start_manager, disks, longhorn):
    """A daemon of ours that has the image."""
    disk = disks.directory("one")
    # Read by the daemon, which then can tell its chunks.
    (leave_image(disk.path, NAME, UUID, DATA, SUM).parent / "backing.cfg").unlink()
    sender = start_manager(disk)
    sends = longhorn(sender)
    sends.fetch(NAME, UUID, size=SIZE)
    sends.wait(NAME, UUID, "ready")
    return sender


def wire_bytes(manager):
    client = Client(manager.address)
    try:
        return client.get(NAME).copies[0].wire_bytes
    finally:
        client.close()


def rate(manager, value):
    client = Client(manager.address)
    try:
        client.set_limits(peer_rate=value)
    finally:
        client.close()


def parked(disk):
    """Bytes that lie in our folder of parked files."""
    folder = disk.path / ".bim" / "partial"
    return sum(p.stat().st_blocks * 512 for p in folder.rglob("*")
               if p.is_file()) if folder.exists() else 0


def broken_push(client, manager, foreign_manager, image, after=16):
    """A push that fails after so many batches of 24; then Delete."""
    sender = foreign_manager()
    sender.has(NAME, UUID, image, leave_out=tuple(range(after, 24)))
    client.sync(NAME, UUID, sender.address, size=SIZE)
    assert client.wait(NAME, UUID, "failed", deadline=60).status.error_msg
    client.delete(NAME, UUID)
    assert client.list() == {}
    assert not manager.disk.image_dir(NAME, UUID).exists()
    return sender


def right(client, manager):
    image = client.wait(NAME, UUID, "ready", deadline=60)
    assert image.status.checksum == SUM
    assert images.file_sha512(manager.disk.ready_file(NAME, UUID)) == SUM


def test_a_push_after_a_push(manager, client, foreign_manager, image):
    sender = broken_push(client, manager, foreign_manager, image)
    assert parked(manager.disk) >= 16 * MIB
    sender.has(NAME, UUID, image)
    client.sync(NAME, UUID, sender.address, size=SIZE, checksum=SUM)
    right(client, manager)
    push = sender.wait_push(1).wait()
    assert push.existed is True
    assert push.sent <= SIZE // 2, f"{push.sent} bytes were sent again"
    assert parked(manager.disk) == 0


def test_a_pull_after_a_push(manager, client, foreign_manager, image, start_sender):
    broken_push(client, manager, foreign_manager, image)
    client.sync(NAME, UUID, start_sender.address, size=SIZE, checksum=SUM)
    right(client, manager)
    assert wire_bytes(manager) <= SIZE // 2
    assert parked(manager.disk) == 0


def test_a_pull_after_a_pull(manager, client, start_sender):
    rate(manager, 12 * MIB)
    client.sync(NAME, UUID, start_sender.address, size=SIZE, checksum=SUM)
    wait_until(lambda: client.get(NAME, UUID).status.progress >= 60, "most of it", 60)
    start_sender.kill9()
    client.wait(NAME, UUID, "failed", deadline=100)
    client.delete(NAME, UUID)
    assert parked(manager.disk) >= SIZE // 4
    start_sender.start()
    rate(manager, 0)
    from_address = start_sender.address
    client.sync(NAME, UUID, from_address, size=SIZE, checksum=SUM)
    right(client, manager)
    assert wire_bytes(manager) <= SIZE * 3 // 4
    assert parked(manager.disk) == 0


def test_after_a_restart(manager, client, foreign_manager, image, longhorn):
    sender = broken_push(client, manager, foreign_manager, image)
    manager.restart(kill=True)
    client = longhorn(manager)
    assert parked(manager.disk) >= 16 * MIB
    sender.has(NAME, UUID, image)
    client.sync(NAME, UUID, sender.address, size=SIZE)
    right(client, manager)
    assert sender.wait_push(1).wait().sent <= SIZE // 2


@pytest.mark.parametrize("other", ["name", "uuid", "size"])
def test_not_for_another_image(manager, client, foreign_manager, image, other,
                               files):
    sender = broken_push(client, manager, foreign_manager, image)
    name = "b" if other == "name" else NAME
    uuid = "another" if other == "uuid" else UUID
    path = image
    if other == "size":
        path = files / "longer"
        path.write_bytes(DATA + images.random_bytes(MIB, 3))
    size = path.stat().st_size
    sender.has(name, uuid, path)
    client.sync(name, uuid, sender.address, size=size)
    client.wait(name, uuid, "ready", deadline=60)
    push = sender.wait_push(1).wait()
    assert push.existed is False and push.sent == size
    assert images.file_sha512(manager.disk.ready_file(name, uuid)) == (
        images.file_sha512(path))


def test_other_content_is_found_out(manager, client, foreign_manager, image, files):
    """The same name, uuid and size; but what was parked is not of it."""
    sender = broken_push(client, manager, foreign_manager, image)
    other = images.raw(files / "other", SIZE, seed=9)
    sender.has(NAME, UUID, other.path)
    client.sync(NAME, UUID, sender.address, size=SIZE, checksum=other.sha512)
    image = client.wait(NAME, UUID, "ready", deadline=60)
    assert image.status.checksum == other.sha512
    assert images.file_sha512(manager.disk.ready_file(NAME, UUID)) == other.sha512


def test_a_wrong_whole_is_not_kept(manager, client, foreign_manager, image):
    """All of it came and was proven wrong: nothing of that is of use."""
    sender = foreign_manager()
    sender.has(NAME, UUID, image)
    client.sync(NAME, UUID, sender.address, size=SIZE, checksum="0" * 128)
    client.wait(NAME, UUID, "failed", deadline=60)
    client.delete(NAME, UUID)
    assert parked(manager.disk) == 0


def test_delete_of_a_ready_image_keeps_nothing(manager, client, foreign_manager,
                                               image):
    sender = foreign_manager()
    sender.has(NAME, UUID, image)
    client.sync(NAME, UUID, sender.address, size=SIZE)
    right(client, manager)
    client.delete(NAME, UUID)
    assert parked(manager.disk) == 0


def test_list_shows_nothing_of_it(manager, client, foreign_manager, image):
    broken_push(client, manager, foreign_manager, image)
    assert client.list() == {} and manager.files.files() == {}
    other = Client(manager.address)
    try:
        assert other.list_all() == []
    finally:
        other.close()
