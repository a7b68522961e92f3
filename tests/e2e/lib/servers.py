"""Real and scripted HTTP servers on free loopback ports.

`Nginx` is what users have. `Origin` is a server that misbehaves on demand: it
speaks HTTP over raw sockets, so that it can lie, stall and reset at any byte.
"""

import fcntl
import gzip
import hashlib
import re
import select
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .deadline import SLOWDOWN, scaled, wait_until
from .ports import free_port
from .processes import clean_environment, end, run, spawn


# --------------------------------------------------------------------------
# nginx


@dataclass
class Access:
    method: str
    uri: str
    status: int
    bytes_sent: int
    range: str
    user_agent: str


class Nginx:
    """A real nginx that serves `root`.

    /NAME                 the file
    /rate/BYTES/NAME      the file at so many bytes a second and connection
    /redirect/NAME        302 to /NAME
    /private/NAME         the file for those who send "X-Token: sesame"
    """

    def __init__(self, directory, root, tls=False):
        self.directory = Path(directory)
        self.root = Path(root)
        self.root.mkdir(parents=True, exist_ok=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.scheme = "https" if tls else "http"
        self.ca_file = None
        if tls:
            self._make_certificates()
        for attempt in range(5):
            self.port = free_port()
            self._write_config(tls)
            self.process = spawn(
                ["nginx", "-p", self.directory, "-c", self.directory / "nginx.conf"],
                stdout=open(self.directory / "stdout", "wb"),
                stderr=open(self.directory / "stderr", "wb"),
                env=clean_environment())
            if self._listening():
                return
            end(self.process)
        raise AssertionError("nginx did not start: "
                             + (self.directory / "stderr").read_text())

    def _listening(self):
        limit = time.monotonic() + scaled(10)
        while time.monotonic() < limit and self.process.poll() is None:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self.process.poll() is None
            time.sleep(0.01)
        return False

    def _make_certificates(self):
        key, certificate = self.directory / "key.pem", self.directory / "cert.pem"
        run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
             "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
             "-subj", "/CN=bim test CA", "-addext",
             "subjectAltName=IP:127.0.0.1,DNS:localhost",
             "-keyout", key, "-out", certificate])
        self.ca_file = certificate

    def _write_config(self, tls):
        listen = f"listen 127.0.0.1:{self.port}" + (" ssl" if tls else "")
        certificate = (f"ssl_certificate {self.directory}/cert.pem;"
                       f"ssl_certificate_key {self.directory}/key.pem;" if tls else "")
        (self.directory / "nginx.conf").write_text(f"""
daemon off; master_process off; worker_processes 1;
pid {self.directory}/nginx.pid;
error_log {self.directory}/stderr warn;
events {{ worker_connections 256; }}
http {{
  log_format lines '$request_method|$request_uri|$status|$body_bytes_sent|$http_range|$http_user_agent';
  access_log {self.directory}/access.log lines;
  client_body_temp_path {self.directory}/body; proxy_temp_path {self.directory}/proxy;
  fastcgi_temp_path {self.directory}/fastcgi; uwsgi_temp_path {self.directory}/uwsgi;
  scgi_temp_path {self.directory}/scgi;
  default_type application/octet-stream; sendfile on;
  server {{
    {listen}; {certificate}
    root {self.root};
    location / {{ }}
    location ~ ^/rate/(?<rate>[0-9]+)/(?<rest>.*)$ {{ limit_rate $rate; alias {self.root}/$rest; }}
    location ~ ^/redirect/(?<rest>.*)$ {{ return 302 /$rest; }}
    location ~ ^/private/(?<rest>.*)$ {{
      if ($http_x_token != sesame) {{ return 403; }}
      alias {self.root}/$rest;
    }}
  }}
}}
""")

    def url(self, name, rate=None):
        base = f"{self.scheme}://127.0.0.1:{self.port}"
        return f"{base}/rate/{int(rate)}/{name}" if rate else f"{base}/{name}"

    def accesses(self, name=None):
        """Requests that ended, oldest first; of `name` (a URI's end) only."""
        found = []
        for line in (self.directory / "access.log").read_text().splitlines():
            method, uri, status, sent, range_, agent = line.split("|", 5)
            if name is None or uri.endswith(name):
                found.append(Access(method, uri, int(status), int(sent),
                                    "" if range_ == "-" else range_, agent))
        return found

    def wait_accesses(self, name, count):
        """nginx writes its log a moment after the client has the last byte."""
        wait_until(lambda: len(self.accesses(name)) >= count,
                   f"{count} requests of {name} in nginx's log")
        return self.accesses(name)

    def close(self):
        end(self.process)


# --------------------------------------------------------------------------
# The scripted origin


@dataclass
class Request:
    method: str
    target: str  # as sent: a path, or an absolute URL at a proxy
    headers: dict  # names in lower case
    connection: int
    at: float = field(default_factory=time.monotonic)
    body_sent: int = 0  # bytes of the body given to the kernel
    status: int = 0
    done: bool = False

    @property
    def range(self):
        return self.headers.get("range", "")

    @property
    def range_begin(self):
        match = re.match(r"bytes=(\d+)-", self.range)
        return int(match.group(1)) if match else None


