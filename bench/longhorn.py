"""The cases of the face that Longhorn's control plane speaks to: the binary is
started by its command lines and called by its names."""
import contextlib
import datetime
import hashlib
import http.client
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import time

from google.protobuf import message_factory

from common import (GIB, MIB, Nginx, free_port, grpc_call, make_disk,
                    median_ratio, quietly, random_file, row, seconds, settle,
                    sparse_file)

# The binary of Longhorn's own manager, to be timed beside ours; it needs root,
# to see its disk as /data. No setting of ours, so it is not left for daemons.
INCUMBENT = os.environ.pop("BIM_INCUMBENT", "")
SERVICE = "bimrpc.BackingImageManagerService"
UUID = "00000000-0000-4000-8000-{:012}"
DISK = "bench"
DEADLINE = 600


def poll(look, what, process=None, interval=0.005):
    """What `look` returns once that is true."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if found := look():
            return found
        if process and process.poll() is not None:
            raise SystemExit(f"{what}: the process ended")
        time.sleep(interval)
    raise SystemExit(f"{what}: not within {DEADLINE} s")


def listens(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """One command line of Longhorn's, until it is stopped."""

    def __init__(self, argv, folder, env=None):
        folder.mkdir(exist_ok=True)
        self.log = folder / "log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=dict(os.environ, POD_IP="127.0.0.1", TMPDIR=str(folder),
                         **(env or {})))

    def rchar(self):
        """Bytes that it read from files, ever."""
        for line in open(f"/proc/{self.process.pid}/io"):
            if line.startswith("rchar"):
                return int(line.split()[1])
        raise SystemExit("no rchar")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


class Manager(Process):
    """`backing-image-manager daemon`, and a client of it."""

    def __init__(self, args, folder, disk, env=None):
        self.port, sync_port, self.push_port = (free_port() for _ in range(3))
        super().__init__(
            [longhorn_binary(args), "daemon", "--listen",
             f"127.0.0.1:{self.port}", "--sync-listen",
             f"127.0.0.1:{sync_port}", "--disk-uuid", DISK, "--port-range",
             f"{self.push_port}-{self.push_port}", "--disk", str(disk)],
            folder, {"BIM_LOG_LEVEL": "warn", **(env or {})})
        self.address = f"127.0.0.1:{self.port}"
        poll(lambda: listens(self.port) and listens(sync_port),
             f"the manager in {folder} to listen", self.process)
        client = grpc_call.Client(self.address)
        factory = message_factory.MessageFactory(client.pool)
        self.methods = {}
        # Types and stubs once: what is timed are the calls alone.
        for method in client.service(SERVICE).methods:
            if method.name == "Watch":
                continue
            answer = factory.GetPrototype(method.output_type)
            self.methods[method.name] = (
                factory.GetPrototype(method.input_type),
                client.channel.unary_unary(
                    f"/{SERVICE}/{method.name}",
                    request_serializer=lambda m: m.SerializeToString(),
                    response_deserializer=answer.FromString))

    def call(self, method, **fields):
        request, stub = self.methods[method]
        return stub(request(**fields), timeout=60)

    def fetch(self, name, uuid, size, address=""):
        return self.call("Fetch", spec={"name": name, "uuid": uuid,
                                        "size": size},
                         data_source_address=address)

    def wait(self, name, uuid, watch=lambda: None, interval=0.005):
        """The image once it is ready; `watch` is called at each look."""
        def look():
            watch()
            image = self.call("Get", name=name, uuid=uuid)
            if image.status.state == "failed":
                raise SystemExit(f"{name} failed: {image.status.error_msg}")
            return image if image.status.state == "ready" else None
        return poll(look, f"{name} to be ready", self.process, interval)

    def delete(self, name, uuid):
        self.call("Delete", name=name, uuid=uuid)

    def pushed_to(self):
        """Whether something listens where a push is received."""
        wanted = f":{self.push_port:04X}"
        for table in ("tcp", "tcp6"):
            with contextlib.suppress(FileNotFoundError):
                for line in open(f"/proc/net/{table}"):
                    fields = line.split()
                    if fields[1].endswith(wanted) and fields[3] == "0A":
                        return True
        return False


