"""A data source makes the first file of an image on the disk of a daemon."""

import json
import threading

import pytest

from lib import images
from lib.deadline import wait_until
from lib.disks import stamp
from lib.images import MIB
from lib.longhorn import go_time, leave_image
from lib.longhorn_daemon import FILE_INFO, request
from lib.processes import run
from lib.servers import Content

NAME, UUID = "a", "6f7a"
SIZE = 48 * MIB
DATA = images.random_bytes(SIZE, 5)
SUM = images.sha512(DATA)
SOURCE_INFO = {**FILE_INFO, "sourceType": str, "parameters": dict, "name": str}
FINAL_NAMES = [f"{NAME}-{UUID}", f"{NAME}-{UUID}.cfg"]


@pytest.fixture
def image(files):
    return images.raw(files / "image.raw", 4 * MIB + 512)


def on_disk(disk):
    """All files of the disk but its identity."""
    return sorted(str(p.relative_to(disk.path)) for p in disk.path.rglob("*")
                  if p.is_file() and p.name != "longhorn-disk.cfg")


def only_its_own(disk):
    return all(name.startswith(f"tmp/{NAME}-{UUID}") for name in on_disk(disk))


def journaled(source):
    """Bytes of 256 KiB chunks that the journal beside the file names."""
    for name in source.tmp_names():
        data = (source.disk.path / "tmp" / name).read_bytes()[:4 << 20] if (
            name.endswith(".bim")) else b""
        line, _, rest = data.partition(b"\n")
        if line.startswith(b"bim-journal "):
            return (len(rest) - int(line.split()[3])) // 48 * (256 << 10)
    return 0


def failed(source, *needles):
    info = source.wait("failed")
    for needle in needles:
        assert needle.lower() in info["message"].lower(), info["message"]
    assert not source.path.exists()
    return info


# Downloads -------------------------------------------------------------------


def test_a_download(start_source, disk, nginx, image):
    parameters = {"url": nginx.url(image.name), "data-engine": "v1",
                  "volume-name": "not=known"}
    source = start_source(disk, NAME, UUID, "download", parameters)
    info = source.wait("ready-for-transfer")
    assert {key: type(value) for key, value in info.items()} == SOURCE_INFO
    assert (info["name"], info["uuid"], info["sourceType"]) == (
        NAME, UUID, "download")
    assert info["parameters"] == parameters
    assert info["diskUUID"] == disk.uuid
    assert info["filePath"] in (str(source.path), f"/data/tmp/{NAME}-{UUID}")
    assert info["size"] == info["processedSize"] == info["virtualSize"] == image.size
    assert info["realSize"] == source.path.stat().st_blocks * 512
    assert info["currentChecksum"] == image.sha512 and info["progress"] == 100
    assert info["expectedChecksum"] == "" and info["message"] == ""
    assert info["modificationTime"] == go_time(source.path.stat().st_mtime_ns)
    assert source.path.read_bytes() == image.data
    assert source.shared_names() == FINAL_NAMES and only_its_own(disk)
    # Both services tell of one file.
    listed = list(source.files.files().values())
    assert len(listed) == 1 and listed[0]["state"] == "ready"
    assert {key: type(value) for key, value in listed[0].items()} == FILE_INFO


def test_the_cfg(start_source, disk, nginx, image):
    source = start_source(disk, NAME, UUID, "download",
                          {"url": nginx.url(image.name)}, checksum=image.sha512)
    source.wait("ready-for-transfer")
    st = source.path.stat()
    cfg = json.loads(source.cfg_path.read_text())
    assert cfg == {
        "name": cfg["name"], "uuid": UUID, "size": image.size,
        "virtualSize": image.size, "realSize": st.st_blocks * 512,
        "expectedChecksum": image.sha512, "currentChecksum": image.sha512,
        "modificationTime": go_time(st.st_mtime_ns)}
    assert cfg["name"] in (str(source.path), f"/data/tmp/{NAME}-{UUID}")


def test_the_checksum_decides(start_source, disk, nginx, image):
    good = start_source(disk, NAME, UUID, "download",
                        {"url": nginx.url(image.name)}, checksum=image.sha512)
    assert good.wait("ready-for-transfer")["expectedChecksum"] == image.sha512
    good.stop()
    bad = start_source(disk, "b", UUID, "download",
                       {"url": nginx.url(image.name)}, checksum="0" * 128)
    assert image.sha512[:8] in failed(bad, "SHA-512")["message"]
    wait_until(lambda: bad.shared_names() == FINAL_NAMES, "the wrong file to go", 5)
    assert good.path.read_bytes() == image.data


def test_what_is_not_there(start_source, disk, nginx):
    source = start_source(disk, NAME, UUID, "download",
                          {"url": nginx.url("missing")})
    failed(source, "404")
    assert source.running
    wait_until(lambda: source.tmp_names() == [], "nothing in tmp", 5)
    assert source.transfer().status in (400, 500)


