"""An automatic hand-over: a newer daemon takes the disks over from the one that
owns them, and nobody who reads notices."""

import threading
import time

import grpc
import pytest

from lib import images
from lib.client import Client
from lib.deadline import SLOWDOWN, scaled, wait_until
from lib.images import MIB

DATA = images.random_bytes(3 * MIB, 1)


@pytest.fixture
def old(start_daemon, disk, files):
    daemon = start_daemon([disk], {"sources": {"allow_file": True}})
    (files / "a").write_bytes(DATA)
    daemon.client.ensure("a", f"file://{files}/a", uuid="u-a")
    daemon.client.wait_ready("a")
    return daemon


def successor(start_daemon, old, disk):
    """The same addresses, the same state directory: the sockets go over."""
    new = start_daemon([disk], old.config, run=False)
    new.state_dir, new.socket = old.state_dir, old.socket
    new.config = {**old.config, "handover": {**old.config["handover"], "mode": "auto"}}
    return new.start()


def test_the_disks_change_hands(old, start_daemon, disk):
    before = disk.ready_file("a", "u-a").stat()
    epoch = old.client.disk(disk).epoch
    new = start_daemon([disk], {"sources": {"allow_file": True},
                                "handover": {"mode": "auto"}})
    assert old.wait_exit() == 0
    old.assert_clean()
    image = new.client.get("a")
    assert image.state == "ready" and image.copies[0].origin != "reused file, rehashed"
    assert disk.ready_file("a", "u-a").stat().st_ino == before.st_ino
    assert new.client.disk(disk).epoch == epoch + 1
    assert not (disk.path / ".bim" / "handover").exists()


def test_with_one_configuration_no_client_is_refused(old, start_daemon, disk):
    address = old.address
    stop = threading.Event()
    answers, errors = [], []

    def call():
        while not stop.is_set():
            try:
                client = Client(address)
                answers.append(client.get("a").state)
                client.close()
            except grpc.RpcError as error:
                errors.append(error)
            time.sleep(0.05)  # how often it asks

    caller = threading.Thread(target=call)
    caller.start()
    try:
        wait_until(lambda: len(answers) > 3, "a first answer")
        new = successor(start_daemon, old, disk)
        assert old.wait_exit() == 0
        count = len(answers)
        wait_until(lambda: len(answers) > count + 5, "answers of the new one")
    finally:
        stop.set()
        caller.join(scaled(10))
    assert not errors, errors[0]
    assert set(answers) == {"ready"}
    assert new.endpoint["api"] == old.endpoint["api"]


@pytest.mark.parametrize("connections", [1, 4])
def test_a_sync_that_it_serves_goes_on_at_the_successor(old, start_daemon, disk, disks, files,
                                                        connections):
    size = 24 * MIB
    content = images.random_bytes(size, 2)
    (files / "b").write_bytes(content)
    old.client.ensure("b", f"file://{files}/b", uuid="u-b")
    old.client.wait_ready("b")
    receiver = start_daemon([disks.directory("receiver")],
                            {"limits": {"peer_rate": int(8 * MIB / SLOWDOWN)},
                             "peers": {"connections": connections}})
    receiver.client.ensure("b", uuid="u-b", peers=[old.address])
    receiver.client.wait_image("b", lambda i: i.copies[0].progress >= 20, "a part of it")
    successor(start_daemon, old, disk)
    assert old.wait_exit() == 0
    assert receiver.client.get("b").state == "in-progress", "it went too quickly"
    ready = receiver.client.wait_ready("b").copies[0]
    assert ready.attempts == 0
    assert ready.wire_bytes < size + connections * 4 * MIB
    # It was not even given up for a moment.
    assert "not asked for image" not in receiver.log()
    assert "trying again" not in receiver.log()
