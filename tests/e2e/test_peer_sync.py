"""An image comes from other daemons: by name and uuid, without its holes,
proven chunk by chunk."""

import json
import os
import threading

import grpc
import pytest

from lib import images
from lib.client import EVENT, refused
from lib.deadline import scaled
from lib.images import KIB, MIB
from lib.peers import manifest
from lib.servers import Content
from test_restart_trust import upstream_leaves
from test_verify import flip

# What a peer sends beside data: manifest, tables of extents.
OVERHEAD = 64 * KIB


def read(image):
    return open(image.copies[0].file_path, "rb").read()


def test_by_name_and_uuid(start_daemon, start_peer, relay, disk):
    data = images.random_bytes(24 * MIB + 512)
    peer = start_peer({"a": data})
    wire, address = relay(peer)
    client = start_daemon([disk]).client
    answer = client.ensure("a", uuid="u-a", peers=[address])
    assert answer.created and list(answer.image.spec.source.peers) == [address]
    ready = client.wait_ready("a")
    copy = ready.copies[0]
    assert read(ready) == data
    assert copy.origin == "peer" and not copy.sha512_pending
    assert copy.reused_bytes == 0 and copy.progress == 100
    assert ready.current_sha512 == images.sha512(data)
    assert (ready.format, ready.size) == ("raw", len(data))
    # What is told is what passed.
    assert len(data) <= copy.wire_bytes <= len(data) + OVERHEAD
    assert copy.wire_bytes <= wire.received <= copy.wire_bytes + OVERHEAD
    assert client.verify("a")[-1].ok
    # Longhorn can take it over from here.
    cfg = disk.cfg("a", "u-a")
    assert cfg["currentChecksum"] == images.sha512(data) and cfg["size"] == len(data)


def test_holes_stay_holes(start_daemon, start_peer, files, disk, relay):
    # Data that is no whole chunk, at odd places.
    image = images.sparse_raw(files / "s", 96 * MIB, (0, 20 * MIB + 8 * KIB,
                                                      95 * MIB), 64 * KIB)
    peer = start_peer({"a": image})
    wire, address = relay(peer)
    client = start_daemon([disk]).client
    client.ensure("a", uuid="u-a", peers=[address])
    ready = client.wait_ready("a")
    stat = os.stat(ready.copies[0].file_path)
    assert stat.st_size == image.size
    assert images.file_sha512(ready.copies[0].file_path) == image.sha512
    assert stat.st_blocks * 512 <= 3 * 64 * KIB + 64 * KIB
    assert ready.copies[0].wire_bytes <= 3 * 64 * KIB + 32 * KIB
    assert wire.received <= 3 * 64 * KIB + OVERHEAD


def test_an_image_of_gibibytes_that_is_mostly_holes(start_daemon, start_peer,
                                                    files, disk):
    path = files / "big"
    with open(path, "wb") as file:
        file.truncate(3 * 1024 * MIB)
        for at in (0, 1024 * MIB + 4096, 2049 * MIB, 3072 * MIB - 4096):
            file.seek(at)
            file.write(images.random_bytes(4096, at % 1000 + 1))
    peer = start_peer()
    # Its SHA-512 is not wanted here: 3 GiB of zeros are much for a slow CPU.
    peer.client.ensure("a", f"file://{path}", uuid="u-a")
    peer.client.wait_ready("a", 90)
    client = start_daemon([disk]).client
    client.ensure("a", uuid="u-a", peers=[peer.address])
    ready = client.wait_ready("a", 90)
    copy = ready.copies[0]
    assert ready.size == 3 * 1024 * MIB
    assert copy.wire_bytes <= 64 * KIB
    assert copy.real_size <= 64 * KIB
    with open(copy.file_path, "rb") as mine, open(path, "rb") as theirs:
        for at in (0, 1024 * MIB + 4096, 2049 * MIB, 3072 * MIB - 4096):
            mine.seek(at)
            theirs.seek(at)
            assert mine.read(4096) == theirs.read(4096)


