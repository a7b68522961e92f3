"""The gRPC API of Longhorn's control plane: what its callers rely on."""

import grpc
import pytest

from lib import images
from lib.client import refused
from lib.disks import stamp
from lib.images import KIB, MIB
from lib.longhorn import Watch, leave_image, rpc
from lib.processes import proc_io
from lib.servers import Content

DATA = images.random_bytes(3 * MIB + 512, 7)
SUM = images.sha512(DATA)
CODE = grpc.StatusCode


def test_a_file_left_by_upstream_is_taken_without_reading_it(
        start_daemon, disks, longhorn):
    disk = disks.directory("one")
    files = [leave_image(disk.path, f"i{n}", f"u{n}", DATA, SUM) for n in range(8)]
    before = [stamp(f) for f in files]
    daemon = start_daemon([disk])
    client = longhorn(daemon)
    assert client.list() == {}  # nothing is adopted unasked
    for n in range(8):
        image = client.fetch(f"i{n}", f"u{n}", size=len(DATA), checksum=SUM)
        assert image.status.state == "ready"
        assert image.status.progress == 100
        assert image.spec.size == image.spec.virtualSize == len(DATA)
        assert image.spec.realSize == files[n].stat().st_blocks * 512
        assert image.spec.checksum == image.status.checksum == SUM
        assert image.status.error_msg == ""
    assert proc_io(daemon.pid)["rchar"] < 2 * MIB + 8 * 64 * KIB
    assert [stamp(f) for f in files] == before
    assert set(client.list()) == {f"i{n}" for n in range(8)}
    assert client.get("i3", "u3").spec.name == "i3"


def test_of_two_that_share_a_name_the_list_shows_one(
        start_daemon, disks, longhorn):
    disk = disks.directory("one")
    leave_image(disk.path, "n", "2", DATA, SUM)
    client = longhorn(start_daemon([disk]))
    client.fetch("n", "1", size=1024, checksum="0" * 128)
    client.wait("n", "1", "failed")
    client.fetch("n", "2")
    (listed,) = client.list().values()
    assert listed == client.get("n", "2")
    assert listed.status.error_msg == "" and listed.spec.checksum == ""


def test_expected_and_current_checksum_are_apart(start_daemon, disks, longhorn):
    disk = disks.directory("one")
    leave_image(disk.path, "a", "u", DATA, SUM)
    client = longhorn(start_daemon([disk]))
    image = client.fetch("a", "u")
    assert (image.spec.checksum, image.status.checksum) == ("", SUM)


def test_what_cannot_be_reused_fails_with_the_reason(start_daemon, disks, longhorn):
    disk = disks.directory("one")
    client = longhorn(start_daemon([disk]))
    # Missing.
    image = client.fetch("missing", "u", size=1024)
    assert image.status.state == "failed"
    assert "no file to reuse" in image.status.error_msg
    # Another size: deleted, as proven wrong.
    wrong = leave_image(disk.path, "size", "u", DATA, SUM)
    client.fetch("size", "u", size=len(DATA) + 512)
    image = client.wait("size", "u", "failed")
    assert str(len(DATA) + 512) in image.status.error_msg
    assert not wrong.exists()
    # Another digest, found by reading: no cfg vouches for it.
    wrong = leave_image(disk.path, "digest", "u", DATA)
    client.fetch("digest", "u", checksum="0" * 128)
    assert "SHA-512" in client.wait("digest", "u", "failed").status.error_msg
    assert not wrong.exists()
    # No image that can be trusted: kept, as it may be what someone needs.
    kept = leave_image(disk.path, "kept", "u", b"QFI\xfb" + bytes(508))
    client.fetch("kept", "u")
    image = client.wait("kept", "u", "failed")
    assert kept.exists()
    # Each stays failed until it is deleted; the name is taken.
    with refused(CODE.ALREADY_EXISTS, "already exists"):
        client.fetch("kept", "u")
    client.delete("kept", "u")
    assert not kept.parent.exists()
    assert set(client.list()) == {"missing", "size", "digest"}


def test_a_file_without_its_cfg_is_read(start_daemon, disks, longhorn):
    disk = disks.directory("one")
    leave_image(disk.path, "a", "u", DATA)
    client = longhorn(start_daemon([disk]))
    client.fetch("a", "u", size=len(DATA), checksum=SUM)
    assert client.wait("a", "u", "ready").status.checksum == SUM


