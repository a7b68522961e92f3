"""A hand-over that somebody decides about, and each side failing in it.

Crash: SIGKILL. Hang: SIGSTOP. Down: the process is gone and not started. O is
the old manager, N the new one; a volume reads and writes on the image all
through, and its file stays the same."""

import os
import signal
from pathlib import Path

import grpc
import pytest

from lib import images
from lib.client import pb, refused
from lib.deadline import scaled, wait_until
from lib.images import MIB

CODE = grpc.StatusCode
DATA = images.random_bytes(2 * MIB, 1)
HANDOVER = {"lease": "4s", "confirm_timeout": "3s"}


class Pair:
    """O owns, N wants to; both with identities of their own."""

    def __init__(self, start_daemon, disk, files, volume):
        self.start_daemon, self.disk = start_daemon, disk
        config = {"sources": {"allow_file": True}, "handover": {
            key: f"{int(value[:-1]) * int(scaled(1))}s" for key, value in HANDOVER.items()}}
        self.o = start_daemon([disk], config, directory="o")
        (files / "a").write_bytes(DATA)
        self.o.client.ensure("a", f"file://{files}/a", uuid="u-a")
        self.o.client.wait_ready("a")
        self.file = disk.ready_file("a", "u-a")
        self.inode = self.file.stat().st_ino
        self.volume = volume(self.file, "raw", content=DATA)
        self.n = start_daemon([disk], config, directory="n")
        self.n.client.wait_disk(disk, "owned")

    def begin(self):
        status = self.n.client.handover_begin()
        assert (status.role, status.automatic) == ("candidate", False)
        return self.ready()

    def ready(self):
        self.n.client.wait_handover("ready")
        wait_until(lambda: self.o.client.handover_status().ready, "O to know it")
        return self

    def owns(self, daemon, deadline=20.0):
        """It owns, nothing was read again, the volume is fine."""
        daemon.client.wait_disk(self.disk, "ready", deadline)
        image = daemon.client.wait_ready("a")
        assert "rehashed" not in image.copies[0].origin
        assert self.file.stat().st_ino == self.inode
        assert self.file.read_bytes() == DATA
        self.volume.check()

    def waits(self, daemon, word):
        def told():
            status = daemon.client.disk(self.disk)
            return status.state == "waiting" and word in status.message
        wait_until(told, lambda: daemon.client.disk(self.disk))
        self.volume.check()


@pytest.fixture
def pair(start_daemon, disk, files, volume):
    pair = Pair(start_daemon, disk, files, volume)
    yield pair
    for daemon in (pair.o, pair.n):
        if daemon.running:
            daemon.process.send_signal(signal.SIGCONT)
    pair.volume.finish()