@pytest.mark.parametrize("kind", ["qcow2", "iso"])
def test_other_formats(start_daemon, start_peer, files, disk, kind):
    image = (images.qcow2(files / "i", 16 * MIB, ((0, 2 * MIB),))
             if kind == "qcow2" else images.iso(files / "i"))
    peer = start_peer({"a": image})
    client = start_daemon([disk]).client
    client.ensure("a", uuid="u-a", peers=[peer.address], sha512=image.sha512,
                  sha256=image.sha256, size=image.size)
    ready = client.wait_ready("a")
    assert read(ready) == image.data
    assert (ready.format, ready.current_sha256) == (kind, image.sha256)


def test_several_peers_share_the_work(start_daemon, start_peer, relay, disk):
    """Each is so slow that more than one pays off; one of them has nothing."""
    data = images.random_bytes(48 * MIB)
    peers = [start_peer({"a": data}) for _ in range(2)]
    empty = start_peer()
    (one, first), (two, second) = (relay(p, pace=6 * MIB) for p in peers)
    client = start_daemon([disk]).client
    client.ensure("a", uuid="u-a", peers=[empty.address, first, second],
                  sha512=images.sha512(data))
    ready = client.wait_ready("a", 60)
    assert read(ready) == data
    assert one.received > 4 * MIB and two.received > 4 * MIB, (
        one.received, two.received)
    assert one.received + two.received < len(data) * 1.2 + OVERHEAD
    assert ready.copies[0].wire_bytes <= one.received + two.received


def test_two_disks_one_transfer(start_daemon, start_peer, relay, disks):
    data = images.random_bytes(8 * MIB)
    wire, address = relay(start_peer({"a": data}))
    both = [disks.directory("one"), disks.directory("two")]
    client = start_daemon(both).client
    client.ensure("a", uuid="u-a", peers=[address])
    ready = client.wait_ready("a")
    assert sorted(c.origin for c in ready.copies) == ["copy", "peer"]
    assert wire.received < len(data) + OVERHEAD
    for disk in both:
        assert disk.ready_file("a", "u-a").read_bytes() == data


# -------------------------------------------------------------------- trust


def test_strict_by_default_trusted_when_told(start_daemon, start_peer, disks):
    """The network of the peer decides, by flag or environment."""
    data = images.random_bytes(64 * MIB)
    peer = start_peer({"a": data})
    strict = start_daemon([disks.directory("strict")],
                          {"peers": {"trusted": ["10.0.0.0/8", "::1"]}})
    # The background is slow, so that what is pending can be seen.
    slow = {"limits": {"background_read_rate": 16 * MIB}}
    by_env = start_daemon([disks.directory("env")], slow,
                          env={"BIM_PEERS_TRUSTED": "127.0.0.0/8"})
    by_flag = start_daemon([disks.directory("flag")], slow, run=False)
    by_flag.start(extra_args=["--trust-peers=10.0.0.0/8",
                              "--trust-peers=127.0.0.1/32"])
    for daemon, trusts in ((strict, False), (by_env, True), (by_flag, True)):
        client = daemon.client
        watch = client.watch()
        watch.wait_type(EVENT.TYPE_SNAPSHOT_END)
        client.ensure("a", uuid="u-a", peers=[peer.address])
        ready = client.wait_ready("a")
        assert read(ready) == data
        assert ready.current_sha512 == images.sha512(data)
        done = client.wait_image(
            "a", lambda i: i.state == "ready" and not i.copies[0].sha512_pending,
            "its SHA-512 computed", 60)
        assert done.current_sha512 == images.sha512(data)
        watch.wait(lambda e: e[-1].image.state == "ready"
                   and not e[-1].image.copies[0].sha512_pending, "done")
        pending = [e.image.copies[0].state for e in watch.events
                   if e.type == EVENT.TYPE_IMAGE and e.image.copies[0].sha512_pending]
        assert ("ready" in pending) == trusts, (daemon.directory, pending)
        assert "failed" not in watch.states("a")
        watch.close()
        client._recorders.remove(watch)


