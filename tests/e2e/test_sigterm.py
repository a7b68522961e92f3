"""SIGTERM: no new work, what runs is left resumable, exit 0."""

import os
import signal
import threading
import time
from pathlib import Path

import grpc
import pytest

from lib import images
from lib.client import health_pb2, health_pb2_grpc, pb
from lib.deadline import scaled
from lib.images import MIB
from lib.servers import Content, Never

DATA = images.random_bytes(4 * MIB)


def test_idle(start_daemon, disk):
    daemon = start_daemon([disk])
    begin = time.monotonic()
    daemon.stop()
    assert time.monotonic() - begin < scaled(5)
    assert not (daemon.state_dir / "endpoint.json").exists() or (
        disk.owner()["pid"] == daemon.pid)


def test_sigint_too(start_daemon, disk):
    daemon = start_daemon([disk])
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.wait_exit() in (0, 130)


def test_with_a_silent_server_and_open_streams(start_daemon, disk, origin):
    """Nothing that waits can hold it up."""
    daemon = start_daemon([disk], {"sources": {"first_byte_timeout": "60s"}})
    for number in range(3):
        daemon.client.ensure(f"i{number}", origin.serve(f"/{number}", Never()))
        origin.wait_count(f"/{number}", 1)
    watch = daemon.client.watch()
    client = daemon.client
    daemon.process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    assert daemon.process.wait(timeout=scaled(20)) == 0
    assert time.monotonic() - begin < scaled(10)
    watch._thread.join(timeout=scaled(10))
    # The readers are told, with a reason they can act upon.
    assert watch.error.code() in (grpc.StatusCode.UNAVAILABLE,
                                  grpc.StatusCode.CANCELLED)
    try:
        client.version_get()
        raise AssertionError("answered")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE
    daemon.assert_clean()


def test_mid_download_is_left_resumable(start_daemon, disk, origin):
    gate = threading.Event()
    url = origin.serve("/a", Content(DATA, gate=gate, gate_after=3 * MIB),
                       Content(DATA))
    daemon = start_daemon([disk])
    uuid = daemon.client.ensure("a", url).image.spec.uuid
    daemon.client.wait_image(
        "a", lambda i: i.copies[0].processed_bytes >= 2 * MIB, "2 MiB there")
    daemon.stop()
    assert disk.temp_file("a", uuid).exists()
    assert not disk.ready_file("a", uuid).exists()
    daemon.start()
    assert daemon.client.wait_ready("a").current_sha512 == images.sha512(DATA)
    assert origin.requests[1].range_begin >= 2 * MIB


def test_a_second_signal_does_no_harm(start_daemon, disk, origin):
    daemon = start_daemon([disk])
    daemon.client.ensure("a", origin.serve("/a", Content(DATA)))
    daemon.client.wait_ready("a")
    for _ in range(3):
        if daemon.running:
            daemon.process.send_signal(signal.SIGTERM)
    assert daemon.wait_exit() in (0, 1)  # 1: the second one ends it at once
    daemon.start()
    assert daemon.client.get("a").state == "ready"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_thread_can_be_ended_by_it(start_daemon, disk, number):
    """It is read, not delivered, from the first thread's start to the last's end."""
    daemon = start_daemon([disk])
    threads = list(Path(f"/proc/{daemon.pid}/task").iterdir())
    assert len(threads) > 3
    for thread in threads:
        fields = dict(line.split(":", 1) for line in
                      (thread / "status").read_text().splitlines())
        blocked = int(fields["SigBlk"], 16)
        assert blocked >> (number - 1) & 1, fields["Name"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_one_that_comes_when_it_has_stopped(start_daemon, disk, number):
    """Whatever moment it is: it ends as it would have ended."""
    daemon = start_daemon([disk])
    for late in range(20):
        said = len(daemon.log())
        daemon.process.send_signal(signal.SIGTERM)
        with open(daemon.log_file, errors="replace") as log:
            log.seek(said)
            text, end = "", time.monotonic() + scaled(20)
            while "stopped" not in text and time.monotonic() < end:
                text += log.read()
        assert "stopped" in text
        time.sleep(scaled(late / 4000))  # how late it comes
        os.kill(daemon.pid, number)  # (not yet waited for, so it is there)
        # 1: it was still there to take a second one.
        assert daemon.wait_exit() in (0, 1)
        daemon.start()


def test_while_verifying(start_daemon, disk, origin):
    daemon = start_daemon([disk])
    daemon.client.ensure("a", origin.serve("/a", Content(DATA)))
    daemon.client.wait_ready("a")
    stream = daemon.client.images.Verify(pb.VerifyRequest(name="a"))
    next(stream)
    daemon.stop()
    daemon.start()
    assert daemon.client.get("a").state == "ready"


def test_health_says_so(start_daemon, disk):
    """A health watcher sees NOT_SERVING, or the end of the stream."""
    daemon = start_daemon([disk])
    stub = health_pb2_grpc.HealthStub(daemon.client.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    daemon.process.send_signal(signal.SIGTERM)
    try:
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.UNAVAILABLE,
                                grpc.StatusCode.CANCELLED)
    assert daemon.wait_exit() == 0