def test_registering_again(start_daemon, disks, longhorn):
    disk = disks.directory("one")
    leave_image(disk.path, "a", "u", DATA, SUM)
    daemon = start_daemon([disk])
    client = longhorn(daemon)
    client.fetch("a", "u")
    with refused(CODE.ALREADY_EXISTS, "already exists"):
        client.fetch("a", "u")
    with refused(CODE.ALREADY_EXISTS, "already exists"):
        client.sync("a", "u", "127.0.0.1:1")
    daemon.restart()
    client = longhorn(daemon)
    # Restored by itself; asked for again it is OK once.
    assert client.get("a", "u").status.state == "ready"
    with refused(CODE.ALREADY_EXISTS):
        client.fetch("a", "u", size=512)
    assert client.sync("a", "u", "127.0.0.1:1", size=len(DATA),
                       checksum=SUM).status.state == "ready"
    with refused(CODE.ALREADY_EXISTS, "already exists"):
        client.fetch("a", "u")


def test_delete(start_daemon, disks, longhorn):
    disk = disks.directory("one")
    file = leave_image(disk.path, "a", "u", DATA, SUM)
    stranger = leave_image(disk.path, "b", "u", DATA, SUM)
    client = longhorn(start_daemon([disk]))
    client.fetch("a", "u")
    with open(file, "rb") as reader:  # an open file does not block it
        client.delete("a", "u")
        assert reader.read() == DATA
    assert "a" not in client.list()
    assert not file.parent.exists()
    with refused(CODE.NOT_FOUND, "cannot find"):
        client.get("a", "u")
    # One that nobody registered.
    client.delete("b", "u")
    assert not stranger.parent.exists()
    client.delete("b", "u")


def test_two_apis_two_lists(start_daemon, disks, longhorn, origin):
    disk = disks.directory("one")
    daemon = start_daemon([disk])
    client = longhorn(daemon)
    daemon.client.ensure("ours", origin.serve("/a", Content(DATA)), uuid="u")
    daemon.client.wait_ready("ours")
    assert client.list() == {}
    with refused(CODE.NOT_FOUND, "cannot find"):
        client.get("ours", "u")
    with refused(CODE.FAILED_PRECONDITION):
        client.delete("ours", "u")
    with refused(CODE.ALREADY_EXISTS, "already exists"):
        client.fetch("ours", "u")
    assert daemon.client.get("ours").state == "ready"


def test_the_metadata_selects_the_disk(start_daemon, disks, longhorn):
    one, two = disks.directory("one"), disks.directory("two")
    leave_image(one.path, "a", "u", DATA, SUM)
    other = images.random_bytes(1 * MIB, 3)
    leave_image(two.path, "a", "u", other, images.sha512(other))
    daemon = start_daemon([one, two])
    default = longhorn(daemon)
    by_uuid, by_path = longhorn(daemon, two.uuid), longhorn(daemon, two.path)
    assert default.fetch("a", "u").spec.size == len(DATA)
    assert by_uuid.list() == {}
    assert by_path.fetch("a", "u").spec.size == len(other)
    assert by_uuid.get("a", "u").status.checksum == images.sha512(other)
    default.delete("a", "u")
    assert default.list() == {} and set(by_uuid.list()) == {"a"}
    with refused(CODE.NOT_FOUND, "cannot find disk"):
        longhorn(daemon, "nowhere").list()


@pytest.mark.parametrize("ready", [True, False])
def test_watch_tells_of_each_change(start_daemon, disks, longhorn, ready):
    disk = disks.directory("one")
    if ready:
        leave_image(disk.path, "a", "u", DATA, SUM)
    client = longhorn(start_daemon([disk]))
    watch = Watch(client)
    try:
        # It is open once it tells of a change; until then changes may be missed.
        for n in range(20):
            client.fetch(f"open{n}", "u")
            try:
                watch.wait_more_than(0, 0.5)
                break
            except AssertionError:
                continue
        seen = len(watch.times)
        assert seen > 0
        client.fetch("a", "u")
        watch.wait_more_than(seen)
        seen = len(watch.times)
        client.delete("a", "u")
        watch.wait_more_than(seen)
    finally:
        watch.close()


def test_sync_from_one_of_ours(start_daemon, disks, longhorn):
    one, two = disks.directory("one"), disks.directory("two")
    leave_image(one.path, "a", "u", DATA, SUM)
    sender, receiver = start_daemon([one]), start_daemon([two])
    longhorn(sender).fetch("a", "u", checksum=SUM)
    client = longhorn(receiver)
    address = sender.endpoint["api"][0]
    image = client.sync("a", "u", address, size=len(DATA), checksum=SUM)
    assert image.status.state in ("pending", "starting", "in-progress", "ready")
    image = client.wait("a", "u", "ready")
    assert image.status.checksum == SUM
    assert image.status.sender_manager_address == address
    assert two.ready_file("a", "u").read_bytes() == DATA


