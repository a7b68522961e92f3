"""Disks for the daemon: plain directories, and real small file systems."""

import fcntl
import json
import os
import re
import struct
import uuid as uuids
from contextlib import suppress
from pathlib import Path

from .deadline import wait_until
from .processes import run

EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32); 1: the journal is flushed


def stamp(path):
    """What tells whether a file is the same and untouched (but for reading)."""
    st = os.stat(path)
    return st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_mode


class Disk:
    """A directory with an identity: what the daemon calls a disk."""

    def __init__(self, path, uuid=None, init=True):
        self.path = Path(path)
        self.uuid = uuid or str(uuids.uuid4())
        self.path.mkdir(parents=True, exist_ok=True)
        if init:
            self.write_identity(self.uuid)

    def __str__(self):
        return str(self.path)

    def write_identity(self, uuid):
        new = self.path / "longhorn-disk.cfg.tmp"
        new.write_text(json.dumps({"diskUUID": uuid, "diskName": "test-disk",
                                   "diskDriver": "", "state": ""}))
        new.rename(self.path / "longhorn-disk.cfg")

    # What lies on it, by the contract's layout.
    def image_dir(self, name, uuid):
        return self.path / "backing-images" / f"{name}-{uuid}"

    def ready_file(self, name, uuid):
        return self.image_dir(name, uuid) / "backing"

    def temp_file(self, name, uuid):
        return self.image_dir(name, uuid) / "backing.tmp"

    def cfg(self, name, uuid):
        return json.loads((self.image_dir(name, uuid) / "backing.cfg").read_text())

    def owner(self):
        return json.loads((self.path / ".bim" / "owner").read_text())

    def image_files(self):
        """All names below backing-images, as sorted relative paths."""
        root = self.path / "backing-images"
        return sorted(str(p.relative_to(root)) for p in root.rglob("*"))

    def temp_files(self):
        """Unfinished work, anywhere on the disk."""
        return sorted(str(p.relative_to(self.path)) for p in self.path.rglob("*")
                      if p.name.endswith(".tmp"))


class LoopDisk(Disk):
    """A small ext4 or XFS of its own on a loop device. Needs root.

    The loop device outlives unmounting, so that mounting again gives the same
    file system instance, as with a real disk.
    """

    def __init__(self, image, mountpoint, kind="ext4", mib=64, uuid=None,
                 init=True):
        self.image = Path(image)
        self.kind = kind
        self.mountpoint = Path(mountpoint)
        self.device = None
        self.mountpoint.mkdir(parents=True, exist_ok=True)
        with open(self.image, "wb") as file:
            file.truncate(mib * 1024 * 1024)
        if kind == "ext4":
            run(["mkfs.ext4", "-q", "-F", "-m", "0", self.image])
        elif kind == "xfs":
            run(["mkfs.xfs", "-q", "-m", "reflink=1", self.image])
        else:
            raise ValueError(kind)
        self.device = run(["losetup", "-f", "--show", self.image]
                          ).stdout.decode().strip()
        try:
            self.mount()
            super().__init__(self.mountpoint, uuid, init)
        except BaseException:
            self.close()
            raise

    def mounts(self):
        """How many file systems are mounted at our mount point."""
        with open("/proc/self/mounts", encoding="utf-8") as file:
            return sum(line.split()[1] == str(self.mountpoint) for line in file)

    def read_only(self):
        """Whether writing fails now, whatever the mount table says."""
        try:
            probe = self.mountpoint / ".probe"
            probe.touch()
            probe.unlink()
            return False
        except OSError:
            return True

    def mount(self, options="rw"):
        run(["mount", "-o", options, self.device, self.mountpoint])

    def unmount(self):
        """As a disk that goes away: also with files open on it."""
        run(["umount", "-l", self.mountpoint])

    def remount(self, options, check=True):
        return run(["mount", "-o", f"remount,{options}", self.mountpoint],
                   check=check).returncode == 0

    def fail_read_only(self):
        """An ext4 error, upon which the kernel makes the file system
        read-only, whoever has files open for writing."""
        assert self.kind == "ext4"
        self.remount("errors=remount-ro")
        # What was written without fsync is lost with the journal.
        run(["sync", "-f", self.mountpoint])
        name = os.path.basename(self.device)
        Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("1\n")
        wait_until(self.read_only, f"{self.mountpoint} read-only")

    def fail_io(self):
        """As when the device is gone: whatever is not in memory is EIO from now
        on, whoever has files open."""
        assert self.kind == "ext4"
        run(["sync", "-f", self.mountpoint])
        descriptor = os.open(self.mountpoint, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", 1))
        finally:
            os.close(descriptor)
        wait_until(self.read_only, f"{self.mountpoint} to fail")

    def repair(self, deadline=20.0):
        """Unmounts until nothing holds the failed instance, checks, mounts."""
        while self.mounts():
            self.unmount()
        name = os.path.basename(self.device)
        wait_until(lambda: not Path(f"/sys/fs/{self.kind}/{name}").exists(),
                   f"nobody to have files open on the unmounted {self.device}",
                   deadline)
        if self.kind == "ext4":
            # 1: errors were corrected.
            done = run(["e2fsck", "-f", "-y", self.device], check=False)
            assert done.returncode in (0, 1), done.stdout.decode()
        self.mount()

    def rot(self, file, *offsets):
        """Flips a bit at each offset of a file as a dying device does: no
        time of the file changes. Nobody may use the disk meanwhile."""
        file = Path(file)
        run(["sync", "-f", self.mountpoint])
        listed = run(["filefrag", "-v", "-b512", file]).stdout.decode()
        extents = [tuple(map(int, row)) for row in re.findall(
            r"^\s*\d+:\s*(\d+)\.\.\s*(\d+):\s*(\d+)\.\.", listed, re.M)]
        before, name = os.stat(file), file.relative_to(self.mountpoint)
        run(["umount", self.mountpoint])
        with open(self.device, "r+b") as device:
            for offset in offsets:
                at = next(physical + offset // 512 - first
                          for first, last, physical in extents
                          if first <= offset // 512 <= last) * 512 + offset % 512
                device.seek(at)
                byte = device.read(1)[0]
                device.seek(at)
                device.write(bytes([byte ^ 1]))
            device.flush()
            os.fsync(device.fileno())
        self.mount()
        after = os.stat(self.mountpoint / name)
        assert (after.st_ino, after.st_mtime_ns, after.st_ctime_ns) == (
            before.st_ino, before.st_mtime_ns, before.st_ctime_ns)

    def close(self):
        with suppress(AssertionError):
            for _ in range(8):
                if not self.mounts():
                    break
                self.unmount()
        if self.device:
            # Lazily: it goes when its last user does.
            run(["losetup", "-d", self.device], check=False)
            self.device = None


class DiskMaker:
    """Makes the disks of one test and takes every one of them away again."""

    def __init__(self, root):
        self.root = Path(root)
        self.made = []

    def directory(self, name, **options):
        return Disk(self.root / name, **options)

    def loop(self, name, kind="ext4", mib=64, **options):
        disk = LoopDisk(self.root / f"{name}.img", self.root / name, kind, mib,
                        **options)
        self.made.append(disk)
        return disk

    def close(self):
        for disk in reversed(self.made):
            disk.close()
