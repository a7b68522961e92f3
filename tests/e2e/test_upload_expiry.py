"""What of an upload is kept when its disk failed, and for how long."""

import os

import pytest

from lib import images
from lib.deadline import wait_until
from lib.images import MIB
from lib.processes import run
from test_upload import DATA, SIZE, Uploads, fill, threads_of

FULL = {"BIM_FAILPOINTS": "store.ingest.write=error:28@12"}


def failed_by_the_disk(start_daemon, disk, expiry):
    upload = Uploads(start_daemon(
        [disk], {"uploads": {"expiry": expiry}, "backoff": {"first": "1s"}}, env=FULL))
    assert upload.put().status == 507
    failed = upload.daemon.client.wait_state("a", "failed")
    assert "No space" in failed.message and failed.copies[0].HasField("next_attempt")
    return upload


def waiting_for_the_rest(upload):
    """Behind the first window of the backoff."""
    return upload.daemon.client.wait_image(
        "a", lambda i: i.state == "pending" and "rest" in i.message, "for its rest", 20)


def test_they_outlive_the_window_and_a_restart(start_daemon, disk):
    upload = failed_by_the_disk(start_daemon, disk, "1h")
    waiting_for_the_rest(upload)
    assert disk.temp_files()
    for kill in (True, False):
        upload.daemon.restart(kill=kill, env={})
        assert disk.temp_files()
    head = upload.head()
    assert 0 < head.offset < SIZE and int(head.headers["upload-length"]) == SIZE
    assert upload.part(head.offset, SIZE).status == 201
    upload.assert_ready()


def test_they_are_dropped_at_last(start_daemon, disk):
    upload = failed_by_the_disk(start_daemon, disk, "3s")
    waiting_for_the_rest(upload)
    wait_until(lambda: not disk.temp_files(), "the bytes dropped", 20)
    upload.daemon.client.wait_image("a", lambda i: "abandoned" in i.message, "told so")
    assert upload.head().offset == 0
    upload.daemon.restart(env={})
    assert upload.head().offset == 0
    assert upload.put().status == 201
    upload.assert_ready()


def test_they_are_dropped_after_a_restart(start_daemon, disk):
    upload = failed_by_the_disk(start_daemon, disk, "3s")
    upload.daemon.restart(kill=True, env={})
    upload.daemon.client.wait_image("a", lambda i: "abandoned" in i.message, "told so")
    assert not disk.temp_files()
    assert upload.put().status == 201
    upload.assert_ready()


def test_a_commit_that_failed_is_dropped_at_last(start_daemon, disk):
    """Also when all bytes came."""
    upload = Uploads(start_daemon([disk], {"uploads": {"expiry": "3s"}}, env={
        "BIM_FAILPOINTS": "store.commit.before_fsync=error:5"}))
    assert upload.put().status == 503
    upload.daemon.client.wait_image("a", lambda i: "abandoned" in i.message, "told so")
    assert not disk.temp_files() and upload.head().offset == 0
    upload.daemon.restart(env={})
    assert upload.put().status == 201
    upload.assert_ready()


@pytest.mark.parametrize("way", ["put", "patch", "put from the start"])
def test_a_commit_that_failed_is_done_again(start_daemon, disk, way):
    """By a request that brings nothing, by one with the last bytes, or anew."""
    upload = Uploads(start_daemon([disk], env={
        "BIM_FAILPOINTS": "store.commit.before_fsync=error:5"}),
        sha512=images.sha512(DATA))
    middle = 10 * MIB + 512
    assert upload.part(0, middle).status == 204
    assert upload.part(middle, SIZE).status == 503
    upload.daemon.restart(env={})
    head = upload.head()
    assert head.offset == SIZE
    assert head.headers["upload-complete"] == "?0"
    assert not disk.ready_file("a", upload.uuid).exists()
    if way == "put":
        # Bytes that are there already are not expected again.
        assert upload.part(middle, SIZE).status == 409
        assert upload.part(SIZE - 512, SIZE).status == 409
        answer = upload.patch(SIZE, b"", Upload_Length=SIZE)
    elif way == "patch":
        answer = upload.patch(head.offset, DATA[head.offset:])
    else:
        answer = upload.put()
    assert answer.status == 201, answer.text
    upload.assert_ready()
    assert not disk.temp_files()


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "xz"])
def test_an_archive_and_a_disk_that_is_full(start_daemon, disks, encoding):
    """A disk that has no space is told as such: another try may succeed."""
    small = disks.loop("small", mib=64)
    upload = Uploads(start_daemon([small]))
    filler = fill(small, 10 * MIB)
    archive = run([encoding, "-q", "-1", "-c"], input=DATA).stdout
    answer = upload.put(archive)
    assert answer.status == 507 and "space" in answer.text.lower(), answer.text
    failed = upload.daemon.client.wait_state("a", "failed")
    assert "space" in failed.message.lower()
    assert failed.copies[0].HasField("next_attempt"), "not for good"
    # What was decoded takes no place of what is needed now.
    assert os.statvfs(small.path).f_bavail * os.statvfs(small.path).f_frsize > 8 * MIB
    filler.unlink()
    assert upload.put(archive).status == 201
    assert upload.assert_ready().copies[0].encoding == encoding


def test_digests_go_on_after_a_pause(start_daemon, disk):
    """No thread is there between the halves; the digests are of both."""
    upload = Uploads(start_daemon([disk]), sha512=images.sha512(DATA),
                     sha256=images.sha256(DATA))
    assert upload.part(0, SIZE // 2).status == 204
    stages = {"bim-write", "bim-hash", "bim-sync"}
    wait_until(lambda: not stages & threads_of(upload.daemon),
               lambda: f"no thread of {threads_of(upload.daemon)}")
    assert upload.part(SIZE // 2, SIZE).status == 201
    assert upload.assert_ready().current_sha256 == images.sha256(DATA)
    assert not stages & threads_of(upload.daemon)
