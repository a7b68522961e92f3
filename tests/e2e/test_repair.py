"""Verify with repair: only the damaged chunks come anew, into a new file."""

import json
import os
from threading import Thread

import pytest

from lib import images
from lib.client import copy_of, pb
from lib.disks import Disk
from lib.images import MIB
from lib.peers import CHUNK
from test_verify import flip

SIZE = 32 * MIB
DATA = images.random_bytes(SIZE, 1)
OVERHEAD = 64 * 1024
# Three chunks, one of them hit twice.
PLACES = (5, 40 * CHUNK + 17, 40 * CHUNK + 99, SIZE - 1)
# Only Verify itself shall find anything.
QUIET = {"disks": {"check_interval": "1h"}, "sources": {"allow_file": True}}


def damage(file, places=PLACES):
    for at in places:
        flip(file, at)
    return file.read_bytes()


def damaged_file(disk, name="a", uuid="u-a"):
    return disk.path / ".bim" / "damaged" / f"{name}-{uuid}"


def repair(client, **options):
    last = client.verify("a", repair=True, **options)[-1]
    assert last.done
    return last


def assert_right(client, disk, last, chunks=3):
    assert last.ok and not last.message, last
    assert last.repaired_chunks == chunks
    assert disk.ready_file("a", "u-a").read_bytes() == DATA
    copy = copy_of(client.get("a"), disk)
    assert (copy.state, copy.message) == ("ready", "")
    assert not disk.temp_files()
    again = client.verify("a")[-1]
    assert again.ok and again.repaired_chunks == 0


@pytest.fixture
def from_url(start_daemon, files, disks):
    """from_url(disk...) -> a daemon with the image on these, of a file."""
    def start(*on, config=None, peers=()):
        (files / "a").write_bytes(DATA)
        daemon = start_daemon(on, {**QUIET, **(config or {})})
        daemon.client.ensure("a", f"file://{files}/a", uuid="u-a", peers=peers)
        daemon.client.wait_ready("a")
        return daemon
    return start


@pytest.mark.parametrize("kind", ["directories", "xfs"])
def test_from_another_disk(from_url, disks, kind):
    if kind == "xfs":
        xfs = disks.loop("xfs", "xfs", 300, init=False)
        one, two = Disk(xfs.path / "one"), Disk(xfs.path / "two")
    else:
        one, two = disks.directory("one"), disks.directory("two")
    daemon = from_url(one, two)
    client = daemon.client
    file = two.ready_file("a", "u-a")
    inode = file.stat().st_ino
    bad = damage(file)
    with open(file, "rb") as reader:
        last = repair(client)
        assert_right(client, two, last)
        copy = copy_of(last.image, two)
        assert copy.origin == "repair" and copy.wire_bytes == 0
        # Who had it open reads what it read before.
        assert reader.read() == bad
        assert os.fstat(reader.fileno()).st_ino == inode
    assert file.stat().st_ino != inode
    assert damaged_file(two).read_bytes() == bad
    assert damaged_file(two).stat().st_ino == inode
    assert not damaged_file(one).exists()
    # Removal takes it along.
    daemon.restart()
    assert daemon.client.get("a").state == "ready"
    assert damaged_file(two).exists()
    daemon.client.remove("a")
    assert not damaged_file(two).exists()


def test_from_a_peer(from_url, start_peer, relay, disk):
    wire, address = relay(start_peer({"a": DATA}))
    daemon = from_url(disk)
    client = daemon.client
    # The URL brought it; the peers are told later.
    client.ensure("a", client.get("a").spec.source.url, uuid="u-a", peers=[address])
    assert wire.received == 0
    bad = damage(disk.ready_file("a", "u-a"))
    last = repair(client)
    copy = copy_of(last.image, disk)
    assert_right(client, disk, last)
    assert copy.origin == "repair"
    assert 3 * CHUNK <= copy.wire_bytes <= 3 * CHUNK + OVERHEAD
    assert wire.received <= 3 * CHUNK + OVERHEAD
    assert copy.reused_bytes == SIZE - 3 * CHUNK
    assert damaged_file(disk).read_bytes() == bad
    cfg = disk.cfg("a", "u-a")
    assert cfg["currentChecksum"] == images.sha512(DATA)


def test_a_second_repair_replaces_what_was_kept(from_url, disks):
    one, two = disks.directory("one"), disks.directory("two")
    client = from_url(one, two).client
    damage(two.ready_file("a", "u-a"))
    assert_right(client, two, repair(client))
    bad = damage(two.ready_file("a", "u-a"), (9 * CHUNK,))
    assert_right(client, two, repair(client), chunks=1)
    assert damaged_file(two).read_bytes() == bad


