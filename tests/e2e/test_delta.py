"""Chunks that this node has already do not travel."""

import threading

import pytest

from lib import images
from lib.deadline import wait_until
from lib.disks import Disk
from lib.images import MIB
from lib.peers import CHUNK, journaled
from lib.servers import Content
from test_several_disks import extents
from test_verify import flip

SIZE = 40 * MIB  # 160 chunks
V1 = images.random_bytes(SIZE, 1)
OVERHEAD = 64 * 1024
FILE = {"sources": {"allow_file": True}}


def next_version(data, changed=8):
    """Another content in so many chunks, spread over the file: 5 %."""
    new = bytearray(data)
    for number in range(changed):
        at = (number * 19 + 3) * CHUNK + 1000
        new[at:at + 100] = images.random_bytes(100, 50 + number)
    return bytes(new)


V2 = next_version(V1)


def bring(client, files, name, data, disks=()):
    (files / name).write_bytes(data)
    client.ensure(name, f"file://{files / name}", disks)
    client.wait_ready(name)


def check(ready, wire, data=V2, new=8, spoiled=0):
    copy = ready.copies[0]
    most = (new + spoiled) * CHUNK + OVERHEAD
    assert copy.wire_bytes <= most, copy.wire_bytes / CHUNK
    assert wire.received <= most + OVERHEAD
    assert copy.reused_bytes == len(data) - (new + spoiled) * CHUNK
    assert copy.origin == "peer"
    assert ready.current_sha512 == images.sha512(data)
    with open(copy.file_path, "rb") as file:
        assert file.read() == data


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("where", ["same disk", "same file system", "other disk"])
def test_95_percent_are_here(start_daemon, start_peer, relay, disks, files, kind,
                             where):
    loop = disks.loop("loop", kind, 300, init=False)
    old = Disk(loop.path / "old")
    new = {"same disk": old, "same file system": None,
           "other disk": None}[where]
    if where == "same file system":
        new = Disk(loop.path / "new")
    elif where == "other disk":
        new = disks.directory("new")
    wire, address = relay(start_peer({"v2": V2}))
    daemon = start_daemon({str(old): old, str(new): new}, FILE)
    client = daemon.client
    bring(client, files, "v1", V1, [old])
    client.ensure("v2", uuid="u-v2", disks=[new], peers=[address])
    ready = client.wait_ready("v2")
    check(ready, wire)
    assert ready.copies[0].wire_bytes <= 0.06 * SIZE
    if kind == "xfs" and where != "other disk":
        # Blocks are shared, not copied: both together take little more.
        shared, count = extents(ready.copies[0].file_path)
        assert shared >= count / 2 and shared > 0, (shared, count)
    assert old.ready_file("v1", client.get("v1").spec.uuid).read_bytes() == V1
    assert client.verify("v2")[-1].ok and client.verify("v1")[-1].ok


def test_moved_content_is_found(start_daemon, start_peer, relay, disk, files):
    """By chunks, wherever they lie in the file."""
    moved = V1[20 * MIB:] + V1[:20 * MIB]
    wire, address = relay(start_peer({"v2": moved}))
    client = start_daemon([disk], FILE).client
    bring(client, files, "v1", V1)
    client.ensure("v2", uuid="u-v2", peers=[address])
    check(client.wait_ready("v2"), wire, moved, new=0)


def test_from_several_images(start_daemon, start_peer, relay, disk, files):
    a, b = images.random_bytes(8 * MIB, 11), images.random_bytes(8 * MIB, 12)
    data = a + b + images.random_bytes(MIB, 13)
    wire, address = relay(start_peer({"v2": data}))
    client = start_daemon([disk], FILE).client
    bring(client, files, "a", a)
    bring(client, files, "b", b)
    client.ensure("v2", uuid="u-v2", peers=[address])
    check(client.wait_ready("v2"), wire, data, new=4)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("trusted", [False, True])
def test_a_local_image_that_was_silently_damaged(start_daemon, start_peer, relay,
                                                 disks, files, kind, trusted):
    """Its manifest says that it has the chunks; its bytes say otherwise, and no
    time of the file tells."""
    disk = disks.loop("loop", kind, 300)
    wire, address = relay(start_peer({"v2": V2}))
    daemon = start_daemon([disk], {**FILE, "peers": {
        "trusted": ["127.0.0.1"] if trusted else []}})
    bring(daemon.client, files, "v1", V1)
    file = disk.ready_file("v1", daemon.client.get("v1").spec.uuid)
    daemon.stop()
    # Two chunks that both have; one that differs anyway.
    disk.rot(file, 0, 77 * CHUNK + 5, 77 * CHUNK + 9, 3 * CHUNK)
    assert file.read_bytes() != V1
    daemon.start()
    client = daemon.client
    assert client.get("v1").state == "ready"
    client.ensure("v2", uuid="u-v2", peers=[address])
    check(client.wait_ready("v2"), wire, spoiled=2)
    client.wait_image("v2", lambda i: not i.copies[0].sha512_pending
                      and i.state == "ready", "its SHA-512")
    assert client.verify("v2")[-1].ok
    assert not client.verify("v1")[-1].ok


