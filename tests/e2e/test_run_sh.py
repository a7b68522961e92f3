"""./run.sh: builds, brings images onto two disks, stays in the foreground, and
Ctrl-C stops all that it started.

It makes a release build, so this runs with BIM_TEST_LONG=1, or when that build
is there and newer than the sources.
"""

import os
import re
import signal
import subprocess
import threading

import pytest

from lib import images
from lib.client import Client, ROOT
from lib.deadline import scaled, wait_until
from lib.processes import clean_environment, run

RELEASE = ROOT / "build" / "release" / "bim"


def is_built():
    if not RELEASE.exists():
        return False
    built = RELEASE.stat().st_mtime
    sources = [p for room in ("pkg", "daemon", "proto") for p in (ROOT / room).rglob("*")
               if p.is_file()] + [ROOT / "CMakeLists.txt"]
    return all(p.stat().st_mtime <= built for p in sources)


pytestmark = [
    pytest.mark.skipif(os.environ.get("BIM_TEST_LONG") != "1" and not is_built(),
                       reason="needs a release build: BIM_TEST_LONG=1"),
    pytest.mark.timeout(1500),
]


def session_of(pid):
    """What descends from a process, by parent."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", encoding="latin-1") as file:
                    parents[int(entry)] = int(file.read().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                pass
    found, todo = set(), [pid]
    while todo:
        parent = todo.pop()
        for child, its_parent in parents.items():
            if its_parent == parent and child not in found:
                found.add(child)
                todo.append(child)
    return found


class Script:
    def __init__(self, *args):
        self.process = subprocess.Popen(
            [str(ROOT / "run.sh"), *args], cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=clean_environment(), start_new_session=True)
        self.output = ""
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        for line in iter(self.process.stdout.readline, b""):
            self.output += line.decode(errors="replace")

    def wait_for(self, text, deadline=1200):
        def there():
            if text in self.output:
                return True
            assert self.process.poll() is None, self.output
            return False
        wait_until(there, lambda: f"{text!r} in {self.output[-3000:]}", deadline, 0.1)

    def interrupt(self):
        """As Ctrl-C on its terminal: to the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(timeout=scaled(30))

    def close(self):
        if self.process.poll() is None:
            children = session_of(self.process.pid)
            self.process.terminate()
            try:
                self.process.wait(timeout=scaled(20))
            except subprocess.TimeoutExpired:
                self.process.kill()
                for child in children:
                    try:
                        os.kill(child, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                self.process.wait()


@pytest.fixture
def script():
    started = []

    def start(*args):
        started.append(Script(*args))
        return started[-1]

    yield start
    for one in started:
        one.close()


def commands(output):
    """The commands that it says to try next."""
    return [line.strip() for line in output.splitlines()
            if re.match(r"\s+(/\S*bim|/usr/bin/python3|export) ", line)]


def assert_ctrl_c_stops_everything(started):
    children = session_of(started.process.pid)
    assert children, "nothing was started"
    directory = re.search(r"/tmp/bim-run\.\w+", started.output).group(0)
    started.interrupt()
    wait_until(lambda: not [c for c in children if os.path.exists(f"/proc/{c}")],
               lambda: f"all ended; left: {children}")
    assert not os.path.exists(directory)


def test_without_a_url(script):
    """Its own qcow2, from its own nginx; the commands it tells work."""
    started = script()
    started.wait_for("Ctrl-C stops")
    output = started.output
    assert output.count("ready") >= 4, output  # 2 disks, 2 copies
    tried = commands(output)
    assert sum("bim image" in c for c in tried) >= 1
    assert sum("python3" in c for c in tried) >= 1
    done = run(["bash", "-ec", "\n".join(tried)])
    assert b"demo.qcow2" in done.stdout
    address = re.search(r"BIM_ADDRESS=(\S+)", output).group(1)
    client = Client(address)
    image = client.wait_ready("demo.qcow2")
    assert image.format == "qcow2" and len(image.copies) == 2
    for copy in image.copies:
        info = images.qemu_img_info(copy.file_path)
        assert info["virtual-size"] == image.virtual_size
    client.close()
    assert_ctrl_c_stops_everything(started)


def test_with_urls(script, nginx, files):
    good = images.raw(files / "good.raw", 4 * images.MIB)
    started = script(nginx.url(good.name), nginx.url("absent.raw"))
    started.wait_for("Ctrl-C stops")
    assert "404" in started.output and "failed" in started.output
    address = re.search(r"BIM_ADDRESS=(\S+)", started.output).group(1)
    client = Client(address)
    assert client.get("good.raw").current_sha512 == good.sha512
    client.close()
    assert_ctrl_c_stops_everything(started)


def test_bad_arguments(script):
    for args in (("--nonsense",), ("ftp://127.0.0.1/a",)):
        started = script(*args)
        assert started.process.wait(timeout=scaled(20)) == 2
