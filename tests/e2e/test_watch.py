"""Watch: a snapshot, then every change, resumable by token."""

import threading

import pytest

from lib import images
from lib.client import EVENT
from lib.servers import Answer, Content

DATA = images.random_bytes(256 * images.KIB)


@pytest.fixture
def daemon(start_daemon, disk):
    return start_daemon([disk])


def test_an_empty_snapshot(daemon):
    watch = daemon.client.watch()
    watch.wait_type(EVENT.TYPE_SNAPSHOT_END)
    assert [e.type for e in watch.events] == [EVENT.TYPE_SNAPSHOT_BEGIN,
                                              EVENT.TYPE_SNAPSHOT_END]


def test_snapshot_then_changes(daemon, origin):
    client = daemon.client
    for name in "cab":
        client.ensure(name, origin.serve(f"/{name}", Content(DATA)))
        client.wait_ready(name)
    watch = client.watch()
    watch.wait_type(EVENT.TYPE_SNAPSHOT_END)
    events = list(watch.events)
    assert events[0].type == EVENT.TYPE_SNAPSHOT_BEGIN
    assert [e.image.spec.name for e in events[1:-1]] == ["a", "b", "c"]
    assert all(e.image == client.get(e.image.spec.name) for e in events[1:-1])

    client.ensure("d", origin.serve("/d", Content(DATA)))
    watch.wait(lambda all_: any(e.image.spec.name == "d" and e.image.state == "ready"
                                for e in all_), "d ready")
    client.remove("a")
    removed = watch.wait_type(EVENT.TYPE_REMOVED)
    assert removed.image.spec.name == "a" and removed.image.spec.uuid
    changes = watch.events[len(events):]
    assert all(e.resume_token for e in changes)
    assert {e.image.spec.name for e in changes if e.type == EVENT.TYPE_IMAGE} == {"d"}
    revisions = [e.image.revision for e in changes if e.type == EVENT.TYPE_IMAGE]
    assert revisions == sorted(set(revisions))
    # Each change holds the full state.
    last = [e for e in changes if e.type == EVENT.TYPE_IMAGE][-1]
    assert last.image == client.get("d")


def test_resume_by_token(daemon, origin):
    client = daemon.client
    client.ensure("a", origin.serve("/a", Content(DATA)))
    client.wait_ready("a")
    client.ensure("b", origin.serve("/b", Content(DATA)))
    client.wait_ready("b")
    watch = client.watch()
    watch.wait_type(EVENT.TYPE_SNAPSHOT_END)
    token = watch.last_token
    watch.close()
    # While nobody watches.
    client.remove("a")
    client.ensure("c", origin.serve("/c", Content(DATA)))
    client.wait_ready("c")

    again = client.watch(token)
    again.wait(lambda all_: any(e.image.state == "ready" for e in all_), "c ready")
    again.wait_type(EVENT.TYPE_REMOVED)
    kinds = {(EVENT.Type.Name(e.type), e.image.spec.name) for e in again.events}
    assert kinds == {("TYPE_REMOVED", "a"), ("TYPE_IMAGE", "c")}
    # Nothing happened since: nothing is repeated, but what comes is shown.
    latest = client.watch(again.last_token)
    client.remove("b")
    event = latest.wait(lambda all_: all_ and all_[0], "an event")
    assert (event.type, event.image.spec.name) == (EVENT.TYPE_REMOVED, "b")


def test_a_token_in_the_middle_of_a_snapshot(daemon, files, origin):
    client = daemon.client
    for number in range(5):
        client.ensure(f"i{number}", origin.serve(f"/{number}", Content(DATA)))
        client.wait_ready(f"i{number}")
    watch = client.watch()
    watch.wait_type(EVENT.TYPE_SNAPSHOT_END)
    token = watch.events[2].resume_token
    rest = client.watch(token)
    rest.wait_type(EVENT.TYPE_SNAPSHOT_END)
    names = [e.image.spec.name for e in rest.events if e.type == EVENT.TYPE_IMAGE]
    # The rest of the snapshot, or a new one.
    if rest.events[0].type == EVENT.TYPE_SNAPSHOT_BEGIN:
        assert names == ["i0", "i1", "i2", "i3", "i4"]
    else:
        assert names == ["i2", "i3", "i4"]


@pytest.mark.parametrize("token", ["nonsense", "1", "99999999999999999999", "a:b:c",
                                   "\u00e4", "x" * 5000])
def test_foreign_tokens_give_a_snapshot(daemon, origin, token):
    daemon.client.ensure("a", origin.serve("/a", Content(DATA)))
    daemon.client.wait_ready("a")
    watch = daemon.client.watch(token)
    watch.wait_type(EVENT.TYPE_SNAPSHOT_END)
    assert watch.events[0].type == EVENT.TYPE_SNAPSHOT_BEGIN
    assert [e.image.spec.name for e in watch.events[1:-1]] == ["a"]


def test_a_token_of_before_a_restart_gives_a_snapshot(daemon, origin):
    daemon.client.ensure("a", origin.serve("/a", Content(DATA)))
    daemon.client.wait_ready("a")
    watch = daemon.client.watch()
    watch.wait_type(EVENT.TYPE_SNAPSHOT_END)
    token = watch.last_token
    daemon.restart()
    again = daemon.client.watch(token)
    again.wait_type(EVENT.TYPE_SNAPSHOT_END)
    assert again.events[0].type == EVENT.TYPE_SNAPSHOT_BEGIN


def test_failures_are_changes_too(daemon, origin):
    watch = daemon.client.watch()
    watch.wait_type(EVENT.TYPE_SNAPSHOT_END)
    daemon.client.ensure("a", origin.serve("/a", Answer(404)))
    event = watch.wait(lambda all_: next(
        (e for e in all_ if e.image.state == "failed"), None), "a failed")
    assert "404" in event.image.message


def test_ending_a_watch_ends_no_work(daemon, origin):
    gate = threading.Event()
    watch = daemon.client.watch()
    daemon.client.ensure("a", origin.serve("/a", Content(DATA, gate=gate,
                                                         gate_after=1000)))
    origin.wait_count("/a", 1)
    watch.close()
    gate.set()
    daemon.client.wait_ready("a")
