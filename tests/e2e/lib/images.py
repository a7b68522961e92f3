"""Image files of every kind, with their digests. Deterministic by seed."""

import hashlib
import json
import os
import random
import struct
from dataclasses import dataclass, field
from pathlib import Path

from .processes import run

KIB = 1024
MIB = 1024 * 1024


def sha512(data):
    return hashlib.sha512(data).hexdigest()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def file_sha512(path):
    digest = hashlib.sha512()
    with open(path, "rb") as file:
        while piece := file.read(MIB):
            digest.update(piece)
    return digest.hexdigest()


@dataclass
class Image:
    """An image file that a test made."""

    path: Path
    format: str
    sha512: str = field(init=False)
    sha256: str = field(init=False)
    size: int = field(init=False)

    def __post_init__(self):
        data = self.data
        self.sha512, self.sha256, self.size = sha512(data), sha256(data), len(data)

    @property
    def data(self):
        return self.path.read_bytes()

    @property
    def name(self):
        return self.path.name

    def info(self):
        return qemu_img_info(self.path)


def qemu_img_info(path):
    return json.loads(run(["qemu-img", "info", "-U", "--output=json", path]).stdout)


def random_bytes(size, seed=1):
    """Looks like nothing in particular: begins as a boot sector does."""
    data = bytearray(random.Random(seed).randbytes(size))
    if size >= 512:
        data[0:3] = b"\xeb\x63\x90"
        data[510:512] = b"\x55\xaa"
    return bytes(data)


def raw(path, size=4 * MIB, seed=1):
    path = Path(path)
    path.write_bytes(random_bytes(size, seed))
    return Image(path, "raw")


def sparse_raw(path, size=32 * MIB, data_at=(0, 8 * MIB, 31 * MIB),
               piece=256 * KIB, seed=1):
    """Holes, with `piece` bytes of data at each offset."""
    path = Path(path)
    with open(path, "wb") as file:
        file.truncate(size)
        for number, offset in enumerate(data_at):
            file.seek(offset)
            file.write(random_bytes(piece, seed + number))
    return Image(path, "raw")


def qcow2(path, virtual_size=64 * MIB, writes=((0, 1 * MIB), (10 * MIB, 3 * MIB)),
          options=()):
    """Made by qemu-img, filled by qemu-io with (offset, length) patterns."""
    path = Path(path)
    run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, virtual_size])
    for number, (offset, length) in enumerate(writes):
        run(["qemu-io", "-f", "qcow2", "-c",
             f"write -P {0x41 + number} {offset} {length}", path])
    # A qcow2 file is a multiple of its cluster size already.
    size = path.stat().st_size
    if size % 512:
        os.truncate(path, size + 512 - size % 512)
    return Image(path, "qcow2")


def iso(path, files=(("README.TXT;1", b"an ISO 9660 image made by hand\n"),),
        label="BIM_TEST"):
    """A minimal ISO 9660 file system, written by hand (ECMA-119)."""
    sector = 2048

    def both16(n):
        return struct.pack("<H", n) + struct.pack(">H", n)

    def both32(n):
        return struct.pack("<I", n) + struct.pack(">I", n)

    date = bytes([126, 1, 1, 0, 0, 0, 0])

    def record(name, extent, length, is_dir):
        size = 33 + len(name) + (len(name) + 1) % 2
        return (bytes([size, 0]) + both32(extent) + both32(length) + date
                + bytes([2 if is_dir else 0, 0, 0]) + both16(1)
                + bytes([len(name)]) + name
                + b"\0" * ((len(name) + 1) % 2))

    root_at, table_l, table_m, first_file = 20, 18, 19, 21
    at, entries, blobs = first_file, b"", b""
    for name, content in files:
        entries += record(name.encode(), at, len(content), False)
        padded = content + b"\0" * (-len(content) % sector)
        blobs += padded
        at += len(padded) // sector
    root = (record(b"\0", root_at, sector, True)
            + record(b"\1", root_at, sector, True) + entries)
    root = root.ljust(sector, b"\0")
    total = at + 150  # some space behind, as real tools leave it
    pvd = (b"\x01CD001\x01\0" + b" " * 32 + label.encode().ljust(32)
           + b"\0" * 8 + both32(total) + b"\0" * 32 + both16(1) + both16(1)
           + both16(sector) + both32(10)
           + struct.pack("<I", table_l) + struct.pack("<I", 0)
           + struct.pack(">I", table_m) + struct.pack(">I", 0)
           + record(b"\0", root_at, sector, True)
           + b" " * (128 * 4) + b" " * (37 * 3)
           + b"2026010100000000\0" * 2 + b"0000000000000000\0" * 2 + b"\x01\0")
    path_l = struct.pack("<BBIH", 1, 0, root_at, 1) + b"\0\0"
    path_m = struct.pack(">BBIH", 1, 0, root_at, 1) + b"\0\0"
    body = (b"\0" * (16 * sector) + pvd.ljust(sector, b"\0")
            + b"\xffCD001\x01".ljust(sector, b"\0")
            + path_l.ljust(sector, b"\0") + path_m.ljust(sector, b"\0")
            + root + blobs)
    path = Path(path)
    path.write_bytes(body.ljust(total * sector, b"\0"))
    return Image(path, "iso")
