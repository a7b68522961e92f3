"""Uploads to a data source, as the control plane passes them on."""

import pytest

from lib import images
from lib.deadline import wait_until
from lib.images import MIB
from lib.longhorn_daemon import FORM_HEADERS, SlowUpload, form, request

DATA = images.random_bytes(4 * MIB + 512, 5)
SUM = images.sha512(DATA)
NAME, UUID = "a", "6f7a"
TARGET = f"/v1/file?action=upload&size={len(DATA)}"


@pytest.fixture
def source(start_source, disk):
    return start_source(disk, NAME, UUID, "upload", {})


def failed(source, deadline=5):
    """It fails, says why, and leaves nothing on the disk."""
    info = source.wait("failed", deadline=deadline)
    assert info["message"].strip()
    wait_until(lambda: source.tmp_names() == [],
               lambda: f"nothing in tmp; {source.tmp_names()}", 5)
    return info


def error(reply):
    assert reply.status in (400, 409, 500), f"{reply.status}: {reply.text}"
    assert reply.text.strip()
    return reply


def test_an_upload(source):
    info = source.wait("pending")
    assert info["progress"] == 0 and source.tmp_names() == []
    source.upload(DATA).ok()
    info = source.wait("ready-for-transfer")
    assert info["currentChecksum"] == SUM
    assert info["size"] == info["processedSize"] == len(DATA)
    assert info["progress"] == 100
    assert source.path.read_bytes() == DATA
    assert source.shared_names() == [f"{NAME}-{UUID}", f"{NAME}-{UUID}.cfg"]


def test_with_all_that_the_control_plane_sends(source):
    source.upload(DATA, **{"file-path": "/etc/passwd", "uuid": "another",
                           "expected-checksum": "", "disk-uuid": ""}).ok()
    info = source.wait("ready-for-transfer")
    assert info["uuid"] == UUID and source.path.read_bytes() == DATA


def test_the_checksum_is_that_of_the_command_line(start_source, disk):
    source = start_source(disk, NAME, UUID, "upload", {}, checksum=SUM)
    source.upload(DATA).ok()
    info = source.wait("ready-for-transfer")
    assert info["expectedChecksum"] == info["currentChecksum"] == SUM


def test_a_wrong_checksum(start_source, disk):
    source = start_source(disk, NAME, UUID, "upload", {}, checksum="0" * 128)
    reply = source.upload(DATA)
    assert reply.status in (200, 400, 500)
    assert "512" in failed(source, 10)["message"]


def test_other_parts_are_passed_over(source):
    other = form(b"about it", "comment").removesuffix(b"--\r\n") + b"\r\n"
    reply = request(source.address, "POST", TARGET, body=other + form(DATA),
                    headers=FORM_HEADERS, deadline=60)
    reply.ok()
    source.wait("ready-for-transfer")
    assert source.path.read_bytes() == DATA


def test_without_the_part(source):
    error(source.upload(DATA, part="file"))
    info = source.info()
    assert info["state"] in ("pending", "failed")
    assert source.tmp_names() == []


def test_what_is_no_form(source):
    reply = request(source.address, "POST", TARGET, body=DATA,
                    headers={"Content-Type": "application/octet-stream"})
    error(reply)
    assert source.info()["state"] in ("pending", "failed")
    assert source.tmp_names() == []


@pytest.mark.parametrize("size", [len(DATA) + 512, len(DATA) - 512,
                                  len(DATA) + 100 * MIB, 512])
def test_another_size_than_announced(source, size):
    error(source.upload(DATA, size=size))
    info = failed(source)
    assert str(size) in info["message"]


@pytest.mark.parametrize("size", [1000, len(DATA) + 1, -512, "x", "", 1 << 62,
                                  "9" * 30])
def test_a_size_that_cannot_be(source, size):
    error(source.upload(DATA, size=size)).bad("size")
    assert source.info()["state"] in ("pending", "failed")
    assert source.tmp_names() == []


def test_no_size(source):
    reply = request(source.address, "POST", "/v1/file?action=upload",
                    body=form(DATA), headers=FORM_HEADERS)
    reply.bad("size")
    assert source.tmp_names() == []


def test_progress_and_abort(source):
    upload = SlowUpload(source.address, TARGET, DATA, 3 * MIB)
    def under_way():
        info = source.info()
        assert info["state"] in ("pending", "starting", "in-progress"), info
        return info["state"] == "in-progress" and info["processedSize"] >= 2 * MIB
    wait_until(under_way, "2 MiB to be processed")
    assert 40 <= source.info()["progress"] <= 80
    assert f"{NAME}-{UUID}.tmp" in source.tmp_names()
    assert not source.path.exists()
    upload.abort()
    failed(source, 5)


def test_abort_at_once(source):
    upload = SlowUpload(source.address, TARGET, DATA, 0)
    upload.abort()
    # Nothing came, so it may as well never have begun.
    wait_until(lambda: source.info()["state"] in ("pending", "failed"), "an end", 5)
    wait_until(lambda: source.tmp_names() == [], "nothing in tmp", 5)


def test_a_second_upload_at_the_same_time(source):
    upload = SlowUpload(source.address, TARGET, DATA, 2 * MIB)
    wait_until(lambda: source.info()["state"] == "in-progress", "it to begin")
    error(source.upload(images.random_bytes(len(DATA), 9)))
    upload.finish().ok()
    source.wait("ready-for-transfer")
    assert source.path.read_bytes() == DATA


def test_a_second_upload_afterwards(source):
    source.upload(DATA).ok()
    source.wait("ready-for-transfer")
    before = source.path.stat()
    error(source.upload(images.random_bytes(len(DATA), 9)))
    after = source.path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert source.info()["state"] == "ready-for-transfer"
    assert source.path.read_bytes() == DATA


def test_an_upload_to_one_that_downloads(start_source, disk, nginx, files):
    images.raw(files / "a", MIB)
    source = start_source(disk, NAME, UUID, "download", {"url": nginx.url("a")})
    source.wait("ready-for-transfer")
    error(source.upload(DATA))
    assert source.path.read_bytes() == (files / "a").read_bytes()


@pytest.mark.waits
@pytest.mark.timeout(200)
def test_an_upload_that_stops(source):
    upload = SlowUpload(source.address, TARGET, DATA, MIB)
    info = failed(source, 60)
    assert any(words in info["message"].lower() for words in (
        "30 s", "timeout", "no data", "nothing came")), info
    upload.abort()


@pytest.mark.waits
@pytest.mark.timeout(200)
def test_an_upload_that_never_begins(source):
    source.wait("pending")
    info = failed(source, 90)
    assert info["message"] == (
        "timeout waiting for the datasource file processing begin")
    error(source.upload(DATA))
    assert source.tmp_names() == []
