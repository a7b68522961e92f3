"""Several connections to one origin: only where that helps, never more than
allowed, and never a mix of two contents."""

import re
import time
from dataclasses import dataclass

import pytest

from lib import images
from lib.deadline import SLOWDOWN, wait_until
from lib.images import MIB
from lib.processes import clean_environment, end, spawn
from lib.servers import Answer, Content, Lane, Nginx

SIZE = 96 * MIB
DATA = images.random_bytes(SIZE)
OTHER = images.random_bytes(SIZE, 2)
# What may come twice: what was on its way when a range was cut.
SLACK = 16 * MIB


@pytest.fixture
def daemon(start_daemon, disk):
    return start_daemon([disk])


def ensure_ready(daemon, url, data=DATA, deadline=60, **spec):
    daemon.client.ensure("a", url, **spec)
    ready = daemon.client.wait_ready("a", deadline)
    assert ready.current_sha512 == images.sha512(data)
    with open(ready.copies[0].file_path, "rb") as file:
        assert file.read() == data
    return ready


def ranges(origin):
    return [r for r in origin.requests if r.range]


def sent(origin):
    return sum(r.body_sent for r in origin.requests)


def test_several_are_used(daemon, origin):
    lane = Lane(DATA)
    ready = ensure_ready(daemon, origin.serve("/a", lane))
    assert 2 <= lane.most <= 8
    # The first request is a plain one, the others know what they continue.
    assert not origin.requests[0].range
    for request in ranges(origin):
        assert request.status == 206
        assert request.headers["if-range"] == lane.etag
        assert re.fullmatch(r"bytes=\d+-\d+", request.range), request.range
    assert len(ranges(origin)) == len(origin.requests) - 1
    assert sent(origin) < SIZE + SLACK
    copy = ready.copies[0]
    assert SIZE <= copy.wire_bytes < SIZE + SLACK
    assert copy.origin == "download" and copy.processed_bytes == SIZE


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_than_configured(start_daemon, disk, origin, most):
    daemon = start_daemon([disk], {"sources": {"connections": most}})
    lane = Lane(DATA, rate=32 * MIB)
    ensure_ready(daemon, origin.serve("/a", lane))
    assert lane.most <= most
    if most == 1:
        assert len(origin.requests) == 1


def test_with_nginx(daemon, nginx, files):
    """limit_rate counts for each connection."""
    image = images.raw(files / "a.raw", SIZE)
    begin = time.monotonic()
    rate = 12 * MIB // SLOWDOWN
    ensure_ready(daemon, nginx.url(image.name, rate=rate))
    took = time.monotonic() - begin
    seen = nginx.wait_accesses(image.name, 2)
    assert {a.status for a in seen} <= {200, 206}
    assert took < SIZE / rate, "one connection would have been as fast"


def test_less_than_32_mib_is_not_worth_it(daemon, origin):
    data = DATA[:32 * MIB]
    ensure_ready(daemon, origin.serve("/a", Lane(data, rate=64 * MIB)), data)
    assert len(origin.requests) == 1


