"""What may pass is tried again, with growing waits; Retry-After is obeyed."""

import email.utils
import time

import pytest

from lib import images
from lib.ports import free_port
from lib.servers import Answer, Content, Never, redirect

DATA = images.random_bytes(images.MIB)


@pytest.fixture
def client(start_daemon, disk):
    return start_daemon([disk], {"backoff": {"first": "1h", "max": "1h"},
                                 "sources": {"retry_max": "10s"}}).client


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_status(client, origin, status):
    url = origin.serve("/a", Answer(status), Answer(status), Content(DATA))
    client.ensure("a", url, sha512=images.sha512(DATA))
    ready = client.wait_ready("a")
    assert ready.current_sha512 == images.sha512(DATA)
    assert [r.status for r in origin.requests] == [status, status, 200]


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(client, origin, status):
    url = origin.serve("/a", Answer(status, {"Retry-After": "2"}), Content(DATA))
    client.ensure("a", url)
    client.wait_ready("a")
    first, second = origin.requests
    assert 1.9 <= second.at - first.at < 30


def test_retry_after_as_a_date(client, origin):
    when = time.time() + 3
    url = origin.serve("/a", Answer(503, {"Retry-After":
                                          email.utils.formatdate(when, usegmt=True)}),
                       Content(DATA))
    client.ensure("a", url)
    client.wait_ready("a")
    first, second = origin.requests
    # A date has whole seconds.
    assert second.at - first.at >= 1.5


def test_the_reason_is_seen_while_waiting(client, origin):
    url = origin.serve("/a", Answer(503, {"Retry-After": "3"}), Content(DATA))
    client.ensure("a", url)
    seen = client.wait_image("a", lambda i: "503" in i.copies[0].message, "the reason")
    assert seen.state in ("pending", "starting", "in-progress")
    client.wait_ready("a")


def test_waits_grow_and_end(client, origin):
    """Four tries, then it is failed until the backoff window."""
    url = origin.serve("/a", Answer(503))
    client.ensure("a", url)
    failed = client.wait_state("a", "failed")
    assert "503" in failed.message
    copy = failed.copies[0]
    assert copy.HasField("next_attempt") and copy.attempts == 1
    assert 3000 < copy.next_attempt.seconds - time.time() < 2 * 3600
    times = [r.at for r in origin.requests]
    assert len(times) == 4
    gaps = [b - a for a, b in zip(times, times[1:])]
    assert gaps[2] > gaps[0] * 1.2, gaps
    assert gaps[2] < 5


def test_a_long_retry_after_ends_the_attempt(start_daemon, disk, origin):
    """Longer than the longest quick wait: the next attempt obeys it."""
    client = start_daemon([disk], {"sources": {"retry_max": "1s"},
                                   "backoff": {"first": "100ms", "max": "100ms"}}).client
    url = origin.serve("/a", Answer(503, {"Retry-After": "3"}), Content(DATA))
    client.ensure("a", url)
    assert client.wait_state("a", "failed").copies[0].HasField("next_attempt")
    client.wait_ready("a")
    first, second = origin.requests
    assert 2.9 <= second.at - first.at < 30


def test_nobody_listens(client, disk):
    port = free_port()
    client.ensure("a", f"http://127.0.0.1:{port}/a")
    failed = client.wait_state("a", "failed")
    assert f"127.0.0.1:{port}" in failed.message
    assert failed.copies[0].HasField("next_attempt")
    assert not disk.ready_file("a", failed.spec.uuid).exists()


def test_a_name_that_nobody_knows(client):
    client.ensure("a", "http://no-such-host.invalid/a")
    failed = client.wait_state("a", "failed")
    assert "no-such-host.invalid" in failed.message
    assert failed.copies[0].HasField("next_attempt")


def test_a_server_that_never_answers(start_daemon, disk, origin):
    client = start_daemon([disk], {"sources": {"first_byte_timeout": "500ms",
                                               "retry_tries": 2},
                                   "backoff": {"first": "1h", "max": "1h"}}).client
    url = origin.serve("/a", Never())
    begin = time.monotonic()
    client.ensure("a", url)
    failed = client.wait_state("a", "failed")
    assert origin.count("/a") == 2
    assert failed.copies[0].HasField("next_attempt")
    # (A busy origin notes the first one late.)
    first, second = origin.requests
    assert 0.5 <= second.at - begin and second.at - first.at < 10


def test_never_then_well(start_daemon, disk, origin):
    client = start_daemon([disk], {"sources": {"first_byte_timeout": "500ms"}}).client
    client.ensure("a", origin.serve("/a", Never(), Content(DATA)))
    client.wait_ready("a")
    assert origin.count("/a") == 2


def test_a_redirect_then_a_passing_status(client, origin):
    url = origin.serve("/a", redirect(origin.url("/b")))
    origin.serve("/b", Answer(503), Content(DATA))
    client.ensure("a", url)
    client.wait_ready("a")
    assert origin.count("/b") == 2
