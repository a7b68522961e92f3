"""kill -9 at every step of ingest, commit and all else that has a failpoint.

The failpoints are found in the sources, so that a new one is tested as soon as
it exists; one that no scenario here reaches fails. Each scenario first runs
once with every failpoint traced; then, for each failpoint, it runs again and
the daemon is killed there - at the first time and at the last.

After each kill and a restart without failpoints:
- what has the name of a ready file is complete and right (looked at before the
  restart, too);
- the image that was on its way gets ready, or is gone if it was removed;
- the image that was ready stays ready, is not read again, not fetched again;
- nothing half-written is left.
"""

import os
import re
import threading
import time

import grpc
import pytest

from lib import images
from lib.client import ROOT, copy_of, pb, refused
from lib.daemon import Daemon
from lib.deadline import scaled, wait_until
from lib.disks import Disk, DiskMaker, stamp
from lib.images import MIB
from lib.processes import proc_io, run
from lib.servers import Content, Origin

pytestmark = pytest.mark.xdist_group("kill9")  # for `traces`

OLD = images.random_bytes(24 * MIB, 1)
NEW = images.random_bytes(6 * MIB + 512, 2)
# Of which most is also in OLD.
DELTA = OLD[:4 * MIB] + NEW[:2 * MIB + 512]
UUID = "u-new"
# Reached by time, too: the scenario that waits for it.
JOURNAL = ("store.journal.appended", "store.journal.data_synced",
           "store.journal.synced")


# Of what a daemon does not do with its images: test_legacy_disk.py and
# test_handover_kill9.py kill there.
ELSEWHERE = ("store.migrate.", "store.handover.")


def names_in_sources():
    found = set()
    for room in ("pkg", "daemon"):
        for path in (ROOT / room).rglob("*"):
            if path.suffix in (".cc", ".h") and path.name != "failpoint.h":
                found |= set(re.findall(r'BIM_FAILPOINT(?:_ERROR)?\(\s*"([^"]+)"',
                                        path.read_text()))
    return sorted(name for name in found if not name.startswith(ELSEWHERE))


FAILPOINTS = names_in_sources()


