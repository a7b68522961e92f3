"""The HTTP sync service: its requests, its answers, its errors."""

import os
import subprocess
from urllib.parse import quote

import pytest

from lib import images
from lib.deadline import wait_until
from lib.disks import stamp
from lib.images import KIB, MIB
from lib.longhorn import go_time, leave_image
from lib.longhorn_daemon import (FILE_INFO, FORM_HEADERS, form, image_path,
                                 request)
from lib.ports import free_port

DATA = images.random_bytes(2 * MIB + 512, 5)
SUM = images.sha512(DATA)
UUID = "6f7a"


@pytest.fixture
def manager(start_manager, disk):
    return start_manager(disk)


def ready(manager, longhorn, disk, name="a", uuid=UUID, data=DATA):
    """A ready image that Fetch took over; its path."""
    leave_image(disk.path, name, uuid, data, images.sha512(data))
    client = longhorn(manager)
    client.fetch(name, uuid, size=len(data))
    client.wait(name, uuid, "ready")
    return image_path(name, uuid)


def wanted(disk, name="new", **changes):
    """Good parameters, but for those in `changes`."""
    base = {"file_path": image_path(name, UUID), "uuid": UUID,
            "disk_uuid": disk.uuid, "expected_checksum": ""}
    return {**base, **changes}


def actions(disk):
    """Of each creation: good parameters, and those that it can't do without."""
    common = {"file_path", "uuid", "disk_uuid"}
    return {
        "fetch": ({**wanted(disk, file_path=None), "size": len(DATA),
                   "src_file_path": f"/data/tmp/new-{UUID}",
                   "dst_file_path": image_path("new", UUID)},
                  {"dst_file_path", "uuid", "disk_uuid"}),
        "downloadFromURL": ({**wanted(disk), "url": "http://127.0.0.1:1/a",
                             "data_engine": "v1"}, common | {"url"}),
        "upload": ({**wanted(disk), "size": len(DATA), "data_engine": "v1"},
                   common | {"size"}),
        "receiveFromPeer": ({**wanted(disk), "file_type": "raw",
                             "port": free_port(), "size": len(DATA),
                             "data_engine": "v1"}, common | {"port", "size"}),
        "restoreFromBackupURL": ({**wanted(disk), "concurrent_limit": 1,
                                  "backup_url": "vfs:///x?backingImage=a"},
                                 common | {"backup_url"}),
        "cloneFromBackingImage": ({**wanted(disk), "backing_image": "a",
                                   "backing_image_uuid": UUID,
                                   "encryption": "ignore"},
                                  common | {"backing_image",
                                            "backing_image_uuid"}),
    }


CREATIONS = ["fetch", "downloadFromURL", "upload", "receiveFromPeer",
             "restoreFromBackupURL", "cloneFromBackingImage"]


def act(manager, action, parameters):
    """A body of the kind that the action takes."""
    if action == "upload":
        return manager.files.post(action, body=form(DATA), headers=FORM_HEADERS,
                                  **parameters)
    return manager.files.post(
        action, body=b"{}", headers={"Content-Type": "application/json"},
        **parameters)


# What is known ---------------------------------------------------------------


def test_a_file_as_json(manager, disk, longhorn):
    path = ready(manager, longhorn, disk)
    info = manager.files.get(path).json()
    assert {key: type(value) for key, value in info.items()} == FILE_INFO
    file = disk.ready_file("a", UUID)
    assert info["diskUUID"] == disk.uuid and info["uuid"] == UUID
    assert info["filePath"] in (path, str(file))
    assert info["size"] == info["virtualSize"] == info["processedSize"] == len(DATA)
    assert info["realSize"] == file.stat().st_blocks * 512
    assert (info["state"], info["progress"], info["message"]) == ("ready", 100, "")
    assert info["modificationTime"] == go_time(file.stat().st_mtime_ns)
    assert info["currentChecksum"] == SUM and info["expectedChecksum"] == ""
    assert info["sendingReference"] == 0


def test_the_list(manager, disk, longhorn):
    assert manager.files.files() == {}
    paths = {ready(manager, longhorn, disk, name) for name in ("a", "b-c")}
    files = manager.files.files()
    assert len(files) == 2
    for path, info in files.items():
        assert info["filePath"] == path
        assert info == manager.files.get(path).json()
    assert all(manager.files.get(p).json() == files[manager.files.get(
        p).json()["filePath"]] for p in paths)


