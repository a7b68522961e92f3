"""Ready images leave the node: whole, in ranges, compressed, and in the form
in which daemons talk to each other."""

import hashlib
import json
import os
import select
import socket
import struct
import subprocess
import threading
import time

import pytest

from lib import images
from lib.deadline import scaled, wait_until
from lib.images import KIB, MIB
from lib.processes import clean_environment, open_files, proc_status_kib, run
from lib.servers import Content

MAX_PART = 64 * MIB
CHUNK = 256 * KIB


def get(address, path, method="GET", **headers):
    """(status, headers, body), chunks of the transfer put together."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), scaled(10)) as sock:
        sock.settimeout(scaled(60))
        lines = [f"{method} {path} HTTP/1.1", "Host: bim", "Connection: close"]
        lines += [f"{k.replace('_', '-')}: {v}" for k, v in headers.items()]
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        got = bytearray()
        while piece := sock.recv(1 << 20):
            got += piece
    return parsed(bytes(got), method)


def parsed(got, method="GET"):
    head, _, body = got.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    told = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
    if told.get("transfer-encoding") == "chunked":
        body = unchunked(body)
    elif method != "HEAD" and "content-length" in told:
        assert len(body) == int(told["content-length"])
    return int(lines[0].split()[1]), told, body


def unchunked(body):
    out, at = bytearray(), 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end], 16)
        if size == 0:
            return bytes(out)
        out += body[end + 2:end + 2 + size]
        at = end + 2 + size + 2


def unzstd(data):
    return run(["zstd", "-q", "-d", "-c"], input=data).stdout


class Exported:
    def __init__(self, daemon, origin, data, name="a"):
        self.daemon, self.data, self.name = daemon, data, name
        self.uuid = daemon.client.ensure(
            name, origin.serve(f"/{name}", Content(data))).image.spec.uuid
        self.image = daemon.client.wait_ready(name)
        self.sha512 = images.sha512(data)
        self.etag = f'"sha512:{self.sha512}"'

    def path(self, what="data"):
        return f"/v1/images/{self.name}/{self.uuid}/{what}"

    def get(self, what="data", method="GET", **headers):
        return get(self.daemon.data, self.path(what), method, **headers)


def sparse(size, pieces):
    data = bytearray(size)
    for number, (at, length) in enumerate(pieces):
        data[at:at + length] = images.random_bytes(length, number + 1)
    return bytes(data)


@pytest.fixture
def daemon(start_daemon, disk):
    return start_daemon([disk])


@pytest.fixture
def image(daemon, origin):
    """Data, a long hole, data that packs well, a hole at the end."""
    data = bytearray(sparse(24 * MIB, [(0, 3 * MIB), (10 * MIB, 512 * KIB)]))
    data[16 * MIB:18 * MIB] = b"much the same  \n" * (2 * MIB // 16)
    return Exported(daemon, origin, bytes(data))


# --------------------------------------------------------------------- data

def test_what_a_get_tells(image):
    status, told, body = image.get()
    assert status == 200 and body == image.data
    assert told["etag"] == image.etag and told["x-bim-sha512"] == image.sha512
    assert told["accept-ranges"] == "bytes"
    assert "content-encoding" not in told
    status, head, body = image.get(method="HEAD")
    assert status == 200 and body == b""
    told.pop("date", None), head.pop("date", None)
    assert head == told


def test_ranges_and_conditions(image):
    status, told, body = image.get(Range="bytes=3145000-3146999", If_Range=image.etag)
    assert status == 206 and body == image.data[3145000:3147000]
    assert told["content-range"] == f"bytes 3145000-3146999/{len(image.data)}"
    assert told["etag"] == image.etag
    status, _, body = image.get(Range="bytes=5-9", If_Range='"another"')
    assert status == 200 and body == image.data


def test_the_parts_make_the_whole(image):
    step = 1_234_567
    body = b"".join(image.get(Range=f"bytes={at}-{at + step - 1}")[2]
                    for at in range(0, len(image.data), step))
    assert body == image.data


@pytest.mark.parametrize("accepted", ["zstd", "gzip, zstd;q=0.5", "br, zstd, *;q=0.1"])
def test_accept_encoding(image, accepted):
    status, told, body = image.get(Accept_Encoding=accepted)
    assert status == 200 and told["content-encoding"] == "zstd"
    assert told["etag"] == "W/" + image.etag
    assert "accept-encoding" in told["vary"].lower()
    assert "content-length" not in told
    assert len(body) < 5 * MIB
    assert unzstd(body) == image.data


@pytest.mark.parametrize("accepted", ["gzip, br", "zstd;q=0", "identity", "xzstd", ""])
def test_encodings_that_are_not_wanted(image, accepted):
    status, told, body = image.get(Accept_Encoding=accepted)
    assert status == 200 and "content-encoding" not in told and body == image.data


def test_a_range_is_never_compressed(image):
    status, told, body = image.get(Accept_Encoding="zstd", Range="bytes=0-999999")
    assert status == 206 and "content-encoding" not in told
    assert body == image.data[:1_000_000]


def test_as_a_zstd_file(image, scratch):
    """curl URL?encoding=zstd | zstd -d"""
    status, told, body = image.get("data?encoding=zstd")
    assert status == 200 and told["content-type"] == "application/zstd"
    assert "content-encoding" not in told
    assert unzstd(body) == image.data
    out = scratch / "out"
    run(["sh", "-c", f"curl -sS --noproxy '*' 'http://{image.daemon.data}"
         f"{image.path('data?encoding=zstd')}' | zstd -q -d -o {out}"])
    assert out.read_bytes() == image.data


@pytest.mark.parametrize("query", ["encoding=gzip", "encoding=", "what=ever",
                                   "encoding=zstd&encoding=zstd", "disk=%zz", "encoding"])
def test_queries_that_are_none(image, query):
    status, _, body = image.get(f"data?{query}")
    assert status in (400, 200), body
    if status == 200:
        assert query == "encoding=" and body == image.data


def test_an_unknown_disk(image):
    status, _, body = image.get("data?disk=nowhere")
    assert status == 404 and b"nowhere" in body


def test_a_large_hole_is_quick(daemon, start_daemon, disk, files):
    """4 GiB of which there is 1 MiB: neither read nor sent."""
    path = files / "huge.raw"
    with open(path, "wb") as file:
        file.write(images.random_bytes(MIB))
        file.truncate(4 << 30)
    daemon.stop()
    daemon = start_daemon([disk], {"sources": {"allow_file": True}})
    uuid = daemon.client.ensure("h", f"file://{path}").image.spec.uuid
    ready = daemon.client.wait_ready("h", 90)
    assert ready.real_size < 2 * MIB
    begin = time.monotonic()
    status, told, body = get(daemon.data, f"/v1/images/h/{uuid}/data?encoding=zstd")
    took = time.monotonic() - begin
    assert status == 200 and len(body) < 4 * MIB
    assert took < scaled(30), took
    assert proc_status_kib(daemon.pid, "RssAnon") < scaled(256 * KIB)


# ----------------------------------------------------------------- manifest

def manifest_of(body):
    """(header, [(zero, sha256)])."""
    line, _, rest = body.partition(b"\n")
    words = line.split()
    assert words[0] == b"bim-manifest", line
    size = int(words[3])
    assert hashlib.sha256(rest[:size]).hexdigest().encode() == words[4]
    header, table = json.loads(rest[:size]), rest[size:]
    assert len(table) % 33 == 0 and len(table) // 33 == header["chunkCount"]
    assert hashlib.sha256(table).hexdigest() == header["chunksSha256"]
    return header, [(table[i], table[i + 1:i + 33]) for i in range(0, len(table), 33)]


def test_the_manifest(image):
    status, told, body = image.get("manifest")
    assert status == 200 and told["content-type"] == "application/x-bim-manifest"
    assert told["etag"] == image.etag
    header, chunks = manifest_of(body)
    assert header["name"] == "a" and header["uuid"] == image.uuid
    assert header["size"] == len(image.data) and header["chunkSize"] == CHUNK
    assert header["sha512"] == image.sha512 and header["format"] == "raw"
    for number, (zero, digest) in enumerate(chunks):
        part = image.data[number * CHUNK:(number + 1) * CHUNK]
        assert zero == (part == bytes(len(part)))
        if not zero:
            assert digest == hashlib.sha256(part).digest(), number


def test_the_manifest_is_kept_across_a_restart(image):
    before = image.get("manifest")[2]
    image.daemon.restart(kill=True)
    assert image.get("manifest")[2] == before


# ------------------------------------------------------------------ extents

def extents_of(body, begin, stop):
    """The bytes of the part, put together as pkg/transfer/wire.h tells, and
    how many of them are data."""
    assert body[:8] == b"BIMEXT01"
    told_begin, told_stop, count = struct.unpack_from("<QQQ", body, 8)
    assert (told_begin, told_stop) == (begin, stop)
    pairs = [struct.unpack_from("<QQ", body, 32 + 16 * i) for i in range(count)]
    out = bytearray(stop - begin)
    at, behind = 32 + 16 * count, begin
    for first, last in pairs:
        assert behind <= first < last <= stop, pairs
        out[first - begin:last - begin] = body[at:at + last - first]
        at += last - first
        behind = last
    assert at == len(body), "bytes behind the last extent"
    return bytes(out), sum(last - first for first, last in pairs)


@pytest.mark.parametrize("begin,stop", [
    (0, 24 * MIB), (0, 1), (1, 2), (24 * MIB - 1, 24 * MIB), (4 * MIB, 9 * MIB),
    (3 * MIB - 100, 3 * MIB + 100), (MIB + 17, 20 * MIB + 3), (10 * MIB, 11 * MIB)])
def test_extents(image, begin, stop):
    status, told, body = image.get(f"extents?begin={begin}&end={stop}",
                                   If_Match=image.etag)
    assert status == 200 and told["content-type"] == "application/x-bim-extents"
    assert told["etag"] == image.etag
    data, count = extents_of(body, begin, stop)
    assert data == image.data[begin:stop]
    assert count < 7 * MIB, "holes are not sent"
    if (begin, stop) == (4 * MIB, 9 * MIB):
        assert count == 0 and len(body) == 32


def test_compressed_extents(image):
    begin, stop = 15 * MIB, 18 * MIB
    status, told, body = image.get(f"extents?begin={begin}&end={stop}",
                                   Accept_Encoding="zstd")
    assert status == 200 and told["content-encoding"] == "zstd"
    assert len(body) < 100 * KIB
    assert extents_of(unzstd(body), begin, stop)[0] == image.data[begin:stop]
    # What does not get smaller, or is long, comes as it is.
    for begin, stop in ((0, 2 * MIB), (10 * MIB, 15 * MIB)):
        status, told, body = image.get(f"extents?begin={begin}&end={stop}",
                                       Accept_Encoding="zstd")
        assert status == 200 and "content-encoding" not in told
        assert extents_of(body, begin, stop)[0] == image.data[begin:stop]


@pytest.mark.parametrize("query", [
    "", "begin=0", "end=512", "begin=5&end=5", "begin=6&end=5", "begin=0&end=25165825",
    "begin=-1&end=5", "begin=a&end=b", "begin=0x0&end=0x5", "begin=0&end=512&begin=1",
    "begin=0&end=18446744073709551616", "begin=18446744073709551615&end=5",
    "begin=0&end=5&what=ever", "begin=25165824&end=25165824", "begin=+0&end=5"])
def test_parts_that_are_none(image, query):
    status, _, body = image.get(f"extents?{query}")
    assert status == 400 and body.strip(), (status, body[:100])


def test_a_part_that_is_too_long(daemon, origin):
    image = Exported(daemon, origin, bytes(80 * MIB - 512) + images.random_bytes(512))
    status, _, body = image.get(f"extents?begin=0&end={MAX_PART + 1}")
    assert status == 400 and str(MAX_PART).encode() in body
    status, _, body = image.get(f"extents?begin=1&end={MAX_PART + 1}")
    assert status == 200 and extents_of(body, 1, MAX_PART + 1)[1] == 0


@pytest.mark.parametrize("wanted,status", [
    ('"sha512:00"', 412), ('"another"', 412), ("*", 200), ("W/{etag}", 412),
    ('"x", {etag}', 200), ("{etag}", 200)])
def test_if_match(image, wanted, status):
    wanted = wanted.format(etag=image.etag)
    got, _, body = image.get("extents?begin=0&end=512", If_Match=wanted)
    assert got == status, body
    if status == 412:
        assert image.sha512.encode() in body


@pytest.mark.parametrize("what", ["data", "manifest", "extents?begin=0&end=512"])
def test_an_image_that_is_not_ready(daemon, origin, what):
    gate = threading.Event()
    uuid = daemon.client.ensure("b", origin.serve("/b", Content(
        images.random_bytes(4 * MIB), gate=gate, gate_after=MIB))).image.spec.uuid
    daemon.client.wait_state("b", "in-progress")
    status, _, body = get(daemon.data, f"/v1/images/b/{uuid}/{what}")
    assert status in (404, 409, 503) and b"b" in body, (status, body)
    gate.set()
    daemon.client.wait_ready("b")
    assert get(daemon.data, f"/v1/images/b/{uuid}/{what}")[0] == 200


# ------------------------------------------------------------------- `bim`

def test_bim_image_export(image, scratch):
    out = scratch / "out.raw"
    told = image.daemon.cli_json("image", "export", "a", "-f", out)
    assert told["sha512"] == image.sha512 and int(told["size"]) == len(image.data)
    assert out.read_bytes() == image.data
    assert out.stat().st_blocks * 512 < 7 * MIB, "zeros become holes"


def test_bim_image_export_zstd(image, scratch):
    out = scratch / "out.raw.zst"
    told = image.daemon.cli_json("image", "export", "a", "-f", out, "--zstd")
    assert told["sha512"] == image.sha512
    assert out.stat().st_size < 5 * MIB
    assert unzstd(out.read_bytes()) == image.data
    # It never replaces a file unasked, and leaves nothing half-written.
    assert image.daemon.cli("image", "export", "a", "-f", out, "--zstd").returncode != 0
    image.daemon.cli("image", "export", "a", "-f", out, "--zstd", "--force", check=0)
    assert [p.name for p in scratch.glob("out*")] == ["out.raw.zst"]
    piped = subprocess.run(
        [str(image.daemon.binary), "image", "export", "a", "-f", "-", "--zstd",
         "--address", image.daemon.address], stdout=subprocess.PIPE, check=True,
        timeout=scaled(30), env=clean_environment())
    assert unzstd(piped.stdout) == image.data


@pytest.mark.parametrize("options", [(), ("--zstd",)])
def test_a_damaged_image_is_not_exported(start_daemon, disk, origin, scratch, options):
    """The bytes are proven on the way."""
    daemon = start_daemon([disk], {"disks": {"check_interval": "1h"}})
    image = Exported(daemon, origin, images.random_bytes(4 * MIB))
    file = disk.ready_file("a", image.uuid)
    stat = file.stat()
    with open(file, "r+b") as f:
        f.seek(2 * MIB)
        f.write(b"damage")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    done = daemon.cli("image", "export", "a", "-f", scratch / "out", *options)
    assert done.returncode in (1, 5, 6) and done.stderr.strip(), done
    assert not list(scratch.glob("out*"))


# ------------------------------------------------------------------ readers

class Slow:
    """Asks for an image and takes nothing of it until it is told to."""

    def __init__(self, image):
        host, port = image.daemon.data.rsplit(":", 1)
        self.sock = socket.socket()
        # So that little fits between us and the daemon.
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.settimeout(scaled(60))
        self.sock.connect((host, int(port)))
        self.sock.sendall(f"GET {image.path()} HTTP/1.1\r\nHost: x\r\n"
                          "Connection: close\r\n\r\n".encode())

    def begun(self):
        return bool(select.select([self.sock], [], [], 0)[0])

    def rest(self):
        got = bytearray()
        while piece := self.sock.recv(1 << 20):
            got += piece
        self.sock.close()
        return parsed(bytes(got))

    def close(self):
        self.sock.close()


def begun(readers):
    return [r for r in readers if r.begun()]


def test_so_many_readers_at_once(start_daemon, disk, origin):
    """Others get their turn when one ends, in the order they asked."""
    daemon = start_daemon([disk], {"peers": {"readers_per_image": 2}})
    image = Exported(daemon, origin, images.random_bytes(16 * MIB))
    readers = [Slow(image) for _ in range(2)]
    wait_until(lambda: len(begun(readers)) == 2, "two to begin")
    readers += [Slow(image)]
    wait_until(lambda: len([f for f in open_files(daemon.pid)
                            if f.endswith("/backing")]) >= 3, "the third to wait")
    readers += [Slow(image)]
    # Meanwhile nothing else waits.
    other = Exported(daemon, origin, images.random_bytes(MIB, 2), "b")
    assert other.get()[2] == other.data
    assert image.get("manifest")[0] == 200
    assert image.get(method="HEAD")[0] == 200
    assert daemon.client.get("a").state == "ready"
    assert begun(readers) == readers[:2]
    assert readers[0].rest()[2] == image.data
    wait_until(lambda: readers[2].begun(), "the third to have its turn")
    # One that goes away gives its turn, too.
    readers[1].close()
    wait_until(lambda: readers[3].begun(), "the fourth to have its turn")
    for reader in readers[2:]:
        assert reader.rest()[2] == image.data


def test_one_that_waits_and_goes_away(start_daemon, disk, origin):
    daemon = start_daemon([disk], {"peers": {"readers_per_image": 1}})
    image = Exported(daemon, origin, images.random_bytes(16 * MIB))
    first = Slow(image)
    wait_until(first.begun, "the first to begin")
    for _ in range(20):
        Slow(image).close()
    wait_until(lambda: len([f for f in open_files(daemon.pid)
                            if f.endswith("/backing")]) <= 1, "only one left")
    assert first.rest()[2] == image.data
    assert image.get()[2] == image.data


@pytest.mark.waits
def test_many_slow_readers(start_daemon, disk, origin):
    """More than there are turns, workers and patience: the rest is told to
    come again, and the daemon answers all the while."""
    daemon = start_daemon([disk], {"peers": {"readers_per_image": 2}})
    image = Exported(daemon, origin, images.random_bytes(16 * MIB))
    readers = [Slow(image) for _ in range(60)]
    try:
        wait_until(lambda: len(begun(readers)) >= 2, "two to begin")
        begin = time.monotonic()
        while len(begun(readers)) < len(readers):
            assert time.monotonic() - begin < scaled(60)
            asked = time.monotonic()
            assert daemon.client.get("a").state == "ready"
            assert get(daemon.data, "/healthz")[0] == 200
            assert image.get("manifest")[0] == 200
            assert time.monotonic() - asked < scaled(5)
            time.sleep(0.2)
        told = []
        for reader in readers[:20]:
            # The first bytes tell.
            head = reader.sock.recv(300).decode("latin-1")
            told.append(head.split()[1])
            if told[-1] == "503":
                assert "retry-after: " in head.lower()
        assert told.count("200") >= 1 and told.count("503") >= 1, told
    finally:
        for reader in readers:
            reader.close()
    wait_until(lambda: not [f for f in open_files(daemon.pid)
                            if f.endswith("/backing")], "all closed", 20)
    assert image.get()[2] == image.data


def test_the_daemon_ends_while_readers_wait(start_daemon, disk, origin):
    daemon = start_daemon([disk], {"peers": {"readers_per_image": 1}})
    image = Exported(daemon, origin, images.random_bytes(16 * MIB))
    readers = [Slow(image) for _ in range(5)]
    wait_until(lambda: begun(readers), "one to begin")
    begin = time.monotonic()
    daemon.stop(deadline=15)
    assert time.monotonic() - begin < scaled(10)
    for reader in readers:
        reader.close()
