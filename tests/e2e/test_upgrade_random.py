"""Upgrades at random: managers that take turns, crash, hang and are asked to stop
at any moment, decisions at either side, with a volume at work all through.

Every failure tells the seed and what was done:
BIM_TEST_SEED=N pytest test_upgrade_random.py -k 'random[CHAIN]' does it again."""

import json
import os
import random
import signal
import time

import grpc
import pytest

from lib import images
from lib.client import Client, pb
from lib.daemon import BINARY, duration
from lib.deadline import scaled, wait_until
from lib.images import KIB, MIB
from lib.servers import Content

DATA = images.random_bytes(2 * MIB, 1)
SEED = int(os.environ.get("BIM_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
UPGRADES = 200 if os.environ.get("BIM_TEST_LONG") == "1" else 20
CHAINS = 4
EDITIONS = [b for b in (BINARY, BINARY.with_name("bim-newer")) if b.exists()]
CONFIG = {"handover": {"lease": duration(scaled(1)), "confirm_timeout": duration(scaled(1)),
                       "drain_timeout": duration(scaled(1))}}
REQUESTS = {"begin": ("Begin", pb.BeginHandoverRequest()),
            "confirm": ("Confirm", pb.ConfirmHandoverRequest()),
            "force": ("Confirm", pb.ConfirmHandoverRequest(force=True)),
            "rollback": ("Rollback", pb.RollbackHandoverRequest())}
# What a call may fail with; everything else is a fault.
EXPECTED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION,
            grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.NOT_FOUND)


class Call:
    """One that goes on while other things happen."""

    def __init__(self, daemon, what):
        self.what, self.daemon = what, daemon
        self.client = Client(f"unix:{daemon.socket}")
        method, request = REQUESTS[what]
        self.future = getattr(self.client.handovers, method).future(
            request, timeout=scaled(15))

    def answer(self):
        """None, or the error."""
        try:
            self.future.result()
            return None
        except grpc.RpcError as error:
            assert error.code() in EXPECTED, error
            assert "Deadline Exceeded" not in error.details(), f"{self.what} hangs: {error}"
            return error
        finally:
            self.client.close()


class Chain:
    """Two identities, each a daemon or several in turn; `old` owns the disk, and
    upgrade() makes `new` its owner, or not."""

    def __init__(self, start_daemon, disk, origin, volume, chain):
        self.random, self.steps = random.Random(f"{SEED}:{chain}"), []
        self.start_daemon, self.disk, self.origin = start_daemon, disk, origin
        self.began = time.monotonic()
        self.calls, self.killed, self.termed, self.stopped = [], set(), set(), set()
        self.old, self.new = (start_daemon([disk], CONFIG, directory=name) for name in "ab")
        self.ids = {d.client.version_get().manager_id: d for d in (self.old, self.new)}
        self.inodes, self.epoch, self.owner_pid = {}, 1, self.old.pid
        self.add_image(DATA)
        file = next(iter(self.inodes))
        self.volume = volume(file, "raw", content=DATA)
        self.add_image(DATA[:64 * KIB])

    def add_image(self, data):
        name = f"i{len(self.inodes)}"
        url = self.origin.serve(f"/{name}", Content(data))
        self.old.client.ensure(name, url, uuid=f"u-{name}")
        self.old.client.wait_ready(name)
        file = self.disk.ready_file(name, f"u-{name}")
        self.inodes[file] = (name, data, file.stat().st_ino)

    def step(self, text):
        self.steps.append(f"{time.monotonic() - self.began:7.3f} {text}")

    def name(self, daemon):
        return daemon.directory.name

    @property
    def both(self):
        return [self.old, self.new]

    # --- what happens

    def pause(self):
        """Not at all, or any time up to a second, short ones more often."""
        if self.random.random() < 0.7:
            time.sleep(scaled(10 ** self.random.uniform(-3, 0)))

    def run(self, daemon, *arguments):
        daemon.binary = self.random.choice(EDITIONS)
        self.step(f"start {self.name(daemon)}, {daemon.binary.name} {' '.join(arguments)}")
        daemon.spawn(arguments) if arguments else daemon.start()

    def call(self, daemon, what):
        self.step(f"{what} at {self.name(daemon)}")
        if what == "force":
            self.killed.update(d.pid for d in self.both if d.process)
        self.calls.append(Call(daemon, what))

    def await_ready(self):
        """For a while: what hangs or is gone never is."""
        end = time.monotonic() + scaled(1)
        while time.monotonic() < end:
            status = self.ask(self.new, lambda c: c.handover_status(), scaled(0.5))
            if status and status.phase == "ready":
                return
            time.sleep(0.01)  # how often it is asked

    def hurt(self, daemon):
        """Something happens to it, if it is there."""
        what = self.random.choice(["kill", "kill", "stop", "stop", "term"])
        self.step(f"{what} {self.name(daemon)}")
        if not daemon.running:
            return
        if what == "kill":
            self.killed.add(daemon.pid)
            daemon.process.send_signal(signal.SIGKILL)
        elif what == "term":
            self.termed.add(daemon.pid)
            daemon.process.send_signal(signal.SIGTERM)
        else:
            self.stopped.add(daemon)
            daemon.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        for daemon in self.stopped:
            self.step(f"continue {self.name(daemon)}")
            if daemon.running:
                daemon.process.send_signal(signal.SIGCONT)
        self.stopped.clear()

    def maybe_hurt(self):
        while self.random.random() < 0.35:
            self.pause()
            self.hurt(self.random.choice(self.both))
        if self.random.random() < 0.5:
            self.pause()
            self.go_on()

    def decide(self):
        what = self.random.choice(["confirm"] * 4 + ["rollback"] * 3 + ["force"])
        self.call(self.new if what == "force" else self.random.choice(self.both), what)

    def upgrade(self):
        kind = self.random.choice(["manual"] * 5 + ["auto"] * 2 + ["replace"])
        self.step(f"--- {kind}: from {self.name(self.old)} to {self.name(self.new)}")
        self.calls, self.killed, self.termed = [], set(), set()
        if self.new.running and (kind != "manual" or self.random.random() < 0.5):
            self.step(f"end {self.name(self.new)}")
            self.new.stop()
        other = self.new
        if kind == "replace":
            self.new = self.twin(self.old)
        if kind == "manual":
            if not self.new.running:
                self.run(self.new)
            self.maybe_hurt()
            self.call(self.new, "begin")
        else:
            self.run(self.new, "--handover=auto")
        self.maybe_hurt()
        self.await_ready() if self.random.random() < 0.5 else self.pause()
        for _ in range(self.random.choice([0, 1, 1, 1, 2]) if kind == "manual" else 0):
            self.decide()
            self.maybe_hurt()
        self.go_on()
        chosen = self.answers()
        self.settle(kind, chosen)
        self.check()
        if kind == "replace":
            assert not self.new.running
            self.new = other

    def twin(self, daemon):
        """Another process of the same configuration and identity."""
        twin = self.start_daemon([self.disk], daemon.config, run=False,
                                 directory=f"{self.name(daemon)}+")
        twin.state_dir, twin.socket = daemon.state_dir, daemon.socket
        return twin

    # --- what comes of it

    def answers(self):
        """All calls are answered; the side that was promised the disk, if one was."""
        done = []
        for call in self.calls:
            error = call.answer()
            self.step(f"{call.what} at {self.name(call.daemon)}: "
                      + (f"{error.code().name} {error.details()}" if error else "done"))
            if not error and call.what != "begin":
                done.append(self.old if call.what == "rollback" else self.new)
        self.calls = []
        assert len(set(map(self.name, done))) < 2, "both decisions were done"
        return done[0] if done else None

    def ask(self, daemon, question, timeout=None):
        """None when it is gone, goes just now, or does not serve yet."""
        if not daemon.running:
            return None
        client = Client(f"unix:{daemon.socket}")
        try:
            if timeout:
                grpc.channel_ready_future(client.channel).result(timeout)
            return question(client)
        except (grpc.RpcError, grpc.FutureTimeoutError) as error:
            code = getattr(error, "code", lambda: None)()
            assert timeout or code == grpc.StatusCode.UNAVAILABLE, error
            return None
        finally:
            client.close()

    def record(self):
        try:
            return json.loads((self.disk.path / ".bim" / "handover").read_text())
        except FileNotFoundError:
            return {}

    def holders(self):
        """The processes that hold the disk's lock."""
        inode = (self.disk.path / ".bim" / "lock").stat().st_ino
        with open("/proc/locks", encoding="ascii") as locks:
            lines = [line.split() for line in locks]
        return {int(line[4]) for line in lines
                if line[1] == "FLOCK" and line[5].split(":")[2] == str(inode)}

    def look(self):
        """Who ended, ended properly; the one that owns with nothing to be decided, or
        None."""
        for daemon in self.both:
            if daemon.process and not daemon.running:
                code = daemon.wait_exit()
                assert code == 0 or (code == -signal.SIGKILL and daemon.pid in self.killed), \
                    f"{self.name(daemon)} ended with {code}"
        for daemon in self.both:
            seen = self.ask(daemon, lambda c: (c.disk(self.disk).state,
                                               c.handover_status().phase))
            if seen == ("ready", "steady") and self.holders() == {daemon.pid}:
                return daemon
        return None

    def settle(self, kind, chosen):
        """Until one owns: who was chosen is started, and when nobody has decided,
        somebody does."""
        end, patience = time.monotonic() + scaled(30), time.monotonic() + scaled(1)
        while True:
            owner = self.look()
            # One that was told to take over goes on until it has.
            waits = kind != "manual" and self.new.running and owner is not self.new
            if owner and not waits and not any(
                    d.running and d.pid in self.termed for d in self.both):
                break
            assert time.monotonic() < end, f"nobody owns: {self.state()}"
            record = self.record()
            phase = record.get("phase")
            # (Who was told to take over is in nobody's way.)
            wanted = self.both
            if phase in ("confirmed", "rolled-back") and not record.get("automatic"):
                wanted = [self.by_id(record["candidate" if phase == "confirmed" else "owner"])]
            if not any(d.running for d in wanted):
                self.run(self.random.choice(wanted))
            elif time.monotonic() > patience and phase == "begun" and not record["automatic"]:
                daemon = self.random.choice([d for d in self.both if d.running])
                self.call(daemon, self.random.choice(["confirm", "rollback"]))
                chosen = self.answers() or chosen
                patience = time.monotonic() + scaled(1)
            time.sleep(0.02)  # how often it is looked at
        self.step(f"{self.name(owner)} owns")
        # A regular stop ends what a decision keeps others from.
        if chosen and kind == "manual" and not self.termed:
            assert owner is chosen, f"{self.name(chosen)} was to own: {self.state()}"
        if owner is self.new:
            self.old, self.new = self.new, self.old
        self.old.wait_endpoint()

    def by_id(self, manager_id):
        daemon = self.ids[manager_id]
        return next(d for d in self.both if d.state_dir == daemon.state_dir)

    def state(self):
        return {"record": self.record(), "lock": self.holders(), **{
            f"{self.name(d)}, pid {d.pid}": self.ask(
                d, lambda c: f"{c.disk(self.disk)}; {c.handover_status()}", scaled(2))
            for d in self.both if d.process}}

    def check(self):
        owner = self.old.client
        assert self.holders() == {self.old.pid}
        if self.new.running:
            wait_until(lambda: self.ask(self.new, lambda c: c.disk(self.disk).state)
                       in (None, "owned", "waiting"), lambda: self.state())
        epoch = owner.disk(self.disk).epoch
        assert epoch > self.epoch or (epoch == self.epoch and self.old.pid == self.owner_pid)
        assert self.disk.owner()["epoch"] == epoch
        self.epoch, self.owner_pid = epoch, self.old.pid
        for file, (name, data, inode) in self.inodes.items():
            image = owner.get(name)
            assert image.state == "ready" and "rehashed" not in image.copies[0].origin, image
            assert file.stat().st_ino == inode
            assert file.read_bytes() == data
            assert self.origin.count(f"/{name}") == 1, f"{name} was downloaded again"
        self.volume.check()
        self.add_image(images.random_bytes(64 * KIB, len(self.inodes)))


@pytest.mark.timeout(60 + 40 * UPGRADES // CHAINS)
@pytest.mark.parametrize("chain", range(CHAINS))
def test_upgrades_at_random(start_daemon, daemons, disk, origin, volume, chain):
    print(f"BIM_TEST_SEED={SEED}")
    made = Chain(start_daemon, disk, origin, volume, chain)
    try:
        for _ in range(UPGRADES // CHAINS):
            made.upgrade()
        made.volume.finish()
    except Exception as error:
        raise AssertionError("\n".join([
            f"BIM_TEST_SEED={SEED}, chain {chain}: {error}", *made.steps])) from error
    finally:
        made.go_on()
