"""The `bim` command: tables for people, JSON for programs, exit codes."""

import json
import os
import pty
import re
import signal
import subprocess
import threading

import pytest

from lib import images
from lib.daemon import bim
from lib.deadline import scaled, wait_until
from lib.images import MIB
from lib.processes import clean_environment, end, spawn
from lib.ports import free_port
from lib.servers import Answer, Content, Never

DATA = images.random_bytes(2 * MIB)
OK, FAILED, USAGE, UNREACHABLE, NOT_FOUND, REFUSED, IMAGE_FAILED, TIMED_OUT = range(8)
# A shell shows 130 for both.
BY_CTRL_C = (130, -signal.SIGINT)


@pytest.fixture
def daemon(start_daemon, disks):
    return start_daemon([disks.directory("one"), disks.directory("two")],
                        {"backoff": {"first": "1h", "max": "1h"}})


@pytest.fixture
def ready(daemon, origin):
    done = daemon.cli("image", "ensure", "debian", "--url",
                      origin.serve("/a", Content(DATA)), "--sha512",
                      images.sha512(DATA), "--wait", check=OK)
    assert "ready" in done.stdout
    return daemon


def one_line_of_error(done, *words):
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("bim: "), done.stderr
    for word in words:
        assert str(word).lower() in lines[0].lower(), lines[0]


# Output ------------------------------------------------------------------


def test_tables(ready, disks):
    listed = ready.cli("image", "list", check=OK).stdout
    lines = listed.splitlines()
    assert lines[0].split()[0] == "NAME" and "STATE" in lines[0]
    assert len(lines) >= 2 and "debian" in listed and "ready" in listed
    assert all(line == line.rstrip() for line in lines)
    got = ready.cli("image", "get", "debian", check=OK).stdout
    for word in ("ready", "raw", str(disks.root / "one"), str(disks.root / "two"),
                 images.sha512(DATA)):
        assert word in got, got
    table = ready.cli("disk", "list", check=OK).stdout
    assert str(disks.root / "one") in table and table.count("ready") == 2
    version = ready.cli("version", check=OK).stdout
    assert version.count("API 3 to 4") == 2
    # Nothing that only a terminal understands, where there is none.
    for text in (listed, got, table, version):
        assert "\x1b" not in text and "\r" not in text


def test_json(ready):
    listed = ready.cli_json("image", "list")["images"]
    assert [i["spec"]["name"] for i in listed] == ["debian"]
    image = ready.cli_json("image", "get", "debian")
    assert image == listed[0]
    assert image["state"] == "ready" and image["size"] == str(len(DATA))
    assert image["current_sha512"] == images.sha512(DATA)
    # Every field is there, also those that are empty.
    assert image["copies"][0]["attempts"] == 0 and image["copies"][0]["message"] == ""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", image["copies"][0]["verified_at"])
    disks = ready.cli_json("disk", "list")["disks"]
    assert [d["state"] for d in disks] == ["ready", "ready"]
    version = ready.cli_json("version")
    assert version["client"]["version"] == version["server"]["version"]
    assert version["server"]["api_version"] == "4"
    assert ready.cli_json("image", "ensure", "debian", "--url",
                          image["spec"]["source"]["url"], "--sha512",
                          images.sha512(DATA))["created"] is False
    assert ready.cli_json("image", "verify", "debian")["ok"] is True
    assert ready.cli_json("image", "remove", "debian") == {}
    assert ready.cli_json("image", "list") == {"images": []}


def test_addresses(ready):
    for address in (ready.address, f"unix:{ready.socket}"):
        assert "debian" in ready.cli("image", "list", address=address, check=OK).stdout
    done = bim("image", "list", env={"BIM_ADDRESS": f"unix:{ready.socket}"},
               binary=ready.binary)
    assert done.returncode == OK and "debian" in done.stdout


def test_many_images_are_listed_whole(start_daemon, disk, files):
    daemon = start_daemon([disk], {"sources": {"allow_file": True}})
    image = images.raw(files / "a.raw", 4096)
    for number in range(120):
        daemon.client.ensure(f"i{number:03}", f"file://{image.path}")
    assert len(daemon.cli_json("image", "list")["images"]) == 120


def test_the_other_name(ready):
    other = ready.binary.parent / "backing-image-manager"
    done = bim("image", "list", "--address", ready.address, binary=other)
    assert done.returncode == OK and "debian" in done.stdout


# Exit codes ----------------------------------------------------------------


