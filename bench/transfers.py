"""The cases that move images between daemons, or over many connections."""
import os
import random
import signal
import statistics
import time

from common import (GIB, MIB, Daemon, Nginx, PeakMemory, make_disk,
                    median_ratio, quietly, random_file, row, seconds, settle,
                    sparse_file, timed)

UUID = "00000000-0000-4000-8000-{:012}"


class Pair:
    """A sender that has images, and a receiver."""

    def __init__(self, args, work, trusted=False):
        self.nginx_root = work / "www"
        self.nginx_root.mkdir()
        self.sender = Daemon(args.binary, work / "sender",
                             [make_disk(work / "disk1", "one")],
                             "[sources]\nallow_file = true\n")
        extra = '[peers]\ntrusted = ["127.0.0.0/8"]\n' if trusted else ""
        self.receiver = Daemon(args.binary, work / "receiver",
                               [make_disk(work / "disk2", "two")], extra)
        self.count = 0

    def give(self, path, uuid=None, name="image"):
        """The sender has the file as an image; its uuid."""
        if uuid is None:
            self.count += 1
            uuid = UUID.format(self.count)
        self.sender.call("ImageService", "Ensure", spec={
            "name": name, "uuid": uuid, "source": {"url": f"file://{path}"}})
        self.sender.wait_uuid(uuid)
        return uuid

    def pull(self, uuid, name="image"):
        begin = time.monotonic()
        self.receiver.call("ImageService", "Ensure", spec={
            "name": name, "uuid": uuid,
            "source": {"peers": [self.sender.address]}})
        image = self.receiver.wait_uuid(uuid)
        return time.monotonic() - begin, image

    def forget(self, uuid, name="image"):
        self.receiver.call("ImageService", "Remove", name=name, uuid=uuid,
                           force=True)

    def data_url(self, uuid, name="image"):
        return f"http://{self.sender.data}/v1/images/{name}/{uuid}/data"

    def stop(self):
        self.receiver.stop()
        self.sender.stop()


def bench_limited(args, work):
    www = work / "www"
    www.mkdir()
    random_file(www / "big.raw", 512 * MIB)
    nginx = Nginx(work / "nginx", www, "limit_rate 40m;")
    daemon = Daemon(args.binary, work / "daemon",
                    [make_disk(work / "disk", "bench")])
    url = nginx.url("big.raw")
    ours, theirs = [], []
    try:
        for i in range(args.pairs):
            settle()
            theirs.append(timed("aria2c", "-x8", "-s8", "-q", "-d", str(work),
                                "-o", "aria.out", url))
            (work / "aria.out").unlink()
            settle()
            begin = time.monotonic()
            daemon.ensure(f"big{i}", url)
            daemon.wait([f"big{i}"])
            ours.append(time.monotonic() - begin)
            daemon.remove(f"big{i}")
    finally:
        daemon.stop()
        nginx.stop()
    ratio = median_ratio(ours, theirs)
    return [row("512 MiB from an origin limited to 40 MB/s per connection, "
                "until ready",
                seconds(ours), f"`aria2c -x8 -s8`: {seconds(theirs)}",
                f"{ratio:.2f} x", "at most 1.2 x", ratio <= 1.2)]


def bench_sync(args, work):
    pair = Pair(args, work)
    ours, theirs = [], []
    try:
        source = work / "big.raw"
        random_file(source, 2 * GIB)
        uuid = pair.give(source)
        source.unlink()
        target = work / "curl.out"
        for _ in range(args.pairs + 1):  # the first pair warms the caches
            settle()
            begin = time.monotonic()
            quietly("curl", "-s", "-o", str(target), pair.data_url(uuid))
            quietly("sync", str(target))
            theirs.append(time.monotonic() - begin)
            target.unlink()
            settle()
            took, _ = pair.pull(uuid)
            ours.append(took)
            pair.forget(uuid)
    finally:
        pair.stop()
    ours, theirs = ours[1:], theirs[1:]
    ratio = median_ratio(ours, theirs)
    return [row("sync of 2 GiB random between nodes until ready, strict",
                seconds(ours), f"`curl -o` + `sync`: {seconds(theirs)}",
                f"{ratio:.2f} x", "at most 1.3 x", ratio <= 1.3)]


