"""Who answers, and which API versions are served."""

import grpc
import pytest

from lib.client import pb, refused
from lib.deadline import scaled

# The daemon speaks 3 to 4.
OVERLAPPING = [(3, 3), (4, 4), (4, 3), (3, 1), (9, 4), (1000, 1)]
FOREIGN = [(2, 1), (2, 2), (5, 5), (9, 7)]


def metadata(version, minimum):
    return [("bim-api-version", str(version)),
            ("bim-api-min-version", str(minimum))]


def test_version_get(start_daemon, disk):
    answer = start_daemon([disk]).client.version_get()
    assert (answer.api_version, answer.api_min_version) == (4, 3)
    assert answer.disk_format_version >= answer.disk_format_min_version >= 1
    assert answer.version and answer.git_commit and answer.build_date
    assert answer.manager_id
    assert answer.data_endpoint.startswith("127.0.0.1:")


def test_identity_survives_a_restart(start_daemon, disk):
    daemon = start_daemon([disk])
    before = daemon.client.version_get().manager_id
    daemon.restart()
    assert daemon.client.version_get().manager_id == before
    other = start_daemon([])
    assert other.client.version_get().manager_id != before


@pytest.mark.parametrize("version,minimum", OVERLAPPING)
def test_overlapping_ranges_are_served(start_daemon, version, minimum):
    client = start_daemon().client
    assert client.version_get(version, minimum).api_version == 4
    assert client.version_get(metadata=metadata(version, minimum)).api_version == 4
    client.images.List(pb.ListRequest(), metadata=metadata(version, minimum),
                       timeout=scaled(10))


@pytest.mark.parametrize("version,minimum", FOREIGN)
def test_foreign_ranges_are_refused_with_both_named(start_daemon, disk, version,
                                                     minimum):
    client = start_daemon([disk]).client
    both = (str(version), str(minimum), "3", "4")
    stated = {"metadata": metadata(version, minimum), "timeout": scaled(10)}
    code = grpc.StatusCode.FAILED_PRECONDITION
    with refused(code, *both):
        client.version_get(version, minimum)
    with refused(code, *both):
        client.version.VersionGet(pb.VersionGetRequest(), **stated)
    with refused(code, *both):
        client.disks.List(pb.ListDisksRequest(), **stated)
    with refused(code, *both):
        client.disks.Add(pb.AddDiskRequest(path="/nowhere"), **stated)
    with refused(code, *both):
        client.disks.Remove(pb.RemoveDiskRequest(disk=disk.uuid), **stated)
    spec = pb.ImageSpec(name="a", source=pb.Source(url="http://127.0.0.1:1/a"))
    with refused(code, *both):
        client.images.Ensure(pb.EnsureRequest(spec=spec), **stated)
    with refused(code, *both):
        client.images.Get(pb.GetRequest(name="a"), **stated)
    with refused(code, *both):
        client.images.List(pb.ListRequest(), **stated)
    with refused(code, *both):
        client.images.Remove(pb.RemoveRequest(name="a"), **stated)
    with refused(code, *both):
        list(client.images.Watch(pb.WatchRequest(), **stated))
    with refused(code, *both):
        list(client.images.Verify(pb.VerifyRequest(name="a"), **stated))
    assert not client.list_all()
    assert client.disk(disk).state == "ready"


def test_a_range_that_is_none_is_refused(start_daemon):
    client = start_daemon().client
    for stated in ([("bim-api-version", "four")], metadata("4", "x"),
                   metadata(3, 4)):
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            client.version_get(metadata=stated)
