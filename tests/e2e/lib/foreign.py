"""What stands on other nodes and is not ours: a manager, a data source and a
volume's replica of Longhorn, as far as a manager of ours meets them. None of
them has our own API."""

import json
import threading
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import grpc
from google.protobuf.empty_pb2 import Empty

from .deadline import scaled, wait_until
from .images import sha512
from .longhorn import config_of, rpc, rpc_grpc
from .ports import free_port
from .ssync import Push


class ForeignManager(rpc_grpc.BackingImageManagerServiceServicer):
    """A manager at `address` that speaks API version 3 and nothing else. What
    it has it pushes to whoever asks it to Send; `sends` are those requests,
    `pushes` what came of them."""

    def __init__(self):
        self.sends, self.pushes, self.other_calls = [], [], []
        self._images = {}
        self._lock = threading.Lock()
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        rpc_grpc.add_BackingImageManagerServiceServicer_to_server(
            self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def has(self, name, uuid, path, refuse=None, quiet=False, **push):
        """`push` are options of ssync.Push. `refuse`: the code that Send
        answers with; `quiet`: it answers OK and pushes nothing."""
        with self._lock:
            self._images[name, uuid] = Path(path), refuse, quiet, push

    def wait_push(self, number=0, deadline=30.0):
        """The push that began as number `number`."""
        return wait_until(lambda: self.pushes[number:] and self.pushes[number],
                          f"{number + 1} requests to Send; {len(self.sends)} came",
                          deadline)

    def close(self):
        for push in self.pushes:
            push.stop()
        self._server.stop(0).wait(scaled(10))

    # The service -----------------------------------------------------------

    def Send(self, request, context):
        with self._lock:
            self.sends.append((request.name, request.uuid, request.to_address))
            found = self._images.get((request.name, request.uuid))
        if found is None:
            context.abort(grpc.StatusCode.NOT_FOUND,
                          f"cannot find backing image {request.name}")
        path, refuse, quiet, options = found
        if refuse:
            context.abort(refuse, "refused as it was told to")
        if not quiet:
            with self._lock:
                self.pushes.append(
                    Push(path, request.to_address, **options).start())
        return Empty()

    def VersionGet(self, request, context):
        return rpc.VersionResponse(
            version="v1.9.0", gitCommit="0" * 40, buildDate="2026-01-01",
            backing_image_manager_api_version=3,
            backing_image_manager_api_min_version=3)

    def Get(self, request, context):
        with self._lock:
            self.other_calls.append("Get")
            found = self._images.get((request.name, request.uuid))
        if found is None:
            context.abort(grpc.StatusCode.NOT_FOUND,
                          f"cannot find backing image {request.name}")
        size = found[0].stat().st_size
        return rpc.BackingImageResponse(
            spec=rpc.BackingImageSpec(name=request.name, uuid=request.uuid,
                                      size=size, virtualSize=size),
            status=rpc.BackingImageStatus(state="ready", progress=100))


# --------------------------------------------------------------------------
# The data source


class ForeignDataSource:
    """A data source at `address` for the disk `disk` whose file is made: it
    lies in tmp/, as that of an upstream process, with its cfg.

    `changes` replace what GET /v1/file tells; None takes a key away.
    """

    def __init__(self, disk, name, uuid, data, /, cfg=True,
                 source_type="download", **changes):
        self.disk, self.name, self.uuid = disk, name, uuid
        self.path = Path(disk.path) / "tmp" / f"{name}-{uuid}"
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_bytes(data)
        self.cfg = self.path.with_name(self.path.name + ".cfg")
        seen_as = f"/data/tmp/{name}-{uuid}"
        digest = sha512(data)
        if cfg:
            self.cfg.write_text(config_of(self.path, seen_as, uuid, digest))
        st = self.path.stat()
        self.info = {
            "diskUUID": disk.uuid, "expectedChecksum": "", "filePath": seen_as,
            "uuid": uuid, "size": len(data), "virtualSize": len(data),
            "realSize": st.st_blocks * 512, "state": "ready-for-transfer",
            "progress": 100, "processedSize": len(data),
            "modificationTime": json.loads(config_of(
                self.path, "", "", ""))["modificationTime"],
            "currentChecksum": digest, "message": "", "sendingReference": 0,
            "sourceType": source_type,
            "parameters": {"url": "http://example.invalid/image"}, "name": name}
        for key, value in changes.items():
            self.info[key] = value
            if value is None:
                del self.info[key]
        self.gets = self.transfers = 0
        self.unexpected = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _SourceHandler)
        self._server.daemon_threads = True
        self._server.source = self
        self.address = "127.0.0.1:%d" % self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05},
            daemon=True)
        self._thread.start()

    def handle(self, method, target):
        """(status, body)"""
        url = urlsplit(target)
        action = parse_qs(url.query).get("action", [None])[0]
        with self._lock:
            if (method, url.path, action) == ("GET", "/v1/file", None):
                self.gets += 1
                return 200, json.dumps(self.info).encode()
            if (method, url.path, action) == ("POST", "/v1/file", "transfer"):
                self.transfers += 1
                if self.info.get("state") not in ("ready-for-transfer", "ready"):
                    return 500, b"not ready for the transfer\n"
                self.info["state"] = "ready"
                return 200, b""
            self.unexpected.append((method, target))
            return 404, b"not found\n"

    def untouched(self, stamp):
        """Whether the file is as `stamp` (lib.disks) was, with its cfg."""
        from .disks import stamp as now
        return self.path.exists() and now(self.path) == stamp and self.cfg.exists()

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _SourceHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def _serve(self, method):
        self.rfile.read(min(1 << 16, int(self.headers.get("Content-Length", 0))))
        status, body = self.server.source.handle(method, self.path)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self._serve("GET")

    def do_POST(self):
        self._serve("POST")

    def log_message(self, *args):
        pass


