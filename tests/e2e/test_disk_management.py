"""Disks: list, add, remove, make."""

import json
import os
import threading
import uuid as uuids

import grpc
import pytest

from lib import images
from lib.client import refused
from lib.deadline import wait_until
from lib.processes import open_files
from lib.servers import Content

PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
INVALID = grpc.StatusCode.INVALID_ARGUMENT
DATA = images.random_bytes(images.MIB)


def test_list(start_daemon, disks):
    b, a = disks.directory("b"), disks.directory("a")
    absent = disks.root / "c"
    client = start_daemon([b, a, absent]).client
    listed = client.list_disks()
    assert [d.path for d in listed] == [str(a), str(b), str(absent)]
    assert [d.uuid for d in listed] == [a.uuid, b.uuid, ""]
    assert [d.state for d in listed] == ["ready", "ready", "missing"]
    assert [d.epoch for d in listed] == [1, 1, 0]
    assert [bool(d.message) for d in listed] == [False, False, True]
    space = os.statvfs(a.path)
    assert listed[0].total_bytes == space.f_blocks * space.f_frsize
    assert 0 < listed[0].available_bytes < listed[0].total_bytes


def test_add_is_remembered(start_daemon, disks):
    one, two = disks.directory("one"), disks.directory("two")
    daemon = start_daemon([one])
    added = daemon.client.add_disk(two)
    assert (added.path, added.uuid, added.state) == (str(two), two.uuid, "ready")
    # Again: a no-op.
    assert daemon.client.add_disk(two).epoch == added.epoch
    assert daemon.client.add_disk(two, uuid=two.uuid).epoch == added.epoch
    daemon.restart()
    assert {d.path: d.epoch for d in daemon.client.list_disks()} == {
        str(one): 2, str(two): 2}


def test_remove_forgets_and_deletes_nothing(start_daemon, disks, origin):
    one, two = disks.directory("one"), disks.directory("two")
    daemon = start_daemon([one])
    client = daemon.client
    client.add_disk(two)
    client.ensure("a", origin.serve("/a", Content(DATA)), [two])
    uuid = client.wait_ready("a").spec.uuid
    with refused(PRECONDITION, str(two)):
        client.remove_disk(two)
    assert client.disk(two).state == "ready"
    client.remove_disk(two.uuid, force=True)
    assert [d.path for d in client.list_disks()] == [str(one)]
    assert two.ready_file("a", uuid).read_bytes() == DATA
    # The lock is free, nothing of it is open.
    wait_until(lambda: not [f for f in open_files(daemon.pid)
                            if f.startswith(str(two))],
               lambda: f"released: {open_files(daemon.pid)}")
    daemon.restart()
    assert [d.path for d in daemon.client.list_disks()] == [str(one)]
    # It comes back with what it has, nothing is fetched.
    daemon.client.add_disk(two)
    assert daemon.client.wait_ready("a").spec.uuid == uuid
    assert origin.count("/a") == 1


def test_force_cancels_running_transfers(start_daemon, disks, origin):
    one, two = disks.directory("one"), disks.directory("two")
    gate = threading.Event()
    data = images.random_bytes(4 * images.MIB)
    client = start_daemon([one, two]).client
    client.ensure("a", origin.serve("/a", Content(data, gate=gate,
                                                  gate_after=images.MIB)), [two])
    client.wait_copy("a", two, "in-progress")
    client.remove_disk(two, force=True)
    assert [d.path for d in client.list_disks()] == [str(one)]
    assert not list(two.path.rglob("backing"))
    gate.set()


def test_remove_an_unused_disk(start_daemon, disks):
    one, two = disks.directory("one"), disks.directory("two")
    client = start_daemon([one, two]).client
    client.remove_disk(two)
    assert [d.path for d in client.list_disks()] == [str(one)]


def test_no_identity_file_is_refused(start_daemon, disks):
    """An unmounted mount point looks just like this."""
    bare = disks.directory("bare", init=False)
    client = start_daemon().client
    with refused(PRECONDITION, "longhorn-disk.cfg"):
        client.add_disk(bare)
    assert not client.list_disks()
    assert list(bare.path.iterdir()) == []


def test_init_makes_a_new_disk(start_daemon, disks, origin):
    one = disks.directory("one", init=False)
    two = disks.directory("two", init=False)
    daemon = start_daemon()
    made = daemon.client.add_disk(one, init=True)
    assert str(uuids.UUID(made.uuid)) == made.uuid
    identity = json.loads((one.path / "longhorn-disk.cfg").read_text())
    assert identity["diskUUID"] == made.uuid
    given = str(uuids.uuid4())
    assert daemon.client.add_disk(two, given, init=True).uuid == given
    daemon.client.ensure("a", origin.serve("/a", Content(DATA)))
    daemon.client.wait_ready("a")
    daemon.restart()
    assert {d.uuid for d in daemon.client.list_disks()} == {made.uuid, given}
    daemon.client.wait_ready("a")


def test_init_keeps_an_identity(start_daemon, disks):
    one = disks.directory("one")
    client = start_daemon().client
    try:
        assert client.add_disk(one, init=True).uuid == one.uuid
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.ALREADY_EXISTS, PRECONDITION)
    assert json.loads((one.path / "longhorn-disk.cfg").read_text())["diskUUID"] == one.uuid


