"""What would fail again is not tried again until the spec changes."""

import grpc
import pytest

from lib import images
from lib.client import refused
from lib.servers import Answer, Content

DATA = images.random_bytes(2 * images.MIB)


@pytest.fixture
def client(start_daemon, disk):
    return start_daemon([disk], {"backoff": {"first": "100ms", "max": "100ms"},
                                 "sources": {"retry_tries": 2,
                                             "retry_first": "20ms",
                                             "retry_max": "20ms"}}).client


def assert_for_good(client, origin, path, requests=1):
    """Failed, and it stays so while others are tried again and again."""
    failed = client.wait_state("a", "failed")
    copy = failed.copies[0]
    assert copy.state == "failed" and not copy.HasField("next_attempt")
    assert copy.message and "\n" not in copy.message
    # Another image with the same windows is the clock.
    client.ensure("clock", origin.serve("/clock", Answer(503)))
    client.wait_image("clock", lambda i: i.copies[0].attempts >= 4, "tried 4 times")
    assert origin.count(path) == requests
    assert client.get("a").copies[0].state == "failed"
    return copy.message


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 418, 451])
def test_statuses(client, origin, disk, status):
    client.ensure("a", origin.serve("/a", Answer(status)))
    message = assert_for_good(client, origin, "/a")
    assert str(status) in message
    assert not disk.temp_files()


@pytest.mark.parametrize("kind", ["sha512", "sha256"])
def test_wrong_checksum(client, origin, disk, kind):
    expected = "ab" * (64 if kind == "sha512" else 32)
    found = getattr(images, kind)(DATA)
    uuid = client.ensure("a", origin.serve("/a", Content(DATA)), **{kind: expected}
                         ).image.spec.uuid
    message = assert_for_good(client, origin, "/a")
    # Both digests are named, and nothing is kept.
    assert expected in message and found in message, message
    assert not disk.ready_file("a", uuid).exists()
    assert not disk.temp_files()
    assert [f for f in disk.image_files() if f.startswith(f"a-{uuid}/")] == []


def test_right_sha512_wrong_sha256(client, origin, disk):
    client.ensure("a", origin.serve("/a", Content(DATA)),
                  sha512=images.sha512(DATA), sha256="cd" * 32)
    message = assert_for_good(client, origin, "/a")
    assert "cd" * 32 in message and images.sha256(DATA) in message


def test_wrong_checksum_on_two_disks(start_daemon, disks, origin):
    both = [disks.directory("one"), disks.directory("two")]
    client = start_daemon(both).client
    client.ensure("a", origin.serve("/a", Content(DATA)), sha512="ab" * 64)
    failed = client.wait_image("a", lambda i: all(c.state == "failed"
                                                  for c in i.copies), "failed on both")
    for disk, copy in zip(both, failed.copies):
        assert "ab" * 64 in copy.message
        assert not disk.temp_files()
    assert origin.count("/a") <= 2


@pytest.mark.parametrize("size", [len(DATA) - 512, len(DATA) + 512])
def test_wrong_size(client, origin, disk, size):
    client.ensure("a", origin.serve("/a", Content(DATA)), size=size)
    message = assert_for_good(client, origin, "/a")
    assert str(size) in message and str(len(DATA)) in message
    assert not disk.temp_files()
    # It was known before the first byte was stored.
    assert origin.requests_of("/a")[0].body_sent <= len(DATA)


@pytest.mark.parametrize("size", [len(DATA) - 512, len(DATA) + 512])
def test_wrong_size_when_no_length_is_told(client, origin, disk, size):
    client.ensure("a", origin.serve("/a", Content(DATA, no_length=True)), size=size)
    message = assert_for_good(client, origin, "/a")
    assert str(size) in message
    assert not disk.temp_files()


def test_a_new_spec_is_tried(client, origin):
    url = origin.serve("/a", Answer(404), Content(DATA))
    uuid = client.ensure("a", url).image.spec.uuid
    assert_for_good(client, origin, "/a")
    # Another spec under the uuid needs a Remove first.
    with refused(grpc.StatusCode.ALREADY_EXISTS):
        client.ensure("a", url, uuid=uuid, sha512=images.sha512(DATA))
    client.remove("a")
    client.ensure("a", url, uuid=uuid, sha512=images.sha512(DATA))
    client.wait_ready("a")


def test_not_tried_again_by_a_restart(start_daemon, origin, disk):
    daemon = start_daemon([disk])
    daemon.client.ensure("a", origin.serve("/a", Content(DATA)), sha512="ab" * 64)
    before = daemon.client.wait_state("a", "failed")
    daemon.restart()
    after = daemon.client.wait_state("a", "failed")
    assert after.copies[0].message == before.copies[0].message
    assert origin.count("/a") == 1


def test_another_image_is_not_concerned(client, origin):
    client.ensure("bad", origin.serve("/bad", Answer(404)))
    client.ensure("good", origin.serve("/good", Content(DATA)))
    client.wait_ready("good")
    client.wait_state("bad", "failed")
