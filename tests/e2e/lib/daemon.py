"""The real binary, started with a configuration made for one test."""

import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from .client import ROOT, Client
from .deadline import scaled, wait_until
from .processes import clean_environment, end, run, spawn

BINARY = Path(os.environ.get("BIM_BINARY", ROOT / "build" / "dev" / "bim"))
SANITIZER_WORDS = ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer",
                   "LeakSanitizer:", "runtime error:", "WARNING: ThreadSanitizer")


def duration(seconds):
    """A number of seconds as the configuration takes it."""
    return f"{max(1, round(seconds * 1000))}ms"


def to_toml(config):
    def value(v):
        if isinstance(v, bool):
            return "true" if v else "false"
        if isinstance(v, int):
            return str(v)
        if isinstance(v, (list, tuple)):
            return "[" + ", ".join(value(x) for x in v) + "]"
        return json.dumps(str(v))
    return "".join(
        f"[{section}]\n" + "".join(f"{k} = {value(v)}\n" for k, v in keys.items())
        + "\n" for section, keys in config.items())


def quick_config():
    """Small windows, so that a test sees in a second what takes minutes."""
    return {
        "disks": {"check_interval": duration(0.2)},
        "sources": {
            "retry_tries": 4,
            "retry_first": duration(0.05),
            "retry_max": duration(0.4),
            "connect_timeout": duration(scaled(5)),
            "first_byte_timeout": duration(scaled(5)),
            "stall_timeout": duration(scaled(5)),
        },
        "backoff": {"first": duration(0.5), "max": duration(1)},
        # What is stopped in the middle is stopped in the middle.
        "handover": {"drain_timeout": duration(0)},
        "log": {"level": "debug", "format": "text"},
    }


def merged(base, extra):
    result = {section: dict(keys) for section, keys in base.items()}
    for section, keys in (extra or {}).items():
        result.setdefault(section, {}).update(keys)
    return result


class Daemon:
    """One daemon: its configuration, state directory, process and log.

    It may be started, stopped, killed and started again; the state directory
    and the disks stay. Not for use from several threads.
    """

    def __init__(self, directory, disks=(), config=None, env=None, binary=None):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.binary = Path(binary or BINARY)
        self.state_dir = self.directory / "state"
        self.socket = self.directory / "bim.sock"
        self.config_file = self.directory / "bim.toml"
        self.log_file = self.directory / "log"
        self.env = dict(env or {})
        self.config = merged(merged(quick_config(), {
            "node": {"state_dir": self.state_dir},
            "api": {"listen": ["127.0.0.1:0"], "socket": f"unix:{self.socket}",
                    "data_listen": "127.0.0.1:0"},
            "disks": {"paths": [str(d) for d in disks]},
        }), config)
        self.process = None
        self._client = None

    # Life --------------------------------------------------------------

    def configure(self, **sections):
        """Changes the configuration for the next start."""
        self.config = merged(self.config, sections)

    def write_config(self):
        self.config_file.write_text(to_toml(self.config))
        return self.config_file

    def spawn(self, extra_args=()):
        """Starts the process and waits for nothing."""
        assert self.process is None or self.process.poll() is not None
        self.write_config()
        with suppress(FileNotFoundError):
            (self.state_dir / "endpoint.json").unlink()
        with open(self.log_file, "ab") as log:
            self.process = spawn(
                [self.binary, "daemon", "--config", self.config_file, *extra_args],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.directory, env=clean_environment(self.env))
        return self

    def start(self, deadline=20.0, extra_args=()):
        self.spawn(extra_args)
        self.wait_endpoint(deadline)
        self.client.version_get()
        return self

    def wait_endpoint(self, deadline=20.0):
        def written():
            if self.process.poll() is not None:
                raise AssertionError(
                    f"the daemon ended with {self.process.returncode}:\n"
                    f"{self.log()[-4000:]}")
            try:
                endpoint = json.loads((self.state_dir / "endpoint.json").read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                return None
            return endpoint if endpoint["pid"] == self.pid else None
        self._drop_client()
        self.endpoint = wait_until(written, "endpoint.json", deadline)
        return self.endpoint

    @property
    def pid(self):
        return self.process.pid

    @property
    def running(self):
        return self.process is not None and self.process.poll() is None

    def wait_exit(self, deadline=20.0):
        """Until it ended by itself; its return code."""
        code = self.process.wait(timeout=scaled(deadline))
        self._drop_client()
        return code

    def stop(self, deadline=30.0):
        """SIGTERM: it must end by itself, with 0, and clean."""
        self._drop_client()
        assert self.running, f"it had ended with {self.process.returncode}"
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=scaled(deadline))
        except subprocess.TimeoutExpired:
            self.kill9()
            raise AssertionError(
                f"not gone {scaled(deadline):.0f} s after SIGTERM:\n"
                f"{self.log()[-4000:]}") from None
        assert code == 0, f"ended with {code}:\n{self.log()[-4000:]}"
        self.assert_clean()

    def kill9(self):
        self._drop_client()
        if self.running:
            self.process.kill()
        self.process.wait()

    def restart(self, kill=False, env=None):
        self.kill9() if kill else self.stop()
        if env is not None:
            self.env = dict(env)
        return self.start()

    def close(self):
        """At the end of a test: also a daemon that is still wanted is asked to
        end properly, since sanitizers report at exit."""
        self._drop_client()
        if self.running:
            self.stop()
        self.assert_clean()

    def abandon(self):
        self._drop_client()
        if self.process is not None:
            end(self.process, signal.SIGKILL)

    # What it says --------------------------------------------------------

    def log(self):
        try:
            return self.log_file.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def wait_log(self, text, deadline=10.0):
        wait_until(lambda: text in self.log(), f"{text!r} in the log", deadline)

    def assert_clean(self):
        log = self.log()
        for word in SANITIZER_WORDS:
            assert word not in log, log[log.index(word) - 200:][:6000]

    # How to reach it -------------------------------------------------------

    @property
    def address(self):
        return self.endpoint["api"][0]

    @property
    def data(self):
        return self.endpoint["data"]

    def data_url(self, name, uuid):
        return f"http://{self.data}/v1/images/{name}/{uuid}/data"

    @property
    def client(self):
        if self._client is None:
            self._client = Client(self.address)
        return self._client

    def _drop_client(self):
        if self._client is not None:
            self._client.close()
            self._client = None

    def cli(self, *args, check=None, address=None, env=None, **options):
        """Runs `bim ARGS` against this daemon. `check` is the exit code that
        it must have. Output as text."""
        done = bim(*args, "--address", address or self.address, env=env,
                   binary=self.binary, **options)
        if check is not None:
            assert done.returncode == check, (
                f"bim {' '.join(map(str, args))} ended with {done.returncode}, "
                f"not {check}:\n{done.stdout}{done.stderr}")
        return done

    def cli_json(self, *args):
        return json.loads(self.cli(*args, "-o", "json", check=0).stdout)


def bim(*args, env=None, binary=None, **options):
    """Runs the binary to its end; output as text."""
    done = run([binary or BINARY, *args], check=False, stdin=subprocess.DEVNULL,
               env=clean_environment(env), **options)
    done.stdout = done.stdout.decode(errors="replace")
    done.stderr = done.stderr.decode(errors="replace")
    for word in SANITIZER_WORDS:
        assert word not in done.stderr, done.stderr[:6000]
    return done
