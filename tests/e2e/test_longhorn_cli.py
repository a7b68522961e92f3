"""Longhorn's command line, by the program's other name: the daemon as its control
plane starts it, the client, version, and what is refused at the start."""

import json
import shutil
import signal
import socket
import subprocess
from concurrent import futures

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from lib import images
from lib.daemon import BINARY, SANITIZER_WORDS, bim
from lib.deadline import scaled, wait_until
from lib.disks import stamp
from lib.images import MIB
from lib.longhorn import Longhorn, leave_image, rpc, rpc_grpc
from lib.processes import clean_environment, end, spawn
from lib.ports import free_port

OTHER_NAME = BINARY.parent / "backing-image-manager"
OK, FAILED, USAGE, UNREACHABLE, NOT_FOUND, REFUSED = range(6)
DATA = images.random_bytes(MIB + 512, 3)
SUM = images.sha512(DATA)
IMAGE_KEYS = ["name", "uuid", "size", "virtualSize", "realSize",
              "expectedChecksum", "status"]
STATUS_KEYS = ["state", "currentChecksum", "sendingReference", "errorMsg",
               "senderManagerAddress", "progress"]
VERSION_KEYS = ["version", "gitCommit", "buildDate",
                "backingImageManagerAPIVersion",
                "backingImageManagerAPIMinVersion"]


def longhorn(*args, **options):
    return bim(*args, binary=OTHER_NAME, **options)


def one_line_of_error(done, *words):
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("backing-image-manager: "), lines[0]
    for word in words:
        assert str(word) in lines[0], lines[0]


class Pod:
    """A daemon by Longhorn's command line. Its state directory is its own and
    private; TMPDIR says where it is made."""

    def __init__(self, directory, *args):
        self.directory = directory
        self.tmp = directory / "tmp"
        self.tmp.mkdir(parents=True, exist_ok=True)
        self.log_file = directory / "log"
        with open(self.log_file, "ab") as log:
            self.process = spawn(
                [OTHER_NAME, *args], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, cwd=directory,
                env=clean_environment({"TMPDIR": str(self.tmp)}))

    def state_dirs(self):
        return list(self.tmp.iterdir())

    def endpoint(self):
        def written():
            assert self.process.poll() is None, self.log()
            for path in self.tmp.glob("bim-*/endpoint.json"):
                return json.loads(path.read_text())
            return None
        return wait_until(written, "endpoint.json", 20)

    @property
    def url(self):
        return self.endpoint()["api"][0]

    def log(self):
        return self.log_file.read_text(errors="replace")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=scaled(30)) == 0, self.log()
        for word in SANITIZER_WORDS:
            assert word not in self.log(), self.log()


@pytest.fixture
def start_pod(scratch):
    """start_pod(*args) -> a running Pod."""
    started = []

    def start(*args):
        started.append(Pod(scratch / f"pod{len(started) + 1}", *args))
        return started[-1]

    yield start
    for pod in started:
        end(pod.process, signal.SIGKILL)


@pytest.fixture
def pod(start_pod, disk):
    return start_pod("daemon", "--listen", "127.0.0.1:0", "--sync-listen",
                     "127.0.0.1:0", "--disk-uuid", disk.uuid, "--port-range",
                     "30001-31000", "--disk", disk)


@pytest.fixture
def client(pod):
    """client(COMMAND, ...) runs `backing-image --url ... COMMAND ...`; the
    output of one that must end well."""
    def call(*args, check=OK):
        done = longhorn("backing-image", "--url", pod.url, *args)
        assert done.returncode == check, done.stderr
        if check != OK:
            assert done.stdout == ""
            return done
        assert done.stderr == ""
        return done.stdout
    return call


# The daemon ----------------------------------------------------------------


def test_it_listens_only_where_it_is_told(pod):
    endpoint = pod.endpoint()
    # Other daemons of ours pull from where Longhorn's files are.
    assert endpoint["socket"] == "" and endpoint["data"] == endpoint["sync"]
    assert len(endpoint["api"]) == 1
    host, port = endpoint["api"][0].rsplit(":", 1)
    socket.create_connection((host, int(port)), scaled(5)).close()


