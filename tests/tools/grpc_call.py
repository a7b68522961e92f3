#!/usr/bin/python3
"""A generic gRPC client: knows no .proto, asks the server by reflection.

    grpc_call.py HOST:PORT                          lists services
    grpc_call.py HOST:PORT SERVICE                  lists its methods
    grpc_call.py HOST:PORT SERVICE/METHOD [JSON]    calls it, prints JSON

`unix:/path` works as an address, too. Debian packages: python3-grpcio,
python3-protobuf. Exit codes: 0, 1 (the call failed), 2 (usage).
"""
import sys

import grpc
from google.protobuf import (descriptor_pb2, descriptor_pool, json_format,
                             message_factory)

REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def reflection_types():
    """The few messages of grpc.reflection.v1alpha that are needed."""
    file = descriptor_pb2.FileDescriptorProto(
        name="reflection_subset.proto", package="r", syntax="proto3")

    def message(name, *fields):
        m = file.message_type.add(name=name)
        for number, field, kind, type_name, repeated in fields:
            m.field.add(name=field, number=number, type=kind,
                        type_name=type_name or None,
                        label=3 if repeated else 1)
    message("Request", (4, "file_containing_symbol", 9, "", False),
            (3, "file_by_filename", 9, "", False),
            (7, "list_services", 9, "", False))
    message("Files", (1, "file_descriptor_proto", 12, "", True))
    message("Service", (1, "name", 9, "", False))
    message("Services", (1, "service", 11, ".r.Service", True))
    message("Error", (1, "error_code", 5, "", False),
            (2, "error_message", 9, "", False))
    message("Response", (4, "files", 11, ".r.Files", False),
            (6, "services", 11, ".r.Services", False),
            (7, "error", 11, ".r.Error", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    make = message_factory.MessageFactory(pool).GetPrototype
    return (make(pool.FindMessageTypeByName("r.Request")),
            make(pool.FindMessageTypeByName("r.Response")))


class Client:
    def __init__(self, address, timeout=30):
        self.channel = grpc.insecure_channel(address)
        self.timeout = timeout
        self.request, self.response = reflection_types()
        self.pool = descriptor_pool.DescriptorPool()
        self.known = set()

    def _ask(self, **fields):
        call = self.channel.stream_stream(
            REFLECTION, request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=self.response.FromString)
        answer = next(call(iter([self.request(**fields)]),
                           timeout=self.timeout))
        if answer.HasField("error"):
            raise LookupError(answer.error.error_message)
        return answer

    def services(self):
        # An empty string would not be sent at all.
        answer = self._ask(list_services="*")
        return sorted(s.name for s in answer.services.service)

    def _add(self, blobs):
        files = [descriptor_pb2.FileDescriptorProto.FromString(b)
                 for b in blobs]
        for file in files:
            if file.name in self.known:
                continue
            self.known.add(file.name)
            for needed in file.dependency:
                if needed not in self.known:
                    self._add(self._ask(file_by_filename=needed)
                              .files.file_descriptor_proto)
            self.pool.Add(file)

    def service(self, name):
        self._add(self._ask(file_containing_symbol=name)
                  .files.file_descriptor_proto)
        return self.pool.FindServiceByName(name)

    def call(self, service, method, text="{}", metadata=(), timeout=None):
        """Yields the answers as messages."""
        found = self.service(service).FindMethodByName(method)
        make = message_factory.MessageFactory(self.pool).GetPrototype
        request = json_format.Parse(text, make(found.input_type)())
        answer = make(found.output_type)
        stub = self.channel.unary_stream(
            f"/{service}/{method}",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=answer.FromString)
        return stub(request, timeout=timeout or self.timeout,
                    metadata=metadata)


def main(argv):
    if len(argv) < 2 or len(argv) > 4 or argv[1] in ("-h", "--help"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    client = Client(argv[1])
    try:
        if len(argv) == 2:
            print("\n".join(client.services()))
            return 0
        service, _, method = argv[2].partition("/")
        if not method:
            for found in client.service(service).methods:
                print(f"{service}/{found.name}")
            return 0
        for answer in client.call(service, method,
                                  argv[3] if len(argv) > 3 else "{}"):
            print(json_format.MessageToJson(
                answer, preserving_proto_field_name=True,
                including_default_value_fields=True))
        return 0
    except grpc.RpcError as error:
        print(f"{error.code().name}: {error.details()}", file=sys.stderr)
    except (LookupError, KeyError, json_format.ParseError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
