"""Eight daemons that take images from each other, all at once."""

import socket

import pytest

from lib import images
from lib.images import MIB

COUNT = 8


@pytest.fixture
def eight(start_daemon, disks):
    """eight(config) -> so many daemons with a disk each."""
    def start(config=None):
        config = {"sources": {"allow_file": True}, **(config or {})}
        made = []
        for number in range(COUNT):
            disk = disks.directory(f"disk{number}")
            made.append(start_daemon([disk], config))
            made[-1].disk = disk
        return made
    return start


def bring(daemon, name, path):
    daemon.client.ensure(name, f"file://{path}", uuid=f"u-{name}")
    daemon.client.wait_ready(name)


def others(daemons, daemon):
    return [d.address for d in daemons if d is not daemon]


@pytest.mark.parametrize("readers", [3, 1])
def test_one_has_it_seven_pull(eight, files, readers):
    """All are told of all; most of those have nothing yet."""
    image = images.raw(files / "a", 24 * MIB)
    daemons = eight({"peers": {"readers_per_image": readers}})
    bring(daemons[0], "a", image.path)
    for daemon in daemons[1:]:
        daemon.client.ensure("a", uuid="u-a", peers=others(daemons, daemon))
    for daemon in daemons[1:]:
        ready = daemon.client.wait_ready("a", 90)
        assert ready.copies[0].origin == "peer"
        assert ready.current_sha512 == image.sha512
        assert daemon.disk.ready_file("a", "u-a").read_bytes() == image.data
        # Nothing was thrown away on the way, or not much.
        assert ready.copies[0].wire_bytes < image.size * 1.25
        assert not daemon.disk.temp_files()


def test_the_last_to_be_asked_serve_those_who_come_later(eight, files):
    """When the first one is gone the image lives on."""
    image = images.raw(files / "a", 8 * MIB)
    daemons = eight()
    bring(daemons[0], "a", image.path)
    for daemon in daemons[1:4]:
        daemon.client.ensure("a", uuid="u-a", peers=others(daemons, daemon))
    for daemon in daemons[1:4]:
        daemon.client.wait_ready("a", 60)
    daemons[0].kill9()
    for daemon in daemons[4:]:
        daemon.client.ensure("a", uuid="u-a", peers=others(daemons, daemon))
    for daemon in daemons[4:]:
        assert daemon.client.wait_ready("a", 60).current_sha512 == image.sha512


def test_crosswise(eight, files):
    """Each brings an image of its own; all want all of them, from all."""
    made = {f"i{n}": images.raw(files / f"i{n}", 3 * MIB, n) for n in range(COUNT)}
    daemons = eight({"peers": {"readers_per_image": 2}})
    for daemon, (name, image) in zip(daemons, made.items()):
        bring(daemon, name, image.path)
    for number, daemon in enumerate(daemons):
        for name in made:
            if name != f"i{number}":
                daemon.client.ensure(name, uuid=f"u-{name}",
                                     peers=others(daemons, daemon))
    for number, daemon in enumerate(daemons):
        for name, image in made.items():
            ready = daemon.client.wait_ready(name, 90)
            assert ready.current_sha512 == image.sha512
            assert daemon.disk.ready_file(name, f"u-{name}").read_bytes() == image.data
        assert len(daemon.client.list_all()) == COUNT


def test_readers_beyond_the_bound_wait_for_their_turn(start_daemon, start_peer, disk):
    """Of that image only; and they get it when the reader before has gone."""
    data = images.random_bytes(48 * MIB)
    peer = start_peer({"a": data, "b": data}, config={"peers": {"readers_per_image": 1}})
    with socket.create_connection(("127.0.0.1", int(peer.data.rpartition(":")[2]))) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(b"GET /v1/images/a/u-a/data HTTP/1.1\r\nHost: x\r\n\r\n")
        assert slow.recv(12) == b"HTTP/1.1 200"
        client = start_daemon([disk]).client
        client.ensure("a", uuid="u-a", peers=[peer.address])
        client.ensure("b", uuid="u-b", peers=[peer.address])
        client.wait_ready("b")
        assert client.get("a").copies[0].wire_bytes == 0
    assert client.wait_ready("a").current_sha512 == images.sha512(data)


def test_some_are_killed_in_the_middle(eight, files):
    """And come back: what they had is not fetched again by all."""
    image = images.raw(files / "a", 32 * MIB)
    daemons = eight({"limits": {"peer_rate": 16 * MIB}})
    bring(daemons[0], "a", image.path)
    for daemon in daemons[1:]:
        daemon.client.ensure("a", uuid="u-a", peers=others(daemons, daemon))
    for daemon in daemons[5:]:
        daemon.client.wait_image(
            "a", lambda i: i.state == "ready"
            or i.copies[0].processed_bytes >= 2 * MIB, "a part of it", 60)
        daemon.kill9()
    for daemon in daemons[5:]:
        daemon.start()
    # Other ports now: who wants them is told so.
    for daemon in daemons[1:]:
        daemon.client.ensure("a", uuid="u-a", peers=others(daemons, daemon))
    for daemon in daemons[1:]:
        assert daemon.client.wait_ready("a", 90).current_sha512 == image.sha512
        assert daemon.disk.ready_file("a", "u-a").read_bytes() == image.data
