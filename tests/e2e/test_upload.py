"""Images that are brought by HTTP: whole, in parts, and after everything that
can befall an upload."""

import gzip
import os
import select
import signal
import socket
import subprocess
import time

import grpc
import pytest

from lib import images
from lib.client import refused
from lib.deadline import scaled, wait_until
from lib.images import MIB
from lib.processes import clean_environment, end, run, spawn
from lib.ports import free_port
from lib.servers import Content, html

SIZE = 24 * MIB
DATA = images.random_bytes(SIZE)
OTHER = images.random_bytes(SIZE, 2)
# Bytes that were sent and had not reached the disk when all ended.
LOST = 6 * MIB


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def offset(self):
        return int(self.headers["upload-offset"])

    @property
    def text(self):
        return self.body.decode(errors="replace")


class Request:
    """One HTTP request over a raw socket: sent as slowly, and ended as early,
    as a test likes."""

    def __init__(self, address, method, path, headers=()):
        host, port = address.rsplit(":", 1)
        self.sock = socket.create_connection((host, int(port)), scaled(10))
        self.sock.settimeout(scaled(60))
        lines = [f"{method} {path} HTTP/1.1", "Host: bim", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in dict(headers).items()]
        self.method = method
        self.sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())

    def send(self, data):
        """Until all is sent, or the daemon answers or goes away."""
        view = memoryview(data)
        while view:
            readable, _, _ = select.select([self.sock], [self.sock], [], scaled(60))
            if readable:
                break
            try:
                view = view[self.sock.send(view[:65536]):]
            except (BrokenPipeError, ConnectionResetError):
                break
        return self

    def answer(self):
        got = b""
        try:
            while piece := self.sock.recv(65536):
                got += piece
        except ConnectionResetError:
            pass
        self.sock.close()
        return parsed(got)

    def close(self):
        """Without an answer, as a client that is gone."""
        self.sock.close()


def parsed(got):
    while True:
        head, _, body = got.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        status = int(lines[0].split()[1])
        if status != 100:
            break
        got = body
    headers = dict(line.split(": ", 1) for line in lines[1:])
    return Answer(status, {k.lower(): v for k, v in headers.items()}, body)


class Uploads:
    """The upload of one image of a daemon."""

    def __init__(self, daemon, name="a", **spec):
        self.daemon, self.name = daemon, name
        self.uuid = daemon.client.ensure(name, upload=True, **spec).image.spec.uuid

    @property
    def path(self):
        return f"/v1/images/{self.name}/{self.uuid}/upload"

    @property
    def url(self):
        return f"http://{self.daemon.data}{self.path}"

    def begin(self, method, **headers):
        return Request(self.daemon.data, method, self.path,
                       {k.replace("_", "-"): v for k, v in headers.items()})

    def head(self):
        return self.begin("HEAD").answer()

    def put(self, data=DATA, **headers):
        return self.begin("PUT", Content_Length=len(data), **headers).send(data).answer()

    def part(self, begin, stop, data=DATA, total=None):
        return self.put(data[begin:stop], Content_Range=(
            f"bytes {begin}-{stop - 1}/{total or len(data)}"))

    def patch(self, offset, data, **headers):
        return self.begin("PATCH", Content_Length=len(data), Upload_Offset=offset,
                          **headers).send(data).answer()

    def image(self):
        return self.daemon.client.get(self.name)

    def broken_off(self, at, data=DATA):
        """Sends `at` bytes of a PUT and goes away; what HEAD tells then."""
        request = self.begin("PUT", Content_Length=len(data))
        return self.leave(request.send(data[:at]))

    def leave(self, request):
        """Goes away once the daemon has begun to take what was sent; HEAD
        after it has seen that."""
        wait_until(lambda: self.image().state == "in-progress",
                   lambda: f"in progress; {self.image()}")
        request.close()
        wait_until(lambda: self.image().state == "pending",
                   lambda: f"pending; {self.image()}")
        return self.head()

    def assert_ready(self, data=DATA, deadline=30):
        ready = self.daemon.client.wait_ready(self.name, deadline)
        assert ready.current_sha512 == images.sha512(data)
        for copy in ready.copies:
            with open(copy.file_path, "rb") as file:
                assert file.read() == data
        return ready