class DataSource(Process):
    """`backing-image-manager data-source` that downloads."""

    def __init__(self, args, folder, disk, name, uuid, url, incumbent=False):
        self.port, sync_port, receive_port = (free_port() for _ in range(3))
        argv = [INCUMBENT if incumbent else longhorn_binary(args),
                "data-source", "--listen", f"127.0.0.1:{self.port}",
                "--sync-listen", f"127.0.0.1:{sync_port}", "--name", name,
                "--uuid", uuid, "--source-type", "download", "--parameters",
                f"url={url}", "--parameters", "data-engine=v1"]
        if incumbent:
            argv = ["unshare", "--mount", "sh", "-c",
                    'mount --bind "$0" /data && exec "$@"', str(disk), *argv]
        else:
            argv += ["--disk", str(disk), "--receive-listen",
                     f"127.0.0.1:{receive_port}"]
        super().__init__(argv, folder, {"BIM_LOG_LEVEL": "warn"})
        self.address = f"127.0.0.1:{self.port}"

    def wait(self):
        def look():
            connection = http.client.HTTPConnection("127.0.0.1", self.port,
                                                    timeout=30)
            try:
                connection.request("GET", "/v1/file")
                info = json.loads(connection.getresponse().read())
            except (OSError, ValueError, http.client.HTTPException):
                return False  # it does not listen yet, or has no file yet
            finally:
                connection.close()
            if info["state"] == "failed":
                raise SystemExit(f"the data source failed: {info['message']}")
            return info["state"] == "ready-for-transfer"
        poll(look, "the data source to be ready-for-transfer", self.process,
             0.01)


def longhorn_binary(args):
    return str(pathlib.Path(args.binary).with_name("backing-image-manager"))


@contextlib.contextmanager
def data_folder():
    """/data, if the incumbent needs it and the machine has none."""
    path = pathlib.Path("/data")
    made = INCUMBENT and not path.exists()
    if made:
        path.mkdir()
    try:
        yield
    finally:
        if made:
            path.rmdir()


def place(disk, name, uuid):
    """Where the file of an image lies; its folder is made."""
    folder = disk / "backing-images" / f"{name}-{uuid}"
    folder.mkdir(parents=True)
    return folder / "backing"


def bench_datasource(args, work):
    www = work / "www"
    www.mkdir()
    random_file(www / "big.raw", 2 * GIB)
    disk = make_disk(work / "disk", DISK)
    ours, curl, incumbent, fetch, read = [], [], [], [], []
    with contextlib.ExitStack() as stack:
        stack.enter_context(data_folder())
        nginx = Nginx(work / "nginx", www)
        stack.callback(nginx.stop)
        manager = Manager(args, work / "manager", disk)
        stack.callback(manager.stop)
        url = nginx.url("big.raw")
        for i in range(args.pairs + 1):  # the first pair warms the caches
            target = work / "curl.out"
            settle()
            begin = time.monotonic()
            quietly("curl", "-s", "-o", str(target), url)
            quietly("sync", str(target))
            curl.append(time.monotonic() - begin)
            target.unlink()
            if INCUMBENT:
                other = make_disk(work / f"other{i}", DISK)
                settle()
                begin = time.monotonic()
                source = DataSource(args, work / "incumbent", other, "big",
                                    UUID.format(i), url, incumbent=True)
                try:
                    source.wait()
                    incumbent.append(time.monotonic() - begin)
                finally:
                    source.stop()
                quietly("rm", "-r", str(other))
            settle()
            name, uuid = f"big{i}", UUID.format(i)
            begin = time.monotonic()
            source = DataSource(args, work / "source", disk, name, uuid, url)
            try:
                source.wait()
                ours.append(time.monotonic() - begin)
                settle()
                before = manager.rchar()
                begin = time.monotonic()
                manager.fetch(name, uuid, 2 * GIB, source.address)
                manager.wait(name, uuid)
                fetch.append(time.monotonic() - begin)
                read.append(manager.rchar() - before)
            finally:
                source.stop()
            manager.delete(name, uuid)
    ratio = median_ratio(ours[1:], curl[1:])
    theirs = f"`curl -o` + `sync`: {seconds(curl[1:])}"
    if INCUMBENT:
        theirs += f"; Longhorn's data source: {seconds(incumbent[1:])}"
    took = statistics.median(fetch[1:])
    rehashed = max(read) > 4 * MIB
    return [row("a data source's download of 2 GiB random raw from nginx, "
                "from its start until ready-for-transfer",
                seconds(ours[1:]), theirs, f"{ratio:.2f} x", "at most 1.15 x",
                ratio <= 1.15),
            row("Fetch of that file from the data source until ready",
                f"{took * 1000:.0f} ms",
                f"{max(read) / 1024:.0f} KiB of records read, "
                f"{'image data read' if rehashed else '0 bytes rehashed'}",
                f"{took:.3f} s", "under 0.1 s, 0 bytes rehashed",
                took < 0.1 and not rehashed)]


