"""An operator's upgrade: stop gracefully, check before, tidy up afterwards, and
clients that read all through."""

import json
import signal
import threading

import grpc
import pytest

from lib import images
from lib.client import refused
from lib.daemon import BINARY, bim
from lib.deadline import wait_until
from lib.images import MIB
from lib.processes import run
from lib.servers import Content

DATA = images.random_bytes(4 * MIB, 1)
OTHER = images.random_bytes(3 * MIB, 2)


@pytest.fixture
def working(start_daemon, disk, origin):
    """One image ready, of another a half has come."""
    gate = threading.Event()
    daemon = start_daemon([disk], {"handover": {"drain_timeout": "10s"}})
    daemon.client.ensure("a", origin.serve("/a", Content(DATA)), uuid="u-a")
    daemon.client.wait_ready("a")
    url = origin.serve("/b", Content(OTHER, gate=gate, gate_after=2 * MIB),
                       Content(OTHER))
    daemon.client.ensure("b", url, uuid="u-b")
    daemon.client.wait_image("b", lambda i: i.copies[0].progress >= 50, "a half of it")
    yield daemon, gate
    gate.set()


def test_graceful(working, disk, origin):
    """No new work, with the reason; what runs is waited for; 0."""
    daemon, gate = working
    client = daemon.client
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_log("SIGTERM")

    def held():
        with refused(grpc.StatusCode.UNAVAILABLE, "stopping"):
            client.ensure("c", origin.url("/a"), uuid="u-c")
        return True
    wait_until(held, "new work to be refused")
    assert client.get("a").state == "ready", "it serves on"
    gate.set()
    assert daemon.wait_exit() == 0
    assert disk.ready_file("b", "u-b").read_bytes() == OTHER
    assert origin.count("/b") == 1


def test_resume_after_restart(working, disk, origin):
    """What the grace period was too short for is listed, and gone on with."""
    daemon, gate = working
    daemon.stop()
    daemon.configure(handover={"drain_timeout": "10ms"})
    daemon.start()
    gate.set()
    assert "b" in {i.spec.name for i in daemon.client.list_all()}
    daemon.client.wait_ready("b")
    assert disk.ready_file("b", "u-b").read_bytes() == OTHER
    first, second = origin.requests_of("/b")[0], origin.requests_of("/b")[-1]
    assert first is not second and second.range.startswith("bytes="), second.range
    assert int(second.range[6:].split("-")[0]) >= MIB


def test_data_path(start_daemon, disk, origin):
    """Readers ask all through a hand-over by one address, and get whole files."""
    old = start_daemon([disk])
    old.client.ensure("a", origin.serve("/a", Content(DATA)), uuid="u-a")
    old.client.wait_ready("a")
    url, stop, good, bad = old.data_url("a", "u-a"), threading.Event(), [], []

    def read():
        while not stop.is_set():
            # As any reader of the data port, it goes on where it was cut off.
            done = run(["curl", "-sS", "--fail", "--retry", "3", "--retry-all-errors",
                        "--retry-delay", "1", "-o", "-", url], check=False)
            (good if done.stdout.endswith(DATA) else bad).append(done.returncode)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        wait_until(lambda: len(good) > 5, "readers")
        new = start_daemon([disk], old.config, run=False)
        new.state_dir, new.socket = old.state_dir, old.socket
        new.config = {**old.config, "handover": {"mode": "auto"}}
        new.start()
        assert old.wait_exit() == 0
        count = len(good)
        wait_until(lambda: len(good) > count + 5, "readers of the new one")
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert not bad and set(good) == {0}


def test_upgrade_check(working, disk):
    """Said before anything is touched: warnings for what runs, a stop for a disk
    that cannot be taken."""
    daemon, gate = working
    done = bim("upgrade", "check", "--disk", disk, "-o", "json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["result"]) == (1, "warning")
    assert "unfinished" in {f["check"] for f in told["findings"] if f["level"] != "ok"}
    gate.set()
    daemon.client.wait_ready("b")
    done = bim("upgrade", "check", "--disk", disk, "-o", "json")
    assert done.returncode == 0, done.stdout
    daemon.stop()
    (disk.path / ".bim" / "format").write_text('{"version":9,"minVersion":9}\n')
    done = bim("upgrade", "check", "--disk", disk, "-o", "json")
    assert (done.returncode, json.loads(done.stdout)["result"]) == (2, "stop")


@pytest.mark.skipif(not BINARY.with_name("bim-incompatible").exists(),
                    reason="this build has no other editions")
def test_upgrade_check_says_that_versions_do_not_meet(start_daemon, disk):
    start_daemon([disk])
    done = bim("upgrade", "check", "--disk", disk, "-o", "json",
               binary=BINARY.with_name("bim-incompatible"))
    told = json.loads(done.stdout)
    assert done.returncode == 1
    assert "api" in {f["check"] for f in told["findings"] if f["level"] == "warning"}


def test_prune(working, disk):
    """Old entries go by command, and nothing else."""
    daemon, gate = working
    gate.set()
    daemon.client.wait_ready("b")
    before = disk.image_files()
    count = len(json.loads(bim("history", "--disk", disk, "-o", "json").stdout)["entries"])
    assert count >= 4
    done = bim("prune", "--older-than", "1d", "--disk", disk, "-o", "json")
    assert json.loads(done.stdout)["disks"][0]["dropped"] == 0
    wait_until(lambda: json.loads(bim("prune", "--older-than", "1ms", "--disk", disk,
                                      "-o", "json").stdout)["disks"][0]["kept"] == 0,
               "all to be old")
    assert json.loads(bim("history", "--disk", disk, "-o", "json").stdout)["entries"] == []
    assert disk.image_files() == before
    assert daemon.client.wait_ready("a") and daemon.client.wait_ready("b")


def test_cleanup(start_daemon, disk):
    """Who owned it is known; dead ones go by command, the owner never."""
    for name in ("first", "second"):
        start_daemon([disk], {"node": {"manager_id": name}}, directory=name).stop()
    start_daemon([disk], {"node": {"manager_id": "third"}}, directory="third")

    def managers():
        told = json.loads(bim("manager", "list", "--disk", disk, "-o", "json").stdout)
        return {m["manager_id"]: (m["role"], m["life"])
                for m in told["disks"][0]["managers"]}
    assert managers() == {"first": ("was owner", "dead"), "second": ("was owner", "dead"),
                          "third": ("owner", "alive")}
    assert bim("manager", "cleanup", "--disk", disk).returncode == 0
    assert managers() == {"third": ("owner", "alive")}