@pytest.mark.parametrize("args,words", [
    ((), ()),
    (("bogus",), ("bogus",)),
    (("image",), ()),
    (("image", "gte"), ("get",)),
    (("image", "get"), ("NAME",)),
    (("image", "ensure", "a"), ("--url",)),
    (("image", "ensure", "a", "--url", "http://h/", "--size", "x"), ("size",)),
    (("image", "list", "--no-such"), ("--no-such",)),
    (("image", "list", "-o", "yaml"), ("yaml",)),
    (("image", "list", "--timeout", "soon"), ("soon",)),
    (("image", "list", "--address", "nonsense"), ("nonsense",)),
    (("image", "list", "surplus"), ("surplus",)),
    (("completion", "tcsh"), ("tcsh",)),
    (("image", "export", "a"), ("-f",)),
])
def test_usage(args, words):
    done = bim(*args)
    assert done.returncode == USAGE, done
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 3


def test_what_the_daemon_calls_invalid(daemon):
    done = daemon.cli("image", "ensure", "a/b", "--url", "http://127.0.0.1/", check=USAGE)
    one_line_of_error(done, "name")
    done = daemon.cli("image", "ensure", "a", "--url", "ftp://127.0.0.1/", check=USAGE)
    one_line_of_error(done, "ftp")


def test_unreachable(scratch):
    for address in (f"127.0.0.1:{free_port()}", f"unix:{scratch}/none.sock"):
        done = bim("image", "list", "--address", address)
        assert done.returncode == UNREACHABLE
        one_line_of_error(done, "reach", address)


def test_not_found(daemon):
    for args in (("image", "get", "nobody"), ("image", "remove", "nobody"),
                 ("image", "verify", "nobody"),
                 ("image", "export", "nobody", "-f", "/dev/null"),
                 ("disk", "remove", "/no/such/disk")):
        one_line_of_error(daemon.cli(*args, check=NOT_FOUND), "cannot find")
    done = daemon.cli("image", "ensure", "a", "--url", "http://127.0.0.1/", "--disk",
                      "/no/such/disk", check=NOT_FOUND)
    one_line_of_error(done, "/no/such/disk")


def test_refused(ready, disks, origin):
    file = next((disks.root / "one").rglob("backing"))
    with open(file, "rb"):
        done = ready.cli("image", "remove", "debian", check=REFUSED)
        one_line_of_error(done, "open", "force")
        uuid = ready.client.get("debian").spec.uuid
        done = ready.cli("image", "ensure", "debian", "--uuid", uuid, "--url",
                         origin.url("/b"), check=REFUSED)
        one_line_of_error(done, "debian")
        ready.cli("image", "remove", "debian", "--force", check=OK)
    bare = disks.directory("bare", init=False)
    one_line_of_error(ready.cli("disk", "add", bare, check=REFUSED), "init")


def test_image_ended_failed(daemon, origin):
    done = daemon.cli("image", "ensure", "a", "--url", origin.serve("/a", Answer(404)),
                      "--wait", check=IMAGE_FAILED)
    assert "404" in done.stderr
    daemon.cli("image", "ensure", "b", "--url", origin.serve("/b", Content(DATA)),
               "--sha256", "ab" * 32, "--wait", check=IMAGE_FAILED)


def test_verify_finds_damage(ready, disks):
    file = next((disks.root / "one").rglob("backing"))
    with open(file, "r+b") as f:
        f.seek(MIB)
        f.write(b"damage")
    ready.client.wait_state("debian", "failed")
    code = ready.cli("image", "verify", "debian").returncode
    # The good copy is verified; the failed one is no longer "ready".
    assert code in (OK, IMAGE_FAILED, REFUSED)


def test_verify_exit_code(start_daemon, disk, origin):
    daemon = start_daemon([disk], {"disks": {"check_interval": "1h"}})
    daemon.client.ensure("a", origin.serve("/a", Content(DATA)))
    file = daemon.client.wait_ready("a").copies[0].file_path
    daemon.cli("image", "verify", "a", check=OK)
    stat = os.stat(file)
    with open(file, "r+b") as f:
        f.write(b"damage")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    one_line_of_error(daemon.cli("image", "verify", "a", check=IMAGE_FAILED), file)


def test_timed_out(daemon, origin):
    done = daemon.cli("image", "ensure", "a", "--url", origin.serve("/a", Never()),
                      "--wait", "--timeout", "500ms", check=TIMED_OUT)
    one_line_of_error(done)
    # The daemon goes on.
    assert daemon.client.get("a").state in ("starting", "in-progress", "pending")


def test_a_daemon_that_does_not_answer(daemon):
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        done = daemon.cli("image", "list", "--timeout", "1s")
        assert done.returncode in (TIMED_OUT, UNREACHABLE), done
        one_line_of_error(done, "in time")
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    daemon.cli("image", "list", check=OK)


def test_interrupted(daemon, origin):
    client = spawn([daemon.binary, "image", "ensure", "a", "--url",
                    origin.serve("/a", Never()), "--wait", "--address", daemon.address],
                   stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                   env=clean_environment())
    origin.wait_count("/a", 1)
    assert end(client, signal.SIGINT) in BY_CTRL_C
    assert daemon.client.get("a")


