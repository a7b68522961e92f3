"""A data source that has a volume's replica export a snapshot to it."""

import pytest

from lib import images
from lib.deadline import wait_until
from lib.images import MIB
from lib.processes import run
from lib.ports import free_port

NAME, UUID = "a", "6f7a"
SNAPSHOT = "volume-snap-6f7a.img"


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """A volume as a replica holds it: raw, with holes."""
    return images.sparse_raw(tmp_path_factory.mktemp("volume") / "volume",
                             24 * MIB, (0, 8 * MIB, 20 * MIB), 3 * MIB)


@pytest.fixture
def export(start_source, disk):
    """export(replica, **parameters) -> the data source."""
    def start(address, size=24 * MIB, **changes):
        checksum = changes.pop("checksum", "")
        parameters = {
            "snapshot-name": SNAPSHOT, "sender-address": address,
            "volume-name": "some-volume", "volume-size": str(size),
            "file-type": "raw", "file-sync-http-client-timeout": "30",
            **{key.replace("_", "-"): value for key, value in changes.items()}}
        return start_source(disk, NAME, UUID, "export-from-volume",
                            {k: v for k, v in parameters.items() if v is not None},
                            checksum=checksum)
    return start


def failed(source, replica, deadline=60):
    info = source.wait("failed", deadline=deadline)
    assert info["message"].strip()
    assert not source.path.exists()
    wait_until(lambda: source.tmp_names() == [],
               lambda: f"nothing in tmp; {source.tmp_names()}")
    assert len(replica.calls) <= 1  # asked once; no second push over the first
    return info["message"]


@pytest.mark.parametrize("file_type", ["raw", "", None])
def test_raw(export, replica, volume, file_type):
    sender = replica(volume.path)
    source = export(sender.address, file_type=file_type)
    info = source.wait("ready-for-transfer")
    assert info["currentChecksum"] == volume.sha512
    assert info["size"] == info["virtualSize"] == volume.size
    assert info["sourceType"] == "export-from-volume"
    assert source.path.read_bytes() == volume.data
    assert source.path.stat().st_blocks <= volume.path.stat().st_blocks + 16
    call, = sender.calls
    assert (call.snapshot, call.host, call.port) == (
        SNAPSHOT, "127.0.0.1", source.receive_port)
    assert call.export_backing_image is True and call.timeout == 30
    assert call.unknown == ()


def test_qcow2(export, replica, volume):
    sender = replica(volume.path)
    source = export(sender.address, file_type="qcow2")
    info = source.wait("ready-for-transfer")
    seen = images.qemu_img_info(source.path)
    assert seen["format"] == "qcow2" and "backing-filename" not in seen
    assert info["virtualSize"] == seen["virtual-size"] == volume.size
    assert info["size"] == source.path.stat().st_size and info["size"] % 512 == 0
    assert info["currentChecksum"] == images.file_sha512(source.path)
    run(["qemu-img", "check", "-q", "-f", "qcow2", source.path])
    run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", source.path, volume.path])
    assert source.path.stat().st_blocks * 512 < 12 * MIB
    assert source.shared_names() == [f"{NAME}-{UUID}", f"{NAME}-{UUID}.cfg"]


def test_a_replica_that_sends_whole_blocks(export, replica, volume):
    source = export(replica(volume.path, round_up=True).address)
    source.wait("ready-for-transfer")
    assert source.path.read_bytes() == volume.data


@pytest.mark.parametrize("size", ["x", "", None, "24Mi"])
def test_a_size_that_is_no_number_is_unknown(export, replica, volume, size):
    source = export(replica(volume.path).address, volume_size=size)
    info = source.wait("ready-for-transfer")
    assert info["size"] == volume.size
    assert source.path.read_bytes() == volume.data


@pytest.mark.parametrize("timeout", ["x", "", None])
def test_a_timeout_that_is_no_number_is_60(export, replica, volume, timeout):
    sender = replica(volume.path)
    source = export(sender.address, file_sync_http_client_timeout=timeout)
    source.wait("ready-for-transfer")
    assert sender.calls[0].timeout == 60


def test_the_checksum(export, replica, volume):
    sender = replica(volume.path)
    source = export(sender.address, checksum="0" * 128)
    assert "512" in failed(source, sender)


def test_a_replica_that_fails_at_once(export, replica, volume):
    sender = replica(volume.path, fail="at once")
    source = export(sender.address)
    assert "cannot open the snapshot chain" in failed(source, sender)


def test_a_replica_that_fails_late(export, replica, volume):
    """Part of it came, and a close."""
    sender = replica(volume.path, fail="late")
    failed(export(sender.address), sender)


@pytest.mark.parametrize("options", [{"close_after": 1}, {"leave_out": (1,)}],
                         ids=lambda o: next(iter(o)))
def test_a_replica_that_says_ok_too_early(export, replica, volume, options):
    sender = replica(volume.path, **options)
    failed(export(sender.address), sender)


def test_a_replica_that_dies(export, replica, volume):
    sender = replica(volume.path, die_after=1)
    failed(export(sender.address), sender)


@pytest.mark.waits
@pytest.mark.timeout(200)
def test_a_replica_that_stops(export, replica, volume):
    sender = replica(volume.path, pause_after=1)
    source = export(sender.address)
    wait_until(lambda: sender.pushes, "the push")
    sender.pushes[0].wait_paused()
    source.wait("in-progress")
    wait_until(lambda: source.info()["processedSize"] > 0, "progress")
    failed(source, sender, 90)


@pytest.mark.timeout(200)
def test_nobody_there(export, replica, volume):
    source = export(f"127.0.0.1:{free_port()}")
    info = source.wait("failed", deadline=100)
    assert info["message"].strip() and source.tmp_names() == []


def test_another_size_than_the_volumes(export, replica, volume):
    sender = replica(volume.path)
    failed(export(sender.address, size=16 * MIB), sender)


def test_then_fetch(export, replica, volume, start_manager, longhorn, disk):
    source = export(replica(volume.path).address)
    source.wait("ready-for-transfer")
    client = longhorn(start_manager(disk))
    client.fetch(NAME, UUID, size=volume.size, address=source.address)
    assert client.wait(NAME, UUID, "ready").status.checksum == volume.sha512
    assert disk.ready_file(NAME, UUID).read_bytes() == volume.data