# --------------------------------------------------------------------------
# The replica


@dataclass
class VolumeExport:
    snapshot: str = ""
    host: str = ""
    port: int = 0
    export_backing_image: bool = False
    timeout: int = 0
    unknown: tuple = ()


def decode_volume_export(data):
    """Protobuf by hand: what ptypes.VolumeExportRequest has."""
    names = {1: "snapshot", 2: "host", 3: "port", 4: "export_backing_image",
             5: "timeout"}
    at, found, unknown = 0, {}, []

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            assert shift < 70

    while at < len(data):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            value = varint()
            value = bool(value) if number == 4 else value
        elif kind == 2:
            length = varint()
            value, at = data[at:at + length].decode(), at + length
        else:
            raise ValueError(f"field {number} of kind {kind}")
        if number in names:
            found[names[number]] = value
        else:
            unknown.append(number)
    return VolumeExport(**found, unknown=tuple(unknown))


class Replica:
    """A replica whose address is `address`, host:port; its sync agent listens
    at port + 2. It exports `path`, and answers when the push is over.

    `fail`: "at once" (answers with an error and pushes nothing), or "late"
    (pushes part of it, closes, and answers with an error). `push` are options
    of ssync.Push.
    """

    METHOD = "VolumeExport"

    def __init__(self, path, fail=None, **push):
        self.path, self.fail = Path(path), fail
        self.options = {"direct_io": True, **push}
        if fail == "late":
            self.options.setdefault("close_after", 1)
        self.calls, self.pushes = [], []
        handler = grpc.method_handlers_generic_handler(
            "ptypes.SyncAgentService",
            {self.METHOD: grpc.unary_unary_rpc_method_handler(
                self._export, decode_volume_export, Empty.SerializeToString)})
        for _ in range(20):
            port = free_port()
            if port < 1026:
                continue
            self._server = grpc.server(
                futures.ThreadPoolExecutor(4),
                options=[("grpc.so_reuseport", 0)])
            self._server.add_generic_rpc_handlers((handler,))
            with suppress(RuntimeError):
                if self._server.add_insecure_port(f"127.0.0.1:{port}"):
                    break
        else:
            raise AssertionError("no free port for the sync agent")
        self.address = f"127.0.0.1:{port - 2}"
        self._server.start()

    def _export(self, request, context):
        self.calls.append(request)
        if self.fail == "at once":
            context.abort(grpc.StatusCode.INTERNAL,
                          "cannot open the snapshot chain")
        push = Push(self.path, f"{request.host}:{request.port}", **self.options)
        self.pushes.append(push)
        push.start()
        push.done.wait(scaled(600))
        if push.error or self.fail:
            context.abort(grpc.StatusCode.INTERNAL,
                          f"failed to export the volume: {push.error}")
        return Empty()

    def close(self):
        for push in self.pushes:
            push.stop()
        self._server.stop(0).wait(scaled(10))
