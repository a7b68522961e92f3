"""At most ten redirects, to http and https only."""

import pytest

from lib import images
from lib.servers import Content, Origin, redirect

DATA = images.random_bytes(256 * images.KIB)


@pytest.fixture
def client(start_daemon, disk):
    return start_daemon([disk], {"backoff": {"first": "1h", "max": "1h"}}).client


def chain(origin, length):
    for number in range(length):
        origin.serve(f"/r{number}", redirect(f"/r{number + 1}"))
    origin.serve(f"/r{length}", Content(DATA))
    return origin.url("/r0")


@pytest.mark.parametrize("length", [1, 10])
def test_followed(client, origin, length):
    client.ensure("a", chain(origin, length))
    assert client.wait_ready("a").current_sha512 == images.sha512(DATA)
    assert len(origin.requests) == length + 1


def test_eleven_are_too_many(client, origin, disk):
    client.ensure("a", chain(origin, 11))
    failed = client.wait_state("a", "failed")
    assert "redirect" in failed.message.lower() and "10" in failed.message
    assert not failed.copies[0].HasField("next_attempt")
    assert len(origin.requests) == 11
    assert origin.count("/r11") == 0


def test_a_loop(client, origin):
    origin.serve("/x", redirect("/y"))
    client.ensure("a", origin.serve("/y", redirect("/x")))
    assert "redirect" in client.wait_state("a", "failed").message.lower()
    assert len(origin.requests) == 11


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_every_kind(client, origin, status):
    origin.serve("/b", Content(DATA))
    client.ensure("a", origin.serve("/a", redirect("/b", status)))
    client.wait_ready("a")
    assert [r.method for r in origin.requests] == ["GET", "GET"]


def test_to_another_port(client, origin):
    other = Origin()
    try:
        other.serve("/b", Content(DATA))
        client.ensure("a", origin.serve("/a", redirect(other.url("/b"))))
        client.wait_ready("a")
        assert (len(origin.requests), len(other.requests)) == (1, 1)
    finally:
        other.close()


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/a", "file:///etc/passwd",
                                    "gopher://127.0.0.1:1/", "dict://127.0.0.1:1/x",
                                    "http://user:secret@127.0.0.1:1/x",
                                    "http://[", ""])
def test_to_where_nobody_goes(client, origin, disk, target):
    client.ensure("a", origin.serve("/a", redirect(target)))
    failed = client.wait_state("a", "failed")
    assert failed.message
    assert "secret" not in failed.message
    assert not disk.temp_files()
    assert origin.count("/a") == 1


def test_resume_follows_the_redirect_again(client, origin):
    data = images.random_bytes(4 * images.MIB)
    origin.serve("/b", Content(data, reset_after=2 * images.MIB), Content(data))
    client.ensure("a", origin.serve("/a", redirect("/b")))
    assert client.wait_ready("a").current_sha512 == images.sha512(data)
    assert origin.requests_of("/b")[1].range_begin > images.MIB
    assert origin.count("/a") == 2


def test_through_nginx(start_daemon, nginx, files, disk):
    image = images.raw(files / "a.raw", images.MIB)
    client = start_daemon([disk]).client
    client.ensure("a", nginx.url("redirect/a.raw"), sha512=image.sha512)
    client.wait_ready("a")
