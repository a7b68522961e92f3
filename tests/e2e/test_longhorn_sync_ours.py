"""Sync between two daemons of ours: the receiver pulls, and no port of the
range is ever open."""

import threading

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
def two(start_manager, disks, longhorn):
    """A sender with a ready image, a receiver without; and clients."""
    one, other = disks.directory("one"), disks.directory("two")
    leave_image(one.path, NAME, UUID, DATA, SUM)
    sender, receiver = start_manager(one), start_manager(other)
    clients = longhorn(sender), longhorn(receiver)
    clients[0].fetch(NAME, UUID, size=SIZE)
    clients[0].wait(NAME, UUID, "ready")
    return sender, receiver, *clients


class Ports(threading.Thread):
    """Which ports of the range are open at any time."""

    def __init__(self, *managers):
        super().__init__(daemon=True)
        self.managers, self.seen, self.looks = managers, set(), 0
        self._stopping = threading.Event()

    def run(self):
        while not self._stopping.wait(0.002):
            self.looks += 1
            for manager in self.managers:
                self.seen |= manager.in_range()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        self.join()


def slow_down(address, rate):
    client = Client(address)
    try:
        client.set_limits(peer_rate=rate)
    finally:
        client.close()


def test_it_pulls(two):
    sender, receiver, sends, gets = two
    slow_down(receiver.address, 4 * MIB)
    with Ports(sender, receiver) as ports:
        answer = gets.sync(NAME, UUID, sender.address, size=SIZE, checksum=SUM)
        assert answer.status.state != "failed"
        wait_until(lambda: sends.get(NAME, UUID).status.sending_reference >= 1,
                   "the sender to count it")
        assert gets.get(NAME, UUID).status.sender_manager_address == sender.address
        wait_until(lambda: ports.looks > 20, "looks at all ports while it is under way")
        assert sends.get(NAME, UUID).status.sending_reference >= 1
        slow_down(receiver.address, 0)
        image = gets.wait(NAME, UUID, "ready", deadline=60)
    assert ports.seen == set() and ports.looks > 20
    assert image.status.checksum == SUM
    assert image.status.sender_manager_address == sender.address
    assert receiver.disk.ready_file(NAME, UUID).read_bytes() == DATA
    wait_until(lambda: sends.get(NAME, UUID).status.sending_reference == 0,
               "the sender to be done")
    assert receiver.disk.cfg(NAME, UUID)["currentChecksum"] == SUM


def test_holes_stay_holes(start_manager, disks, longhorn):
    one, other = disks.directory("one"), disks.directory("two")
    one.image_dir(NAME, UUID).mkdir(parents=True)
    image = images.sparse_raw(one.ready_file(NAME, UUID), 64 * MIB + 512)
    sender, receiver = start_manager(one), start_manager(other)
    sends, gets = longhorn(sender), longhorn(receiver)
    sends.fetch(NAME, UUID)
    sends.wait(NAME, UUID, "ready")
    gets.sync(NAME, UUID, sender.address, size=image.size, checksum=image.sha512)
    gets.wait(NAME, UUID, "ready")
    file = other.ready_file(NAME, UUID)
    assert images.file_sha512(file) == image.sha512
    assert file.stat().st_blocks * 512 < 4 * MIB


def test_the_sender_has_it_not(two):
    sender, receiver, sends, gets = two
    sends.delete(NAME, UUID)
    gets.sync(NAME, UUID, sender.address, size=SIZE)
    image = gets.wait(NAME, UUID, "failed")
    assert sender.address in image.status.error_msg
    assert receiver.in_range() == set()


@pytest.mark.parametrize("wrong", [{"size": SIZE - 512}, {"checksum": "0" * 128}],
                         ids=["size", "checksum"])
def test_another_image_than_expected(two, wrong):
    sender, receiver, _, gets = two
    gets.sync(NAME, UUID, sender.address, **{"size": SIZE, **wrong})
    assert gets.wait(NAME, UUID, "failed", deadline=60).status.error_msg
    assert not receiver.disk.ready_file(NAME, UUID).exists()
    gets.delete(NAME, UUID)
    gets.sync(NAME, UUID, sender.address, size=SIZE, checksum=SUM)
    gets.wait(NAME, UUID, "ready", deadline=60)


def test_the_sender_dies(two):
    sender, receiver, _, gets = two
    slow_down(receiver.address, 8 * MIB)
    gets.sync(NAME, UUID, sender.address, size=SIZE)
    wait_until(lambda: gets.get(NAME, UUID).status.progress > 10, "it to begin")
    sender.kill9()
    image = gets.wait(NAME, UUID, "failed", deadline=100)
    assert image.status.error_msg
    assert not receiver.disk.ready_file(NAME, UUID).exists()


def test_delete_on_the_way(two):
    sender, receiver, sends, gets = two
    slow_down(receiver.address, 8 * MIB)
    gets.sync(NAME, UUID, sender.address, size=SIZE)
    wait_until(lambda: gets.get(NAME, UUID).status.progress > 10, "it to begin")
    gets.delete(NAME, UUID)
    assert gets.list() == {}
    assert not receiver.disk.image_dir(NAME, UUID).exists()
    wait_until(lambda: sends.get(NAME, UUID).status.sending_reference == 0,
               "the sender to notice")


def test_send_to_a_receiver_of_the_push_protocol(two, receiver):
    """One of ours, too, is asked to push by those that can't pull."""
    _, _, sends, _ = two
    to = receiver()
    sends.send(NAME, UUID, to.address)
    to.wait_closed()
    assert images.file_sha512(to.path) == SUM