def test_both_disks_are_damaged_at_different_places(from_url, disks):
    """Each has what the other lacks."""
    one, two = disks.directory("one"), disks.directory("two")
    client = from_url(one, two).client
    damage(one.ready_file("a", "u-a"), (0,))
    damage(two.ready_file("a", "u-a"), (SIZE - 1,))
    last = repair(client)
    if not last.ok:
        # Ready copies are candidates; one that was found damaged no more.
        last = repair(client, disks=[one, two])
    assert last.ok, last.message
    for disk in (one, two):
        assert disk.ready_file("a", "u-a").read_bytes() == DATA


@pytest.mark.parametrize("source", ["other disk", "peer"])
def test_the_file_was_shortened(from_url, start_peer, disks, disk, source):
    peers, on = [], [disk, disks.directory("two")]
    if source == "peer":
        peers, on = [start_peer({"a": DATA}).address], [disk]
    client = from_url(*on, peers=peers).client
    file = disk.ready_file("a", "u-a")
    os.truncate(file, SIZE - 2 * MIB)
    last = repair(client)
    assert_right(client, disk, last, chunks=8)
    assert damaged_file(disk).stat().st_size == SIZE - 2 * MIB


def test_the_file_was_shortened_to_nothing_or_grew(from_url, disks):
    one, two = disks.directory("one"), disks.directory("two")
    client = from_url(one, two).client
    with open(two.ready_file("a", "u-a"), "ab") as file:
        file.write(b"x" * 4096)
    last = repair(client)
    assert last.ok, last.message
    assert two.ready_file("a", "u-a").read_bytes() == DATA
    os.truncate(two.ready_file("a", "u-a"), 0)
    last = repair(client)
    assert last.ok, last.message
    assert two.ready_file("a", "u-a").read_bytes() == DATA


def test_nobody_has_it(from_url, disk):
    """Failed, and left exactly as it is."""
    client = from_url(disk).client
    file = disk.ready_file("a", "u-a")
    bad = damage(file)
    inode = file.stat().st_ino
    last = repair(client)
    assert not last.ok and last.repaired_chunks == 0
    assert str(file) in last.message and "repair" in last.message
    assert str(3 * CHUNK) in last.message, "how much is missing"
    copy = copy_of(client.get("a"), disk)
    assert copy.state == "failed" and copy.verification == "failed"
    assert file.read_bytes() == bad and file.stat().st_ino == inode
    assert not damaged_file(disk).exists() and not disk.temp_files()


def test_a_failed_copy_is_repaired_when_a_source_appears(from_url, start_peer, disk):
    """Found damaged by an earlier Verify, and by a restart in between."""
    daemon = from_url(disk)
    client = daemon.client
    bad = damage(disk.ready_file("a", "u-a"))
    assert not client.verify("a")[-1].ok
    assert not repair(client).ok
    daemon.restart()
    client = daemon.client
    client.wait_state("a", "failed")
    peer = start_peer({"a": DATA})
    url = client.get("a").spec.source.url
    client.ensure("a", url, uuid="u-a", peers=["127.0.0.1:1"])
    last = repair(client)
    assert not last.ok and "127.0.0.1:1" in last.message
    client.ensure("a", url, uuid="u-a", peers=["127.0.0.1:1", peer.address])
    assert disk.ready_file("a", "u-a").read_bytes() == bad, "it was replaced unasked"
    last = repair(client, disks=[disk])
    assert_right(client, disk, last)
    assert damaged_file(disk).read_bytes() == bad


def test_a_peer_with_another_content_is_no_help(from_url, start_peer, disk):
    other = images.random_bytes(SIZE, 2)
    peer = start_peer({"a": other})
    client = from_url(disk).client
    client.ensure("a", client.get("a").spec.source.url, uuid="u-a",
                  peers=[peer.address])
    bad = damage(disk.ready_file("a", "u-a"))
    last = repair(client)
    assert not last.ok and peer.address in last.message
    assert disk.ready_file("a", "u-a").read_bytes() == bad


def test_without_repair_nothing_is_repaired(from_url, disks):
    one, two = disks.directory("one"), disks.directory("two")
    client = from_url(one, two).client
    bad = damage(two.ready_file("a", "u-a"))
    last = client.verify("a")[-1]
    assert not last.ok and last.repaired_chunks == 0
    assert "3 of 128 chunks differ" in last.message
    assert two.ready_file("a", "u-a").read_bytes() == bad
    assert not damaged_file(two).exists()


