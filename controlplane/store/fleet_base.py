"""What the care of the fleet asks of the store; as in `base`, every method is one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol
from uuid import UUID

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
from controlplane.core.replacement import Replacement


class FleetCareStore(Protocol):
    """Where downstairs stand and how they are; agents and makings; the policy; drains."""

    async def register_downstairs(self, record: DownstairsRecord, place: Place) -> DownstairsRecord:
        """As `put_downstairs`, with where it stands."""
        ...

    async def deregister_downstairs(self, address: str) -> None:
        """Forgets it. NotFoundError when it is not known, StateError (DOWNSTAIRS_IN_USE) while a
        disk or a replacement names it."""
        ...

    async def fleet(self) -> list[FleetEntry]:
        """All downstairs with where they stand and how they are, in the order of addresses."""
        ...

    async def places(self) -> dict[str, Place]:
        """Where those stand of which somebody said so, by address."""
        ...

    async def save_looks(self, looks: Iterable[Look]) -> None:
        """The newest look at each; those at unknown addresses are dropped. A look without
        `seen_at` leaves the earlier one."""
        ...

    async def put_agent(self, agent: Place) -> None:
        """Records where an agent listens and stands."""
        ...

    async def forget_agent(self, address: str) -> None:
        """NotFoundError when it is not known."""
        ...

    async def agents(self) -> list[Place]:
        """In the order of addresses."""
        ...

    async def save_making(self, making: Making) -> None:
        """Records it, or what is new about it."""
        ...

    async def forget_making(self, replacement_id: UUID) -> None:
        """Nothing is to be done about it any more. Idempotent."""
        ...

    async def makings(self) -> list[Making]:
        """Oldest first."""
        ...

    async def fleet_policy(self) -> FleetPolicy:
        """The policy in force."""
        ...

    async def set_fleet_policy(self, policy: FleetPolicy) -> None:
        """The whole policy."""
        ...

    async def faulted_members(self) -> list[FaultedMember]:
        """The members found faulted, longest first."""
        ...

    async def set_faulted_members(self, members: Iterable[FaultedMember]) -> None:
        """All of them, in the place of those before."""
        ...

    async def begin_drain(self, drain: Drain) -> Drain:
        """Records a drain, or finds the one of its target that was not cancelled, running again."""
        ...

    async def end_drain(self, drain: Drain) -> bool:
        """Stores the end (DONE or CANCELLED) of one that runs, or the cancellation of one that is
        done; False when it has ended otherwise meanwhile."""
        ...

    async def drain(self, name: str) -> Drain:
        """By id, or the newest of a target; NotFoundError when there is none."""
        ...

    async def list_drains(self) -> list[Drain]:
        """The newest hundred, newest first."""
        ...

    async def holding_drains(self) -> list[Drain]:
        """Those that keep something out of use, oldest first."""
        ...

    async def last_asked_by(self, asked_by: str, disk_key: UUID) -> Replacement | None:
        """The newest replacement of a disk that somebody has begun, cancelled or not."""
        ...

    async def replacements_asked_by(self, asked_by: str) -> list[Replacement]:
        """The replacements somebody has begun, oldest first."""
        ...