def test_what_is_pending_survives_a_restart(start_daemon, start_peer, disk):
    data = images.random_bytes(32 * MIB)
    peer = start_peer({"a": data})
    daemon = start_daemon([disk], {"peers": {"trusted": ["127.0.0.1"]},
                                   "limits": {"background_read_rate": 65536}})
    daemon.client.ensure("a", uuid="u-a", peers=[peer.address])
    ready = daemon.client.wait_ready("a")
    assert ready.copies[0].sha512_pending
    daemon.kill9()
    daemon.configure(limits={"background_read_rate": 0})
    daemon.start()
    daemon.client.wait_image(
        "a", lambda i: i.state == "ready" and not i.copies[0].sha512_pending,
        "its SHA-512 computed")
    assert daemon.client.get("a").current_sha512 == images.sha512(data)
    assert daemon.client.get("a").copies[0].origin == "peer"


def test_a_trusted_peer_that_told_a_wrong_sha512(start_daemon, fake_peer, disk):
    """Ready at first, failed when the whole was read, and kept."""
    data = images.random_bytes(4 * MIB)
    wrong = images.sha512(b"something else")
    peer = fake_peer().has("a", "u-a", data,
                           manifest("a", "u-a", data, sha512=wrong))
    client = start_daemon([disk], {"peers": {"trusted": ["127.0.0.1"]}}).client
    client.ensure("a", uuid="u-a", peers=[peer.address])
    failed = client.wait_state("a", "failed")
    assert wrong in failed.message and images.sha512(data) in failed.message
    assert disk.ready_file("a", "u-a").read_bytes() == data


def test_trust_is_not_enough_for_a_wanted_sha256(start_daemon, fake_peer, disk):
    """A manifest without it proves nothing of it."""
    data = images.random_bytes(2 * MIB)
    peer = fake_peer().has("a", "u-a", data)
    client = start_daemon([disk], {"peers": {"trusted": ["127.0.0.1"]}}).client
    client.ensure("a", uuid="u-a", peers=[peer.address], sha256="00" * 32)
    failed = client.wait_state("a", "failed")
    assert images.sha256(data) in failed.message
    assert not disk.ready_file("a", "u-a").exists()
    client.ensure("b", uuid="u-b", peers=[peer.has("b", "u-b", data).address],
                  sha256=images.sha256(data))
    # The peer was right; only what was wanted was wrong.
    ready = client.wait_ready("b", 10)
    assert ready.current_sha256 == images.sha256(data)


# ------------------------------------------------------------ beside a URL


def test_the_origin_only_when_no_peer_has_it(start_daemon, start_peer, origin,
                                              disk, disks):
    data = images.random_bytes(4 * MIB)
    url = origin.serve("/a", Content(data))
    have, have_not = start_peer({"a": data}), start_peer()
    daemon = start_daemon([disk])
    client = daemon.client
    client.ensure("a", url, uuid="u-a", peers=[have_not.address, have.address])
    assert client.wait_ready("a").copies[0].origin == "peer"
    assert origin.count("/a") == 0

    client.ensure("b", url, uuid="u-b", peers=[have.address, have_not.address])
    ready = client.wait_ready("b")
    assert ready.copies[0].origin == "download" and read(ready) == data
    assert origin.count("/a") == 1

    # A uuid that the peers can't know: made here.
    client.ensure("c", url, peers=[have.address])
    ready = client.wait_ready("c")
    assert ready.spec.uuid and ready.copies[0].origin == "download"


def test_the_same_name_with_another_uuid_is_another_image(start_daemon, start_peer,
                                                          disk):
    peer = start_peer({"a": images.random_bytes(MIB)})
    client = start_daemon([disk]).client
    client.ensure("a", uuid="other", peers=[peer.address])
    failed = client.wait_state("a", "failed")
    assert peer.address in failed.message and "cannot find" in failed.message
    assert failed.copies[0].HasField("next_attempt")


