"""A sync that was interrupted goes on: what came is not fetched again."""

import os

import pytest

from lib import images
from lib.client import copy_of
from lib.deadline import wait_until
from lib.images import MIB
from lib.peers import CHUNK, FakePeer, Relay, journaled
from test_disk_full import fill

SIZE = 24 * MIB
DATA = images.random_bytes(SIZE, 1)
# Manifest and tables; and, with two connections, chunks that were cut.
OVERHEAD = 64 * 1024
ONE = {"peers": {"connections": 1}}


def half_way(wire, disk, least=8 * MIB):
    """Until so much is durable."""
    wire.wait_held()
    wait_until(lambda: journaled(disk, "a", "u-a") * CHUNK >= least,
               lambda: f"a journal of {least} bytes; "
                       f"{journaled(disk, 'a', 'u-a') * CHUNK}", 20)


def test_the_receiver_is_killed(start_daemon, start_peer, relay, disk):
    peer = start_peer({"a": DATA})
    wire, address = relay(peer, hold_at=12 * MIB)
    daemon = start_daemon([disk])
    daemon.client.ensure("a", uuid="u-a", peers=[address])
    half_way(wire, disk)
    daemon.kill9()
    durable = journaled(disk, "a", "u-a") * CHUNK
    assert 8 * MIB <= durable <= 12 * MIB
    assert not disk.ready_file("a", "u-a").exists()
    wire.anew()
    daemon.start()
    ready = daemon.client.wait_ready("a")
    assert disk.ready_file("a", "u-a").read_bytes() == DATA
    assert ready.copies[0].wire_bytes <= SIZE - durable + OVERHEAD
    assert wire.received <= SIZE - durable + OVERHEAD
    assert daemon.client.verify("a")[-1].ok


def test_it_is_killed_again_and_again(start_daemon, start_peer, relay, disk):
    """At each step only what is missing travels; in the end all is right."""
    peer = start_peer({"a": DATA})
    wire, address = relay(peer)
    daemon = start_daemon([disk])
    durable = 0
    for step in range(4):
        wire.anew(hold_at=5 * MIB if step < 3 else None)
        if step == 0:
            daemon.client.ensure("a", uuid="u-a", peers=[address])
        else:
            daemon.start()
        if step < 3:
            half_way(wire, disk, durable + 3 * MIB)
            daemon.kill9()
            durable = journaled(disk, "a", "u-a") * CHUNK
    ready = daemon.client.wait_ready("a")
    assert disk.ready_file("a", "u-a").read_bytes() == DATA
    assert ready.copies[0].wire_bytes <= SIZE - durable + OVERHEAD


def test_the_bytes_on_the_disk_are_damaged_meanwhile(start_daemon, start_peer, relay,
                                                     disk):
    """A journal is no proof: the chunks are read again."""
    peer = start_peer({"a": DATA})
    wire, address = relay(peer, hold_at=12 * MIB)
    daemon = start_daemon([disk])
    daemon.client.ensure("a", uuid="u-a", peers=[address])
    half_way(wire, disk)
    daemon.kill9()
    with open(disk.temp_file("a", "u-a"), "r+b") as file:
        for at in (100, 4 * MIB + 5):
            file.seek(at)
            file.write(b"damage")
    durable = journaled(disk, "a", "u-a") * CHUNK
    wire.cut()
    wire.release()
    daemon.start()
    ready = daemon.client.wait_ready("a")
    assert disk.ready_file("a", "u-a").read_bytes() == DATA
    assert ready.copies[0].wire_bytes <= SIZE - durable + 2 * CHUNK + OVERHEAD


def test_a_stop_in_the_middle(start_daemon, start_peer, relay, disk):
    peer = start_peer({"a": DATA})
    wire, address = relay(peer, hold_at=12 * MIB)
    daemon = start_daemon([disk])
    daemon.client.ensure("a", uuid="u-a", peers=[address])
    wire.wait_held()
    daemon.stop()
    durable = journaled(disk, "a", "u-a") * CHUNK
    assert durable >= 4 * MIB, "SIGTERM leaves time to keep what came"
    wire.release()
    daemon.start()
    ready = daemon.client.wait_ready("a")
    assert disk.ready_file("a", "u-a").read_bytes() == DATA
    assert ready.copies[0].wire_bytes <= SIZE - durable + OVERHEAD


