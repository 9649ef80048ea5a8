"""Server reflection under both names: `grpc.reflection.v1` and `v1alpha`.

The library ships v1alpha only. The two protocols have the same messages, so v1 is the same servicer
under the other name, and its descriptor is the v1alpha one with the package renamed: a client that
describes every listed service finds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

V1_NAME: Final = "grpc.reflection.v1.ServerReflection"
V1ALPHA_NAME: Final = "grpc.reflection.v1alpha.ServerReflection"
_METHOD: Final = "ServerReflectionInfo"


def add_reflection(server: grpc.aio.Server, names: Iterable[str]) -> None:
    """Adds both versions to a server that is not started; they list `names` and themselves."""
    _describe_v1()
    servicer = reflection.aio.ReflectionServicer([*names, V1_NAME, V1ALPHA_NAME])
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        tuple(
            grpc.method_handlers_generic_handler(name, {_METHOD: handler})
            for name in (V1_NAME, V1ALPHA_NAME)
        )
    )


def _describe_v1() -> None:
    """Adds v1's descriptor to the pool unless something (a later library) did so before."""
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(V1_NAME)
    except KeyError:
        renamed = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(renamed)
        renamed.name = "grpc/reflection/v1/reflection.proto"
        renamed.package = "grpc.reflection.v1"
        for message in renamed.message_type:
            for field in message.field:
                if field.HasField("type_name"):
                    field.type_name = _renamed(field.type_name)
        for method in renamed.service[0].method:
            method.input_type = _renamed(method.input_type)
            method.output_type = _renamed(method.output_type)
        pool.AddSerializedFile(renamed.SerializeToString())


def _renamed(type_name: str) -> str:
    return type_name.replace(".grpc.reflection.v1alpha.", ".grpc.reflection.v1.")
