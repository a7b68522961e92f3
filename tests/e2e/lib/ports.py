"""Free loopback ports, for programs that can't take port 0."""

import itertools
import os
import re
import socket

# Below what the kernel gives away for port 0, and a part for each worker of
# pytest: nobody else of a test run takes a port between here and its user.
FIRST, COUNT, PARTS = 10000, 22000, 8
_PART = COUNT // PARTS
_worker = re.search(r"\d*$", os.environ.get("PYTEST_XDIST_WORKER", "")).group()
_first = FIRST + int(_worker or 0) % PARTS * _PART
_offsets = itertools.count(os.getpid() * 61)


def _is_free(port):
    with socket.socket() as probe:
        # As servers do: a connection that ended there is no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port():
    return free_ports(1)


def free_ports(count):
    """The first of so many free ports in a row."""
    row = []
    for _ in range(_PART):
        port = _first + next(_offsets) % _PART
        if row and port != row[-1] + 1:
            row = []
        row = [*row, port] if _is_free(port) else []
        if len(row) == count:
            return row[0]
    raise AssertionError(f"no {count} free ports in a row")
