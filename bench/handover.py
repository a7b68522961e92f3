"""How long an upgrade takes, and what clients feel of it, with 1,000 images."""
import contextlib
import statistics
import subprocess
import threading
import time

from common import (MIB, Daemon, grpc, grpc_call, make_disk, random_file, row,
                    seconds, settle)

COUNT, SIZE = 1000, 256 * 1024


def filled(args, work):
    """A daemon with COUNT images ready."""
    source = work / "source"
    source.mkdir()
    random_file(source / "small.raw", SIZE)
    disk = make_disk(work / "disk", "bench")
    extra = f'[sources]\nallow_file = true\nfile_roots = ["{source}"]'
    daemon = Daemon(args.binary, work / "first", [disk], extra)
    names = [f"image{i:04}" for i in range(COUNT)]
    for name in names:
        daemon.ensure(name, f"file://{source}/small.raw")
    daemon.wait(names)
    return daemon, disk, extra


def await_ready(daemon, begin):
    """Seconds since `begin` until all are listed ready, and what was read."""
    while True:
        with contextlib.suppress(grpc.RpcError):
            page = daemon.call("ImageService", "List", page_size=COUNT)
            if sum(1 for i in page.images if i.state == "ready") == COUNT:
                break
        if time.monotonic() - begin > 60:
            raise SystemExit("not all images are ready after 60 s")
    took = time.monotonic() - begin
    assert not any("rehashed" in c.origin for i in page.images for c in i.copies)
    io = dict(line.split(": ") for line in
              open(f"/proc/{daemon.process.pid}/io").read().splitlines())
    return took, int(io["rchar"])


def handed_over(old, new):
    """Begin to confirmed, by a person at the new one."""
    begin = time.monotonic()
    new.call("HandoverService", "Begin")
    while new.call("HandoverService", "Status").handover.phase != "ready":
        if time.monotonic() - begin > 60:
            raise SystemExit("the new manager is not ready after 60 s")
    new.call("HandoverService", "Confirm")
    took = time.monotonic() - begin
    old.process.wait(60)
    return took


def new_channel(address):
    """One with connections of its own."""
    return grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])


def longest_wait(address, replace):
    """(The longest, the usual) time that a client waits for an answer while
    replace() runs, of one that stays connected and one that connects anew for each
    call; both try again at once when a call fails."""
    done, waits = threading.Event(), {True: [], False: []}

    def ask(anew):
        client = grpc_call.Client(address)
        client.channel = new_channel(address)
        while not done.wait(0.003):  # a client's pace
            begin = time.monotonic()
            while True:
                if anew:
                    client.channel.close()
                    client.channel = new_channel(address)
                with contextlib.suppress(grpc.RpcError):
                    list(client.call("bim.v1.ImageService", "List",
                                     '{"page_size":1}', timeout=10))
                    break
            waits[anew].append(time.monotonic() - begin)
        client.channel.close()

    clients = [threading.Thread(target=ask, args=(anew,)) for anew in waits]
    for client in clients:
        client.start()
    time.sleep(0.5)  # so long it measures what is usual
    before = {anew: len(seen) for anew, seen in waits.items()}
    try:
        replace()
        time.sleep(0.5)
    finally:
        done.set()
        for client in clients:
            client.join()
    return (max(max(seen[before[anew]:]) for anew, seen in waits.items()),
            max(statistics.median(seen) for seen in waits.values()))


def bench_handover(args, work):
    daemon, disk, extra = filled(args, work)
    turns, waits, usual, crashes, read = [], [], [], [], []
    for i in range(args.pairs):
        settle()
        new = Daemon(args.binary, work / f"next{i}", [disk], extra)
        turns.append(handed_over(daemon, new))
        read.append(await_ready(new, time.monotonic())[1])
        daemon = new
        settle()

        def replace():
            old = daemon.process
            daemon.process = subprocess.Popen(
                [daemon.binary, "daemon", "--config", str(daemon.config),
                 "--handover=auto"])
            if old.wait(60) != 0:
                raise SystemExit("the old daemon did not end cleanly")

        longest, median = longest_wait(daemon.address, replace)
        waits.append(longest)
        usual.append(median)
        settle()
        daemon.process.kill()
        daemon.process.wait()
        begin = time.monotonic()
        daemon = Daemon(args.binary, work / f"after{i}", [disk], extra)
        took, count = await_ready(daemon, begin)
        crashes.append(took)
        read.append(count)
    daemon.stop()
    rehashed = max(read) > COUNT * SIZE // 4
    told = (f"{max(read) / MIB:.1f} MiB of records read, "
            f"{'image data read' if rehashed else '0 bytes of images'}")
    return [
        row("hand-over with 1,000 ready images, begin to confirmed",
            f"{statistics.median(turns) * 1000:.0f} ms", told, seconds(turns),
            "under 1 s, 0 bytes of images read",
            statistics.median(turns) < 1 and not rehashed),
        row("longest wait of a client through an automatic hand-over",
            f"{statistics.median(waits) * 1000:.0f} ms",
            f"usually {statistics.median(usual) * 1000:.1f} ms a call",
            f"{statistics.median(waits) * 1000:.0f} ms (worst "
            f"{max(waits) * 1000:.0f} ms)", "under 100 ms",
            statistics.median(waits) < 0.1),
        row("take-over after `kill -9`, 1,000 ready images, from exec",
            f"{statistics.median(crashes) * 1000:.0f} ms", "", seconds(crashes),
            "under 1 s", statistics.median(crashes) < 1),
    ]


CASES = {"handover": bench_handover}
