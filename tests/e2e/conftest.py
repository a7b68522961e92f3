"""Fixtures: everything that a test starts or mounts is ended and taken away,
whatever happens to the test."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from lib.client import Client  # noqa: E402
from lib.daemon import BINARY, Daemon  # noqa: E402
from lib.deadline import SLOWDOWN  # noqa: E402
from lib.disks import DiskMaker  # noqa: E402
from lib.foreign import ForeignDataSource, ForeignManager, Replica  # noqa: E402
from lib.longhorn import Longhorn  # noqa: E402
from lib.longhorn_daemon import DataSourceProcess, LonghornDaemon  # noqa: E402
from lib.peers import FakePeer, Relay  # noqa: E402
from lib.servers import Nginx, Origin  # noqa: E402
from lib.ssync import Push, Receiver  # noqa: E402
from lib.volume import Volume  # noqa: E402

KEEP = os.environ.get("BIM_TEST_KEEP") == "1"
SAMPLE = int(os.environ.get("BIM_TEST_SAMPLE", "1"))


def sampled(config, items):
    """For a build with sanitizers: of the cases of one test every SAMPLE-th (the
    code is the same, its input differs), and none that does not run the binary."""
    counts, kept, left = {}, [], []
    for item in items:
        function = item.nodeid.split("[")[0]
        counts[function] = number = counts.get(function, -1) + 1
        without = item.get_closest_marker("without_binary")
        (left if without or number % SAMPLE else kept).append(item)
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept


def pytest_collection_modifyitems(config, items):
    if SAMPLE > 1:
        sampled(config, items)
    items.sort(key=lambda item: item.get_closest_marker("waits") is None)
    for item in items:
        marker = item.get_closest_marker("timeout")
        seconds = marker.args[0] if marker else 120
        if SLOWDOWN != 1:
            item.add_marker(pytest.mark.timeout(seconds * SLOWDOWN), append=False)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.when == "call":
        item.call_failed = report.failed
    if report.failed:
        for daemon in getattr(item, "daemons", []):
            report.sections.append(
                (f"log of {daemon.directory.name}", daemon.log()[-6000:]))


@pytest.fixture(scope="session", autouse=True)
def binary():
    if not BINARY.exists():
        pytest.exit(f"{BINARY} does not exist: build it, or set BIM_BINARY", 3)
    return BINARY


@pytest.fixture
def scratch(request):
    """A directory of this test's own, gone afterwards (BIM_TEST_KEEP=1 keeps
    those of tests that failed)."""
    path = Path(tempfile.mkdtemp(prefix="bim-e2e-",
                                 dir=os.environ.get("BIM_TEST_TMP")))
    # Unprivileged readers must be able to reach the images.
    path.chmod(0o755)
    yield path
    if KEEP and getattr(request.node, "call_failed", True):
        print(f"kept: {path}")
    else:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def disks(scratch):
    maker = DiskMaker(scratch / "disks")
    (scratch / "disks").mkdir()
    yield maker
    maker.close()


@pytest.fixture
def daemons(request, scratch, disks):
    """All of this test; those that run at its end must end properly."""
    request.node.daemons = started = []
    yield started
    try:
        if not getattr(request.node, "call_failed", True):
            for daemon in started:
                if daemon.process is not None:
                    daemon.close()
    finally:
        for daemon in started:
            daemon.abandon()


@pytest.fixture
def start_daemon(daemons, scratch):
    """start_daemon([disks], config={...}, env={...}) -> a running Daemon."""

    def start(on=(), config=None, env=None, run=True, directory=None, **options):
        daemon = Daemon(scratch / (directory or f"daemon{len(daemons) + 1}"),
                        on, config, env, **options)
        daemons.append(daemon)
        return daemon.start() if run else daemon

    return start


@pytest.fixture
def start_manager(daemons, scratch):
    """start_manager(disk) -> a running LonghornDaemon."""

    def start(disk, run=True, **options):
        daemon = LonghornDaemon(scratch / f"manager{len(daemons) + 1}", disk,
                                **options)
        daemons.append(daemon)
        return daemon.start() if run else daemon

    return start


@pytest.fixture
def start_source(daemons, scratch):
    """start_source(disk, name, uuid, type, {parameters}) -> a running
    DataSourceProcess."""

    def start(disk, name, uuid, source_type, parameters, run=True, **options):
        daemon = DataSourceProcess(scratch / f"source{len(daemons) + 1}", disk,
                                   name, uuid, source_type, parameters, **options)
        daemons.append(daemon)
        return daemon.start() if run else daemon

    return start


def closing(make):
    """A function that calls `make`, and all that it made so far."""
    made = []

    def new(*args, **options):
        made.append(make(*args, **options))
        return made[-1]

    return new, made


@pytest.fixture
def longhorn():
    """longhorn(daemon, disk=None) -> a client of its bimrpc service."""
    new, made = closing(lambda daemon, disk=None: Longhorn(
        daemon.address, disk and str(disk)))
    yield new
    for each in made:
        each.close()


@pytest.fixture
def foreign_manager():
    """foreign_manager() -> a ForeignManager."""
    new, made = closing(ForeignManager)
    yield new
    for each in made:
        each.close()


@pytest.fixture
def foreign_source():
    """foreign_source(disk, name, uuid, data) -> a ForeignDataSource."""
    new, made = closing(ForeignDataSource)
    yield new
    for each in made:
        each.close()


@pytest.fixture
def replica():
    """replica(path) -> a Replica."""
    new, made = closing(Replica)
    yield new
    for each in made:
        each.close()


@pytest.fixture
def receiver(scratch):
    """receiver(**options) -> a Receiver of the file receiver.path."""
    new, made = closing(lambda **options: Receiver(
        scratch / f"received{len(made) + 1}", **options))
    yield new
    for each in made:
        each.close()


@pytest.fixture
def push():
    """push(path, to) -> a Push at work."""
    new, made = closing(lambda *args, **options: Push(*args, **options).start())
    yield new
    for each in made:
        each.stop()


@pytest.fixture
def connect():
    """connect(target) -> another Client."""
    clients = []

    def new(target):
        clients.append(Client(target))
        return clients[-1]

    yield new
    for client in clients:
        client.close()


@pytest.fixture
def files(scratch):
    """Where images are made that servers or file:// offer."""
    path = scratch / "files"
    path.mkdir()
    return path


