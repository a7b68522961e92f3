"""A generic client, which knows nothing of our proto, lists and calls all."""

import json

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import MessageFactory

from lib.client import (ROOT, health_pb2, health_pb2_grpc, reflection_pb2,
                        reflection_pb2_grpc)
from lib.deadline import scaled
from lib.processes import run

SERVICES = {
    "bim.v1.VersionService": {"VersionGet"},
    "bim.v1.DiskService": {"List", "Add", "Remove", "Adopt"},
    "bim.v1.ImageService": {"Ensure", "Get", "List", "Watch", "Remove", "Verify"},
    "bim.v1.LimitService": {"Get", "Set"},
    "grpc.health.v1.Health": {"Check", "Watch"},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo"},
}


class GenericClient:
    """Learns everything by reflection, into a descriptor pool of its own."""

    def __init__(self, channel):
        self.channel = channel
        self.stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        self.pool = descriptor_pool.DescriptorPool()
        self.factory = MessageFactory(self.pool)
        self.known = set()

    def ask(self, **request):
        message = reflection_pb2.ServerReflectionRequest(**request)
        answers = list(self.stub.ServerReflectionInfo(iter([message]),
                                                      timeout=scaled(10)))
        assert len(answers) == 1
        assert not answers[0].HasField("error_response"), answers[0]
        return answers[0]

    def services(self):
        answer = self.ask(list_services="*")
        return {s.name for s in answer.list_services_response.service}

    def add_files(self, answer):
        files = {}
        for data in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            files[file.name] = file
        while files:
            file = files.pop(next(iter(files)))
            if file.name in self.known:
                continue
            missing = [d for d in file.dependency if d not in self.known]
            if missing:
                if missing[0] not in files:
                    self.add_files(self.ask(file_by_filename=missing[0]))
                files[file.name] = file
                # Dependencies first.
                files = {**{n: f for n, f in files.items() if n != file.name},
                         file.name: file}
                continue
            self.pool.Add(file)
            self.known.add(file.name)

    def service(self, name):
        self.add_files(self.ask(file_containing_symbol=name))
        return self.pool.FindServiceByName(name)

    def call(self, method, **fields):
        request = self.factory.GetPrototype(method.input_type)(**fields)
        path = f"/{method.containing_service.full_name}/{method.name}"
        make = (self.channel.unary_stream if method.server_streaming
                else self.channel.unary_unary)
        answer = self.factory.GetPrototype(method.output_type)
        return make(path, lambda m: m.SerializeToString(), answer.FromString)(
            request, timeout=scaled(10))


def test_everything_is_listed_and_described(start_daemon):
    generic = GenericClient(start_daemon().client.channel)
    assert set(SERVICES) <= generic.services()
    for name, methods in SERVICES.items():
        assert {m.name for m in generic.service(name).methods} == methods


def test_every_listed_service_can_be_described(start_daemon):
    """A generic client that lists methods asks for each listed service."""
    generic = GenericClient(start_daemon().client.channel)
    for name in generic.services():
        assert generic.service(name).full_name == name


def test_descriptor_names_are_those_of_the_proto(start_daemon):
    generic = GenericClient(start_daemon().client.channel)
    for name in SERVICES:
        if name.startswith("bim."):
            assert generic.service(name).file.name == "bim/v1/node.proto"


def test_calls_without_knowing_the_proto(start_daemon, disk):
    generic = GenericClient(start_daemon([disk]).client.channel)
    version = generic.service("bim.v1.VersionService").methods_by_name["VersionGet"]
    assert generic.call(version).api_version == 4
    listing = generic.service("bim.v1.DiskService").methods_by_name["List"]
    assert [d.path for d in generic.call(listing).disks] == [str(disk)]
    watch = generic.service("bim.v1.ImageService").methods_by_name["Watch"]
    stream = generic.call(watch)
    assert next(stream).type == 1  # TYPE_SNAPSHOT_BEGIN
    stream.cancel()


def test_health_is_serving(start_daemon):
    daemon = start_daemon()
    stub = health_pb2_grpc.HealthStub(daemon.client.channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=scaled(10))
    assert answer.status == serving
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=scaled(10))
    assert next(watch).status == serving
    watch.cancel()


def test_health_of_an_unknown_service(start_daemon):
    stub = health_pb2_grpc.HealthStub(start_daemon().client.channel)
    try:
        stub.Check(health_pb2.HealthCheckRequest(service="no.such"),
                   timeout=scaled(10))
        raise AssertionError("answered")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND


def test_the_generic_client_of_the_tools(start_daemon, disk):
    """tests/tools/grpc_call.py: what run.sh tells people to try."""
    daemon = start_daemon([disk])
    tool = ROOT / "tests" / "tools" / "grpc_call.py"
    for address in (daemon.address, f"unix:{daemon.socket}"):
        def call(*args, address=address):
            return run(["/usr/bin/python3", tool, address, *args]).stdout.decode()
        assert set(SERVICES) <= set(call().split())
        assert "VersionGet" in call("bim.v1.VersionService")
        answer = json.loads(call("bim.v1.DiskService/List", "{}"))
        assert [d["path"] for d in answer["disks"]] == [str(disk)]
