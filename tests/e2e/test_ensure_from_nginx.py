"""A URL onto two disks: one download, all the states, the contract's files."""

import os
import re
import threading
import time

import pytest

from lib import images
from lib.client import EVENT, copy_of
from lib.deadline import wait_until
from lib.servers import Answer, Content


def utc(mtime_ns):
    """mtime as the contract writes it."""
    seconds, nanoseconds = divmod(mtime_ns, 1_000_000_000)
    text = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    fraction = f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
    return f"{text}{fraction} +0000 UTC"


def test_one_download_onto_two_disks(start_daemon, nginx, files, disks):
    image = images.qcow2(files / "debian.qcow2")
    one, two = disks.directory("one"), disks.directory("two")
    daemon = start_daemon([one, two])
    watch = daemon.client.watch()
    watch.wait_type(EVENT.TYPE_SNAPSHOT_END)
    # Slow enough to be seen in progress.
    answer = daemon.client.ensure("debian", nginx.url(image.name, rate=8 * images.MIB),
                                  sha512=image.sha512)
    assert answer.created
    assert answer.image.state in ("pending", "starting", "in-progress")
    uuid = answer.image.spec.uuid
    assert len(answer.image.copies) == 2
    ready = daemon.client.wait_ready("debian")

    # Exactly one download, all of it, by GET.
    accesses = nginx.wait_accesses(image.name, 1)
    assert [(a.method, a.status, a.bytes_sent) for a in accesses] == [
        ("GET", 200, image.size)]

    # The words of the contract, in their order, none skipped backwards.
    order = ["pending", "starting", "in-progress", "ready"]
    # The watch is another call: it may come a moment later.
    watch.wait(lambda _: all(watch.states("debian", disk)[-1:] == ["ready"]
                             for disk in (one, two)), "both ready")
    for seen in (watch.states("debian", one), watch.states("debian", two)):
        assert seen == [s for s in order if s in seen], seen
        assert seen[-1] == "ready"
    assert "in-progress" in watch.states("debian", one) + watch.states("debian", two)

    info = image.info()
    assert (ready.format, ready.size, ready.virtual_size) == (
        "qcow2", image.size, info["virtual-size"])
    assert ready.current_sha512 == image.sha512
    assert {c.disk_uuid for c in ready.copies} == {one.uuid, two.uuid}
    assert sorted(c.origin for c in ready.copies) == ["copy", "download"]
    now = time.time()
    for disk in (one, two):
        copy = copy_of(ready, disk)
        file = disk.ready_file("debian", uuid)
        stat = os.stat(file)
        assert copy.state == "ready" and copy.progress == 100
        assert copy.file_path == str(file)
        assert file.read_bytes() == image.data
        assert stat.st_mode & 0o777 == 0o644
        assert copy.processed_bytes == image.size
        assert copy.real_size == stat.st_blocks * 512
        assert abs(copy.verified_at.seconds - now) < 600
        assert not disk.temp_files()
        assert disk.image_files() == [f"debian-{uuid}"] + [
            f"debian-{uuid}/{n}" for n in ("backing", "backing.bim", "backing.cfg")]
        # Directories on the way can be searched by everybody.
        for parent in (disk.path / "backing-images", file.parent):
            assert parent.stat().st_mode & 0o055 == 0o055

        cfg = disk.cfg("debian", uuid)
        assert cfg == {
            "name": str(file), "uuid": uuid, "size": image.size,
            "virtualSize": info["virtual-size"],
            "realSize": stat.st_blocks * 512,
            "expectedChecksum": image.sha512, "currentChecksum": image.sha512,
            "modificationTime": utc(stat.st_mtime_ns)}


def test_progress_is_seen(start_daemon, nginx, files, disk):
    image = images.raw(files / "a.raw", 8 * images.MIB)
    daemon = start_daemon([disk])
    watch = daemon.client.watch()
    daemon.client.ensure("a", nginx.url(image.name, rate=6 * images.MIB))
    daemon.client.wait_ready("a")
    seen = [copy_of(e.image, disk) for e in watch.events
            if e.type == EVENT.TYPE_IMAGE]
    moving = [c for c in seen if c.state == "in-progress"
              and 0 < c.processed_bytes < image.size]
    assert moving, "no event between the first byte and the last"
    for numbers in ([c.progress for c in moving],
                    [c.processed_bytes for c in moving]):
        assert numbers == sorted(numbers)
    for c in moving:
        assert abs(c.progress - 100 * c.processed_bytes / image.size) <= 1


