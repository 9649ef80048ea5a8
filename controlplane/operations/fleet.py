"""The fleet: downstairs registered as spares, those that are or were members, and the policy."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from uuid import UUID

from controlplane.core.drain import Drain
from controlplane.core.fleet import (
    AgentFacts,
    FaultedMember,
    FleetEntry,
    FleetPolicy,
    Look,
    Place,
    checked_address,
    checked_place,
    checked_policy,
    default_place,
)
from controlplane.core.records import DiskRecord, DownstairsRecord, Role, targets
from controlplane.fleet_watcher import FleetWatcher
from controlplane.peers.agent import Agents
from controlplane.peers.downstairs import Fleet
from controlplane.store.base import Store
from stairlib.model.errors import (
    StairwellError,
    UnavailableError,
)


@dataclass(frozen=True, slots=True)
class RegisterWish:
    """What is to be recorded; None leaves a field as it was."""

    address: str
    host: str | None = None
    failure_domain: str | None = None
    reserved_for: str | None = None

    @property
    def says_where(self) -> bool:
        """Whether it says anything but the address."""
        return (self.host, self.failure_domain, self.reserved_for) != (None,) * 3


@dataclass(frozen=True, slots=True)
class PolicyWish:
    """The changes; None leaves a field as it was."""

    automatic: bool | None = None
    grace_seconds: float | None = None
    maintenance: bool | None = None
    at_once_max: int | None = None
    repair_bytes_per_second: int | None = None


@dataclass(frozen=True, slots=True)
class DownstairsView:
    """One downstairs: `disks` are the names of those whose recorded request names it, `drain` the
    one that keeps it out of use."""

    entry: FleetEntry
    disks: tuple[str, ...] = ()
    drain: Drain | None = None


@dataclass(frozen=True, slots=True)
class AgentView:
    """One agent: where it stands, what it says or why it does not, and how many regions were made
    there for replacements that have not ended."""

    place: Place
    facts: AgentFacts | str
    makings: int = 0


class FleetBook:
    """See the module. `changed` is called when the policy or the fleet is not what it was."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        agents: Agents,
        watcher: FleetWatcher,
        *,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._agents = agents
        self._watcher = watcher
        self._changed = changed
        self._policy_lock = asyncio.Lock()

    async def register(self, wish: RegisterWish) -> DownstairsView:
        """Asks the daemon what it is and records it; a member stays a member. Of one that is known
        and away, where it stands may be recorded nevertheless."""
        address = checked_address(wish.address, "address")
        place = await self._place(address, wish)
        known = await self._store.downstairs(address)
        try:
            facts = await self._fleet.region(address, field="address")
            record = DownstairsRecord(
                address=address,
                role=Role.SPARE,
                region_id=facts.region_id,
                geometry=facts.geometry,
                encrypted=facts.encrypted,
            )
        except UnavailableError:
            if known is None or not wish.says_where:
                raise
            record = known
        await self._store.register_downstairs(record, place)
        (view,) = await self._views([each for each in await self._store.fleet()
                                     if each.record.address == address], look=True)  # fmt: skip
        self._changed()
        return view

    async def _place(self, address: str, wish: RegisterWish) -> Place:
        """Where it stands from now on."""
        place = (await self._store.places()).get(address) or default_place(address)
        if wish.host is not None:
            place = replace(place, host=wish.host or default_place(address).host)
        if wish.failure_domain is not None:
            place = replace(place, failure_domain=wish.failure_domain)
        if wish.reserved_for is not None:
            place = replace(place, reserved_for=await self._volume(wish.reserved_for))
        return checked_place(place)

    async def _volume(self, name: str) -> UUID | None:
        return (await self._store.disk(name)).volume_id if name else None

    async def deregister(self, address: str) -> None:
        """Forgets one that nothing uses; StateError (DOWNSTAIRS_IN_USE) for any other."""
        await self._store.deregister_downstairs(checked_address(address, "address"))

    async def listed(self, *, look: bool = False) -> list[DownstairsView]:
        """All that are known; with `look` as they are now."""
        return await self._views(await self._store.fleet(), look=look)

    async def _views(self, entries: list[FleetEntry], *, look: bool) -> list[DownstairsView]:
        if look:
            found = await self._watcher.look(entries)
            entries = [
                replace(each, look=_kept(each, found[each.record.address][0])) for each in entries
            ]
        users = _users(await self._store.list_disks(limit=0))
        drains = await self._store.holding_drains()
        return [
            DownstairsView(
                each,
                tuple(users[each.record.address]),
                next((drain for drain in drains if drain.covers(each.place)), None),
            )
            for each in entries
        ]

    async def register_agent(
        self, address: str, host: str | None, failure_domain: str | None
    ) -> AgentView:
        """Asks an agent what its host has to give and records it."""
        canonical = checked_address(address, "address")
        facts = await self._agents.facts(canonical)
        known = {each.address: each for each in await self._store.agents()}
        place = known.get(canonical) or Place(canonical, facts.host, facts.failure_domain)
        if host is not None:
            place = replace(place, host=host or facts.host)
        if failure_domain is not None:
            place = replace(place, failure_domain=failure_domain)
        await self._store.put_agent(checked_place(place))
        self._changed()
        return AgentView(place, facts)

    async def deregister_agent(self, address: str) -> None:
        """Forgets one; NotFoundError when it is not known."""
        await self._store.forget_agent(checked_address(address, "address"))

    async def agents(self) -> list[AgentView]:
        """All, as they are now."""
        found = await self._store.agents()
        makings = Counter(each.agent for each in await self._store.makings())
        told = await asyncio.gather(*(self._agent_facts(each) for each in found))
        return [
            AgentView(place, facts, makings[place.address])
            for place, facts in zip(found, told, strict=True)
        ]

    async def _agent_facts(self, place: Place) -> AgentFacts | str:
        try:
            return await self._agents.facts(place.address)
        except StairwellError as error:
            return error.message

    async def policy(self) -> tuple[FleetPolicy, list[FaultedMember]]:
        """The policy in force, and the members found faulted."""
        return await self._store.fleet_policy(), await self._store.faulted_members()

    async def set_policy(self, wish: PolicyWish) -> FleetPolicy:
        """The policy with the changes."""
        async with self._policy_lock:
            policy = await self._store.fleet_policy()
            changes = {
                name: value
                for name in PolicyWish.__slots__
                if (value := getattr(wish, name)) is not None
            }
            policy = checked_policy(replace(policy, **changes))
            await self._store.set_fleet_policy(policy)
        self._changed()
        return policy


def _kept(entry: FleetEntry, look: Look) -> Look:
    """The look, with when it last answered before."""
    if look.seen_at is None and entry.look is not None:
        return replace(look, seen_at=entry.look.seen_at)
    return look


def _users(disks: Iterable[DiskRecord]) -> defaultdict[str, list[str]]:
    """The disks that name each address."""
    users: defaultdict[str, list[str]] = defaultdict(list)
    for disk in disks:
        for _path, address, _region in targets(disk.construction):
            if disk.name not in users[address]:
                users[address].append(disk.name)
    return users