def test_a_local_image_that_was_modified(start_daemon, start_peer, disk, files):
    """Not yet noticed: nothing of it is taken unproven."""
    peer = start_peer({"v2": V2})
    client = start_daemon([disk], {**FILE, "disks": {"check_interval": "1h"}}).client
    bring(client, files, "v1", V1)
    file = disk.ready_file("v1", client.get("v1").spec.uuid)
    flip(file, 0)
    client.ensure("v2", uuid="u-v2", peers=[peer.address])
    client.wait_ready("v2")
    assert disk.ready_file("v2", "u-v2").read_bytes() == V2
    assert client.verify("v2")[-1].ok


def test_the_same_content_under_another_name_needs_no_bytes(start_daemon, start_peer,
                                                            relay, disk, files):
    wire, address = relay(start_peer({"v2": V1}))
    client = start_daemon([disk], FILE).client
    bring(client, files, "v1", V1)
    client.ensure("v2", uuid="u-v2", peers=[address])
    check(client.wait_ready("v2"), wire, V1, new=0)


def test_an_older_image_that_is_removed_meanwhile(start_daemon, start_peer, relay,
                                                  disk, files):
    wire, address = relay(start_peer({"v2": V2}), hold_at=CHUNK)
    client = start_daemon([disk], FILE).client
    bring(client, files, "v1", V1)
    client.ensure("v2", uuid="u-v2", peers=[address])
    wire.wait_held()
    client.remove("v1", force=True)
    wire.release()
    client.wait_ready("v2")
    assert disk.ready_file("v2", "u-v2").read_bytes() == V2


def test_bytes_of_an_unfinished_download_are_used(start_daemon, start_peer, relay,
                                                  origin, disk):
    """First from a URL, which breaks; then a peer has it."""
    gate = threading.Event()
    url = origin.serve("/a", Content(V1, gate=gate, gate_after=16 * MIB))
    wire, address = relay(start_peer({"a": V1}))
    daemon = start_daemon([disk])
    daemon.client.ensure("a", url, uuid="u-a", sha512=images.sha512(V1))
    wait_until(lambda: journaled(disk, "a", "u-a") * CHUNK >= 12 * MIB,
               "a journal", 20)
    daemon.kill9()
    gate.set()
    # The same image, with peers now: no other spec. Whoever is asked first.
    daemon.start()
    daemon.client.ensure("a", url, uuid="u-a", sha512=images.sha512(V1),
                         peers=[address])
    daemon.client.wait_ready("a")
    assert disk.ready_file("a", "u-a").read_bytes() == V1
    received = wire.received + sum(r.body_sent for r in origin.requests[1:])
    assert received <= SIZE - 12 * MIB + 4 * MIB


def test_bytes_of_an_unfinished_download_are_used_by_a_peer_alone(
        start_daemon, start_peer, relay, origin, disk):
    """The origin is gone for good: only what is missing comes from the peer."""
    url = origin.serve("/a", Content(V1, stall_after=16 * MIB))
    wire, address = relay(start_peer({"a": V1}))
    daemon = start_daemon([disk], {"backoff": {"first": "1h", "max": "1h"},
                                   "sources": {"connections": 1}})
    daemon.client.ensure("a", url, uuid="u-a", sha512=images.sha512(V1))
    wait_until(lambda: journaled(disk, "a", "u-a") * CHUNK >= 12 * MIB,
               "a journal", 20)
    origin.close()
    daemon.client.wait_state("a", "failed", 40)
    durable = journaled(disk, "a", "u-a") * CHUNK
    daemon.client.ensure("a", url, uuid="u-a", sha512=images.sha512(V1),
                         peers=[address])
    ready = daemon.client.wait_ready("a")
    assert disk.ready_file("a", "u-a").read_bytes() == V1
    assert ready.copies[0].origin in ("peer", "resumed peer")
    assert durable >= 12 * MIB
    assert wire.received <= SIZE - durable + OVERHEAD


def test_a_disk_is_let_go_of_while_its_chunks_are_looked_for(
        start_daemon, start_peer, relay, disks, files):
    """A long transfer to one disk does not hold another one."""
    old, new = disks.directory("old"), disks.directory("new")
    client = start_daemon([old, new], FILE).client
    bring(client, files, "v1", V1, [old])
    wire, address = relay(start_peer({"v2": V2}), hold_at=CHUNK)
    client.ensure("v2", uuid="u-v2", peers=[address], disks=[new])
    wire.wait_held()
    client.remove_disk(old, force=True)
    again = client.add_disk(old)
    assert (again.state, again.epoch) == ("ready", 2), again.message
    wire.release()
    client.wait_ready("v2")