@pytest.mark.parametrize("disk_names", [["one"], ["two"], ["one", "two"]])
def test_only_the_wanted_disks(start_daemon, nginx, files, disks, disk_names):
    made = {name: disks.directory(name) for name in ("one", "two", "three")}
    image = images.raw(files / "a.raw", images.MIB)
    daemon = start_daemon(made.values())
    # By uuid or by path.
    wanted = [made[n].uuid if n == "one" else made[n] for n in disk_names]
    daemon.client.ensure("a", nginx.url(image.name), wanted)
    ready = daemon.client.wait_ready("a")
    assert {c.disk_path for c in ready.copies} == {str(made[n]) for n in disk_names}
    assert sorted(ready.spec.disks) == sorted(made[n].uuid for n in disk_names)
    for name, disk in made.items():
        assert disk.ready_file("a", ready.spec.uuid).exists() == (name in disk_names)
        assert daemon.client.disk(disk).images == (name in disk_names)


def test_sha256_and_upper_case_digests(start_daemon, nginx, files, disk):
    image = images.raw(files / "a.raw", images.MIB)
    client = start_daemon([disk]).client
    client.ensure("a", nginx.url(image.name), sha256=image.sha256.upper())
    client.ensure("b", nginx.url(image.name), sha512=image.sha512.upper(),
                  sha256=image.sha256)
    client.ensure("c", nginx.url(image.name), size=image.size)
    for name in "abc":
        ready = client.wait_ready(name)
        assert ready.current_sha512 == image.sha512
        assert ready.current_sha256 == ("" if name == "c" else image.sha256)


def test_modification_time_without_fraction(start_daemon, nginx, files, disk):
    """The format of modificationTime is checked for every file there is."""
    daemon = start_daemon([disk])
    for number in range(3):
        image = images.raw(files / f"{number}.raw", 64 * images.KIB, number)
        daemon.client.ensure(f"i{number}", nginx.url(image.name))
        ready = daemon.client.wait_ready(f"i{number}")
        cfg = disk.cfg(f"i{number}", ready.spec.uuid)
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{0,8}[1-9])? \+0000 UTC",
                            cfg["modificationTime"])


def test_other_file_mode(start_daemon, nginx, files, disk):
    image = images.raw(files / "a.raw", images.MIB)
    daemon = start_daemon([disk], {"disks": {"file_mode": "0640"}})
    daemon.client.ensure("a", nginx.url(image.name))
    ready = daemon.client.wait_ready("a")
    mode = os.stat(ready.copies[0].file_path).st_mode & 0o777
    assert mode == 0o640


def test_several_at_once_and_the_limit(start_daemon, origin, disks):
    """At most `transfers.max` downloads at a time; all of them end ready."""
    gate = threading.Event()
    data = images.random_bytes(images.MIB)
    urls = [origin.serve(f"/{n}", Content(data, gate=gate, gate_after=65536))
            for n in range(6)]
    disk = disks.directory("one")
    daemon = start_daemon([disk], {"transfers": {"max": 2}})
    for number, url in enumerate(urls):
        daemon.client.ensure(f"i{number}", url)

    def sending(image_list):
        return [i.spec.name for i in image_list if i.state == "in-progress"]

    wait_until(lambda: len(origin.requests) >= 2, "two downloads")
    # The daemon has answered all Ensures; the rest waits its turn.
    assert len(origin.requests) == 2
    waiting = [i for i in daemon.client.list_all()
               if i.state in ("pending", "starting")]
    assert len(waiting) == 4, [i.state for i in daemon.client.list_all()]
    gate.set()
    for number in range(6):
        daemon.client.wait_ready(f"i{number}")
    assert len(origin.requests) == 6


def test_head_is_never_needed(start_daemon, origin, disk):
    """A server that knows nothing but GET (presigned URLs are like that)."""

    class OnlyGet(Content):
        def __call__(self, connection, request):
            if request.method != "GET":
                return Answer(403)(connection, request)
            return super().__call__(connection, request)

    data = images.random_bytes(images.MIB)
    client = start_daemon([disk]).client
    client.ensure("a", origin.serve("/a", OnlyGet(data, reset_after=images.MIB // 2),
                                    OnlyGet(data)))
    client.wait_ready("a")
    assert [r.method for r in origin.requests] == ["GET", "GET"]