class Connection:
    def __init__(self, sock, number, stopping):
        self.sock, self.number, self.stopping = sock, number, stopping
        self.buffer = b""
        self.request = None

    def read_request(self):
        while b"\r\n\r\n" not in self.buffer:
            piece = self.sock.recv(65536)
            if not piece:
                return None
            self.buffer += piece
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        headers = {}
        for line in lines[1:]:
            name, value = line.split(":", 1)
            headers[name.strip().lower()] = value.strip()
        self.request = Request(method, target, headers, self.number)
        return self.request

    def head(self, status, headers=()):
        self.request.status = status
        lines = [f"HTTP/1.1 {status} Scripted"]
        lines += [f"{name}: {value}" for name, value in dict(headers).items()]
        self.sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    def body(self, data):
        view = memoryview(data)
        while view:
            sent = self.sock.send(view[:65536])
            self.request.body_sent += sent
            view = view[sent:]

    def hold(self):
        """Says nothing until the client goes away or the server stops."""
        while not self.stopping.is_set():
            readable, _, _ = select.select([self.sock], [], [], 0.05)
            if readable:
                with suppress(OSError):
                    if self.sock.recv(65536):
                        continue
                return

    def reset(self):
        """RST instead of FIN, after what was written has left."""
        # What the kernel still holds would be thrown away by the RST.
        def unsent():
            return struct.unpack("i", fcntl.ioctl(self.sock, 0x5411, b"\0" * 4))[0]
        with suppress(AssertionError, OSError):
            wait_until(lambda: unsent() == 0, "the socket to drain", 5, 0.002)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                             struct.pack("ii", 1, 0))
        self.sock.close()


class Behaviour:
    """What to answer. Returns True when the connection may be used again."""

    def __call__(self, connection, request):
        raise NotImplementedError


@dataclass
class Content(Behaviour):
    """A body, served well unless told to misbehave."""

    data: bytes
    etag: str = ""
    last_modified: str = ""
    ranges: bool = True
    content_type: str = "application/octet-stream"
    headers: dict = field(default_factory=dict)
    # Misbehaviour; each counts bytes of the body of one answer.
    announce: int = None        # Content-Length to claim instead of the truth
    no_length: bool = False     # no Content-Length: the body ends with FIN
    reset_after: int = None     # RST after so many bytes
    close_after: int = None     # FIN after so many bytes
    stall_after: int = None     # silence after so many bytes
    piece: int = 65536          # bytes at once,
    pause: float = 0.0          # seconds between them
    gate: threading.Event = None  # holds the body, after gate_after bytes,
    gate_after: int = 0           # until it is set

    def __post_init__(self):
        if not self.etag:
            self.etag = '"' + hashlib.md5(self.data).hexdigest() + '"'

    def _slice(self, request):
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.range)
        if not self.ranges or not match:
            return 200, 0, len(self.data)
        condition = request.headers.get("if-range")
        if condition and condition not in (self.etag, self.last_modified):
            return 200, 0, len(self.data)
        begin = int(match.group(1))
        last = int(match.group(2)) + 1 if match.group(2) else len(self.data)
        if begin >= len(self.data):
            return 416, 0, 0
        return 206, begin, min(last, len(self.data))

    def __call__(self, connection, request):
        status, begin, stop = self._slice(request)
        headers = {"Content-Type": self.content_type, "ETag": self.etag}
        if self.last_modified:
            headers["Last-Modified"] = self.last_modified
        if self.ranges:
            headers["Accept-Ranges"] = "bytes"
        if status == 416:
            headers["Content-Range"] = f"bytes */{len(self.data)}"
        if status == 206:
            headers["Content-Range"] = f"bytes {begin}-{stop - 1}/{len(self.data)}"
        announced = stop - begin if self.announce is None else self.announce
        if self.no_length:
            headers["Connection"] = "close"
        else:
            headers["Content-Length"] = announced
        headers.update(self.headers)
        connection.head(status, headers)
        if request.method == "HEAD":
            return not self.no_length
        body = memoryview(self.data)[begin:stop]
        limits = [n for n in (self.reset_after, self.close_after, self.stall_after)
                  if n is not None]
        limit = min(limits, default=len(body))
        sent = 0
        while sent < min(limit, len(body)):
            step = min(self.piece, min(limit, len(body)) - sent)
            if self.gate and sent < self.gate_after < sent + step:
                step = self.gate_after - sent
            if self.gate and sent >= self.gate_after:
                while not self.gate.wait(0.05):
                    if connection.stopping.is_set():
                        return False
            connection.body(body[sent:sent + step])
            sent += step
            if self.pause:
                connection.stopping.wait(self.pause)
        if self.reset_after is not None:
            connection.reset()
            return False
        if self.stall_after is not None:
            connection.hold()
            return False
        return (self.close_after is None and not self.no_length
                and announced == stop - begin)


def open_still(sock):
    try:
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


