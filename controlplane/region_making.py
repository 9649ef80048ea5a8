"""Regions made by agents for replacements that find no spare, and the collection of those that
came to nothing.

A making is recorded before the agent is asked, and the region has the replacement's id: asking
again after a crash is the same wish, and nothing that was made is ever out of sight. Which ones are
collected is decided by the replacements alone: one that is done keeps its region, one that runs or
may be retried keeps it too, and one that never began, or was cancelled, does not.

Whether one may still begin is known to the control plane whose call it is. Others that share the
store wait: a call has so long from its wish to its replacement and no longer, and only long after
that is what it had made collected by anybody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar
from uuid import UUID

from controlplane.breakpoints import Reached, unreached
from controlplane.core.fleet import AgentFacts, Making, Place, default_place
from controlplane.core.placement import Placement, Vacancy, maker
from controlplane.core.records import DownstairsRecord, Role
from controlplane.core.replacement import State
from controlplane.peers.agent import Agents
from controlplane.peers.downstairs import Fleet
from controlplane.store.base import Store
from stairlib.model.errors import NotFoundError, StairwellError, StateError, UnavailableError
from stairlib.telemetry.logs import get_logger
from stairwell.agent.v1 import agent_service_pb2 as pb

_T = TypeVar("_T")

_log = get_logger(__name__)

# From the wish until the region's process answers.
MAKE_SECONDS = 60.0
LOOK_SECONDS = 0.2
# Why a call failed that may have been heard all the same.
_LATE = "DEADLINE_EXCEEDED"
# From the wish until the replacement is recorded: more than a call takes that is not stopped.
CALL_SECONDS = 150.0
# From the wish until another control plane collects what never became a replacement. The difference
# is what the clocks of two hosts may be apart, and what a preflight takes.
OTHERS_SECONDS = 2 * CALL_SECONDS
# Between two attempts to have a region destroyed whose agent did not answer.
COLLECT_SECONDS = 30.0


class RegionMaking:
    """See the module."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        agents: Agents,
        *,
        clock: Callable[[], float] = time.time,
        pace: float = 1.0,
        reached: Reached = unreached,
    ) -> None:
        """`reached` is called with the name of each point at which a crash has to lose nothing."""
        self._store = store
        self._fleet = fleet
        self._agents = agents
        self._clock = clock
        self._pace = pace
        self._reached = reached
        # Made by calls that have not ended: their replacements are not recorded yet. With the time
        # of the wish, once there is one.
        self._under_way: dict[UUID, float | None] = {}
        self._not_before: dict[UUID, float] = {}

    async def choose(self, vacancy: Vacancy, load: Collection[Place]) -> Placement:
        """The agent that fits best, as `made_by`, and what speaks against each of the others."""
        agents = await self._store.agents()
        told = await asyncio.gather(*(self._facts(each) for each in agents))
        return maker(vacancy, zip(agents, told, strict=True), load)

    async def _facts(self, agent: Place) -> AgentFacts | str:
        try:
            return await self._agents.facts(agent.address)
        except StairwellError as error:
            return error.message

    def hold(self, replacement_id: UUID) -> None:
        """What is made under this id is not collected, until `let_go`."""
        self._under_way[replacement_id] = None

    def let_go(self, replacement_id: UUID) -> None:
        """From now on the replacement's record decides."""
        self._under_way.pop(replacement_id, None)

    def require(self, replacement_id: UUID) -> None:
        """StateError (REGION_NOT_MADE) when what was made under this id may be collected by now:
        its replacement must not begin any more. To be asked just before it is recorded."""
        wished = self._under_way.get(replacement_id)
        if wished is not None and self._clock() > wished + CALL_SECONDS:
            raise StateError(
                f"making a region took longer than {CALL_SECONDS:g} s, and others may collect it; "
                "try again",
                reason="REGION_NOT_MADE",
            )

    async def make(self, replacement_id: UUID, agent: str, vacancy: Vacancy) -> None:
        """Has a region made and records it as a spare that is set aside for the volume.

        StateError (REGION_NOT_MADE) when it cannot be; what there is of it is collected.
        """
        assert replacement_id in self._under_way
        making = Making(replacement_id, agent, self._clock())
        self._under_way[replacement_id] = making.created_at
        await self._store.save_making(making)
        self._reached("making:recorded")
        end = self._clock() + MAKE_SECONDS
        try:
            region = await self._made(making, vacancy, end)
            facts = await self._patiently(
                lambda: self._fleet.region(region.address, field="made_by"), end
            )
        except StairwellError as error:
            raise StateError(
                f"the agent at {agent} could not make a region: {error.message}",
                reason="REGION_NOT_MADE",
                agent=agent,
            ) from error
        known = {each.address: each for each in await self._store.agents()}
        where = known.get(agent) or default_place(agent)
        await self._store.register_downstairs(
            DownstairsRecord(
                region.address, Role.SPARE, facts.region_id, None, facts.geometry, facts.encrypted
            ),
            Place(region.address, where.host, where.failure_domain, agent, vacancy.volume_id),
        )

    async def _made(self, making: Making, vacancy: Vacancy, end: float) -> pb.Region:
        """The region once its process answers, however long that takes until `end`."""
        agents, agent, name = self._agents, making.agent, making.replacement_id
        wanted = (vacancy.region.geometry, vacancy.cipher or "")
        region = await self._patiently(
            lambda: agents.create(agent, name, *wanted), end, known=False
        )
        self._reached("making:asked")
        while region.process.state != pb.PROCESS_STATE_RUNNING:
            if region.state == pb.REGION_STATE_FAILED:
                raise StateError(region.reason)
            if self._clock() > end:
                why = region.process.trouble or "it does not answer yet"
                raise UnavailableError(f"{why}, {MAKE_SECONDS:g} s after it was asked for")
            await asyncio.sleep(LOOK_SECONDS)
            region = await self._patiently(lambda: agents.region(agent, name), end)
        await self._store.save_making(
            Making(making.replacement_id, making.agent, making.created_at, region.address)
        )
        return region

    async def _patiently(
        self, ask: Callable[[], Awaitable[_T]], end: float, *, known: bool = True
    ) -> _T:
        """What is answered in the end: a host that starts a process may be too busy to answer in
        time, and whatever is asked here may be asked again, since a region has an id. Of an agent
        that is not `known` to have heard of it, one that cannot be reached is not waited for."""
        while True:
            try:
                return await ask()
            except UnavailableError as error:
                if self._clock() > end or not (known or error.reason == _LATE):
                    raise
                _log.info("asked again", error=error.message)
            await asyncio.sleep(LOOK_SECONDS)

    async def collect(self) -> None:
        """Has regions destroyed that came to nothing, and forgets the makings that are over."""
        now = self._clock()
        for making in await self._store.makings():
            name = making.replacement_id
            if name in self._under_way or now < self._not_before.get(name, 0.0):
                continue
            state = await self._state(name)
            if state is State.DONE:
                await self._store.forget_making(name)
            elif state is State.CANCELLED or (state is None and self._is_over(making, now)):
                await self._collect(making)

    def _is_over(self, making: Making, now: float) -> bool:
        """Whether no call can begin a replacement with it any more."""
        shared = self._store.lease_seconds is not None
        return not shared or now > making.created_at + OTHERS_SECONDS

    async def _state(self, replacement_id: UUID) -> State | None:
        try:
            return (await self._store.replacement(replacement_id)).state
        except NotFoundError:
            return None

    async def _collect(self, making: Making) -> None:
        """Destroys one, unless it is a member after all."""
        name = making.replacement_id
        known = await self._store.downstairs(making.address) if making.address else None
        if known is not None and known.role is Role.MEMBER:
            await self._store.forget_making(name)
            return
        try:
            if known is not None:
                # First: it is not chosen from here on, and who has chosen it is found here.
                await self._store.deregister_downstairs(making.address)
            await self._agents.destroy(making.agent, name)
        except NotFoundError:
            _log.info("no region to collect", agent=making.agent, region=str(name))
        except StairwellError as error:
            _log.warning("a region is not collected yet", agent=making.agent, region=str(name),
                         error=error.message)  # fmt: skip
            self._not_before[name] = self._clock() + COLLECT_SECONDS * self._pace
            return
        await self._store.forget_making(name)
        self._not_before.pop(name, None)
        _log.info("region collected", agent=making.agent, region=str(name))
