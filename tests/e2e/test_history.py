"""What happened to images: kept on the disk, shown by `bim history`, tidied up
by `bim prune`."""

import fcntl
import json
import os
import re
import threading
import time

import pytest

from lib import images
from lib.daemon import bim
from lib.deadline import wait_until
from lib.servers import Answer, Content

OK, FAILED, USAGE, NOT_FOUND, REFUSED = 0, 1, 2, 4, 5
DATA = images.random_bytes(images.MIB)
DAY = 24 * 3600
MAX_ENTRIES, MAX_BYTES = 4096, 1 << 20


def history(*args):
    done = bim("history", *args, "-o", "json")
    assert done.returncode == OK, done
    return json.loads(done.stdout)


def events(told, name=None):
    return [(e["event"], e["disk"]) for e in told["entries"]
            if name is None or e["name"] == name]


def file_of(disk):
    return disk.path / ".bim" / "history"


def line(age, name="old"):
    """An entry as a disk has it, of `age` seconds ago."""
    return json.dumps({
        "timeNs": int((time.time() - age) * 1e9), "what": "ready", "name": name,
        "uuid": "u", "message": "download", "managerId": "m", "version": "0.0.1",
        "epoch": 1}) + "\n"


def test_the_life_of_an_image(start_daemon, disks, origin):
    one, two = disks.directory("one"), disks.directory("two")
    daemon = start_daemon([one, two])
    client = daemon.client
    # Two quick tries fail: not told.
    url = origin.serve("/a", Answer(503), Answer(503), Content(DATA))
    client.ensure("a", url + "?token=sesame")
    ready = client.wait_ready("a")
    client.ensure("b", origin.serve("/b", Answer(404)))
    client.wait_state("b", "failed")
    client.remove("a")
    # Nobody is asked: also while the daemon is stopped.
    for _ in range(2):
        told = history("--config", daemon.config_file)
        assert all(e["manager_id"] == one.owner()["managerId"] and e["epoch"] == 1
                   and e["version"] == one.owner()["version"]
                   and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", e["time"])
                   for e in told["entries"])
        assert told["entries"] == sorted(told["entries"], key=lambda e: e["time"])
        for disk in (one, two):
            mine = [e for e in told["entries"] if e["disk"] == str(disk)]
            assert [e["event"] for e in mine if e["name"] == "a"] == [
                "created", "ready", "removed"], mine
            assert {e["uuid"] for e in mine if e["name"] == "a"} == {ready.spec.uuid}
            assert [e["event"] for e in mine if e["name"] == "b"] == [
                "created", "failed"], mine
            assert any("404" in e["message"] for e in mine)
            assert file_of(disk).stat().st_mode & 0o777 == 0o600
            assert "sesame" not in file_of(disk).read_text()
        assert {e["message"] for e in told["entries"] if e["event"] == "ready"} == {
            "download", "copy"}
        assert told["disks"] == [
            {"path": str(d), "uuid": d.uuid, "skipped": 0, "error": ""}
            for d in (one, two)]
        if daemon.running:
            daemon.stop()
    # A table, filters and limits.
    table = bim("history", "--disk", one, "--image", "a", "--limit", "2")
    assert table.returncode == OK and table.stderr == ""
    lines = table.stdout.splitlines()
    assert lines[0].split()[:3] == ["TIME", "DISK", "EVENT"]
    assert [row.split()[2] for row in lines[1:]] == ["ready", "removed"]
    assert events(history("--disk", two, "--image", "b")) == [
        ("created", str(two)), ("failed", str(two))]


def test_a_failure_that_stays_is_told_once(start_daemon, disk, origin):
    daemon = start_daemon([disk], {"backoff": {"first": "100ms", "max": "100ms"}})
    daemon.client.ensure("a", origin.serve("/a", Answer(503)))

    def attempts(count):
        daemon.client.wait_image(
            "a", lambda i: i.copies and i.copies[0].attempts >= count,
            f"{count} attempts")

    attempts(3)
    daemon.restart(kill=True)
    attempts(4)
    origin.serve("/a", Content(DATA))
    daemon.client.wait_ready("a")
    daemon.stop()
    assert [e for e, _ in events(history("--disk", disk))] == [
        "created", "failed", "ready"]


