"""Longhorn's control plane, as far as a manager sees it: a client of bimrpc,
and the files that its own managers leave on a disk."""

import datetime
import json
import threading
from pathlib import Path

import grpc
from google.protobuf.empty_pb2 import Empty

from .client import RPC_DEADLINE
from .deadline import scaled, wait_until

from bimrpc import bimrpc_pb2 as rpc
from bimrpc import bimrpc_pb2_grpc as rpc_grpc

FINAL = ("ready", "failed")


class Longhorn:
    """Calls of one control plane; `disk` goes into each request's metadata."""

    def __init__(self, target, disk=None):
        self.channel = grpc.insecure_channel(
            target, options=[("grpc.enable_http_proxy", 0),
                             # No connection from before a restart.
                             ("grpc.use_local_subchannel_pool", 1),
                             ("grpc.initial_reconnect_backoff_ms", 50),
                             ("grpc.max_reconnect_backoff_ms", 200)])
        self.stub = rpc_grpc.BackingImageManagerServiceStub(self.channel)
        self.metadata = [("bim-disk", disk)] if disk else None

    def close(self):
        self.channel.close()

    def call(self, method, request, deadline=RPC_DEADLINE):
        return getattr(self.stub, method)(
            request, timeout=scaled(deadline), metadata=self.metadata)

    @staticmethod
    def spec(name, uuid, size=0, checksum=""):
        return rpc.BackingImageSpec(name=name, uuid=uuid, size=size,
                                    checksum=checksum)

    def fetch(self, name, uuid, size=0, checksum="", address=""):
        return self.call("Fetch", rpc.FetchRequest(
            spec=self.spec(name, uuid, size, checksum),
            data_source_address=address))

    def sync(self, name, uuid, from_address, size=0, checksum=""):
        return self.call("Sync", rpc.SyncRequest(
            spec=self.spec(name, uuid, size, checksum),
            from_address=from_address))

    def get(self, name, uuid):
        return self.call("Get", rpc.GetRequest(name=name, uuid=uuid))

    def delete(self, name, uuid):
        return self.call("Delete", rpc.DeleteRequest(name=name, uuid=uuid))

    def send(self, name, uuid, to):
        return self.call("Send", rpc.SendRequest(name=name, uuid=uuid,
                                                 to_address=to))

    def prepare_download(self, name, uuid):
        return self.call("PrepareDownload", rpc.PrepareDownloadRequest(
            name=name, uuid=uuid))

    def list(self):
        return dict(self.call("List", Empty()).backing_images)

    def version(self):
        return self.call("VersionGet", Empty())

    def wait(self, name, uuid, *states, deadline=30.0):
        """The image once it is in one of these states."""
        def there():
            image = self.get(name, uuid)
            if image.status.state in states:
                return image
            assert image.status.state not in FINAL, (
                f"{image.status.state}: {image.status.error_msg}")
            return None
        return wait_until(there, f"{name} to be {' or '.join(states)}", deadline)

    def watch(self):
        return Watch(self)


class Watch:
    """Counts the messages of Watch, with the time of each."""

    def __init__(self, client):
        self.times = []
        self.error = None
        self._changed = threading.Condition()
        self._call = client.stub.Watch(Empty(), metadata=client.metadata)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        import time
        try:
            for _ in self._call:
                with self._changed:
                    self.times.append(time.monotonic())
                    self._changed.notify_all()
        except grpc.RpcError as error:
            with self._changed:
                self.error = error
                self._changed.notify_all()

    def wait_more_than(self, count, deadline=10.0):
        with self._changed:
            assert self._changed.wait_for(
                lambda: len(self.times) > count or self.error,
                scaled(deadline)), f"no more than {len(self.times)} messages"
            assert len(self.times) > count, self.error

    def close(self):
        self._call.cancel()
        self._thread.join(scaled(5))


def go_time(ns):
    """A time as Go prints it: no trailing zeros, no fraction when zero."""
    seconds, fraction = divmod(ns, 10**9)
    text = datetime.datetime.fromtimestamp(
        seconds, datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    if fraction:
        text += "." + f"{fraction:09d}".rstrip("0")
    return text + " +0000 UTC"


def config_of(path, seen_as, uuid, checksum, expected=""):
    """The text of a backing.cfg as an upstream manager writes it."""
    st = Path(path).stat()
    return json.dumps({
        "name": seen_as, "uuid": uuid, "size": st.st_size,
        "virtualSize": st.st_size, "realSize": st.st_blocks * 512,
        "expectedChecksum": expected, "currentChecksum": checksum,
        "modificationTime": go_time(st.st_mtime_ns)}, separators=(",", ":"))


def leave_image(disk, name, uuid, content, checksum=None):
    """A ready image as an upstream manager left it; without a checksum it has
    no cfg."""
    folder = Path(disk) / "backing-images" / f"{name}-{uuid}"
    folder.mkdir(parents=True)
    backing = folder / "backing"
    backing.write_bytes(content)
    if checksum is not None:
        (folder / "backing.cfg").write_text(config_of(
            backing, f"/data/backing-images/{name}-{uuid}/backing", uuid,
            checksum))
    return backing