def bench_push(args, work):
    rows = []
    for label, pairs in (("2 GiB random", args.pairs + 1),
                         ("8 GiB sparse with 512 MiB data",
                          max(1, args.pairs // 2) + 1)):
        sparse = "sparse" in label
        size = 8 * GIB if sparse else 2 * GIB
        folder = work / ("sparse" if sparse else "random")
        folder.mkdir()
        disks = [make_disk(folder / name, DISK)
                 for name in ("sends", "pushed", "pulls")]
        name, uuid = "image", UUID.format(1)
        file = place(disks[0], name, uuid)
        if sparse:
            sparse_file(file, size, 512 * MIB)
        else:
            random_file(file, size)
        pushed, pulled = [], []
        with contextlib.ExitStack() as stack:
            managers = []
            for i, env in enumerate(({}, {"BIM_LONGHORN_ALWAYS_PUSH": "true"},
                                     {})):
                managers.append(Manager(args, folder / f"manager{i}", disks[i],
                                        env))
                stack.callback(managers[-1].stop)
            sender = managers[0]
            sender.fetch(name, uuid, size)
            checksum = sender.wait(name, uuid).status.checksum
            for _ in range(pairs):  # the first pair warms the caches
                for receiver, times in ((managers[2], pulled),
                                        (managers[1], pushed)):
                    settle()
                    listened = []

                    def watch(receiver=receiver, listened=listened):
                        # At each look of both, so that both pay for it.
                        listened.append(receiver.pushed_to())
                    begin = time.monotonic()
                    receiver.call("Sync", spec={
                        "name": name, "uuid": uuid, "size": size},
                        from_address=sender.address)
                    image = receiver.wait(name, uuid, watch, interval=0.02)
                    times.append(time.monotonic() - begin)
                    assert image.status.checksum == checksum
                    assert any(listened) == (times is pushed), "the other way"
                    receiver.delete(name, uuid)
        quietly("rm", "-r", str(folder))
        ratio = median_ratio(pushed[1:], pulled[1:])
        rows.append(row(f"push of {label} between managers by Longhorn's "
                        "protocol until ready, strict", seconds(pushed[1:]),
                        f"our own pull, strict: {seconds(pulled[1:])}",
                        f"{ratio:.2f} x", "at most 1.3 x", ratio <= 1.3))
    return rows


def go_time(ns):
    """A time as backing.cfg has it."""
    whole, fraction = divmod(ns, 10**9)
    text = datetime.datetime.fromtimestamp(
        whole, datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    if fraction:
        text += "." + f"{fraction:09d}".rstrip("0")
    return text + " +0000 UTC"


def leave_image(disk, name, uuid, content):
    """A ready image as Longhorn's manager leaves it."""
    file = place(disk, name, uuid)
    file.write_bytes(content)
    stat = file.stat()
    file.with_name("backing.cfg").write_text(json.dumps({
        "name": f"/data/backing-images/{name}-{uuid}/backing", "uuid": uuid,
        "size": stat.st_size, "virtualSize": stat.st_size,
        "realSize": stat.st_blocks * 512, "expectedChecksum": "",
        "currentChecksum": hashlib.sha512(content).hexdigest(),
        "modificationTime": go_time(stat.st_mtime_ns)}))


def bench_takeover(args, work):
    count, size = 500, 256 * 1024
    images = [(f"image{i:03}", UUID.format(i)) for i in range(count)]
    times, lists, read = [], [], []
    for i in range(args.pairs):
        folder = work / str(i)
        disk = make_disk(folder / "disk", DISK)
        for name, uuid in images:
            leave_image(disk, name, uuid, os.urandom(size))
        settle()
        manager = Manager(args, folder / "manager", disk)
        try:
            before = manager.rchar()
            begin = time.monotonic()
            for name, uuid in images:
                manager.fetch(name, uuid, size)

            def all_ready():
                states = [image.status.state for image in
                          manager.call("List").backing_images.values()]
                assert "failed" not in states
                return states.count("ready") == count
            poll(all_ready, f"{count} images to be ready", manager.process)
            times.append(time.monotonic() - begin)
            read.append(manager.rchar() - before)
            for _ in range(100):
                begin = time.monotonic()
                listed = manager.call("List")
                lists.append(time.monotonic() - begin)
                assert len(listed.backing_images) == count
        finally:
            manager.stop()
    took, listing = statistics.median(times), statistics.median(lists)
    rehashed = max(read) > count * size // 2
    return [row(f"take over {count} images that lie on the disk, one Fetch "
                "each, until all are listed ready", f"{took * 1000:.0f} ms",
                f"{max(read) / MIB:.1f} MiB of records read, "
                f"{'image data read' if rehashed else '0 bytes rehashed'}",
                seconds(times), "under 1 s, 0 bytes rehashed",
                took < 1 and not rehashed),
            row(f"List of {count} images, p50 of {len(lists)} calls",
                f"{listing * 1000:.2f} ms", "", f"{listing * 1000:.2f} ms",
                "under 3 ms", listing < 0.003)]


CASES = {"datasource": bench_datasource, "push": bench_push,
         "takeover": bench_takeover}