def test_a_limited_download_uses_one(start_daemon, disk, origin):
    """What holds it back is the limit, not the network."""
    daemon = start_daemon([disk], {"limits": {"download_rate": int(32 * MIB // SLOWDOWN)}})
    lane = Lane(DATA, rate=256 * MIB)
    ensure_ready(daemon, origin.serve("/a", lane))
    assert lane.most == 1 and len(origin.requests) == 1


@dataclass
class Announcing(Lane):
    """What it says of ranges, whatever it does."""

    announces: str = ""

    def __post_init__(self):
        super().__post_init__()
        if self.announces:
            self.headers = {"Accept-Ranges": self.announces}


@pytest.mark.parametrize("announces", ["", "none"])
def test_one_stream_where_no_ranges_are_announced(daemon, origin, announces):
    lane = Announcing(DATA, rate=48 * MIB, ranges=False, announces=announces)
    ensure_ready(daemon, origin.serve("/a", lane))
    assert lane.most == 1 and len(origin.requests) == 1


def test_one_stream_without_a_validator(daemon, origin):
    """Nobody could tell whether two ranges are of one content."""
    class Anonymous(Lane):
        def __post_init__(self):
            self.etag = "W/\"weak\""
    lane = Anonymous(DATA, rate=48 * MIB)
    ensure_ready(daemon, origin.serve("/a", lane))
    assert lane.most == 1 and len(origin.requests) == 1


def test_announced_ranges_are_ignored(daemon, origin):
    """A 200 to each range: it may cost a connection, never the content."""
    lane = Announcing(DATA, ranges=False, announces="bytes")
    ready = ensure_ready(daemon, origin.serve("/a", lane))
    assert ready.copies[0].attempts == 0
    assert ranges(origin), "nothing was tried"
    assert not [r for r in origin.requests if r.status != 200]
    # The first one went on: nothing was fetched again.
    assert origin.requests[0].body_sent > SIZE // 2


@pytest.mark.parametrize("status", [503, 429])
def test_further_connections_are_refused(daemon, origin, status):
    """By a server that allows two at once."""
    lane = Lane(DATA)

    def guarded(connection, request):
        if lane.now >= 2:
            return Answer(status, {"Retry-After": "120"})(connection, request)
        return lane(connection, request)
    ready = ensure_ready(daemon, origin.serve("/a", guarded))
    assert ready.copies[0].attempts == 0
    refused = [r for r in origin.requests if r.status == status]
    assert refused, "it never tried more"
    assert len(refused) < 20, "it does not back off"
    assert lane.most == 2


def test_nginx_limits_connections(daemon, scratch, files):
    """limit_conn answers 503."""
    image = images.raw(files / "a.raw", SIZE)
    server = Nginx(scratch / "nginx", files)
    try:
        end(server.process)
        config = server.directory / "nginx.conf"
        text = config.read_text()
        text = text.replace("  server {\n", "  limit_conn_zone $server_port zone=all:1m;\n"
                            "  server {\n    limit_conn all 1;\n", 1)
        assert "limit_conn all" in text
        config.write_text(text)
        server.process = spawn(
            ["nginx", "-p", server.directory, "-c", config],
            stdout=open(server.directory / "stdout", "wb"),
            stderr=open(server.directory / "stderr", "wb"), env=clean_environment())
        assert server._listening()
        ready = ensure_ready(daemon, server.url(image.name, rate=16 * MIB // SLOWDOWN))
        assert ready.copies[0].attempts == 0
        statuses = [a.status for a in server.wait_accesses(image.name, 2)]
        assert 503 in statuses and statuses.count(503) < 20, statuses
    finally:
        server.close()


class Swapping:
    """Another content from a moment on; ranges of the old one are gone."""

    def __init__(self, old, new, when):
        self.old, self.new, self.when = old, new, when
        self.swapped = False

    def __call__(self, connection, request):
        if not self.swapped and self.when(self.old):
            self.swapped = True
        return (self.new if self.swapped else self.old)(connection, request)


@pytest.mark.parametrize("honest", [True, False])
def test_the_content_changes_meanwhile(daemon, origin, honest):
    """Several connections at work. Without If-Range only the ETag of the 206
    tells."""
    class Careless(Lane):
        def _slice(self, request):
            request.headers.pop("if-range", None)
            return super()._slice(request)
    kind = Lane if honest else Careless
    old, new = kind(DATA), kind(OTHER, rate=96 * MIB)
    swap = Swapping(old, new, lambda lane: lane.most >= 2)
    ensure_ready(daemon, origin.serve("/a", swap), OTHER)
    assert swap.swapped and old.most >= 2


def test_the_content_changes_and_its_size_too(daemon, origin):
    longer = OTHER + OTHER[:4 * MIB]
    old, new = Lane(DATA), Lane(longer, rate=96 * MIB)
    swap = Swapping(old, new, lambda lane: lane.most >= 2)
    ensure_ready(daemon, origin.serve("/a", swap), longer)
    assert swap.swapped


@dataclass
class Lying(Lane):
    """Some ranges (not the first request) are answered wrong."""

    lie: str = ""
    times: int = 3
    lies: int = 0

    def __call__(self, connection, request):
        with self._lock:
            lying = bool(request.range) and self.lies < self.times
            self.lies += lying
        if not lying:
            return super().__call__(connection, request)
        total = len(self.data)
        begin, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d*)", request.range)
                          .groups(default=total - 1) if not request.range.endswith("-")
                          else (request.range_begin, total - 1))
        etag = self.etag
        body = self.data[begin:last + 1]
        told = f"bytes {begin}-{last}/{total}"
        status = 206
        if self.lie == "offset":
            body = self.data[begin - 4096:last + 1 - 4096]
            told = f"bytes {begin - 4096}-{last - 4096}/{total}"
        elif self.lie == "total":
            told = f"bytes {begin}-{last}/{total + 512}"
        elif self.lie == "etag":
            etag = '"another"'
        elif self.lie == "no range told":
            told = None
        elif self.lie == "garbage":
            told = "bytes x-y/z"
        elif self.lie == "416":
            status, body, told = 416, b"", f"bytes */{total}"
        elif self.lie == "short":
            connection.head(206, {"Content-Length": len(body), "ETag": etag,
                                  "Content-Range": told})
            connection.body(body[:len(body) // 2])
            return False
        elif self.lie == "shorter range":
            body = body[:len(body) // 2]
            told = f"bytes {begin}-{begin + len(body) - 1}/{total}"
        elif self.lie == "longer":
            body = body + b"x" * 65536
        elif self.lie == "reset":
            connection.head(206, {"Content-Length": len(body), "ETag": etag,
                                  "Content-Range": told})
            connection.body(body[:MIB])
            connection.reset()
            return False
        elif self.lie == "stall":
            connection.head(206, {"Content-Length": len(body), "ETag": etag,
                                  "Content-Range": told})
            connection.body(body[:MIB])
            connection.hold()
            return False
        elif self.lie == "404":
            return Answer(404)(connection, request)
        else:
            raise ValueError(self.lie)
        headers = {"Content-Length": len(body), "ETag": etag}
        if told:
            headers["Content-Range"] = told
        connection.head(status, headers)
        connection.body(body)
        return True


@pytest.mark.parametrize("lie", ["offset", "total", "etag", "no range told", "garbage",
                                 "416", "short", "shorter range", "longer", "reset",
                                 "404"])
def test_ranges_answered_wrong(daemon, origin, lie):
    """Whatever it costs: the content is right, or it is not ready."""
    # A 404 to every connection would be the truth.
    lane = Lying(DATA, rate=32 * MIB, lie=lie, times=1 if lie == "404" else 3)
    ensure_ready(daemon, origin.serve("/a", lane))
    assert lane.lies, "no range was asked for"
    assert sent(origin) < 4 * SIZE


def test_a_connection_that_stalls(start_daemon, disk, origin):
    daemon = start_daemon([disk], {"sources": {"stall_timeout": "1s"}})
    lane = Lying(DATA, rate=32 * MIB, lie="stall", times=1)
    ensure_ready(daemon, origin.serve("/a", lane))
    assert lane.lies == 1
    assert sent(origin) < SIZE + 2 * SLACK, "only what was missing came again"


def test_a_206_to_the_first_request(daemon, origin):
    """Nobody asked for a range: it is not taken for the whole."""
    class Eager(Content):
        def _slice(self, request):
            return 206, 0, len(self.data) // 2
    url = origin.serve("/a", Eager(DATA[:MIB]), Content(DATA[:MIB]))
    daemon.client.ensure("a", url, sha512=images.sha512(DATA[:MIB]))
    image = daemon.client.wait_image(
        "a", lambda i: i.state in ("ready", "failed"), "ended")
    if image.state == "ready":
        assert image.current_sha512 == images.sha512(DATA[:MIB])
    else:
        assert "range" in image.message, image.message


def test_removed_while_several_run(daemon, origin, disk):
    lane = Lane(DATA, rate=8 * MIB)
    url = origin.serve("/a", lane)
    daemon.client.ensure("a", url)
    wait_until(lambda: lane.now >= 2, "two connections", 20)
    daemon.client.remove("a")
    wait_until(lambda: lane.now == 0, "all connections closed", 10)
    assert not disk.image_files()


def test_the_daemon_ends_while_several_run(daemon, origin, disk):
    """SIGTERM, and what came is used afterwards - also what lies behind a
    part that is missing."""
    lane = Lane(DATA, rate=8 * MIB)
    url = origin.serve("/a", lane)
    daemon.client.ensure("a", url)
    wait_until(lambda: lane.most >= 4 and sent(origin) > SIZE // 2, "half of it", 40)
    daemon.stop()
    before = sent(origin)
    lane.rate = 96 * MIB
    daemon.start()
    ready = daemon.client.wait_ready("a", 60)
    assert ready.current_sha512 == images.sha512(DATA)
    assert ready.copies[0].origin == "resumed download"
    assert sent(origin) - before < SIZE - before + 2 * SLACK