class World:
    """Two disks, an origin, a daemon with one image ready. For "delta" also
    another daemon, that has the new image."""

    def __init__(self, root, kind):
        self.kind = kind
        self.new = DELTA if kind == "delta" else NEW
        self.donor = None
        root.mkdir()
        self.maker = DiskMaker(root)
        self.origin = Origin()
        self.gate = threading.Event()
        self.daemon = None
        try:
            if kind in ("reflink", "delta"):
                xfs = self.maker.loop("xfs", "xfs", 300, init=False)
                self.disks = [Disk(xfs.path / "one"), Disk(xfs.path / "two")]
            else:
                # Neither by path nor by uuid is one of them always the first.
                self.disks = [self.maker.directory("one", uuid="ffffffff-first"),
                              self.maker.directory("two", uuid="00000000-second")]
            self.origin.serve("/old", Content(OLD))
            good = Content(self.new)
            if kind == "slow":
                # Long enough for the journal to be synced by time.
                self.origin.serve("/new", Content(self.new, gate=self.gate,
                                                  gate_after=4 * MIB), good)
            else:
                self.origin.serve("/new", good)
            if kind == "delta":
                self.donor = Daemon(root / "donor", [self.maker.directory("donor")])
                self.donor.start()
                self.donor.client.ensure("new", self.origin.url("/new"), uuid=UUID)
                self.donor.client.wait_ready("new")
            # Damage is found by Verify, not by chance before it.
            self.daemon = Daemon(
                root / "daemon", self.disks,
                {"disks": {"check_interval": "1h"}} if kind == "repair" else {})
            self.daemon.start()
            self.daemon.client.ensure("old", self.origin.url("/old"))
            self.old = self.daemon.client.wait_ready("old")
            self.old_stamps = self.stamps()
            self.daemon.stop()
        except BaseException:
            self.close()
            raise

    def stamps(self):
        return [stamp(c.file_path) for c in self.old.copies]

    def want(self, client):
        source = {"url": self.origin.url("/new")}
        if self.kind == "delta":
            source = {"peers": [self.donor.address]}
        elif self.kind == "upload":
            source = {"upload": True}
        client.ensure("new", uuid=UUID, sha512=images.sha512(self.new), **source)

    def bring(self):
        """An upload, from its beginning or where it is."""
        url = self.daemon.data_url("new", UUID).replace("/data", "/upload")
        said = run(["curl", "-sS", "--noproxy", "*", "-I", url]).stdout.decode().lower()
        if "upload-complete: ?1" in said:
            return
        at = int(re.search(r"upload-offset: (\d+)", said).group(1))
        run(["curl", "-sS", "--fail-with-body", "--noproxy", "*", "-X", "PATCH",
             "-H", f"Upload-Offset: {at}", "-H", f"Upload-Length: {len(self.new)}",
             "--data-binary", "@-", url], input=self.new[at:])

    def repair(self, client):
        return list(client.images.Verify(
            pb.VerifyRequest(name="new", repair=True), timeout=scaled(60)))[-1]

    def run(self, failpoints):
        """The scenario; returns when it is complete or the daemon is gone."""
        synced = self.daemon.directory / "synced"
        # The exact name goes before "*", and a kill there ends the waiting.
        traced = ("" if failpoints.startswith("store.journal.synced=")
                  else f",store.journal.synced=trace:{synced}")
        self.daemon.env = {"BIM_FAILPOINTS":
                           failpoints + (traced if self.kind == "slow" else "")}
        try:
            self.daemon.start()
            client = self.daemon.client
            self.want(client)
            if self.kind == "slow":
                self.origin.wait_count("/new", 1)
                wait_until(lambda: not self.daemon.running or synced.exists(),
                           "a synced journal", 20)
                self.gate.set()
            elif self.kind == "upload":
                self.bring()
            client.wait_ready("new")
            if self.kind == "remove":
                client.remove("new")
            elif self.kind == "repair":
                self.damage()
                assert self.repair(client).ok
            self.daemon.stop()
        except (grpc.RpcError, AssertionError):
            # Expected when it was killed, and only then.
            self.daemon.process.wait(timeout=scaled(10))
            if self.daemon.process.returncode != -9:
                raise
        finally:
            self.gate.set()

    def damage(self):
        """A bit of the second disk's copy, behind the daemon's back."""
        file = self.disks[1].ready_file("new", UUID)
        stat = file.stat()
        with open(file, "r+b") as f:
            f.seek(3 * MIB)
            f.write(bytes([NEW[3 * MIB] ^ 1]))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def killed(self):
        return self.daemon.process.returncode == -9

    def assert_nothing_half_written_is_ready(self):
        for disk in self.disks:
            for name, uuid, data in (("new", UUID, self.new),
                                     ("old", self.old.spec.uuid, OLD)):
                file = disk.ready_file(name, uuid)
                if file.exists():
                    found = file.read_bytes()
                    if self.kind == "repair" and disk is self.disks[1]:
                        # Replaced, or as it was damaged.
                        found = bytearray(found)
                        found[3 * MIB] = data[3 * MIB]
                    assert found == data, f"{file} is not whole"
            assert disk.ready_file("old", self.old.spec.uuid).exists()

    def recover(self):
        self.daemon.env = {}
        self.daemon.start()
        client = self.daemon.client
        if self.kind == "remove":
            # Removed, or still wanted: both are fine, and removing again ends
            # it in any case.
            try:
                client.remove("new", UUID)
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.NOT_FOUND, error
            with refused(grpc.StatusCode.NOT_FOUND):
                client.get("new", UUID)
        else:
            # An Ensure that was not answered may not have happened.
            self.want(client)
            if self.kind == "upload":
                self.bring()
            if self.kind == "repair":
                # It may not even be ready yet, or be damaged.
                client.wait_image(
                    "new", lambda i: {c.state for c in i.copies}
                    <= {"ready", "failed"}, "settled")
                done = self.repair(client)
                assert done.ok, done
            ready = client.wait_ready("new")
            assert ready.current_sha512 == images.sha512(self.new)
        return client

    def assert_recovered(self):
        client = self.recover()
        read = proc_io(self.daemon.pid)["rchar"]
        # (A repair reads each copy of the new one more than once.)
        most = len(OLD) * (2 if self.kind == "repair" else 1)
        assert read < most, f"{read} bytes were read: more than the new image"
        old = client.get("old")
        assert old.state == "ready"
        for disk in self.disks:
            assert copy_of(old, disk).verified_at == copy_of(self.old, disk).verified_at
        assert self.stamps() == self.old_stamps
        assert self.origin.count("/old") == 1
        expected = [f"old-{self.old.spec.uuid}", f"new-{UUID}"]
        if self.kind == "remove":
            expected.pop()
        for disk in self.disks:
            assert not disk.temp_files()
            assert disk.image_files() == sorted(
                path for directory in expected
                for path in [directory] + [f"{directory}/backing{suffix}"
                                           for suffix in ("", ".bim", ".cfg")])
            if self.kind != "remove":
                assert disk.ready_file("new", UUID).read_bytes() == self.new
        # All of it is also there after another restart.
        self.daemon.restart(kill=True)
        assert {i.state for i in self.daemon.client.list_all()} <= {"ready"}

    def close(self):
        for daemon in (self.daemon, self.donor):
            if daemon is not None:
                daemon.abandon()
        self.origin.close()
        self.maker.close()


