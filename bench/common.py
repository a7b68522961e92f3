"""What the benchmark cases share."""
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time

TOP = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "tests" / "tools"))
import grpc  # noqa: E402
import grpc_call  # noqa: E402

GIB = 1 << 30
MIB = 1 << 20


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def quietly(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def timed(*command):
    begin = time.monotonic()
    quietly(*command)
    return time.monotonic() - begin


def median_ratio(ours, theirs):
    return statistics.median(a / b for a, b in zip(ours, theirs))


def seconds(values):
    return f"{statistics.median(values):.2f} s"


class Nginx:
    def __init__(self, folder, root, limits=""):
        self.port = free_port()
        folder.mkdir()
        user = "user root;" if os.geteuid() == 0 else ""
        self.log = folder / "sent"
        (folder / "nginx.conf").write_text(f"""
{user} daemon off; worker_processes 1; pid {folder}/pid; error_log stderr warn;
events {{ worker_connections 256; }}
http {{
  {limits}
  log_format sent '$bytes_sent'; access_log {self.log} sent;
  sendfile on;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2;
  fastcgi_temp_path {folder}/t3; uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen 127.0.0.1:{self.port}; root {root}; }}
}}
""")
        env = dict(os.environ, PATH=os.environ["PATH"] + ":/usr/sbin")
        self.process = subprocess.Popen(
            ["nginx", "-p", str(folder), "-e", "stderr",
             "-c", str(folder / "nginx.conf")], env=env)
        for _ in range(200):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise SystemExit("nginx did not start")

    def url(self, name):
        return f"http://127.0.0.1:{self.port}/{name}"

    # Bytes given to the network, headers too, of the requests that ended.
    def sent(self):
        return sum(int(line) for line in self.log.read_text().split())

    def stop(self):
        self.process.terminate()
        self.process.wait(10)


class Daemon:
    def __init__(self, binary, folder, disks, extra=""):
        self.binary, self.folder, self.disks = binary, folder, disks
        folder.mkdir(exist_ok=True)
        self.config = folder / "bim.toml"
        self.config.write_text(f"""
[node]
state_dir = "{folder}/state"
[api]
listen = ["127.0.0.1:0"]
socket = "unix:{folder}/bim.sock"
data_listen = "127.0.0.1:0"
[disks]
paths = {json.dumps([str(d) for d in disks])}
[log]
level = "warn"
{extra}
""")
        self.start()

    def start(self):
        endpoint = self.folder / "state" / "endpoint.json"
        if endpoint.exists():
            endpoint.unlink()
        self.process = subprocess.Popen(
            [self.binary, "daemon", "--config", str(self.config)])
        for _ in range(5000):
            if endpoint.exists():
                break
            if self.process.poll() is not None:
                raise SystemExit("the daemon did not start")
            time.sleep(0.002)
        endpoints = json.loads(endpoint.read_text())
        self.address, self.data = endpoints["api"][0], endpoints["data"]
        self.client = grpc_call.Client(self.address)

    def call(self, service, method, timeout=3600, **fields):
        return list(self.client.call(f"bim.v1.{service}", method,
                                     json.dumps(fields), timeout=timeout))[0]

    def ensure(self, name, url, disks=("all",)):
        self.call("ImageService", "Ensure", spec={
            "name": name, "source": {"url": url}, "disks": list(disks)})

    def wait(self, names, timeout=3600):
        """Until these images are ready, by Watch."""
        left = set(names)
        for event in self.client.call("bim.v1.ImageService", "Watch",
                                      timeout=timeout):
            name = event.image.spec.name
            if name in left and event.image.state == "failed":
                raise SystemExit(f"{name} failed: {event.image.message}")
            if name in left and event.image.state == "ready":
                left.discard(name)
                if not left:
                    return

    def get(self, name, uuid=""):
        return self.call("ImageService", "Get", name=name, uuid=uuid).image

    def wait_uuid(self, uuid, timeout=3600):
        """Until the image of this uuid is ready; the image."""
        for event in self.client.call("bim.v1.ImageService", "Watch",
                                      timeout=timeout):
            if event.image.spec.uuid != uuid:
                continue
            if event.image.state == "failed":
                raise SystemExit(f"{uuid} failed: {event.image.message}")
            if event.image.state == "ready":
                return event.image
        raise SystemExit(f"{uuid} is not ready")

    def remove(self, name):
        self.call("ImageService", "Remove", name=name)

    def rss_anon(self):
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
        return 0

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(60) != 0:
            raise SystemExit("the daemon did not stop cleanly")


class PeakMemory:
    def __init__(self, daemon):
        self.daemon, self.peak, self.done = daemon, 0, threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        while not self.done.wait(0.05):
            self.peak = max(self.peak, self.daemon.rss_anon())

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


def make_disk(path, uuid):
    path.mkdir(parents=True)
    (path / "longhorn-disk.cfg").write_text(json.dumps({"diskUUID": uuid}))
    return path


def random_file(path, size):
    with open(path, "wb") as out:
        quiet = subprocess.run(["head", "-c", str(size), "/dev/urandom"],
                               stdout=out, check=True)
        del quiet
        os.fsync(out.fileno())


def sparse_file(path, size, data):
    """`data` random bytes spread over a file of `size`."""
    with open(path, "wb") as out:
        out.truncate(size)
        pieces = 64
        for i in range(pieces):
            out.seek(size // pieces * i)
            out.write(os.urandom(data // pieces))
        os.fsync(out.fileno())


def settle():
    os.sync()
    time.sleep(0.5)


def row(case, ours, theirs, value, bar, holds):
    return {"case": case, "ours": ours, "theirs": theirs, "value": value,
            "bar": bar, "holds": holds}
