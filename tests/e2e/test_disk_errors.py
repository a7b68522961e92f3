"""A disk that fails at any step of ingest and commit: the image says why, the
daemon goes on, nothing half-written is ready, and it gets ready later."""

import errno
import re

import grpc
import pytest

from lib import images
from lib.client import ROOT, copy_of
from lib.images import MIB
from lib.servers import Content

DATA = images.random_bytes(3 * MIB)


def names_in_sources():
    found = set()
    for path in (ROOT / "pkg").rglob("*.cc"):
        found |= set(re.findall(r'BIM_FAILPOINT_ERROR\(\s*"([^"]+)"', path.read_text()))
    return sorted(found)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC],
                         ids=lambda n: errno.errorcode[n])
@pytest.mark.parametrize("failpoint", names_in_sources())
def test_error_at(start_daemon, disk, origin, failpoint, number):
    daemon = start_daemon([disk], {"backoff": {"first": "1s", "max": "1s"}},
                          run=False)
    daemon.start()
    old = origin.serve("/old", Content(DATA[::-1]))
    daemon.client.ensure("old", old)
    before = daemon.client.wait_ready("old")
    daemon.restart(env={"BIM_FAILPOINTS": f"{failpoint}=error:{number}"})
    client = daemon.client
    url = origin.serve("/a", Content(DATA))
    word = {errno.EIO: "input/output", errno.ENOSPC: "space"}[number]
    try:
        client.ensure("a", url, uuid="u")
    except grpc.RpcError as error:
        # The record of what is wanted could not be written.
        assert word in error.details().lower()
    else:
        image = client.wait_image("a", lambda i: i.state in ("failed", "ready"), "ended")
        copy = image.copies[0]
        if copy.state == "failed":
            assert word in copy.message.lower(), copy.message
            assert copy.HasField("next_attempt")
            assert not disk.ready_file("a", "u").exists()
    assert client.get("old").copies[0].verified_at == before.copies[0].verified_at
    daemon.restart(env={})
    client = daemon.client
    client.ensure("a", url, uuid="u")
    assert client.wait_ready("a").current_sha512 == images.sha512(DATA)
    assert copy_of(client.get("old"), disk).state == "ready"
    assert not disk.temp_files()
