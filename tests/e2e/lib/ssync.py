"""Longhorn's peer-to-peer file protocol, both ends, written from its
description: a sender that pushes a file to a receiver's port, well or badly,
and a receiver that takes one, well or badly."""

import base64
import ctypes
import hashlib
import http.client
import json
import os
import random
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

from .deadline import scaled, wait_until

BATCH = 2 << 20
BLOCK = 4096
WORKERS = 4
OPEN_FOR = 120
REQUEST_TIMEOUT = 5
MAX_BODY = BATCH + (64 << 10)


def intervals(path, round_up=False):
    """(is_data, begin, end) of a file in order; with `round_up` the last end is
    that of the file system's block, as FIEMAP tells it."""
    found, at = [], 0
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while at < size:
            try:
                data = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # nothing but a hole is left
                data = size
            if data > at:
                found.append((False, at, data))
            if data < size:
                hole = os.lseek(file.fileno(), data, os.SEEK_HOLE)
                found.append((True, data, hole))
            at = hole if data < size else size
    if round_up and found:
        is_data, begin, end = found[-1]
        found[-1] = (is_data, begin, -(-end // BLOCK) * BLOCK)
    return found


def batches(path, round_up=False):
    """What is written at once, in order."""
    return [(begin, min(begin + BATCH, end))
            for is_data, first, end in intervals(path, round_up) if is_data
            for begin in range(first, end, BATCH)]


class Broken(Exception):
    """The sender went away, as it was told to."""


class Refused(Exception):
    """The receiver answered with an error."""


@dataclass
class Push:
    """One push of the file `path` to `to` ("host:port"), on a thread.

    All options are misbehaviour, but direct_io and round_up. Numbers named
    "_after" count batches that the receiver has taken.
    """

    path: Path
    to: str
    direct_io: bool = False
    round_up: bool = False        # E is that of the block, beyond SIZE perhaps
    closes: int = 1               # 0: never, 2: twice
    close_after: int = None       # closes early, as if all was sent
    die_after: int = None         # breaks all connections inside a body
    pause_after: int = None       # says nothing more until release()
    leave_out: tuple = ()         # indices of batches that are never sent
    beyond: int = 0               # writes so many bytes behind the end
    short_body: bool = False      # one body is a byte short of its interval
    long_body: bool = False       # one body is a byte longer than it
    repeat: bool = False          # sends every batch twice,
    other_bytes: bool = False     # the second time with other bytes
    open_size: int = None         # another size in open than the file's
    holes: bool = True            # False: does not tell of holes
    seed: int = 1

    def __post_init__(self):
        self.path = Path(self.path)
        self.size = self.path.stat().st_size
        self.requests = []        # (what, begin, end, status), in their order
        self.sent = 0             # bytes of bodies
        self.error = None
        self.existed = None       # what open said
        self.done = threading.Event()
        self.paused = threading.Event()
        self._go_on = threading.Event()
        self._gone = threading.Event()
        self._lock = threading.Lock()
        self._taken = 0
        self._connections = []
        self._local = threading.local()
        self._thread = threading.Thread(target=self._run, daemon=True)

    # For tests ---------------------------------------------------------

    def start(self):
        self._thread.start()
        return self

    def wait(self, deadline=60.0):
        assert self.done.wait(scaled(deadline)), "the sender is still at work"
        self._thread.join()
        return self

    def wait_paused(self, deadline=30.0):
        wait_until(lambda: self.paused.is_set() or self.done.is_set(),
                   "the sender to pause", deadline)
        assert self.paused.is_set(), f"it ended first: {self.error}"

    def release(self):
        self._go_on.set()

    def stop(self):
        """Breaks it off, wherever it is."""
        self._go_on.set()
        self._break_off()
        if self._thread.ident:
            self._thread.join(scaled(20))
            assert not self._thread.is_alive(), "the sender hangs"

    def count(self, what):
        with self._lock:
            return sum(r[0] == what for r in self.requests)

    # Requests ------------------------------------------------------------

    def _connect(self):
        host, _, port = self.to.rpartition(":")
        connection = http.client.HTTPConnection(
            host, int(port), timeout=scaled(REQUEST_TIMEOUT))
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._connections.append(connection.sock)
        return connection

    def _request(self, method, what, query, body=None):
        if self._gone.is_set():
            raise Broken
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
        try:
            connection.request(method, f"/v1-ssync/{what}?{urlencode(query)}",
                               body=body)
            response = connection.getresponse()
            text = response.read(1 << 20)
        except (OSError, http.client.HTTPException):
            connection.close()
            self._local.connection = None
            if self._gone.is_set():
                raise Broken from None
            raise
        if response.will_close:
            connection.close()
            self._local.connection = None
        with self._lock:
            self.requests.append((what, query.get("begin"), query.get("end"),
                                  response.status))
            self.sent += len(body or b"")
        if response.status != 200:
            raise Refused(f"{what} {query}: {response.status} "
                          f"{text.decode(errors='replace').strip()}")
        return text

    def _open(self):
        query = {"begin": 0,
                 "end": self.size if self.open_size is None else self.open_size,
                 "directIO": "true" if self.direct_io else "false"}
        limit = time.monotonic() + OPEN_FOR
        while True:
            try:
                return json.loads(self._request("GET", "open", query))
            except OSError:
                if time.monotonic() > limit or self._gone.wait(0.05):
                    raise

    def _break_off(self):
        self._gone.set()
        with self._lock:
            sockets, self._connections = self._connections, []
        for sock in sockets:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                struct.pack("ii", 1, 0))
                sock.shutdown(socket.SHUT_RDWR)

    def _die_inside_a_body(self, begin, end):
        connection = self._connect()
        connection.putrequest(
            "POST", f"/v1-ssync/writeData?begin={begin}&end={end}")
        connection.putheader("Content-Length", str(end - begin))
        connection.endheaders(self._read(begin, begin + (end - begin) // 2))
        self._break_off()
        raise Broken

    # The work --------------------------------------------------------------

    def _read(self, begin, end):
        with open(self.path, "rb") as file:
            return os.pread(file.fileno(), min(end, self.size) - begin, begin)

    def _same_there(self, begin, end, data):
        text = self._request("GET", "getChecksum", {"begin": begin, "end": end})
        theirs = json.loads(text)
        return theirs == base64.b64encode(hashlib.sha512(data).digest()).decode()

    def _turn(self, begin, end):
        """Before a batch: whether to send it."""
        with self._lock:
            taken = self._taken
            self._taken += 1
        if self.close_after is not None and taken >= self.close_after:
            return False
        if self.die_after is not None and taken == self.die_after:
            self._die_inside_a_body(begin, end)
        if self.pause_after is not None and taken >= self.pause_after:
            self.paused.set()
            self._go_on.wait(scaled(600))
        return True

    def _batch(self, begin, end, odd):
        if not self._turn(begin, end):
            return
        data = self._read(begin, end)
        if self.existed and self._same_there(begin, end, data):
            return
        query = {"begin": begin, "end": end}
        if odd and self.short_body:
            data = data[:-1]
        if odd and self.long_body:
            data += b"x"
        self._request("POST", "writeData", query, data)
        if self.repeat:
            if self.other_bytes:
                data = bytes(255 - byte for byte in data)
            self._request("POST", "writeData", query, data)

    def _interval(self, interval):
        is_data, begin, end, odd = interval
        if is_data:
            self._batch(begin, end, odd)
        elif self.holes:
            self._request("POST", "sendHole", {"begin": begin, "end": end})

    def _run(self):
        try:
            self.existed = self._open()
            work = [(False, b, e, False)
                    for d, b, e in intervals(self.path, self.round_up) if not d]
            data = batches(self.path, self.round_up)
            work += [(True, b, e, n == len(data) // 2)
                     for n, (b, e) in enumerate(data) if n not in self.leave_out]
            random.Random(self.seed).shuffle(work)
            try:
                with ThreadPoolExecutor(WORKERS) as pool:
                    futures = [pool.submit(self._interval, w) for w in work]
                    try:
                        for each in futures:
                            each.result()
                    except BaseException:
                        pool.shutdown(wait=False, cancel_futures=True)
                        raise
                if self.beyond:
                    self._request("POST", "writeData",
                                  {"begin": self.size,
                                   "end": self.size + self.beyond},
                                  b"y" * self.beyond)
            except Refused as error:  # close is sent all the same
                self.error = error
            for _ in range(self.closes):
                self._request("POST", "close",
                              {"checksumMethod": "", "checksum": ""})
        except (Broken, Refused, OSError, ValueError,
                http.client.HTTPException) as error:
            self.error = self.error or error
        finally:
            self._break_off()
            self.done.set()


# --------------------------------------------------------------------------
# The receiver


def punch(file, begin, end):
    """Gives the blocks of an interval back (FALLOC_FL_PUNCH_HOLE | KEEP_SIZE)."""
    libc = ctypes.CDLL("libc.so.6", use_errno=True)
    if libc.fallocate(file.fileno(), 3, ctypes.c_long(begin),
                      ctypes.c_long(end - begin)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


@dataclass
class Received:
    """What a receiver has seen."""

    requests: list = field(default_factory=list)   # (what, begin, end)
    opened: list = field(default_factory=list)     # (begin, size, directIO)
    data: list = field(default_factory=list)       # (begin, end)
    holes: list = field(default_factory=list)
    bytes: int = 0                                 # of bodies
    most_at_once: int = 0


class Receiver:
    """Takes one file into `path` on a port of its own, on threads.

    With `listening=False` it has a port, and refuses connections until
    listen(). Misbehaviour counts requests of any kind: `fail_at` answers that
    one with 500, `break_at` resets its connection in the middle, `stop_at`
    reads nothing more from then on; `pause` seconds pass before each answer;
    `hold` (an Event) holds every answer of writeData until it is set.
    """

    def __init__(self, path, listening=True, fail_at=None, break_at=None,
                 stop_at=None, pause=0.0, hold=None, refuse_open=False):
        self.path = Path(path)
        self.seen = Received()
        self.closed = threading.Event()
        self.fail_at, self.break_at, self.stop_at = fail_at, break_at, stop_at
        self.pause, self.hold, self.refuse_open = pause, hold, refuse_open
        self.size = None
        self._lock = threading.Lock()
        self._count = self._now = 0
        self._stopping = threading.Event()
        self.existed = self.path.exists()
        self._server = _Server(("127.0.0.1", 0), _Handler,
                               bind_and_activate=False)
        self._server.receiver = self
        self._server.server_bind()
        self.port = self._server.server_address[1]
        self.address = f"127.0.0.1:{self.port}"
        self._thread = None
        if listening:
            self.listen()

    def listen(self):
        self._server.server_activate()
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05},
            daemon=True)
        self._thread.start()
        return self

    def wait_closed(self, deadline=60.0):
        assert self.closed.wait(scaled(deadline)), f"no close; seen {self.seen}"

    def close(self):
        self._stopping.set()
        if self._thread:
            self._server.shutdown()
            self._thread.join()
        self._server.close_all()
        self._server.server_close()

    # One request -------------------------------------------------------------

    def handle(self, handler, method):
        url = urlsplit(handler.path)
        query = {key: values[0] for key, values in
                 parse_qs(url.query, keep_blank_values=True).items()}
        what = url.path.removeprefix("/v1-ssync/")
        begin, end = int(query.get("begin", 0)), int(query.get("end", 0))
        with self._lock:
            self._count += 1
            number = self._count
            self.seen.requests.append((what, begin, end))
            self._now += what == "writeData"
            self.seen.most_at_once = max(self.seen.most_at_once, self._now)
        try:
            if self.stop_at is not None and number >= self.stop_at:
                self._stopping.wait(scaled(600))
                raise ConnectionError("stopped")
            if number == self.break_at:
                handler.rfile.read(min(1024, int(
                    handler.headers.get("Content-Length", 0))))
                handler.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raise ConnectionError("broken")
            length = int(handler.headers.get("Content-Length", 0))
            if not 0 <= length <= MAX_BODY:
                return handler.answer(413, b"too long\n")
            body = handler.rfile.read(length)
            self._stopping.wait(self.pause)
            if number == self.fail_at or (what == "open" and self.refuse_open):
                return handler.answer(500, b"failed as it was told to\n")
            return self._serve(handler, method, what, begin, end, query, body)
        finally:
            with self._lock:
                self._now -= what == "writeData"

    def _serve(self, handler, method, what, begin, end, query, body):
        expected = {"open": "GET", "sendHole": "POST", "writeData": "POST",
                    "getChecksum": "GET", "close": "POST"}.get(what)
        if expected != method:
            return handler.answer(404, b"not found\n")
        if what == "open":
            self.size = end
            with open(self.path, "ab") as file:
                file.truncate(end)
            self.seen.opened.append((begin, end, query.get("directIO")))
            return handler.answer(200, json.dumps(self.existed).encode())
        if what == "close":
            self.closed.set()
            return handler.answer(200, b"")
        if self.size is None or not 0 <= begin < end or begin >= self.size or (
                end >= self.size + (64 << 10)):
            return handler.answer(400, b"no such interval\n")
        stop = min(end, self.size)
        if what == "getChecksum":
            with open(self.path, "rb") as file:
                if os.lseek(file.fileno(), begin, os.SEEK_HOLE) < stop:
                    return handler.answer(200, b"null")
                data = os.pread(file.fileno(), stop - begin, begin)
            digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
            return handler.answer(200, json.dumps(digest).encode())
        if what == "writeData":
            if len(body) != stop - begin:
                return handler.answer(400, b"the body does not fit\n")
            while self.hold and not self.hold.wait(0.05):
                if self._stopping.is_set():
                    raise ConnectionError("stopped")
        with open(self.path, "r+b") as file:
            if what == "writeData":
                os.pwrite(file.fileno(), body, begin)
            else:
                punch(file, begin, stop)
        with self._lock:
            (self.seen.data if what == "writeData" else self.seen.holes).append(
                (begin, end))
            self.seen.bytes += len(body)
        return handler.answer(200, b"")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._sockets = set()

    def process_request(self, request, client_address):
        self._sockets.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self._sockets.discard(request)
        super().shutdown_request(request)

    def close_request(self, request):
        # A reset, where the handler asked for one.
        request.close()

    def close_all(self):
        for sock in list(self._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        pass  # who went away did so on purpose


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self):
        self.server.receiver.handle(self, "GET")

    def do_POST(self):
        self.server.receiver.handle(self, "POST")

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass
