"""A broken transfer goes on where it was - if the content is still the same."""

import threading

import pytest

from lib import images
from lib.servers import Answer, Content

SIZE = 8 * images.MIB
DATA = images.random_bytes(SIZE)
OTHER = images.random_bytes(SIZE, 2)
# What may be fetched twice: a chunk, and what was on its way.
SLACK = images.MIB


@pytest.fixture
def client(start_daemon, disk):
    return start_daemon([disk]).client


def ensure_ready(client, url, data=DATA, **spec):
    client.ensure("a", url, **spec)
    ready = client.wait_ready("a")
    assert ready.current_sha512 == images.sha512(data)
    return ready


def test_reset_at_byte_n(client, origin):
    url = origin.serve("/a", Content(DATA, reset_after=5 * images.MIB + 123),
                       Content(DATA))
    ensure_ready(client, url)
    first, second = origin.requests
    assert first.range == "" and second.range_begin > 4 * images.MIB
    assert second.status == 206
    assert second.headers.get("if-range") == Content(DATA).etag
    assert second.body_sent == SIZE - second.range_begin
    assert second.range_begin <= 5 * images.MIB + 123


def test_closed_early(client, origin):
    url = origin.serve("/a", Content(DATA, close_after=3 * images.MIB), Content(DATA))
    ensure_ready(client, url)
    assert origin.requests[1].range_begin > 2 * images.MIB


def test_many_resets(client, origin):
    """Each with some progress: more of them than tries."""
    steps = [Content(DATA, reset_after=images.MIB + 1000) for _ in range(7)]
    url = origin.serve("/a", *steps, Content(DATA))
    ensure_ready(client, url)
    assert 2 <= len(origin.requests) <= 9
    sent = sum(r.body_sent for r in origin.requests)
    assert sent < SIZE + 8 * SLACK
    begins = [r.range_begin or 0 for r in origin.requests]
    assert begins == sorted(begins)


def test_stalled(start_daemon, origin, disk):
    client = start_daemon([disk], {"sources": {"stall_timeout": "600ms"}}).client
    url = origin.serve("/a", Content(DATA, stall_after=5 * images.MIB), Content(DATA))
    ensure_ready(client, url)
    first, second = origin.requests
    assert second.at - first.at >= 0.6
    assert second.range_begin > 4 * images.MIB


def test_dribbling(start_daemon, origin, disk):
    """A byte now and then is no progress: less than min_rate is a stall."""
    client = start_daemon([disk], {"sources": {
        "min_rate": 64 * images.KIB, "min_rate_window": "1s"}}).client
    url = origin.serve("/a", Content(DATA, piece=16, pause=0.02), Content(DATA))
    ensure_ready(client, url)
    assert len(origin.requests) == 2


def test_slow_but_steady_is_fine(start_daemon, nginx, files, disk):
    image = images.raw(files / "a.raw", 2 * images.MIB)
    client = start_daemon([disk], {"sources": {
        "min_rate": 64 * images.KIB, "min_rate_window": "500ms",
        "stall_timeout": "2s"}}).client
    client.ensure("a", nginx.url(image.name, rate=images.MIB))
    client.wait_ready("a")
    assert len(nginx.wait_accesses(image.name, 1)) == 1


def test_content_changed_in_between(client, origin):
    """The rest of another file is not the rest of ours."""
    url = origin.serve("/a", Content(DATA, reset_after=5 * images.MIB), Content(OTHER))
    ensure_ready(client, url, OTHER)
    assert sum(r.body_sent for r in origin.requests) >= SIZE


def test_content_changed_and_the_server_has_no_if_range(client, origin):
    """It answers 206 from the new content, whose ETag tells."""
    class Careless(Content):
        def _slice(self, request):
            request.headers.pop("if-range", None)
            return super()._slice(request)
    url = origin.serve("/a", Careless(DATA, reset_after=5 * images.MIB),
                       Careless(OTHER))
    ensure_ready(client, url, OTHER)


def test_ranges_ignored(client, origin):
    """A 200 to a Range request: everything is sent again, and taken."""
    url = origin.serve("/a", Content(DATA, reset_after=5 * images.MIB, ranges=False),
                       Content(DATA, ranges=False))
    ensure_ready(client, url)
    assert len(origin.requests) == 2


def test_no_validator(client, origin):
    """Without ETag and date nobody knows whether it is the same content: it
    comes whole, or its digest proves it."""
    class Anonymous(Content):
        def __post_init__(self):
            self.etag = ""

        def __call__(self, connection, request):
            self.headers = {}
            return super().__call__(connection, request)

    url = origin.serve("/a", Anonymous(DATA, reset_after=5 * images.MIB),
                       Anonymous(OTHER))
    ensure_ready(client, url, OTHER, sha512=images.sha512(OTHER))


def test_last_modified_is_a_validator(client, origin):
    date = "Tue, 01 Sep 2026 10:00:00 GMT"

    class Dated(Content):
        def __post_init__(self):
            self.etag = "W/\"weak\""

    url = origin.serve("/a",
                       Dated(DATA, last_modified=date, reset_after=5 * images.MIB),
                       Dated(DATA, last_modified=date))
    ensure_ready(client, url)
    second = origin.requests[1]
    if second.range:
        assert second.headers["if-range"] == date


def test_the_range_lies(client, origin):
    """A 206 for another range than asked for never ends up in the file."""
    class Shifted(Content):
        def _slice(self, request):
            status, begin, stop = super()._slice(request)
            return (status, begin - 4096, stop) if status == 206 else (status, begin, stop)
    url = origin.serve("/a", Content(DATA, reset_after=5 * images.MIB), Shifted(DATA),
                       Content(DATA))
    ensure_ready(client, url)


def test_a_passing_status_in_the_middle(client, origin):
    url = origin.serve("/a", Content(DATA, reset_after=5 * images.MIB), Answer(503),
                       Content(DATA))
    ensure_ready(client, url)
    assert origin.requests[2].range_begin > 4 * images.MIB


def test_across_a_backoff_window(start_daemon, origin, disk):
    """Also when the attempt ended failed, the next one goes on."""
    client = start_daemon([disk], {"sources": {"retry_tries": 1}}).client
    url = origin.serve("/a", Content(DATA, reset_after=5 * images.MIB), Content(DATA))
    client.ensure("a", url)
    failed = client.wait_state("a", "failed")
    assert failed.copies[0].HasField("next_attempt")
    ready = client.wait_ready("a")
    assert ready.current_sha512 == images.sha512(DATA)
    assert origin.requests[1].range_begin > 4 * images.MIB
    assert ready.copies[0].origin == "resumed download"


def test_416_on_resume(client, origin):
    """The content became shorter than what we have."""
    short = images.random_bytes(images.MIB, 3)
    url = origin.serve("/a", Content(DATA, reset_after=5 * images.MIB), Content(short))
    ensure_ready(client, url, short)


def test_two_images_break_each_alone(client, origin):
    gate = threading.Event()
    url_a = origin.serve("/a", Content(DATA, reset_after=2 * images.MIB), Content(DATA))
    url_b = origin.serve("/b", Content(OTHER, gate=gate, gate_after=images.MIB))
    client.ensure("b", url_b)
    ensure_ready(client, url_a)
    gate.set()
    assert client.wait_ready("b").current_sha512 == images.sha512(OTHER)
    assert origin.count("/b") == 1
