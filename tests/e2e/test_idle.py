"""An idle daemon does next to nothing. (bench/ measures; this is a sanity
check that no loop spins.)"""

import time

from lib import images
from lib.client import EVENT
from lib.deadline import SLOWDOWN
from lib.processes import context_switches, cpu_seconds, open_files, proc_status_kib
from lib.servers import Content


def test_idle(start_daemon, disks, origin):
    daemon = start_daemon([disks.directory("one"), disks.directory("two")],
                          {"disks": {"check_interval": "5s"}})
    daemon.client.ensure("a", origin.serve("/a", Content(
        images.random_bytes(images.MIB))))
    daemon.client.wait_ready("a")
    watch = daemon.client.watch()
    watch.wait_type(EVENT.TYPE_SNAPSHOT_END)
    # Measured over a while: the one place where time itself is the subject.
    time.sleep(1)
    switches, cpu = context_switches(daemon.pid), cpu_seconds(daemon.pid)
    files = len(open_files(daemon.pid))
    time.sleep(3)
    switches = context_switches(daemon.pid) - switches
    cpu = cpu_seconds(daemon.pid) - cpu
    assert switches < 300 * SLOWDOWN, f"{switches} context switches in 3 s"
    assert cpu <= 0.03 * SLOWDOWN, f"{cpu} s of CPU in 3 s"
    assert len(open_files(daemon.pid)) <= files + 1
    assert len(watch.events) == 3, "an event without a change"


def test_memory_does_not_grow_with_work(start_daemon, disk, origin):
    daemon = start_daemon([disk], {"log": {"level": "warn"}})
    data = images.random_bytes(images.MIB)
    url = origin.serve("/a", Content(data))

    def round_of_work():
        for number in range(20):
            daemon.client.ensure(f"i{number}", url)
        for number in range(20):
            daemon.client.wait_ready(f"i{number}")
            daemon.client.remove(f"i{number}")

    round_of_work()
    before = proc_status_kib(daemon.pid, "VmRSS")
    files = len(open_files(daemon.pid))
    for _ in range(3):
        round_of_work()
    grown = proc_status_kib(daemon.pid, "VmRSS") - before
    # Sanitizers keep what is freed for a while.
    assert grown < 16 * 1024 * (8 if SLOWDOWN > 1 else 1), f"{grown} KiB"
    assert len(open_files(daemon.pid)) <= files + 4