def test_a_peer_that_has_another_content(start_daemon, start_peer, origin, disk):
    """Told by the wanted digest or size before anything is fetched."""
    data, other = images.random_bytes(4 * MIB, 1), images.random_bytes(4 * MIB, 2)
    peer = start_peer({"a": other, "b": other})
    client = start_daemon([disk]).client
    client.ensure("a", origin.serve("/a", Content(data)), uuid="u-a",
                  sha512=images.sha512(data), peers=[peer.address])
    ready = client.wait_ready("a")
    assert read(ready) == data and ready.copies[0].origin == "download"
    client.ensure("b", uuid="u-b", size=MIB, peers=[peer.address])
    failed = client.wait_state("b", "failed")
    assert str(MIB) in failed.message and str(4 * MIB) in failed.message
    assert failed.copies[0].wire_bytes == 0


# ---------------------------------------------------------------- the spec


def test_what_is_refused(start_daemon, disk):
    client = start_daemon([disk]).client
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "uuid"):
        client.ensure("a", peers=["127.0.0.1:9500"])
    for bad in ("", "nowhere", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999",
                "http://127.0.0.1:9500", "127.0.0.1:9500/x", "unix:/run/x",
                ":9500", "a b:1", "user@host:1"):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "peer"):
            client.ensure("a", uuid="u", peers=[bad])
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "64"):
        client.ensure("a", uuid="u",
                      peers=[f"127.0.0.1:{n}" for n in range(1000, 1065)])
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "upload"):
        client.ensure("a", uuid="u", peers=["127.0.0.1:1"], upload=True)
    assert not client.list_all()


def test_other_peers_replace_the_old_ones(start_daemon, start_peer, origin, disk):
    data = images.random_bytes(2 * MIB)
    nothing, has = start_peer(), start_peer({"a": data})
    daemon = start_daemon([disk], {"backoff": {"first": "1h", "max": "1h"}})
    client = daemon.client
    client.ensure("a", uuid="u-a", peers=[nothing.address])
    client.wait_state("a", "failed")
    again = client.ensure("a", uuid="u-a", peers=[has.address])
    assert not again.created
    assert list(again.image.spec.source.peers) == [has.address]
    # They are asked now, not after the backoff of the old ones.
    ready = client.wait_ready("a")
    assert read(ready) == data
    # Remembered; and a ready image stays as it is.
    daemon.restart()
    client = daemon.client
    assert list(client.get("a").spec.source.peers) == [has.address]
    more = client.ensure("a", uuid="u-a", peers=["127.0.0.1:1", has.address])
    assert not more.created and more.image.state == "ready"
    assert list(more.image.spec.source.peers) == ["127.0.0.1:1", has.address]
    with refused(grpc.StatusCode.ALREADY_EXISTS):
        client.ensure("a", origin.url("/x"), uuid="u-a", peers=[has.address])


def test_peers_are_replaced_while_it_runs(start_daemon, start_peer, relay, disk):
    """The running transfer is not disturbed."""
    data = images.random_bytes(16 * MIB)
    peer = start_peer({"a": data})
    wire, address = relay(peer, hold_at=6 * MIB)
    client = start_daemon([disk]).client
    client.ensure("a", uuid="u-a", peers=[address])
    wire.wait_held()
    again = client.ensure("a", uuid="u-a", peers=[peer.address])
    assert not again.created
    wire.release()
    ready = client.wait_ready("a")
    assert read(ready) == data
    assert list(ready.spec.source.peers) == [peer.address]
    assert ready.copies[0].wire_bytes < len(data) * 1.2


def test_the_peer_itself_is_among_them(start_daemon, start_peer, disk):
    """As a control plane sends the list of all nodes to each."""
    data = images.random_bytes(2 * MIB)
    peer = start_peer({"a": data})
    daemon = start_daemon([disk])
    daemon.client.ensure("a", uuid="u-a", peers=[daemon.address, peer.address])
    assert read(daemon.client.wait_ready("a")) == data


def test_a_peer_by_host_name(start_daemon, start_peer, disk):
    data = images.random_bytes(MIB)
    peer = start_peer({"a": data})
    client = start_daemon([disk]).client
    port = peer.address.rpartition(":")[2]
    client.ensure("a", uuid="u-a", peers=[f"localhost:{port}"])
    assert read(client.wait_ready("a")) == data
    client.ensure("b", uuid="u-b", peers=["no-such-host.invalid:9500"])
    failed = client.wait_state("b", "failed", 60)
    assert "no-such-host.invalid:9500" in failed.message


