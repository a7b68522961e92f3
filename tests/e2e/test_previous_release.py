"""Upgrades between the previous release of this repository and what is built now,
both ways.

tests/e2e/previous_release.sh builds the previous one, once: that takes minutes."""

import signal
import subprocess
import threading

import pytest

from lib import images
from lib.client import ROOT
from lib.deadline import wait_until
from lib.images import MIB
from lib.servers import Content

DATA = images.random_bytes(3 * MIB, 1)

pytestmark = [
    pytest.mark.xdist_group("previous"),
    pytest.mark.timeout(1200),
]


@pytest.fixture(scope="module")
def previous():
    done = subprocess.run([ROOT / "tests" / "e2e" / "previous_release.sh"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=1100, check=False)
    if done.returncode == 3:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def config(**more):
    return {"sources": {"allow_file": True}, **more}


def older(start_daemon, disk, previous):
    """The previous release knows few of the settings of today."""
    daemon = start_daemon([disk], config(), directory="old", binary=previous, run=False)
    for section in [s for s in daemon.config if s not in ("node", "api", "disks", "sources",
                                                          "backoff", "log")]:
        del daemon.config[section]
    return daemon.start()


def test_previous_release(previous, start_daemon, disk, origin, volume):
    """Forward: everything is taken over, read by nobody; and back."""
    url = origin.serve("/a", Content(DATA))
    old = older(start_daemon, disk, previous)
    old.client.ensure("a", url, uuid="u-a")
    old.client.wait_ready("a")
    asked = len(origin.requests)
    file = disk.ready_file("a", "u-a")
    inode = file.stat().st_ino
    used = volume(file, "raw", content=DATA)

    def taken(daemon):
        image = daemon.client.wait_ready("a")
        assert "rehashed" not in image.copies[0].origin
        assert file.stat().st_ino == inode and file.read_bytes() == DATA
        assert len(origin.requests) == asked
        used.check()

    new = start_daemon([disk], config(handover={"mode": "auto"}), directory="new")
    assert old.wait_exit() == 0
    taken(new)
    new.stop()
    old.start()
    taken(old)
    used.finish()


def test_what_was_in_progress_goes_on(previous, start_daemon, disk, origin):
    gate = threading.Event()
    url = origin.serve("/a", Content(DATA, gate=gate, gate_after=2 * MIB), Content(DATA))
    old = older(start_daemon, disk, previous)
    old.client.ensure("a", url, uuid="u-a")
    old.client.wait_image("a", lambda i: i.copies[0].progress >= 50, "a half of it")
    old.process.send_signal(signal.SIGTERM)
    gate.set()
    assert old.wait_exit() == 0
    new = start_daemon([disk], config(), directory="new")
    new.client.wait_ready("a")
    assert disk.ready_file("a", "u-a").read_bytes() == DATA
    wait_until(lambda: not disk.temp_file("a", "u-a").exists(), "nothing left over")
