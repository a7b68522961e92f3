"""A disk that only ever saw another manager: taken over, and given back; and one
of an older layout."""

import json
from pathlib import Path

import pytest

from lib import images
from lib.daemon import BINARY, bim
from lib.disks import stamp
from lib.images import MIB, sha512
from lib.longhorn import leave_image

OK, BROKEN, REFUSED = 0, 6, 5
NEWER = BINARY.with_name("bim-newer")
with_newer = pytest.mark.skipif(not NEWER.exists(), reason="no newer edition")


def content(number):
    return images.random_bytes(MIB, number)


def adopt(daemon, disk, *args, code=OK):
    done = daemon.cli("disk", "adopt", disk.uuid, *args, "-o", "json", check=code)
    return {image["directory"]: image for image in json.loads(done.stdout)["images"]}


def results(told):
    return {directory: image["result"] for directory, image in told.items()}


@pytest.fixture
def legacy(disk):
    """Two that are as their cfg says, one of them touched; four that are not."""
    for number, name in enumerate(("good", "touched", "changed", "short", "bare")):
        leave_image(disk.path, name, f"u-{name}", content(number),
                    sha512(content(number)) if name != "bare" else None)
    (disk.ready_file("touched", "u-touched")).touch()
    with open(disk.ready_file("changed", "u-changed"), "r+b") as file:
        file.write(b"another beginning")
    with open(disk.ready_file("short", "u-short"), "r+b") as file:
        file.truncate(512)
    (disk.path / "backing-images" / "neither").mkdir()
    return disk


def test_adopt(legacy, start_daemon):
    before = {path: stamp(path) for path in (legacy.path / "backing-images").rglob("*")
              if path.is_file()}
    daemon = start_daemon([legacy])
    expected = {"good-u-good": "adopted", "touched-u-touched": "adopted",
                "changed-u-changed": "broken", "short-u-short": "broken",
                "bare-u-bare": "broken", "neither": "broken"}
    told = adopt(daemon, legacy, "--dry-run", code=BROKEN)
    assert results(told) == expected
    assert daemon.client.list_all() == []
    assert {path: stamp(path) for path in before} == before
    told = adopt(daemon, legacy, code=BROKEN)
    assert results(told) == expected
    assert "SHA-512" in told["changed-u-changed"]["message"]
    assert "512 bytes" in told["short-u-short"]["message"]
    for name in ("good", "touched"):
        daemon.client.wait_ready(name)
    # What is broken lies as it lay, and so does every image.
    for path in before:
        if path.name == "backing" or path.parent.name in (
                "changed-u-changed", "short-u-short", "bare-u-bare"):
            assert stamp(path)[:3] == before[path][:3], path
    assert results(adopt(daemon, legacy, code=BROKEN))["good-u-good"] == "known"
    daemon.restart()
    assert {i.spec.name for i in daemon.client.list_all()} == {"good", "touched"}
    daemon.client.wait_ready("good")


def test_adopt_of_nothing_and_of_no_disk(disk, start_daemon):
    daemon = start_daemon([disk])
    assert adopt(daemon, disk) == {}
    done = daemon.cli("disk", "adopt", "nosuch", check=4)
    assert "cannot find" in done.stderr


def test_snapshot_first(legacy, start_daemon):
    """The cfgs of the other manager are kept as they were before this one came."""
    cfgs = {path.relative_to(legacy.path): path.read_text()
            for path in legacy.path.rglob("backing.cfg")}
    daemon = start_daemon([legacy])
    kept = legacy.path / ".bim" / "backup" / "format-0"
    adopt(daemon, legacy, code=BROKEN)
    for name in ("good", "touched"):
        daemon.client.wait_ready(name)
        daemon.client.remove(name)
    daemon.restart()
    assert {path: (kept / path).read_text() for path in cfgs} == cfgs


