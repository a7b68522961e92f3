"""A node's upgrade as its control plane and its volumes see it: by name, what is
ready stays what it is, what is in work goes on, nothing is fetched again."""

import threading

import grpc
import pytest

from lib import images
from lib.client import EVENT, Client
from lib.daemon import BINARY
from lib.deadline import wait_until
from lib.images import MIB, sha512
from lib.longhorn import leave_image
from lib.processes import proc_io
from lib.servers import Content

SMALL, LARGE = images.random_bytes(2 * MIB, 1), images.random_bytes(12 * MIB, 2)
AUTO = {"handover": {"mode": "auto", "drain_timeout": "20s"},
        "backoff": {"first": "2s", "max": "4s"}}
SLOW = {"limits": {"peer_rate": "1MiB"}}


def edition(name):
    return BINARY.with_name(f"bim-{name}")


with_editions = pytest.mark.skipif(
    not edition("newer").exists(), reason="this build has no other editions")


class Node:
    """O with a small image ready on two disks and a volume at work on it, a large
    one ready on the first; begin_work() begins a download that its origin holds."""

    def __init__(self, start_daemon, start_peer, disks, origin, volume, binary=None):
        self.origin, self.gate = origin, threading.Event()
        self.peer = start_peer({"large": LARGE})
        self.disks = [disks.directory("one"), disks.directory("two")]
        self.o = start_daemon(self.disks, {**AUTO, **SLOW}, directory="o", binary=binary)
        client = self.o.client
        client.ensure("small", origin.serve("/small", Content(SMALL)), uuid="u-small")
        client.wait_ready("small")
        client.set_limits(peer_rate=0)
        client.ensure("large", uuid="u-large", peers=[self.peer.address],
                      disks=[self.disks[0]])
        client.wait_ready("large")
        client.set_limits(peer_rate=1 * MIB)
        self.volumes = [volume(self.file("small", 0), "raw", content=SMALL)]
        self.inodes = {f: f.stat().st_ino for f in (
            self.file("small", 0), self.file("small", 1), self.file("large", 0))}
        self.start_volume = volume

    def file(self, name, disk):
        return self.disks[disk].ready_file(name, f"u-{name}")

    def begin_work(self):
        """The download; half of it comes."""
        client = self.o.client
        url = self.origin.serve("/held", Content(SMALL, gate=self.gate, gate_after=MIB),
                                Content(SMALL))
        client.ensure("held", url, uuid="u-held", disks=[self.disks[0]])
        client.wait_image("held", lambda i: i.copies[0].progress >= 40, "a half of it")

    def untouched(self, daemon):
        """What was ready is, the very files, and no volume noticed."""
        for name, count in (("small", 2), ("large", 1)):
            image = daemon.client.wait_ready(name)
            assert len(image.copies) == count
            assert all("rehashed" not in c.origin for c in image.copies), image
        assert {f: f.stat().st_ino for f in self.inodes} == self.inodes
        assert self.origin.count("/small") == 1
        for volume in self.volumes:
            volume.check()

    def all_can_go(self, daemon):
        for volume in self.volumes:
            volume.finish()
        for image in daemon.client.list_all():
            daemon.client.remove(image.spec.name)
        assert daemon.client.list_all() == []
        assert not any(disk.image_files() for disk in self.disks)


@pytest.fixture
def node(start_daemon, start_peer, disks, origin, volume):
    made = []

    def make(**options):
        made.append(Node(start_daemon, start_peer, disks, origin, volume, **options))
        return made[-1]
    yield make
    for each in made:
        each.gate.set()


@with_editions
def test_compatible(node, start_daemon):
    """O ends the download and hands it over; the sync goes on in N with the bytes
    that it has."""
    node = node()
    client = node.o.client
    peer = node.peer
    peer.client.ensure("second", f"file://{second(peer)}", uuid="u-second")
    peer.client.wait_ready("second")
    client.ensure("second", uuid="u-second", peers=[peer.address], disks=[node.disks[1]])
    client.wait_image("second", lambda i: i.copies[0].progress >= 10, "a part of it")
    node.begin_work()
    n = start_daemon(node.disks, AUTO, directory="n", binary=edition("newer"), run=False)
    n.spawn()
    wait_until(lambda: node.o.client.handover_status().phase not in ("steady", "beginning"),
               "the hand-over")
    with pytest.raises(grpc.RpcError) as refused:
        client.ensure("new", "http://127.0.0.1:1/new", uuid="u-new")
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    node.volumes.append(node.start_volume(node.file("large", 0), "raw", content=LARGE))
    # The download is waited for.
    assert node.o.running
    node.gate.set()
    n.wait_endpoint()
    # Shown as failed, with the reason, then gone on with.
    image = n.client.get("second")
    assert node.o.wait_exit() == 0
    assert image.state == "failed" and "goes on with the bytes" in image.message, image
    n.client.wait_ready("second")
    n.client.wait_ready("held")
    assert node.origin.count("/held") == 1
    assert node.disks[1].ready_file("second", "u-second").read_bytes() == LARGE[::-1]
    node.untouched(n)
    node.all_can_go(n)


