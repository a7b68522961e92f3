"""Ensure: the same again is a no-op; another spec is refused; uuids."""

import threading
import uuid as uuids
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from lib import images
from lib.client import refused
from lib.servers import Content

DATA = images.random_bytes(images.MIB)
ALREADY = grpc.StatusCode.ALREADY_EXISTS


@pytest.fixture
def client(start_daemon, disks):
    return start_daemon([disks.directory("one"), disks.directory("two")]).client


def test_the_same_again_is_a_no_op(client, origin):
    url = origin.serve("/a", Content(DATA))
    first = client.ensure("a", url, sha512=images.sha512(DATA))
    assert first.created
    uuid = first.image.spec.uuid
    client.wait_ready("a")
    for again in ({}, {"uuid": uuid}):
        answer = client.ensure("a", url, sha512=images.sha512(DATA), **again)
        assert not answer.created
        assert answer.image.spec.uuid == uuid
        assert answer.image.state == "ready"
    assert origin.count("/a") == 1
    assert len(client.list_all()) == 1


def test_the_same_while_it_is_on_its_way(client, origin):
    gate = threading.Event()
    url = origin.serve("/a", Content(DATA, gate=gate, gate_after=4096))
    uuid = client.ensure("a", url).image.spec.uuid
    origin.wait_count("/a", 1)
    for _ in range(20):
        answer = client.ensure("a", url)
        assert not answer.created and answer.image.spec.uuid == uuid
    gate.set()
    client.wait_ready("a")
    assert origin.count("/a") == 1


def test_many_callers_at_once_make_one_image(client, origin):
    url = origin.serve("/a", Content(DATA))
    uuid = str(uuids.uuid4())
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: client.ensure("a", url, uuid=uuid),
                                range(32)))
    assert sum(a.created for a in answers) == 1
    client.wait_ready("a")
    assert origin.count("/a") == 1


def test_another_spec_is_refused(client, origin, disks):
    url = origin.serve("/a", Content(DATA))
    other_url = origin.serve("/b", Content(DATA))
    digest = images.sha512(DATA)
    uuid = client.ensure("a", url, sha512=digest).image.spec.uuid
    client.wait_ready("a")
    for changed in ({"url": other_url}, {"sha512": ""}, {"sha512": "0" * 128},
                    {"sha256": images.sha256(DATA)}, {"size": len(DATA)},
                    {"disks": [disks.root / "one"]}):
        spec = {"url": url, "sha512": digest, **changed}
        with refused(ALREADY, "a"):
            client.ensure("a", spec.pop("url"), uuid=uuid, **spec)
    assert origin.count("/a") == 1 and origin.count("/b") == 0
    assert client.get("a").state == "ready"


def test_after_remove_another_spec_is_taken(client, origin):
    url = origin.serve("/a", Content(DATA))
    other = origin.serve("/b", Content(DATA[::-1]))
    uuid = client.ensure("a", url).image.spec.uuid
    client.wait_ready("a")
    with refused(ALREADY):
        client.ensure("a", other, uuid=uuid)
    client.remove("a")
    assert client.ensure("a", other, uuid=uuid).created
    assert client.wait_ready("a").current_sha512 == images.sha512(DATA[::-1])


def test_a_generated_uuid(client, origin):
    url = origin.serve("/a", Content(DATA))
    uuid = client.ensure("a", url).image.spec.uuid
    assert str(uuids.UUID(uuid)) == uuid and uuids.UUID(uuid).version == 4
    # Another spec under the name, without a uuid: more likely a mistake than
    # the wish for a second image. The message says how to get one.
    with refused(ALREADY, uuid, "another uuid"):
        client.ensure("a", origin.serve("/b", Content(DATA)))
    assert len(client.list_all()) == 1


def test_one_name_two_uuids(client, origin):
    url = origin.serve("/a", Content(DATA))
    for uuid in ("v1", "v2"):
        assert client.ensure("a", url, uuid=uuid).created
        client.wait_ready("a", uuid=uuid)
    assert [i.spec.uuid for i in client.list_all()] == ["v1", "v2"]
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "uuid", "v1", "v2"):
        client.get("a")
    assert client.get("a", "v1").spec.source.url == url
    client.remove("a", "v1")
    assert client.get("a").spec.uuid == "v2"


def test_a_directory_that_is_anothers(client, origin):
    """`a-b` with uuid `c` and `a` with uuid `b-c` would share a directory."""
    url = origin.serve("/a", Content(DATA))
    client.ensure("a-b", url, uuid="c")
    client.wait_ready("a-b")
    with refused(ALREADY, "'a-b'", "'c'"):
        client.ensure("a", url, uuid="b-c")
    assert client.get("a-b").state == "ready"
    with refused(grpc.StatusCode.NOT_FOUND):
        client.get("a")
