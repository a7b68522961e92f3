"""Other daemons, real and false, and what passes between them.

`FakePeer` answers VersionGet as a daemon would and serves images over a
scripted Origin, so that each answer can be wrong in its own way. `Relay` stands
before a real data port: it counts, holds and cuts what passes.
"""

import ctypes
import hashlib
import json
import select
import socket
import struct
import threading
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import grpc

from .client import pb, pb_grpc
from .deadline import scaled, wait_until
from .images import KIB, sha512
from .servers import Behaviour, Content, Origin

CHUNK = 256 * KIB
MANIFEST_TYPE = "application/x-bim-manifest"
EXTENTS_TYPE = "application/x-bim-extents"


# --------------------------------------------------------------------------
# Formats, written a second time from their descriptions


def zstd(data, level=1):
    library = ctypes.CDLL("libzstd.so.1")
    library.ZSTD_compressBound.restype = ctypes.c_size_t
    library.ZSTD_compress.restype = ctypes.c_size_t
    room = library.ZSTD_compressBound(ctypes.c_size_t(len(data)))
    out = ctypes.create_string_buffer(room)
    size = library.ZSTD_compress(out, ctypes.c_size_t(room), data,
                                 ctypes.c_size_t(len(data)), level)
    assert size <= room
    return out.raw[:size]


def chunk_table(data, chunk=CHUNK):
    table = b""
    for at in range(0, len(data), chunk):
        piece = data[at:at + chunk]
        if piece.count(0) == len(piece):
            table += b"\1" + bytes(32)
        else:
            table += b"\0" + hashlib.sha256(piece).digest()
    return table


def manifest(name, uuid, data, table=None, /, version=1, min_version=1, **changes):
    """The manifest of `data`. `changes` replace fields of its header; None
    takes one away."""
    table = chunk_table(data) if table is None else table
    header = {
        "name": name, "uuid": uuid, "size": len(data), "format": "raw",
        "virtualSize": len(data), "sha512": sha512(data), "chunkSize": CHUNK,
        "chunkCount": len(table) // 33,
        "chunksSha256": hashlib.sha256(table).hexdigest(), **changes}
    text = json.dumps({k: v for k, v in header.items() if v is not None}).encode()
    line = (f"bim-manifest {version} {min_version} {len(text)} "
            f"{hashlib.sha256(text).hexdigest()}\n")
    return line.encode() + text + table


def extent_table(begin, end, extents, magic=b"BIMEXT01", count=None):
    out = magic + struct.pack("<QQQ", begin, end,
                              len(extents) if count is None else count)
    return out + b"".join(struct.pack("<QQ", *extent) for extent in extents)


def journaled(disk, name, uuid):
    """How many chunks the journal of an unfinished image names."""
    try:
        data = (disk.image_dir(name, uuid) / "backing.bim").read_bytes()
    except FileNotFoundError:
        return 0
    line, _, rest = data.partition(b"\n")
    if not line.startswith(b"bim-journal "):
        return 0
    return (len(rest) - int(line.split()[3])) // 48


# --------------------------------------------------------------------------
# The false peer


@dataclass
class Extents(Behaviour):
    """Parts of `data`, as a good peer gives them; `mangle(begin, end, table,
    body)` gives other bytes for the whole answer, `options` are Content's."""

    data: bytes
    mangle: object = None
    options: dict = field(default_factory=dict)
    content_type: str = EXTENTS_TYPE
    good: int = 0  # so many answers without any of that first

    def __call__(self, connection, request):
        query = parse_qs(urlsplit(request.target).query)
        begin, end = int(query["begin"][0]), int(query["end"][0])
        table, body = extent_table(begin, end, [(begin, end)]), self.data[begin:end]
        content_type, options = self.content_type, self.options
        if self.good > 0:
            self.good -= 1
            content_type, options = EXTENTS_TYPE, {}
            answer = table + body
        else:
            answer = (self.mangle(begin, end, table, body) if self.mangle
                      else table + body)
        return Content(answer, ranges=False, content_type=content_type,
                       **options)(connection, request)