# Commands -------------------------------------------------------------------


def test_wait_survives_a_restart(start_daemon, disk, origin):
    address = f"127.0.0.1:{free_port()}"
    daemon = start_daemon([disk], {"api": {"listen": [address]}})
    gate = threading.Event()
    url = origin.serve("/a", Content(DATA, gate=gate, gate_after=MIB), Content(DATA))
    client = spawn([daemon.binary, "image", "ensure", "a", "--url", url, "--wait",
                    "--address", address], stdout=subprocess.PIPE,
                   stderr=subprocess.PIPE, env=clean_environment())
    daemon.client.wait_state("a", "in-progress")
    daemon.restart()
    gate.set()
    out, err = client.communicate(timeout=scaled(40))
    assert client.returncode == OK, err
    assert b"ready" in out


def test_watch(daemon, origin):
    watch = spawn([daemon.binary, "image", "watch", "-o", "json", "--address",
                   daemon.address], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                  env=clean_environment())
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(iter(watch.stdout.readline, b"")),
                              daemon=True)
    reader.start()
    try:
        events = []

        def states():
            events[:] = [json.loads(line) for line in list(lines)]
            return [e["image"]["state"] for e in events
                    if e["type"] == "TYPE_IMAGE" and e["image"]["spec"]["name"] == "a"]
        wait_until(lambda: states() is not None and events
                   and events[-1]["type"] == "TYPE_SNAPSHOT_END", "the snapshot")
        daemon.cli("image", "ensure", "a", "--url", origin.serve("/a", Content(DATA)),
                   check=OK)
        wait_until(lambda: "ready" in states(), lambda: f"ready; {states()}")
        daemon.cli("image", "remove", "a", check=OK)
        wait_until(lambda: states() is not None
                   and events[-1]["type"] == "TYPE_REMOVED", "removed")
    finally:
        code = end(watch, signal.SIGINT)
    assert code in BY_CTRL_C


def test_export(ready, scratch):
    out = scratch / "out.raw"
    told = ready.cli_json("image", "export", "debian", "-f", out)
    assert out.read_bytes() == DATA
    assert told["sha512"] == images.sha512(DATA) and told["file"] == str(out)
    one_line_of_error(ready.cli("image", "export", "debian", "-f", out), out)
    out.write_bytes(b"old")
    assert ready.cli("image", "export", "debian", "-f", out).returncode != OK
    assert out.read_bytes() == b"old"
    ready.cli("image", "export", "debian", "-f", out, "--force", check=OK)
    assert out.read_bytes() == DATA
    assert sorted(p.name for p in scratch.glob("out*")) == ["out.raw"]
    piped = subprocess.run([str(ready.binary), "image", "export", "debian", "-f", "-",
                    "--address", ready.address], stdout=subprocess.PIPE, timeout=scaled(30),
                   env=clean_environment(), check=True)
    assert piped.stdout == DATA


def test_export_keeps_holes(daemon, origin, files, scratch):
    image = images.sparse_raw(files / "s.raw", 32 * MIB)
    daemon.cli("image", "ensure", "s", "--url", origin.serve("/s", Content(image.data)),
               "--wait", check=OK)
    out = scratch / "out.raw"
    daemon.cli("image", "export", "s", "-f", out, check=OK)
    assert images.file_sha512(out) == image.sha512
    assert out.stat().st_blocks * 512 < 4 * MIB


def test_export_to_a_bad_place(ready, scratch):
    for place in (scratch / "no" / "such", scratch):
        done = ready.cli("image", "export", "debian", "-f", place)
        assert done.returncode in (FAILED, USAGE, REFUSED), done
        one_line_of_error(done, place)


def test_export_of_an_image_that_is_not_ready(daemon, origin, scratch):
    daemon.cli("image", "ensure", "a", "--url", origin.serve("/a", Never()), check=OK)
    done = daemon.cli("image", "export", "a", "-f", scratch / "out", check=REFUSED)
    one_line_of_error(done, "ready")
    assert not (scratch / "out").exists()


def test_disks(daemon, disks):
    three = disks.directory("three", init=False)
    daemon.cli("disk", "add", three, "--init", check=OK)
    uuid = json.loads((three.path / "longhorn-disk.cfg").read_text())["diskUUID"]
    assert uuid in daemon.cli("disk", "list", check=OK).stdout
    daemon.cli("disk", "remove", uuid, check=OK)
    assert uuid not in daemon.cli("disk", "list", check=OK).stdout