def test_ipv6(start_daemon, start_peer, disk):
    data = images.random_bytes(2 * MIB)
    try:
        peer = start_peer({"a": data}, config={"api": {
            "listen": ["[::1]:0", "127.0.0.1:0"], "data_listen": "[::1]:0"}})
    except AssertionError as error:
        if "address" not in str(error).lower():
            raise
        pytest.skip("no IPv6 loopback")
    assert peer.address.startswith("[::1]:")
    daemon = start_daemon([disk], {"peers": {"trusted": ["::1/128"]}})
    daemon.client.ensure("a", uuid="u-a", peers=[peer.address])
    assert read(daemon.client.wait_ready("a")) == data


# -------------------------------------------------------- without a manifest


def test_an_adopted_file_has_no_manifest_and_is_synced_by_ranges(
        start_daemon, start_peer, disks, disk):
    data = images.random_bytes(12 * MIB)
    theirs = disks.directory("theirs")
    upstream_leaves(theirs, "a", "u-a", data)
    peer = start_peer(disk=theirs)
    peer.client.ensure("a", "http://127.0.0.1:1/nothing", uuid="u-a")
    assert peer.client.wait_ready("a").copies[0].origin == "reused file"
    # Trust does not help: there are no chunks to prove.
    daemon = start_daemon([disk], {"peers": {"trusted": ["127.0.0.1"]}})
    watch = daemon.client.watch()
    daemon.client.ensure("a", uuid="u-a", peers=[peer.address])
    ready = daemon.client.wait_ready("a")
    assert read(ready) == data and ready.copies[0].origin == "peer"
    assert ready.current_sha512 == images.sha512(data)
    assert len(data) <= ready.copies[0].wire_bytes <= len(data) + OVERHEAD
    assert not any(e.image.copies[0].sha512_pending for e in watch.events
                   if e.type == EVENT.TYPE_IMAGE)
    # From here on it has one.
    third = start_daemon([disks.directory("third")])
    third.client.ensure("a", uuid="u-a", peers=[peer.address, daemon.address])
    assert read(third.client.wait_ready("a")) == data
    assert third.client.verify("a")[-1].ok


def test_an_adopted_file_that_is_not_what_its_cfg_says(start_daemon, start_peer,
                                                       disks, disk):
    """The upstream manager's checksum is what counts, and is checked."""
    data = images.random_bytes(4 * MIB)
    theirs = disks.directory("theirs")
    upstream_leaves(theirs, "a", "u-a", data, checksum=images.sha512(b"other"))
    peer = start_peer(disk=theirs)
    peer.client.ensure("a", "http://127.0.0.1:1/nothing", uuid="u-a")
    peer.client.wait_ready("a")
    client = start_daemon([disk]).client
    client.ensure("a", uuid="u-a", peers=[peer.address])
    failed = client.wait_state("a", "failed", 15)
    assert images.sha512(b"other") in failed.message
    assert failed.copies[0].HasField("next_attempt")
    assert not disk.ready_file("a", "u-a").exists()


# ------------------------------------------------------------------- others


def test_the_state_is_shown_as_of_any_transfer(start_daemon, start_peer, relay,
                                               disk):
    data = images.random_bytes(16 * MIB)
    wire, address = relay(start_peer({"a": data}), hold_at=8 * MIB)
    client = start_daemon([disk]).client
    watch = client.watch()
    watch.wait_type(EVENT.TYPE_SNAPSHOT_END)
    client.ensure("a", uuid="u-a", peers=[address])
    wire.wait_held()
    running = client.wait_image(
        "a", lambda i: i.copies[0].processed_bytes >= 4 * MIB, "half of it")
    copy = running.copies[0]
    assert running.state == "in-progress" and 20 <= copy.progress <= 60
    assert copy.wire_bytes >= copy.processed_bytes > 0
    wire.release()
    client.wait_ready("a")
    watch.wait(lambda _: watch.states("a")[-1:] == ["ready"], "ready")
    assert set(watch.states("a")[:-1]) <= {"pending", "starting", "in-progress"}


