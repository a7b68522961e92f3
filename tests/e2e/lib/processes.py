"""Child processes that never outlive the tests, and what /proc says of one."""

import os
import re
import signal
import subprocess

from .deadline import scaled


def clean_environment(extra=None):
    """The environment without anything that changes what a program does."""
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.lower().endswith("_proxy")
        and not key.startswith("BIM_")
        and key not in ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID")
    }
    # Where nginx, mkfs and losetup lie.
    env["PATH"] = env.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    env.update(extra or {})
    return env


def without_quarantine():
    """The environment for a test that bounds memory: AddressSanitizer gives
    back what is freed, instead of keeping it for a while."""
    options = os.environ.get("ASAN_OPTIONS")
    return {"ASAN_OPTIONS": options + ":quarantine_size_mb=1"} if options else {}


def spawn(argv, **options):
    """Popen; the kernel kills the child when this process dies."""
    # setpriv execs, so the pid is that of the program itself.
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", *map(str, argv)], **options)


def end(process, signal_number=signal.SIGTERM, deadline=10.0):
    """Ends a process that we started; SIGKILL when it does not go by itself."""
    if process.poll() is None:
        process.send_signal(signal_number)
        try:
            process.wait(timeout=scaled(deadline))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return process.returncode


def run(argv, check=True, **options):
    """Runs a tool to its end; shows what it said when it fails."""
    options.setdefault("timeout", scaled(60))
    options.setdefault("env", clean_environment())
    done = subprocess.run([str(a) for a in argv], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, **options)
    if check and done.returncode != 0:
        raise AssertionError(
            f"{argv} ended with {done.returncode}:\n"
            f"{done.stdout.decode(errors='replace')}"
            f"{done.stderr.decode(errors='replace')}")
    return done


def proc_text(pid, name):
    with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:
        return file.read()


def proc_io(pid):
    """rchar, wchar, read_bytes ... of a process."""
    return {key: int(value) for key, value in
            re.findall(r"(\w+): (\d+)", proc_text(pid, "io"))}


def proc_status_kib(pid, key):
    """VmRSS, RssAnon ... in KiB."""
    return int(re.search(rf"^{key}:\s+(\d+) kB",
                         proc_text(pid, "status"), re.M).group(1))


def context_switches(pid):
    """Of all the threads of a process."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        text = proc_text(pid, f"task/{task}/status")
        total += sum(int(n) for n in re.findall(r"ctxt_switches:\s+(\d+)", text))
    return total


def cpu_seconds(pid):
    fields = proc_text(pid, "stat").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_files(pid):
    """What the descriptors of a process point to."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:
            pass
    return found
