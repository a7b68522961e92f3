"""List: pages of any size give every image once, in order."""

import grpc
import pytest

from lib import images
from lib.client import EVENT, refused
from lib.deadline import wait_until

COUNT = 250


@pytest.fixture
def daemon(start_daemon, disk, files):
    daemon = start_daemon([disk], {"sources": {"allow_file": True},
                                   "log": {"level": "info"}})
    # One file a name: contents differ, so that a mix-up would be seen.
    for number in range(COUNT):
        images.raw(files / f"{number}.raw", 4096, number)
    for number in range(COUNT):
        # Two uuids for every fifth name.
        daemon.client.ensure(f"image-{number // 2 * 2 if number % 10 < 2 else number:03}",
                             f"file://{files}/{number}.raw", uuid=f"u{number}")
    return daemon


def test_250_images_in_pages(daemon, files):
    client = daemon.client
    everything = client.list_all(1000)
    keys = [(i.spec.name, i.spec.uuid) for i in everything]
    assert len(keys) == COUNT and keys == sorted(keys)
    assert len({i.revision for i in everything}) > 1
    for page_size, pages in ((1, 250), (7, 36), (100, 3), (0, 3), (249, 2), (250, 1),
                             (1000, 1)):
        token, seen, count = "", [], 0
        while True:
            page = client.list(page_size, token)
            count += 1
            assert len(page.images) <= (page_size or 100)
            seen += [(i.spec.name, i.spec.uuid) for i in page.images]
            token = page.next_page_token
            if not token:
                break
        assert seen == keys
        assert count == pages
    for page_size in (1001, 4_000_000_000):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "1000"):
            client.list(page_size)
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        client.list(10, "no token of ours")

    # All of them end ready, each with the content of its own file.
    wait_until(lambda: all(i.state == "ready" for i in client.list_all()),
               lambda: "all ready; " + str([i.message for i in client.list_all()
                                            if i.state != "ready"][:3]), 60, 0.2)
    for image in client.list_all():
        source = image.spec.source.url.removeprefix("file://")
        assert image.current_sha512 == images.file_sha512(source)

    # Removing what was shown does not make a page skip or repeat.
    first = client.list(100)
    for image in first.images[-50:]:
        client.remove(image.spec.name, image.spec.uuid)
    second = client.list(1000, first.next_page_token)
    assert [(i.spec.name, i.spec.uuid) for i in second.images] == keys[100:]

    # A snapshot of Watch shows the same.
    watch = client.watch()
    watch.wait_type(EVENT.TYPE_SNAPSHOT_END)
    shown = [(e.image.spec.name, e.image.spec.uuid) for e in watch.events
             if e.type == EVENT.TYPE_IMAGE]
    assert sorted(shown) == keys[:50] + keys[100:]