def bench_sparse(args, work):
    rows = []
    data = 512 * MIB
    source = work / "sparse.raw"
    plain = work / "plain.raw"
    for trusted in (True, False):
        folder = work / ("trusted" if trusted else "strict")
        folder.mkdir()
        sparse_file(source, 8 * GIB, data)
        random_file(plain, data)
        pair = Pair(args, folder, trusted)
        ours, theirs, wire = [], [], []
        try:
            uuid = pair.give(source)
            other = pair.give(plain)
            for _ in range(args.pairs if trusted else max(1, args.pairs // 2)):
                settle()
                if trusted:
                    target = work / "curl.out"
                    begin = time.monotonic()
                    quietly("curl", "-s", "-o", str(target),
                            pair.data_url(other))
                    quietly("sync", str(target))
                    theirs.append(time.monotonic() - begin)
                    target.unlink()
                else:
                    theirs.append(timed("openssl", "dgst", "-sha512",
                                        str(source)))
                settle()
                took, image = pair.pull(uuid)
                ours.append(took)
                wire.append(int(image.copies[0].wire_bytes))
                pair.forget(uuid)
        finally:
            pair.stop()
        ratio = median_ratio(ours, theirs)
        if trusted:
            share = max(wire) / data
            rows.append(row("sync of 8 GiB sparse with 512 MiB data, trusted: "
                            "bytes on the wire",
                            f"{max(wire) / MIB:.1f} MiB",
                            f"{data // MIB} MiB of data", f"{share:.4f} x",
                            "at most 1.01 x", share <= 1.01))
            rows.append(row("the same: time until ready", seconds(ours),
                            "`curl -o` of 512 MiB + `sync`: "
                            f"{seconds(theirs)}",
                            f"{ratio:.2f} x", "at most 1.5 x", ratio <= 1.5))
        else:
            rows.append(row("the same, strict", seconds(ours),
                            "`openssl dgst -sha512` of the file: "
                            f"{seconds(theirs)}",
                            f"{ratio:.2f} x", "at most 1.15 x", ratio <= 1.15))
    return rows


def bench_resume(args, work):
    www = work / "www"
    www.mkdir()
    size = 2 * GIB
    random_file(www / "big.raw", size)
    shares = []
    for i in range(min(args.pairs, 3)):
        folder = work / str(i)
        folder.mkdir()
        # Slow enough to be killed in time.
        nginx = Nginx(folder / "nginx", www, "limit_rate 150m;")
        daemon = Daemon(args.binary, folder / "daemon",
                        [make_disk(folder / "disk", "bench")])
        try:
            daemon.ensure("big", nginx.url("big.raw"))
            had = 0
            while had < 0.9 * size:
                time.sleep(0.01)
                had = int(daemon.get("big").copies[0].processed_bytes)
            daemon.process.send_signal(signal.SIGKILL)
            daemon.process.wait()
            daemon.start()
            daemon.wait(["big"])
        finally:
            daemon.stop()
            # Ends its connections, so that all are logged.
            nginx.stop()
        # All that the server sent twice, also what was on its way at the kill.
        shares.append((nginx.sent() - size) / size)
    share = statistics.median(shares)
    return [row("restart after kill -9 at 90 % of a 2 GiB download: bytes "
                "sent twice", f"{share * size / MIB:.1f} MiB", "",
                f"{share * 100:.2f} %", "at most 2 %", share <= 0.02)]


def bench_delta(args, work):
    size, chunk = 2 * GIB, 256 * 1024
    pair = Pair(args, work)
    try:
        source = work / "first.raw"
        random_file(source, size)
        first = pair.give(source)
        pair.pull(first)
        with open(source, "r+b") as out:
            chunks = random.Random(1).sample(range(size // chunk),
                                             size // chunk // 20)
            for i in chunks:
                out.seek(i * chunk + 1000)
                out.write(os.urandom(64))
        second = pair.give(source)
        source.unlink()
        settle()
        took, image = pair.pull(second)
        wire = int(image.copies[0].wire_bytes)
    finally:
        pair.stop()
    share = wire / size
    return [row("delta: 2 GiB image of which 5 % of the chunks differ from one "
                "on the node: bytes on the wire", f"{wire / MIB:.1f} MiB",
                f"in {took:.1f} s", f"{share * 100:.2f} %", "at most 6 %",
                share <= 0.06)]


def bench_syncmemory(args, work):
    pair = Pair(args, work)
    try:
        uuids = []
        source = work / "sparse.raw"
        for _ in range(8):
            sparse_file(source, 16 * GIB, 64 * MIB)
            uuids.append(pair.give(source))
            source.unlink()
        with PeakMemory(pair.receiver) as memory:
            for uuid in uuids:
                pair.receiver.call("ImageService", "Ensure", spec={
                    "name": "image", "uuid": uuid,
                    "source": {"peers": [pair.sender.address]}})
            for uuid in uuids:
                pair.receiver.wait_uuid(uuid)
        sender = pair.sender.rss_anon()
    finally:
        pair.stop()
    return [row("memory, 8 syncs of 16 GiB sparse at once (RssAnon, peak)",
                f"{memory.peak / MIB:.0f} MiB",
                f"its sender: {sender / MIB:.0f} MiB",
                f"{memory.peak / MIB:.0f} MiB", "at most 128 MiB",
                memory.peak <= 128 * MIB)]


CASES = {"limited": bench_limited, "sync": bench_sync, "sparse": bench_sparse,
         "resume": bench_resume, "delta": bench_delta,
         "syncmemory": bench_syncmemory}
