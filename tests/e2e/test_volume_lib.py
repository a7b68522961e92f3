"""The volume that other tests keep at work, against images that stay as they
are and against what it must notice, so that other tests may rely on both."""

import errno
import os
import signal
from pathlib import Path

import pytest

from lib import images
from lib.deadline import wait_until
from lib.images import KIB, MIB
from lib.processes import end, proc_text
from lib.volume import STRIPE, Nbd, Volume

pytestmark = pytest.mark.without_binary

# In the third of the stripes that the volume never writes, and in its middle.
UNTOUCHED = 5 * STRIPE + 64 * KIB


@pytest.fixture
def raw(files):
    return images.raw(files / "image.raw", 2 * MIB)


@pytest.fixture
def qcow2(files):
    return images.qcow2(files / "image.qcow2", 4 * MIB,
                        ((0, 1 * MIB), (2 * MIB + 4 * KIB, 1 * MIB)))


def overwrite(path, offset, data):
    """Behind the volume's back, in the file that it has open."""
    fd = os.open(path, os.O_WRONLY)
    try:
        assert os.pwrite(fd, data, offset) == len(data)
    finally:
        os.close(fd)


def worked(volume, operations=20):
    """What it does in less than half a second, if the machine has time for it."""
    wait_until(lambda: volume.error or volume.operations >= operations,
               lambda: f"{operations} operations: {volume.operations}")
    return volume


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_nothing_happens(request, volume, format):
    image = request.getfixturevalue(format)
    at_work = volume(image.path, format)
    assert proc_text(at_work.pid, "comm").startswith("qemu-")
    at_work.check()
    operations = worked(at_work).operations
    at_work.check()
    assert at_work.finish() > operations
    assert images.file_sha512(image.path) == image.sha512
    assert not Path(f"/proc/{at_work.pid}").exists()
    at_work.close()
    with pytest.raises(AssertionError, match="qemu ended with 0"):
        at_work.check()


def test_content_and_size_are_the_callers(volume, raw):
    """A disk larger than its image, whose size is no multiple of anything."""
    at_work = volume(raw.path, "raw", content=raw.data,
                     size=raw.size + 3 * STRIPE + 512)
    assert at_work.size == raw.size + 3 * STRIPE + 512
    at_work.finish()


def test_another_content_than_expected(volume, qcow2, raw):
    with pytest.raises(AssertionError, match="before the first write.* offset 0,"):
        volume(qcow2.path, "qcow2", content=bytes(4 * MIB))
    with pytest.raises(AssertionError, match=f"offset {UNTOUCHED},"):
        volume(raw.path, "raw", content=raw.data[:UNTOUCHED] + bytes(512)
               + raw.data[UNTOUCHED + 512:]).finish()


def test_a_long_directory(volume, raw, scratch):
    """The path of a socket must be short; those of pytest may be long."""
    long = Volume(scratch / ("d" * 120), raw.path, "raw")
    try:
        long.start().finish()
    finally:
        long.close()


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_the_image_is_modified(request, volume, format):
    image = request.getfixturevalue(format)
    at_work = volume(image.path, format)
    at_work.check()
    # In the qcow2 file the guest's first MiB, all 0x41, lies in one piece.
    at = UNTOUCHED if format == "raw" else image.data.index(b"\x41" * KIB) + UNTOUCHED
    overwrite(image.path, at, b"not ours")
    with pytest.raises(AssertionError, match=f"first at offset {UNTOUCHED}, where the "
                                             "backing file has .* 6e6f74206f757273"):
        at_work.finish()


def test_the_volumes_own_data_is_modified(volume, raw):
    """More of it than the volume can write again before it is read."""
    at_work = volume(raw.path, "raw")
    other = Nbd(at_work.socket)
    for at in range(0, raw.size, 2 * STRIPE):
        other.write(at, bytes(STRIPE))
    other.disconnect()
    with pytest.raises(AssertionError, match="first at offset"):
        at_work.finish()


def test_qemu_is_killed(volume, raw):
    at_work = volume(raw.path, "raw")
    at_work.check()
    end(at_work.process, signal.SIGKILL)
    with pytest.raises(AssertionError, match="qemu ended with -9"):
        at_work.check()
    with pytest.raises(AssertionError, match="qemu ended with -9"):
        at_work.finish()


def test_qemu_stalls(volume, raw):
    at_work = volume(raw.path, "raw")
    at_work.check()
    at_work.process.send_signal(signal.SIGSTOP)
    at_work.deadline = 0.2
    with pytest.raises(AssertionError, match="does nothing"):
        at_work.check()
    at_work.process.send_signal(signal.SIGCONT)


def test_the_server_replies_an_error(volume, raw, monkeypatch):
    """To a read behind the end."""
    at_work = volume(raw.path, "raw")
    at_work.check()
    read = at_work.nbd.read
    monkeypatch.setattr(at_work.nbd, "read",
                        lambda offset, length: read(at_work.size, length))
    wait_until(lambda: at_work.error, "the volume sees the error")
    assert at_work.error.errno == errno.EINVAL
    with pytest.raises(AssertionError, match=f"Errno {errno.EINVAL}"):
        at_work.finish()