class FakePeer(pb_grpc.VersionServiceServicer):
    """A peer at `address` whose images come from the Origin `http`.

    Fields of the answer to VersionGet may be changed at any time.
    """

    def __init__(self, data_endpoint=None, host="127.0.0.1"):
        self.http = Origin()
        self.answer = pb.VersionGetResponse(
            version="0.0.1", git_commit="fake", build_date="2026-01-01",
            api_version=4, api_min_version=3, disk_format_version=1,
            disk_format_min_version=1, manager_id="fake-peer",
            data_endpoint=data_endpoint or f"127.0.0.1:{self.http.port}")
        self.calls = 0
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        pb_grpc.add_VersionServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(f"{host}:0")
        self.address = f"{host}:{port}"
        self._server.start()

    def VersionGet(self, request, context):
        self.calls += 1
        return self.answer

    def path(self, name, uuid, what):
        return f"/v1/images/{name}/{uuid}/{what}"

    def has(self, name, uuid, data, manifest_is=None, extents=None):
        """Serves an image: well, unless `manifest_is` (bytes or a behaviour)
        or `extents` (a behaviour) say otherwise."""
        told = manifest(name, uuid, data) if manifest_is is None else manifest_is
        if isinstance(told, bytes):
            told = Content(told, content_type=MANIFEST_TYPE, ranges=False)
        self.http.serve(self.path(name, uuid, "manifest"), told)
        self.http.serve(self.path(name, uuid, "extents"), extents or Extents(data))
        self.http.serve(self.path(name, uuid, "data"), Content(data))
        return self

    def asked(self, name, uuid, what):
        return self.http.requests_of(self.path(name, uuid, what))

    def close(self):
        self._server.stop(0).wait(scaled(10))
        self.http.close()


# --------------------------------------------------------------------------
# The relay


class Relay:
    """TCP to `target` ("host:port"), seen from both ends.

    `received` are the bytes that came back from the target. `hold_at` makes it
    hold back everything behind so many of them until release(); `pace` is a
    bound in bytes a second; cut() resets all connections.
    """

    def __init__(self, target, hold_at=None, pace=None):
        host, _, port = target.rpartition(":")
        self.target = host, int(port)
        self.hold_at, self.pace = hold_at, pace
        self.received = 0
        self.held = threading.Event()
        self.refuse = False
        self._open = threading.Event()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._pairs = []
        self._threads = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self):
        while not self._stopping.is_set():
            if not select.select([self._listener], [], [], 0.1)[0]:
                continue
            with suppress(OSError):
                client, _ = self._listener.accept()
                if self.refuse:
                    client.close()
                    continue
                thread = threading.Thread(target=self._serve, args=(client,),
                                          daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client):
        try:
            server = socket.create_connection(self.target, 5)
        except OSError:
            client.close()
            return
        with self._lock:
            self._pairs.append((client, server))
        try:
            while not self._stopping.is_set():
                ready = select.select([client, server], [], [], 0.1)[0]
                if client in ready:
                    data = client.recv(65536)
                    if not data:
                        return
                    server.sendall(data)
                if server in ready:
                    data = server.recv(65536)
                    if not data:
                        return
                    self._forward(client, data)
        except (OSError, ValueError):
            pass
        finally:
            for sock in (client, server):
                with suppress(OSError):
                    sock.close()

    def _forward(self, client, data):
        while data:
            with self._lock:
                room = len(data)
                if self.hold_at is not None and not self._open.is_set():
                    room = max(0, min(room, self.hold_at - self.received))
                self.received += room
            if room:
                client.sendall(data[:room])
                data = data[room:]
                if self.pace:
                    self._stopping.wait(room / self.pace)
            else:
                self.held.set()
                while not self._open.wait(0.05):
                    if self._stopping.is_set():
                        return

    def wait_held(self, deadline=20.0):
        wait_until(self.held.is_set,
                   lambda: f"{self.hold_at} bytes to pass; {self.received} did",
                   deadline)

    def release(self):
        self._open.set()

    def cut(self):
        """Resets every connection."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for sock in pair:
                with suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                    struct.pack("ii", 1, 0))
                    sock.shutdown(socket.SHUT_RDWR)

    def anew(self, hold_at=None):
        """Ends all connections, and counts from 0."""
        self._open.set()
        self.cut()
        for thread in self._threads:
            thread.join(timeout=scaled(10))
        self._open.clear()
        self.held.clear()
        self.received, self.hold_at = 0, hold_at

    def close(self):
        self._stopping.set()
        self._open.set()
        self._thread.join()
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(timeout=scaled(10))
            assert not thread.is_alive(), "a connection of the relay hangs"


class Bare:
    """A TCP server that is no daemon: `answer` to whoever connects, or
    silence (None)."""

    def __init__(self, answer=None, host="127.0.0.1", port=0):
        self.answer, self.connections = answer, 0
        self._stopping = threading.Event()
        self._sockets = []
        self._listener = socket.create_server((host, port))
        self.address = "%s:%d" % self._listener.getsockname()[:2]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stopping.is_set():
            if not select.select([self._listener], [], [], 0.05)[0]:
                continue
            sock, _ = self._listener.accept()
            self.connections += 1
            if self.answer is None:
                self._sockets.append(sock)
                continue
            with suppress(OSError):
                sock.settimeout(2)
                sock.recv(65536)
                sock.sendall(self.answer)
            sock.close()

    def close(self):
        self._stopping.set()
        self._thread.join()
        for sock in [*self._sockets, self._listener]:
            sock.close()
