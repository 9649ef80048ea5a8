"""Begins what is begun unasked: replacements of members that are gone, and the moves of drains.

One task in one control plane, so that the two never count past each other: of several that share a
database one has this duty, by a lease like those of replacements; another one takes it over when it
ends. Each round looks at the store and at the machines, has the core decide, and begins at most one
replacement; what it begins is an ordinary replacement, which the driver carries out. Nothing is
kept here that a crash may not take: since when a member is gone is stored, why one is not replaced
yet is noted for the next one, and what a drain has moved are the replacements that carry its name.

Those who do not have the duty tell their own watchers how drains stand, and change nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, replace
from uuid import UUID

from controlplane.claims import Claims, Driver
from controlplane.core import automation
from controlplane.core import drain as drains
from controlplane.core.automation import DiskSeen
from controlplane.core.drain import Drain, Plan
from controlplane.core.fleet import FaultedMember, FleetPolicy
from controlplane.core.held import Held
from controlplane.core.leases import Kind, Lease, LeaseLostError
from controlplane.core.records import DiskRecord
from controlplane.core.replace_intent import Wish
from controlplane.core.replacement import Replacement
from controlplane.driver import ReplacementDriver
from controlplane.feed import Feed
from controlplane.member_presence import members_seen
from controlplane.operations.starting import Starting
from controlplane.peers.vmmd import GLANCE_SECONDS, Vmmd
from controlplane.region_making import RegionMaking
from controlplane.store.base import Store
from stairlib.model.errors import NotFoundError, StairwellError
from stairlib.telemetry.logs import get_logger
from stairlib.telemetry.tracing import Tracing

_log = get_logger(__name__)

# Its row among the duties.
DUTY = "caretaker"
# Between two rounds, unless something is known to have changed.
ROUND_SECONDS = 5.0
# Before a member that could not be replaced is tried again: a spare may have come meanwhile.
HELD_SECONDS = 15.0
# Machines asked at a time.
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class DrainView:
    """A drain with what it has moved, oldest first, and what is left."""

    drain: Drain
    moves: tuple[Replacement, ...]
    left: tuple[drains.Member, ...]


class Caretaker:
    """See the module. `news` gets the views of drains, under their ids."""

    def __init__(
        self,
        store: Store,
        claims: Claims,
        vmmd: Vmmd,
        driver: ReplacementDriver,
        starting: Starting,
        making: RegionMaking,
        news: Feed[DrainView],
        tracing: Tracing,
        *,
        clock: Callable[[], float] = time.time,
        pace: float = 1.0,
    ) -> None:
        """`pace` scales the waits; tests make it small."""
        self._store = store
        self._vmmd = vmmd
        self._driver = driver
        self._starting = starting
        self._making = making
        self._news = news
        self._tracing = tracing
        self._clock = clock
        self._pace = pace
        self._claims = claims
        self._epoch: int | None = None
        self._held = Held()
        self._noted = ""
        self._told: dict[UUID, DrainView] = {}
        self._due = asyncio.Event()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._task: asyncio.Task[None] | None = None
        claims.serve(Kind.DUTY, Driver(self._take, self._drop))

    async def _take(self, lease: Lease) -> None:
        """Has the duty from now on, and goes on from what the one before has noted."""
        self._noted = await self._store.duty_notes(lease.key)
        self._held = Held.from_notes(self._noted)
        self._epoch = lease.epoch
        _log.info("takes care of the fleet", epoch=lease.epoch)
        self._due.set()

    async def _drop(self, _lease: Lease) -> None:
        """Has it no more; what is under way meets `_require` before it does anything."""
        self._epoch = None

    def _require(self) -> int:
        """The epoch of the duty; LeaseLostError unless it is held now."""
        if self._epoch is None:
            raise LeaseLostError(Kind.DUTY, DUTY)
        self._claims.require(Kind.DUTY, DUTY, self._epoch)
        return self._epoch

    def start(self) -> None:
        """Takes care from now on."""
        self._task = asyncio.create_task(self._run(), name="caretaker", context=Context())

    async def stop(self) -> None:
        """Begins nothing more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def poke(self) -> None:
        """Something has changed: what was refused before may go now."""
        self._held.forget()
        self._due.set()

    async def _run(self) -> None:
        while True:
            try:
                again = await self._round()
            except StairwellError as error:
                _log.warning("a round of the caretaker failed", error=error.message)
                again = False
            except Exception:  # noqa: BLE001 - the next round is due all the same
                _log.exception("a round of the caretaker failed")
                again = False
            if again:
                continue
            try:
                async with asyncio.timeout(ROUND_SECONDS * self._pace):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()

    async def _round(self) -> bool:
        """One look at everything; whether something was begun, so that the next one is due now."""
        await self._making.collect()
        policy = await self._store.fleet_policy()
        running = [
            each
            for each in await self._store.holding_drains()
            if each.state is drains.State.RUNNING
        ]
        if self._epoch is None:
            await self._tell_all(running, policy)
            return False
        begun = await self._replace_gone(policy)
        for each in running:
            begun = await self._empty(each, policy) or begun
        await self._note()
        return begun

    async def _note(self) -> None:
        """Writes down why members are held, for whoever is asked and for the next one."""
        notes = self._held.notes(self._clock())
        if notes != self._noted:
            await self._store.save_duty_notes(DUTY, notes, self._require())
            self._noted = notes

    async def _tell_all(self, running: list[Drain], policy: FleetPolicy) -> None:
        """Tells the watchers here what another control plane has done about drains."""
        ended = set(self._told) - {each.id for each in running}
        for each in [*running, *[await self._store.drain(str(one)) for one in ended]]:
            self.tell(await self.view(each, policy))

    # ----- members that are gone

    async def _replace_gone(self, policy: FleetPolicy) -> bool:
        known = await self._store.faulted_members()
        if not policy.automatic:
            if known:
                self._require()
                await self._store.set_faulted_members([])
            return False
        seen = await self._seen()
        now = self._clock()
        faulted = automation.observe(known, seen, now)
        running = len(await self._store.running_replacements()) if faulted else 0
        decision = automation.decide(faulted, seen, policy, running, self._held.now(now), now)
        if list(decision.faulted) != known:
            self._require()
            await self._store.set_faulted_members(decision.faulted)
        if decision.begin is None:
            return False
        return await self._begin(decision.begin, automation.ASKED_BY)

    async def _seen(self) -> list[DiskSeen]:
        """All disks of instances that are to run, as their machines tell."""
        disks = await self._store.list_disks(limit=0)
        return [each for each in await asyncio.gather(*map(self._look, disks)) if each is not None]

    async def _look(self, disk: DiskRecord) -> DiskSeen | None:
        try:
            instance = await self._store.instance(str(disk.instance_id))
            if instance.state.ended:
                return None
            newest = await self._store.newest_replacement(disk.key)
            last = await self._store.last_asked_by(automation.ASKED_BY, disk.key)
        except NotFoundError:
            return None
        members = None
        async with self._slots:
            try:
                info = await self._vmmd.get_volume_info(
                    disk.instance_id, disk.name, seconds=GLANCE_SECONDS
                )
                members = members_seen(info)
            except StairwellError as error:
                _log.debug("no word of the volume", disk=disk.name, error=error.message)
        return DiskSeen(disk.key, disk.name, members, newest, last)

    # ----- drains

    async def view(self, wanted: Drain, policy: FleetPolicy | None = None) -> DrainView:
        """A drain as it is now."""
        _plan, view = await self._planned(wanted, policy or await self._store.fleet_policy())
        return view

    async def _planned(self, wanted: Drain, policy: FleetPolicy) -> tuple[Plan, DrainView]:
        disks = await self._store.list_disks(limit=0)
        places = await self._store.places()
        moves = tuple(
            self._driver.running(each.id) or each
            for each in await self._store.replacements_asked_by(wanted.asked_by)
        )
        running = await self._store.running_replacements()
        left = drains.members_left(wanted, disks, places)
        left += drains.departing(wanted, running, places)
        held = self._held
        if self._epoch is None:
            held = Held.from_notes(await self._store.duty_notes(DUTY))
        found = drains.plan(
            left, moves, running, drains.recorded(disks), policy, held.now(self._clock())
        )
        shown = () if wanted.state is drains.State.DONE else found.left
        return found, DrainView(wanted, moves, shown)

    async def _empty(self, wanted: Drain, policy: FleetPolicy) -> bool:
        """One step of a drain; whether a replacement was begun."""
        found, view = await self._planned(wanted, policy)
        if found.over:
            self._require()
            done = replace(wanted, state=drains.State.DONE, updated_at=self._clock())
            if await self._store.end_drain(done):
                _log.info("drain is done", drain=str(done.id), target=done.target)
                view = replace(view, drain=done)
        self.tell(view)
        if found.begin is None:
            return False
        return await self._begin(found.begin, wanted.asked_by)

    def tell(self, view: DrainView) -> None:
        """News of a drain, unless it was told so already."""
        if self._told.get(view.drain.id) == view:
            return
        self._told[view.drain.id] = view
        if view.drain.state is not drains.State.RUNNING:
            del self._told[view.drain.id]
        self._news.publish(view.drain.id, view)

    # ----- both

    async def _begin(self, member: FaultedMember | drains.Member, asked_by: str) -> bool:
        """Begins the replacement of a member; a refusal is remembered for a while."""
        key = (member.disk_key, member.region_path, member.slot)
        wish = Wish(member.slot, member.target, member.region_path)
        self._require()
        try:
            with self._tracing.tracer.start_as_current_span(
                "replace a member unasked",
                attributes={"disk": member.disk, "slot": member.slot, "asked_by": asked_by},
            ):
                answer = await self._starting.start(member.disk, wish, asked_by=asked_by)
        except StairwellError as error:
            _log.info("member is not replaced yet", disk=member.disk, slot=member.slot,
                      asked_by=asked_by, error=error.message)  # fmt: skip
            why = " ".join(error.message.split())
            self._held.because(key, why, self._clock() + HELD_SECONDS * self._pace)
            # The reason is to be seen: the next round stores and tells it, and begins another one.
            return True
        assert answer.replacement is not None
        _log.info("member is replaced", disk=member.disk, slot=member.slot, asked_by=asked_by,
                  replacement=str(answer.replacement.id))  # fmt: skip
        return True