def test_the_peer_is_killed_and_comes_back(start_daemon, start_peer, disk):
    peer = start_peer({"a": DATA})
    wire = Relay(peer.data, hold_at=12 * MIB)
    front = FakePeer(wire.address)
    try:
        daemon = start_daemon([disk], ONE)
        daemon.client.ensure("a", uuid="u-a", peers=[front.address])
        wire.wait_held()
        peer.kill9()
        wire.release()
        failed = daemon.client.wait_state("a", "failed")
        assert front.address in failed.message
        assert failed.copies[0].HasField("next_attempt")
        peer.start()
        wire.target = ("127.0.0.1", int(peer.data.rpartition(":")[2]))
        daemon.client.wait_ready("a")
        assert disk.ready_file("a", "u-a").read_bytes() == DATA
        # Of the first half nothing came twice.
        assert wire.received <= SIZE + 2 * MIB
    finally:
        front.close()
        wire.close()


def test_another_peer_goes_on_where_the_first_stopped(start_daemon, start_peer,
                                                      relay, disk):
    """Also in another life of the receiver, with another list of peers."""
    first, second = start_peer({"a": DATA}), start_peer({"a": DATA})
    wire, address = relay(first, hold_at=12 * MIB)
    daemon = start_daemon([disk])
    daemon.client.ensure("a", uuid="u-a", peers=[address])
    half_way(wire, disk)
    daemon.kill9()
    durable = journaled(disk, "a", "u-a") * CHUNK
    first.kill9()
    wire.cut()
    wire.refuse = True
    daemon.start()
    daemon.client.ensure("a", uuid="u-a", peers=[second.address])
    ready = daemon.client.wait_ready("a")
    assert disk.ready_file("a", "u-a").read_bytes() == DATA
    assert ready.copies[0].wire_bytes <= SIZE - durable + OVERHEAD


def test_the_disk_is_full_in_the_middle(start_daemon, start_peer, disks):
    small = disks.loop("small", mib=64)
    filler = fill(small, 12 * MIB)
    peer = start_peer({"a": DATA})
    client = start_daemon([small]).client
    client.ensure("a", uuid="u-a", peers=[peer.address])
    failed = client.wait_state("a", "failed")
    message = failed.message.lower()
    assert "space" in message or "full" in message
    assert str(small) in failed.message
    assert failed.copies[0].HasField("next_attempt")
    assert not small.ready_file("a", "u-a").exists()
    assert client.disk(small).state == "ready"
    filler.unlink()
    client.wait_ready("a")
    assert small.ready_file("a", "u-a").read_bytes() == DATA
    # The peer was not at fault.
    client.ensure("b", uuid="u-b", peers=[peer.address])
    assert "failed before" not in client.wait_state("b", "failed").message


@pytest.mark.parametrize("then", ["removed", "replaced"])
def test_it_goes_at_the_peer_in_the_middle(start_daemon, start_peer, relay, files,
                                           disk, origin, then):
    other = images.random_bytes(SIZE, 2)
    peer = start_peer({"a": DATA})
    wire, address = relay(peer, hold_at=8 * MIB)
    daemon = start_daemon([disk], {**ONE, "sources": {"retry_tries": 2}})
    daemon.client.ensure("a", uuid="u-a", peers=[address])
    wire.wait_held()
    peer.client.remove("a", force=True)
    if then == "replaced":
        (files / "other").write_bytes(other)
        peer.client.ensure("a", f"file://{files}/other", uuid="u-a")
        peer.client.wait_ready("a")
    # What was asked for is answered to its end from the file that was open.
    wire.release()
    if then == "removed":
        failed = daemon.client.wait_state("a", "failed")
        assert address in failed.message and "cannot find" in failed.message
        assert not disk.ready_file("a", "u-a").exists()
    else:
        # Nobody said which one is wanted: never a mixture of both.
        daemon.client.wait_ready("a")
        assert disk.ready_file("a", "u-a").read_bytes() in (DATA, other)
        assert daemon.client.get("a").current_sha512 == images.file_sha512(
            disk.ready_file("a", "u-a"))


def test_replaced_when_a_digest_says_which(start_daemon, start_peer, relay, files,
                                           disk):
    other = images.random_bytes(SIZE, 2)
    peer, good = start_peer({"a": DATA}), start_peer({"a": DATA})
    wire, address = relay(peer, hold_at=8 * MIB)
    daemon = start_daemon([disk], ONE)
    daemon.client.ensure("a", uuid="u-a", peers=[address, good.address],
                         sha512=images.sha512(DATA))
    wire.wait_held()
    peer.client.remove("a", force=True)
    (files / "other").write_bytes(other)
    peer.client.ensure("a", f"file://{files}/other", uuid="u-a")
    peer.client.wait_ready("a")
    wire.release()
    ready = daemon.client.wait_ready("a")
    assert disk.ready_file("a", "u-a").read_bytes() == DATA
    assert ready.copies[0].wire_bytes <= SIZE + 4 * MIB
    assert os.stat(disk.ready_file("a", "u-a")).st_size == SIZE
    assert copy_of(ready, disk).origin == "peer"
