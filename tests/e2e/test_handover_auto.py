"""An automatic hand-over: a newer daemon takes the disks over from the one that
owns them, and nobody who reads notices."""

import threading
import time

import grpc
import pytest

from lib import images
from lib.client import Client
from lib.deadline import scaled, wait_until
from lib.images import MIB

DATA = images.random_bytes(3 * MIB, 1)


@pytest.fixture
def old(start_daemon, disk, files):
    daemon = start_daemon([disk], {"sources": {"allow_file": True}})
    (files / "a").write_bytes(DATA)
    daemon.client.ensure("a", f"file://{files}/a", uuid="u-a")
    daemon.client.wait_ready("a")
    return daemon


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
    """The same addresses, the same state directory: the sockets go over."""
    config, address = old.config, old.address
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
        new = start_daemon([disk], config, run=False)
        new.state_dir, new.socket = old.state_dir, old.socket
        new.config = {**config, "handover": {**config["handover"], "mode": "auto"}}
        new.start()
        assert old.wait_exit() == 0
        count = len(answers)
        wait_until(lambda: len(answers) > count + 5, "answers of the new one")
    finally:
        stop.set()
        caller.join(scaled(10))
    assert not errors, errors[0]
    assert set(answers) == {"ready"}
    assert new.endpoint["api"] == old.endpoint["api"]