SCENARIOS = ("download", "slow", "reflink", "remove", "upload", "delta", "repair")


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """{failpoint: (scenario, how often it was reached there)}."""
    root = tmp_path_factory.mktemp("traces")
    reached = {}
    for kind in SCENARIOS:
        world = World(root / kind, kind)
        try:
            trace = root / f"{kind}.trace"
            world.run(f"*=trace:{trace}")
            assert world.daemon.process.returncode == 0
            lines = trace.read_text().split()
            if kind == "slow":
                lines += (world.daemon.directory / "synced").read_text().split()
        finally:
            world.close()
        for name in lines:
            if name not in reached or (kind == "slow" and name in JOURNAL):
                reached[name] = (kind, lines.count(name))
    return reached


def test_there_are_failpoints(traces):
    assert FAILPOINTS, "no BIM_FAILPOINT in the sources"
    unreached = [n for n in FAILPOINTS if n not in traces]
    assert not unreached, f"no scenario reaches {unreached}"


@pytest.mark.parametrize("which", ["first", "last"])
@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_killed_at(traces, scratch, failpoint, which):
    assert failpoint in traces, f"no scenario reaches {failpoint}: add one"
    kind, count = traces[failpoint]
    if which == "last" and count == 1:
        return  # the first is the last
    world = World(scratch / "world", kind)
    try:
        world.run(f"{failpoint}=kill@{1 if which == 'first' else count}")
        if which == "last" and not world.killed():
            # It may be reached less often than when it was traced (how many
            # times the journal is written is a matter of time).
            world.close()
            world = World(scratch / "again", kind)
            world.run(f"{failpoint}=kill@{count // 2}")
        assert world.killed(), f"{failpoint} was not reached: {world.daemon.log()[-3000:]}"
        world.assert_nothing_half_written_is_ready()
        interrupted = len(world.origin.requests_of("/new"))
        world.assert_recovered()
        if failpoint in JOURNAL:
            # The bytes of which the journal knows are not fetched again.
            assert interrupted == 1
            least = MIB if failpoint == "store.journal.appended" else 2 * MIB
            for resumed in world.origin.requests_of("/new")[1:]:
                assert resumed.range_begin and resumed.range_begin >= least
                assert resumed.body_sent == len(NEW) - resumed.range_begin
            # (The last one may be that of the copy to the other disk.)
            if which == "first" or len(world.origin.requests_of("/new")) > 1:
                assert "resumed download" in {
                    c.origin for c in world.daemon.client.get("new").copies}
    finally:
        world.close()


def test_killed_at_any_moment(start_daemon, disks, origin):
    """Not only where somebody thought of it."""
    data = images.random_bytes(24 * MIB, 3)
    url = origin.serve("/a", Content(data, piece=64 * 1024, pause=0.002))
    both = [disks.directory("one"), disks.directory("two")]
    daemon = start_daemon(both)
    uuid = daemon.client.ensure("a", url, sha512=images.sha512(data)).image.spec.uuid
    for moment in (0.01, 0.05, 0.1, 0.2, 0.3, 0.4):
        end = time.monotonic() + moment
        while time.monotonic() < end:
            state = daemon.client.get("a").state
            assert state in ("pending", "starting", "in-progress", "unknown", "ready")
        daemon.kill9()
        for disk in both:
            file = disk.ready_file("a", uuid)
            assert not file.exists() or file.read_bytes() == data
        daemon.start()
    assert daemon.client.wait_ready("a").current_sha512 == images.sha512(data)
    for disk in both:
        assert disk.ready_file("a", uuid).read_bytes() == data
        assert not disk.temp_files()


def test_killed_over_and_over_it_still_gets_on(start_daemon, disk, origin):
    """What is on the disk is used each time: a daemon that is killed every few
    seconds ends a long download at last."""
    data = images.random_bytes(8 * MIB, 4)
    gates = [threading.Event() for _ in range(2)]
    url = origin.serve("/a", *[Content(data, gate=gate, gate_after=3 * MIB)
                               for gate in gates], Content(data))
    daemon = start_daemon([disk])
    uuid = daemon.client.ensure("a", url).image.spec.uuid
    journal = disk.image_dir("a", uuid) / "backing.bim"
    for round_number, gate in enumerate(gates):
        origin.wait_count("/a", round_number + 1)
        size = 300 + (round_number + 1) * 10 * 48
        wait_until(lambda: journal.exists() and journal.stat().st_size >= size,
                   "the journal to grow", 20)
        daemon.kill9()
        gate.set()
        daemon.start()
    assert daemon.client.wait_ready("a").current_sha512 == images.sha512(data)
    begins = [r.range_begin or 0 for r in origin.requests_of("/a")]
    assert begins[0] == 0 < begins[1] < begins[2], begins
