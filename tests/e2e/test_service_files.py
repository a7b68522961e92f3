"""systemd/ and container/: what they say is true of the binary."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess

import pytest
import yaml

from lib.client import ROOT, Client
from lib.daemon import BINARY, bim
from lib.deadline import scaled, wait_until
from lib.processes import clean_environment, run


def test_type_notify(start_daemon, disk, scratch):
    """READY=1 when it serves, STOPPING=1 when it ends: Type=notify."""
    path = scratch / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(path))
        notify.settimeout(scaled(20))
        daemon = start_daemon([disk], env={"NOTIFY_SOCKET": str(path)}, run=False)
        daemon.spawn()
        said = ""
        while "READY=1" not in said:
            said += notify.recv(4096).decode() + "\n"
        # Ready means ready: it answers at once.
        daemon.wait_endpoint()
        assert daemon.client.disk(disk).state == "ready"
        daemon.stop()
        while "STOPPING=1" not in said:
            said += notify.recv(4096).decode() + "\n"


def test_ready_is_not_said_when_it_fails(start_daemon, scratch):
    path = scratch / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, \
            socket.create_server(("127.0.0.1", 0)) as taken:
        notify.bind(str(path))
        notify.setblocking(False)
        daemon = start_daemon(
            config={"api": {"listen": [f"127.0.0.1:{taken.getsockname()[1]}"]}},
            env={"NOTIFY_SOCKET": str(path)}, run=False)
        daemon.spawn()
        assert daemon.wait_exit() != 0
        with pytest.raises(BlockingIOError):
            while True:
                assert b"READY=1" not in notify.recv(4096)


def test_a_reload_replaces_the_main_process(start_daemon, disk, scratch):
    """What the unit's ExecReload does: it ends when the successor serves, which
    tells systemd its process id; the old one is gone with 0, no client is
    refused."""
    text = (ROOT / "systemd" / "backing-image-manager.service").read_text()
    assert "NotifyAccess=all" in text
    command = re.search(r"^ExecReload=/usr/bin/bim (.*)$", text, re.M)[1].split()
    daemon = start_daemon([disk])
    path = scratch / "notify.sock"
    successor = None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(path))
        notify.settimeout(scaled(20))
        try:
            # (What it prints is the successor's, which goes on.)
            with open(scratch / "said", "wb") as file:
                done = subprocess.run(
                    [BINARY, *command, "--config", daemon.config_file],
                    env=clean_environment({"NOTIFY_SOCKET": str(path)}),
                    stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                    timeout=scaled(30), check=False)
            assert done.returncode == 0, (scratch / "said").read_text()
            said = notify.recv(4096).decode()
            successor = int(re.search(r"^MAINPID=(\d+)$", said, re.M)[1])
            assert "READY=1" in said and successor != daemon.pid
            assert daemon.wait_exit() == 0
            told = json.loads((daemon.state_dir / "endpoint.json").read_text())
            assert told["pid"] == successor
            client = Client(told["api"][0])
            assert client.disk(disk).state == "ready"
            client.close()
        finally:
            if successor:
                os.kill(successor, signal.SIGTERM)
                wait_until(lambda: not os.path.exists(f"/proc/{successor}"),
                           "the end of the successor")


def test_a_reload_that_fails_leaves_the_running_one(start_daemon, disk, scratch):
    daemon = start_daemon([disk])
    done = bim("daemon", "--handover=auto", "--detach", "--config", daemon.config_file,
               "--api-data-listen", "nonsense", cwd=scratch)
    assert done.returncode == 2, done
    assert daemon.client.disk(disk).state == "ready"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
def test_the_unit_is_verified(scratch, binary):
    unit = ROOT / "systemd" / "backing-image-manager.service"
    text = unit.read_text()
    assert "Type=notify" in text
    copy = scratch / unit.name
    copy.write_text(text.replace("/usr/bin/bim", str(binary)))
    # It prints "Unknown key" and ends with 0: any output is a failure.
    done = run(["systemd-analyze", "verify", "--man=no", copy])
    said = [line for line in (done.stdout + done.stderr).decode().splitlines()
            if unit.name in line]
    assert not said, said


def manifests():
    text = (ROOT / "container" / "daemonset.yaml").read_text()
    return list(yaml.safe_load_all(text))


def test_the_manifest_fits_together(scratch):
    documents = manifests()
    daemon_set = next(d for d in documents if d["kind"] == "DaemonSet")
    pod = daemon_set["spec"]["template"]["spec"]
    container = pod["containers"][0]
    config = next(d for d in documents if d["kind"] == "ConfigMap")
    (name, text), = config["data"].items()
    path = scratch / name
    path.write_text(text)
    done = bim("config", "check", "--config", path, "-o", "json")
    assert done.returncode == 0, done.stderr
    values = {s["key"]: s["value"] for s in json.loads(done.stdout)["settings"]}
    ports = {p["containerPort"] for p in container["ports"]}
    assert ports == {int(values["api.listen"][0].rsplit(":", 1)[1]),
                     int(values["api.data_listen"].rsplit(":", 1)[1])}
    mounts = {m["mountPath"] for m in container["volumeMounts"]}
    assert set(values["disks.paths"]) <= mounts
    assert values["node.state_dir"] in mounts
    assert {m["name"] for m in container["volumeMounts"]} == {
        v["name"] for v in pod["volumes"]}
    # `bim daemon` takes what it is given.
    assert container["args"] == ["daemon"]


def test_the_dockerfile_starts_the_daemon():
    text = (ROOT / "container" / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["/usr/bin/bim"]' in text and 'CMD ["daemon"]' in text
    assert "STOPSIGNAL SIGTERM" in text