def test_only_its_own_names_while_at_work(start_source, disk, origin):
    gate = threading.Event()
    source = start_source(disk, NAME, UUID, "download", {"url": origin.serve(
        "/a", Content(DATA, gate=gate, gate_after=SIZE // 2))})

    def half():
        assert only_its_own(disk), on_disk(disk)
        return source.info()["processedSize"] >= SIZE // 2 - 4 * MIB
    wait_until(half, "half of it", 30)
    info = source.info()
    assert info["state"] == "in-progress" and 30 <= info["progress"] <= 60
    assert f"{NAME}-{UUID}.tmp" in source.tmp_names() and not source.path.exists()
    assert source.transfer().status in (400, 500)  # not before it is there
    gate.set()
    while source.info()["state"] not in ("ready-for-transfer", "failed"):
        assert only_its_own(disk), on_disk(disk)
    source.wait("ready-for-transfer")
    assert source.shared_names() == FINAL_NAMES
    assert images.file_sha512(source.path) == SUM


# Restarts --------------------------------------------------------------------


def test_kill9_when_ready(start_source, disk, nginx, image):
    source = start_source(disk, NAME, UUID, "download",
                          {"url": nginx.url(image.name)})
    source.wait("ready-for-transfer")
    before = stamp(source.path)
    asked = len(nginx.wait_accesses(image.name, 1))
    source.kill9()
    source.start()
    info = source.wait("ready-for-transfer")
    assert info["currentChecksum"] == image.sha512
    assert len(nginx.accesses(image.name)) == asked
    assert stamp(source.path) == before


def test_kill9_on_the_way(start_source, disk, origin):
    gate = threading.Event()
    at = SIZE * 3 // 4
    source = start_source(disk, NAME, UUID, "download", {"url": origin.serve(
        "/a", Content(DATA, gate=gate, gate_after=at))})
    wait_until(lambda: journaled(source) >= at - 8 * MIB,
               lambda: f"a journal of it; {journaled(source)}, "
                       f"{source.tmp_names()}", 30)
    source.kill9()
    gate.set()
    before = len(origin.requests)
    origin.serve("/a", Content(DATA))
    source.start()
    info = source.wait("ready-for-transfer")
    assert info["currentChecksum"] == SUM
    assert images.file_sha512(source.path) == SUM
    again = sum(r.body_sent for r in origin.requests[before:])
    assert again < SIZE // 2, f"{again} bytes were downloaded again"
    assert source.shared_names() == FINAL_NAMES


def test_another_file_now_lies_at_the_source(start_source, disk, origin):
    gate = threading.Event()
    at, other = SIZE * 3 // 4, images.random_bytes(SIZE, 9)
    source = start_source(disk, NAME, UUID, "download", {"url": origin.serve(
        "/a", Content(DATA, gate=gate, gate_after=at))})
    wait_until(lambda: source.info()["processedSize"] >= at - 8 * MIB, "most of it")
    source.kill9()
    gate.set()
    origin.serve("/a", Content(other))
    source.start()
    source.wait("ready-for-transfer")
    assert images.file_sha512(source.path) == images.sha512(other)


def test_sigterm_on_the_way(start_source, disk, origin):
    gate = threading.Event()
    source = start_source(disk, NAME, UUID, "download", {"url": origin.serve(
        "/a", Content(DATA, gate=gate, gate_after=SIZE // 2))})
    wait_until(lambda: source.info()["processedSize"] > 4 * MIB, "it to begin")
    source.stop(10)
    gate.set()
    assert only_its_own(disk) and not source.path.exists()


# Transfer -----------------------------------------------------------------------


def test_transfer(start_source, disk, nginx, image):
    source = start_source(disk, NAME, UUID, "download",
                          {"url": nginx.url(image.name)})
    source.wait("ready-for-transfer")
    before = stamp(source.path)
    for _ in range(3):
        source.transfer().ok()
        assert source.info()["state"] == "ready"
    assert stamp(source.path) == before and source.cfg_path.exists()
    assert source.files.files() == {}
    # Who took it may move it away; that is not its affair any more.
    source.path.rename(disk.path / "moved")
    source.transfer().ok()
    assert source.info()["state"] == "ready"
    source.stop()
    assert stamp(disk.path / "moved")[:3] == before[:3]


def test_transfer_before_it_is_ready(start_source, disk):
    source = start_source(disk, NAME, UUID, "upload", {})
    reply = source.transfer()
    assert reply.status in (400, 500) and reply.text.strip()
    assert source.info()["state"] == "pending"


def test_unknown_actions(start_source, disk):
    source = start_source(disk, NAME, UUID, "upload", {})
    for method, target in [("POST", "/v1/file?action=explode"),
                           ("POST", "/v1/file"), ("DELETE", "/v1/file"),
                           ("GET", "/v1/other"), ("PUT", "/v1/file")]:
        assert request(source.address, method, target).status in (400, 404, 405)


# Formats --------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["v1", "v2"])
def test_qcow2(start_source, disk, nginx, files, engine):
    image = images.qcow2(files / "image.qcow2")
    source = start_source(disk, NAME, UUID, "download", {
        "url": nginx.url(image.name), "data-engine": engine})
    info = source.wait("ready-for-transfer")
    seen = images.qemu_img_info(source.path)
    assert info["virtualSize"] == 64 * MIB
    assert info["size"] == source.path.stat().st_size
    assert info["currentChecksum"] == images.file_sha512(source.path)
    assert source.shared_names() == FINAL_NAMES
    if engine == "v1":
        assert seen["format"] == "qcow2" and source.path.read_bytes() == image.data
        return
    assert seen["format"] == "raw" and info["size"] == 64 * MIB
    run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", source.path, image.path])
    # Holes stay holes.
    assert source.path.stat().st_blocks * 512 < 8 * MIB


def test_a_wrong_checksum_of_a_converted_file(start_source, disk, nginx, files):
    image = images.qcow2(files / "image.qcow2")
    source = start_source(disk, NAME, UUID, "download", {
        "url": nginx.url(image.name), "data-engine": "v2"}, checksum="0" * 128)
    failed(source, "512")


# Together with a daemon -------------------------------------------------------------


def test_on_one_disk_with_a_daemon(start_source, start_manager, longhorn, disk,
                                   origin):
    leave_image(disk.path, "old", UUID, DATA[:MIB], images.sha512(DATA[:MIB]))
    manager = start_manager(disk)
    client = longhorn(manager)
    client.fetch("old", UUID)
    gate = threading.Event()
    source = start_source(disk, NAME, UUID, "download", {"url": origin.serve(
        "/a", Content(DATA, gate=gate, gate_after=SIZE // 2))})
    wait_until(lambda: source.info()["processedSize"] > 4 * MIB, "it to begin")
    # The daemon works, and leaves tmp/ alone, also when it starts anew.
    client.delete("old", UUID)
    manager.restart()
    client = longhorn(manager)
    assert client.list() == {}
    gate.set()
    source.wait("ready-for-transfer")
    assert images.file_sha512(source.path) == SUM
    manager.restart(kill=True)
    assert source.shared_names() == FINAL_NAMES
    # And the other way round.
    source.kill9()
    assert longhorn(manager).list() == {}
    source.start()
    source.wait("ready-for-transfer")


def test_two_sources_on_one_disk(start_source, disk, nginx, image):
    sources = [start_source(disk, f"i{n}", UUID, "download",
                            {"url": nginx.url(image.name)}) for n in range(3)]
    for source in sources:
        source.wait("ready-for-transfer")
        assert source.path.read_bytes() == image.data


# What it refuses ----------------------------------------------------------------------


@pytest.mark.parametrize("source_type,parameters,needle", [
    ("restore", {"backup-url": "s3://b@r/?backingImage=a", "concurrent-limit": "2"},
     "restore"),
    ("clone", {"backing-image": "b", "backing-image-uuid": "u",
               "encryption": "encrypt"}, "encrypt"),
    ("clone", {"backing-image": "b", "backing-image-uuid": "u",
               "encryption": "decrypt"}, "decrypt"),
    ("explode", {}, "explode"),
    ("download", {}, "url"),
    ("download", {"url": "gopher://127.0.0.1/a"}, "gopher"),
    ("export-from-volume", {"snapshot-name": "s"}, "sender-address")])
def test_what_can_never_work(start_source, disk, source_type, parameters, needle):
    source = start_source(disk, NAME, UUID, source_type, parameters, run=False)
    source.refuses_to_start(needle)
    assert on_disk(disk) == []


@pytest.mark.parametrize("name,uuid", [("../a", UUID), ("a", "../u"), ("", UUID),
                                       ("a", ""), ("a" * 65, UUID), (".a", UUID)])
def test_bad_names(start_source, disk, name, uuid):
    source = start_source(disk, name, uuid, "upload", {}, run=False)
    source.refuses_to_start("uuid" if uuid != UUID else "name")
    assert on_disk(disk) == []


def test_no_disk(start_source, disk):
    (disk.path / "longhorn-disk.cfg").unlink()
    source = start_source(disk, NAME, UUID, "upload", {}, run=False)
    source.refuses_to_start("longhorn-disk.cfg")


def test_clone_of_an_image_on_the_disk(start_source, disk, image):
    leave_image(disk.path, "b", "u", image.data, image.sha512)
    before = stamp(disk.ready_file("b", "u"))
    source = start_source(disk, NAME, UUID, "clone", {
        "backing-image": "b", "backing-image-uuid": "u", "encryption": "ignore"})
    info = source.wait("ready-for-transfer")
    assert info["currentChecksum"] == image.sha512
    assert source.path.read_bytes() == image.data
    assert stamp(disk.ready_file("b", "u")) == before
