"""qcow2, raw and iso are recognised by content; hostile ones are refused."""

import os
import struct

import pytest

from lib import images
from lib.images import KIB, MIB
from lib.processes import run
from lib.servers import Content


@pytest.fixture
def client(start_daemon, disk, files):
    return start_daemon([disk], {"sources": {"allow_file": True,
                                             "file_roots": [files]}}).client


def ensured(client, image):
    client.ensure("a", f"file://{image.path}", sha512=image.sha512)
    return client.wait_ready("a")


@pytest.mark.parametrize("options", [
    (), ("-o", "compat=0.10"), ("-o", "cluster_size=512"),
    ("-o", "cluster_size=2M"), ("-o", "compression_type=zstd"),
    ("-o", "lazy_refcounts=on"), ("-o", "extended_l2=on,cluster_size=128k"),
    ("-o", "preallocation=metadata"), ("-o", "refcount_bits=1")],
    ids=lambda o: o[-1] if o else "default")
def test_qcow2(client, files, options):
    image = images.qcow2(files / "a.qcow2", 48 * MIB + 512,
                         ((0, MIB), (20 * MIB, 700 * KIB)), options)
    ready = ensured(client, image)
    info = image.info()
    assert ready.format == info["format"] == "qcow2"
    assert ready.virtual_size == info["virtual-size"] == 48 * MIB + 512
    assert ready.size == image.size
    stat = os.stat(ready.copies[0].file_path)
    assert ready.real_size == ready.copies[0].real_size == stat.st_blocks * 512
    # What a hypervisor sees is what was put in.
    run(["qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", image.path,
         ready.copies[0].file_path])
    assert images.qemu_img_info(ready.copies[0].file_path)["virtual-size"] == (
        ready.virtual_size)


def test_a_qcow2_with_compressed_clusters_and_a_snapshot(client, files):
    raw = images.sparse_raw(files / "raw", 16 * MIB, (0, 5 * MIB))
    run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw.path,
         files / "c.qcow2"])
    run(["qemu-img", "snapshot", "-c", "before", files / "c.qcow2"])
    run(["qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64k", files / "c.qcow2"])
    size = (files / "c.qcow2").stat().st_size
    os.truncate(files / "c.qcow2", size + -size % 512)
    ready = ensured(client, images.Image(files / "c.qcow2", "qcow2"))
    assert (ready.format, ready.virtual_size) == ("qcow2", 16 * MIB)


def test_raw(client, files):
    image = images.raw(files / "a.raw", 3 * MIB + 512)
    ready = ensured(client, image)
    assert (ready.format, ready.virtual_size, ready.size) == ("raw", image.size,
                                                              image.size)


@pytest.mark.parametrize("size", [512, 1024, 4096, 256 * KIB, 256 * KIB + 512,
                                  MIB - 512, MIB])
def test_raw_sizes(client, files, size):
    image = images.raw(files / "a.raw", size)
    ready = ensured(client, image)
    assert (ready.format, ready.size) == ("raw", size)
    assert open(ready.copies[0].file_path, "rb").read() == image.data


def test_raw_of_zeros(client, files):
    (files / "zeros").write_bytes(b"")
    os.truncate(files / "zeros", 8 * MIB)
    ready = ensured(client, images.Image(files / "zeros", "raw"))
    assert (ready.format, ready.size, ready.real_size) == ("raw", 8 * MIB, 0)


def test_zeros_from_the_network_become_holes(start_daemon, origin, disk):
    data = bytearray(16 * MIB)
    data[0:65536] = images.random_bytes(65536)
    data[-4096:] = images.random_bytes(4096, 2)
    client = start_daemon([disk]).client
    client.ensure("a", origin.serve("/a", Content(bytes(data))))
    ready = client.wait_ready("a")
    assert ready.size == len(data)
    assert ready.real_size <= 256 * KIB
    assert open(ready.copies[0].file_path, "rb").read() == data


def test_iso(client, files):
    image = images.iso(files / "a.iso")
    ready = ensured(client, image)
    assert (ready.format, ready.virtual_size, ready.size) == ("iso", image.size,
                                                              image.size)


def test_the_name_means_nothing(client, files):
    image = images.qcow2(files / "a.iso", 16 * MIB, ((0, 64 * KIB),))
    assert ensured(client, image).format == "qcow2"


def refused(client, path, *words):
    client.ensure("a", f"file://{path}")
    failed = client.wait_state("a", "failed")
    for word in words:
        assert word.lower() in failed.message.lower(), failed.message
    assert not failed.copies[0].HasField("next_attempt")
    assert not os.path.exists(failed.copies[0].file_path or "/nothing")
    return failed


def test_a_backing_file_is_refused(client, files, disk):
    base = images.raw(files / "base.raw", MIB)
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base.path,
         files / "evil.qcow2", 16 * MIB])
    run(["qemu-io", "-f", "qcow2", "-c", "write -P 1 8M 64k", files / "evil.qcow2"])
    refused(client, files / "evil.qcow2", "backing file")
    assert not disk.temp_files()


def test_an_external_data_file_is_refused(client, files):
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-o",
         f"data_file={files / 'data.raw'},data_file_raw=on", files / "evil.qcow2",
         16 * MIB])
    size = (files / "evil.qcow2").stat().st_size
    os.truncate(files / "evil.qcow2", size + -size % 512)
    refused(client, files / "evil.qcow2", "external")


@pytest.mark.parametrize("method", [1, 2], ids=["AES", "LUKS"])
def test_encryption_is_refused(client, files, method):
    image = images.qcow2(files / "e.qcow2", 4 * MIB, ((0, 64 * KIB),))
    with open(image.path, "r+b") as file:
        file.seek(32)
        file.write(struct.pack(">I", method))
    refused(client, image.path, "encrypt")


@pytest.mark.parametrize("where,value", [
    (4, struct.pack(">I", 7)),            # version
    (20, struct.pack(">I", 63)),          # cluster bits
    (24, struct.pack(">Q", 1 << 62)),     # virtual size
    (40, struct.pack(">Q", 1 << 50)),     # L1 table beyond the end
    (72, struct.pack(">Q", 1 << 40)),     # an unknown incompatible feature
    (72, struct.pack(">Q", 2)),           # marked corrupt
])
def test_a_broken_header_is_refused(client, files, where, value):
    image = images.qcow2(files / "a.qcow2", 16 * MIB, ((0, 64 * KIB),))
    with open(image.path, "r+b") as file:
        file.seek(where)
        file.write(value)
    failed = refused(client, image.path)
    assert "qcow2" in failed.message.lower()
