"""The methods of the API that the console may call, by name, with messages as JSON.

They are the servicers' own, in this process: the same checks, answers and news as over gRPC, and
the roles of the one table. What is not named here cannot be called from a browser.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from stairlib.model.errors import InvalidRequestError, NotFoundError
from stairlib.rpc import access
from stairlib.rpc.access import Caller, Role
from stairlib.telemetry.logs import get_logger
from stairwell.controlplane.v1 import (
    disk_service_pb2,
    fleet_service_pb2,
    replacement_service_pb2,
    vcr_service_pb2,
)

_log = get_logger(__name__)

PACKAGE: Final = "stairwell.controlplane.v1"
_FILES: Final = (disk_service_pb2, fleet_service_pb2, replacement_service_pb2, vcr_service_pb2)
ANSWERED: Final = frozenset(
    f"{service}/{name}"
    for service, names in {
        "DiskService": "GetDisk ListDisks GetDiskHistory GetDiskExtents ReplaceVcr",
        "ReplacementService": "GetReplacement ListReplacements PauseReplacement ResumeReplacement"
        " CancelReplacement RetryReplacement SetRepairLimits GetReplacementTrace",
        "FleetService": "ListDownstairs GetFleetPolicy",
        "VcrService": "CheckVcr CompareVcrs",
    }.items()
    for name in names.split()
)
WATCHED: Final = frozenset(
    {
        "DiskService/WatchDisk",
        "DiskService/WatchDiskExtents",
        "ReplacementService/WatchReplacement",
    }
)


def as_object(message: Message) -> dict[str, Any]:
    """A message as the console's scripts read it: every field there, 64-bit numbers as text."""
    found: dict[str, Any] = json_format.MessageToDict(
        message, always_print_fields_with_no_presence=True
    )
    return found


class Calls:
    """`servicers` by the short names of their services."""

    def __init__(self, servicers: Mapping[str, Any]) -> None:
        self._servicers = servicers
        self._methods: dict[str, MethodDescriptor] = {
            f"{service.name}/{method.name}": method
            for file in _FILES
            for service in file.DESCRIPTOR.services_by_name.values()
            for method in service.methods
        }

    async def answer(self, caller: Caller, name: str, body: object) -> dict[str, Any]:
        """One call. RefusedError unless the caller's role may; NotFoundError for other names."""
        method, request = self._request(caller, name, body, ANSWERED)
        return as_object(await method(request, None))

    async def compared(self, caller: Caller, original: Message, changed: Message) -> dict[str, Any]:
        """CompareVcrs, of two construction requests as messages."""
        method, _ = self._request(caller, "VcrService/CompareVcrs", {}, ANSWERED)
        request = vcr_service_pb2.CompareVcrsRequest()
        request.original.MergeFrom(original)  # type: ignore[arg-type]
        request.replacement.MergeFrom(changed)  # type: ignore[arg-type]
        return as_object(await method(request, None))

    def watch(self, caller: Caller, name: str, body: object) -> AsyncIterator[dict[str, Any]]:
        """The messages of a watch; refused as `answer`, before the first of them."""
        method, request = self._request(caller, name, body, WATCHED)

        async def messages() -> AsyncIterator[dict[str, Any]]:
            async for message in method(request, None):
                yield as_object(message)

        return messages()

    def _request(
        self, caller: Caller, name: str, body: Any, known: frozenset[str]
    ) -> tuple[Any, Message]:
        if name not in known:
            raise NotFoundError("method", name)
        full = f"/{PACKAGE}.{name}"
        access.require(caller, full)
        if Role.VIEWER not in access.allowed(full):
            # As at the gate of gRPC: what people change leaves a trace of who did it.
            _log.info("call admitted", method=full, caller=caller.name, console=True)
        service, _, short = name.partition("/")
        kind = message_factory.GetMessageClass(self._methods[name].input_type)
        try:
            request = json_format.ParseDict(body, kind())
        except (json_format.ParseError, TypeError, AttributeError):
            raise InvalidRequestError(f"the body is no {kind.DESCRIPTOR.name}") from None
        return getattr(self._servicers[service], short), request