def test_both_ways_to_write_a_path(manager, disk, longhorn):
    path = ready(manager, longhorn, disk)
    seen = manager.files.get(path).json()
    assert manager.files.get(str(disk.ready_file("a", UUID))).json() == seen
    lower = manager.files.target(path).replace("%2F", "%2f")
    assert manager.files.raw("GET", lower).json() == seen


def test_a_plus_is_a_space(manager, disk, longhorn):
    path = ready(manager, longhorn, disk, "a")
    for odd in ("a+", "+a", "a%20"):
        target = manager.files.target(path).replace("%2Fa-", f"%2F{odd}-")
        manager.files.raw("GET", target).bad()
        manager.files.raw("DELETE", target).bad()
    assert disk.ready_file("a", UUID).exists()


def test_an_unknown_file(manager, disk):
    manager.files.get(image_path("a", UUID)).bad(status=404)
    manager.files.delete(image_path("a", UUID)).ok()
    # One that lies there and nobody registered.
    file = leave_image(disk.path, "b", UUID, DATA, SUM)
    manager.files.get(image_path("b", UUID)).bad(status=404)
    assert file.exists() and manager.files.files() == {}


def test_delete(manager, disk, longhorn):
    path, other = (ready(manager, longhorn, disk, n) for n in ("a", "b"))
    manager.files.delete(path).ok()
    manager.files.get(path).bad(status=404)
    assert not disk.ready_file("a", UUID).exists()
    manager.files.delete(path).ok()
    assert manager.files.get(other).json()["state"] == "ready"
    assert disk.ready_file("b", UUID).exists()


def test_forget_keeps_the_file(manager, disk, longhorn):
    path = ready(manager, longhorn, disk)
    before = stamp(disk.ready_file("a", UUID))
    manager.files.act(path, "forget").ok()
    manager.files.get(path).bad(status=404)
    assert manager.files.files() == {}
    assert stamp(disk.ready_file("a", UUID)) == before
    # It is taken again as it is, without a source.
    manager.files.post("fetch", src_file_path=f"/data/tmp/a-{UUID}",
                       dst_file_path=path, uuid=UUID, disk_uuid=disk.uuid,
                       expected_checksum=SUM, size=len(DATA)).ok()
    assert manager.files.wait(path, "ready")["currentChecksum"] == SUM
    assert stamp(disk.ready_file("a", UUID)) == before


def test_unknown_routes(manager, disk, longhorn):
    path = ready(manager, longhorn, disk)
    manager.files.post("explode", **wanted(disk)).bad("explode")
    manager.files.act(path, "explode").bad("explode")
    for method, target in [("POST", "/v1/files"), ("PUT", "/v1/files"),
                           ("DELETE", "/v1/files"), ("GET", "/v1"), ("GET", "/"),
                           ("POST", manager.files.target(path)),
                           ("GET", manager.files.target(path, "/upload"))]:
        reply = manager.files.raw(method, target)
        assert reply.status in (400, 404, 405), f"{method} {target}: {reply}"
    assert manager.files.get(path).json()["state"] == "ready"


# Creations --------------------------------------------------------------------


@pytest.mark.parametrize("action", CREATIONS)
def test_a_missing_parameter_is_named(manager, disk, action):
    good, needed = actions(disk)[action]
    for name in sorted(needed):
        for value in (None, ""):
            act(manager, action, {**good, name: value}).bad(name.replace("_", "-"))
    assert manager.files.files() == {} and disk.image_files() == []


@pytest.mark.parametrize("action", CREATIONS)
def test_another_disk(manager, disk, disks, action):
    good, _ = actions(disk)[action]
    other = disks.directory("two")
    act(manager, action, {**good, "disk_uuid": other.uuid}).bad("disk-uuid")
    assert manager.files.files() == {} and disk.image_files() == []


@pytest.mark.parametrize("action", ["fetch", "upload", "receiveFromPeer"])
@pytest.mark.parametrize("size", ["x", "1.5", "-512", "1000", "0x200", " 512",
                                  str(1 << 62), str(1 << 64), "9" * 30])
def test_a_size_that_cannot_be(manager, disk, action, size):
    good, _ = actions(disk)[action]
    act(manager, action, {**good, "size": size}).bad("size")
    assert manager.files.files() == {} and disk.image_files() == []


