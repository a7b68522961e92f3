"""Ready images are ready again after a restart, without reading them."""

import json
import os
import time

import pytest

from lib import images
from lib.client import copy_of
from lib.disks import stamp
from lib.images import KIB, MIB
from lib.processes import proc_io
from lib.servers import Content
from test_ensure_from_nginx import utc

COUNT, SIZE = 12, 4 * MIB


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_nothing_is_rehashed(start_daemon, origin, disks, how):
    both = [disks.directory("one"), disks.directory("two")]
    daemon = start_daemon(both)
    for number in range(COUNT):
        data = images.random_bytes(SIZE, number)
        daemon.client.ensure(f"i{number}", origin.serve(f"/{number}", Content(data)))
    for number in range(COUNT):
        daemon.client.wait_ready(f"i{number}")
    before = daemon.client.list_all()
    requests = len(origin.requests)
    stamps = {c.file_path: stamp(c.file_path) for i in before for c in i.copies}

    daemon.restart(kill=how == "SIGKILL")
    # At once: the first answer says ready.
    after = daemon.client.list_all()
    assert [i.state for i in after] == ["ready"] * COUNT
    assert proc_io(daemon.pid)["rchar"] < COUNT * 64 * KIB + 2 * MIB
    for old, new in zip(before, after):
        assert new.spec == old.spec
        assert (new.format, new.size, new.virtual_size, new.current_sha512) == (
            old.format, old.size, old.virtual_size, old.current_sha512)
        for disk in both:
            a, b = copy_of(old, disk), copy_of(new, disk)
            assert (a.verified_at, a.origin, a.real_size, a.file_path) == (
                b.verified_at, b.origin, b.real_size, b.file_path)
    assert {p: stamp(p) for p in stamps} == stamps
    assert len(origin.requests) == requests


def upstream_leaves(disk, name, uuid, data, stale=False, checksum=None):
    """An image as the upstream manager leaves it: file and cfg."""
    directory = disk.image_dir(name, uuid)
    directory.mkdir(parents=True)
    file = directory / "backing"
    file.write_bytes(data)
    os.utime(file, ns=(time.time_ns(), 1_700_000_000_123_456_700))
    stat = os.stat(file)
    (directory / "backing.cfg").write_text(json.dumps({
        "name": f"/data/backing-images/{name}-{uuid}/backing", "uuid": uuid,
        "size": len(data), "virtualSize": len(data),
        "realSize": stat.st_blocks * 512, "expectedChecksum": "",
        "currentChecksum": checksum or images.sha512(data),
        "modificationTime": utc(stat.st_mtime_ns + (1 if stale else 0))}))
    return file


def test_a_file_of_an_upstream_manager_is_taken_over(start_daemon, origin, disk):
    data = images.random_bytes(16 * MIB)
    file = upstream_leaves(disk, "a", "u1", data)
    stat = os.stat(file)
    daemon = start_daemon([disk])
    url = origin.serve("/a", Content(data))
    daemon.client.ensure("a", url, uuid="u1", sha512=images.sha512(data))
    ready = daemon.client.wait_ready("a")
    assert ready.copies[0].origin == "reused file"
    assert ready.current_sha512 == images.sha512(data)
    assert not origin.requests
    assert proc_io(daemon.pid)["rchar"] < 8 * MIB, "it was rehashed"
    assert os.stat(file).st_ino == stat.st_ino
    assert os.stat(file).st_mtime_ns == stat.st_mtime_ns
    daemon.restart()
    assert daemon.client.wait_ready("a").copies[0].origin.startswith("reused file")
    assert not origin.requests


def test_with_a_stale_cfg_it_is_read_again(start_daemon, origin, disk):
    data = images.random_bytes(4 * MIB)
    upstream_leaves(disk, "a", "u1", data, stale=True, checksum="00" * 64)
    daemon = start_daemon([disk])
    daemon.client.ensure("a", origin.serve("/a", Content(data)), uuid="u1",
                         sha512=images.sha512(data))
    ready = daemon.client.wait_ready("a")
    assert ready.copies[0].origin == "reused file, rehashed"
    assert ready.current_sha512 == images.sha512(data)
    assert not origin.requests


def test_a_lost_record_is_made_again(start_daemon, origin, disk):
    """Manifests can be rebuilt from the images."""
    data = images.random_bytes(4 * MIB)
    daemon = start_daemon([disk])
    uuid = daemon.client.ensure("a", origin.serve("/a", Content(data))).image.spec.uuid
    daemon.client.wait_ready("a")
    daemon.stop()
    (disk.image_dir("a", uuid) / "backing.bim").unlink()
    daemon.start()
    ready = daemon.client.wait_ready("a")
    assert ready.current_sha512 == images.sha512(data)
    assert daemon.client.verify("a")[-1].ok
    (disk.image_dir("a", uuid) / "backing.cfg").unlink()
    (disk.image_dir("a", uuid) / "backing.bim").write_bytes(b"bim-record damaged")
    daemon.restart()
    assert daemon.client.wait_ready("a").current_sha512 == images.sha512(data)
    assert origin.count("/a") == 1


def test_our_files_can_be_taken_over(start_daemon, origin, disk):
    """The way back: after work of ours an upstream manager trusts the cfg."""
    data = images.random_bytes(MIB)
    daemon = start_daemon([disk])
    uuid = daemon.client.ensure("a", origin.serve("/a", Content(data))).image.spec.uuid
    daemon.client.wait_ready("a")
    daemon.client.verify("a")
    daemon.restart(kill=True)
    daemon.client.wait_ready("a")
    stat = os.stat(disk.ready_file("a", uuid))
    cfg = disk.cfg("a", uuid)
    assert cfg["modificationTime"] == utc(stat.st_mtime_ns)
    assert cfg["currentChecksum"] == images.sha512(data)
    assert set(cfg) == {"name", "uuid", "size", "virtualSize", "realSize",
                        "expectedChecksum", "currentChecksum", "modificationTime"}


def test_orphans_are_left_alone(start_daemon, origin, disk):
    """Images that nobody wants are not ours to touch."""
    data = images.random_bytes(MIB)
    file = upstream_leaves(disk, "stranger", "u9", data)
    before = stamp(file)
    daemon = start_daemon([disk])
    daemon.client.ensure("a", origin.serve("/a", Content(data)))
    daemon.client.wait_ready("a")
    daemon.restart()
    assert [i.spec.name for i in daemon.client.list_all()] == ["a"]
    assert stamp(file) == before
