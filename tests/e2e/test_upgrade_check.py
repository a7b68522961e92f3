"""`bim upgrade check`: may this binary take over these disks?"""

import json
import threading

import pytest

from lib import images
from lib.daemon import bim
from lib.images import MIB
from lib.servers import Content

FINE, WARNINGS, STOP = 0, 1, 2
DATA = images.random_bytes(4 * MIB)


def check(code, *args):
    """Its findings but for those that are ok, as {check: (level, text)}."""
    done = bim("upgrade", "check", *args, "-o", "json")
    assert done.returncode == code, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["result"] == ("ok", "warning", "stop")[code]
    # The table says the same.
    table = bim("upgrade", "check", *args)
    assert table.returncode == code
    assert len(table.stdout.splitlines()) == len(told["findings"]) + 1
    for finding in told["findings"]:
        assert bool(finding["remedy"]) == (finding["level"] != "ok")
    return {f["check"]: (f["level"], f"{f['what']}; {f['remedy']}")
            for f in told["findings"] if f["level"] != "ok"}


def snapshot(disk):
    """All that tells whether a file was touched. (The times of the lock are not
    among it: its owner sets them every few seconds, to see that it still may.)"""
    lock = disk.path / ".bim" / "lock"

    def look(path):
        seen = path.stat()
        times = () if path == lock else (seen.st_mtime_ns, seen.st_ctime_ns)
        return seen.st_ino, seen.st_size, *times, path.read_bytes() if path.is_file() else b""

    return {str(p): look(p) for p in (disk.path, *disk.path.rglob("*"))}


def touched(disk, before):
    """The files that are not as `before`."""
    now = snapshot(disk)
    return [path for path in sorted(before.keys() | now.keys())
            if before.get(path) != now.get(path)]


@pytest.fixture
def known(start_daemon, disk, origin):
    """A daemon that is stopped, with a disk that has an image."""
    daemon = start_daemon([disk])
    daemon.client.ensure("a", origin.serve("/a", Content(DATA)), uuid="u-a")
    daemon.client.wait_ready("a")
    daemon.stop()
    return daemon


def change(path, **changes):
    new = path.with_suffix(".changed")
    new.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    new.rename(path)


def test_a_disk_in_use_is_fine(known, disk):
    known.start()
    before = snapshot(disk)
    assert check(FINE, "--config", known.config_file) == {}
    assert check(FINE, "--disk", disk) == {}
    assert touched(disk, before) == []
    text = bim("upgrade", "check", "--disk", disk).stdout
    assert str(known.pid) in text and "lives" in text
    assert known.client.disk(disk).state == "ready"
    known.stop()
    before = snapshot(disk)
    assert check(FINE, "--config", known.config_file) == {}
    assert touched(disk, before) == []
    assert "nobody owns it" in bim("upgrade", "check", "--disk", disk).stdout


def test_a_new_disk_is_fine(disk, scratch):
    before = snapshot(disk)
    assert check(FINE, "--disk", disk) == {}
    assert touched(disk, before) == [] and not (disk.path / ".bim").exists()
    # No state_dir is made, either.
    config = scratch / "new.toml"
    config.write_text(f'[node]\nstate_dir = "{scratch}/state"\n'
                      f'[disks]\npaths = ["{disk}"]\n')
    assert check(FINE, "--config", config) == {}
    assert not (scratch / "state").exists()


def test_formats(known, disk):
    file = disk.path / ".bim" / "format"
    file.write_text('{"version": 99, "minVersion": 1}')
    assert check(FINE, "--disk", disk) == {}
    file.write_text('{"version": 99, "minVersion": 98}')
    level, text = check(STOP, "--disk", disk)["format"]
    assert level == "stop" and "99" in text and "98" in text
    file.write_text("{")
    assert check(STOP, "--disk", disk)["format"][0] == "stop"
    # As the daemon says.
    known.start()
    assert known.client.disk(disk).state == "failed"


def test_an_owner_that_cannot_be_read(known, disk):
    (disk.path / ".bim" / "owner").write_text("{")
    assert check(STOP, "--disk", disk).keys() == {"owner"}
    (disk.path / ".bim" / "owner").unlink()
    assert check(STOP, "--disk", disk).keys() == {"owner"}


def test_records_that_cannot_be_read(known, disk):
    record = disk.path / ".bim" / "desired" / "a-u-a.json"
    change(record, version=99, minVersion=98)
    level, text = check(STOP, "--disk", disk)["records"]
    assert level == "stop" and "a-u-a.json" in text and "99" in text
    record.write_text("{")
    assert "damaged" in check(STOP, "--disk", disk)["records"][1]


def test_api_versions(known, disk):
    owner = disk.path / ".bim" / "owner"
    known.start()
    change(owner, apiVersion=99, apiMinVersion=98)
    level, text = check(WARNINGS, "--disk", disk)["api"]
    assert level == "warning" and "API 98 to 99" in text and "stopped" in text
    change(owner, apiVersion=99, apiMinVersion=4)
    assert check(FINE, "--disk", disk) == {}
    change(owner, apiVersion=2, apiMinVersion=1)
    assert check(WARNINGS, "--disk", disk).keys() == {"api"}
    # Nobody is there to hand over.
    known.kill9()
    assert check(FINE, "--disk", disk) == {}


