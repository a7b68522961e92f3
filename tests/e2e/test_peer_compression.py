"""Bytes between daemons travel compressed where that is wanted and pays."""

import random

import pytest

from lib import images
from lib.images import KIB, MIB
from lib.peers import Extents, zstd
from test_verify import flip

ON = {"peers": {"compression": "on"}}


def text(size, seed=1):
    """Compresses about to a quarter, as much of a system's files does."""
    words = [bytes(random.Random(n).choices(b"abcdefghij", k=7)) for n in range(2000)]
    chosen = random.Random(seed)
    data = b"\n".join(chosen.choices(words, k=size // 8 + 1))[:size]
    # No format's magic at its begin.
    return b"\xeb\x63\x90" + data[3:510] + b"\x55\xaa" + data[512:]


TEXT = text(16 * MIB)


@pytest.mark.parametrize("setting", ["on", "off"])
def test_compressible_data(start_daemon, start_peer, relay, disk, setting):
    wire, address = relay(start_peer({"a": TEXT}))
    client = start_daemon([disk], {"peers": {"compression": setting}}).client
    client.ensure("a", uuid="u-a", peers=[address])
    ready = client.wait_ready("a")
    assert disk.ready_file("a", "u-a").read_bytes() == TEXT
    copy = ready.copies[0]
    assert ready.current_sha512 == images.sha512(TEXT)
    assert copy.processed_bytes == len(TEXT)
    if setting == "on":
        assert copy.wire_bytes < 0.6 * len(TEXT)
        assert wire.received < 0.6 * len(TEXT)
    else:
        assert copy.wire_bytes >= len(TEXT)
    # The file itself came as it is: this is no encoding of the source.
    assert copy.encoding == ""


def test_random_data_is_sent_as_it_is(start_daemon, start_peer, relay, disk):
    data = images.random_bytes(16 * MIB)
    wire, address = relay(start_peer({"a": data}))
    client = start_daemon([disk], ON).client
    client.ensure("a", uuid="u-a", peers=[address])
    ready = client.wait_ready("a")
    assert disk.ready_file("a", "u-a").read_bytes() == data
    assert len(data) <= ready.copies[0].wire_bytes <= len(data) + 64 * KIB
    assert wire.received <= len(data) + 64 * KIB


def test_a_mixture_with_holes(start_daemon, start_peer, relay, files, disk):
    path = files / "m"
    noise = images.random_bytes(4 * MIB, 3)
    with open(path, "wb") as file:
        file.truncate(64 * MIB)
        file.write(TEXT[:4 * MIB])
        file.seek(20 * MIB)
        file.write(noise)
        file.seek(60 * MIB)
        file.write(TEXT[4 * MIB:8 * MIB])
    image = images.Image(path, "raw")
    wire, address = relay(start_peer({"a": image}))
    client = start_daemon([disk], ON).client
    client.ensure("a", uuid="u-a", peers=[address], sha512=image.sha512)
    ready = client.wait_ready("a")
    assert images.file_sha512(ready.copies[0].file_path) == image.sha512
    assert ready.copies[0].wire_bytes < 4 * MIB + 0.6 * 8 * MIB + 64 * KIB
    assert wire.received < 4 * MIB + 0.6 * 8 * MIB + 128 * KIB
    assert ready.copies[0].real_size <= 12 * MIB + 64 * KIB


def test_auto_compresses_on_a_slow_way(start_daemon, start_peer, disk):
    """A limit is a slow way; and it counts what is on the wire."""
    peer = start_peer({"a": TEXT})
    client = start_daemon([disk], {"peers": {"compression": "auto"},
                                   "limits": {"peer_rate": 4 * MIB}}).client
    client.ensure("a", uuid="u-a", peers=[peer.address])
    ready = client.wait_ready("a")
    assert disk.ready_file("a", "u-a").read_bytes() == TEXT
    assert ready.copies[0].wire_bytes < 0.6 * len(TEXT)


def test_a_peer_that_ignores_the_wish(start_daemon, fake_peer, disk):
    peer = fake_peer().has("a", "u-a", TEXT)
    client = start_daemon([disk], ON).client
    client.ensure("a", uuid="u-a", peers=[peer.address])
    client.wait_ready("a")
    assert disk.ready_file("a", "u-a").read_bytes() == TEXT
    asked = peer.asked("a", "u-a", "extents")
    assert "zstd" in asked[0].headers["accept-encoding"]


def test_nobody_is_asked_to_compress_when_it_is_off(start_daemon, fake_peer, disk):
    peer = fake_peer().has("a", "u-a", TEXT)
    client = start_daemon([disk], {"peers": {"compression": "off"}}).client
    client.ensure("a", uuid="u-a", peers=[peer.address])
    client.wait_ready("a")
    for request in peer.asked("a", "u-a", "extents"):
        assert "zstd" not in request.headers.get("accept-encoding", "")


def test_compressed_bytes_are_proven_too(start_daemon, fake_peer, disk):
    """A flip before compression: decodes well, and is wrong."""
    def lie(begin, end, table, body):
        return zstd(table + bytes([body[0] ^ 1]) + body[1:])
    peer = fake_peer().has("a", "u-a", TEXT, extents=Extents(
        TEXT, lie, {"headers": {"Content-Encoding": "zstd"}}))
    client = start_daemon([disk], ON).client
    client.ensure("a", uuid="u-a", peers=[peer.address])
    failed = client.wait_state("a", "failed")
    assert peer.address in failed.message and "differs" in failed.message
    assert not disk.ready_file("a", "u-a").exists()


def test_repair_with_compression(start_daemon, start_peer, relay, files, disk):
    wire, address = relay(start_peer({"a": TEXT}))
    client = start_daemon([disk], {**ON, "sources": {"allow_file": True},
                                   "disks": {"check_interval": "1h"}}).client
    (files / "a").write_bytes(TEXT)
    client.ensure("a", f"file://{files}/a", uuid="u-a", peers=[])
    client.wait_ready("a")
    client.ensure("a", f"file://{files}/a", uuid="u-a", peers=[address])
    flip(disk.ready_file("a", "u-a"), 4 * MIB)
    last = client.verify("a", repair=True)[-1]
    assert last.ok and last.repaired_chunks == 1, last.message
    assert disk.ready_file("a", "u-a").read_bytes() == TEXT
    assert wire.received < 0.6 * 256 * KIB + 32 * KIB