def test_another_identity_than_expected(start_daemon, disks):
    one = disks.directory("one")
    client = start_daemon().client
    with refused(PRECONDITION, one.uuid):
        client.add_disk(one, "5e6d8cf0-3bb5-4a07-8a5a-000000000000")
    assert not client.list_disks()


def test_the_same_disk_by_two_paths(start_daemon, disks):
    one = disks.directory("one")
    link = disks.root / "link"
    link.symlink_to(one.path)
    client = start_daemon([one]).client
    with pytest.raises(grpc.RpcError) as error:
        client.add_disk(link)
    assert error.value.code() in (PRECONDITION, grpc.StatusCode.ALREADY_EXISTS)
    assert len(client.list_disks()) == 1


@pytest.mark.parametrize("path", ["", "relative", "./x", "a/../b"])
def test_a_path_that_is_none(start_daemon, path):
    with refused(INVALID):
        start_daemon().client.add_disk(path)


def test_a_path_where_nothing_is(start_daemon, scratch):
    client = start_daemon().client
    for path in (scratch / "nothing", "/dev/null", scratch / "daemon1" / "log"):
        with pytest.raises(grpc.RpcError) as error:
            client.add_disk(path, init=True)
        assert error.value.code() in (grpc.StatusCode.NOT_FOUND, PRECONDITION,
                                      INVALID), error.value
        assert str(path) in error.value.details()
    assert not client.list_disks()


@pytest.mark.parametrize("content", [
    "", "{", "[]", "{}", '{"diskUUID": 7}', '{"diskUUID": ""}',
    '{"diskUUID": "../../etc"}', '{"diskUUID": "a b"}', "\0\0\0"])
def test_an_identity_file_that_is_broken(start_daemon, disks, content):
    good, bad = disks.directory("good"), disks.directory("bad", init=False)
    (bad.path / "longhorn-disk.cfg").write_text(content)
    client = start_daemon([good, bad]).client
    status = client.disk(bad)
    assert status.state == "failed" and "longhorn-disk.cfg" in status.message
    assert client.disk(good).state == "ready"
    # Mended: taken without a restart.
    bad.write_identity(bad.uuid)
    client.wait_disk(bad, "ready")


def test_keys_to_ignore(start_daemon, disks):
    one = disks.directory("one", init=False)
    (one.path / "longhorn-disk.cfg").write_text(json.dumps(
        {"diskName": "d", "diskUUID": one.uuid, "diskDriver": None, "state": {"a": 1},
         "more": [1, 2]}))
    assert start_daemon([one]).client.disk(one).uuid == one.uuid


@pytest.mark.parametrize("how", ["empty", "with an image", "among others"])
def test_removed_and_added_again_many_times(start_daemon, disks, origin, how):
    """Whatever a check of the disks does at that moment: ready at once."""
    one = disks.directory("one")
    count = 8 if how == "among others" else 0
    others = [disks.directory(f"d{n}") for n in range(count)]
    daemon = start_daemon(others, {"disks": {"check_interval": "50ms"}})
    client = daemon.client
    epoch = client.add_disk(one).epoch
    if how != "empty":
        client.ensure("a", origin.serve("/a", Content(DATA)), [one])
        client.wait_ready("a")
    for _ in range(50):
        client.remove_disk(one, force=True)
        again = client.add_disk(one)
        assert (again.state, again.message) == ("ready", "")
        assert again.uuid == one.uuid and again.epoch == epoch + 1
        epoch = again.epoch
    if how != "empty":
        assert client.wait_ready("a").copies[0].disk_path == str(one)
        assert origin.count("/a") == 1
    daemon.restart()
    assert daemon.client.disk(one).state == "ready"


def test_added_by_several_at_once(start_daemon, disks, connect):
    """All are told of the same disk, and that it is ready."""
    one = disks.directory("one")
    daemon = start_daemon([], {"disks": {"check_interval": "50ms"}})
    clients = [connect(daemon.address) for _ in range(4)]
    for _ in range(15):
        added, threads = [], []
        for client in clients:
            threads.append(threading.Thread(
                target=lambda c=client: added.append(c.add_disk(one))))
            threads[-1].start()
        for thread in threads:
            thread.join(40)
        assert [d.state for d in added] == ["ready"] * len(clients), added
        assert len({d.epoch for d in added}) == 1
        daemon.client.remove_disk(one, force=True)


def test_many_added_at_once(start_daemon, disks, connect):
    """Each is told of its own, and all are remembered."""
    daemon = start_daemon([])
    many = [disks.directory(f"d{n}") for n in range(8)]
    clients = [connect(daemon.address) for _ in many]
    added, threads = [], []
    for client, disk in zip(clients, many):
        threads.append(threading.Thread(
            target=lambda c=client, d=disk: added.append(c.add_disk(d))))
        threads[-1].start()
    for thread in threads:
        thread.join(40)
    assert sorted(d.uuid for d in added) == sorted(d.uuid for d in many)
    assert {d.state for d in added} == {"ready"}
    daemon.restart(kill=True)
    assert len(daemon.client.list_disks()) == len(many)