def test_repair_of_what_is_good_changes_nothing(from_url, disks):
    one, two = disks.directory("one"), disks.directory("two")
    client = from_url(one, two).client
    inodes = [d.ready_file("a", "u-a").stat().st_ino for d in (one, two)]
    last = repair(client)
    assert last.ok and last.repaired_chunks == 0
    assert [d.ready_file("a", "u-a").stat().st_ino for d in (one, two)] == inodes
    assert not damaged_file(one).exists() and not damaged_file(two).exists()


def test_the_rot_of_a_device(from_url, disks):
    """No time of the file tells; only reading does."""
    two = disks.loop("loop", "ext4", 200)
    daemon = from_url(disks.directory("one"), two)
    daemon.stop()
    two.rot(two.ready_file("a", "u-a"), *PLACES)
    daemon.start()
    client = daemon.client
    assert client.get("a").state == "ready"
    assert_right(client, two, repair(client))


def test_the_peer_is_killed_in_the_middle(from_url, start_peer, relay, disk):
    """Then the file is as it was, and another time it works."""
    peer = start_peer({"a": DATA})
    wire, address = relay(peer, hold_at=2 * CHUNK)
    daemon = from_url(disk)
    client = daemon.client
    url = client.get("a").spec.source.url
    client.ensure("a", url, uuid="u-a", peers=[address])
    bad = damage(disk.ready_file("a", "u-a"), tuple(range(0, SIZE, 4 * CHUNK)))
    outcome = []
    thread = Thread(target=lambda: outcome.append(repair(client)))
    thread.start()
    wire.wait_held()
    peer.kill9()
    wire.release()
    thread.join(60)
    assert outcome and not outcome[0].ok
    assert address in outcome[0].message
    assert disk.ready_file("a", "u-a").read_bytes() == bad
    assert not disk.temp_files()
    peer.start()
    client.ensure("a", url, uuid="u-a", peers=[peer.address])
    assert_right(client, disk, repair(client), chunks=32)


def test_killed_in_a_repair(from_url, start_peer, relay, disk):
    """The damaged file is there all the while, and found failed again."""
    wire, address = relay(start_peer({"a": DATA}), hold_at=2 * CHUNK)
    daemon = from_url(disk)
    client = daemon.client
    url = client.get("a").spec.source.url
    client.ensure("a", url, uuid="u-a", peers=[address])
    bad = damage(disk.ready_file("a", "u-a"), tuple(range(0, SIZE, 4 * CHUNK)))
    stream = client.images.Verify(pb.VerifyRequest(name="a", repair=True))
    next(stream)
    wire.wait_held()
    assert disk.ready_file("a", "u-a").read_bytes() == bad
    daemon.kill9()
    wire.anew()
    daemon.start()
    assert disk.ready_file("a", "u-a").read_bytes() == bad
    client = daemon.client
    client.wait_image("a", lambda i: i.state in ("ready", "failed"), "judged")
    last = repair(client)
    assert last.ok, last.message
    assert disk.ready_file("a", "u-a").read_bytes() == DATA
    assert not disk.temp_files()


def test_the_command_line(from_url, disks):
    one, two = disks.directory("one"), disks.directory("two")
    daemon = from_url(one, two)
    bad = damage(two.ready_file("a", "u-a"))
    daemon.cli("image", "verify", "a", check=6)
    done = daemon.cli("image", "verify", "a", "--repair", "-o", "json", check=0)
    answer = json.loads(done.stdout)
    assert answer["ok"] is True and answer["repaired_chunks"] == "3"
    assert two.ready_file("a", "u-a").read_bytes() == DATA
    assert damaged_file(two).read_bytes() == bad
    damage(one.ready_file("a", "u-a"))
    table = daemon.cli("image", "verify", "a", "--repair", "--disk", str(one), check=0)
    assert "3" in table.stdout
    # Nobody has it.
    damage(one.ready_file("a", "u-a"))
    daemon.client.remove_disk(two.uuid, force=True)
    done = daemon.cli("image", "verify", "a", "--repair", check=6)
    assert "repair" in done.stderr + done.stdout


@pytest.mark.parametrize("at", [0, 7, 15, 23, 30, 79])
def test_a_damaged_header(start_daemon, files, disks, at):
    """It is no image any more; all the same it is known what it was."""
    one, two = disks.directory("one"), disks.directory("two")
    image = images.qcow2(files / "q", 16 * MIB, ((0, 2 * MIB),))
    client = start_daemon([one, two], QUIET).client
    client.ensure("a", f"file://{image.path}", uuid="u-a")
    client.wait_ready("a")
    flip(two.ready_file("a", "u-a"), at)
    last = repair(client)
    assert last.ok and last.repaired_chunks == 1, last.message
    assert two.ready_file("a", "u-a").read_bytes() == image.data


