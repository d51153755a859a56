"""The hand-written table of methods is in step with the proto files."""

import subprocess
import sys

from google.protobuf.descriptor import FileDescriptor

from wormfs.core.errors import ERRORS_BY_NAME
from wormfs.rpc import errors_wire
from wormfs.rpc.methods import METHODS, PUSHED
from wormfs.rpc.v1 import chunk_pb2, cluster_pb2, filesystem_pb2, metadata_pb2, replication_pb2, types_pb2

FILES: tuple[FileDescriptor, ...] = (
    chunk_pb2.DESCRIPTOR,
    cluster_pb2.DESCRIPTOR,
    filesystem_pb2.DESCRIPTOR,
    metadata_pb2.DESCRIPTOR,
    replication_pb2.DESCRIPTOR,
)


def test_every_method_of_every_service_is_in_the_table_with_its_types() -> None:
    described = {
        f"{service.full_name}/{method.name}": (
            method.input_type.full_name,
            method.output_type.full_name,
            method.client_streaming,
            method.server_streaming,
        )
        for file in FILES
        for service in file.services_by_name.values()
        for method in service.methods
    }
    written = {
        method.name: (
            method.request.DESCRIPTOR.full_name,
            method.reply.DESCRIPTOR.full_name,
            method.client_streaming,
            method.server_streaming,
        )
        for method in METHODS
    }
    assert written == described


def test_numbers_name_one_method_each() -> None:
    numbers = [method.number for method in METHODS] + list(PUSHED)
    assert len(set(numbers)) == len(numbers)


def test_every_error_crosses_the_wire_both_ways() -> None:
    for name, kind in ERRORS_BY_NAME.items():
        back = errors_wire.from_reply(errors_wire.to_reply(kind(f"about {name}")))
        assert type(back) is kind
        assert back.message == f"about {name}"
        trailing = dict(errors_wire.trailing_metadata(kind("x")))
        assert type(errors_wire.from_status(errors_wire.status_of(kind("x")).name, "x", trailing)) is kind


def test_error_of_a_newer_version_keeps_its_errno() -> None:
    newer = types_pb2.ErrorReply(code="QuotaError", errno=28, message="over quota")
    assert errors_wire.from_reply(newer).errno == 28


def test_stream_client_does_not_load_grpc() -> None:
    check = (
        "import sys, wormfs.rpc.stream_client, wormfs.rpc.stream_server;"
        "sys.exit(any(name == 'grpc' or name.startswith('grpc.') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False, timeout=60).returncode == 0
