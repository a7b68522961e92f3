"""Another disk where ours was: never written to, until it is ours again."""

from lib import images
from lib.client import copy_of
from lib.images import MIB
from lib.processes import run
from lib.servers import Content

DATA = images.random_bytes(2 * MIB)
OTHER = "5e6d8cf0-3bb5-4a07-8a5a-000000000001"


def test_the_identity_file_changes(start_daemon, disks, origin):
    ours, stays = disks.directory("ours"), disks.directory("stays")
    daemon = start_daemon([ours, stays])
    client = daemon.client
    client.ensure("a", origin.serve("/a", Content(DATA)))
    before = client.wait_ready("a")
    ours.write_identity(OTHER)
    status = client.wait_disk(ours, "swapped")
    assert ours.uuid in status.message and OTHER in status.message
    client.wait_copy("a", ours, "unknown")
    assert copy_of(client.get("a"), stays).state == "ready"
    files = ours.image_files()
    client.ensure("b", origin.serve("/b", Content(DATA)))
    client.wait_copy("b", stays, "ready")
    assert ours.image_files() == files
    ours.write_identity(ours.uuid)
    client.wait_disk(ours, "ready")
    after = client.wait_ready("a")
    assert copy_of(after, ours).verified_at == copy_of(before, ours).verified_at
    client.wait_ready("b")
    assert origin.count("/a") == 1


def test_another_file_system_is_mounted(start_daemon, disks, origin):
    ours, stays = disks.loop("ours"), disks.directory("stays")
    other = disks.loop("other")
    daemon = start_daemon([ours, stays])
    client = daemon.client
    client.ensure("a", origin.serve("/a", Content(DATA)))
    client.wait_ready("a")
    # The device goes, another one comes at the same place.
    other.unmount()
    ours.unmount()
    run(["mount", other.device, ours.mountpoint])
    status = client.wait_disk(ours, "swapped")
    assert other.uuid in status.message
    client.wait_copy("a", ours, "unknown")
    names = sorted(p.name for p in ours.mountpoint.iterdir())
    assert names == ["longhorn-disk.cfg", "lost+found"], "the other disk was touched"
    ours.unmount()
    ours.mount()
    client.wait_disk(ours, "ready")
    client.wait_ready("a")
    assert origin.count("/a") == 1


def test_swapped_while_stopped(start_daemon, disks, origin):
    """The daemon remembers which disk it had at that path."""
    ours = disks.directory("ours")
    daemon = start_daemon([])
    daemon.client.add_disk(ours)
    daemon.client.ensure("a", origin.serve("/a", Content(DATA)))
    daemon.client.wait_ready("a")
    daemon.stop()
    ours.write_identity(OTHER)
    daemon.start()
    assert daemon.client.disk(ours).state == "swapped"
    ours.write_identity(ours.uuid)
    daemon.client.wait_disk(ours, "ready")
    daemon.client.wait_ready("a")
    assert origin.count("/a") == 1


def test_the_identity_file_goes(start_daemon, disks, origin):
    ours = disks.directory("ours")
    client = start_daemon([ours]).client
    client.ensure("a", origin.serve("/a", Content(DATA)))
    client.wait_ready("a")
    (ours.path / "longhorn-disk.cfg").unlink()
    client.wait_disk(ours, "missing")
    client.wait_copy("a", ours, "unknown")
    ours.write_identity(ours.uuid)
    client.wait_disk(ours, "ready")
    client.wait_ready("a")