def test_what_was_never_proven_is_not_repaired(start_daemon, start_peer, disk):
    """A SHA-512 that is pending: nobody knows what it should be."""
    peer = start_peer({"a": DATA})
    daemon = start_daemon([disk], {**QUIET, "peers": {"trusted": ["127.0.0.1"]},
                                   "limits": {"background_read_rate": 65536}})
    client = daemon.client
    client.ensure("a", uuid="u-a", peers=[peer.address])
    assert client.wait_ready("a").copies[0].sha512_pending
    daemon.kill9()  # while it is computed
    file = disk.ready_file("a", "u-a")
    bad = bytearray(DATA)
    bad[77] ^= 1
    file.write_bytes(bad)
    daemon.configure(limits={"background_read_rate": 0})
    daemon.start()
    failed = daemon.client.wait_state("a", "failed")
    assert failed.message
    last = repair(daemon.client)
    if last.ok:
        # Repaired by the chunks, and by now the whole is proven.
        assert file.read_bytes() == DATA
        assert not daemon.client.get("a").copies[0].sha512_pending
    else:
        assert "proven" in last.message and file.read_bytes() == bytes(bad)


def test_a_sector_that_cannot_be_read(from_url, disks):
    """Nobody knows what it holds: the copy is looked at again and again, more
    and more seldom; a repair makes it whole from another one."""
    one, two = disks.directory("one"), disks.directory("two")
    daemon = from_url(one, two, config={"backoff": {"max": "5m"}})
    daemon.restart(env={"BIM_FAILPOINTS": "store.scan.read=error:5@10"})
    client = daemon.client
    last = client.verify("a", disks=[two])[-1]
    assert not last.ok and "Input/output error" in last.message
    copy = copy_of(client.get("a"), two)
    assert copy.state == "unknown" and "trying again in 5 s" in copy.message
    client.wait_image("a", lambda i: "again in 10 s" in copy_of(i, two).message,
                      "the next reading")
    last = client.verify("a", disks=[two], repair=True)[-1]
    assert last.ok, last.message
    assert copy_of(last.image, two).state == "ready"
    assert copy_of(last.image, two).origin == "repair"
    assert two.ready_file("a", "u-a").read_bytes() == DATA
    assert damaged_file(two).read_bytes() == DATA


@pytest.mark.parametrize("source", ["other disk", "peer"])
def test_what_cannot_be_read_is_repaired_for_good(from_url, start_peer, disks, disk,
                                                  source):
    """Also one of which some chunks are wrong; afterwards no restart, and no
    later reading, finds anything."""
    peers, on = [], [disks.directory("two"), disk]
    if source == "peer":
        peers, on = [start_peer({"a": DATA}).address], [disk]
    daemon = from_url(*on, peers=peers, config={"backoff": {"max": "5m"}})
    daemon.restart(env={"BIM_FAILPOINTS": "store.scan.read=error:5@10"})
    client = daemon.client
    bad = damage(disk.ready_file("a", "u-a"))
    last = client.verify("a", disks=[disk])[-1]
    assert not last.ok and "Input/output error" in last.message
    copy = copy_of(client.get("a"), disk)
    assert copy.state == "unknown" and "trying again in 5 s" in copy.message
    assert disk.ready_file("a", "u-a").read_bytes() == bad
    last = client.verify("a", disks=[disk], repair=True)[-1]
    assert last.ok and last.repaired_chunks == 3, last
    assert copy_of(last.image, disk).state == "ready"
    assert copy_of(last.image, disk).origin == "repair"
    assert disk.ready_file("a", "u-a").read_bytes() == DATA
    assert damaged_file(disk).read_bytes() == bad
    assert not disk.temp_files()
    daemon.restart(env={})
    assert daemon.client.get("a").state == "ready"
    assert daemon.client.verify("a")[-1].ok


def test_what_cannot_be_read_and_nobody_has(from_url, disk):
    """Left as it is, and not called damaged: it was not proven."""
    daemon = from_url(disk)
    daemon.restart(env={"BIM_FAILPOINTS": "store.scan.read=error:5@10"})
    client = daemon.client
    bad = damage(disk.ready_file("a", "u-a"))
    last = client.verify("a", repair=True)[-1]
    assert not last.ok and "Input/output error" in last.message
    assert "repair" in last.message
    copy = copy_of(client.get("a"), disk)
    assert copy.state == "unknown" and "trying again in 5 s" in copy.message
    assert disk.ready_file("a", "u-a").read_bytes() == bad
    assert not damaged_file(disk).exists() and not disk.temp_files()
