"""Transient failures are tried again after a window that doubles."""

import time

from lib import images
from lib.client import EVENT
from lib.servers import Answer, Content

DATA = images.random_bytes(images.MIB)


def test_tried_again_until_it_works(start_daemon, disk, origin):
    daemon = start_daemon([disk], {
        "sources": {"retry_tries": 1}, "backoff": {"first": "300ms", "max": "1200ms"}})
    watch = daemon.client.watch()
    daemon.client.ensure("a", origin.serve("/a", *[Answer(503)] * 5, Content(DATA)))
    ready = daemon.client.wait_ready("a")
    assert ready.copies[0].attempts == 0
    assert not ready.copies[0].HasField("next_attempt")
    times = [r.at for r in origin.requests]
    assert len(times) == 6
    gaps = [b - a for a, b in zip(times, times[1:])]
    # 0.3, 0.6, 1.2, 1.2, 1.2
    for gap, window in zip(gaps, (0.3, 0.6, 1.2, 1.2, 1.2)):
        assert window - 0.02 <= gap < window + 3, gaps
    # In between it was failed, with the attempt counted and the next one told.
    failed = [e.image.copies[0] for e in watch.events
              if e.type == EVENT.TYPE_IMAGE and e.image.state == "failed"]
    assert {c.attempts for c in failed} >= {1, 2, 3, 4, 5}
    assert all(c.HasField("next_attempt") and "503" in c.message for c in failed)


def test_the_default_window_is_a_minute(start_daemon, disk, origin):
    daemon = start_daemon([disk], {"sources": {"retry_tries": 1}}, run=False)
    del daemon.config["backoff"]
    daemon.start()
    daemon.client.ensure("a", origin.serve("/a", Answer(503)))
    failed = daemon.client.wait_state("a", "failed")
    wait = failed.copies[0].next_attempt.ToNanoseconds() / 1e9 - time.time()
    assert 40 < wait <= 61


def test_one_disk_waits_alone(start_daemon, disks, origin):
    """The window is the image's on a disk, not everybody's."""
    daemon = start_daemon([disks.directory("one")], {
        "sources": {"retry_tries": 1}, "backoff": {"first": "1h", "max": "1h"}})
    daemon.client.ensure("bad", origin.serve("/bad", Answer(500)))
    daemon.client.wait_state("bad", "failed")
    daemon.client.ensure("good", origin.serve("/good", Content(DATA)))
    daemon.client.wait_ready("good")
    assert origin.count("/bad") == 1
