"""The binary as Longhorn's control plane starts it, a daemon for one disk or a
data source, and a client of the HTTP services of both."""

import http.client
import json
import os
import socket
import struct
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_plus, urlencode

from .daemon import BINARY, Daemon
from .deadline import scaled, wait_until
from .ports import free_port, free_ports
from .processes import clean_environment, spawn

LONGHORN_BINARY = BINARY.with_name("backing-image-manager")
FILE_INFO = {"diskUUID": str, "expectedChecksum": str, "filePath": str,
             "uuid": str, "size": int, "virtualSize": int, "realSize": int,
             "state": str, "progress": int, "processedSize": int,
             "modificationTime": str, "currentChecksum": str, "message": str,
             "sendingReference": int}
FINAL = ("ready", "ready-for-transfer", "failed")
BOUNDARY = "------------------------5d1e7c0f"


def image_path(name, uuid, root="/data"):
    """The path of a ready file, as callers write it."""
    return f"{root}/backing-images/{name}-{uuid}/backing"


# --------------------------------------------------------------------------
# HTTP


@dataclass
class Reply:
    status: int
    headers: dict  # names in lower case
    body: bytes

    @property
    def text(self):
        return self.body.decode(errors="replace")

    def json(self):
        assert self.status == 200, f"{self.status}: {self.text}"
        return json.loads(self.body)

    def ok(self):
        assert self.status == 200, f"{self.status}: {self.text}"
        return self

    def bad(self, *needles, status=400):
        """An error as text: one line that has all needles (case aside)."""
        assert self.status == status, f"{self.status}, not {status}: {self.text}"
        line = self.text.strip()
        assert line and "\n" not in line, repr(self.text)
        assert not line.startswith(("{", "<")), f"no plain text: {line!r}"
        for needle in needles:
            assert str(needle).lower() in line.lower(), (
                f"expected {needle!r} in {line!r}")
        return self