@pytest.fixture
def daemon(start_daemon, disk):
    return start_daemon([disk])


@pytest.fixture
def upload(daemon):
    return Uploads(daemon)


def curl(*args, data=None):
    done = run(["curl", "-sS", "--noproxy", "*", "-m", "60", "-D", "-", *args],
               input=data)
    return parsed(done.stdout)


# ------------------------------------------------------------- whole files

def test_curl(upload, files):
    image = images.raw(files / "a.raw", SIZE)
    waiting = upload.daemon.client.wait_state("a", "pending")
    assert "upload" in waiting.message
    head = upload.head()
    assert (head.status, head.offset, head.headers["upload-complete"]) == (200, 0, "?0")
    assert "upload-length" not in head.headers
    answer = curl("-T", image.path, upload.url)
    assert answer.status == 201, answer.text
    # By then it is ready: who uploaded need not wait.
    ready = upload.image()
    assert ready.state == "ready" and ready.current_sha512 == image.sha512
    assert ready.copies[0].origin == "upload"
    assert ready.copies[0].wire_bytes == SIZE
    head = upload.head()
    assert head.headers["upload-complete"] == "?1" and head.offset == SIZE
    assert run(["curl", "-sS", "--noproxy", "*", upload.daemon.data_url("a", upload.uuid)]
               ).stdout == image.data
    upload.daemon.restart(kill=True)
    upload.assert_ready(image.data)


def test_chunked(upload):
    """Its length is not known before the end."""
    answer = curl("-T", "-", upload.url, data=DATA)
    assert answer.status == 201, answer.text
    upload.assert_ready()


def test_chunked_and_odd(upload, disk):
    answer = curl("-T", "-", upload.url, data=DATA + b"x")
    assert answer.status == 422 and "512" in answer.text
    assert upload.daemon.client.wait_state("a", "failed").message
    assert not disk.temp_files()


def test_a_qcow2(upload, files):
    image = images.qcow2(files / "a.qcow2", 64 * MIB)
    assert curl("-T", image.path, upload.url).status == 201
    ready = upload.assert_ready(image.data)
    assert (ready.format, ready.virtual_size) == ("qcow2", 64 * MIB)


def test_expect_100_continue(upload):
    answer = curl("-T", "-", "-H", "Expect: 100-continue", upload.url, data=DATA)
    assert answer.status == 201
    upload.assert_ready()


def test_zeros_become_holes(upload):
    data = DATA[:MIB] + bytes(30 * MIB) + DATA[:MIB]
    assert upload.put(data).status == 201
    assert upload.assert_ready(data).real_size < 4 * MIB


def test_two_disks(start_daemon, disks):
    """Uploaded once, copied to the other."""
    both = [disks.directory("one"), disks.directory("two")]
    upload = Uploads(start_daemon(both))
    assert upload.put().status == 201
    ready = upload.assert_ready()
    assert sorted(c.origin for c in ready.copies) == ["copy", "upload"]


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_compressed(upload, encoding):
    data = DATA[:4 * MIB] + bytes(4 * MIB)
    content = run([encoding, "-q", "-1", "-c"], input=data).stdout
    assert upload.put(content).status == 201
    copy = upload.assert_ready(data).copies[0]
    assert (copy.encoding, copy.wire_bytes) == (encoding, len(content))


