"""The managers that a disk has known: `bim manager list` and `cleanup`."""

import json

import pytest

from lib import images
from lib.daemon import BINARY, bim
from lib.processes import run
from lib.servers import Content

OK, REFUSED, DAMAGED = 0, 5, 6


def listed(disk, *prefix):
    """The managers of one disk by id."""
    done = run([*prefix, BINARY, "manager", "list", "--disk", disk, "-o", "json"])
    disk_told = json.loads(done.stdout)["disks"][0]
    assert disk_told["path"] == str(disk) and disk_told["uuid"] == disk.uuid
    return {m["manager_id"]: m for m in disk_told["managers"]}


def standing(disk, *prefix):
    return {m: (told["role"], told["life"])
            for m, told in listed(disk, *prefix).items()}


def record(disk, manager_id):
    return disk.path / ".bim" / "managers" / f"{manager_id}.json"


def write(disk, manager_id, **changes):
    """A record like that of the owner, but for some fields."""
    told = {**disk.owner(), "managerId": manager_id, "role": "owner", **changes}
    record(disk, manager_id).write_text(json.dumps(told))


def cleanup(disk, *args):
    done = bim("manager", "cleanup", "--disk", disk, *args, "-o", "json")
    assert done.returncode == OK, done
    told = json.loads(done.stdout)["disks"][0]
    return ({m["manager_id"] for m in told["removed"]},
            {m["manager_id"] for m in told["kept"]})


@pytest.fixture
def named(start_daemon):
    def start(name, disk, **options):
        return start_daemon([disk], {"node": {"manager_id": name}}, **options)
    return start


def test_who_owned_and_owns(named, disk):
    assert standing(disk) == {}
    first = named("first", disk)
    assert standing(disk) == {"first": ("owner", "alive")}
    told = listed(disk)["first"]
    assert told["pid"] == first.pid and told["epoch"] == 1
    assert (told["api_min_version"], told["api_version"]) == (3, 4)
    assert told["version"] == first.client.version_get().version
    assert told["endpoint"] == f"unix:{first.socket}"
    first.kill9()
    assert standing(disk) == {"first": ("last owner", "dead")}
    second = named("second", disk)
    assert standing(disk) == {"first": ("was owner", "dead"),
                              "second": ("owner", "alive")}
    table = bim("manager", "list", "--config", second.config_file)
    assert table.returncode == OK
    rows = [line.split() for line in table.stdout.splitlines()]
    assert rows[0][:4] == ["DISK", "MANAGER", "ROLE", "LIFE"]
    assert rows[1][:4] == [str(disk), "second", "owner", "alive"]
    # A third one, that only waits, is none of them.
    third = named("third", disk)
    assert third.client.disk(disk).state == "owned"
    assert set(standing(disk)) == {"first", "second"}
    # The disk is given up by a daemon that goes on: it lives.
    second.client.remove_disk(str(disk))
    third.client.wait_disk(disk, "ready")
    assert standing(disk) == {"first": ("was owner", "dead"),
                              "second": ("was owner", "alive"),
                              "third": ("owner", "alive")}


def test_cleanup_removes_the_dead_and_never_the_owner(named, disk):
    for name in ("one", "two"):
        named(name, disk).kill9()
    owner = named("three", disk)
    write(disk, "hidden", pidNamespace="pid:[1]")
    write(disk, "claimant", role="candidate")  # lives: it has our owner's pid
    record(disk, "broken").write_text("{")
    assert standing(disk) == {
        "one": ("was owner", "dead"), "two": ("was owner", "dead"),
        "three": ("owner", "alive"), "hidden": ("was owner", "unknown"),
        "claimant": ("candidate", "alive"), "broken": ("damaged", "unknown")}
    everyone = set(standing(disk))
    assert cleanup(disk, "--dry-run") == ({"one", "two"}, everyone - {"one", "two"})
    assert set(standing(disk)) == everyone
    table = bim("manager", "cleanup", "--disk", disk)
    assert table.returncode == OK
    rows = {row.split()[1]: row for row in table.stdout.splitlines()}
    assert "removed" in rows["one"] and "kept" in rows["three"]
    assert "--force" in rows["hidden"] and "--force" in rows["broken"]
    assert not record(disk, "one").exists()
    assert cleanup(disk) == (set(), everyone - {"one", "two"})
    assert cleanup(disk, "--force") == ({"hidden", "broken"}, {"three", "claimant"})
    owner.kill9()
    # Dead, and yet it stays: the next one takes the disk from it.
    assert cleanup(disk, "--force") == ({"claimant"}, {"three"})
    assert record(disk, "three").exists()
    owner.start()
    assert owner.client.disk(disk).epoch == 4


def test_from_another_pid_namespace(named, disk):
    elsewhere = ("unshare", "--pid", "--fork", "--mount-proc")
    first = named("first", disk)
    assert standing(disk, *elsewhere) == {"first": ("owner", "alive")}
    first.kill9()
    assert standing(disk, *elsewhere) == {"first": ("last owner", "dead")}
    second = named("second", disk)
    assert standing(disk, *elsewhere) == {"first": ("was owner", "unknown"),
                                          "second": ("owner", "alive")}
    second.stop()


def test_an_owner_that_cannot_be_read_stops_the_cleanup(named, disk):
    named("first", disk).kill9()
    named("second", disk).kill9()
    (disk.path / ".bim" / "owner").write_text("{")
    for command in ("list", "cleanup"):
        done = bim("manager", command, "--disk", disk, *(
            ["--force"] if command == "cleanup" else []))
        assert done.returncode == DAMAGED and "owner" in done.stderr
    assert record(disk, "first").exists() and record(disk, "second").exists()


def test_a_disk_keeps_some(named, disk):
    daemon = named("owner", disk)
    for number in range(80):
        write(disk, f"old-{number:02}", bootId="before", sinceNs=number + 1)
    daemon.restart()
    names = sorted(p.name for p in (disk.path / ".bim" / "managers").iterdir())
    assert len(names) == 64 and "owner.json" in names
    assert names[0] == "old-17.json", "the oldest went"


def test_data_sources_are_none(start_source, disk, origin):
    start_source(disk, "a", "u-1", "download",
                 {"url": origin.serve("/a", Content(images.random_bytes(4096)))})
    assert not (disk.path / ".bim").exists()
    assert standing(disk) == {}