@with_newer
def test_compat_mode(disk, start_daemon, files):
    """A newer program on an older disk writes what the older one can read, until
    the upgrade is confirmed."""
    (files / "a").write_bytes(content(1))
    config = {"sources": {"allow_file": True}}
    old = start_daemon([disk], config, directory="old")
    old.client.ensure("a", f"file://{files}/a", uuid="u-a")
    old.client.wait_ready("a")
    assert (old.client.disk(disk).format_version, old.client.disk(disk).compatible) == (1, False)
    old.stop()
    new = start_daemon([disk], config, directory="new", binary=NEWER)
    told = new.client.disk(disk)
    assert (told.state, told.format_version, told.compatible) == ("ready", 1, True)
    assert "bim disk migrate" in told.message
    new.client.ensure("b", f"file://{files}/a", uuid="u-b")
    new.client.wait_ready("b")
    new.stop()
    assert format_of(disk) == 1
    # Back: the older one reads all of it.
    old.start()
    for name in ("a", "b"):
        image = old.client.wait_ready(name)
        assert "rehashed" not in image.copies[0].origin
    # Confirmed: by hand, and what was is kept.
    new.start()
    new.client.wait_disk(disk, "owned")
    new.client.handover_begin()
    new.client.wait_handover("ready")
    assert new.client.disk(disk).format_version == 0
    new.client.handover_confirm()
    new.client.wait_disk(disk, "ready")
    told = new.client.disk(disk)
    assert (told.format_version, told.compatible, told.message) == (2, False, "")
    assert format_of(disk) == 2
    kept = disk.path / ".bim" / "backup" / "format-1"
    assert json.loads((kept / "format").read_text())["version"] == 1
    assert (kept / "desired" / "a-u-a.json").exists()
    for name in ("a", "b"):
        new.client.wait_ready(name)


def format_of(disk):
    return json.loads((disk.path / ".bim" / "format").read_text())["version"]


def migrate(binary, disk, *args, code=OK):
    done = bim("disk", "migrate", "--disk", disk, *args, "-o", "json", binary=binary)
    assert done.returncode == code, done
    return json.loads(done.stdout)["disks"][0], done.stderr


@with_newer
def test_disk_migrate(disk, start_daemon, files):
    (files / "a").write_bytes(content(1))
    daemon = start_daemon([disk], {"sources": {"allow_file": True}})
    daemon.client.ensure("a", f"file://{files}/a", uuid="u-a")
    daemon.client.wait_ready("a")
    told, problem = migrate(NEWER, disk, code=1)
    assert not told["changed"] and "owned by" in problem
    daemon.stop()
    told, _ = migrate(NEWER, disk, "--dry-run")
    assert (told["from"], told["to"], told["changed"]) == (1, 2, True)
    assert format_of(disk) == 1
    # A crash in the middle: it is as old as it was, and the next one goes on.
    for failpoint in ("store.migrate.copied", "store.migrate.kept"):
        done = bim("disk", "migrate", "--disk", disk, binary=NEWER,
                   env={"BIM_FAILPOINTS": f"{failpoint}=kill"})
        assert done.returncode < 0, done
        assert format_of(disk) == 1
    told, _ = migrate(NEWER, disk)
    assert (told["from"], told["to"], told["changed"]) == (1, 2, True)
    kept = disk.path / told["backup"]
    assert json.loads((kept / "format").read_text())["version"] == 1
    assert (kept / "backing-images" / "a-u-a" / "backing.bim").exists()
    told, _ = migrate(NEWER, disk)
    assert (told["from"], told["to"], told["changed"]) == (2, 2, False)
    # This one reads it all the same: it may say so.
    daemon.start()
    assert daemon.client.wait_ready("a").copies[0].state == "ready"


def test_a_newer_layout_is_refused_by_name(disk, start_daemon):
    start_daemon([disk]).stop()
    newer = disk.path / ".bim" / "format"
    newer.write_text('{"version":7,"minVersion":7}\n')
    told, problem = migrate(BINARY, disk, code=REFUSED)
    assert "7" in problem and "newer program" in problem
    assert json.loads(newer.read_text())["version"] == 7
    daemon = start_daemon([disk])
    disk_told = daemon.client.disk(disk)
    assert disk_told.state == "failed" and "7" in disk_told.message


def test_migrate_of_a_disk_that_nobody_owned(disk):
    told, problem = migrate(BINARY, disk, code=4)
    assert "bim disk adopt" in problem and not Path(disk.path / ".bim").exists()
    assert not told["changed"]
