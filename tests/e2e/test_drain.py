"""`bim drain`: no new work, what runs ends, and back again."""

import json
import threading

import grpc
import pytest

from lib import images
from lib.client import refused
from lib.deadline import wait_until
from lib.images import KIB, MIB
from lib.servers import Content

OK, REFUSED, TIMED_OUT = 0, 5, 7


def drain(daemon, *args, code=OK):
    return json.loads(daemon.cli("drain", *args, "-o", "json", check=code).stdout)


@pytest.fixture
def busy(start_daemon, disk, origin):
    """A download that waits for its origin."""
    gate = threading.Event()
    url = origin.serve("/a", Content(images.random_bytes(MIB, 1), gate=gate,
                                     gate_after=64 * KIB))
    daemon = start_daemon([disk])
    daemon.client.ensure("a", url, uuid="u-a")
    daemon.client.wait_state("a", "in-progress")
    yield daemon, gate
    gate.set()


def test_what_runs_ends_and_nothing_begins(busy, disk):
    daemon, gate = busy
    assert drain(daemon, "--dry-run")["draining"] is False
    told = drain(daemon, "--for", "100ms", code=TIMED_OUT)
    assert told["draining"] and "image a (u-a)" in told["running"][0]
    with refused(grpc.StatusCode.UNAVAILABLE, "bim drain --cancel"):
        daemon.client.ensure("b", "http://127.0.0.1:1/b", uuid="u-b")
    gate.set()
    told = drain(daemon)
    assert told["draining"] and not told.get("running")
    daemon.client.wait_ready("a")
    assert drain(daemon, "--cancel")["draining"] is False
    daemon.client.ensure("b", "http://127.0.0.1:1/b", uuid="u-b")


def test_a_restart_ends_it(busy):
    daemon, gate = busy
    gate.set()
    daemon.client.wait_ready("a")
    assert drain(daemon)["draining"]
    daemon.restart()
    assert drain(daemon, "--dry-run")["draining"] is False


def test_it_survives_a_hand_over_that_is_rolled_back(start_daemon, disk):
    old = start_daemon([disk], directory="old")
    assert drain(old)["draining"]
    new = start_daemon([disk], directory="new")
    new.client.wait_disk(disk, "owned")
    new.client.handover_begin()
    new.client.wait_handover("ready")
    assert "hand-over" in old.cli("drain", check=REFUSED).stderr
    new.client.handover_rollback()
    wait_until(lambda: old.client.handover_status().phase == "steady", "the end of it")
    with refused(grpc.StatusCode.UNAVAILABLE, "bim drain --cancel"):
        old.client.ensure("b", "http://127.0.0.1:1/b", uuid="u-b")
