"""kill -9 in the middle of a long download: what came is not fetched again,
and what was damaged meanwhile is."""

import threading

import pytest

from lib import images
from lib.deadline import wait_until
from lib.images import MIB
from lib.servers import Content, Lane

SIZE = 96 * MIB
DATA = images.random_bytes(SIZE)
OTHER = images.random_bytes(SIZE, 2)
AT = SIZE * 9 // 10
ONE = {"sources": {"connections": 1}}
# What was in memory or on its way: a few blocks of 1 MiB.
LOST = 4 * MIB
# Bytes that the origin gave to the kernel and nobody read.
UNREAD = 8 * MIB


def stored(daemon, name="a"):
    return daemon.client.get(name).copies[0].processed_bytes


def broken_off(daemon, origin, gated, at, **spec):
    """Kills the daemon when `at` bytes are on the disk; its uuid."""
    uuid = daemon.client.ensure("a", origin.serve("/a", gated), **spec).image.spec.uuid
    wait_until(lambda: stored(daemon) >= at, lambda: f"{at} bytes; {stored(daemon)}", 60)
    daemon.kill9()
    if gated.gate:
        gated.gate.set()
    return uuid


def ends_right(daemon, data=DATA):
    ready = daemon.client.wait_ready("a", 60)
    assert ready.current_sha512 == images.sha512(data)
    with open(ready.copies[0].file_path, "rb") as file:
        assert file.read() == data
    return ready.copies[0]


def gated(data=DATA, at=AT, kind=Content, **options):
    return kind(data, gate=threading.Event(), gate_after=at, **options)


def test_at_90_percent(start_daemon, disk, origin):
    daemon = start_daemon([disk], ONE)
    broken_off(daemon, origin, gated(), AT - LOST)
    origin.serve("/a", Content(DATA))
    daemon.start()
    copy = ends_right(daemon)
    assert copy.origin == "resumed download"
    first, second = origin.requests
    assert second.status == 206 and second.range_begin >= AT - 2 * LOST
    assert second.range == f"bytes={second.range_begin}-"
    assert second.headers["if-range"] == Content(DATA).etag
    assert second.body_sent == SIZE - second.range_begin == copy.wire_bytes


def test_at_90_percent_of_several_connections(start_daemon, disk, origin):
    """There is more than one gap then."""
    daemon = start_daemon([disk])
    lane = Lane(DATA, rate=16 * MIB)
    broken_off(daemon, origin, lane, AT)
    assert lane.most >= 2
    had = len(origin.requests)
    origin.serve("/a", Content(DATA))
    daemon.start()
    copy = ends_right(daemon)
    assert copy.origin == "resumed download"
    # Each connection had something on its way.
    assert copy.wire_bytes <= SIZE - AT + 2 * LOST
    again = origin.requests[had:]
    assert all(r.status == 206 for r in again)
    assert again[0].headers["if-range"] == lane.etag
    assert sum(r.body_sent for r in again) <= copy.wire_bytes + len(again) * UNREAD