def request(address, method, target, body=None, headers=None, deadline=30.0):
    """One request on a connection of its own."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port),
                                            timeout=scaled(deadline))
    try:
        connection.putrequest(method, target, skip_accept_encoding=True)
        if body is not None or method == "POST":
            connection.putheader("Content-Length", str(len(body or b"")))
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        # An answer may come, and the connection be closed, before the body is
        # sent; it must reach us all the same.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.endheaders(body)
        response = connection.getresponse()
        return Reply(response.status,
                     {k.lower(): v for k, v in response.getheaders()},
                     response.read())
    finally:
        connection.close()


def form(data, part="chunk", boundary=BOUNDARY):
    """A multipart body with one file, as browsers send it."""
    head = (f"--{boundary}\r\nContent-Disposition: form-data; name=\"{part}\"; "
            "filename=\"blob\"\r\nContent-Type: application/octet-stream\r\n\r\n")
    return head.encode() + data + f"\r\n--{boundary}--\r\n".encode()


FORM_HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


class SlowUpload:
    """A multipart upload that stops after `until` bytes of its data; then
    finish() or abort() it."""

    def __init__(self, address, target, data, until):
        host, _, port = address.rpartition(":")
        body = form(data)
        head = body.index(b"\r\n\r\n") + 4
        self.sock = socket.create_connection((host, int(port)), scaled(10))
        self.sock.sendall(
            f"POST {target} HTTP/1.1\r\nHost: {address}\r\nContent-Type: "
            f"{FORM_HEADERS['Content-Type']}\r\nContent-Length: {len(body)}"
            "\r\n\r\n".encode() + body[:head + until])
        self._rest = body[head + until:]

    def finish(self):
        self.sock.settimeout(scaled(60))
        self.sock.sendall(self._rest)
        response = http.client.HTTPResponse(self.sock)
        response.begin()
        reply = Reply(response.status, {k.lower(): v for k, v in
                                        response.getheaders()}, response.read())
        self.sock.close()
        return reply

    def abort(self):
        with suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                 struct.pack("ii", 1, 0))
        self.sock.close()


class FileService:
    """A client of the HTTP sync service at `address`."""

    def __init__(self, address):
        self.address = address

    def raw(self, method, target, **options):
        return request(self.address, method, target, **options)

    @staticmethod
    def target(path, suffix="", **query):
        return (f"/v1/files/{quote_plus(path)}{suffix}"
                + (f"?{urlencode(query)}" if query else ""))

    def files(self):
        return self.raw("GET", "/v1/files").json()

    def get(self, path):
        return self.raw("GET", self.target(path))

    def delete(self, path):
        return self.raw("DELETE", self.target(path))

    def act(self, path, action, **query):
        return self.raw("POST", self.target(
            path, action=action, **{k.replace("_", "-"): v
                                    for k, v in query.items()}))

    def post(self, action, body=None, headers=None, **parameters):
        """POST /v1/files?action=...; parameter names with _ for -; those that
        are None are left out."""
        query = {"action": action, **{k.replace("_", "-"): v
                                      for k, v in parameters.items()
                                      if v is not None}}
        return self.raw("POST", f"/v1/files?{urlencode(query)}", body=body,
                        headers=headers)

    def download(self, path, method="GET", headers=None, **query):
        return self.raw(method, self.target(path, "/download", **query),
                        headers=headers, deadline=120)

    def wait(self, path, *states, deadline=30.0):
        """The FileInfo once it is in one of these states."""
        last = {}

        def there():
            last["seen"] = info = self.get(path).json()
            if info["state"] in states:
                return info
            assert info["state"] not in FINAL, info
            return None
        return wait_until(there, lambda: f"{path} {states}; {last}", deadline)


class Reader:
    """A download that stops reading after the first bytes."""

    def __init__(self, address, target, first=65536):
        host, _, port = address.rpartition(":")
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self.sock.settimeout(scaled(20))
        self.sock.connect((host, int(port)))
        self.sock.sendall(f"GET {target} HTTP/1.1\r\nHost: {address}\r\n\r\n"
                          .encode())
        self.received = b""
        while len(self.received) < first:
            piece = self.sock.recv(65536)
            assert piece, self.received[:1000]
            self.received += piece

    def go_away(self):
        with suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                 struct.pack("ii", 1, 0))
        self.sock.close()


class PeakMemory(threading.Thread):
    """The most RssAnon of a process, in KiB, while the block is in work."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.peak = pid, 0
        self._stopping = threading.Event()

    def run(self):
        from .processes import proc_status_kib
        while not self._stopping.wait(0.02):
            with suppress(OSError, AttributeError):
                self.peak = max(self.peak, proc_status_kib(self.pid, "RssAnon"))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        self.join()


# --------------------------------------------------------------------------
# Processes


class LonghornProcess(Daemon):
    """What both have: their command line instead of a configuration."""

    def __init__(self, directory, env=None):
        super().__init__(directory, env={"POD_IP": "127.0.0.1", **(env or {})},
                         binary=LONGHORN_BINARY)
        self.port, self.sync_port = free_port(), free_port()

    def argv(self):
        raise NotImplementedError

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    @property
    def sync_address(self):
        return f"127.0.0.1:{self.sync_port}"

    @property
    def files(self):
        return FileService(self.sync_address)

    def spawn(self, extra_args=()):
        assert self.process is None or self.process.poll() is not None
        with open(self.log_file, "ab") as log:
            self.process = spawn(
                [self.binary, *self.argv(), *extra_args],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.directory,
                env=clean_environment({
                    "TMPDIR": str(self.directory),
                    # What is stopped in the middle is stopped in the middle.
                    "BIM_HANDOVER_DRAIN_TIMEOUT": "0s", **self.env}))
        return self

    def start(self, deadline=20.0, extra_args=()):
        self.spawn(extra_args)
        return self.wait_ports(deadline)

    def wait_ports(self, deadline=20.0):
        """As the control plane's probe: until both ports take connections."""
        def listening():
            if self.process.poll() is not None:
                raise AssertionError(
                    f"it ended with {self.process.returncode}:\n"
                    f"{self.log()[-4000:]}")
            for address in (self.port, self.sync_port):
                try:
                    socket.create_connection(("127.0.0.1", address), 1).close()
                except OSError:
                    return False
            return True
        wait_until(listening, f"{self.argv()[0]} to listen", deadline)
        return self

    def refuses_to_start(self, *needles, deadline=15.0):
        """It ends by itself with an error: one line that has all needles."""
        self.spawn()
        code = self.wait_exit(deadline)
        self.assert_clean()
        assert code not in (0, None) and code > 0, f"{code}\n{self.log()}"
        lines = [line for line in self.log().splitlines() if line.strip()]
        assert lines, "it says nothing"
        for needle in needles:
            assert needle.lower() in lines[-1].lower(), self.log()[-2000:]