def test_many_images_are_taken_over_with_one_entry(start_daemon, disk, files):
    first = start_daemon([disk], {"sources": {"allow_file": True}})
    for number in range(40):
        image = images.raw(files / f"{number}.raw", 4096)
        first.client.ensure(f"i{number}", f"file://{image.path}")
    for number in range(40):
        first.client.wait_ready(f"i{number}")
    first.restart()
    first.restart(kill=True)
    told = history("--disk", disk)["entries"]
    assert len(told) == 80, "the same manager takes over nothing"
    first.stop()
    second = start_daemon([disk])
    assert second.client.get("i39").state == "ready"
    second.stop()
    told = history("--disk", disk)["entries"]
    assert len(told) == 81
    taken = told[-1]
    assert taken["event"] == "taken-over" and taken["name"] == taken["uuid"] == ""
    assert taken["epoch"] == 4 == disk.owner()["epoch"]
    assert taken["manager_id"] == disk.owner()["managerId"] != told[0]["manager_id"]
    assert taken["message"] == (
        f"40 of 40 images ready; before: manager {told[0]['manager_id']}, version "
        f"{told[0]['version']}, epoch 3")


def test_it_never_gets_too_long(start_daemon, disk, origin):
    daemon = start_daemon([disk])
    daemon.stop()
    file_of(disk).write_text("".join(line(9, f"i{n}") for n in range(MAX_ENTRIES - 1)))
    daemon.start()
    daemon.client.ensure("a", origin.serve("/a", Content(DATA)))
    daemon.client.wait_ready("a")
    daemon.stop()
    told = history("--disk", disk)["entries"]
    assert len(told) == MAX_ENTRIES // 2 + 1
    assert [e["event"] for e in told[-2:]] == ["created", "ready"]
    assert told[-3]["name"] == f"i{MAX_ENTRIES - 2}"
    # What nobody would write is no reason to stop.
    file_of(disk).write_bytes(b"\0garbage" * 500_000 + b"\n" + line(5).encode())
    daemon.start()
    daemon.client.remove("a")
    daemon.stop()
    assert file_of(disk).stat().st_size < MAX_BYTES
    assert [e["event"] for e in history("--disk", disk)["entries"]] == [
        "ready", "removed"]


def test_damaged_lines_are_skipped(disk):
    (disk.path / ".bim").mkdir()
    file_of(disk).write_text("garbage\n" + line(5) + line(4)[:50])
    done = bim("history", "--disk", disk)
    assert done.returncode == OK and len(done.stdout.splitlines()) == 2
    assert done.stderr == (f"bim: disk {disk}: 2 lines of its history cannot be read\n")
    assert history("--disk", disk)["disks"][0]["skipped"] == 2


def test_prune_deletes_what_is_older_and_nothing_else(start_daemon, disk, origin):
    daemon = start_daemon([disk])
    daemon.client.ensure("a", origin.serve("/a", Content(DATA)))
    ready = daemon.client.wait_ready("a")
    daemon.stop()
    mine = file_of(disk).read_text()
    old = line(31 * DAY) + line(30 * DAY + 60)
    file_of(disk).write_text(old + "garbage\n" + line(29 * DAY) + mine)

    def others():
        return {p: (p.stat().st_mtime_ns, p.read_bytes())
                for p in disk.path.rglob("*") if p.is_file() and p != file_of(disk)}

    before, text = others(), file_of(disk).read_text()
    done = bim("prune", "--older-than", "30d", "--disk", disk, "--dry-run", "-o", "json")
    assert done.returncode == OK
    assert json.loads(done.stdout) == {
        "dry_run": True, "disks": [{"path": str(disk), "uuid": disk.uuid,
                                    "dropped": 2, "kept": 3, "error": ""}]}
    assert file_of(disk).read_text() == text
    done = bim("prune", "--older-than", "30d", "--disk", disk)
    assert done.returncode == OK
    assert done.stdout.splitlines()[1].split() == [str(disk), "2", "3"]
    assert file_of(disk).read_text() == text[len(old):]
    assert others() == before
    daemon.start()
    assert daemon.client.get("a").copies[0].verified_at == ready.copies[0].verified_at


