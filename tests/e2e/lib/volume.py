"""A volume as a virtual machine has it: a qcow2 overlay whose backing file is
an image of ours, held open by a real qemu process that serves it by NBD, and a
client at work on it.

Between start() and finish() somebody may replace the manager of the image, or
do to it whatever else must not be felt by those who use the image. The client
is the one that would feel it: it remembers every byte that the disk must have
and compares.
"""

import errno
import json
import operator
import os
import random
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from .deadline import scaled, wait_until
from .images import KIB, MIB
from .processes import clean_environment, end, run, spawn

BLOCK = 4 * KIB        # what writes are aligned to, as file systems do
MOST = 64 * KIB        # of one write or read
STRIPE = 128 * KIB     # every second one is never written
PER_SECOND = 50        # operations: enough to notice, little enough to be cheap
EXPORT = "volume"


class Nbd:
    """A client of an NBD server on a unix socket, one request at a time.

    Every failure is an OSError: with the errno that the server replied, or
    EPROTO for a reply that makes no sense, or of the connection.
    """

    # Fixed newstyle negotiation.
    OPTION_MAGIC, OPTION_REPLY_MAGIC = b"IHAVEOPT", 0x0003E889045565A9
    FIXED_NEWSTYLE, NO_ZEROES = 1, 2
    OPT_GO, REP_ACK, REP_INFO, INFO_EXPORT = 7, 1, 3, 0
    # Transmission.
    REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
    READ, WRITE, DISC, FLUSH = 0, 1, 2, 3
    FLAG_READ_ONLY, FLAG_SEND_FLUSH = 2, 4
    NAMES = ("read", "write", "disconnect", "flush")

    def __init__(self, path, export=EXPORT, timeout=20.0):
        self.size = self.flags = None
        self._handle = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(scaled(timeout))
            self._socket.connect(os.fspath(path))
            self._negotiate(export.encode())
        except BaseException:
            self._socket.close()
            raise

    def read(self, offset, length):
        return self._request(self.READ, offset, length)

    def write(self, offset, data):
        self._request(self.WRITE, offset, len(data), data)

    def flush(self):
        self._request(self.FLUSH)

    def disconnect(self):
        """Takes leave properly; the server replies nothing to that."""
        self._send_request(self.DISC, 0, 0)
        self.close()

    def abort(self):
        """A request on its way, by another thread, fails at once."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self):
        self._socket.close()

    def _negotiate(self, export):
        magic, option_magic, flags = struct.unpack(">8s8sH", self._receive(18))
        self._expect(magic == b"NBDMAGIC" and option_magic == self.OPTION_MAGIC
                     and flags & self.FIXED_NEWSTYLE,
                     f"no fixed newstyle server: {magic} {option_magic} {flags}")
        wanted = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
        self._socket.sendall(
            struct.pack(">I", flags & (self.FIXED_NEWSTYLE | self.NO_ZEROES))
            + self.OPTION_MAGIC + struct.pack(">II", self.OPT_GO, len(wanted)) + wanted)
        while True:
            magic, option, kind, length = struct.unpack(">QIII", self._receive(20))
            self._expect(magic == self.OPTION_REPLY_MAGIC and option == self.OPT_GO
                         and length <= 64 * KIB, f"reply {magic:x} to option {option}")
            data = bytes(self._receive(length))
            if kind == self.REP_ACK:
                break
            self._expect(kind == self.REP_INFO, f"the export is refused: {kind:x} {data}")
            if struct.unpack_from(">H", data)[0] == self.INFO_EXPORT:
                self.size, self.flags = struct.unpack_from(">QH", data, 2)
        self._expect(self.size is not None, "the server does not tell the size")
        self._expect(self.flags & self.FLAG_SEND_FLUSH
                     and not self.flags & self.FLAG_READ_ONLY,
                     f"not writable and flushable: flags {self.flags:x}")

    def _send_request(self, command, offset, length, data=b""):
        self._handle += 1
        self._socket.sendall(struct.pack(
            ">IHHQQI", self.REQUEST_MAGIC, 0, command, self._handle, offset, length)
            + data)

    def _request(self, command, offset=0, length=0, data=b""):
        try:
            self._send_request(command, offset, length, data)
            magic, error, handle = struct.unpack(">IIQ", self._receive(16))
            self._expect(magic == self.REPLY_MAGIC and handle == self._handle,
                         f"reply {magic:x} for {handle} to request {self._handle}")
            if error:
                # NBD's numbers are those of Linux.
                raise OSError(error, f"the server replies {os.strerror(error)}")
            return self._receive(length) if command == self.READ else None
        except OSError as error:
            # A timeout of the socket has no number.
            raise OSError(error.errno or errno.ETIMEDOUT,
                          f"{self.NAMES[command]} of {length} bytes at offset {offset}: "
                          f"{error}") from error

    def _receive(self, length):
        data = bytearray(length)
        rest = memoryview(data)
        while rest:
            received = self._socket.recv_into(rest)
            if received == 0:
                raise ConnectionResetError(errno.ECONNRESET, "the server hung up")
            rest = rest[received:]
        return data

    @staticmethod
    def _expect(condition, what):
        if not condition:
            raise OSError(errno.EPROTO, what)


class Volume:
    """A disk of its own over the image file `backing`, which qemu opens at once
    and keeps open to the end.

    `content`: what a guest finds in the image; None: what the file has now.
    `size`: of the disk, if it is another one than that of the image.

    Every second stripe of STRIPE bytes, from the second one on, is read and
    never written: however long the client is at work, there is something left
    that can only come from the backing file.
    """

    def __init__(self, directory, backing, backing_format="qcow2", content=None,
                 size=None, seed=1):
        self.directory = Path(directory)
        self.backing = Path(os.path.abspath(backing))
        self.overlay = self.directory / "overlay.qcow2"
        self.log_path = self.directory / "qemu.log"
        self.deadline = 20.0  # for one operation: longer, and the guest notices
        self.operations = 0
        self.error = None
        self.process = self.nbd = None
        self._random = random.Random(seed)
        self._written = set()  # numbers of blocks
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._stop = threading.Event()
        self._short = None  # directory of the socket, if not self.directory
        self.socket = self.directory.absolute() / "nbd"
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", self.backing,
                 "-F", backing_format, self.overlay, *([] if size is None else [size])])
            self._serve()
            self.size = self.nbd.size
            assert self.size >= BLOCK, f"too small to work on: {self.size} bytes"
            self._model = self._first_content(backing_format, content)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self):
        """Of the qemu process."""
        return self.process.pid

    def start(self):
        """The client begins to write and read, in a thread of its own."""
        self._thread.start()
        return self

    def check(self):
        """Nothing went wrong so far, and the client is served now; else it is an
        AssertionError that says what was seen."""
        # One operation may be all but done already: the second one begins after
        # this, so it shows that qemu serves now and not just a while ago.
        enough = self.operations + 2
        wait_until(lambda: self.error or not self._alive() or self.operations >= enough,
                   lambda: f"the volume does nothing; operations: {self.operations}",
                   self.deadline)
        self._raise_recorded()
        if self.process.poll() is not None:
            self._fail(f"qemu ended with {self.process.returncode}")
        if not self._thread.is_alive():
            self._fail("the client is not at work")

    def finish(self):
        """The client's work ends; every byte of the disk and the structure of
        the overlay are as they must be; else as check(). Whatever comes of it, qemu
        has ended afterwards. Returns the number of operations."""
        try:
            self.check()
            self._stop.set()
            self._thread.join(scaled(self.deadline) + 1)
            self._raise_recorded()
            if self._thread.is_alive():
                self._fail("the client does not end: an operation hangs")
            try:
                self.nbd.flush()
                self._compare(self._read_all(), self._model, "of the whole disk")
                self.nbd.disconnect()
            except OSError as error:
                self._fail(f"at the end: {error}")
            if end(self.process) != 0:
                self._fail(f"qemu ended with {self.process.returncode}")
            found = run(["qemu-img", "check", "-f", "qcow2", self.overlay], check=False)
            if found.returncode != 0:
                self._fail(f"qemu-img check ended with {found.returncode}: "
                           f"{(found.stdout + found.stderr).decode(errors='replace')}")
            return self.operations
        finally:
            self.close()

    def close(self):
        """Ends all; nothing is checked, nothing raised. May be called again."""
        self._stop.set()
        if self.nbd is not None:
            self.nbd.abort()
        with suppress(RuntimeError):  # not started
            self._thread.join(scaled(self.deadline) + 1)
        if self.nbd is not None:
            self.nbd.close()
        if self.process is not None:
            with suppress(Exception):
                end(self.process)
        if self._short is not None:
            shutil.rmtree(self._short, ignore_errors=True)

    # qemu ------------------------------------------------------------------

    def _serve(self):
        """Starts qemu and connects to it."""
        if len(os.fsencode(self.socket)) > 107:  # what fits into a sockaddr_un
            self._short = tempfile.mkdtemp(prefix="bim-nbd-", dir="/tmp")
            self.socket = Path(self._short) / "nbd"
        if shutil.which("qemu-storage-daemon"):
            argv = ["qemu-storage-daemon",
                    "--blockdev", json.dumps({
                        "driver": "qcow2", "node-name": "disk",
                        "file": {"driver": "file", "filename": str(self.overlay)}}),
                    "--nbd-server", json.dumps({
                        "addr": {"type": "unix", "path": str(self.socket)}}),
                    "--export", json.dumps({
                        "type": "nbd", "id": "export", "node-name": "disk",
                        "name": EXPORT, "writable": True})]
        else:
            argv = ["qemu-nbd", "--persistent", "--shared=4", "--format=qcow2",
                    f"--socket={self.socket}", f"--export-name={EXPORT}", self.overlay]
        with open(self.log_path, "wb") as log:
            self.process = spawn(argv, env=clean_environment(), stdout=log,
                                 stderr=log, stdin=subprocess.DEVNULL)
        self.nbd = wait_until(self._connect, lambda: f"{argv[0]} serves: {self._log()}",
                              self.deadline)

    def _connect(self):
        if self.process.poll() is not None:
            self._fail(f"qemu ended with {self.process.returncode}")
        try:
            return Nbd(self.socket, timeout=self.deadline)
        except (FileNotFoundError, ConnectionRefusedError):
            return None  # not yet

    def _alive(self):
        return self.process.poll() is None and self._thread.is_alive()

    def _log(self):
        with suppress(OSError):
            return self.log_path.read_text(encoding="utf-8", errors="replace")[-2000:]
        return ""

    # What the disk must have -----------------------------------------------

    def _first_content(self, backing_format, content):
        """What a guest finds before it wrote anything: the image, and zeros
        behind it."""
        if backing_format == "raw":
            return self._padded(self.backing.read_bytes() if content is None else content)
        # Only qemu can tell what is in a qcow2 file. It has to tell the same by
        # both ways, or the fault would be in the overlay or in this client.
        data = self._read_all()
        plain = self.directory / "plain"
        run(["qemu-img", "convert", "-f", backing_format, "-O", "raw", self.backing, plain])
        self._compare(data, self._padded(plain.read_bytes()), "against qemu-img convert")
        plain.unlink()
        if content is not None:
            self._compare(data, self._padded(content), "before the first write")
        return data

    def _padded(self, content):
        return bytearray(content[:self.size].ljust(self.size, b"\0"))

    def _read_all(self):
        data = bytearray()
        while len(data) < self.size:
            data += self.nbd.read(len(data), min(MIB, self.size - len(data)))
        return data

    def _compare(self, got, wanted, when, at=0):
        """`got` was read from offset `at` of the disk."""
        if got == wanted:
            return
        first = next(n for n in range(len(wanted)) if got[n] != wanted[n])
        owner = "the volume wrote" if (at + first) // BLOCK in self._written \
            else "the backing file has"
        raise AssertionError(
            f"wrong bytes in a read {when}: {sum(map(operator.ne, got, wanted))} of "
            f"{len(wanted)}, first at offset {at + first}, where {owner} "
            f"{wanted[first:first + 16].hex()} and the disk "
            f"{got[first:first + 16].hex()} (backing file: {self.backing})")

    def _fail(self, what):
        raise AssertionError(f"volume over {self.backing}: {what}\n{self._log()}")

    def _raise_recorded(self):
        if self.error is not None:
            ended = self.process.poll()
            self._fail(f"after {self.operations} operations: {self.error}"
                       + ("" if ended is None else f"; qemu ended with {ended}"))

    # The client ------------------------------------------------------------

    def _work(self):
        try:
            while not self._stop.wait(1 / PER_SECOND):
                chosen = self._random.random()
                if chosen < 0.05:
                    self.nbd.flush()
                elif chosen < 0.5:
                    self._write()
                else:
                    self._read()
                self.operations += 1
        except Exception as error:  # pylint: disable=broad-except
            self.error = error

    def _write(self):
        stripe = self._random.randrange(0, -(-(self.size // BLOCK * BLOCK) // STRIPE), 2)
        last = min((stripe + 1) * STRIPE, self.size // BLOCK * BLOCK) // BLOCK
        first = self._random.randrange(stripe * STRIPE // BLOCK, last)
        count = self._random.randint(1, min(MOST // BLOCK, last - first))
        data = self._random.randbytes(count * BLOCK)
        self.nbd.write(first * BLOCK, data)
        self._model[first * BLOCK:(first + count) * BLOCK] = data
        self._written.update(range(first, first + count))

    def _read(self):
        offset = self._random.randrange(self.size // 512) * 512
        length = min(self._random.randint(1, MOST // 512) * 512, self.size - offset)
        self._compare(self.nbd.read(offset, length),
                      self._model[offset:offset + length], "while at work", offset)
