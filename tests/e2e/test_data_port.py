"""Ready images are served by HTTP, with ranges."""

import os
import socket
import threading

import pytest

from lib import images
from lib.deadline import scaled, wait_until
from lib.images import MIB
from lib.processes import open_files, run
from lib.servers import Content

DATA = images.random_bytes(4 * MIB)


@pytest.fixture
def ready(start_daemon, disks, origin):
    daemon = start_daemon([disks.directory("one"), disks.directory("two")])
    uuid = daemon.client.ensure("a", origin.serve("/a", Content(DATA))).image.spec.uuid
    daemon.client.wait_ready("a")
    return daemon, daemon.data_url("a", uuid), uuid


def curl(*args):
    """(status, headers, body)."""
    done = run(["curl", "-sS", "--noproxy", "*", "-m", "30", "-D", "-", *args])
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    return int(lines[0].split()[1]), headers, body


def test_the_whole_file(ready):
    daemon, url, _ = ready
    assert daemon.client.version_get().data_endpoint == daemon.data
    status, headers, body = curl(url)
    assert status == 200 and body == DATA
    assert int(headers["content-length"]) == len(DATA)
    assert headers["accept-ranges"] == "bytes"
    assert images.sha512(DATA) in str(headers), "its digest is told"


@pytest.mark.parametrize("given,begin,end", [
    ("0-0", 0, 1), ("0-99", 0, 100), ("1000-", 1000, len(DATA)),
    ("-500", len(DATA) - 500, len(DATA)), ("4194303-", len(DATA) - 1, len(DATA)),
    ("100-99999999999", 100, len(DATA)), ("1048570-1048590", 1048570, 1048591),
    ("-99999999999", 0, len(DATA))])
def test_ranges(ready, given, begin, end):
    _, url, _ = ready
    status, headers, body = curl("-H", f"Range: bytes={given}", url)
    assert status == 206 and body == DATA[begin:end]
    assert headers["content-range"] == f"bytes {begin}-{end - 1}/{len(DATA)}"


@pytest.mark.parametrize("given", [f"{len(DATA)}-", "99999999-", "-0"])
def test_ranges_that_cannot_be(ready, given):
    _, url, _ = ready
    status, headers, _ = curl("-H", f"Range: bytes={given}", url)
    assert status == 416
    assert headers["content-range"] == f"bytes */{len(DATA)}"


@pytest.mark.parametrize("given", ["bytes=a-b", "bytes=5-2", "lines=1-2", "bytes=",
                                   "bytes=1-2-3"])
def test_ranges_that_are_none_are_ignored(ready, given):
    """RFC 9110 14.2."""
    _, url, _ = ready
    status, _, body = curl("-H", f"Range: {given}", url)
    assert status in (200, 416) and (status != 200 or body == DATA)


def test_head(ready):
    _, url, _ = ready
    done = run(["curl", "-sS", "--noproxy", "*", "-m", "30", "-I", url]).stdout.decode()
    assert done.startswith("HTTP/1.1 200 ")
    assert f"content-length: {len(DATA)}" in done.lower()


def test_a_stated_disk(ready, disks):
    daemon, url, uuid = ready
    status, _, body = curl(f"{url}?disk={disks.root}/two")
    assert status == 200 and body == DATA


def test_curl_resumes(ready, scratch):
    _, url, _ = ready
    out = scratch / "out"
    out.write_bytes(DATA[:MIB + 17])
    run(["curl", "-sS", "--noproxy", "*", "-C", "-", "-o", out, url])
    assert out.read_bytes() == DATA


def test_many_at_once(ready):
    daemon, url, _ = ready
    bodies = []
    threads = [threading.Thread(target=lambda: bodies.append(curl(url)[2]))
               for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=scaled(30))
    assert len(bodies) == 12 and all(b == DATA for b in bodies)


@pytest.mark.parametrize("path", [
    "/", "/v1", "/v1/images", "/v1/images/a/data", "/v1/images/nobody/u/data",
    "/v1/images/../../etc/passwd", "/v1/images/a/%2e%2e/data",
    "/v1/images/%2fetc/passwd/data", "//etc/passwd", "/%00", "/v1/images/a/u/data/x"])
def test_what_is_not_there(ready, path):
    daemon, _, _ = ready
    status, _, body = curl("--path-as-is", f"http://{daemon.data}{path}")
    assert status in (400, 404), status
    assert b"root:" not in body


def test_other_methods(ready):
    _, url, _ = ready
    for method in ("DELETE", "PUT", "POST"):
        status, _, _ = curl("-X", method, url)
        assert status in (400, 405, 413, 501), status


def test_not_ready_is_not_served(start_daemon, disk, origin):
    gate = threading.Event()
    daemon = start_daemon([disk])
    uuid = daemon.client.ensure("a", origin.serve(
        "/a", Content(DATA, gate=gate, gate_after=MIB))).image.spec.uuid
    daemon.client.wait_state("a", "in-progress")
    status, _, body = curl(daemon.data_url("a", uuid))
    assert status in (404, 409, 412, 503), status
    assert DATA[:100] not in body
    gate.set()
    daemon.client.wait_ready("a")
    assert curl(daemon.data_url("a", uuid))[0] == 200


def test_readers_that_go_away(ready):
    """Their descriptors go with them."""
    daemon, url, _ = ready
    host, port = daemon.data.rsplit(":", 1)
    path = url.split(daemon.data, 1)[1]
    for _ in range(20):
        with socket.create_connection((host, int(port)), scaled(5)) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            sock.recv(1000)
    wait_until(lambda: not [f for f in open_files(daemon.pid) if f.endswith("/backing")],
               lambda: f"closed: {open_files(daemon.pid)}")
    assert curl(url)[2] == DATA


def test_garbage_on_the_data_port(ready):
    daemon, url, _ = ready
    host, port = daemon.data.rsplit(":", 1)
    for garbage in (b"\0" * 100_000, b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
                    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000, b"\r\n" * 1000,
                    b"GET / HTTP/9.9\r\n\r\n"):
        with socket.create_connection((host, int(port)), scaled(5)) as sock:
            sock.settimeout(scaled(10))
            try:
                sock.sendall(garbage)
                sock.recv(1000)
            except OSError:
                pass
    assert curl(url)[2] == DATA


def test_switched_off(start_daemon, disk):
    daemon = start_daemon([disk], {"api": {"data_listen": ""}})
    assert daemon.client.version_get().data_endpoint == ""
    assert not daemon.endpoint.get("data")


def test_an_unprivileged_reader(ready, disks):
    """qemu runs as another user: it reads the file itself."""
    daemon, _, uuid = ready
    file = disks.root / "one" / "backing-images" / f"a-{uuid}" / "backing"
    done = run(["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
                "--", "head", "-c", "512", file])
    assert done.stdout == DATA[:512]
    assert os.stat(file).st_mode & 0o044 == 0o044
