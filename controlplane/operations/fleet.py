"""The fleet: downstairs registered as spares, and those that are or were members."""

from __future__ import annotations

from controlplane.core.records import DownstairsRecord, Role
from controlplane.peers.downstairs import Fleet
from controlplane.store.base import FleetStore
from stairlib.model.construction import canonical_address
from stairlib.model.errors import FieldViolation, InvalidRequestError


class FleetBook:
    """See the module."""

    def __init__(self, store: FleetStore, fleet: Fleet) -> None:
        self._store = store
        self._fleet = fleet

    async def register(self, address: str) -> DownstairsRecord:
        """Asks the daemon what it is and records it; a member stays a member."""
        try:
            canonical = canonical_address(address)
        except ValueError as error:
            raise InvalidRequestError(
                f"{address!r} is not an address: it {error}",
                (FieldViolation("address", str(error), "BAD_ADDRESS"),),
                reason="BAD_ADDRESS",
            ) from None
        facts = await self._fleet.region(canonical, field="address")
        return await self._store.put_downstairs(
            DownstairsRecord(
                address=canonical,
                role=Role.SPARE,
                region_id=facts.region_id,
                geometry=facts.geometry,
                encrypted=facts.encrypted,
            )
        )

    async def listed(self) -> list[DownstairsRecord]:
        """All that are known."""
        return await self._store.list_downstairs()
