"""A reader that does not read costs the daemon a bounded amount of memory, and
gets the newest state when it reads again - not a backlog."""

import threading

import grpc

from lib import images
from lib.client import EVENT, pb, pb_grpc
from lib.deadline import scaled, wait_until
from lib.processes import proc_status_kib
from lib.servers import Answer, Content

IMAGES = 40
ROUNDS = 5


def test_slow_readers(start_daemon, origin, disk, connect):
    # Every change carries a long message: 200 changes x 20 readers are 40 MB
    # and more if each were kept.
    noise = "x" * 400
    url = origin.serve("/bad", Answer(404))
    daemon = start_daemon([disk], {"log": {"level": "warn"}})
    client = daemon.client
    # Streams of which nothing is read: grpcio reads one message ahead only,
    # and a small window makes the daemon's side block soon.
    channels = [grpc.insecure_channel(daemon.address, options=[
        ("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1),
        ("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0),
        ("grpc.so_rcvbuf", 4096)]) for _ in range(20)]
    streams = [pb_grpc.ImageServiceStub(c).Watch(pb.WatchRequest()) for c in channels]
    for stream in streams:
        assert next(stream).type == EVENT.TYPE_SNAPSHOT_BEGIN
    before = proc_status_kib(daemon.pid, "VmRSS")

    def change(round_number):
        for number in range(IMAGES):
            name = f"i{number:02}"
            client.ensure(name, f"{url}?{noise}{round_number}", uuid="u")
        wait_until(lambda: all(i.state == "failed" for i in client.list_all()),
                   "all failed", 20)
        if round_number < ROUNDS - 1:
            for number in range(IMAGES):
                client.remove(f"i{number:02}", "u")

    for round_number in range(ROUNDS):
        change(round_number)
    grown = proc_status_kib(daemon.pid, "VmRSS") - before
    assert grown < 48 * 1024 * (4 if "asan" in str(daemon.binary) else 1), (
        f"{grown} KiB more with slow readers")

    # A change that nobody read yet, then the reader wakes up.
    final = images.random_bytes(64 * images.KIB)
    client.ensure("last", origin.serve("/good", Content(final)))
    client.wait_ready("last")
    done = []

    def read(stream):
        count, newest = 0, {}
        for event in stream:
            count += 1
            if event.type == EVENT.TYPE_IMAGE:
                newest[event.image.spec.name] = event.image
            if newest.get("last", pb.Image()).state == "ready":
                break
        done.append((count, newest))

    threads = [threading.Thread(target=read, args=(s,), daemon=True) for s in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=scaled(20))
    assert len(done) == len(streams), "a slow reader never got the newest state"
    for count, newest in done:
        # Far fewer than the changes there were (each image: pending, starting,
        # failed, removed, five times).
        assert count < IMAGES * ROUNDS * 2, f"{count} events: a backlog"
        assert newest["last"].current_sha512 == images.sha512(final)
        for name, image in newest.items():
            if name != "last":
                assert image == client.get(name)
    for stream, channel in zip(streams, channels):
        stream.cancel()
        channel.close()
