"""An independent client of the node API: python3-grpcio, stubs generated from
proto/ when the tests start."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc  # noqa: E402

from .deadline import scaled, wait_until  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
PROTO = ROOT / "proto"
HERE_PROTO = Path(__file__).resolve().parent / "proto"


def _generate():
    """Compiles the protos into a directory of its own, for this run only."""
    out = tempfile.mkdtemp(prefix="bim-e2e-stubs-")
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    for root, files in ((PROTO, ["bim/v1/node.proto", "bimrpc/bimrpc.proto"]),
                        (HERE_PROTO, ["reflection.proto", "health.proto"])):
        subprocess.run(
            [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={root}",
             "--proto_path=/usr/include", f"--python_out={out}",
             f"--grpc_python_out={out}", *files], check=True)
    sys.path.insert(0, out)


_generate()

from bim.v1 import node_pb2 as pb  # noqa: E402
from bim.v1 import node_pb2_grpc as pb_grpc  # noqa: E402
import health_pb2  # noqa: E402,F401
import health_pb2_grpc  # noqa: E402,F401
import reflection_pb2  # noqa: E402,F401
import reflection_pb2_grpc  # noqa: E402,F401

EVENT = pb.WatchResponse
RPC_DEADLINE = 20.0


class Failed(AssertionError):
    """An image ended in a state that waiting can't change."""


@contextmanager
def refused(code, *needles):
    """The call inside fails with this code; its message has all needles
    (letter case aside). Yields an object whose .message is set afterwards."""
    class Seen:
        message = None
    seen = Seen()
    try:
        yield seen
    except grpc.RpcError as error:
        seen.message = error.details()
        assert error.code() == code, f"{error.code()}: {error.details()}"
        for needle in needles:
            assert str(needle).lower() in seen.message.lower(), (
                f"expected {needle!r} in {seen.message!r}")
        assert "\n" not in seen.message
        return
    raise AssertionError(f"the call succeeded; expected {code}")


def describe(image):
    copies = "; ".join(
        f"{c.disk_path}: {c.state} {c.progress}% attempts={c.attempts}"
        f"{' ' + c.message if c.message else ''}" for c in image.copies)
    return f"{image.spec.name} is {image.state!r} ({image.message!r}) [{copies}]"


class Recorder:
    """Collects the events of a Watch on a thread of its own."""

    def __init__(self, client, resume_token=""):
        self.events = []
        self.error = None
        self._changed = threading.Condition()
        self._stream = client.images.Watch(
            pb.WatchRequest(resume_token=resume_token))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        try:
            for event in self._stream:
                with self._changed:
                    self.events.append(event)
                    self._changed.notify_all()
        except grpc.RpcError as error:
            with self._changed:
                self.error = error
                self._changed.notify_all()

    def wait(self, predicate, what, deadline=20.0):
        """Until predicate(events) is true; returns its value."""
        end = time.monotonic() + scaled(deadline)
        with self._changed:
            while True:
                value = predicate(self.events)
                if value:
                    return value
                left = end - time.monotonic()
                if left <= 0 or self.error:
                    raise AssertionError(f"Watch did not show {what}; "
                                         f"error {self.error}, last events "
                                         f"{self.events[-3:]}")
                self._changed.wait(left)

    def wait_type(self, event_type, deadline=20.0):
        return self.wait(
            lambda events: next((e for e in events if e.type == event_type), None),
            EVENT.Type.Name(event_type), deadline)

    def states(self, name, disk=None):
        """The states of an image (or its copy) as they changed."""
        found = []
        with self._changed:
            for event in self.events:
                if event.type != EVENT.TYPE_IMAGE or event.image.spec.name != name:
                    continue
                state = event.image.state
                if disk is not None:
                    state = next((c.state for c in event.image.copies
                                  if c.disk_path == str(disk)), None)
                if state and (not found or found[-1] != state):
                    found.append(state)
        return found

    @property
    def last_token(self):
        with self._changed:
            return self.events[-1].resume_token

    def close(self):
        self._stream.cancel()
        self._thread.join(timeout=scaled(10))
        assert not self._thread.is_alive()


