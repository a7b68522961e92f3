"""Killed at each write of a hand-over: whatever was lost, one manager owns the
disk in the end, the one that the decision chose, and it has everything."""

import signal

import grpc
import pytest

from lib import images
from lib.deadline import wait_until
from lib.images import MIB

DATA = images.random_bytes(MIB, 1)
WRITING, WRITTEN = "store.handover.writing", "store.handover.written"


class Pair:
    def __init__(self, start_daemon, disk, files, o="", n=""):
        self.disk = disk
        config = {"sources": {"allow_file": True},
                  "handover": {"lease": "4s", "confirm_timeout": "10s"}}
        (files / "a").write_bytes(DATA)
        self.o = start_daemon([disk], config, directory="o", env=fail_at(o))
        self.o.client.ensure("a", f"file://{files}/a", uuid="u-a")
        self.o.client.wait_ready("a")
        self.inode = disk.ready_file("a", "u-a").stat().st_ino
        self.n = start_daemon([disk], config, directory="n", env=fail_at(n))
        self.n.client.wait_disk(disk, "owned")

    def call(self, daemon, what):
        """It may fail, soon: who was to answer was killed."""
        try:
            getattr(daemon.client, f"handover_{what}")()
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE, error

    def killed(self, daemon):
        assert daemon.wait_exit() == -signal.SIGKILL
        daemon.env = {}

    def owns(self, owner, other):
        """`owner` and nobody else, with all that there was."""
        owner.client.wait_disk(self.disk, "ready", 20)
        image = owner.client.wait_ready("a")
        assert "rehashed" not in image.copies[0].origin
        assert self.disk.ready_file("a", "u-a").stat().st_ino == self.inode
        assert self.disk.ready_file("a", "u-a").read_bytes() == DATA
        if other.running:
            wait_until(lambda: other.client.disk(self.disk).state in ("owned", "waiting"),
                       lambda: other.client.disk(self.disk))


def fail_at(failpoint):
    return {"BIM_FAILPOINTS": f"{failpoint.partition('@')[0]}=kill@"
            f"{failpoint.partition('@')[2] or 1}"} if failpoint else {}


@pytest.fixture
def pair(start_daemon, disk, files):
    def make(**failpoints):
        return Pair(start_daemon, disk, files, **failpoints)
    return make


def test_before_it_is_begun(pair):
    """Nothing was agreed: whoever is there owns."""
    p = pair(o=WRITING)
    p.call(p.n, "begin")
    p.killed(p.o)
    p.owns(p.n, p.o)
    p.o.start()
    p.owns(p.n, p.o)


@pytest.mark.parametrize("decision", ["confirm", "rollback"])
@pytest.mark.parametrize("failpoint", [WRITTEN, f"{WRITING}@2"])
def test_undecided(pair, failpoint, decision):
    """Begun, and what was to follow is not on the disk: somebody decides."""
    p = pair(o=failpoint)
    p.call(p.n, "begin")
    if failpoint != WRITTEN:
        p.n.client.wait_handover("ready")
        p.call(p.n, "confirm")
    p.killed(p.o)
    # (A confirmation that was asked for at the new one goes on by itself.)
    asked = failpoint != WRITTEN
    if not asked:
        p.n.client.wait_handover("interrupted")
        p.n.client.wait_disk(p.disk, "waiting")
        p.call(p.n, decision)
    if asked or decision == "confirm":
        p.owns(p.n, p.o)
        p.o.start()
        p.owns(p.n, p.o)
    else:
        p.o.start()
        p.owns(p.o, p.n)


@pytest.mark.parametrize("failpoint", [f"{WRITTEN}@2", "store.handover.releasing"])
def test_confirmed(pair, failpoint):
    p = pair(o=failpoint)
    p.call(p.n, "begin")
    p.n.client.wait_handover("ready")
    p.call(p.o, "confirm")
    p.killed(p.o)
    p.owns(p.n, p.o)
    p.o.start()
    p.owns(p.n, p.o)


def test_rolled_back(pair):
    p = pair(o=f"{WRITTEN}@2")
    p.call(p.n, "begin")
    p.n.client.wait_handover("ready")
    p.call(p.o, "rollback")
    p.killed(p.o)
    p.n.client.wait_disk(p.disk, "waiting")
    p.o.start()
    p.owns(p.o, p.n)


@pytest.mark.parametrize("failpoint", ["store.claim.locked", "store.claim.owner_written"])
def test_while_it_claims(pair, failpoint):
    p = pair(n=failpoint)
    p.call(p.n, "begin")
    p.n.client.wait_handover("ready")
    p.call(p.o, "confirm")
    p.killed(p.n)
    assert p.o.wait_exit() == 0
    p.n.start()
    p.owns(p.n, p.o)


@pytest.mark.parametrize("decision", ["confirm", "rollback"])
@pytest.mark.parametrize("failpoint", [WRITING, WRITTEN])
def test_who_decides_for_a_dead_owner(pair, failpoint, decision):
    """The candidate writes the decision down, and is killed at that."""
    p = pair(n=failpoint)
    p.call(p.n, "begin")
    p.n.client.wait_handover("ready")
    p.o.kill9()
    p.n.client.wait_handover("interrupted")
    p.call(p.n, decision)
    p.killed(p.n)
    p.n.start()
    if failpoint == WRITING:
        p.n.client.wait_disk(p.disk, "waiting")
        p.call(p.n, decision)
    if decision == "rollback":
        p.o.start()
        p.owns(p.o, p.n)
    else:
        p.owns(p.n, p.o)


def test_while_it_is_forgotten(pair):
    """A stop after a hand-over ends what its decision keeps others from."""
    p = pair(n="store.handover.removing")
    p.call(p.n, "begin")
    p.n.client.wait_handover("ready")
    p.call(p.o, "confirm")
    assert p.o.wait_exit() == 0
    p.owns(p.n, p.o)
    p.n.process.send_signal(signal.SIGTERM)
    p.killed(p.n)
    p.o.start()
    p.o.client.wait_disk(p.disk, "waiting")
    p.n.start()
    p.owns(p.n, p.o)