def stop(daemon):
    """Each thread ends what it is at; the last one is waited for."""
    os.kill(daemon.pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{daemon.pid}/task")
    wait_until(lambda: all((task / "stat").read_text().rpartition(")")[2].split()[0] == "T"
                           for task in tasks.iterdir()), "all threads stopped")


def test_confirm(pair):
    pair.begin()
    # O serves, and takes nothing new.
    assert pair.o.client.get("a").state == "ready"
    with refused(CODE.UNAVAILABLE, "hands over to manager", pair.n.endpoint["socket"]):
        pair.o.client.ensure("b", "file:///nowhere", uuid="u-b")
    status = pair.n.client.handover_confirm()
    assert status.phase == "steady" or status.role == ""
    assert pair.o.wait_exit() == 0
    pair.owns(pair.n)


def test_rollback(pair):
    pair.begin()
    pair.o.client.handover_rollback()
    pair.owns(pair.o)
    pair.n.client.wait_handover("steady")
    # It takes work again, and another hand-over.
    pair.o.client.ensure("b", "file:///nowhere", uuid="u-b")
    pair.begin()
    pair.o.client.handover_confirm()
    assert pair.o.wait_exit() == 0
    pair.owns(pair.n)


def test_nothing_to_decide(pair):
    for daemon in (pair.o, pair.n):
        for call in (daemon.client.handover_confirm, daemon.client.handover_rollback):
            with refused(CODE.FAILED_PRECONDITION, "no hand-over"):
                call()
        assert daemon.client.handover_status().phase == "steady"
    with refused(CODE.NOT_FOUND, "no process owns"):
        pair.o.client.handover_begin()


def test_dry_runs(pair):
    def dry(daemon, command, code=0):
        done = daemon.cli("handover", command, "--dry-run", check=code)
        return done.stdout if code == 0 else done.stderr

    for daemon in (pair.o, pair.n):
        for command in ("confirm", "rollback"):
            assert "no hand-over to decide about" in dry(daemon, command, 5)
    assert "no process owns a disk" in dry(pair.o, "begin", 4)
    o, n = (d.client.version_get().manager_id for d in (pair.o, pair.n))
    assert "would be asked" in dry(pair.n, "begin")
    told = pair.n.cli_json("handover", "begin", "--dry-run")["handover"]
    assert told["role"] == "" and pair.n.client.handover_status().role == ""
    assert pair.o.client.handover_status().phase == "steady"
    pair.begin()
    for daemon in (pair.o, pair.n):
        for command, would in (("confirm", "the disks would be the new manager's"),
                               ("rollback", "the disks would stay their owner's")):
            told = dry(daemon, command)
            assert would in told and o in told and n in told
    assert "goes on already: it is ready" in dry(pair.n, "begin", 5)
    third = pair.start_daemon([pair.disk], {}, directory="third")
    third.client.wait_disk(pair.disk, "owned")
    assert f"more than one manager: a hand-over to manager {n}" in dry(third, "begin", 5)
    assert pair.o.client.handover_status().phase == "begun"
    pair.owns(pair.o)
    pair.o.kill9()
    pair.n.client.wait_handover("interrupted")
    assert "would be the new manager's" in dry(pair.n, "confirm")
    assert pair.n.client.handover_status().phase == "interrupted"
    pair.n.client.handover_confirm()
    pair.owns(pair.n)


def test_1_1_n_crashes_then_confirm(pair):
    pair.begin()
    pair.n.kill9()
    call = pair.o.client.handovers.Confirm.future(
        pb.ConfirmHandoverRequest(), timeout=scaled(20))
    wait_until(lambda: "waiting to confirm until the new manager is ready"
               in pair.o.client.handover_status().message, "confirm to wait")
    assert pair.o.client.get("a").state == "ready"
    pair.n.start()
    call.result()
    assert pair.o.wait_exit() == 0
    pair.owns(pair.n)


def test_1_2_confirm_then_n_crashes(pair):
    pair.begin()
    pair.o.client.handover_confirm()
    pair.n.kill9()
    assert pair.o.wait_exit() == 0
    pair.o.start()
    pair.waits(pair.o, "was handed over to manager")
    pair.n.start()
    pair.owns(pair.n)
    # Also after another crash.
    pair.n.kill9()
    pair.waits(pair.o, "was handed over to manager")
    pair.n.start()
    pair.owns(pair.n)


@pytest.mark.parametrize("first", ["rollback", "crash"])
def test_1_3_rollback_around_a_crash_of_n(pair, first):
    pair.begin()
    if first == "crash":
        pair.n.kill9()
    pair.o.client.handover_rollback()
    if first == "rollback":
        pair.n.kill9()
    pair.owns(pair.o)
    pair.n.start()
    pair.n.client.wait_disk(pair.disk, "owned")
    pair.owns(pair.o)


def interrupted(pair):
    pair.begin()
    pair.o.kill9()
    status = pair.n.client.wait_handover("interrupted")
    assert "bim handover confirm" in status.message
    assert "bim handover rollback" in status.message
    return status


def test_2_1_o_crashes_and_nobody_decides(pair):
    interrupted(pair)
    pair.waits(pair.n, "waits for a decision")
    pair.o.start()
    pair.waits(pair.o, "waits for a decision")
    assert pair.o.client.handover_status().phase == "interrupted"
    assert "bim handover confirm" in pair.n.log()
    pair.n.client.handover_rollback()
    pair.owns(pair.o)


def test_2_2_o_crashes_then_confirm(pair):
    interrupted(pair)
    pair.n.client.handover_confirm()
    pair.owns(pair.n)


def test_2_2_confirmed_at_the_owner_that_came_back(pair):
    interrupted(pair)
    pair.o.start()
    pair.waits(pair.o, "waits for a decision")
    pair.o.client.handover_confirm()
    pair.owns(pair.n)


def test_2_3_confirm_then_o_crashes(pair):
    pair.begin()
    pair.o.client.handover_confirm()
    pair.o.kill9()
    pair.owns(pair.n)


def test_2_4_o_crashes_then_rollback(pair):
    interrupted(pair)
    pair.n.client.handover_rollback()
    pair.waits(pair.n, "rolled back")
    pair.o.start()
    pair.owns(pair.o)


def test_2_5_rollback_then_o_crashes(pair):
    pair.begin()
    pair.o.client.handover_rollback()
    pair.o.kill9()
    pair.waits(pair.n, "rolled back")
    pair.o.start()
    pair.owns(pair.o)


def test_4_a_third_manager(pair):
    pair.begin()
    third = pair.start_daemon([pair.disk], directory="third")
    with refused(CODE.FAILED_PRECONDITION, "cannot hand over to more than one manager",
                 "in progress"):
        third.client.handover_begin()
    pair.n.client.handover_confirm()
    assert pair.o.wait_exit() == 0
    pair.owns(pair.n)


def test_5_1_n_is_down(pair):
    pair.begin()
    pair.n.kill9()
    wait_until(lambda: "is down" in pair.o.client.handover_status().message,
               "N known to be down", 15)
    pair.o.client.handover_confirm()
    assert pair.o.wait_exit() == 0
    pair.o.start()
    pair.waits(pair.o, "was handed over to manager")
    pair.n.start()
    pair.owns(pair.n)


def test_5_1_hang(pair):
    pair.begin()
    stop(pair.n)
    with refused(CODE.DEADLINE_EXCEEDED, "does not answer"):
        pair.o.client.handover_confirm()
    pair.owns(pair.o)
    pair.n.process.send_signal(signal.SIGCONT)
    pair.ready()
    pair.owns(pair.o)


@pytest.mark.parametrize("how", ["down", "hangs"])
def test_5_2_rollback_without_n(pair, how):
    pair.begin()
    pair.n.kill9() if how == "down" else stop(pair.n)
    pair.o.client.handover_rollback()
    pair.owns(pair.o)
    pair.o.client.ensure("b", "file:///nowhere", uuid="u-b")


def test_6_0_o_hangs_and_nobody_decides(pair):
    pair.begin()
    stop(pair.o)
    status = wait_until(lambda: (s := pair.n.client.handover_status())
                        and "hangs" in s.message and s, "N to see it")
    assert status.phase == "ready"
    pair.n.client.wait_disk(pair.disk, "owned")
    pair.o.process.send_signal(signal.SIGCONT)
    pair.ready()
    pair.owns(pair.o)


def test_6_1_o_hangs_then_confirm_and_eviction(pair):
    pair.begin()
    stop(pair.o)
    with refused(CODE.DEADLINE_EXCEEDED, "does not answer"):
        pair.n.client.handover_confirm()
    pair.n.client.wait_disk(pair.disk, "owned")
    pair.o.kill9()
    pair.owns(pair.n)


def test_6_1_by_force(pair):
    pair.begin()
    stop(pair.o)
    pair.n.client.handover_confirm(force=True)
    assert pair.o.process.wait(timeout=scaled(5)) == -signal.SIGKILL
    pair.owns(pair.n)


def test_6_1_o_wakes_before_it_is_evicted(pair):
    pair.begin()
    stop(pair.o)
    with refused(CODE.DEADLINE_EXCEEDED, "does not answer"):
        pair.n.client.handover_confirm()
    pair.o.process.send_signal(signal.SIGCONT)
    assert pair.o.wait_exit() == 0
    pair.owns(pair.n)


def test_6_2_o_hangs_then_rollback(pair):
    pair.begin()
    stop(pair.o)
    with refused(CODE.DEADLINE_EXCEEDED, "does not answer"):
        pair.n.client.handover_rollback()
    pair.o.kill9()
    pair.waits(pair.n, "rolled back")
    pair.o.start()
    pair.owns(pair.o)


def test_status_is_watched_and_history_is_kept(pair):
    """At either side, and on the disk for whoever comes later."""
    watching = [d.client.watch_handover() for d in (pair.o, pair.n)]
    for watch in watching:
        watch.wait("steady")
    pair.begin()
    watching[0].wait("begun")
    watching[1].wait("ready")
    pair.n.client.handover_rollback()
    pair.n.client.wait_handover("steady")
    pair.begin()
    pair.n.client.handover_confirm()
    pair.owns(pair.n)
    assert pair.o.wait_exit() == 0
    for watch in watching:
        assert watch.close()[0] == "steady"
    events = pair.n.client.handover_history()
    told = [e.event for e in events]
    assert told == ["begun", "rolled-back", "begun", "confirmed", "handed-over",
                    "taken-over"], told
    assert events[-1].manager_id == pair.n.client.version_get().manager_id
    assert events[0].manager_id != events[-1].manager_id
    assert events[-1].epoch == 2 and all(e.disk == str(pair.disk) for e in events)
    assert [e.event for e in pair.n.client.handover_history(limit=2)] == told[-2:]
    # In words, too.
    said = pair.n.cli("handover", "history", check=0).stdout
    assert "handed-over" in said and events[-1].manager_id in said