class LonghornDaemon(LonghornProcess):
    """`backing-image-manager daemon` for one disk."""

    def __init__(self, directory, disk, ports=8, env=None, disk_uuid=None,
                 first_port=None):
        super().__init__(directory, env)
        self.disk = disk
        self.disk_uuid = disk.uuid if disk_uuid is None else disk_uuid
        self.first_port = first_port or free_ports(ports)
        self.last_port = self.first_port + ports - 1

    def argv(self):
        return ["daemon", "--listen", self.address, "--sync-listen",
                self.sync_address, "--disk-uuid", self.disk_uuid,
                "--port-range", f"{self.first_port}-{self.last_port}",
                "--disk", str(self.disk)]

    def in_range(self):
        """The ports of the range that something listens on, from /proc."""
        found = set()
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            with suppress(FileNotFoundError):
                for line in Path(table).read_text().splitlines()[1:]:
                    fields = line.split()
                    port = int(fields[1].rpartition(":")[2], 16)
                    if fields[3] == "0A" and (
                            self.first_port <= port <= self.last_port):
                        found.add(port)
        return found


class DataSourceProcess(LonghornProcess):
    """`backing-image-manager data-source` for one image of one disk."""

    def __init__(self, directory, disk, name, uuid, source_type, parameters,
                 checksum="", credential=None, env=None):
        super().__init__(directory, env)
        self.disk, self.name, self.uuid = disk, name, uuid
        self.source_type, self.parameters = source_type, dict(parameters)
        self.checksum, self.credential = checksum, dict(credential or {})
        self.receive_port = free_port()

    def argv(self):
        argv = ["data-source", "--listen", self.address, "--sync-listen",
                self.sync_address, "--name", self.name, "--uuid", self.uuid,
                "--source-type", self.source_type]
        for flag, values in (("--parameters", self.parameters),
                             ("--credential", self.credential)):
            for key, value in values.items():
                argv += [flag, f"{key}={value}"]
        if self.checksum:
            argv += ["--checksum", self.checksum]
        return argv + ["--disk", str(self.disk), "--receive-listen",
                       f"127.0.0.1:{self.receive_port}"]

    @property
    def path(self):
        """The file when it is complete."""
        return self.disk.path / "tmp" / f"{self.name}-{self.uuid}"

    @property
    def cfg_path(self):
        return self.path.with_name(self.path.name + ".cfg")

    def tmp_names(self):
        """What lies in tmp/, but for locks."""
        folder = self.disk.path / "tmp"
        names = sorted(os.listdir(folder)) if folder.exists() else []
        return [name for name in names if not name.endswith(".lock")]

    def shared_names(self):
        """Those of tmp/ that others know: nothing of ours alone."""
        return [name for name in self.tmp_names() if not name.endswith(".bim")]

    def info(self):
        return request(self.address, "GET", "/v1/file").json()

    def transfer(self):
        return request(self.address, "POST", "/v1/file?action=transfer")

    def upload(self, data, size=None, part="chunk", **query):
        query = {"action": "upload",
                 "size": len(data) if size is None else size, **query}
        return request(self.address, "POST", f"/v1/file?{urlencode(query)}",
                       body=form(data, part), headers=FORM_HEADERS, deadline=60)

    def wait(self, *states, deadline=30.0):
        """The FileInfo once it is in one of these states."""
        last = {}

        def there():
            last["seen"] = info = self.info()
            if info["state"] in states:
                return info
            assert info["state"] not in FINAL, info
            return None
        return wait_until(there, lambda: f"the data source {states}; {last}",
                          deadline, interval=0.05)