def test_compressed_and_broken_off(upload):
    """Starts over: nobody can go on in the middle."""
    data = DATA[:8 * MIB]
    content = run(["gzip", "-1", "-c"], input=data).stdout
    assert upload.broken_off(len(content) // 2, content).offset == 0
    assert upload.put(content).status == 201
    upload.assert_ready(data)


# ------------------------------------------------------------------- parts

@pytest.mark.parametrize("how", ["patch", "put"])
def test_in_parts(upload, how):
    step = 5 * MIB + 12345
    for at in range(0, SIZE, step):
        stop = min(at + step, SIZE)
        if how == "put":
            answer = upload.part(at, stop)
        else:
            answer = upload.patch(at, DATA[at:stop],
                                  **({"Upload_Length": SIZE} if at == 0 else {}))
        assert answer.offset == stop, answer.text
        assert answer.status == (201 if stop == SIZE else 204)
        head = upload.head()
        assert head.offset == stop
        assert int(head.headers["upload-length"]) == SIZE
    upload.assert_ready()


@pytest.mark.parametrize("how", ["patch", "put"])
def test_a_connection_that_breaks(upload, how):
    head = upload.broken_off(15 * MIB)
    assert 15 * MIB - LOST <= head.offset <= 15 * MIB
    assert int(head.headers["upload-length"]) == SIZE
    assert head.headers["upload-complete"] == "?0"
    shown = upload.image()
    assert str(head.offset) in shown.message and str(SIZE) in shown.message
    if how == "patch":
        answer = upload.patch(head.offset, DATA[head.offset:])
    else:
        answer = upload.part(head.offset, SIZE)
    assert answer.status == 201, answer.text
    ready = upload.assert_ready()
    assert ready.copies[0].origin == "upload"


def test_it_breaks_many_times(upload):
    at = 0
    for stop in (3, 7, 8, 14, 20):
        request = upload.begin("PATCH", Content_Length=SIZE - at, Upload_Offset=at,
                               Upload_Length=SIZE)
        head = upload.leave(request.send(DATA[at:stop * MIB + 77]))
        assert at <= head.offset <= stop * MIB + 77
        at = head.offset
    assert at > 10 * MIB
    assert upload.patch(at, DATA[at:]).status == 201
    upload.assert_ready()


def test_kill_9_in_the_middle(upload):
    request = upload.begin("PUT", Content_Length=SIZE).send(DATA[:20 * MIB])
    wait_until(lambda: upload.image().copies[0].processed_bytes >= 12 * MIB, "12 MiB", 30)
    upload.daemon.kill9()
    request.close()
    upload.daemon.start()
    head = upload.head()
    assert head.status == 200 and 12 * MIB - LOST <= head.offset <= 20 * MIB
    assert int(head.headers["upload-length"]) == SIZE
    assert upload.patch(head.offset, DATA[head.offset:]).status == 201
    upload.assert_ready()


def test_kill_9_and_the_bytes_are_damaged(upload, disk):
    """What is promised was read again."""
    upload.broken_off(16 * MIB)
    upload.daemon.kill9()
    temp = disk.temp_file("a", upload.uuid)
    with open(temp, "r+b") as file:
        file.seek(6 * MIB)
        file.write(b"damage")
    upload.daemon.start()
    head = upload.head()
    assert head.offset <= 6 * MIB
    assert upload.patch(head.offset, DATA[head.offset:]).status == 201
    upload.assert_ready()


def test_a_restart_between_parts(upload):
    assert upload.part(0, 8 * MIB).status == 204
    upload.daemon.restart()
    head = upload.head()
    assert head.offset == 8 * MIB
    upload.daemon.restart()
    # Also without asking.
    assert upload.part(8 * MIB, SIZE).status == 201
    upload.assert_ready()


def test_starting_over(upload):
    """From offset 0, also with another file."""
    assert upload.part(0, 8 * MIB, OTHER).status == 204
    assert upload.put().status == 201
    upload.assert_ready()


# ------------------------------------------------------------ what is wrong

@pytest.mark.parametrize("offset", [1, 4 * MIB, 8 * MIB - 1, 8 * MIB + 1, SIZE])
def test_another_offset_than_expected(upload, offset):
    upload.part(0, 8 * MIB)
    answer = upload.patch(offset, DATA[offset:offset + 1000])
    assert answer.status == 409 and answer.offset == 8 * MIB, answer.text
    assert str(8 * MIB) in answer.text
    assert upload.part(8 * MIB, SIZE).status == 201
    upload.assert_ready()


def test_another_total_than_announced(upload):
    upload.part(0, 8 * MIB)
    answer = upload.part(8 * MIB, SIZE, total=SIZE + 512)
    assert answer.status == 400 and str(SIZE) in answer.text, answer.text
    assert upload.head().offset == 8 * MIB
    assert upload.part(8 * MIB, SIZE).status == 201
    upload.assert_ready()


@pytest.mark.parametrize("headers", [
    {"Content_Range": "bytes 0-99"}, {"Content_Range": "bytes 9-5/100"},
    {"Content_Range": "lines 1-2/3"}, {"Content_Range": "bytes 0-99/50"},
    {"Content_Range": f"bytes 0-999/{SIZE}"}])
def test_a_content_range_that_is_none(upload, headers):
    """The last one is of another length than the body."""
    answer = upload.begin("PUT", Content_Length=100, **headers).send(DATA[:100]).answer()
    assert answer.status == 400, answer.text
    assert upload.put().status == 201
    upload.assert_ready()


@pytest.mark.parametrize("headers", [
    {}, {"Upload_Offset": "x"}, {"Upload_Offset": "-1"},
    {"Upload_Offset": "99999999999999999999999"},
    {"Upload_Offset": "0", "Upload_Length": "many"}])
def test_a_patch_that_is_none(upload, headers):
    answer = upload.begin("PATCH", Content_Length=100, **headers
                          ).send(DATA[:100]).answer()
    assert answer.status == 400, answer.text
    assert upload.head().offset == 0


def test_more_than_announced(upload):
    """A part that goes beyond the total."""
    upload.patch(0, DATA[:MIB], Upload_Length=4 * MIB)
    answer = upload.patch(MIB, DATA[MIB:6 * MIB])
    assert answer.status == 400 and str(4 * MIB) in answer.text, answer.text
    assert upload.image().state != "ready"
    assert upload.put().status == 201
    upload.assert_ready()


def test_less_than_announced(upload):
    """curl that was ended: the rest is missing."""
    head = upload.broken_off(SIZE - 512)
    assert head.headers["upload-complete"] == "?0" and head.offset <= SIZE - 512
    assert upload.image().state == "pending"


@pytest.mark.parametrize("size", [1, 511, 513, MIB + 1])
def test_an_odd_size(upload, disk, size):
    answer = upload.put(DATA[:size])
    assert answer.status == 422 and "512" in answer.text, answer.text
    assert not disk.temp_files()
    # It may be tried again, with a file that is one.
    assert upload.put().status == 201
    upload.assert_ready()


def test_nothing(upload):
    assert upload.put(b"").status in (400, 422)
    assert upload.put().status == 201


def test_a_page(upload, disk):
    answer = upload.put(html().data)
    assert answer.status == 422 and "HTML" in answer.text, answer.text
    assert not disk.temp_files()
    assert "HTML" in upload.daemon.client.wait_state("a", "failed").message


def test_a_page_is_refused_before_all_of_it_came(upload):
    """A client that sends gigabytes learns it early."""
    request = upload.begin("PUT", Content_Length=64 << 30)
    request.send(html().data.ljust(MIB))
    answer = request.answer()
    assert answer.status == 422 and "HTML" in answer.text


def test_larger_than_allowed(start_daemon, disk):
    upload = Uploads(start_daemon([disk], {"sources": {"max_image_size": "8MiB"}}))
    answer = upload.put(DATA)
    assert answer.status in (400, 413, 422) and "max_image_size" in answer.text
    answer = curl("-T", "-", upload.url, data=DATA)
    assert answer.status in (400, 413, 422) and "max_image_size" in answer.text
    assert upload.put(DATA[:8 * MIB]).status == 201


def test_another_size_than_wanted(start_daemon, disk):
    upload = Uploads(start_daemon([disk]), size=SIZE)
    answer = upload.put(DATA[:SIZE // 2])
    assert answer.status == 422 and str(SIZE) in answer.text, answer.text
    assert upload.put().status == 201
    upload.assert_ready()


@pytest.mark.parametrize("how", ["put", "parts", "chunked"])
def test_the_wrong_digest(daemon, disk, how):
    upload = Uploads(daemon, sha512=images.sha512(DATA))
    if how == "put":
        answer = upload.put(OTHER)
    elif how == "chunked":
        answer = curl("-T", "-", upload.url, data=OTHER)
    else:
        upload.part(0, 8 * MIB, OTHER)
        answer = upload.part(8 * MIB, SIZE, OTHER)
    assert answer.status == 422, answer.text
    assert images.sha512(OTHER) in answer.text and images.sha512(DATA) in answer.text
    failed = daemon.client.wait_state("a", "failed")
    assert images.sha512(OTHER) in failed.message
    assert not disk.temp_files() and not disk.ready_file("a", upload.uuid).exists()
    head = upload.head()
    assert head.offset == 0
    # The right one may come now.
    assert upload.put().status == 201
    upload.assert_ready()


def test_the_right_digests(daemon):
    upload = Uploads(daemon, sha512=images.sha512(DATA), sha256=images.sha256(DATA))
    assert upload.part(0, 8 * MIB).status == 204
    assert upload.part(8 * MIB, SIZE).status == 201
    assert upload.assert_ready().current_sha256 == images.sha256(DATA)


# ------------------------------------------------------------ who may upload

def test_two_at_once(upload):
    first = upload.begin("PUT", Content_Length=SIZE).send(DATA[:8 * MIB])
    wait_until(lambda: upload.image().state == "in-progress", "the first to begin")
    for answer in (upload.put(OTHER), upload.patch(0, OTHER[:100]),
                   upload.part(8 * MIB, SIZE, OTHER)):
        assert answer.status == 423, answer.text
    # Looking is allowed.
    head = upload.head()
    assert head.status == 200 and head.offset <= 8 * MIB
    assert first.send(DATA[8 * MIB:]).answer().status == 201
    upload.assert_ready()


def test_two_images_at_once(daemon):
    a, b = Uploads(daemon, "a"), Uploads(daemon, "b")
    first = a.begin("PUT", Content_Length=SIZE).send(DATA[:MIB])
    assert b.put(OTHER).status == 201
    assert first.send(DATA[MIB:]).answer().status == 201
    a.assert_ready()
    b.assert_ready(OTHER)


def test_not_an_upload(daemon, origin):
    uuid = daemon.client.ensure("b", origin.serve("/b", Content(DATA))).image.spec.uuid
    daemon.client.wait_ready("b")
    path = f"/v1/images/b/{uuid}/upload"
    for method in ("PUT", "HEAD"):
        body = DATA[:512] if method == "PUT" else b""
        answer = Request(daemon.data, method, path, {"Content-Length": len(body)}
                         ).send(body).answer()
        assert answer.status == 409 and "upload-offset" not in answer.headers


def test_unknown(daemon):
    for path in ("/v1/images/nobody/u/upload", "/v1/images/a%2f..%2fb/u/upload"):
        answer = Request(daemon.data, "PUT", path, {"Content-Length": 512}
                         ).send(DATA[:512]).answer()
        assert answer.status in (400, 404), answer.text


def test_ready_already(upload):
    assert upload.put().status == 201
    for answer in (upload.put(OTHER), upload.part(0, MIB, OTHER)):
        assert answer.status == 409, answer.text
    upload.assert_ready()


def test_other_methods(upload):
    for method in ("GET", "DELETE", "POST"):
        answer = upload.begin(method, Content_Length=0).answer()
        assert answer.status == 405 and "PATCH" in answer.headers["allow"]


@pytest.mark.parametrize("spec", [{"url": "http://127.0.0.1/a"},
                                  {"peers": ["127.0.0.1:9500"], "uuid": "u"}])
def test_an_upload_has_no_other_source(daemon, spec):
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        daemon.client.ensure("a", upload=True, **spec)


# ------------------------------------------------------------- what happens

def test_an_abandoned_one_expires(start_daemon, disk):
    upload = Uploads(start_daemon([disk], {"uploads": {"expiry": "2s"}}))
    assert upload.broken_off(12 * MIB).offset > 0
    assert disk.temp_files()
    wait_until(lambda: not disk.temp_files(), "the bytes dropped", 20)
    upload.daemon.client.wait_image("a", lambda i: "abandoned" in i.message, "told so")
    assert upload.head().offset == 0
    assert upload.put().status == 201
    upload.assert_ready()


def test_an_abandoned_one_expires_after_a_restart(start_daemon, disk):
    upload = Uploads(start_daemon([disk], {"uploads": {"expiry": "2s"}}))
    assert upload.broken_off(12 * MIB).offset > 0
    upload.daemon.restart(kill=True)
    upload.daemon.client.wait_image("a", lambda i: "abandoned" in i.message, "told so")
    assert not disk.temp_files()
    assert upload.put().status == 201
    upload.assert_ready()


@pytest.mark.parametrize("what", ["plain", "gzip"])
def test_the_last_step_fails_for_the_disks_sake(start_daemon, disk, what):
    """All bytes came, and are right: they are not thrown away."""
    upload = Uploads(start_daemon([disk], env={
        "BIM_FAILPOINTS": "store.commit.before_fsync=error:5"}))
    data = DATA if what == "plain" else gzip.compress(DATA, 1)
    answer = upload.put(data)
    assert answer.status == 503, answer.text
    failed = upload.daemon.client.wait_state("a", "failed")
    assert "Input/output error" in failed.message
    assert failed.copies[0].HasField("next_attempt"), "not for good"
    upload.daemon.restart(env={})
    head = upload.head()
    if what == "gzip":  # what was decoded cannot be gone on with
        assert head.offset == 0
        assert upload.put(data).status == 201
    else:
        assert head.offset == SIZE and int(head.headers["upload-length"]) == SIZE
        answer = upload.patch(SIZE, b"")
        assert answer.status == 201, answer.text
    upload.assert_ready()


def test_bytes_outlive_a_failure_of_the_disk(start_daemon, disk):
    """What came is kept for as long as that of any other upload, not only
    until the image may be tried again."""
    upload = Uploads(start_daemon([disk], {"uploads": {"expiry": "1h"}}, env={
        "BIM_FAILPOINTS": "store.ingest.write=error:28@12"}))
    answer = upload.put()
    assert answer.status == 507, answer.text
    failed = upload.daemon.client.wait_state("a", "failed")
    assert "No space" in failed.message
    # The window of backoff.first, and then some.
    pending = upload.daemon.client.wait_state("a", "pending", 20)
    assert "rest" in pending.message
    upload.daemon.restart(env={})
    head = upload.head()
    assert 4 * MIB < head.offset < SIZE
    assert upload.patch(head.offset, DATA[head.offset:]).status == 201
    upload.assert_ready()


def test_a_full_disk_is_not_an_archive_that_is_broken(start_daemon, disk):
    data = gzip.compress(DATA, 1)
    upload = Uploads(start_daemon([disk], env={
        "BIM_FAILPOINTS": "store.ingest.write=error:28@12"}))
    assert upload.put(data).status == 507
    failed = upload.daemon.client.wait_state("a", "failed")
    assert "No space" in failed.message
    assert failed.copies[0].HasField("next_attempt"), "not for good"
    upload.daemon.restart(env={})
    assert upload.put(data).status == 201
    upload.assert_ready()


def threads_of(daemon):
    names = set()
    for task in os.listdir(f"/proc/{daemon.pid}/task"):
        try:
            with open(f"/proc/{daemon.pid}/task/{task}/comm") as file:
                names.add(file.read().strip())
        except FileNotFoundError:
            pass
    return names


def test_one_that_waits_has_no_threads(upload):
    stages = {"bim-write", "bim-hash", "bim-sync"}
    total = {"Upload_Length": SIZE}
    at = 0
    for stop in (5 * MIB + 77, 5 * MIB + 78, 17 * MIB):
        assert upload.patch(at, DATA[at:stop], **total).status == 204
        at = stop
        wait_until(lambda: not stages & threads_of(upload.daemon),
                   lambda: f"no thread of {threads_of(upload.daemon)}")
    assert upload.patch(at, DATA[at:]).status == 201
    upload.assert_ready()


@pytest.mark.parametrize("idle", ["client", "nobody"])
def test_removed_meanwhile(upload, disk, idle):
    """A client that says nothing does not hold it up."""
    if idle == "client":
        request = upload.begin("PUT", Content_Length=SIZE).send(DATA[:8 * MIB])
        wait_until(lambda: upload.image().copies[0].processed_bytes > MIB, "bytes")
    else:
        upload.broken_off(8 * MIB)
    begin = time.monotonic()
    upload.daemon.client.remove("a")
    assert time.monotonic() - begin < scaled(5)
    assert not disk.image_files()
    if idle == "client":
        # It hears of it at last.
        try:
            answer = request.send(DATA[8 * MIB:]).answer()
            assert answer.status >= 400
        except (OSError, ValueError, IndexError):
            pass
    assert upload.head().status == 404


def test_the_daemon_ends_in_the_middle(upload):
    """SIGTERM: a client that is slow does not keep it; what came is kept."""
    request = upload.begin("PUT", Content_Length=SIZE).send(DATA[:12 * MIB])
    wait_until(lambda: upload.image().copies[0].processed_bytes >= 6 * MIB, "bytes", 30)
    begin = time.monotonic()
    upload.daemon.stop(deadline=15)
    assert time.monotonic() - begin < scaled(12)
    request.close()
    upload.daemon.start()
    head = upload.head()
    assert head.offset >= 12 * MIB - LOST
    assert upload.patch(head.offset, DATA[head.offset:]).status == 201
    upload.assert_ready()


def fill(disk, leave):
    filler = disk.path / "filler"
    with open(filler, "wb") as file:
        free = os.statvfs(disk.path)
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - leave)
    return filler


def test_a_full_disk(start_daemon, disks):
    """507, and it goes on once there is space."""
    small = disks.loop("small", mib=64)
    upload = Uploads(start_daemon([small]))
    filler = fill(small, 10 * MIB)
    answer = upload.put()
    assert answer.status == 507, (answer.status, answer.text)
    assert "space" in answer.text.lower()
    filler.unlink()
    head = upload.head()
    assert head.status == 200 and head.offset <= 12 * MIB
    answer = upload.patch(head.offset, DATA[head.offset:], Upload_Length=SIZE)
    assert answer.status == 201, answer.text
    upload.assert_ready()


def test_a_full_disk_keeps_what_came(start_daemon, disks):
    """Not only that it works again: it is not all sent again."""
    small = disks.loop("small", mib=64)
    upload = Uploads(start_daemon([small]))
    assert upload.part(0, 8 * MIB).status == 204
    filler = fill(small, 2 * MIB)
    answer = upload.part(8 * MIB, SIZE)
    assert answer.status == 507, (answer.status, answer.text)
    filler.unlink()
    head = upload.head()
    # What was acknowledged is there.
    assert head.offset >= 8 * MIB
    assert upload.part(head.offset, SIZE).status == 201
    upload.assert_ready()


def test_a_slow_client(upload):
    """A byte now and then; the daemon serves others meanwhile."""
    request = upload.begin("PUT", Content_Length=SIZE)
    for at in range(0, 4096, 64):
        request.send(DATA[at:at + 64])
    assert upload.daemon.client.get("a").state in ("pending", "starting",
                                                   "in-progress")
    other = Uploads(upload.daemon, "b")
    assert other.put(OTHER).status == 201
    assert request.send(DATA[4096:]).answer().status == 201
    upload.assert_ready()


def test_many_silent_clients(daemon, start_daemon, disks):
    """As many as there are workers, and more: others are still served."""
    uploads = [Uploads(daemon, f"i{n}") for n in range(24)]
    silent = [u.begin("PUT", Content_Length=SIZE).send(DATA[:4096]) for u in uploads]
    try:
        last = Uploads(daemon, "last")
        assert last.head().status == 200
        assert last.put().status == 201
        assert curl(f"http://{daemon.data}/healthz").status == 200
    finally:
        for request in silent:
            request.close()


# -------------------------------------------------------------- `bim` itself

def test_bim_image_upload(daemon, files):
    image = images.qcow2(files / "a.qcow2", 64 * MIB)
    done = daemon.cli_json("image", "upload", "a", image.path, "--sha512", image.sha512)
    assert done["created"] and done["image"]["state"] == "ready"
    assert done["image"]["current_sha512"] == image.sha512
    # Again: it is there, nothing is sent.
    again = daemon.cli_json("image", "upload", "a", image.path, "--sha512", image.sha512)
    assert not again["created"] and again["image"]["state"] == "ready"


def test_bim_shows_progress_on_a_terminal_only(daemon, files):
    image = images.raw(files / "a.raw", SIZE)
    done = daemon.cli("image", "upload", "a", image.path, check=0)
    assert done.stderr == ""
    script = f"{daemon.binary} image upload b {image.path} --address {daemon.address}"
    shown = run(["script", "-qec", script, "/dev/null"]).stdout.decode()
    assert "%" in shown, shown


def test_bim_with_a_wrong_file(daemon, files, disk):
    image = images.raw(files / "a.raw", MIB)
    other = images.sha512(b"other")
    done = daemon.cli("image", "upload", "a", image.path, "--sha512", other, check=6)
    assert image.sha512 in done.stderr
    page = files / "page"
    page.write_bytes(html().data)
    done = daemon.cli("image", "upload", "b", page, check=6)
    assert "HTML" in done.stderr
    for path in ("/no/such/file", files):
        done = daemon.cli("image", "upload", "c", path)
        assert done.returncode in (1, 2) and str(path) in done.stderr
    assert not disk.temp_files()


def test_bim_goes_on_where_it_was_killed(start_daemon, disk, files):
    """Held back by a limit, killed in the middle, and run again."""
    daemon = start_daemon([disk], {"limits": {"download_rate": 8 * MIB}})
    image = images.raw(files / "a.raw", 32 * MIB)
    argv = [daemon.binary, "image", "upload", "a", image.path, "--address",
            daemon.address]
    process = spawn(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, env=clean_environment())
    try:
        wait_until(lambda: any(i.copies and i.copies[0].processed_bytes > 12 * MIB
                               for i in daemon.client.list_all()), "12 MiB", 30)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    daemon.client.wait_state("a", "pending")
    done = daemon.cli_json("image", "upload", "a", image.path)
    assert done["image"]["state"] == "ready"
    assert done["image"]["current_sha512"] == image.sha512
    # By both together: little was sent twice.
    assert int(done["image"]["copies"][0]["wire_bytes"]) <= 32 * MIB + LOST


def test_bim_survives_a_restart_of_the_daemon(start_daemon, disk, files):
    daemon = start_daemon([disk], {"limits": {"download_rate": 8 * MIB},
                                   "api": {"data_listen": f"127.0.0.1:{free_port()}"}})
    image = images.raw(files / "a.raw", 32 * MIB)
    argv = [daemon.binary, "image", "upload", "a", image.path, "--address",
            f"unix:{daemon.socket}"]
    process = spawn(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, env=clean_environment())
    try:
        wait_until(lambda: any(i.copies and i.copies[0].processed_bytes > 12 * MIB
                               for i in daemon.client.list_all()), "12 MiB", 30)
        daemon.restart(kill=True)
        out, err = process.communicate(timeout=scaled(40))
        assert process.returncode == 0, err
    finally:
        end(process)
    assert daemon.client.wait_ready("a").current_sha512 == image.sha512


def test_bim_with_another_file_of_another_size(upload, files):
    """An upload of something else has begun."""
    upload.part(0, 8 * MIB)
    image = images.raw(files / "b.raw", MIB)
    done = upload.daemon.cli("image", "upload", "a", image.path, "--uuid", upload.uuid)
    assert done.returncode == 5 and str(SIZE) in done.stderr, done.stderr
