"""Proxy and CA options, for the URLs of users."""

import pytest

from lib import images
from lib.client import Client
from lib.ports import free_port
from lib.servers import Answer, Content, Nginx, Origin

DATA = images.random_bytes(256 * images.KIB)


@pytest.fixture
def proxy():
    server = Origin()
    yield server
    server.close()


def test_through_the_proxy(start_daemon, disk, proxy):
    """A name that only the proxy can resolve."""
    proxy.serve_all(Content(DATA))
    client = start_daemon([disk], {"sources": {"proxy": proxy.url("")}}).client
    client.ensure("a", "http://images.example.invalid/a.raw",
                  sha512=images.sha512(DATA))
    client.wait_ready("a")
    assert [r.target for r in proxy.requests] == [
        "http://images.example.invalid/a.raw"]
    assert proxy.requests[0].headers["host"] == "images.example.invalid"


def test_no_proxy(start_daemon, disk, proxy, origin):
    proxy.serve_all(Answer(502))
    client = start_daemon([disk], {"sources": {
        "proxy": proxy.url(""), "no_proxy": "localhost,127.0.0.1"}}).client
    client.ensure("a", origin.serve("/a", Content(DATA)))
    client.wait_ready("a")
    assert not proxy.requests and origin.count("/a") == 1


def test_proxy_of_the_environment(start_daemon, disk, proxy, origin):
    proxy.serve_all(Content(DATA))
    client = start_daemon([disk], env={"http_proxy": proxy.url("")}).client
    client.ensure("a", "http://images.example.invalid/a.raw")
    client.wait_ready("a")
    assert len(proxy.requests) == 1


def test_none_means_none(start_daemon, disk, proxy, origin):
    client = start_daemon([disk], {"sources": {"proxy": "none"}},
                          env={"http_proxy": proxy.url("")}).client
    client.ensure("a", origin.serve("/a", Content(DATA)))
    client.wait_ready("a")
    assert not proxy.requests and origin.count("/a") == 1


def test_the_proxy_is_not_for_ourselves(start_daemon, disk, proxy):
    """Our own commands and our own API never go through it."""
    proxy.serve_all(Answer(502))
    daemon = start_daemon([disk], env={"http_proxy": proxy.url(""),
                                       "https_proxy": proxy.url("")})
    done = daemon.cli("disk", "list", check=0, env={
        "http_proxy": proxy.url(""), "https_proxy": proxy.url("")})
    assert str(disk) in done.stdout
    assert Client(daemon.address).version_get().api_version == 4
    assert not proxy.requests


def test_a_proxy_that_is_down(start_daemon, disk):
    port = free_port()
    client = start_daemon([disk], {"sources": {"proxy": f"http://127.0.0.1:{port}",
                                               "retry_tries": 1},
                                   "backoff": {"first": "1h", "max": "1h"}}).client
    client.ensure("a", "http://images.example.invalid/a.raw")
    failed = client.wait_state("a", "failed")
    assert failed.copies[0].HasField("next_attempt")
    assert str(port) in failed.message or "proxy" in failed.message


@pytest.fixture
def https(scratch, files):
    server = Nginx(scratch / "nginx-tls", files, tls=True)
    yield server
    server.close()


def test_https_with_the_given_ca(start_daemon, disk, https, files):
    image = images.raw(files / "a.raw", images.MIB)
    client = start_daemon([disk], {"sources": {"ca_file": https.ca_file}}).client
    client.ensure("a", https.url("a.raw"), sha512=image.sha512)
    client.wait_ready("a")


def test_https_with_an_unknown_ca(start_daemon, disk, https, files):
    images.raw(files / "a.raw", images.MIB)
    client = start_daemon([disk]).client
    client.ensure("a", https.url("a.raw"))
    failed = client.wait_state("a", "failed")
    assert "certificate" in failed.message.lower()
    assert not failed.copies[0].HasField("next_attempt")
    assert not https.accesses("a.raw")


def test_https_redirects(start_daemon, disk, https, files):
    image = images.raw(files / "a.raw", images.MIB)
    client = start_daemon([disk], {"sources": {"ca_file": https.ca_file}}).client
    client.ensure("a", https.url("redirect/a.raw"), sha512=image.sha512)
    client.wait_ready("a")