@pytest.mark.parametrize("phase", ["begun", "confirmed", "rolled-back"])
def test_hand_overs(known, disk, phase):
    mine = disk.owner()["managerId"]
    record = {"id": "1", "phase": phase, "automatic": False, "owner": "old",
              "ownerVersion": "0", "candidate": "new", "candidateVersion": "1",
              "candidateEndpoint": "", "sinceNs": 1}
    file = disk.path / ".bim" / "handover"

    def with_record(code, *args, **changes):
        file.write_text(json.dumps({**record, **changes}))
        found = check(code, *args)
        assert found.keys() <= {"handover"}
        return found.get("handover", ("", ""))[1]

    by_config = ("--config", known.config_file)
    assert with_record(FINE, *by_config, automatic=True) == ""
    if phase == "begun":
        text = with_record(STOP, *by_config)
        assert "bim handover confirm" in text and "bim handover rollback" in text
        assert with_record(STOP, *by_config, owner=mine)
    else:
        whose = "candidate" if phase == "confirmed" else "owner"
        assert f"manager {'new' if phase == 'confirmed' else 'old'}" in with_record(
            STOP, *by_config)
        assert with_record(FINE, *by_config, **{whose: mine}) == ""
        # Who will come is not known here.
        assert with_record(WARNINGS, "--disk", disk)
    file.write_text("{")
    assert check(STOP, "--disk", disk).keys() == {"handover"}


def test_unfinished_work(known, disk, origin):
    gate = threading.Event()
    known.start()
    known.client.ensure("b", origin.serve("/b", Content(DATA, gate=gate,
                                                        gate_after=3 * MIB)))
    known.client.wait_image("b", lambda i: i.copies[0].processed_bytes >= 3 * MIB,
                            "3 MiB")
    level, text = check(WARNINGS, "--disk", disk)["unfinished"]
    assert level == "warning" and ": 1" in text
    known.stop()
    gate.set()
    assert "resumed: 1" in check(WARNINGS, "--disk", disk)["unfinished"][1]
    temp = disk.path / "backing-images" / "c-u-c"
    temp.mkdir()
    (temp / "backing.tmp").write_text("x")
    done = bim("upgrade", "check", "--disk", disk)
    assert "resumed: 1" in done.stdout and "start over: 1" in done.stdout
    (temp / "backing.tmp").unlink()
    for file in disk.path.rglob("backing.tmp"):
        file.unlink()
    assert check(FINE, "--disk", disk) == {}
    change(disk.path / ".bim" / "desired" / "a-u-a.json", removing=True)
    assert "not ended: 1" in check(WARNINGS, "--disk", disk)["unfinished"][1]


def test_the_configuration(known):
    text = known.config_file.read_text()
    known.config_file.write_text(text + '\n[odd]\nx = 1\n')
    found = check(STOP, "--config", known.config_file)
    assert found.keys() == {"configuration"} and "[odd]" in found["configuration"][1]
    known.config_file.write_text(text.replace('"127.0.0.1:0"', '"0.0.0.0:0"', 1))
    found = check(WARNINGS, "--config", known.config_file)
    assert found.keys() == {"configuration"} and "0.0.0.0" in found["configuration"][1]
    # Named disks are looked at all the same.
    done = bim("upgrade", "check", "--disk", "/no/such/disk", "-o", "json",
               env={"BIM_LOG_LEVEL": "loud"})
    assert done.returncode == STOP
    assert {f["check"] for f in json.loads(done.stdout)["findings"]
            if f["level"] == "stop"} == {"configuration", "disk"}
    # Wrong flags are no reason to go on.
    assert bim("upgrade", "check", "--no-such").returncode == STOP
    # No disks at all.
    known.config_file.write_text("")
    assert check(WARNINGS, "--config", known.config_file).keys() == {"disks"}


def test_disks_that_are_not_there(known, disks, disk):
    missing = disks.directory("missing", init=False)
    assert "mounted" in check(STOP, "--disk", missing)["disk"][1]
    assert "no directory" in check(STOP, "--disk", disks.root / "none")["disk"][1]
    # The other one is judged, too.
    done = bim("upgrade", "check", "--disk", missing, "--disk", disk, "-o", "json")
    assert done.returncode == STOP
    assert {f["disk"] for f in json.loads(done.stdout)["findings"]} == {
        "", str(missing), str(disk)}
    disk.write_identity("somebody-else")
    level, text = check(STOP, "--config", known.config_file)["disk"]
    assert "expected disk" in text and "somebody-else" in text
    (known.state_dir / "disks.json").write_text("{")
    assert check(STOP, "--config", known.config_file).keys() == {"disks"}


def test_small_and_read_only_disks(start_daemon, disks):
    small = disks.loop("small", mib=16)
    daemon = start_daemon([small])
    daemon.stop()
    level, text = check(WARNINGS, "--disk", small)["space"]
    assert level == "warning" and "16.0 MiB" in text
    small.remount("ro")
    found = check(WARNINGS, "--disk", small)
    assert found.keys() == {"space", "disk"} and "read-only" in found["disk"][1]
    small.remount("rw")


def test_it_says_so_in_its_help():
    text = bim("upgrade", "check", "--help").stdout
    for code in range(3):
        assert f"\n  {code}    " in text
