"""One download serves all wanted disks: reflink where that works, else a copy
that keeps the holes."""

import os
import re

import pytest

from lib import images
from lib.client import copy_of
from lib.disks import Disk
from lib.images import KIB, MIB
from lib.processes import run
from lib.servers import Content


def extents(path):
    """(shared, all) extents of a file by FIEMAP."""
    out = run(["filefrag", "-v", path]).stdout.decode()
    rows = [line for line in out.splitlines() if re.match(r"\s+\d+:", line)]
    return sum("shared" in row for row in rows), len(rows)


def by_origin(image):
    found = {}
    for copy in image.copies:
        found.setdefault(copy.origin, []).append(copy)
    return found


def test_reflink_on_one_xfs(start_daemon, disks, origin):
    xfs = disks.loop("xfs", "xfs", 300, init=False)
    one, two = Disk(xfs.path / "one"), Disk(xfs.path / "two")
    data = images.random_bytes(48 * MIB)
    url = origin.serve("/a", Content(data))
    client = start_daemon([one, two], {"sources": {"connections": 1}}).client
    before = os.statvfs(xfs.path)
    client.ensure("a", url, sha512=images.sha512(data))
    ready = client.wait_ready("a")
    after = os.statvfs(xfs.path)
    assert origin.count("/a") == 1
    assert sorted(by_origin(ready)) == ["download", "reflink"]
    for copy in ready.copies:
        shared, count = extents(copy.file_path)
        assert count and shared == count, f"{shared} of {count} extents are shared"
        assert open(copy.file_path, "rb").read() == data
    used = (before.f_bfree - after.f_bfree) * before.f_frsize
    assert used < len(data) * 1.2, "the second copy takes space of its own"
    # Two files: each has its own record and goes alone.
    assert one.cfg("a", ready.spec.uuid)["name"] != two.cfg("a", ready.spec.uuid)["name"]
    assert client.verify("a")[-1].ok


def test_a_later_disk_is_filled_by_reflink(start_daemon, disks, origin):
    """The source of the bytes may be gone by then."""
    xfs = disks.loop("xfs", "xfs", 300, init=False)
    one, two = Disk(xfs.path / "one"), Disk(xfs.path / "two")
    data = images.random_bytes(4 * MIB)
    url = origin.serve("/a", Content(data))
    client = start_daemon([one]).client
    client.ensure("a", url)
    client.wait_ready("a")
    origin.close()
    client.add_disk(two)
    copy = client.wait_copy("a", two, "ready")
    assert copy.origin == "reflink"
    assert open(copy.file_path, "rb").read() == data


def test_a_copy_between_file_systems_keeps_holes(start_daemon, disks, origin, files):
    one, two = disks.loop("one"), disks.loop("two")
    # Larger than either disk, with its holes.
    image = images.sparse_raw(files / "a.raw", 128 * MIB, (0, 64 * MIB, 127 * MIB))
    # (One connection: a slow machine would have it ask by ranges, over several.)
    client = start_daemon([one, two], {"sources": {"connections": 1}}).client
    client.ensure("a", origin.serve("/a", Content(image.data)), sha512=image.sha512)
    ready = client.wait_ready("a")
    assert origin.count("/a") == 1
    assert sorted(by_origin(ready)) == ["copy", "download"]
    for copy in ready.copies:
        stat = os.stat(copy.file_path)
        assert stat.st_size == image.size
        assert stat.st_blocks * 512 <= 3 * 256 * KIB + 64 * KIB
        assert copy.real_size == stat.st_blocks * 512
        assert images.file_sha512(copy.file_path) == image.sha512
    assert client.verify("a")[-1].ok


def test_three_disks_one_download(start_daemon, disks, nginx, files):
    made = [disks.directory(n) for n in ("one", "two", "three")]
    image = images.qcow2(files / "a.qcow2", 16 * MIB, ((0, 4 * MIB),))
    client = start_daemon(made).client
    client.ensure("a", nginx.url(image.name), sha512=image.sha512)
    ready = client.wait_ready("a")
    assert sorted(c.origin for c in ready.copies) == ["copy", "copy", "download"]
    assert len(nginx.wait_accesses(image.name, 1)) == 1
    for disk in made:
        assert disk.ready_file("a", ready.spec.uuid).read_bytes() == image.data


def test_all_includes_disks_added_later(start_daemon, disks, origin):
    one, two = disks.directory("one"), disks.directory("two")
    data = images.random_bytes(MIB)
    daemon = start_daemon([one])
    client = daemon.client
    client.ensure("everywhere", origin.serve("/a", Content(data)))
    client.ensure("here", origin.serve("/b", Content(data)), [one])
    client.wait_ready("everywhere")
    client.wait_ready("here")
    client.add_disk(two)
    client.wait_copy("everywhere", two, "ready")
    assert [c.disk_path for c in client.get("here").copies] == [str(one)]
    assert origin.count("/a") == 1
    daemon.restart()
    client = daemon.client
    assert len(client.wait_ready("everywhere").copies) == 2
    assert origin.count("/a") == 1


def test_a_damaged_first_copy_is_not_spread(start_daemon, disks, origin):
    """The copy is verified by the manifest as it is made."""
    one, two = disks.directory("one"), disks.directory("two")
    data = images.random_bytes(4 * MIB)
    daemon = start_daemon([one], {"disks": {"check_interval": "1h"}})
    client = daemon.client
    url = origin.serve("/a", Content(data))
    uuid = client.ensure("a", url).image.spec.uuid
    client.wait_ready("a")
    file = one.ready_file("a", uuid)
    stat = os.stat(file)
    with open(file, "r+b") as f:
        f.seek(2 * MIB)
        f.write(b"damage")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    client.add_disk(two)
    # From the origin, or not at all: never the damaged bytes.
    image = client.wait_image(
        "a", lambda i: copy_of(i, two).state in ("ready", "failed"), "tried on two")
    if copy_of(image, two).state == "ready":
        assert two.ready_file("a", uuid).read_bytes() == data
    assert file.exists()


@pytest.mark.parametrize("fault", ["missing", "full"])
def test_one_bad_disk_leaves_the_other(start_daemon, disks, origin, fault):
    good = disks.directory("good")
    data = images.random_bytes(24 * MIB)
    if fault == "missing":
        bad = disks.directory("bad", init=False)
    else:
        bad = disks.loop("bad", mib=20)
    client = start_daemon([good, bad]).client
    client.ensure("a", origin.serve("/a", Content(data)), sha512=images.sha512(data))
    copy = client.wait_copy("a", good, "ready")
    assert images.file_sha512(copy.file_path) == images.sha512(data)
    client.wait_image("a", lambda i: copy_of(i, bad).message, "a message of the bad disk")