@pytest.fixture
def origin():
    server = Origin()
    yield server
    server.close()


@pytest.fixture
def nginx(scratch, files):
    server = Nginx(scratch / "nginx", files)
    yield server
    server.close()


@pytest.fixture
def disk(disks):
    return disks.directory("one")


@pytest.fixture
def volume(scratch, disks):
    """volume(backing, ...) -> a Volume at work over that image file."""
    new, made = closing(lambda backing, *args, **options: Volume(
        scratch / f"volume{len(made) + 1}", backing, *args, **options))
    yield lambda *args, **options: new(*args, **options).start()
    for each in made:
        each.close()


@pytest.fixture
def start_peer(start_daemon, disks, files):
    """start_peer({name: bytes or Image}) -> a daemon that has these images,
    with uuids "u-NAME"."""
    count = 0

    def start(has=None, disk=None, config=None, **options):
        nonlocal count
        count += 1
        config = {**(config or {}), "sources": {
            **(config or {}).get("sources", {}), "allow_file": True}}
        disk = disk or disks.directory(f"peer{count}")
        daemon = start_daemon([disk], config, **options)
        daemon.disk = disk
        for name, image in (has or {}).items():
            path = getattr(image, "path", None)
            if path is None:
                path = files / f"peer{count}-{name}"
                path.write_bytes(image)
            daemon.client.ensure(name, f"file://{path}", uuid=f"u-{name}")
        for name in has or {}:
            daemon.client.wait_ready(name)
        return daemon

    yield start


@pytest.fixture
def fake_peer():
    """fake_peer(...) -> a FakePeer."""
    peers = []

    def new(*args, **options):
        peers.append(FakePeer(*args, **options))
        return peers[-1]

    yield new
    for peer in peers:
        peer.close()


@pytest.fixture
def relay(fake_peer):
    """relay(daemon) -> (its relayed data port, the address of a peer whose
    data port that is)."""
    relays = []

    def new(daemon, **options):
        relays.append(Relay(daemon.data, **options))
        return relays[-1], fake_peer(relays[-1].address).address

    yield new
    for each in relays:
        each.close()