@pytest.mark.parametrize("port", ["x", "-1", "0", "65536", "99999999999", "8001x"])
def test_a_port_that_cannot_be(manager, disk, port):
    good, _ = actions(disk)["receiveFromPeer"]
    act(manager, "receiveFromPeer", {**good, "port": port}).bad("port")
    assert manager.files.files() == {} and disk.image_files() == []


@pytest.mark.parametrize("action,name,value", [
    ("receiveFromPeer", "file_type", "vmdk"),
    ("downloadFromURL", "url", "gopher://127.0.0.1/a"),
    ("downloadFromURL", "url", "file:///etc/passwd"),
    ("downloadFromURL", "data_engine", "v9"),
    ("cloneFromBackingImage", "encryption", "rot13"),
    ("downloadFromURL", "expected_checksum", "xyz"),
    ("upload", "expected_checksum", "0" * 127),
    ("receiveFromPeer", "uuid", "../u")])
def test_a_malformed_parameter_is_named(manager, disk, action, name, value):
    good, _ = actions(disk)[action]
    act(manager, action, {**good, name: value}).bad(name.replace("_", "-"))
    assert manager.files.files() == {} and disk.image_files() == []


def test_download_from_url(manager, disk, nginx, files):
    images.raw(files / "a.raw", 3 * MIB)
    data = (files / "a.raw").read_bytes()
    path = image_path("new", UUID)
    manager.files.post("downloadFromURL", url=nginx.url("a.raw"),
                       **wanted(disk, expected_checksum=images.sha512(data))).ok()
    info = manager.files.wait(path, "ready")
    assert info["currentChecksum"] == info["expectedChecksum"] == images.sha512(data)
    assert disk.ready_file("new", UUID).read_bytes() == data
    cfg = disk.cfg("new", UUID)
    assert cfg["uuid"] == UUID and cfg["modificationTime"] == info["modificationTime"]


def test_upload(manager, disk):
    act(manager, "upload", actions(disk)["upload"][0]).ok()
    info = manager.files.wait(image_path("new", UUID), "ready")
    assert info["currentChecksum"] == SUM
    assert disk.ready_file("new", UUID).read_bytes() == DATA


def leave(disk, data):
    """A file at the place of the new image, without cfg."""
    file = disk.ready_file("new", UUID)
    file.parent.mkdir(parents=True)
    file.write_bytes(data)


def test_an_upload_of_what_lies_there(manager, disk):
    leave(disk, DATA)
    act(manager, "upload", actions(disk)["upload"][0]).ok()
    info = manager.files.wait(image_path("new", UUID), "ready")
    assert info["currentChecksum"] == SUM


def test_an_upload_in_the_place_of_another_file(manager, disk):
    leave(disk, DATA[:1024])
    act(manager, "upload", actions(disk)["upload"][0]).ok()
    info = manager.files.wait(image_path("new", UUID), "ready")
    assert info["currentChecksum"] == SUM
    assert disk.ready_file("new", UUID).read_bytes() == DATA


def test_an_upload_does_not_remove_what_is_left_alone(manager, disk):
    file = disk.ready_file("new", UUID)
    file.parent.mkdir(parents=True)
    subprocess.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw",
                    "-b", "/etc/passwd", str(file), "1M"], check=True)
    os.truncate(file, 512 * KIB)
    before = file.read_bytes()
    manager.files.post("upload", body=form(bytes(512 * KIB)),
                       headers=FORM_HEADERS, data_engine="v1", size=512 * KIB,
                       **wanted(disk)).bad("left alone")
    assert file.read_bytes() == before
    info = manager.files.get(image_path("new", UUID)).json()
    assert info["state"] == "failed" and "left alone" in info["message"]


def test_an_upload_without_its_part_stays_to_be_seen(manager, disk):
    parameters = actions(disk)["upload"][0]
    assert manager.files.post("upload", body=b"no form", headers={
        "Content-Type": "text/plain"}, **parameters).status == 400
    info = manager.files.wait(image_path("new", UUID), "failed")
    assert info["message"].strip()


