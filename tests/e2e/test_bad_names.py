"""What can never work is refused before anything happens."""

import grpc
import pytest

from lib.client import pb, refused
from lib.deadline import scaled

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
URL = "http://127.0.0.1:9/a"

BAD_NAMES = ["..", "a..b", "../../etc/passwd", "a/b", "/a", "a b", " a", "a\n", "-a",
             ".a", "_a", "a" * 65, "a\0b", "ä", "a:b", "a\\b", "%2e%2e", "a;b", "$(id)",
             "a\x1b[31m"]
GOOD_NAMES = ["a", "A", "0", "a" * 64, "a.b-c_d", "9.9"]


@pytest.fixture
def daemon(start_daemon, disk):
    return start_daemon([disk], {"backoff": {"first": "1h", "max": "1h"},
                                 "sources": {"retry_tries": 1}})


def test_bad_names(daemon, disk):
    client = daemon.client
    for name in BAD_NAMES + [""]:
        with refused(INVALID, "name"):
            client.ensure(name, URL)
        with refused(INVALID, "name"):
            client.get(name)
        with refused(INVALID, "name"):
            client.remove(name)
        with refused(INVALID, "name"):
            client.verify(name)
    assert not client.list_all()
    assert not (disk.path / "backing-images").exists() or not disk.image_files()
    # What came is shown, but cannot move a terminal's cursor.
    assert "\x1b" not in daemon.log()


def test_bad_uuids(daemon, disk):
    client = daemon.client
    for uuid in BAD_NAMES:
        with refused(INVALID, "uuid"):
            client.ensure("a", URL, uuid=uuid)
        with refused(INVALID, "uuid"):
            client.get("a", uuid)
        with refused(INVALID, "uuid"):
            client.remove("a", uuid)
    assert not client.list_all()
    assert not (disk.path / "backing-images").exists() or not disk.image_files()


def test_good_names(daemon):
    for name in GOOD_NAMES:
        assert daemon.client.ensure(name, URL, uuid=name).created
        assert daemon.client.get(name, name).spec.name == name


def test_unknown_images(daemon):
    client = daemon.client
    for call in (client.get, client.remove, client.verify):
        with refused(NOT_FOUND, "cannot find", "nobody"):
            call("nobody")
        with refused(NOT_FOUND, "cannot find"):
            call("nobody", "1234")


def test_unknown_disks(daemon, disk):
    client = daemon.client
    for unknown in ("/no/such/disk", "5e6d8cf0-3bb5-4a07-8a5a-000000000000"):
        with refused(NOT_FOUND, "cannot find", unknown):
            client.ensure("a", URL, [unknown])
        with refused(NOT_FOUND, unknown):
            client.ensure("a", URL, [disk, unknown])
        with refused(NOT_FOUND, unknown):
            client.remove_disk(unknown)
    assert not client.list_all()


@pytest.mark.parametrize("url", [
    "", "ftp://127.0.0.1/a", "gopher://127.0.0.1/", "scp://h/x", "dict://127.0.0.1:1/",
    "http://", "http:///a", "a", "/etc/passwd", "http//x", "http://u:p@127.0.0.1/a",
    "http://u@127.0.0.1/a", "http://127.0.0.1:99999/a", "http://127.0.0.1/a b",
    "http://127.0.0.1/a\r\nX-Injected: 1", "file:///etc/passwd", "javascript:alert(1)"])
def test_bad_urls(daemon, url):
    expected = grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as error:
        daemon.client.ensure("a", url)
    code = error.value.code()
    if url.startswith("file:"):
        assert code in (expected, grpc.StatusCode.FAILED_PRECONDITION,
                        grpc.StatusCode.PERMISSION_DENIED)
    else:
        assert code == expected, error.value
    assert "p@" not in error.value.details(), "a password in a message"
    assert not daemon.client.list_all()


def test_an_unsupported_scheme_is_named(daemon):
    with refused(INVALID, "ftp", "http"):
        daemon.client.ensure("a", "ftp://127.0.0.1/a")


@pytest.mark.parametrize("field,value", [
    ("sha512", "abc"), ("sha512", "g" * 128), ("sha512", "0" * 64),
    ("sha256", "0" * 128), ("sha256", "zz"), ("size", 511), ("size", 513)])
def test_bad_expectations(daemon, field, value):
    with refused(INVALID, "size" if field == "size" else "sha"):
        daemon.client.ensure("a", URL, **{field: value})
    assert not daemon.client.list_all()


def test_bad_disk_lists(daemon, disk):
    for listed in (["all", disk.uuid], [""], ["../x"]):
        with pytest.raises(grpc.RpcError) as error:
            daemon.client.ensure("a", URL, listed)
        assert error.value.code() in (INVALID, NOT_FOUND), error.value
    # The same disk twice, by uuid and by path, is one disk.
    image = daemon.client.ensure("a", URL, [disk.uuid, disk.path]).image
    assert list(image.spec.disks) == [disk.uuid]


def test_an_absent_spec(daemon):
    with refused(INVALID):
        daemon.client.images.Ensure(pb.EnsureRequest(), timeout=scaled(10))


def test_bad_credential_names(daemon):
    for name in ("../x", "a/b", ".."):
        with refused(INVALID, "credential"):
            daemon.client.ensure("a", URL, credential=name)