def test_disks_of_an_image(daemon, disks, origin):
    daemon.cli("image", "ensure", "a", "--url", origin.serve("/a", Content(DATA)),
               "--disk", disks.root / "two", "--wait", check=OK)
    copies = daemon.cli_json("image", "get", "a")["copies"]
    assert [c["disk_path"] for c in copies] == [str(disks.root / "two")]


def test_progress_on_a_terminal(daemon, origin):
    """A progress bar on a terminal, none elsewhere."""
    gate = threading.Event()
    url = origin.serve("/a", Content(DATA, gate=gate, gate_after=MIB))
    primary, secondary = pty.openpty()
    client = spawn([daemon.binary, "image", "ensure", "a", "--url", url, "--wait",
                    "--address", daemon.address], stdin=secondary, stdout=secondary,
                   stderr=secondary, env=clean_environment({"TERM": "xterm"}))
    os.close(secondary)
    shown = bytearray()

    def read():
        while True:
            try:
                piece = os.read(primary, 65536)
            except OSError:  # the other side is closed
                return
            if not piece:
                return
            shown.extend(piece)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    # Half of it is on one of two disks, and that is shown.
    wait_until(lambda: re.search(rb"\b(24|25)%", shown),
               lambda: f"a quarter: {bytes(shown)}")
    gate.set()
    assert client.wait(timeout=scaled(20)) == OK
    reader.join(timeout=scaled(10))
    os.close(primary)
    text = shown.decode(errors="replace")
    assert "\r" in text and "ready" in text


def test_hostile_text_cannot_move_the_cursor(daemon, origin):
    page = b"<html>\x1b[2J\x1b]0;owned\x07" + b"A" * 1000
    done = daemon.cli("image", "ensure", "a", "--url", origin.serve("/a", Content(page)),
                      "--wait", check=IMAGE_FAILED)
    for text in (done.stdout, done.stderr,
                 daemon.cli("image", "get", "a", check=OK).stdout,
                 daemon.cli("image", "list", check=OK).stdout):
        assert "\x1b" not in text and "\x07" not in text


def test_a_full_standard_output(ready):
    """/dev/full: an error, not a success."""
    with open("/dev/full", "wb") as full:
        client = spawn([ready.binary, "image", "list", "--address", ready.address],
                       stdout=full, stderr=subprocess.PIPE, env=clean_environment())
        _, err = client.communicate(timeout=scaled(20))
    assert client.returncode == FAILED and b"bim: " in err


def test_help_is_everywhere():
    for command in ((), ("daemon",), ("image",), ("image", "ensure"), ("image", "get"),
                    ("image", "list"), ("image", "watch"), ("image", "remove"),
                    ("image", "verify"), ("image", "export"), ("disk",),
                    ("disk", "list"), ("disk", "add"), ("disk", "remove"),
                    ("version",), ("config", "check"), ("completion",),
                    ("manager",), ("manager", "list"), ("manager", "cleanup"),
                    ("history",), ("prune",), ("upgrade",), ("upgrade", "check")):
        done = bim(*command, "--help")
        assert done.returncode == OK and done.stderr == ""
        assert "Usage: " in done.stdout
    everything = bim("--help").stdout
    for code in range(8):
        assert re.search(rf"^\s*{code}\s", everything, re.M), "exit codes are told"


@pytest.mark.parametrize("line,expected", [
    ("bim ", {"daemon", "image", "disk", "version", "config", "completion"}),
    ("bim im", {"image"}),
    ("bim image ", {"ensure", "get", "list", "watch", "remove", "verify", "export"}),
    ("bim disk a", {"add", "adopt"}),
    ("bim disk m", {"migrate"}),
    ("bim upgrade ", {"check"}),
    ("bim manager cleanup --f", {"--force"}),
    ("bim prune --older", {"--older-than"}),
    ("bim image ensure a --sha", {"--sha512", "--sha256"}),
    ("bim image list -o ", {"table", "json"}),
    ("bim completion ", {"bash", "zsh", "fish"})])
def test_bash_completion(line, expected):
    script = bim("completion", "bash")
    assert script.returncode == OK
    words = line.split(" ")
    ask = (script.stdout + "\nCOMP_WORDS=(" + " ".join(f"'{w}'" for w in words)
           + f")\nCOMP_CWORD={len(words) - 1}\nCOMP_LINE='{line}'\n"
             f"COMP_POINT={len(line)}\n_bim\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n")
    done = subprocess.run(["bash", "-c", ask], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=scaled(10), check=False)
    offered = {w.strip() for w in done.stdout.decode().split()}
    assert expected <= offered and not done.stderr, (offered, done.stderr)
    if words[-1]:
        assert offered == expected


def test_other_completions():
    for shell in ("zsh", "fish"):
        done = bim("completion", shell)
        assert done.returncode == OK and "ensure" in done.stdout