class HandoverWatch:
    """The phases of a hand-over as a Watch shows them, on a thread of its own."""

    def __init__(self, handovers):
        self._phases = []
        self._stream = handovers.Watch(pb.WatchHandoverRequest())
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        with suppress(grpc.RpcError):
            for event in self._stream:
                self._phases.append(event.handover.phase)

    def wait(self, phase):
        wait_until(lambda: phase in self._phases, lambda: self._phases)

    def close(self):
        """All phases that were seen."""
        self._stream.cancel()
        self._thread.join(timeout=scaled(10))
        assert not self._thread.is_alive()
        return self._phases


class Client:
    """Calls of a daemon at `target` ("127.0.0.1:PORT" or "unix:/path")."""

    def __init__(self, target, metadata=()):
        self.target = target
        self.channel = grpc.insecure_channel(target, options=[
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", 64 << 20),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 200),
        ])
        self.version = pb_grpc.VersionServiceStub(self.channel)
        self.disks = pb_grpc.DiskServiceStub(self.channel)
        self.images = pb_grpc.ImageServiceStub(self.channel)
        self.limits = pb_grpc.LimitServiceStub(self.channel)
        self.handovers = pb_grpc.HandoverServiceStub(self.channel)
        self._recorders = []

    def close(self):
        for recorder in self._recorders:
            recorder.close()
        self._recorders = []
        self.channel.close()

    # Calls, with a deadline each ------------------------------------------

    def version_get(self, api_version=0, api_min_version=0, metadata=None):
        return self.version.VersionGet(
            pb.VersionGetRequest(api_version=api_version,
                                 api_min_version=api_min_version),
            timeout=scaled(RPC_DEADLINE), metadata=metadata)

    def ensure(self, name, url="", disks=(), uuid="", sha512="", sha256="", size=0,
               credential="", peers=(), upload=False, **options):
        spec = pb.ImageSpec(
            name=name, uuid=uuid, sha512=sha512, sha256=sha256, size=size,
            disks=[str(getattr(d, "path", d)) for d in disks],
            source=pb.Source(url=url, credential=credential, peers=peers,
                             upload=upload))
        return self.images.Ensure(pb.EnsureRequest(spec=spec),
                                  timeout=scaled(RPC_DEADLINE), **options)

    def get(self, name, uuid=""):
        return self.images.Get(pb.GetRequest(name=name, uuid=uuid),
                               timeout=scaled(RPC_DEADLINE)).image

    def list(self, page_size=0, page_token=""):
        return self.images.List(
            pb.ListRequest(page_size=page_size, page_token=page_token),
            timeout=scaled(RPC_DEADLINE))

    def list_all(self, page_size=1000):
        images, token = [], ""
        for _ in range(10000):
            page = self.list(page_size, token)
            images += page.images
            token = page.next_page_token
            if not token:
                return images
        raise AssertionError("List never ends")

    def remove(self, name, uuid="", force=False):
        return self.images.Remove(
            pb.RemoveRequest(name=name, uuid=uuid, force=force),
            timeout=scaled(RPC_DEADLINE))

    def verify(self, name, uuid="", disks=(), deadline=60, repair=False):
        """All messages of a verification, to its end."""
        return list(self.images.Verify(
            pb.VerifyRequest(name=name, uuid=uuid, repair=repair,
                             disks=[str(getattr(d, "path", d)) for d in disks]),
            timeout=scaled(deadline)))

    def list_disks(self):
        return list(self.disks.List(pb.ListDisksRequest(),
                                    timeout=scaled(RPC_DEADLINE)).disks)

    def disk(self, disk):
        """The status of one disk, by path."""
        path = str(getattr(disk, "path", disk))
        for status in self.list_disks():
            if status.path == path:
                return status
        raise AssertionError(f"{path} is not listed")

    def add_disk(self, path, uuid="", init=False):
        return self.disks.Add(
            pb.AddDiskRequest(path=str(path), uuid=uuid, init=init),
            timeout=scaled(RPC_DEADLINE)).disk

    def remove_disk(self, disk, force=False):
        return self.disks.Remove(
            pb.RemoveDiskRequest(disk=str(disk), force=force),
            timeout=scaled(RPC_DEADLINE))

    def get_limits(self):
        return self.limits.Get(pb.GetLimitsRequest(),
                               timeout=scaled(RPC_DEADLINE)).limits

    def set_limits(self, **limits):
        return self.limits.Set(pb.SetLimitsRequest(limits=pb.Limits(**limits)),
                               timeout=scaled(RPC_DEADLINE)).limits

    def handover_begin(self, automatic=False):
        return self.handovers.Begin(pb.BeginHandoverRequest(automatic=automatic),
                                    timeout=scaled(RPC_DEADLINE)).handover

    def handover_confirm(self, force=False, deadline=RPC_DEADLINE):
        return self.handovers.Confirm(pb.ConfirmHandoverRequest(force=force),
                                      timeout=scaled(deadline)).handover

    def handover_rollback(self):
        return self.handovers.Rollback(pb.RollbackHandoverRequest(),
                                       timeout=scaled(RPC_DEADLINE)).handover

    def handover_status(self):
        return self.handovers.Status(pb.HandoverStatusRequest(),
                                     timeout=scaled(RPC_DEADLINE)).handover

    def handover_history(self, limit=0):
        return list(self.handovers.History(
            pb.HandoverHistoryRequest(limit=limit), timeout=RPC_DEADLINE).events)

    def watch_handover(self):
        return HandoverWatch(self.handovers)

    def wait_handover(self, phase, deadline=15.0):
        last = {}

        def there():
            last["seen"] = status = self.handover_status()
            return status if status.phase == phase else None
        return wait_until(there, lambda: f"phase {phase}; last: {last}", deadline)

    # Waiting ---------------------------------------------------------------

    def watch(self, resume_token=""):
        recorder = Recorder(self, resume_token)
        self._recorders.append(recorder)
        return recorder

    def wait_image(self, name, predicate, what, deadline=30.0, uuid="",
                   give_up=None):
        """Watches until predicate(image) holds, and returns that image.
        `give_up(image)` ends the waiting early with Failed."""
        last = None
        stream = self.images.Watch(pb.WatchRequest(), timeout=scaled(deadline))
        try:
            for event in stream:
                if (event.type != EVENT.TYPE_IMAGE or event.image.spec.name != name
                        or (uuid and event.image.spec.uuid != uuid)):
                    continue
                last = event.image
                if predicate(last):
                    return last
                if give_up and give_up(last):
                    raise Failed(f"wanted {what}, but {describe(last)}")
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
        finally:
            stream.cancel()
        raise AssertionError(
            f"not within {scaled(deadline):.0f} s: {name} {what}; "
            + (describe(last) if last else "never seen"))

    def wait_state(self, name, state, deadline=30.0, uuid=""):
        """Until the image is in this state. Waiting for "ready" ends early
        when a copy failed for good."""
        def hopeless(image):
            return state == "ready" and any(
                c.state == "failed" and not c.HasField("next_attempt")
                for c in image.copies)
        return self.wait_image(name, lambda i: i.state == state, state, deadline,
                               uuid, hopeless)

    def wait_ready(self, name, deadline=30.0, uuid=""):
        return self.wait_state(name, "ready", deadline, uuid)

    def wait_copy(self, name, disk, state, deadline=30.0, uuid=""):
        """Until the copy on this disk is in this state; returns the copy."""
        def there(image):
            return copy_of(image, disk).state == state
        image = self.wait_image(name, there, f"{state} on {disk}", deadline, uuid)
        return copy_of(image, disk)

    def wait_disk(self, disk, state, deadline=15.0):
        last = {}

        def there():
            last["seen"] = self.disk(disk)
            return last["seen"].state == state and last["seen"]
        return wait_until(there, lambda: f"disk {disk} {state}; {last}", deadline,
                          interval=0.05)


def copy_of(image, disk):
    path = str(getattr(disk, "path", disk))
    for copy in image.copies:
        if copy.disk_path == path:
            return copy
    return pb.Copy()