def test_remove_while_it_runs(start_daemon, start_peer, relay, disk):
    data = images.random_bytes(16 * MIB)
    wire, address = relay(start_peer({"a": data}), hold_at=8 * MIB)
    client = start_daemon([disk]).client
    client.ensure("a", uuid="u-a", peers=[address])
    wire.wait_held()
    client.remove("a")
    assert not client.list_all() and not disk.image_files()


def test_the_command_line(start_daemon, start_peer, disk):
    data = images.random_bytes(2 * MIB)
    peer = start_peer({"a": data})
    daemon = start_daemon([disk])
    done = daemon.cli("image", "ensure", "a", "--uuid", "u-a", "--peer",
                      "127.0.0.1:1", "--peer", peer.address, "--wait",
                      "-o", "json", check=0)
    answer = json.loads(done.stdout)["image"]
    assert answer["state"] == "ready" and answer["copies"][0]["origin"] == "peer"
    assert answer["spec"]["source"]["peers"] == ["127.0.0.1:1", peer.address]
    assert disk.ready_file("a", "u-a").read_bytes() == data
    # Without a uuid it can't work.
    done = daemon.cli("image", "ensure", "b", "--peer", peer.address, check=2)
    assert "uuid" in done.stderr


def test_the_images_of_a_peer_may_be_used_meanwhile(start_daemon, start_peer, disk,
                                                    disks):
    """Many receivers of many images at once from one peer."""
    contents = {f"i{n}": images.random_bytes(3 * MIB, n) for n in range(4)}
    peer = start_peer(contents)
    daemons = [start_daemon([disks.directory(f"d{n}")]) for n in range(3)]

    def ensure(daemon):
        for name in contents:
            daemon.client.ensure(name, uuid=f"u-{name}", peers=[peer.address])
    threads = [threading.Thread(target=ensure, args=(d,)) for d in daemons]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(scaled(20))
    for daemon in daemons:
        for name, data in contents.items():
            assert read(daemon.client.wait_ready(name, 60)) == data


def test_a_peer_that_is_still_getting_it_itself(start_daemon, start_peer, origin,
                                                disk):
    """Not ready there: asked again, until it is."""
    data = images.random_bytes(4 * MIB)
    gate = threading.Event()
    url = origin.serve("/a", Content(data, gate=gate, gate_after=MIB))
    peer = start_peer()
    peer.client.ensure("a", url, uuid="u-a")
    origin.wait_count("/a", 1)
    client = start_daemon([disk]).client
    client.ensure("a", uuid="u-a", peers=[peer.address])
    failed = client.wait_state("a", "failed")
    assert peer.address in failed.message and "not ready" in failed.message
    assert failed.copies[0].HasField("next_attempt")
    gate.set()
    assert read(client.wait_ready("a")) == data
    assert origin.count("/a") == 1


def test_each_waits_for_the_other(start_daemon, disks):
    """Nobody has it: no lock-up, and a third one helps both."""
    config = {"sources": {"allow_file": True}}
    one = start_daemon([disks.directory("one")], config)
    two = start_daemon([disks.directory("two")], config)
    one.client.ensure("a", uuid="u-a", peers=[two.address])
    two.client.ensure("a", uuid="u-a", peers=[one.address])
    for daemon, other in ((one, two), (two, one)):
        failed = daemon.client.wait_state("a", "failed")
        assert other.address in failed.message
    data = images.random_bytes(MIB)
    source = disks.root / "source"
    source.write_bytes(data)
    three = start_daemon([disks.directory("three")], config)
    three.client.ensure("a", f"file://{source}", uuid="u-a")
    three.client.wait_ready("a")
    two.client.ensure("a", uuid="u-a", peers=[one.address, three.address])
    assert read(two.client.wait_ready("a")) == data
    assert read(one.client.wait_ready("a")) == data


