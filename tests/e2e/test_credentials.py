"""Headers and netrc of the operator: sent to the first origin only, never
seen in a log, an argument, an answer or a file of ours."""

import base64

import grpc
import pytest

from lib import images
from lib.client import refused
from lib.processes import proc_text
from lib.servers import Answer, Content, Origin, redirect

DATA = images.random_bytes(256 * images.KIB)
SECRET = "s3cr3t-t0ken-4711"


@pytest.fixture
def credentials(scratch):
    path = scratch / "credentials"
    path.mkdir(mode=0o700)
    (path / "registry.headers").write_text(
        f"# for the tests\nX-Token: {SECRET}\n\nAuthorization: Bearer {SECRET}\n")
    (path / "basic.netrc").write_text(
        f"machine 127.0.0.1 login alice password {SECRET}\n")
    (path / "broken.headers").write_text(f"no colon {SECRET}\n")
    (path / "injected.headers").write_text(f"X-A: {SECRET}\x00\x0b\n")
    for file in path.iterdir():
        file.chmod(0o600)
    return path


@pytest.fixture
def daemon(start_daemon, disk, credentials):
    return start_daemon([disk], {"sources": {"credentials_dir": credentials},
                                 "log": {"level": "trace"},
                                 "backoff": {"first": "1h", "max": "1h"}})


def assert_secret_is_safe(daemon, disk, image):
    assert SECRET not in daemon.log()
    for name in ("cmdline", "environ"):
        assert SECRET not in proc_text(daemon.pid, name)
    assert SECRET not in str(image)
    for root in (disk.path, daemon.state_dir):
        for file in root.rglob("*"):
            if file.is_file() and file.name != "backing":
                assert SECRET.encode() not in file.read_bytes(), file


def test_headers_are_sent(daemon, origin, disk):
    client = daemon.client
    client.ensure("a", origin.serve("/a", Content(DATA)), credential="registry")
    ready = client.wait_ready("a")
    headers = origin.requests[0].headers
    assert headers["x-token"] == SECRET
    assert headers["authorization"] == f"Bearer {SECRET}"
    assert_secret_is_safe(daemon, disk, ready)


def test_a_real_server_wants_them(daemon, nginx, files, disk):
    image = images.raw(files / "a.raw", images.MIB)
    (disk.path.parents[1] / "credentials" / "sesame.headers").write_text(
        "X-Token: sesame\n")
    client = daemon.client
    client.ensure("without", nginx.url("private/a.raw"))
    assert "403" in client.wait_state("without", "failed").message
    client.ensure("with", nginx.url("private/a.raw"), credential="sesame",
                  sha512=image.sha512)
    client.wait_ready("with")


def test_not_to_where_it_redirects(daemon, origin, disk):
    other = Origin()
    try:
        url = origin.serve("/a", redirect(other.serve("/b", Content(DATA))))
        daemon.client.ensure("a", url, credential="registry")
        ready = daemon.client.wait_ready("a")
        assert origin.requests[0].headers["x-token"] == SECRET
        for name, value in other.requests[0].headers.items():
            assert SECRET not in value, f"{name} was sent to another origin"
        assert_secret_is_safe(daemon, disk, ready)
    finally:
        other.close()


def test_not_by_way_of_another_origin_and_back(daemon, origin):
    other = Origin()
    try:
        origin.serve("/c", Content(DATA))
        other.serve("/b", redirect(origin.url("/c")))
        daemon.client.ensure("a", origin.serve("/a", redirect(other.url("/b"))),
                             credential="registry")
        daemon.client.wait_ready("a")
        assert SECRET not in str(other.requests[0].headers)
    finally:
        other.close()


def test_same_origin_redirect_keeps_them(daemon, origin):
    origin.serve("/b", Content(DATA))
    daemon.client.ensure("a", origin.serve("/a", redirect("/b")), credential="registry")
    daemon.client.wait_ready("a")
    assert [r.headers.get("x-token") for r in origin.requests] == [SECRET, SECRET]


def test_netrc(daemon, origin, disk):
    class WantsLogin(Content):
        def __call__(self, connection, request):
            expected = base64.b64encode(f"alice:{SECRET}".encode()).decode()
            if request.headers.get("authorization") != f"Basic {expected}":
                return Answer(401, {"WWW-Authenticate": 'Basic realm="x"'})(
                    connection, request)
            return super().__call__(connection, request)

    other = Origin()
    try:
        origin.serve("/a", WantsLogin(DATA))
        other.serve("/b", Content(DATA))
        daemon.client.ensure("a", origin.url("/a"), credential="basic")
        ready = daemon.client.wait_ready("a")
        # The same machine name, but another port: another origin.
        daemon.client.ensure("b", origin.serve("/r", redirect(other.url("/b"))),
                             credential="basic")
        daemon.client.wait_ready("b")
        assert "authorization" not in other.requests[0].headers
        assert_secret_is_safe(daemon, disk, ready)
    finally:
        other.close()


def test_sent_again_on_resume(daemon, origin):
    data = images.random_bytes(4 * images.MIB)
    url = origin.serve("/a", Content(data, reset_after=2 * images.MIB), Content(data))
    daemon.client.ensure("a", url, credential="registry")
    daemon.client.wait_ready("a")
    assert [r.headers["x-token"] for r in origin.requests] == [SECRET, SECRET]


@pytest.mark.parametrize("name", ["broken", "injected", "absent"])
def test_unusable_credentials(daemon, origin, disk, name):
    """Refused at once or failed; nothing is sent without them."""
    url = origin.serve("/a", Content(DATA))
    try:
        daemon.client.ensure("a", url, credential=name)
    except grpc.RpcError as error:
        message = error.details()
    else:
        message = daemon.client.wait_state("a", "failed").message
    assert name in message or "header" in message
    assert not origin.requests
    assert SECRET not in message and SECRET not in daemon.log()


def test_no_directory_no_credentials(start_daemon, disk, origin):
    client = start_daemon([disk], directory="other").client
    url = origin.serve("/a", Content(DATA))
    try:
        client.ensure("a", url, credential="registry")
    except grpc.RpcError as error:
        assert "credential" in error.details()
    else:
        assert "credential" in client.wait_state("a", "failed").message
    assert not origin.requests


def test_secrets_of_the_url_stay_out_of_messages(daemon, origin):
    """The query often is a signature."""
    daemon.client.ensure("a", origin.serve("/a", Answer(404)) + f"?sig={SECRET}")
    failed = daemon.client.wait_state("a", "failed")
    assert SECRET not in failed.message
    assert SECRET not in daemon.log()
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as seen:
        daemon.client.ensure("b", f"http://alice:{SECRET}@127.0.0.1/a")
    assert SECRET not in seen.message and SECRET not in daemon.log()
