"""Peers that lie, stall, vanish or are none: never a wrong byte, never a hang;
another peer or the URL serves, and alone the error says who sent what."""

import functools
import os
import random
import signal
import struct

import pytest

from lib import images
from lib.images import MIB
from lib.peers import (CHUNK, EXTENTS_TYPE, MANIFEST_TYPE, Bare, Extents,
                       chunk_table, extent_table, manifest, zstd)
from lib.processes import proc_status_kib, without_quarantine
from lib.servers import Answer, Behaviour, Content, Never, html, redirect

SIZE = 6 * MIB
DATA = images.random_bytes(SIZE, 1)
OTHER = images.random_bytes(SIZE, 2)
NAME, UUID = "a", "u-a"

# Refused connections and the like are found out at once.
CONFIG = {"peers": {"connections": 2}, "backoff": {"first": "1h", "max": "1h"}}


def flipped(data, at):
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def mangled(how):
    return lambda: {"extents": Extents(DATA, how)}


def sending(**options):
    return lambda: {"extents": Extents(DATA, options=options)}


def told(text):
    return lambda: {"manifest_is": text}


def behaving(behaviour):
    return lambda: {"extents": behaviour}


def damaged_table():
    good = manifest(NAME, UUID, DATA)
    return flipped(good, len(good) - 40)


@functools.cache
def bomb():
    """Claims to be the part, and is 256 MiB of zeros."""
    return zstd(bytes(256 * MIB))


def one_extent(begin, end, table, body, *extent):
    return extent_table(begin, end, [extent]) + body


