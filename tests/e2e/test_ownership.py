"""A disk has one owner: lock, owner record and epoch."""

import fcntl
import json
import os
import signal

import pytest

from lib import images
from lib.client import copy_of
from lib.deadline import wait_until
from lib.disks import Disk
from lib.processes import proc_text
from lib.servers import Content

DATA = images.random_bytes(images.MIB)


def snapshot(disk):
    """Every file of a disk with its content and inode."""
    return {str(p.relative_to(disk.path)): (p.stat().st_ino, p.read_bytes())
            for p in disk.path.rglob("*") if p.is_file()}


def test_the_owner_record(start_daemon, disk):
    daemon = start_daemon([disk])
    owner = disk.owner()
    version = daemon.client.version_get()
    stat = proc_text(daemon.pid, "stat").rsplit(")", 1)[1].split()
    assert owner["managerId"] == version.manager_id
    assert owner["pid"] == daemon.pid
    assert owner["pidNamespace"] == os.readlink(f"/proc/{daemon.pid}/ns/pid")
    assert str(owner["startTime"]) == stat[19]
    assert owner["bootId"] == open("/proc/sys/kernel/random/boot_id").read().strip()
    assert (owner["apiVersion"], owner["apiMinVersion"]) == (4, 3)
    assert owner["endpoint"] and owner["phase"]
    assert owner["epoch"] == 1 == daemon.client.disk(disk).epoch
    format_ = json.loads((disk.path / ".bim" / "format").read_text())
    assert format_ == {"version": version.disk_format_version,
                       "minVersion": version.disk_format_min_version}


def test_the_epoch_grows_with_each_owner(start_daemon, disk):
    daemon = start_daemon([disk])
    for epoch in (2, 3):
        daemon.restart()
        assert disk.owner()["epoch"] == epoch == daemon.client.disk(disk).epoch
    daemon.restart(kill=True)
    assert disk.owner()["epoch"] == 4


def test_the_lock_is_held_for_as_long_as_it_lives(start_daemon, disk):
    daemon = start_daemon([disk])
    with open(disk.path / ".bim" / "lock") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        daemon.kill9()
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_second_daemon_names_the_owner_and_leaves_it_alone(start_daemon, disks,
                                                             origin):
    shared, own = disks.directory("shared"), disks.directory("own")
    first = start_daemon([shared])
    first.client.ensure("a", origin.serve("/a", Content(DATA)))
    ready = first.client.wait_ready("a")
    before = snapshot(shared)

    second = start_daemon([shared, own])
    status = second.client.disk(shared)
    assert status.state == "owned"
    assert str(first.pid) in status.message
    assert first.client.version_get().manager_id in status.message
    # Its other disk works; what is wanted on both waits for the owned one.
    second.client.ensure("b", origin.serve("/b", Content(DATA)))
    assert second.client.wait_copy("b", own, "ready")
    seen = second.client.wait_image("b", lambda i: copy_of(i, shared).message,
                                    "a message for the owned disk")
    assert copy_of(seen, shared).state in ("pending", "unknown")
    assert str(first.pid) in copy_of(seen, shared).message or (
        "owned" in copy_of(seen, shared).message)
    assert snapshot(shared) == before, "the second daemon touched it"
    assert first.client.get("a") == ready

    # A SIGHUP, a stop of the second: nothing changes for the first.
    second.stop()
    assert snapshot(shared) == before
    assert first.client.verify("a")[-1].ok


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_it_takes_over_when_the_first_ends(start_daemon, disks, origin, how):
    shared, own = disks.directory("shared"), disks.directory("own")
    first = start_daemon([shared])
    first.client.ensure("a", origin.serve("/a", Content(DATA)))
    verified = first.client.wait_ready("a").copies[0].verified_at
    second = start_daemon([shared, own])
    assert second.client.disk(shared).state == "owned"
    first.stop() if how == "SIGTERM" else first.kill9()
    status = second.client.wait_disk(shared, "ready")
    assert status.epoch == 2 and not status.message
    assert shared.owner()["pid"] == second.pid
    # What the first one had is there, by its records, and goes on: the image
    # was wanted on all disks.
    image = second.client.wait_ready("a")
    assert copy_of(image, shared).verified_at == verified
    assert origin.count("/a") == 1

    # And the other way round.
    first.start()
    assert first.client.disk(shared).state == "owned"
    assert str(second.pid) in first.client.disk(shared).message


def test_a_stopped_owner_still_owns(start_daemon, disk):
    """Nobody owns over a living process, however silent."""
    first = start_daemon([disk])
    os.kill(first.pid, signal.SIGSTOP)
    try:
        second = start_daemon([disk])
        assert second.client.disk(disk).state == "owned"
        # Several checks later, too: another disk shows that they go on.
        late = disk.path.parent / "late"
        second.client.add_disk(Disk(late))
        (late / "longhorn-disk.cfg").unlink()
        second.client.wait_disk(late, "missing")
        assert second.client.disk(disk).state == "owned"
        assert disk.owner()["pid"] == first.pid
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert first.client.disk(disk).state == "ready"


def test_a_late_owner_notices(start_daemon, disk):
    """Another epoch in the record than its own: it must not go on."""
    daemon = start_daemon([disk])
    owner = disk.owner()
    owner["epoch"] += 5
    (disk.path / ".bim" / "owner").write_text(json.dumps(owner))
    status = daemon.client.wait_disk(disk, "failed")
    assert "epoch" in status.message


def test_an_unreadable_owner_record_stops_the_disk_only(start_daemon, disks):
    bad, good = disks.directory("bad"), disks.directory("good")
    daemon = start_daemon([bad, good])
    daemon.stop()
    saved = (bad.path / ".bim" / "owner").read_bytes()
    (bad.path / ".bim" / "owner").write_bytes(b"\0garbage")
    daemon.start()
    status = daemon.client.disk(bad)
    assert status.state == "failed" and "owner" in status.message
    assert daemon.client.disk(good).state == "ready"
    # Never guessed, never overwritten; repaired by hand it is taken.
    assert (bad.path / ".bim" / "owner").read_bytes() == b"\0garbage"
    (bad.path / ".bim" / "owner").write_bytes(saved)
    assert daemon.client.wait_disk(bad, "ready").epoch == 2


def test_a_newer_disk_format_is_refused_by_name(start_daemon, disk):
    daemon = start_daemon([disk])
    daemon.stop()
    file = disk.path / ".bim" / "format"
    file.write_text('{"version": 99, "minVersion": 98}')
    daemon.start()
    status = daemon.client.disk(disk)
    assert status.state == "failed" and "98" in status.message
    # Newer, but readable by us.
    file.write_text('{"version": 99, "minVersion": 1}')
    daemon.client.wait_disk(disk, "ready")


def test_one_daemon_twice_the_same_path(start_daemon, disk):
    """Two entries of the list that mean one directory never own it twice."""
    link = disk.path.parent / "link"
    link.symlink_to(disk.path)
    client = start_daemon([disk, link]).client
    states = sorted(d.state for d in client.list_disks())
    assert states.count("ready") == 1 and len(states) == 2, client.list_disks()


def test_wait_until_owner_ends_many(start_daemon, disks):
    """Five daemons want one disk: one has it, at any time."""
    shared = disks.directory("shared")
    daemons = [start_daemon([shared]) for _ in range(5)]
    for left in range(5, 0, -1):
        def owners():
            return [d for d in daemons if d.running
                    and d.client.disk(shared).state == "ready"]
        owner = wait_until(owners, f"an owner among {left}")
        assert len(owner) == 1
        assert shared.owner()["pid"] == owner[0].pid
        owner[0].kill9()