def test_a_failed_sync_stays_failed(start_daemon, disks, longhorn):
    disk = disks.directory("one")
    daemon = start_daemon([disk])
    client = longhorn(daemon)
    client.sync("a", "u", "127.0.0.1:1", size=1024)
    image = client.wait("a", "u", "failed")
    assert "127.0.0.1:1" in image.status.error_msg
    image = daemon.client.get("a")
    assert image.spec.directed
    copy = image.copies[0]
    assert not copy.HasField("next_attempt")
    daemon.restart()
    client = longhorn(daemon)
    assert client.get("a", "u").status.state == "failed"
    client.delete("a", "u")
    assert client.list() == {}


def test_reuse_comes_before_the_peer(start_daemon, disks, longhorn):
    disk = disks.directory("one")
    leave_image(disk.path, "a", "u", DATA, SUM)
    client = longhorn(start_daemon([disk]))
    image = client.sync("a", "u", "127.0.0.1:1", size=len(DATA), checksum=SUM)
    assert image.status.state == "ready"


def test_version(start_daemon, disks, longhorn):
    version = longhorn(start_daemon([disks.directory("one")])).version()
    assert version.backing_image_manager_api_version == 3
    assert version.backing_image_manager_api_min_version == 3
    assert version.version and version.gitCommit and version.buildDate


def test_requests_that_can_never_work(start_daemon, disks, longhorn):
    client = longhorn(start_daemon([disks.directory("one")]))
    for method, request in [
            ("Get", rpc.GetRequest(name="a")), ("Get", rpc.GetRequest(uuid="u")),
            ("Delete", rpc.DeleteRequest(name="a")), ("Delete", rpc.DeleteRequest()),
            ("PrepareDownload", rpc.PrepareDownloadRequest(name="a")),
            ("Fetch", rpc.FetchRequest()), ("Sync", rpc.SyncRequest()),
            ("Sync", rpc.SyncRequest(spec=client.spec("a", "u"))),
            ("Sync", rpc.SyncRequest(from_address="127.0.0.1:1")),
            ("Fetch", rpc.FetchRequest(spec=client.spec("", "u"))),
            ("Fetch", rpc.FetchRequest(spec=client.spec("a", ""))),
            ("Fetch", rpc.FetchRequest(spec=client.spec("a", "u", 513))),
            ("Fetch", rpc.FetchRequest(spec=client.spec("a", "u", -512))),
            ("Fetch", rpc.FetchRequest(spec=client.spec("a", "u", 512, "xyz"))),
            ("Fetch", rpc.FetchRequest(spec=client.spec("../a", "u"))),
            ("Fetch", rpc.FetchRequest(spec=client.spec("a", "../../u"))),
            ("Delete", rpc.DeleteRequest(name="../..", uuid="etc"))]:
        with refused(CODE.INVALID_ARGUMENT):
            client.call(method, request)
    for method, request in [("BackupCreate", rpc.BackupCreateRequest(name="a")),
                            ("BackupStatus", rpc.BackupStatusRequest(name="a"))]:
        with refused(CODE.UNIMPLEMENTED, "not supported yet"):
            client.call(method, request)
    assert client.list() == {}


def test_what_is_not_supported_yet_says_so(start_daemon, disks, longhorn):
    disk = disks.directory("one")
    file = leave_image(disk.path, "a", "u", DATA, SUM)
    client = longhorn(start_daemon([disk]))
    with refused(CODE.NOT_FOUND, "cannot find"):
        client.prepare_download("a", "u")
    client.fetch("missing", "u")
    with refused(CODE.FAILED_PRECONDITION, "failed"):
        client.prepare_download("missing", "u")
    client.fetch("a", "u")
    with refused(CODE.UNIMPLEMENTED, "longhorn.sync_listen"):
        client.prepare_download("a", "u")
    for call in (lambda: client.call("BackupCreate", rpc.BackupCreateRequest(
                     name="a", uuid="u")),
                 lambda: client.call("BackupStatus", rpc.BackupStatusRequest(
                     name="a"))):
        with refused(CODE.UNIMPLEMENTED, "not supported yet"):
            call()
    assert set(client.list()) == {"a", "missing"}
    assert file.read_bytes() == DATA
