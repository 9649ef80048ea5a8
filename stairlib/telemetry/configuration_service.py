"""Serves what a daemon was started with, and collects the same from the daemons it knows.

As with traces, the asking goes downwards, and a daemon that is away costs its own part only: that
it did not tell is what is told of it. Invariants: every question has a deadline, and the answer
stays within the default message size.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from importlib import metadata
from typing import Any, Final

import grpc

from stairlib.model.errors import StairwellError, UnsupportedError
from stairlib.model.settings import Setting, Source
from stairlib.rpc.errors import translated
from stairlib.rpc.server import Service
from stairwell.telemetry.v1 import configuration_service_pb2 as pb
from stairwell.telemetry.v1 import configuration_service_pb2_grpc as pb_grpc

SERVICE_NAME: Final = "stairwell.telemetry.v1.ConfigurationService"
# A daemon answers from memory.
ASK_SECONDS: Final = 3.0
# For the whole answer of who asks others; each hop leaves its caller time to answer in turn.
COLLECT_SECONDS: Final = 20.0
_HOP_SECONDS: Final = 0.5
# gRPC clients refuse messages above 4 MiB by default: of more than a thousand daemons, the last
# ones are named alone.
_ANSWER_BYTES_MAX: Final = 3 << 20
_SOURCES: Final = {
    Source.DEFAULT: pb.SETTING_SOURCE_DEFAULT,
    Source.FLAG: pb.SETTING_SOURCE_FLAG,
    Source.ENVIRONMENT: pb.SETTING_SOURCE_ENVIRONMENT,
    Source.FILE: pb.SETTING_SOURCE_FILE,
}

# Asks those behind a daemon, in at most so many seconds.
Downstream = Callable[[float], Awaitable[Sequence[pb.DaemonConfiguration]]]


def own_configuration(
    service: str, instance: str, settings: Iterable[Setting]
) -> pb.DaemonConfiguration:
    """What this process tells of itself, as of now."""
    made = pb.DaemonConfiguration(
        service=service,
        instance=instance,
        version=metadata.version("stairwell"),
        python_version=sys.version.split()[0],
        grpcio_version=metadata.version("grpcio"),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        settings=[
            pb.Setting(
                name=each.name,
                value=each.value,
                source=_SOURCES[each.source],
                origin=each.origin,
                masked=each.masked,
            )
            for each in settings
        ],
    )
    made.start_time.FromNanoseconds(time.time_ns())
    return made


class ConfigurationServicer(pb_grpc.ConfigurationServiceServicer):
    """Answers with `own`, and with what `downstream` collects, if there is anybody below."""

    def __init__(self, own: pb.DaemonConfiguration, downstream: Downstream | None = None) -> None:
        self._own = own
        self._downstream = downstream

    async def CollectConfigurations(
        self,
        request: pb.CollectConfigurationsRequest,
        context: grpc.aio.ServicerContext[
            pb.CollectConfigurationsRequest, pb.CollectConfigurationsResponse
        ],
    ) -> pb.CollectConfigurationsResponse:
        """Its own first."""
        found = [self._own]
        if self._downstream is not None and not request.own_only:
            remaining = context.time_remaining()
            seconds = COLLECT_SECONDS if remaining is None else remaining - _HOP_SECONDS
            found += await self._downstream(min(seconds, COLLECT_SECONDS))
        return pb.CollectConfigurationsResponse(daemons=bounded(found, _ANSWER_BYTES_MAX))


def configuration_service(
    own: pb.DaemonConfiguration, downstream: Downstream | None = None
) -> Service:
    """The service of a daemon."""
    servicer = ConfigurationServicer(own, downstream)
    return Service(
        SERVICE_NAME,
        lambda server: pb_grpc.add_ConfigurationServiceServicer_to_server(servicer, server),
    )


async def ask(channel: grpc.aio.Channel, peer: str, seconds: float) -> pb.DaemonConfiguration:
    """What the daemon at the other end tells of itself. UnavailableError and the like when it does
    not; UnsupportedError of an older one."""
    stub: Any = pb_grpc.ConfigurationServiceStub(channel)
    with translated(peer):
        answer = await stub.CollectConfigurations(
            pb.CollectConfigurationsRequest(own_only=True), timeout=seconds
        )
    if not answer.daemons:
        raise UnsupportedError(f"{peer} told nothing")
    found: pb.DaemonConfiguration = answer.daemons[0]
    return found


async def told(
    service: str, address: str, asked: Awaitable[pb.DaemonConfiguration]
) -> pb.DaemonConfiguration:
    """The answer, under the address the daemon was asked at, or why there is none."""
    try:
        found = await asked
    except UnsupportedError:
        return silent(service, address, "it is of a version that does not tell")
    except StairwellError as error:
        return silent(service, address, error.message)
    found.instance = address
    return found


def silent(service: str, address: str, trouble: str) -> pb.DaemonConfiguration:
    """What is told of a daemon that did not tell."""
    return pb.DaemonConfiguration(service=service, instance=address, trouble=trouble)


def bounded(
    found: Iterable[pb.DaemonConfiguration], bytes_max: int
) -> list[pb.DaemonConfiguration]:
    """In the same order; those that do not fit any more are named alone, as far as names fit."""
    kept: list[pb.DaemonConfiguration] = []
    size = 0
    for each in found:
        told_of = each
        if size + each.ByteSize() > bytes_max and not each.trouble:
            told_of = silent(each.service, each.instance, "the answer is full: ask it itself")
        size += told_of.ByteSize() + 8
        if size > bytes_max + (bytes_max >> 2):
            break
        kept.append(told_of)
    return kept
