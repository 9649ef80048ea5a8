"""A downstairs as the control plane sees it: asked what it is, before it becomes a member.

The control plane keeps no connection to the fleet: each question opens one and closes it. Members
of a region whose request names TLS files are asked over TLS, with the control plane's own files
where it was given some, else with those of the request, which are then read on this host.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from controlplane.core.preflight import RegionFacts
from stairlib.model.construction import RegionOptions
from stairlib.model.errors import StateError, UnavailableError, UnsupportedError
from stairlib.model.geometry import Geometry
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.rpc.tls import PeerTls, TlsFiles, explained, reach, region_tls
from stairlib.telemetry import configuration_service
from stairlib.telemetry.tracing import Tracing
from stairwell.downstairs.v1 import region_service_pb2 as pb
from stairwell.downstairs.v1 import region_service_pb2_grpc as pb_grpc
from stairwell.telemetry.v1 import configuration_service_pb2 as configuration_pb

# A daemon on the network answers within milliseconds; a black hole must not hold up the user.
QUESTION_SECONDS = 3.0
_NIL = UUID(int=0)
_FLAGS = "--downstairs-cert-pem, --downstairs-key-pem and --downstairs-root-cert-pem"
_REMEDY = (
    "name cert_pem, key_pem and root_cert_pem in the region's opts; to register a spare, start the "
    f"control plane with {_FLAGS}"
)
_FILES_REMEDY = (
    "The control plane asks the downstairs itself, so the files must be on its host too; or start "
    f"it with {_FLAGS}"
)


class Fleet:
    """Dials downstairs by address. `tls` is the control plane's own identity, if it has one."""

    def __init__(self, tracing: Tracing, tls: TlsFiles | None = None) -> None:
        self._tracing = tracing
        self._tls = tls

    async def region(
        self,
        address: str,
        *,
        field: str,
        options: RegionOptions | None = None,
        slot: int | None = None,
    ) -> RegionFacts:
        """What the downstairs at `address` serves; `field` is where the user named it, `options`
        are those of the region it is or will be a member of, and `slot` its place there.

        UnavailableError (TARGET_UNREACHABLE) when nobody answers; StateError (NOT_A_DOWNSTAIRS)
        when somebody else does, (TLS_FILE) when it cannot be asked for want of a file.
        """
        files = self._files(options)
        try:
            return _facts(await self._asked(address, files, slot))
        except UnavailableError as error:
            # What is wrong with TLS says by itself what to do.
            more = "" if error.reason.startswith("TLS_") else " Start it, or name one that runs"
            raise UnavailableError(
                error.message + more,
                reason="TARGET_UNREACHABLE",
                target=address,
                field=field,
                cause=error.reason,
            ) from error
        except (UnsupportedError, ValueError) as error:
            raise StateError(
                f"what answers at {address} is not a downstairs of this version",
                reason="NOT_A_DOWNSTAIRS",
                target=address,
                field=field,
            ) from error

    async def configuration(
        self, address: str, member: tuple[RegionOptions, int] | None, seconds: float
    ) -> configuration_pb.DaemonConfiguration:
        """What the downstairs at `address` was started with; `member` has the options of the region
        it is a member of, and its slot there."""
        options, slot = member if member is not None else (None, None)
        files = self._files(options)
        peer = await self._reached(address, files, slot) if files is not None else None
        async with open_channel(address, tracing=self._tracing, tls=peer) as channel:
            return await configuration_service.ask(channel, f"the downstairs at {address}", seconds)

    def _files(self, options: RegionOptions | None) -> TlsFiles | None:
        """What to ask with: nothing where the region is served in plain text."""
        if options is None:
            return self._tls
        asked = region_tls(options)
        return self._tls or asked if asked is not None else None

    async def _asked(self, address: str, files: TlsFiles | None, slot: int | None) -> pb.Region:
        peer = await self._reached(address, files, slot) if files is not None else None
        async with open_channel(address, tracing=self._tracing, tls=peer) as channel:
            stub: Any = pb_grpc.RegionServiceStub(channel)
            try:
                with translated(f"the downstairs at {address}"):
                    answer = await stub.GetRegion(pb.GetRegionRequest(), timeout=QUESTION_SECONDS)
            except UnavailableError as error:
                if files is not None:
                    raise
                raise await explained(address, error, _REMEDY) from error
        region: pb.Region = answer.region
        return region

    async def _reached(self, address: str, files: TlsFiles, slot: int | None) -> PeerTls:
        try:
            return await reach(address, files, slot)
        except StateError as error:
            if files is self._tls:
                raise
            raise StateError(
                f"{error.message}. {_FILES_REMEDY}", reason=error.reason, **error.metadata
            ) from error


def _facts(region: pb.Region) -> RegionFacts:
    """The facts of an answer; ValueError when it names no region."""
    return RegionFacts(
        region_id=UUID(region.id),
        geometry=Geometry(
            region.geometry.block_size, region.geometry.extent_size, region.geometry.extent_count
        ),
        encrypted=region.encrypted,
        read_only=region.read_only,
        owner_id=_optional(region.owner_id),
        active_session_id=_optional(region.active_session_id),
        written=region.written,
        cipher=region.cipher,
        key_check=region.key_check,
        stored_bytes=region.stored_bytes,
        free_bytes=region.free_bytes if region.HasField("free_bytes") else None,
        faulted_extents=region.faulted_extents,
    )


def _optional(text: str) -> UUID | None:
    """The id, or None for an empty or nil one."""
    found = UUID(text) if text else _NIL
    return None if found == _NIL else found