@dataclass
class Lane(Content):
    """So many bytes a second and connection (fewer on a slow machine), so that
    more connections are faster; counts those at work."""

    rate: int = 24 << 20
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _working: set = field(default_factory=set)
    most: int = 0

    @property
    def now(self):
        with self._lock:
            return self._count()

    def _count(self):
        # Not those that the client has closed and we still write to.
        return sum(open_still(c.sock) for c in self._working)

    def __call__(self, connection, request):
        with self._lock:
            self._working.add(connection)
            self.most = max(self.most, self._count())
        try:
            self.piece, self.pause = 256 * 1024, 256 * 1024 / self.rate * SLOWDOWN
            return super().__call__(connection, request)
        finally:
            with self._lock:
                self._working.remove(connection)


@dataclass
class Answer(Behaviour):
    """A status with a small body."""

    status: int
    headers: dict = field(default_factory=dict)
    body: bytes = b"an answer by the scripted origin\n"

    def __call__(self, connection, request):
        connection.head(self.status, {"Content-Type": "text/plain",
                                      "Content-Length": len(self.body),
                                      **self.headers})
        if request.method != "HEAD":
            connection.body(self.body)
        return True


def redirect(location, status=302):
    return Answer(status, {"Location": location}, b"")


class Never(Behaviour):
    """Takes the request and never answers."""

    def __call__(self, connection, request):
        connection.hold()
        return False


@dataclass
class Endless(Behaviour):
    """A body without length that never ends."""

    chunked: bool = False

    def __call__(self, connection, request):
        piece = hashlib.sha512(b"endless").digest() * 1024
        headers = {"Content-Type": "application/octet-stream"}
        headers.update({"Transfer-Encoding": "chunked"} if self.chunked
                       else {"Connection": "close"})
        connection.head(200, headers)
        while not connection.stopping.is_set():
            if self.chunked:
                connection.sock.sendall(f"{len(piece):x}\r\n".encode())
            connection.body(piece)
            if self.chunked:
                connection.sock.sendall(b"\r\n")
        return False


def html():
    page = (b"<!DOCTYPE html>\n<html><head><title>Log in</title></head>"
            b"<body><h1>Please log in</h1></body></html>\n")
    return Content(page.ljust(2048, b"\n"), content_type="text/html")


def json_error():
    return Content(b'{"error": {"code": 42, "message": "no such image"}}'
                   .ljust(1024), content_type="application/json")


def xml_error():
    return Content(b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied'
                   b"</Code></Error>".ljust(1024), content_type="application/xml")


def gzipped(data):
    packed = gzip.compress(data, 1, mtime=0)
    packed += b"\0" * (-len(packed) % 512)
    return Content(packed, content_type="application/gzip")


class Origin:
    """The scripted server. Every connection has a thread; close() ends all."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.listener.getsockname()[1]
        self.requests = []
        self._scripts = {}
        self._default = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._sockets = {}
        self._threads = []
        self._connections = 0
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def serve(self, path, *behaviours):
        """Answers the requests of `path` in this order; the last one stays."""
        with self._lock:
            self._scripts[path] = list(behaviours)
        return self.url(path)

    def serve_all(self, behaviour):
        """For every other target: a proxy, for instance."""
        self._default = behaviour

    def requests_of(self, path):
        with self._lock:
            return [r for r in self.requests if r.target.split("?")[0] == path]

    def count(self, path):
        return len(self.requests_of(path))

    def wait_count(self, path, count, deadline=10.0):
        wait_until(lambda: self.count(path) >= count,
                   lambda: f"{count} requests of {path}; {self.count(path)} came",
                   deadline)
        return self.requests_of(path)

    def _accept(self):
        while not self._stopping.is_set():
            try:
                readable, _, _ = select.select([self.listener], [], [], 0.1)
                if not readable:
                    continue
                sock, _ = self.listener.accept()
            except OSError:
                return
            self._connections += 1
            thread = threading.Thread(target=self._connection, daemon=True,
                                      args=(sock, self._connections))
            with self._lock:
                self._sockets[self._connections] = sock
                self._threads.append(thread)
            thread.start()

    def _behaviour(self, request):
        with self._lock:
            self.requests.append(request)
            script = self._scripts.get(request.target.split("?")[0])
            if script:
                return script.pop(0) if len(script) > 1 else script[0]
        return self._default or Answer(404)

    def _connection(self, sock, number):
        connection = Connection(sock, number, self._stopping)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            again = True
            while again and not self._stopping.is_set():
                request = connection.read_request()
                if request is None:
                    break
                again = self._behaviour(request)(connection, request)
                request.done = True
        except (OSError, ValueError):
            pass  # the client went away, or reset() closed the socket
        finally:
            with self._lock:
                self._sockets.pop(number, None)
            with suppress(OSError):
                sock.close()

    def close(self):
        self._stopping.set()
        self._accepting.join()
        with suppress(OSError):
            self.listener.close()
        with self._lock:
            sockets, threads = list(self._sockets.values()), list(self._threads)
        for sock in sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(timeout=scaled(10))
            assert not thread.is_alive(), "a connection of the origin hangs"
