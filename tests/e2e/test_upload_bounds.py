"""How many uploads at once, and that they take no turn of a download."""

import threading

import pytest

from lib import images
from lib.deadline import wait_until
from lib.images import MIB
from lib.servers import Content
from test_upload import DATA, OTHER, SIZE, Uploads

ONE = {"transfers": {"max": 1, "max_per_disk": 1}}
MOST = 32


def begun(uploads):
    """So many slow ones, all of them under way."""
    requests = [u.begin("PUT", Content_Length=SIZE).send(DATA[:4096]) for u in uploads]
    for upload in uploads:
        wait_until(lambda: upload.image().state == "in-progress",
                   lambda: f"in progress; {upload.image()}")
    return requests


def test_a_slow_one_holds_up_no_download(start_daemon, nginx, files, disk):
    image = images.raw(files / "d.raw", 4 * MIB)
    daemon = start_daemon([disk], ONE)
    slow = Uploads(daemon)
    request, = begun([slow])
    daemon.client.ensure("d", nginx.url("d.raw"), sha512=image.sha512)
    daemon.client.wait_ready("d")
    # Nor another upload.
    other = Uploads(daemon, "b")
    assert other.put(OTHER).status == 201
    other.assert_ready(OTHER)
    assert slow.image().state == "in-progress"
    assert request.send(DATA[4096:]).answer().status == 201
    slow.assert_ready()


def test_a_slow_download_holds_up_no_upload(start_daemon, origin, disk):
    gate = threading.Event()
    daemon = start_daemon([disk], ONE)
    daemon.client.ensure("d", origin.serve("/d", Content(OTHER, gate=gate,
                                                         gate_after=MIB)))
    daemon.client.wait_state("d", "in-progress")
    upload = Uploads(daemon)
    assert upload.put().status == 201
    upload.assert_ready()
    assert daemon.client.get("d").state == "in-progress"
    gate.set()
    daemon.client.wait_ready("d")


@pytest.mark.timeout(180)
def test_no_more_than_so_many(start_daemon, nginx, files, disk):
    """One more is told to come later, and may when another is gone."""
    image = images.raw(files / "d.raw", 4 * MIB)
    daemon = start_daemon([disk], ONE)
    uploads = [Uploads(daemon, f"i{n}") for n in range(MOST)]
    requests = begun(uploads)
    last = Uploads(daemon, "last")
    for answer in (last.put(), last.patch(0, DATA[:MIB], Upload_Length=SIZE)):
        assert answer.status == 503, answer.text
        assert f"{MOST} uploads run already" in answer.text
    head = last.head()
    assert head.status == 200 and head.offset == 0
    assert last.image().state == "pending"
    daemon.client.ensure("d", nginx.url("d.raw"), sha512=image.sha512)
    daemon.client.wait_ready("d")
    requests[0].close()
    wait_until(lambda: uploads[0].image().state == "pending", "one to be gone")
    assert last.put().status == 201
    last.assert_ready()
    # All the others go on, and the one that was gone, too.
    assert requests[1].send(DATA[4096:]).answer().status == 201
    uploads[1].assert_ready()
    assert uploads[0].put().status == 201
    for request in requests[2:]:
        request.close()