def test_its_state_is_private_and_gone_at_the_end(pod, disk, start_pod):
    pod.endpoint()
    (state,) = pod.state_dirs()
    assert state.stat().st_mode & 0o777 == 0o700
    first = disk.owner()["managerId"]
    pod.stop()
    assert pod.state_dirs() == []
    # The next one is another manager of the same disk.
    second = start_pod("daemon", "--listen", "127.0.0.1:0", "--sync-listen",
                       "127.0.0.1:0", "--disk", disk)
    second.endpoint()
    assert disk.owner()["managerId"] != first


def test_all_addresses_are_ipv4_and_ipv6(start_pod, disk):
    port = free_port()
    pod = start_pod("daemon", "--listen", f":{port}", "--sync-listen",
                    f":{free_port()}", "--disk", disk)
    pod.endpoint()
    for host in ("127.0.0.1", "::1"):
        if host == "::1" and not socket.has_dualstack_ipv6():
            continue
        done = longhorn("version", "--url",
                        f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        assert done.returncode == OK, done.stderr


@pytest.mark.parametrize("debug_first", [True, False])
def test_debug_and_flags_in_any_order(start_pod, disk, debug_first):
    flags = ["--port-range", "30002-31000", "--disk-uuid", disk.uuid,
             "--disk", disk, "--sync-listen", "127.0.0.1:0",
             "--listen", "127.0.0.1:0"]

    def line(*command):
        return (["--debug", *command, *flags] if debug_first
                else [*command, *reversed_pairs(flags), "--debug"])

    start_pod(*line("daemon")).endpoint()
    told = json.loads(longhorn(*line("config", "check"), "-o", "json").stdout)
    values = {s["key"]: s["value"] for s in told["settings"]}
    assert values["log.level"] == "debug"
    assert values["api.listen"] == ["127.0.0.1:0"]
    assert values["longhorn.sync_listen"] == "127.0.0.1:0"
    assert values["longhorn.port_range"] == "30002-31000"
    assert values["longhorn.disk_uuid"] == disk.uuid
    assert values["disks.paths"] == [str(disk)]
    assert values["api.socket"] == values["api.data_listen"] == ""


def reversed_pairs(flags):
    pairs = list(zip(flags[::2], flags[1::2]))
    return [word for pair in reversed(pairs) for word in pair]


def start_refused(disk, *args, code=FAILED):
    # A wrong start would listen and wait: run() has a deadline.
    done = longhorn("daemon", "--listen", "127.0.0.1:0", "--sync-listen",
                    "127.0.0.1:0", "--disk", disk, *args)
    assert done.returncode == code, done.stderr
    return done.stderr


def test_another_disk_is_refused_with_both_names(disk):
    said = start_refused(disk, "--disk-uuid", "expected-uuid")
    assert "expected-uuid" in said and disk.uuid in said and str(disk) in said
    assert not (disk.path / ".bim").exists()


def test_a_disk_that_is_not_there_is_refused(disk):
    (disk.path / "longhorn-disk.cfg").unlink()
    for args in ([], ["--disk-uuid", disk.uuid]):
        said = start_refused(disk, *args)
        assert "no longhorn-disk.cfg in" in said and str(disk) in said
    (disk.path / "longhorn-disk.cfg").write_text("{}")
    assert "longhorn-disk.cfg is damaged" in start_refused(disk)
    shutil.rmtree(disk.path)
    assert str(disk) in start_refused(disk)
    assert not disk.path.exists()


@pytest.mark.parametrize("ports", ["31000-30001", "80-90", "30001-70000", "x"])
def test_a_bad_port_range_is_refused(disk, ports):
    said = start_refused(disk, "--port-range", ports, code=USAGE)
    assert "longhorn.port_range: expected two ports" in said and ports in said


# The client ----------------------------------------------------------------


def test_an_image_from_fetch_to_delete(client, pod, disk):
    assert client("list") == "{}\n"
    file = leave_image(disk.path, "debian", "u-1", DATA, SUM)
    before = stamp(file)
    printed = client("sync", "--name", "debian", "--uuid", "u-1", "--size",
                     len(DATA), "--checksum", SUM, "--data-source-address", "")
    image = json.loads(printed)
    assert list(image) == IMAGE_KEYS and list(image["status"]) == STATUS_KEYS
    assert image == {
        "name": "debian", "uuid": "u-1", "size": len(DATA),
        "virtualSize": len(DATA), "realSize": file.stat().st_blocks * 512,
        "expectedChecksum": SUM,
        "status": {"state": "ready", "currentChecksum": SUM,
                   "sendingReference": 0, "errorMsg": "",
                   "senderManagerAddress": "", "progress": 100}}
    assert printed == json.dumps(image, indent="\t") + "\n"
    assert stamp(file) == before
    assert client("get", "--uuid", "u-1", "--name", "debian") == printed

    leave_image(disk.path, "alpine", "u-2", DATA, SUM)
    client("sync", "--name", "alpine", "--uuid", "u-2")
    for word in ("list", "ls"):
        listed = json.loads(client(word))
        assert list(listed) == ["alpine", "debian"]
        assert listed["debian"] == image
    # --url after the command, and what other clients see.
    done = longhorn("backing-image", "ls", "--url", pod.url)
    assert done.returncode == OK and json.loads(done.stdout) == listed
    other = Longhorn(pod.url)
    assert set(other.list()) == {"alpine", "debian"}
    other.close()

    for word, (name, uuid) in (("delete", ("debian", "u-1")),
                               ("del", ("alpine", "u-2"))):
        assert client(word, "--name", name, "--uuid", uuid) == ""
    assert client("list") == "{}\n"
    assert disk.image_files() == []


def test_failures_are_one_line(client, disk):
    leave_image(disk.path, "a", "u", DATA, SUM)
    client("sync", "--name", "a", "--uuid", "u")
    again = client("sync", "--name", "a", "--uuid", "u", check=REFUSED)
    one_line_of_error(again, "already exists")
    unknown = client("get", "--name", "b", "--uuid", "u", check=NOT_FOUND)
    one_line_of_error(unknown, "cannot find")
    one_line_of_error(client("get", "--name", "a", check=USAGE), "uuid")
    for size in ("511", "4k"):
        bad = client("sync", "--name", "c", "--uuid", "u", "--size", size,
                     check=USAGE)
        one_line_of_error(bad, size)
    assert list(json.loads(client("list"))) == ["a"]


def test_nobody_there():
    url = f"127.0.0.1:{free_port()}"
    for args in (["backing-image", "--url", url, "list"],
                 ["backing-image", "delete", "--url", url, "--name", "n"]):
        done = longhorn(*args)
        assert done.returncode == UNREACHABLE and done.stdout == ""
        one_line_of_error(done, url)


class OtherManager(rpc_grpc.BackingImageManagerServiceServicer):
    """A manager that is not ours: keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def Sync(self, request, context):
        self.asked.append(request)
        return rpc.BackingImageResponse(
            spec=request.spec,
            status=rpc.BackingImageStatus(state="in-progress", progress=7,
                                          sender_manager_address="h:1"))

    def Fetch(self, request, context):
        self.asked.append(request)
        return rpc.BackingImageResponse(spec=request.spec)

    def Send(self, request, context):
        self.asked.append(request)
        return Empty()

    def PrepareDownload(self, request, context):
        self.asked.append(request)
        return rpc.PrepareDownloadResponse(src_file_path="/data/x/backing",
                                           address="10.0.0.1:8001")


@pytest.fixture
def other_manager():
    manager = OtherManager()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    rpc_grpc.add_BackingImageManagerServiceServicer_to_server(manager, server)
    manager.url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield manager
    server.stop(None).wait()


def test_each_command_is_the_call_of_the_contract(other_manager):
    image = ["--name", "n", "--uuid", "u"]
    made = [*image, "--size", "1024", "--checksum", "abc"]
    spec = Longhorn.spec("n", "u", 1024, "abc")

    def call(*args):
        done = longhorn("backing-image", "--url", other_manager.url, *args)
        assert done.returncode == OK and done.stderr == "", done.stderr
        return done.stdout

    told = json.loads(call("file-sync", *made, "--from-address", "h:1"))
    assert told["status"] == {
        "state": "in-progress", "currentChecksum": "", "sendingReference": 0,
        "errorMsg": "", "senderManagerAddress": "h:1", "progress": 7}
    call("sync", *made, "--data-source-address", "h:2")
    assert call("send", *image, "--to-address", "h:3") == ""
    assert call("prepare-download", *image) == (
        "Source file path: /data/x/backing\n"
        "Download server address: 10.0.0.1:8001\n")
    assert other_manager.asked == [
        rpc.SyncRequest(spec=spec, from_address="h:1"),
        rpc.FetchRequest(spec=spec, data_source_address="h:2"),
        rpc.SendRequest(name="n", uuid="u", to_address="h:3"),
        rpc.PrepareDownloadRequest(name="n", uuid="u")]


# Version and help ------------------------------------------------------------


def test_version(pod):
    alone = longhorn("version", "--client-only")
    assert alone.returncode == OK and alone.stderr == ""
    told = json.loads(alone.stdout)
    assert list(told) == ["clientVersion", "serverVersion"]
    assert told["serverVersion"] is None
    assert list(told["clientVersion"]) == VERSION_KEYS
    assert told["clientVersion"]["backingImageManagerAPIVersion"] == 3
    assert told["clientVersion"]["backingImageManagerAPIMinVersion"] == 3
    # Both names, told where a manager is.
    for binary in (OTHER_NAME, BINARY):
        done = bim("version", "--url", pod.url, binary=binary)
        assert done.returncode == OK, done.stderr
        both = json.loads(done.stdout)
        assert both["serverVersion"] == both["clientVersion"] == told["clientVersion"]
    url = f"127.0.0.1:{free_port()}"
    done = longhorn("version", "--url", url)
    assert done.returncode == UNREACHABLE
    one_line_of_error(done, url)
    # By its own name, `bim` keeps its own form.
    assert bim("version", "--client-only").stdout.startswith("client: ")


def test_help_shows_the_name_it_was_called_by():
    for args in ([], ["daemon"], ["data-source"], ["backing-image", "list"]):
        path = " ".join(["backing-image-manager", *args])
        assert f"Usage: {path}" in longhorn(*args, "--help").stdout
    assert "Usage: bim daemon" in bim("daemon", "--help").stdout


# The data source ---------------------------------------------------------------


@pytest.mark.parametrize("source,args,code,words", [
    ("restore", ["--parameters", "backup-url=s3://b@r/?a=b", "--credential",
                 "AWS_SECRET=x=="], FAILED, ["restore is not supported yet"]),
    ("clone", ["--parameters", "backing-image=a", "backing-image-uuid=b",
               "--parameters", "encryption=encrypt"], FAILED,
     ["encryption=encrypt is not supported yet"]),
    ("download", [], USAGE, ["url=... is required"]),
    ("download", ["--parameters", "url"], USAGE, ["KEY=VALUE", '"url"']),
    ("magic", [], USAGE, ["--source-type", "magic"]),
    ("upload", ["--checksum", "abc"], USAGE, ["--checksum"]),
])
def test_a_data_source_that_cannot_be_made_ends_at_once(source, args, code, words):
    done = longhorn("--debug", "data-source", "--listen", "127.0.0.1:0",
                    "--sync-listen", "127.0.0.1:0", "--name", "n", "--uuid", "u",
                    "--source-type", source, *args)
    assert done.returncode == code and done.stdout == ""
    one_line_of_error(done, *words)
