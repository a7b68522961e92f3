"""Only paths that the layout of this disk has for images are taken: whatever
else a request names is refused, and nothing is made, read or deleted there."""

import os
from urllib.parse import quote_plus

import pytest

from lib import images
from lib.deadline import wait_until
from lib.disks import stamp
from lib.images import MIB
from lib.longhorn import leave_image
from lib.longhorn_daemon import FORM_HEADERS, form, image_path

DATA = images.random_bytes(MIB, 5)
SUM = images.sha512(DATA)
UUID = "6f7a"


def tree(*roots):
    """All below these folders, with what tells of a change."""
    return {str(path): stamp(path) if path.is_file() else None
            for root in roots for path in root.rglob("*")
            if not path.is_symlink() and ".bim" not in path.parts}


@pytest.fixture
def world(start_manager, disk, disks, scratch, longhorn):
    """A daemon with a ready image "a"; things that it must leave alone."""
    elsewhere = scratch / "elsewhere"
    for folder in (f"victim-{UUID}", f"backing-images/victim-{UUID}"):
        (elsewhere / folder).mkdir(parents=True)
        (elsewhere / folder / "backing").write_bytes(DATA)
    other = disks.directory("other")
    leave_image(other.path, "a", UUID, DATA, SUM)
    leave_image(disk.path, "a", UUID, DATA, SUM)
    (disk.path / "tmp").mkdir()
    (disk.path / "tmp" / f"x-{UUID}").write_bytes(DATA)
    (disk.path / "precious").write_bytes(DATA)
    manager = start_manager(disk)
    client = longhorn(manager)
    client.fetch("a", UUID)
    client.wait("a", UUID, "ready")
    return manager, elsewhere, other


def bad_paths(disk, elsewhere, other):
    good, images_ = image_path("b", UUID), "/data/backing-images"
    return {
        "empty": "",
        "relative": f"backing-images/b-{UUID}/backing",
        "dot dot": f"{images_}/../precious",
        "dot dot inside": f"{images_}/b-{UUID}/../a-{UUID}/backing",
        "dot dot as a name": f"{images_}/..-{UUID}/backing",
        "dot dot to elsewhere":
            f"/data/backing-images/../../../..{elsewhere}/victim-{UUID}/backing",
        "dot": f"{images_}/./b-{UUID}/backing",
        "two slashes": f"{images_}//b-{UUID}/backing",
        "two slashes first": f"/{good}",
        "a slash behind": good + "/",
        "a dot behind": good + "/.",
        "the directory": f"{images_}/b-{UUID}",
        "all images": images_, "all images/": images_ + "/",
        "the disk": "/data", "the root": "/",
        "another file": f"{images_}/b-{UUID}/other",
        "the temp file": good + ".tmp", "the cfg": good + ".cfg",
        "ours": good + ".bim", "the owner": "/data/.bim/owner",
        "the identity": "/data/longhorn-disk.cfg",
        "deeper": f"{images_}/c/b-{UUID}/backing",
        "tmp": f"/data/tmp/x-{UUID}", "tmp.tmp": f"/data/tmp/x-{UUID}.tmp",
        "a file of the disk": "/data/precious",
        "elsewhere": f"{elsewhere}/victim-{UUID}/backing",
        "elsewhere alike": f"{elsewhere}/backing-images/victim-{UUID}/backing",
        "etc": "/etc/passwd",
        "another disk": f"{other.path}/backing-images/a-{UUID}/backing",
        "beside the disk": f"{disk.path}2/backing-images/a-{UUID}/backing",
        "data2": f"/data2/backing-images/a-{UUID}/backing",
        "nul": f"{images_}/b-{UUID}/backing\0", "nul inside": f"{images_}/b\0-{UUID}/backing",
        "newline": f"{images_}/b\n-{UUID}/backing", "a space": f"{images_}/b -{UUID}/backing",
        "a backslash": f"{images_}\\b-{UUID}\\backing",
        "no ASCII": f"{images_}/b\xe4-{UUID}/backing",
        "encoded again": quote_plus(good),
        "encoded dots": f"{images_}/%2e%2e/precious",
        "encoded slash": f"{images_}/b-{UUID}%2Fbacking",
        "long": f"{images_}/{'b' * 5000}-{UUID}/backing",
        "a long name": f"{images_}/{'b' * 130}-{UUID}/backing",
        "deep": "/data/backing-images" + "/b" * 1000,
        "a hidden name": f"{images_}/.b-{UUID}/backing",
        "no name": f"{images_}/-{UUID}/backing",
    }


KINDS = list(bad_paths(type("D", (), {"path": "/d"}), "/e",
                       type("D", (), {"path": "/o"})))