def test_prune_while_the_owner_writes(start_daemon, disk, files):
    daemon = start_daemon([disk], {"sources": {"allow_file": True}})
    file_of(disk).write_text("".join(line(40 * DAY) for _ in range(100)))
    stop, dropped = threading.Event(), []

    def prune():
        while not stop.is_set():
            done = bim("prune", "--older-than", "30d", "--disk", disk, "-o", "json")
            assert done.returncode == OK, done
            dropped.append(json.loads(done.stdout)["disks"][0]["dropped"])

    thread = threading.Thread(target=prune)
    thread.start()
    try:
        image = images.raw(files / "a.raw", 4096)
        for number in range(60):
            daemon.client.ensure(f"i{number}", f"file://{image.path}")
        for number in range(60):
            daemon.client.wait_ready(f"i{number}")
            daemon.client.remove(f"i{number}")
    finally:
        stop.set()
        thread.join()
    daemon.stop()
    assert sum(dropped) == 100
    told = history("--disk", disk)
    assert told["disks"][0]["skipped"] == 0 and len(told["entries"]) == 180
    for number in range(60):
        assert [e for e, _ in events(told, f"i{number}")] == [
            "created", "ready", "removed"]


def test_which_disks(start_daemon, disks, scratch):
    listed, added = disks.directory("listed"), disks.directory("added")
    daemon = start_daemon([listed])
    daemon.client.add_disk(added)
    daemon.stop()
    told = history("--config", daemon.config_file)
    assert {d["path"] for d in told["disks"]} == {str(listed), str(added)}
    # By the environment, as the daemon.
    done = bim("history", "-o", "json", env={"BIM_CONFIG": str(daemon.config_file)})
    assert json.loads(done.stdout) == told
    # Another disk than the list says; the other one is shown all the same.
    added.write_identity("somebody-else")
    done = bim("history", "--config", daemon.config_file, "-o", "json")
    assert done.returncode == REFUSED and "somebody-else" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [bool(d["error"]) for d in sorted(
        json.loads(done.stdout)["disks"], key=lambda d: d["path"])] == [True, False]
    assert bim("prune", "--older-than", "1d", "--config",
               daemon.config_file).returncode == REFUSED
    # Mistakes.
    for args, code, word in (
            (("--disk", scratch / "none"), NOT_FOUND, "no directory"),
            (("--disk", scratch), NOT_FOUND, "longhorn-disk.cfg"),
            (("--config", scratch / "none.toml"), USAGE, "none.toml")):
        done = bim("history", *args)
        assert done.returncode == code and word in done.stderr, done
    assert bim("prune").returncode == USAGE
    assert bim("prune", "--older-than", "soon", "--disk", listed).returncode == USAGE


def test_a_disk_that_cannot_be_written_to(start_daemon, disks, origin):
    disk = disks.loop("small")
    daemon = start_daemon([disk])
    daemon.client.ensure("a", origin.serve("/a", Content(DATA)))
    daemon.client.wait_ready("a")
    daemon.stop()
    disk.remount("ro")
    assert [e for e, _ in events(history("--disk", disk))] == ["created", "ready"]
    done = bim("prune", "--older-than", "0s", "--disk", disk, "--dry-run")
    assert done.returncode == OK and done.stdout.split()[-2:] == ["2", "0"]
    done = bim("prune", "--older-than", "0s", "--disk", disk)
    assert done.returncode == FAILED and "Read-only" in done.stderr
    disk.remount("rw")


@pytest.mark.parametrize("what", ["link", "directory", "fifo"])
def test_what_lies_there_is_no_file(start_daemon, disks, scratch, origin, what):
    """The image comes all the same, and nothing else is written to."""
    disk = disks.directory("one")
    (disk.path / ".bim").mkdir()
    target = scratch / "precious"
    target.write_text("precious")
    if what == "link":
        file_of(disk).symlink_to(target)
    elif what == "directory":
        file_of(disk).mkdir()
    else:
        os.mkfifo(file_of(disk))
    daemon = start_daemon([disk])
    daemon.client.ensure("a", origin.serve("/a", Content(DATA)))
    daemon.client.wait_ready("a")
    daemon.wait_log("its history lacks")
    assert target.read_text() == "precious"
    assert bim("history", "--disk", disk).returncode != OK


def test_somebody_holds_it(start_daemon, disk, origin):
    """A reader that was stopped in the middle holds up nothing for long."""
    daemon = start_daemon([disk])
    file_of(disk).write_text("")
    with open(file_of(disk), "r+", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        daemon.client.ensure("a", origin.serve("/a", Content(DATA)))
        daemon.client.wait_ready("a")
        wait_until(lambda: daemon.log().count("its history lacks") >= 2, "two warnings")
    daemon.client.remove("a")
    assert [e for e, _ in events(history("--disk", disk))] == ["removed"]