# name: (what it does, words that the error has, besides the peer's address;
# None: what it gives is right, so that it helps alone, too)
LIES = {
    # bytes
    "a flipped bit": (mangled(lambda b, e, t, d: t + flipped(d, len(d) // 2)),
                      ["chunk", "differs"]),
    "the last byte flipped": (mangled(lambda b, e, t, d: t + flipped(d, -1)),
                              ["chunk", "differs"]),
    "other content": (mangled(lambda b, e, t, d: t + OTHER[b:e]), ["differs"]),
    "all zeros": (mangled(lambda b, e, t, d: extent_table(b, e, [])), ["differs"]),
    "a later flip": (lambda: {"extents": Extents(
        DATA, lambda b, e, t, d: t + flipped(d, 0), good=1)}, ["differs"]),
    # lengths
    "a short body": (mangled(lambda b, e, t, d: t + d[:-1000]), ["early"]),
    "a long body": (mangled(lambda b, e, t, d: t + d + b"x" * 1000), ["longer"]),
    "an empty body": (mangled(lambda b, e, t, d: b""), []),
    "a length that is too large": (sending(announce=10 ** 9), None),
    "a body that breaks off": (sending(close_after=MIB), None),
    # tables
    "half a table": (mangled(lambda b, e, t, d: t[:20]), []),
    "another magic": (mangled(lambda b, e, t, d: b"BIMEXT99" + t[8:] + d),
                      ["extents"]),
    "a table of another part": (
        mangled(lambda b, e, t, d: extent_table(b + CHUNK, e + CHUNK, [])),
        ["another part"]),
    "2^64 extents": (
        mangled(lambda b, e, t, d: extent_table(b, e, [], count=2 ** 64 - 1) + d),
        ["extents"]),
    "2^60 extents": (  # times 16 is 0 in 64 bits
        mangled(lambda b, e, t, d: extent_table(b, e, [], count=2 ** 60) + d),
        ["extents"]),
    "an extent behind the part": (
        mangled(lambda b, e, t, d: one_extent(b, e, t, d, b, e + 4096)), ["order"]),
    "an extent before the part": (
        mangled(lambda b, e, t, d: extent_table(b, e, [(max(b, 1) - 1, e)]) + d),
        []),
    "an extent that ends before it begins": (
        mangled(lambda b, e, t, d: one_extent(b, e, t, d, e, b)), ["order"]),
    "an extent up to 2^64": (
        mangled(lambda b, e, t, d: one_extent(b, e, t, d, b, 2 ** 64 - 1)),
        ["order"]),
    "overlapping extents": (
        mangled(lambda b, e, t, d: extent_table(b, e, [(b, e), (b, e)]) + d + d),
        ["order"]),
    # encodings
    "zstd garbage": (lambda: {"extents": Extents(
        DATA, lambda b, e, t, d: random.Random(1).randbytes(4096),
        {"headers": {"Content-Encoding": "zstd"}})}, []),
    "zstd that ends early": (lambda: {"extents": Extents(
        DATA, lambda b, e, t, d: zstd(t + d)[:-200],
        {"headers": {"Content-Encoding": "zstd"}})}, []),
    "a zstd bomb": (lambda: {"extents": Extents(
        DATA, lambda b, e, t, d: bomb(),
        {"headers": {"Content-Encoding": "zstd"}})}, []),
    "a zstd bomb behind a good part": (lambda: {"extents": Extents(
        DATA, lambda b, e, t, d: zstd(t + d + bytes(256 * MIB)),
        {"headers": {"Content-Encoding": "zstd"}})}, []),
    "an unknown encoding": (sending(headers={"Content-Encoding": "br"}), ["br"]),
    # answers
    "HTML with 200": (behaving(html()), ["text/html", EXTENTS_TYPE]),
    "HTML as extents": (lambda: {"extents": Extents(
        DATA, lambda b, e, t, d: b"<html>log in</html>" * 100)}, ["extents"]),
    "500": (behaving(Answer(500)), ["500"]),
    "404 after its manifest": (behaving(Answer(404)), ["404"]),
    "412, another image now": (behaving(Answer(412)), ["another image"]),
    "206 without being asked": (behaving(Answer(206)), []),
    "a redirect elsewhere": (behaving(redirect("http://127.0.0.1:1/x")), []),
    "a reset in the middle": (sending(reset_after=MIB), None),
    "no HTTP at all": (behaving(type("Garbage", (Behaviour,), {
        "__call__": lambda self, connection, request: connection.body(
            b"\0\1\2 garbage\r\n\r\n" * 50)})()), []),
    # manifests
    "a damaged table": (told(damaged_table()), ["manifest"]),
    "a cut manifest": (told(manifest(NAME, UUID, DATA)[:-33]), ["manifest"]),
    "a manifest of another image": (told(manifest("b", UUID, DATA)),
                                    ["'b'", "manifest"]),
    "a manifest of another uuid": (told(manifest(NAME, "u-x", DATA)),
                                   ["u-x", "manifest"]),
    "a manifest of a newer format": (
        told(manifest(NAME, UUID, DATA, version=99, min_version=98)), ["98"]),
    "an HTML manifest": (lambda: {"manifest_is": html()}, ["manifest"]),
    "an endless manifest": (
        told(manifest(NAME, UUID, DATA) + bytes(8 * MIB)), ["manifest"]),
    "a manifest of 2^63 bytes": (
        told(manifest(NAME, UUID, DATA, size=2 ** 63)), []),
    "a manifest of 2^62 bytes": (
        told(manifest(NAME, UUID, DATA, size=2 ** 62)), []),
    "chunks of 1 byte": (told(manifest(NAME, UUID, DATA, chunkSize=1)), ["chunk"]),
    "chunks of 0 bytes": (told(manifest(NAME, UUID, DATA, chunkSize=0)), []),
    "a size that is negative": (told(manifest(NAME, UUID, DATA, size=-512)), []),
    "no SHA-512": (told(manifest(NAME, UUID, DATA, sha512=None)), []),
    "a SHA-512 that is none": (told(manifest(NAME, UUID, DATA, sha512="../x")), []),
    "consistent chunks of other content": (
        lambda: {"manifest_is": manifest(NAME, UUID, DATA, chunk_table(OTHER)),
                 "extents": Extents(OTHER)}, [images.sha512(OTHER)]),
    "another wanted content": (
        lambda: {"manifest_is": manifest(NAME, UUID, OTHER),
                 "extents": Extents(OTHER)},
        [images.sha512(DATA), images.sha512(OTHER)]),
}


@pytest.mark.parametrize("lie", LIES)
def test_alone_beside_a_good_peer_and_beside_a_url(start_daemon, start_peer,
                                                   fake_peer, origin, disks, lie):
    make, words = LIES[lie]
    good = start_peer({"a": DATA})

    def liar():
        return fake_peer().has(NAME, UUID, DATA, **make())

    # Alone: failed, says who and why; nothing is published, nothing is left.
    alone_disk = disks.directory("alone")
    alone = start_daemon([alone_disk], CONFIG)
    bad = liar()
    alone.client.ensure(NAME, uuid=UUID, peers=[bad.address],
                        sha512=images.sha512(DATA))
    if words is None:
        alone.client.wait_ready(NAME, 40)
        assert alone_disk.ready_file(NAME, UUID).read_bytes() == DATA
    else:
        failed = alone.client.wait_state(NAME, "failed", 40)
        assert bad.address in failed.message, failed.message
        for word in words:
            assert word.lower() in failed.message.lower(), (word, failed.message)
        assert not alone_disk.ready_file(NAME, UUID).exists()
        assert "\n" not in failed.message and len(failed.message) < 2000

    # Beside a good one, in either order: right in the end.
    for place in (0, 1):
        disk = disks.directory(f"beside{place}")
        daemon = start_daemon([disk], CONFIG)
        peers = [good.address]
        peers.insert(place, liar().address)
        daemon.client.ensure(NAME, uuid=UUID, peers=peers,
                             sha512=images.sha512(DATA))
        ready = daemon.client.wait_ready(NAME, 40)
        assert ready.copies[0].origin == "peer"
        assert disk.ready_file(NAME, UUID).read_bytes() == DATA

    # With a URL beside it, also without a digest that would tell.
    disk = disks.directory("url")
    daemon = start_daemon([disk], CONFIG)
    url = origin.serve("/a", Content(DATA))
    daemon.client.ensure(NAME, url, uuid=UUID, peers=[liar().address],
                         sha512=images.sha512(DATA))
    ready = daemon.client.wait_ready(NAME, 40)
    assert disk.ready_file(NAME, UUID).read_bytes() == DATA
    assert words is None or ready.copies[0].origin == "download"


def test_without_any_digest_wrong_bytes_are_refused_all_the_same(
        start_daemon, fake_peer, disk):
    peer = fake_peer().has(NAME, UUID, DATA, **mangled(
        lambda b, e, t, d: t + flipped(d, 7))())
    client = start_daemon([disk], CONFIG).client
    client.ensure(NAME, uuid=UUID, peers=[peer.address])
    failed = client.wait_state(NAME, "failed")
    assert peer.address in failed.message and "differs" in failed.message
    assert not disk.ready_file(NAME, UUID).exists()


def test_also_a_trusted_peer_is_checked_by_its_chunks(start_daemon, fake_peer, disk):
    peer = fake_peer().has(NAME, UUID, DATA, **mangled(
        lambda b, e, t, d: t + flipped(d, 7))())
    client = start_daemon([disk], {**CONFIG, "peers": {"trusted": ["127.0.0.1"]}}
                          ).client
    client.ensure(NAME, uuid=UUID, peers=[peer.address])
    failed = client.wait_state(NAME, "failed")
    assert peer.address in failed.message and "differs" in failed.message
    assert not disk.ready_file(NAME, UUID).exists()


def test_two_liars_that_differ_and_a_good_one(start_daemon, start_peer, fake_peer,
                                              disk):
    good = start_peer({"a": DATA})
    liars = [fake_peer().has(NAME, UUID, OTHER),
             fake_peer().has(NAME, UUID, DATA, **mangled(
                 lambda b, e, t, d: t + flipped(d, 7))())]
    client = start_daemon([disk], CONFIG).client
    client.ensure(NAME, uuid=UUID, sha512=images.sha512(DATA),
                  peers=[*(p.address for p in liars), good.address])
    client.wait_ready(NAME)
    assert disk.ready_file(NAME, UUID).read_bytes() == DATA


# ------------------------------------------------------------------ silence


@pytest.mark.waits
@pytest.mark.timeout(180)
@pytest.mark.parametrize("silence", ["stops in a body", "never answers",
                                     "never tells its manifest", "never says hello"])
def test_silence(start_daemon, start_peer, fake_peer, disks, silence):
    good = start_peer({"a": DATA})
    bare = None
    if silence == "never says hello":
        bare = Bare()
        bad = bare.address
    else:
        options = {"stops in a body": {"extents": Extents(
                       DATA, options={"stall_after": MIB})},
                   "never answers": {"extents": Never()},
                   "never tells its manifest": {"manifest_is": Never()}}[silence]
        bad = fake_peer().has(NAME, UUID, DATA, **options).address
    one, two = disks.directory("one"), disks.directory("two")
    # Both at once, since it takes as long as the deadlines of peers.
    config = {**CONFIG, "sources": {"retry_tries": 1}}
    beside, alone = start_daemon([one], config), start_daemon([two], config)
    alone.client.ensure(NAME, uuid=UUID, peers=[bad])
    beside.client.ensure(NAME, uuid=UUID, peers=[bad, good.address])
    try:
        beside.client.wait_ready(NAME, 80)
        assert one.ready_file(NAME, UUID).read_bytes() == DATA
        failed = alone.client.wait_state(NAME, "failed", 80)
        assert bad in failed.message
        assert not two.ready_file(NAME, UUID).exists()
        # Removing does not wait for it.
        alone.client.remove(NAME)
    finally:
        if bare:
            bare.close()


@pytest.mark.waits
@pytest.mark.timeout(180)
def test_a_peer_that_drips(start_daemon, start_peer, fake_peer, origin, disks):
    """Never silent for long, never done: others must take over."""
    data = images.random_bytes(24 * MIB)
    good = start_peer({"a": data})

    def dripping():
        return fake_peer().has(NAME, UUID, data, extents=Extents(
            data, options={"piece": 16, "pause": 0.2})).address
    one, two = disks.directory("one"), disks.directory("two")
    peer, url = start_daemon([one], CONFIG), start_daemon([two], CONFIG)
    peer.client.ensure(NAME, uuid=UUID, peers=[dripping(), good.address])
    url.client.ensure(NAME, origin.serve("/a", Content(data)), uuid=UUID,
                      peers=[dripping()])
    peer.client.wait_ready(NAME, 80)
    assert one.ready_file(NAME, UUID).read_bytes() == data
    url.client.wait_ready(NAME, 160)
    assert two.ready_file(NAME, UUID).read_bytes() == data


def test_stopped_peers_are_asked_last_next_time(start_daemon, start_peer, disk):
    """As nodes that hang: the port is open, nobody answers."""
    good = start_peer({"a": DATA, "b": OTHER})
    dead = [start_peer() for _ in range(2)]
    peers = [*(d.address for d in dead), good.address]
    client = start_daemon([disk], CONFIG).client
    for daemon in dead:
        os.kill(daemon.pid, signal.SIGSTOP)
    try:
        client.ensure("a", uuid="u-a", peers=peers)
        client.wait_ready("a", 40)
        # Each costs a deadline once.
        client.ensure("b", uuid="u-b", peers=peers)
        client.wait_ready("b", 4)
        assert disk.ready_file("b", "u-b").read_bytes() == OTHER
    finally:
        for daemon in dead:
            os.kill(daemon.pid, signal.SIGCONT)


def test_it_ends_at_once_when_stopped(start_daemon, fake_peer, disk):
    """However silent the peer is."""
    peer = fake_peer().has(NAME, UUID, DATA, extents=Never())
    daemon = start_daemon([disk])
    daemon.client.ensure(NAME, uuid=UUID, peers=[peer.address])
    peer.http.wait_count(peer.path(NAME, UUID, "extents"), 1)
    daemon.client.remove(NAME)
    daemon.client.ensure(NAME, uuid=UUID, peers=[peer.address])
    peer.http.wait_count(peer.path(NAME, UUID, "extents"), 2)
    daemon.stop(deadline=10)


# ------------------------------------------------------------------ no peers


@pytest.mark.parametrize("other", ["closed port", "closes", "HTTP", "another gRPC",
                                   "nginx"])
def test_no_bim_at_all(start_daemon, start_peer, disks, nginx, fake_peer, other):
    good = start_peer({"a": DATA})
    bare = None
    if other == "closed port":
        bare = Bare(b"")
        bare.close()
        address, bare = bare.address, None
    elif other == "nginx":
        address = f"127.0.0.1:{nginx.port}"
    elif other == "another gRPC":
        peer = fake_peer()
        peer.answer.Clear()  # a VersionGet that tells nothing
        address = peer.address
    else:
        bare = Bare(b"" if other == "closes" else
                    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        address = bare.address
    one, two = disks.directory("one"), disks.directory("two")
    config = {**CONFIG, "sources": {"retry_tries": 1}}
    beside, alone = start_daemon([one], config), start_daemon([two], config)
    alone.client.ensure(NAME, uuid=UUID, peers=[address])
    beside.client.ensure(NAME, uuid=UUID, peers=[address, good.address])
    try:
        beside.client.wait_ready(NAME)
        assert one.ready_file(NAME, UUID).read_bytes() == DATA
        failed = alone.client.wait_state(NAME, "failed")
        assert address in failed.message
        if other == "another gRPC":
            assert "no daemon of ours" in failed.message
    finally:
        if bare:
            bare.close()


@pytest.mark.parametrize("version,minimum", [(900, 900), (1, 1)])
def test_no_version_in_common(start_daemon, start_peer, fake_peer, disks, version,
                              minimum):
    good = start_peer({"a": DATA})
    peer = fake_peer().has(NAME, UUID, DATA)
    peer.answer.api_version, peer.answer.api_min_version = version, minimum
    one, two = disks.directory("one"), disks.directory("two")
    beside, alone = start_daemon([one], CONFIG), start_daemon([two], CONFIG)
    beside.client.ensure(NAME, uuid=UUID, peers=[peer.address, good.address])
    alone.client.ensure(NAME, uuid=UUID, peers=[peer.address])
    beside.client.wait_ready(NAME)
    failed = alone.client.wait_state(NAME, "failed")
    assert peer.address in failed.message
    # Both ranges are named.
    for number in (version, minimum, 3, 4):
        assert str(number) in failed.message
    assert not peer.http.requests, "it was asked for data"


def test_a_newer_one_that_still_speaks_ours(start_daemon, fake_peer, disk):
    peer = fake_peer().has(NAME, UUID, DATA)
    peer.answer.api_version, peer.answer.api_min_version = 900, 4
    client = start_daemon([disk], CONFIG).client
    client.ensure(NAME, uuid=UUID, peers=[peer.address])
    client.wait_ready(NAME)
    assert disk.ready_file(NAME, UUID).read_bytes() == DATA


def test_an_older_one_gives_whole_files(start_daemon, fake_peer, disk):
    """API version 3 knows no manifests: GET data, as any URL."""
    peer = fake_peer().has(NAME, UUID, DATA)
    peer.answer.api_version = 3
    client = start_daemon([disk], CONFIG).client
    client.ensure(NAME, uuid=UUID, peers=[peer.address], sha512=images.sha512(DATA))
    ready = client.wait_ready(NAME)
    assert ready.copies[0].origin == "peer"
    assert disk.ready_file(NAME, UUID).read_bytes() == DATA
    assert not peer.asked(NAME, UUID, "manifest")
    assert not peer.asked(NAME, UUID, "extents")


@pytest.mark.parametrize("endpoint", ["", "nowhere", "127.0.0.1:0", "unix:/x",
                                      "127.0.0.1:99999", "http://127.0.0.1:80/"])
def test_a_data_endpoint_that_is_none(start_daemon, fake_peer, disk, endpoint):
    peer = fake_peer()
    peer.answer.data_endpoint = endpoint
    client = start_daemon([disk], {**CONFIG, "sources": {"retry_tries": 1}}).client
    client.ensure(NAME, uuid=UUID, peers=[peer.address])
    failed = client.wait_state(NAME, "failed")
    assert peer.address in failed.message and "data" in failed.message


def test_only_the_port_of_a_data_endpoint_counts(start_daemon, fake_peer, disk):
    """Else a peer could make this node ask any host of its network."""
    peer = fake_peer().has(NAME, UUID, DATA)
    port = peer.http.port
    victim = Bare(b"", "127.0.0.2", port)
    try:
        client = start_daemon([disk], CONFIG).client
        # At the second one somebody else listens.
        for host in ("169.254.169.254", "127.0.0.2", "localhost", "example.com"):
            peer.answer.data_endpoint = f"{host}:{port}"
            name = "a-" + host.replace(".", "-")
            peer.has(name, UUID, DATA)
            client.ensure(name, uuid=UUID, peers=[peer.address])
            client.wait_ready(name, 15)
            assert disk.ready_file(name, UUID).read_bytes() == DATA
            assert peer.asked(name, UUID, "manifest")
        assert victim.connections == 0
    finally:
        victim.close()


def test_redirects_of_a_peer_are_not_followed(start_daemon, fake_peer, origin, disk):
    elsewhere = origin.serve("/m", Content(manifest(NAME, UUID, DATA),
                                           content_type=MANIFEST_TYPE))
    peer = fake_peer().has(NAME, UUID, DATA, redirect(elsewhere))
    client = start_daemon([disk], CONFIG).client
    client.ensure(NAME, uuid=UUID, peers=[peer.address])
    failed = client.wait_state(NAME, "failed")
    assert peer.address in failed.message
    assert not origin.requests


# ------------------------------------------------------------ going away


def test_a_real_peer_is_killed_in_the_middle(start_daemon, start_peer, relay, disk):
    data = images.random_bytes(24 * MIB)
    doomed, good = start_peer({"a": data}), start_peer({"a": data})
    wire, address = relay(doomed, hold_at=9 * MIB)
    client = start_daemon([disk], {"peers": {"connections": 1}}).client
    client.ensure(NAME, uuid=UUID, peers=[address, good.address])
    wire.wait_held()
    doomed.kill9()
    wire.release()
    ready = client.wait_ready(NAME)
    assert disk.ready_file(NAME, UUID).read_bytes() == data
    # What the first one gave was kept, but for chunks in the middle.
    assert ready.copies[0].wire_bytes < len(data) + 2 * MIB


def test_connections_are_reset_again_and_again(start_daemon, start_peer, relay, disk):
    """Soft: it goes on with the same peer when there is no other."""
    data = images.random_bytes(16 * MIB)
    peer = start_peer({"a": data})
    wire, address = relay(peer, hold_at=3 * MIB)
    client = start_daemon([disk]).client
    client.ensure(NAME, uuid=UUID, peers=[address])
    for step in range(2, 5):
        wire.wait_held()
        wire.held.clear()
        wire.hold_at = step * 3 * MIB
        wire.cut()
    wire.release()
    client.wait_ready(NAME)
    assert disk.ready_file(NAME, UUID).read_bytes() == data


# --------------------------------------------------------------- remembering


def test_a_liar_is_not_asked_again_soon(start_daemon, start_peer, fake_peer, disk):
    good = start_peer({"a": DATA, "b": OTHER})
    bad = fake_peer()
    bad.has("a", "u-a", DATA, extents=Extents(DATA, lambda b, e, t, d: t + OTHER[b:e]))
    bad.has("b", "u-b", OTHER)
    client = start_daemon([disk], CONFIG).client
    client.ensure("a", uuid="u-a", peers=[bad.address, good.address])
    client.wait_ready("a")
    assert len(bad.asked("a", "u-a", "extents")) <= 2
    calls, requests = bad.calls, len(bad.http.requests)
    # Another image: it would be right there, but who believes it?
    client.ensure("b", uuid="u-b", peers=[bad.address, good.address])
    client.wait_ready("b")
    assert (bad.calls, len(bad.http.requests)) == (calls, requests)
    client.ensure("c", uuid="u-c", peers=[bad.address])
    failed = client.wait_state("c", "failed")
    assert bad.address in failed.message and "failed before" in failed.message
    assert (bad.calls, len(bad.http.requests)) == (calls, requests)


def test_a_lie_costs_one_answer(start_daemon, start_peer, fake_peer, disk):
    """The whole image is not fetched before it is found out."""
    data = images.random_bytes(24 * MIB)
    good = start_peer({"a": data})
    bad = fake_peer().has(NAME, UUID, data, extents=Extents(
        data, lambda b, e, t, d: t + flipped(d, 0)))
    client = start_daemon([disk], CONFIG).client
    client.ensure(NAME, uuid=UUID, peers=[bad.address, good.address])
    ready = client.wait_ready(NAME)
    assert disk.ready_file(NAME, UUID).read_bytes() == data
    assert ready.copies[0].wire_bytes < len(data) + 8 * MIB


def test_memory_stays_bounded(start_daemon, fake_peer, disk):
    bad = fake_peer().has(NAME, UUID, DATA, extents=Extents(
        DATA, lambda b, e, t, d: bomb(), {"headers": {"Content-Encoding": "zstd"}}))
    daemon = start_daemon([disk], CONFIG, env=without_quarantine())
    daemon.client.ensure(NAME, uuid=UUID, peers=[bad.address])
    daemon.client.wait_state(NAME, "failed")
    assert proc_status_kib(daemon.pid, "VmHWM") < 160 * 1024


def test_two_peers_with_different_contents_and_nobody_says_which(
        start_daemon, start_peer, disk):
    """One of the two, whole; never a mixture."""
    one, two = images.random_bytes(24 * MIB, 1), images.random_bytes(24 * MIB, 2)
    peers = [start_peer({"a": data}).address for data in (one, two)]
    client = start_daemon([disk], {"limits": {"peer_rate": 12 * MIB}}).client
    client.ensure(NAME, uuid=UUID, peers=peers)
    client.wait_ready(NAME)
    assert disk.ready_file(NAME, UUID).read_bytes() == one


# ------------------------------------------------------------ random garbage

SMALL = images.random_bytes(MIB, 3)
ODD = (-1, 0, 1, 511, 2 ** 31, 2 ** 32, 2 ** 53, 2 ** 63 - 1, 2 ** 63, 2 ** 64 - 1,
       2 ** 64, -2 ** 63, 1e300, 0.5, "", "x", "../../etc/passwd", "\0", "é" * 70,
       "a" * 5000, [], {}, True, [[[[]]]], {"a": {"b": 1}})


def mutated(choice, data):
    data = bytearray(data)
    for _ in range(choice.randint(1, 4)):
        at = choice.randrange(len(data))
        kind = choice.randrange(4)
        if kind == 0:
            data[at] ^= 1 << choice.randrange(8)
        elif kind == 1:
            del data[at:at + choice.randint(1, 5000)]
        elif kind == 2:
            data[at:at] = choice.randbytes(choice.randint(1, 100))
        else:
            number = choice.choice([n for n in ODD if isinstance(n, int)])
            data[at:at + 8] = struct.pack("<Q", number % 2 ** 64)
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_random_garbage(start_daemon, fake_peer, disk, seed):
    """Whatever comes: the daemon lives, and what is ready is right."""
    choice = random.Random(seed)
    daemon = start_daemon([disk], {**CONFIG, "sources": {"retry_tries": 1},
                                   "transfers": {"max_per_disk": 8}})
    names = [f"i{n}" for n in range(16)]
    for name in names:
        peer, uuid = fake_peer(), f"u-{name}"
        kind = choice.randrange(3)
        if kind == 0:
            field = choice.choice(["name", "uuid", "size", "format", "virtualSize",
                                   "sha512", "sha256", "chunkSize", "chunkCount",
                                   "chunksSha256"])
            peer.has(name, uuid, SMALL, manifest(
                name, uuid, SMALL, **{field: choice.choice(ODD)}))
        elif kind == 1:
            peer.has(name, uuid, SMALL, mutated(choice, manifest(name, uuid, SMALL)[
                :choice.choice([100, 700, 10 ** 6])]))
        else:
            answers = choice.getrandbits(32)

            def lie(begin, end, table, body, answers=answers):
                mine = random.Random(answers)
                head = mutated(mine, table) if mine.random() < 0.5 else table
                return head + (mutated(mine, body) if mine.random() < 0.7 else body)
            peer.has(name, uuid, SMALL, extents=Extents(SMALL, lie))
        daemon.client.ensure(name, uuid=uuid, peers=[peer.address],
                             sha512=images.sha512(SMALL))
    for name in names:
        image = daemon.client.wait_image(
            name, lambda i: i.state in ("ready", "failed"), "an end", 40)
        file = disk.ready_file(name, f"u-{name}")
        if image.state == "ready":
            assert file.read_bytes() == SMALL
        else:
            assert not file.exists() and image.message
    assert daemon.running and daemon.client.disk(disk).state == "ready"
