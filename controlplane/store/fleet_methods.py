"""What a store has to offer for the care of the fleet: the part that is the same for every store on
SQL."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Concatenate, ParamSpec, TypeVar
from uuid import UUID

from sqlalchemy import Connection

from controlplane.core.drain import Drain
from controlplane.core.fleet import (
    FaultedMember,
    FleetEntry,
    FleetPolicy,
    Look,
    Making,
    Place,
)
from controlplane.core.records import DownstairsRecord
from controlplane.core.repair_shares import RepairWish
from controlplane.core.replacement import Replacement
from controlplane.store import sql_fleet, sql_repair_limits
from controlplane.store.sealing import Sealer

_T = TypeVar("_T")
_P = ParamSpec("_P")


class FleetMethods(ABC):
    """The methods of `FleetCareStore`. The store has the sealer and runs the transactions."""

    _sealer: Sealer

    @abstractmethod
    async def _run(
        self, work: Callable[Concatenate[Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Runs `work(connection, ...)` in one transaction."""
        ...

    @abstractmethod
    async def _fleet_changed(
        self, work: Callable[Concatenate[Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """The same; other control planes hear that what is begun unasked may be another."""
        ...

    async def register_downstairs(self, record: DownstairsRecord, place: Place) -> DownstairsRecord:
        """See `FleetCareStore`."""
        return await self._fleet_changed(sql_fleet.register, record, place)

    async def deregister_downstairs(self, address: str) -> None:
        """See `FleetCareStore`."""
        await self._fleet_changed(sql_fleet.deregister, self._sealer, address)

    async def fleet(self) -> list[FleetEntry]:
        """See `FleetCareStore`."""
        return await self._run(sql_fleet.entries)

    async def places(self) -> dict[str, Place]:
        """See `FleetCareStore`."""
        return await self._run(sql_fleet.places_by_address)

    async def save_looks(self, looks: Iterable[Look]) -> None:
        """See `FleetCareStore`."""
        await self._run(sql_fleet.save_looks, list(looks))

    async def put_agent(self, agent: Place) -> None:
        """See `FleetCareStore`."""
        await self._run(sql_fleet.put_agent, agent)

    async def forget_agent(self, address: str) -> None:
        """See `FleetCareStore`."""
        await self._run(sql_fleet.forget_agent, address)

    async def agents(self) -> list[Place]:
        """See `FleetCareStore`."""
        return await self._run(sql_fleet.agents)

    async def save_making(self, making: Making) -> None:
        """See `FleetCareStore`."""
        await self._run(sql_fleet.save_making, making)

    async def forget_making(self, replacement_id: UUID) -> None:
        """See `FleetCareStore`."""
        await self._run(sql_fleet.forget_making, replacement_id)

    async def makings(self) -> list[Making]:
        """See `FleetCareStore`."""
        return await self._run(sql_fleet.list_makings)

    async def repair_wishes(self) -> dict[UUID, RepairWish]:
        """See `RepairLimitStore`."""
        return await self._run(sql_repair_limits.wishes)

    async def save_repair_wish(self, volume_id: UUID, wish: RepairWish) -> None:
        """See `RepairLimitStore`."""
        await self._run(sql_repair_limits.save_wish, volume_id, wish)

    async def repairs_left(self) -> list[tuple[UUID, int]]:
        """See `RepairLimitStore`."""
        return await self._run(sql_repair_limits.left)

    async def fleet_policy(self) -> FleetPolicy:
        """See `FleetCareStore`."""
        return await self._run(sql_fleet.policy)

    async def set_fleet_policy(self, policy: FleetPolicy) -> None:
        """See `FleetCareStore`."""
        await self._fleet_changed(sql_fleet.set_policy, policy)

    async def faulted_members(self) -> list[FaultedMember]:
        """See `FleetCareStore`."""
        return await self._run(sql_fleet.faulted)

    async def set_faulted_members(self, members: Iterable[FaultedMember]) -> None:
        """See `FleetCareStore`."""
        await self._run(sql_fleet.set_faulted, list(members))

    async def begin_drain(self, drain: Drain) -> Drain:
        """See `FleetCareStore`."""
        return await self._fleet_changed(sql_fleet.begin_drain, drain)

    async def end_drain(self, drain: Drain) -> bool:
        """See `FleetCareStore`."""
        return await self._fleet_changed(sql_fleet.end_drain, drain)

    async def drain(self, name: str) -> Drain:
        """See `FleetCareStore`."""
        return await self._run(sql_fleet.drain, name)

    async def list_drains(self) -> list[Drain]:
        """See `FleetCareStore`."""
        return await self._run(sql_fleet.list_drains)

    async def holding_drains(self) -> list[Drain]:
        """See `FleetCareStore`."""
        return await self._run(sql_fleet.holding_drains)

    async def last_asked_by(self, asked_by: str, disk_key: UUID) -> Replacement | None:
        """See `FleetCareStore`."""
        return await self._run(sql_fleet.last_asked_by, self._sealer, asked_by, disk_key)

    async def replacements_asked_by(self, asked_by: str) -> list[Replacement]:
        """See `FleetCareStore`."""
        return await self._run(sql_fleet.replacements_asked_by, self._sealer, asked_by)
