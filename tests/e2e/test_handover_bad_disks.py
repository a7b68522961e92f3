"""A hand-over while one of the disks cannot be used: the others go on without it,
and whoever the decision chose has it when it is back."""

import pytest

from lib import images
from lib.client import copy_of
from lib.deadline import wait_until
from lib.images import MIB
from lib.servers import Content

DATA = images.random_bytes(2 * MIB, 1)
CONFIG = {"handover": {"lease": "4s", "confirm_timeout": "5s"}}


class Unmounted:
    @staticmethod
    def fail(disk):
        disk.unmount()

    @staticmethod
    def back(disk):
        disk.mount()


class ReadOnly:
    @staticmethod
    def fail(disk):
        disk.fail_read_only()

    @staticmethod
    def back(disk):
        disk.repair()


class Eio:
    @staticmethod
    def fail(disk):
        disk.fail_io()

    @staticmethod
    def back(disk):
        disk.repair()


class Pair:
    def __init__(self, start_daemon, disks, origin, how):
        self.how, self.origin = how, origin
        self.good, self.bad = disks.directory("good"), disks.loop("bad")
        self.o = start_daemon([self.good, self.bad], CONFIG, directory="o")
        self.o.client.ensure("a", origin.serve("/a", Content(DATA)), uuid="u-a")
        self.o.client.wait_ready("a")
        self.n = start_daemon([self.good, self.bad], CONFIG, directory="n")
        self.n.client.wait_disk(self.good, "owned")

    def fail(self):
        self.how.fail(self.bad)
        wait_until(lambda: self.o.client.disk(self.bad).state != "ready",
                   "the disk to be bad")

    def begin(self):
        self.n.client.handover_begin()
        self.n.client.wait_handover("ready")

    def owns(self, owner, other):
        """The good one, and the bad one when it is back."""
        owner.client.wait_disk(self.good, "ready")
        image = owner.client.get("a")
        assert copy_of(image, self.good).state == "ready"
        assert copy_of(image, self.bad).state == "unknown", image
        self.how.back(self.bad)
        owner.client.wait_disk(self.bad, "ready", 30)
        image = owner.client.wait_ready("a")
        assert all("rehashed" not in c.origin for c in image.copies), image
        assert self.origin.count("/a") == 1
        if other.running:
            for disk in (self.good, self.bad):
                wait_until(lambda disk=disk: other.client.disk(disk).state in (
                    "owned", "waiting"), lambda: other.client.list_disks())


@pytest.fixture(params=[Unmounted, ReadOnly, Eio], ids=["unmounted", "read-only", "eio"])
def pair(request, start_daemon, disks, origin):
    return Pair(start_daemon, disks, origin, request.param)


def confirm(pair):
    pair.n.client.handover_confirm()
    assert pair.o.wait_exit() == 0
    pair.owns(pair.n, pair.o)


def roll_back(pair):
    pair.n.client.handover_rollback()
    pair.owns(pair.o, pair.n)


def test_3_1_before_then_confirm(pair):
    pair.fail()
    pair.begin()
    confirm(pair)


def test_3_2_before_then_rollback(pair):
    pair.fail()
    pair.begin()
    roll_back(pair)


def test_3_3_during_then_confirm(pair):
    pair.begin()
    pair.fail()
    confirm(pair)


def test_3_4_during_then_rollback(pair):
    pair.begin()
    pair.fail()
    roll_back(pair)


def test_one_that_comes_back_is_its_last_owners(start_daemon, disks, origin):
    """Also without a hand-over: another daemon does not take it from a living one
    that lost it for a moment."""
    pair = Pair(start_daemon, disks, origin, Unmounted)
    for _ in range(3):
        pair.fail()
        pair.owns(pair.o, pair.n)