def test_over_and_over(start_daemon, disk, origin):
    """Each time a bit further; in the end little was fetched twice."""
    daemon = start_daemon([disk], ONE)
    # Of each answer a quarter of the file.
    steps = [gated(at=SIZE // 4) for _ in range(3)]
    daemon.client.ensure("a", origin.serve("/a", *steps, Content(DATA)))
    begin = 0
    for number, step in enumerate(steps, 1):
        request = origin.wait_count("/a", number)[-1]
        assert (request.range_begin or 0) >= begin, "less than before"
        begin = (request.range_begin or 0) + SIZE // 4 - LOST
        wait_until(lambda: stored(daemon) >= begin, f"{begin} bytes", 60)
        daemon.kill9()
        step.gate.set()
        begin -= LOST
        daemon.start()
    copy = ends_right(daemon)
    assert copy.origin == "resumed download"
    assert len(origin.requests) == 4 and origin.requests[-1].range_begin >= begin


@pytest.mark.parametrize("kind", ["weak etag and date", "date only", "weak etag only"])
def test_validators(start_daemon, disk, origin, kind):
    date = "Tue, 01 Sep 2026 10:00:00 GMT"

    class Weak(Content):
        def __post_init__(self):
            self.etag = 'W/"weak"' if "etag" in kind else ""

        def __call__(self, connection, request):
            head = connection.head
            connection.head = lambda status, headers: head(
                status, {k: v for k, v in headers.items() if v})
            try:
                return super().__call__(connection, request)
            finally:
                connection.head = head

    dated = {"last_modified": date} if "date" in kind else {}
    size = 16 * MIB
    daemon = start_daemon([disk], ONE)
    broken_off(daemon, origin, gated(DATA[:size], size // 2, Weak, **dated),
               size // 2 - LOST)
    origin.serve("/a", Weak(DATA[:size], **dated))
    daemon.start()
    copy = ends_right(daemon, DATA[:size])
    second = origin.requests[1]
    if dated:
        assert second.headers["if-range"] == date
        assert second.range_begin >= size // 2 - 2 * LOST and second.status == 206
        assert copy.origin == "resumed download"
    else:
        # Nobody can tell whether it is the same content.
        assert not second.range and copy.origin == "download"


def test_another_content_afterwards(start_daemon, disk, origin):
    size = 16 * MIB
    daemon = start_daemon([disk])
    broken_off(daemon, origin, gated(DATA[:size], size // 2), size // 2 - LOST)
    origin.serve("/a", Content(OTHER[:size]))
    daemon.start()
    copy = ends_right(daemon, OTHER[:size])
    assert copy.origin == "download"
    assert origin.requests[1].range_begin and origin.requests[1].status == 200


def test_a_range_that_is_refused(start_daemon, disk, origin):
    """416 for no reason: the whole file, then."""
    class Refusing(Content):
        def _slice(self, request):
            return (416, 0, 0) if request.range else super()._slice(request)
    size = 16 * MIB
    daemon = start_daemon([disk], ONE)
    broken_off(daemon, origin, gated(DATA[:size], size // 2), size // 2 - LOST)
    origin.serve("/a", Refusing(DATA[:size]))
    daemon.start()
    ends_right(daemon, DATA[:size])
    assert [r.status for r in origin.requests[1:]] == [416, 200]
    assert not origin.requests[2].range


def flip(path, offset, length=1):
    with open(path, "r+b") as file:
        file.seek(offset)
        old = file.read(length)
        assert len(old) == length
        file.seek(offset)
        file.write(bytes(b ^ 0x55 for b in old))


def test_damaged_bytes_are_fetched_again_and_only_they(start_daemon, disk, origin):
    daemon = start_daemon([disk], ONE)
    uuid = broken_off(daemon, origin, gated(), AT - LOST)
    flip(disk.temp_file("a", uuid), SIZE // 3)
    origin.serve("/a", Content(DATA))
    daemon.start()
    copy = ends_right(daemon)
    assert copy.origin == "resumed download"
    again = origin.requests[1:]
    # The gap, and the rest behind it.
    assert SIZE // 3 - MIB <= again[0].range_begin <= SIZE // 3
    assert again[-1].range_begin >= AT - 2 * LOST
    assert copy.wire_bytes <= SIZE - AT + 2 * LOST + MIB
    assert sum(r.body_sent for r in again) <= copy.wire_bytes + UNREAD


@pytest.mark.parametrize("where", ["header", "first entry", "middle", "end cut off",
                                   "garbage behind", "empty", "gone", "zeros"])
def test_a_damaged_journal(start_daemon, disk, origin, where):
    """It costs bytes, never the content."""
    size = 16 * MIB
    daemon = start_daemon([disk], ONE)
    uuid = broken_off(daemon, origin, gated(DATA[:size], size // 2), size // 2 - LOST)
    journal = disk.image_dir("a", uuid) / "backing.bim"
    length = journal.stat().st_size
    if where == "header":
        flip(journal, 20)
    elif where == "first entry":
        flip(journal, length - 48 * ((length - 200) // 48), 8)
    elif where == "middle":
        flip(journal, length * 2 // 3, 8)
    elif where == "end cut off":
        with open(journal, "r+b") as file:
            file.truncate(length - 17)
    elif where == "garbage behind":
        with open(journal, "ab") as file:
            file.write(images.random_bytes(4801, 9))
    elif where == "empty":
        journal.write_bytes(b"")
    elif where == "gone":
        journal.unlink()
    elif where == "zeros":
        journal.write_bytes(bytes(length))
    origin.serve("/a", Content(DATA[:size]))
    daemon.start()
    copy = ends_right(daemon, DATA[:size])
    if where in ("end cut off", "garbage behind"):
        assert copy.origin == "resumed download"
        assert copy.wire_bytes <= size // 2 + 2 * LOST
    if where in ("header", "empty", "gone", "zeros"):
        assert copy.origin == "download"
    assert not disk.temp_files()


@pytest.mark.parametrize("what", ["gone", "short", "another file"])
def test_a_damaged_temp_file(start_daemon, disk, origin, what):
    size = 16 * MIB
    daemon = start_daemon([disk], ONE)
    uuid = broken_off(daemon, origin, gated(DATA[:size], size // 2), size // 2 - LOST)
    temp = disk.temp_file("a", uuid)
    if what == "gone":
        temp.unlink()
    elif what == "short":
        with open(temp, "r+b") as file:
            file.truncate(MIB)
    else:
        temp.unlink()
        temp.write_bytes(OTHER[:size])
    origin.serve("/a", Content(DATA[:size]))
    daemon.start()
    ends_right(daemon, DATA[:size])
    assert not disk.temp_files()
