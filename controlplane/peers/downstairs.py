"""A downstairs as the control plane sees it: asked what it is, before it becomes a member.

The control plane keeps no connection to the fleet: each question opens one and closes it.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from controlplane.core.preflight import RegionFacts
from stairlib.model.errors import StateError, UnavailableError, UnsupportedError
from stairlib.model.geometry import Geometry
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.telemetry.tracing import Tracing
from stairwell.downstairs.v1 import region_service_pb2 as pb
from stairwell.downstairs.v1 import region_service_pb2_grpc as pb_grpc

# A daemon on the network answers within milliseconds; a black hole must not hold up the user.
QUESTION_SECONDS = 3.0
_NIL = UUID(int=0)


class Fleet:
    """Dials downstairs by address."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    async def region(self, address: str, *, field: str) -> RegionFacts:
        """What the downstairs at `address` serves; `field` is where the user named it.

        UnavailableError (TARGET_UNREACHABLE) when nobody answers; StateError (NOT_A_DOWNSTAIRS)
        when somebody else does.
        """
        channel = open_channel(address, tracing=self._tracing)
        stub: Any = pb_grpc.RegionServiceStub(channel)
        try:
            with translated(f"the downstairs at {address}"):
                answer = await stub.GetRegion(pb.GetRegionRequest(), timeout=QUESTION_SECONDS)
            return _facts(answer.region)
        except UnavailableError as error:
            raise UnavailableError(
                f"{error.message} Start it, or name one that runs",
                reason="TARGET_UNREACHABLE",
                target=address,
                field=field,
            ) from error
        except (UnsupportedError, ValueError) as error:
            raise StateError(
                f"what answers at {address} is not a downstairs of this version",
                reason="NOT_A_DOWNSTAIRS",
                target=address,
                field=field,
            ) from error
        finally:
            await channel.close()


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
    )


def _optional(text: str) -> UUID | None:
    """The id, or None for an empty or nil one."""
    found = UUID(text) if text else _NIL
    return None if found == _NIL else found
