"""Remove: forgets and deletes; refused while a process has the file open."""

import subprocess
import threading
import urllib.request

import grpc
import pytest

from lib import images
from lib.client import refused
from lib.deadline import scaled, wait_until
from lib.disks import stamp
from lib.processes import end, open_files, run, spawn
from lib.servers import Content, Never

PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
NOT_FOUND = grpc.StatusCode.NOT_FOUND
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def image(files):
    return images.qcow2(files / "a.qcow2", 16 * images.MIB, ((0, images.MIB),))


@pytest.fixture
def ready(start_daemon, disks, origin, image):
    """A daemon with the image ready on two disks: (daemon, disks, uuid)."""
    both = [disks.directory("one"), disks.directory("two")]
    daemon = start_daemon(both)
    uuid = daemon.client.ensure("a", origin.serve("/a", Content(image.data))
                                ).image.spec.uuid
    daemon.client.wait_ready("a")
    return daemon, both, uuid


def gone(daemon, both):
    with refused(NOT_FOUND):
        daemon.client.get("a")
    assert not daemon.client.list_all()
    for disk in both:
        assert disk.image_files() == []
        assert not list((disk.path / ".bim" / "desired").iterdir())
    wait_until(lambda: not [f for f in open_files(daemon.pid) if "backing-images/" in f],
               lambda: f"files closed: {open_files(daemon.pid)}")


def test_remove_deletes_everywhere(ready):
    daemon, both, uuid = ready
    daemon.client.remove("a", uuid)
    gone(daemon, both)
    with refused(NOT_FOUND, "cannot find"):
        daemon.client.remove("a", uuid)
    daemon.restart()
    assert not daemon.client.list_all()


def test_refused_while_open_then_forced(ready, image):
    daemon, both, uuid = ready
    file = both[1].ready_file("a", uuid)
    with open(file, "rb") as reader:
        with refused(PRECONDITION, "open"):
            daemon.client.remove("a")
        # Nothing happened, also not on the other disk.
        assert daemon.client.get("a").state == "ready"
        assert all(d.ready_file("a", uuid).exists() for d in both)
        daemon.client.remove("a", force=True)
        gone(daemon, both)
        # Who has it open still reads it.
        assert reader.read() == image.data
    daemon.restart()
    assert not daemon.client.list_all()


def test_refused_while_qemu_has_it_open(ready, scratch):
    """A real reader: an overlay whose backing file is the image."""
    daemon, both, uuid = ready
    overlay = scratch / "overlay.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b",
         both[0].ready_file("a", uuid), overlay])
    qemu = spawn(["qemu-io", "-f", "qcow2", overlay], stdin=subprocess.PIPE,
                 stdout=subprocess.PIPE)
    try:
        qemu.stdin.write(b"read -P 0x41 0 64k\n")
        qemu.stdin.flush()
        file = str(both[0].ready_file("a", uuid))
        wait_until(lambda: file in open_files(qemu.pid), "qemu-io to open the image")
        with refused(PRECONDITION, "open", str(qemu.pid)):
            daemon.client.remove("a")
    finally:
        qemu.stdin.close()
        end(qemu)
    daemon.client.remove("a")
    gone(daemon, both)


def test_our_own_reading_is_no_obstacle(ready):
    """A client that is being served does not block Remove, and is served on."""
    daemon, both, uuid = ready
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(daemon.data_url("a", uuid), timeout=scaled(10)) as response:
        response.read(4096)
        daemon.client.remove("a", force=True)
        gone_from_list = daemon.client.list_all()
    assert not gone_from_list


def test_remove_in_mid_download(start_daemon, origin, disk):
    data = images.random_bytes(4 * images.MIB)
    gate = threading.Event()
    url = origin.serve("/a", Content(data, gate=gate, gate_after=images.MIB))
    daemon = start_daemon([disk])
    uuid = daemon.client.ensure("a", url).image.spec.uuid
    daemon.client.wait_state("a", "in-progress")
    wait_until(disk.temp_file("a", uuid).exists, "the temp file")
    daemon.client.remove("a")
    gone(daemon, [disk])
    # The connection to the source is closed, too.
    gate.set()
    request = origin.requests_of("/a")[0]
    wait_until(lambda: not [f for f in open_files(daemon.pid) if ".tmp" in f], "closed")
    assert request.body_sent <= len(data)
    # The same name may come again at once.
    daemon.client.ensure("a", url, uuid=uuid)
    daemon.client.wait_ready("a")


def test_remove_while_the_server_is_silent(start_daemon, origin, disk):
    url = origin.serve("/a", Never())
    daemon = start_daemon([disk], {"sources": {"first_byte_timeout": "60s"}})
    daemon.client.ensure("a", url)
    origin.wait_count("/a", 1)
    daemon.client.remove("a")
    gone(daemon, [disk])


def test_remove_of_a_failed_image(start_daemon, origin, disk):
    daemon = start_daemon([disk])
    daemon.client.ensure("a", origin.url("/nothing"))
    daemon.client.wait_state("a", "failed")
    daemon.client.remove("a")
    gone(daemon, [disk])


def test_remove_leaves_the_others(ready, origin, image):
    daemon, both, uuid = ready
    daemon.client.ensure("b", origin.serve("/b", Content(image.data)))
    b = daemon.client.wait_ready("b")
    stamps = [stamp(c.file_path) for c in b.copies]
    daemon.client.remove("a")
    assert [stamp(c.file_path) for c in b.copies] == stamps
    assert daemon.client.get("b") == b


def test_foreign_files_are_not_deleted(ready):
    """What we did not put there is not ours to delete."""
    daemon, both, uuid = ready
    foreign = both[0].image_dir("a", uuid) / "notes.txt"
    foreign.write_text("keep me\n")
    daemon.client.remove("a")
    assert foreign.read_text() == "keep me\n"
    assert both[0].image_files() == [f"a-{uuid}", f"a-{uuid}/notes.txt"]
    assert both[1].image_files() == []


@pytest.mark.timeout(180)
@pytest.mark.parametrize("ends", ["failed", "ready"])
def test_while_it_is_told_other_peers(start_daemon, disks, connect, origin, image,
                                      ends):
    """Who changes what is wanted brings back nothing that is removed."""
    both = [disks.directory("one"), disks.directory("two")]
    daemon = start_daemon(both)
    url = (origin.serve("/a", Content(image.data)) if ends == "ready"
           else origin.url("/nothing"))
    ensuring, removing = connect(daemon.address), connect(daemon.address)
    wrong = []

    def ensure(number):
        for peer in range(6):
            try:
                ensuring.ensure("a", url, uuid="u",
                                peers=[f"127.0.0.1:{1 + (number + peer) % 4}"])
            except grpc.RpcError as error:
                # Being removed at that moment.
                if error.code() != UNAVAILABLE:
                    wrong.append(error)

    def remove(client, *expected):
        try:
            client.remove("a", "u", force=True)
        except grpc.RpcError as error:
            if error.code() not in (NOT_FOUND, *expected):
                wrong.append(error)

    for number in range(30):
        if number % 2:
            daemon.client.ensure("a", url, uuid="u")
        threads = [threading.Thread(target=ensure, args=(number,)),
                   *(threading.Thread(target=remove, args=(removing, UNAVAILABLE))
                     for _ in range(2))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(scaled(60))
            assert not thread.is_alive()
        remove(daemon.client)
        assert not wrong, wrong
        gone(daemon, both)
        if number % 10 == 9:
            daemon.restart(kill=number == 19)
            gone(daemon, both)
            ensuring, removing = connect(daemon.address), connect(daemon.address)
