"""Upgrades at random: managers that take turns, crash, hang and are asked to stop,
decisions at any moment and at either side, with a volume at work all through.

The seed is printed, and is in every failure: BIM_TEST_SEED=N repeats it."""

import os
import random
import signal
import time

import grpc
import pytest

from lib import images
from lib.client import Client
from lib.deadline import scaled, wait_until
from lib.images import MIB
from lib.servers import Content

DATA = images.random_bytes(2 * MIB, 1)
SEED = int(os.environ.get("BIM_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
UPGRADES = 200 if os.environ.get("BIM_TEST_LONG") == "1" else 20
CHAINS = 4


class Chain:
    """Two managers, `old` owns; upgrade() makes the other one the owner, or not."""

    def __init__(self, start_daemon, disk, origin, volume, seed):
        self.random, self.steps = random.Random(seed), []
        self.disk, self.origin = disk, origin
        config = {"handover": {"lease": f"{int(scaled(2))}s",
                               "confirm_timeout": f"{int(scaled(3))}s"}}
        self.managers = [start_daemon([disk], config, directory=name, run=name == "a")
                         for name in ("a", "b")]
        self.old, self.new = self.managers
        client = self.old.client
        client.ensure("a", origin.serve("/a", Content(DATA)), uuid="u-a")
        client.wait_ready("a")
        self.file = disk.ready_file("a", "u-a")
        self.inode, self.epoch = self.file.stat().st_ino, 1
        self.volume = volume(self.file, "raw", content=DATA)

    def step(self, text):
        self.steps.append(text)

    def name(self, daemon):
        return daemon.directory.name

    def call(self, daemon, what):
        """Whether it succeeded: it may fail, but never hang."""
        self.step(f"{what} at {self.name(daemon)}")
        if not daemon.running:
            return False
        client = Client(daemon.address)
        try:
            getattr(client, f"handover_{what}")()
            self.step("done")
            return True
        except grpc.RpcError as error:
            self.step(f"{error.code().name}: {error.details()}")
            return False
        finally:
            client.close()

    def hurt(self):
        """Something happens to one of both, or nothing."""
        daemon = self.random.choice(self.managers)
        what = self.random.choice(["kill", "stop", "term", "none", "none"])
        self.step(f"{what} {self.name(daemon)}")
        if not daemon.running or what == "none":
            return
        if what == "kill":
            daemon.kill9()
        elif what == "term":
            daemon.stop()
        else:
            os.kill(daemon.pid, signal.SIGSTOP)
            time.sleep(self.random.random() * scaled(0.5))  # how long it hangs
            os.kill(daemon.pid, signal.SIGCONT)

    def start(self, daemon):
        if not daemon.running:
            self.step(f"start {self.name(daemon)}")
            daemon.start()

    def upgrade(self):
        self.step("--- upgrade")
        self.start(self.new)
        self.maybe_hurt()
        if self.new.running:
            self.call(self.new, "begin")
        self.maybe_hurt()
        decision = self.random.choice(["confirm", "rollback"])
        side = self.random.choice(self.managers)
        self.call(side, decision)
        self.maybe_hurt()
        self.settle()

    def maybe_hurt(self):
        if self.random.random() < 0.4:
            self.hurt()

    def settle(self):
        """Both run; when it is undecided, somebody decides, until one owns."""
        for _ in range(10):
            for daemon in self.managers:
                self.start(daemon)
            if self.owner_within(scaled(4)):
                break
            self.call(self.random.choice(self.managers),
                      self.random.choice(["confirm", "rollback"]))
        owners = self.owners()
        assert len(owners) == 1, {
            self.name(d): self.ask(d, lambda c: str(c.disk(self.disk)))
            for d in self.managers}
        self.old = owners[0]
        self.new = next(d for d in self.managers if d is not self.old)
        self.check()

    def ask(self, daemon, question):
        """None when it is gone, or goes just now."""
        if not daemon.running:
            return None
        try:
            return question(daemon.client)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE, error
            return None

    def state(self, daemon):
        return self.ask(daemon, lambda client: client.disk(self.disk).state)

    def owners(self):
        return [d for d in self.managers if self.state(d) == "ready"]

    def owner_within(self, seconds):
        """One owns, and no hand-over goes on at it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for daemon in self.owners():
                status = self.ask(daemon, lambda client: client.handover_status())
                if status and status.phase in ("steady", "idle"):
                    return True
            time.sleep(0.05)  # how often it is asked
            if not all(d.running for d in self.managers):
                return bool(self.owners())
        return False

    def check(self):
        owner = self.old.client
        image = owner.wait_ready("a")
        assert "rehashed" not in image.copies[0].origin
        epoch = owner.disk(self.disk).epoch
        assert epoch >= self.epoch, "an epoch only grows"
        self.epoch = epoch
        assert self.file.stat().st_ino == self.inode
        assert self.file.read_bytes() == DATA
        assert self.origin.count("/a") == 1, "nothing is downloaded again"
        self.volume.check()


@pytest.mark.timeout(120 + 15 * UPGRADES)
@pytest.mark.parametrize("chain", range(CHAINS))
def test_upgrades_at_random(start_daemon, disk, origin, volume, chain):
    print(f"BIM_TEST_SEED={SEED}")
    made = Chain(start_daemon, disk, origin, volume, SEED * CHAINS + chain)
    try:
        for _ in range(UPGRADES // CHAINS):
            made.upgrade()
        made.volume.finish()
    except BaseException:
        print("\n".join(made.steps))
        raise
    finally:
        for daemon in made.managers:
            if daemon.running:
                os.kill(daemon.pid, signal.SIGCONT)