def refused_(reply):
    assert reply.status in (400, 414), f"{reply.status}: {reply.text[:300]}"
    assert "\n" not in reply.text.strip() and len(reply.text) < 10000


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_outside_the_layout(world, disk, kind):
    manager, elsewhere, other = world
    path = bad_paths(disk, elsewhere, other)[kind]
    parent = disk.path.parent
    before = tree(parent, elsewhere)
    files = manager.files
    if path:
        refused_(files.get(path))
        refused_(files.delete(path))
        refused_(files.act(path, "forget"))
        refused_(files.act(path, "sendToPeer", to_address="127.0.0.1:1"))
        refused_(files.download(path))
    common = {"uuid": UUID, "disk_uuid": disk.uuid, "expected_checksum": ""}
    refused_(files.post("downloadFromURL", file_path=path,
                        url="http://127.0.0.1:1/a", **common))
    refused_(files.post("upload", file_path=path, size=len(DATA), body=form(DATA),
                        headers=FORM_HEADERS, **common))
    refused_(files.post("receiveFromPeer", file_path=path, size=len(DATA),
                        port=manager.first_port, **common))
    refused_(files.post("fetch", src_file_path=f"/data/tmp/x-{UUID}",
                        dst_file_path=path, size=len(DATA), **common))
    if kind not in ("tmp", "empty"):
        refused_(files.post("fetch", src_file_path=path, size=len(DATA),
                            dst_file_path=image_path("b", UUID), **common))
    assert tree(parent, elsewhere) == before
    assert not manager.in_range()
    assert len(files.files()) == 1


@pytest.mark.parametrize("target", [
    "/v1/files/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/v1/files/..%2F..%2Fetc",
    "/v1/files/%2Fdata%2Fbacking-images%2F%2e%2e%2Fprecious",
    "/v1/files/%252Fdata%252Fbacking-images%252Fa-6f7a%252Fbacking",
    "/v1/files/%2Fdata%2Fbacking-images%2Fa-6f7a%2Fbacking%00",
    "/v1/files/%2Fdata%2Fbacking-images%2Fa-6f7a%2Fbacking%2F",
    "/v1/files/%", "/v1/files/%2", "/v1/files/%zz",
    "/v1/files/%c0%ae%c0%ae%2Fetc"])
def test_encodings(world, disk, target):
    manager, elsewhere, _ = world
    before = tree(disk.path.parent, elsewhere)
    for method, end in (("GET", ""), ("DELETE", ""), ("GET", "/download"),
                        ("POST", "?action=forget")):
        assert manager.files.raw(method, target + end).status == 400
    for target in ("/v1/files/../../etc/passwd", "/../etc/passwd",
                   "/v1/../../etc/passwd", "//etc/passwd"):
        assert manager.files.raw("GET", target).status in (400, 404)
    assert tree(disk.path.parent, elsewhere) == before


@pytest.mark.parametrize("link", ["the image", "the file", "all images"])
def test_symbolic_links_are_not_followed(world, disk, longhorn, link):
    manager, elsewhere, _ = world
    name = "victim"
    if link == "the image":
        disk.image_dir(name, UUID).symlink_to(elsewhere / f"victim-{UUID}")
    elif link == "the file":
        disk.image_dir(name, UUID).mkdir()
        disk.ready_file(name, UUID).symlink_to(
            elsewhere / f"victim-{UUID}" / "backing")
    else:
        os.rename(disk.path / "backing-images", disk.path / "moved")
        (disk.path / "backing-images").symlink_to(elsewhere / "backing-images")
    before = tree(elsewhere)
    files, path = manager.files, image_path(name, UUID)
    common = {"uuid": UUID, "disk_uuid": disk.uuid, "expected_checksum": SUM}
    assert files.get(path).status in (400, 404)
    assert files.download(path).status in (400, 404, 500)
    reply = files.post("fetch", src_file_path=f"/data/tmp/victim-{UUID}",
                       dst_file_path=path, size=len(DATA), **common)
    if reply.status == 200:
        def settled():
            reply = files.get(path)
            return reply.status != 200 or reply.json()["state"] in ("ready", "failed")
        wait_until(settled, "an outcome")
        reply = files.get(path)
        assert reply.status != 200 or reply.json()["state"] == "failed"
    assert files.download(path).status != 200
    assert tree(elsewhere) == before
    files.delete(path)
    longhorn(manager).delete(name, UUID) if link != "all images" else None
    assert tree(elsewhere) == before


def test_a_link_as_the_source_of_a_fetch(world, disk):
    manager, elsewhere, _ = world
    source = disk.path / "tmp" / f"b-{UUID}"
    source.symlink_to(elsewhere / f"victim-{UUID}" / "backing")
    before = tree(elsewhere)
    reply = manager.files.post(
        "fetch", src_file_path=f"/data/tmp/b-{UUID}",
        dst_file_path=image_path("b", UUID), uuid=UUID, disk_uuid=disk.uuid,
        expected_checksum="", size=len(DATA))
    if reply.status == 200:
        assert manager.files.wait(image_path("b", UUID), "failed")["message"]
    assert not disk.ready_file("b", UUID).exists()
    assert tree(elsewhere) == before