def test_a_disk_that_was_never_seen(start_daemon, disks, longhorn):
    """A path on it is not one of the first disk."""
    one, two = disks.directory("one"), disks.directory("two")
    two.path.rename(two.path.with_name("away"))
    daemon = start_daemon([one, two],
                          {"longhorn": {"sync_listen": "127.0.0.1:0"}})
    client = longhorn(daemon, one.path)
    file = leave_image(one.path, "a", UUID, DATA, SUM)
    client.fetch("a", UUID)
    address = daemon.endpoint["sync"]

    def call(method, disk):
        path = quote(str(disk.ready_file("a", UUID)), safe="")
        return request(address, method, f"/v1/files/{path}")
    assert call("GET", one).json()["currentChecksum"] == SUM
    for method in ("GET", "DELETE"):
        call(method, two).bad(two.path, "cannot be used", status=500)
    assert len(request(address, "GET", "/v1/files").json()) == 1
    assert file.read_bytes() == DATA and "a" in client.list()


def test_receive_from_peer(manager, disk, files, push):
    image = images.sparse_raw(files / "a", 8 * MIB, (0, 6 * MIB))
    port = manager.first_port
    manager.files.post("receiveFromPeer", port=port, size=image.size,
                       file_type="raw", **wanted(disk)).ok()
    assert push(image.path, f"127.0.0.1:{port}").wait().error is None
    info = manager.files.wait(image_path("new", UUID), "ready")
    assert info["currentChecksum"] == image.sha512
    file = disk.ready_file("new", UUID)
    assert file.read_bytes() == image.data
    assert file.stat().st_blocks <= image.path.stat().st_blocks + 8


def test_fetch(manager, disk, foreign_source):
    source = foreign_source(disk, "new", UUID, DATA)
    inode = source.path.stat().st_ino
    act(manager, "fetch", actions(disk)["fetch"][0]).ok()
    info = manager.files.wait(image_path("new", UUID), "ready")
    assert info["currentChecksum"] == SUM
    assert disk.ready_file("new", UUID).stat().st_ino == inode
    assert not source.path.exists() and not source.cfg.exists()


def test_a_failed_download_says_why(manager, disk, nginx):
    manager.files.post("downloadFromURL", url=nginx.url("missing"),
                       **wanted(disk)).ok()
    info = manager.files.wait(image_path("new", UUID), "failed")
    assert "404" in info["message"] and info["progress"] < 100
    assert not disk.ready_file("new", UUID).exists()


@pytest.mark.parametrize("action", CREATIONS)
def test_what_lies_there_is_reused(manager, disk, action):
    file = leave_image(disk.path, "new", UUID, DATA, SUM)
    before = stamp(file)
    good, _ = actions(disk)[action]
    act(manager, action, {**good, "expected_checksum": SUM}).ok()
    assert manager.files.wait(image_path("new", UUID), "ready")[
        "currentChecksum"] == SUM
    assert stamp(file) == before


def test_a_changed_file_is_judged_again(manager, disk, longhorn):
    path = ready(manager, longhorn, disk)
    other = ready(manager, longhorn, disk, "b")
    os.utime(disk.ready_file("a", UUID))
    file = disk.ready_file("b", UUID)
    with open(file, "r+b") as changed:
        changed.seek(MIB)
        changed.write(b"changed")

    def failed():
        seen = manager.files.get(other).json()
        return seen["state"] == "failed" and seen
    assert wait_until(failed, "the changed file to fail", 60)["message"]
    assert file.exists()  # never deleted by this check

    def touched():
        seen = manager.files.get(path).json()
        return seen["state"] == "ready" and seen["modificationTime"] == go_time(
            disk.ready_file("a", UUID).stat().st_mtime_ns)
    wait_until(touched, "the touched file to be ready with its new time", 60)


def test_a_plus_is_a_space(start_manager, longhorn, disks):
    """Callers escape the path as a form does."""
    disk = disks.directory("my +disk")
    manager = start_manager(disk)
    ready(manager, longhorn, disk)
    path = f"{disk.path}/backing-images/a-{UUID}/backing"
    escaped = manager.files.target(path)
    assert "my+%2Bdisk" in escaped
    assert manager.files.raw("GET", escaped).json()["state"] == "ready"
    reply = manager.files.raw("GET", manager.files.target(
        path, "/download", forV2Creation="true"))
    assert reply.body == DATA
    assert manager.files.raw("GET", escaped.replace("+", "%2B", 1)).status == 400
