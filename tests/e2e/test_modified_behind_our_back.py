"""A ready file that somebody changed becomes "unknown", is read again, and
ends "ready" or "failed" - never deleted."""

import os
import shutil

import pytest

from lib import images
from lib.client import EVENT, copy_of
from lib.images import MIB
from lib.servers import Content
from test_ensure_from_nginx import utc

SIZE = 4 * MIB
DATA = images.random_bytes(SIZE)


@pytest.fixture(params=["while running", "while stopped"])
def change(request, start_daemon, disks, origin):
    """change(how) modifies the image on disk one and returns (client, disks,
    file, recorder of events or None)."""
    both = [disks.directory("one"), disks.directory("two")]
    daemon = start_daemon(both)
    uuid = daemon.client.ensure("a", origin.serve("/a", Content(DATA)),
                                sha512=images.sha512(DATA)).image.spec.uuid
    daemon.client.wait_ready("a")
    file = both[0].ready_file("a", uuid)

    def apply(how):
        watch = None
        if request.param == "while running":
            watch = daemon.client.watch()
            watch.wait_type(EVENT.TYPE_SNAPSHOT_END)
            how(file)
        else:
            daemon.stop()
            how(file)
            daemon.start()
        return daemon.client, both, file, watch

    return apply


def flip(file):
    with open(file, "r+b") as f:
        f.seek(SIZE // 2)
        f.write(bytes([DATA[SIZE // 2] ^ 1]))


def flip_and_hide(file):
    stat = os.stat(file)
    flip(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def append(file):
    with open(file, "ab") as f:
        f.write(b"x" * 512)


def cut(file):
    os.truncate(file, SIZE - 4096)


def empty(file):
    os.truncate(file, 0)


@pytest.mark.parametrize("how", [flip, flip_and_hide, append, cut, empty])
def test_other_content_ends_failed(change, origin, how):
    client, (one, two), file, watch = change(how)
    bad = client.wait_copy("a", one, "failed")
    assert bad.message
    size = {append: SIZE + 512, cut: SIZE - 4096, empty: 0}.get(how, SIZE)
    assert file.stat().st_size == size, "it was not kept"
    # The other disk's copy is not concerned, and nothing was fetched for it.
    assert copy_of(client.get("a"), two).state == "ready"
    assert origin.count("/a") == 1
    if watch:
        # The watch is another call: it may come a moment later.
        watch.wait(lambda _: watch.states("a", one)[-1:] == ["failed"], "failed")
        seen = watch.states("a", one)
        assert seen[0] == "ready"
        assert set(seen[1:-1]) <= {"unknown"}, seen


def touch(file):
    os.utime(file)


def replace_by_itself(file):
    new = file.parent.parent / "copy"
    shutil.copyfile(file, new)
    new.rename(file)


def rewrite(file):
    file.write_bytes(DATA)


@pytest.mark.parametrize("how", [touch, replace_by_itself, rewrite])
def test_the_same_content_ends_ready(change, origin, how):
    client, (one, two), file, watch = change(how)
    if watch:
        watch.wait(lambda _: "unknown" in watch.states("a", one),
                   "unknown in between")
    client.wait_ready("a")
    assert file.read_bytes() == DATA
    assert origin.count("/a") == 1
    # From now on it is trusted as it is.
    assert client.verify("a")[-1].ok
    uuid = client.get("a").spec.uuid
    cfg = one.cfg("a", uuid)
    assert cfg["modificationTime"] == utc(os.stat(file).st_mtime_ns)


def test_a_deleted_file_is_brought_again(change, origin):
    client, (one, two), file, _ = change(os.unlink)
    client.wait_image("a", lambda i: i.state == "ready" and file.exists(),
                      "back on disk one")
    assert file.read_bytes() == DATA


def test_a_mode_change_is_no_content_change(change):
    client, (one, two), file, _ = change(lambda f: os.chmod(f, 0o600))
    client.wait_ready("a")
    assert file.read_bytes() == DATA


def test_without_expected_checksum(start_daemon, disk, origin):
    """It is compared with what it was when it came."""
    daemon = start_daemon([disk])
    uuid = daemon.client.ensure("a", origin.serve("/a", Content(DATA))).image.spec.uuid
    daemon.client.wait_ready("a")
    daemon.stop()
    flip(disk.ready_file("a", uuid))
    daemon.start()
    daemon.client.wait_state("a", "failed")
    daemon.restart()
    daemon.client.wait_state("a", "failed")
    assert disk.ready_file("a", uuid).exists()