def second(peer):
    path = peer.directory / "second"
    path.write_bytes(LARGE[::-1])
    return path


@with_editions
def test_incompatible(node, start_daemon):
    """No API in common: O is asked to stop, and N takes what lies on the disks."""
    node = node()
    node.begin_work()
    n = start_daemon(node.disks, AUTO, directory="n", binary=edition("incompatible"),
                     run=False)
    n.spawn()
    wait_until(lambda: "asks this one to stop" in node.o.log(), "O to be asked")
    node.gate.set()
    n.wait_endpoint()
    assert node.o.wait_exit() == 0
    with Newer(n) as client:
        client.wait_ready("held")
        image = client.wait_ready("small")
        assert all("rehashed" not in c.origin for c in image.copies)
        assert {f: f.stat().st_ino for f in node.inodes} == node.inodes
        for volume in node.volumes:
            volume.check()


class Newer:
    """A client of an API that this one does not speak: it says that it does."""

    def __init__(self, daemon):
        self.client = Client(daemon.address, metadata=(
            ("bim-api-version", "6"), ("bim-api-min-version", "6")))

    def __enter__(self):
        return self.client

    def __exit__(self, *_):
        self.client.close()


def test_same_control_plane(start_daemon, disk, origin):
    """It goes away and comes back, ten times; nothing happens in the manager."""
    daemon = start_daemon([disk])
    daemon.client.ensure("a", origin.serve("/a", Content(SMALL)), uuid="u-a")
    before = daemon.client.wait_ready("a")
    epoch = daemon.client.disk(disk).epoch
    for _ in range(10):
        control_plane = Client(daemon.address)
        recorder = control_plane.watch()
        assert control_plane.ensure("a", origin.url("/a"), uuid="u-a").created is False
        recorder.wait_type(EVENT.TYPE_IMAGE)
        control_plane.close()
        assert daemon.client.get("a").copies == before.copies
    assert daemon.client.disk(disk).epoch == epoch
    assert origin.count("/a") == 1


def test_same_manager(start_daemon, disk, origin, volume):
    """Ten restarts of the same build. Who cannot reach it knows nothing of its
    files, which is for the control plane to say; then they are ready again."""
    daemon = start_daemon([disk])
    daemon.client.ensure("a", origin.serve("/a", Content(SMALL)), uuid="u-a")
    daemon.client.wait_ready("a")
    file = disk.ready_file("a", "u-a")
    inode = file.stat().st_ino
    used = volume(file, "raw", content=SMALL)

    def seen():
        """What a control plane would show."""
        try:
            return daemon.client.get("a").state if daemon.running else "unknown"
        except grpc.RpcError:
            return "unknown"

    for number in range(10):
        assert seen() == "ready"
        daemon.kill9() if number % 2 else daemon.stop()
        assert seen() == "unknown"
        daemon.start()
        assert seen() == "ready"
        assert proc_io(daemon.pid)["rchar"] < len(SMALL)
    assert file.stat().st_ino == inode
    assert origin.count("/a") == 1
    used.check()
    used.finish()


def test_predecessor_upstream(start_manager, longhorn, disk, volume):
    """O takes no locks and knows no .bim: N reuses what it left by its cfg."""
    content = {f"i{n}": images.random_bytes(MIB, n) for n in range(3)}
    files = {name: leave_image(disk.path, name, f"u-{name}", data, sha512(data))
             for name, data in content.items()}
    inodes = {name: file.stat().st_ino for name, file in files.items()}
    used = volume(files["i0"], "raw", content=content["i0"])
    manager = start_manager(disk)
    client = longhorn(manager)
    read = proc_io(manager.pid)["rchar"]
    for name, data in content.items():
        client.fetch(name, f"u-{name}", size=len(data), checksum=sha512(data))
        assert client.wait(name, f"u-{name}", "ready").status.checksum == sha512(data)
    assert proc_io(manager.pid)["rchar"] - read < MIB
    assert {name: file.stat().st_ino for name, file in files.items()} == inodes
    used.check()
    used.finish()


@with_editions
def test_downgrade(node, start_daemon):
    """N hands back to the older build, which takes all of it over."""
    node = node(binary=edition("newer"))
    n = start_daemon(node.disks, AUTO, directory="n")
    assert node.o.wait_exit() == 0
    node.untouched(n)
    node.all_can_go(n)