def test_a_damaged_copy_is_not_passed_on(start_daemon, start_peer, disk):
    """The peer does not know that its file rotted; the receiver finds out."""
    data = images.random_bytes(4 * MIB)
    peer = start_peer({"a": data}, config={"disks": {"check_interval": "1h"}})
    flip(peer.disk.ready_file("a", "u-a"), 3 * MIB)
    client = start_daemon([disk]).client
    client.ensure("a", uuid="u-a", peers=[peer.address])
    failed = client.wait_state("a", "failed")
    assert peer.address in failed.message
    assert not disk.ready_file("a", "u-a").exists()


@pytest.mark.parametrize("first", ["lies", "dies", "is stopped"])
def test_of_two_without_a_manifest_the_other_helps(start_daemon, start_peer, relay,
                                                   disks, disk, first):
    data = images.random_bytes(12 * MIB)
    made = []
    for number in range(2):
        theirs = disks.directory(f"theirs{number}")
        lies = number == 0 and first == "lies"
        upstream_leaves(theirs, "a", "u-a", data,
                        checksum=images.sha512(b"other") if lies else None)
        made.append(start_peer(disk=theirs))
        made[-1].client.ensure("a", "http://127.0.0.1:1/nothing", uuid="u-a")
        made[-1].client.wait_ready("a")
    wire, address = relay(made[0], hold_at=4 * MIB)
    client = start_daemon([disk]).client
    client.ensure("a", uuid="u-a", peers=[address, made[1].address],
                  sha512="" if first == "lies" else images.sha512(data))
    wire.wait_held()
    if first == "dies":
        made[0].kill9()
    if first != "is stopped":
        wire.release()
    # One deadline of a stalled body.
    assert read(client.wait_ready("a", 40)) == data


def test_a_trusted_one_among_others_is_believed(start_daemon, start_peer, fake_peer,
                                                disk):
    """Its manifest counts, wherever it stands in the list; bytes come from
    all of them, and each chunk is proven."""
    data = images.random_bytes(8 * MIB)
    elsewhere = {"api": {"listen": ["127.0.0.2:0"], "data_listen": "127.0.0.2:0"}}
    trusted = start_peer({"a": data}, config=elsewhere)
    assert trusted.address.startswith("127.0.0.2:")
    other = fake_peer().has("a", "u-a", images.random_bytes(8 * MIB, 2))
    daemon = start_daemon([disk], {"peers": {"trusted": ["127.0.0.2"]},
                                   "limits": {"background_read_rate": 65536}})
    daemon.client.ensure("a", uuid="u-a", peers=[other.address, trusted.address])
    ready = daemon.client.wait_ready("a")
    assert ready.copies[0].sha512_pending
    assert read(ready) == data and ready.current_sha512 == images.sha512(data)
    assert not other.asked("a", "u-a", "manifest")


def test_trust_is_of_addresses_not_of_names(start_daemon, start_peer, disk):
    data = images.random_bytes(8 * MIB)
    peer = start_peer({"a": data})
    daemon = start_daemon([disk], {"peers": {"trusted": ["127.0.0.1", "::1"]},
                                   "limits": {"background_read_rate": 65536}})
    port = peer.address.rpartition(":")[2]
    daemon.client.ensure("a", uuid="u-a", peers=[f"localhost:{port}"])
    assert daemon.client.wait_ready("a").copies[0].sha512_pending


def test_what_is_pending_is_passed_on_as_unproven(start_daemon, start_peer, disks):
    """A strict receiver proves it for itself."""
    data = images.random_bytes(8 * MIB)
    peer = start_peer({"a": data})
    middle = start_daemon([disks.directory("middle")],
                          {"peers": {"trusted": ["127.0.0.1"]},
                           "limits": {"background_read_rate": 65536}})
    middle.client.ensure("a", uuid="u-a", peers=[peer.address])
    assert middle.client.wait_ready("a").copies[0].sha512_pending
    last = start_daemon([disks.directory("last")])
    last.client.ensure("a", uuid="u-a", peers=[middle.address])
    ready = last.client.wait_ready("a")
    assert not ready.copies[0].sha512_pending and read(ready) == data
