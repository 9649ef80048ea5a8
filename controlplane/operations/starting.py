"""The replacement of a member by what is wanted, not by a construction request.

Says which slot is meant, finds a downstairs for it, makes the construction request from the
recorded one, and hands it to the operation that takes requests: from there on there is one way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from uuid import UUID, uuid4
from weakref import WeakValueDictionary

from controlplane.core import replace_intent
from controlplane.core.fleet import FleetEntry, Look, Place, checked_address, default_place
from controlplane.core.placement import (
    Candidate,
    Placement,
    Rejection,
    Vacancy,
    named,
    no_spare,
    place,
)
from controlplane.core.preflight import RegionFacts
from controlplane.core.records import DiskRecord, Role, targets
from controlplane.core.replace_intent import Found, Wish
from controlplane.core.replacement import Replacement
from controlplane.detached import Detached
from controlplane.driver import ReplacementDriver
from controlplane.fleet_watcher import FleetWatcher
from controlplane.operations.replacing import ReplaceAnswer, ReplaceWish, Replacing, Result
from controlplane.region_making import RegionMaking
from controlplane.store.base import Store
from stairlib.model.errors import (
    ConflictError,
    FieldViolation,
    InvalidRequestError,
    StateError,
    UnavailableError,
)

OPERATOR = "operator"
# Spares tried one after another when what was seen of one a moment ago is not true any more.
CHOICES_MAX = 5
# What the preflight says of a downstairs itself: another one may do.
_OF_THE_TARGET = "TARGET_"


@dataclass(frozen=True, slots=True)
class StartAnswer:
    """What came of it. `replacement` is None when it was only judged; `already` when this very
    replacement was there before the call."""

    found: Found
    new_target: str
    to_generation: int
    placement: Placement
    replacement: Replacement | None = None
    already: bool = False


class Starting:
    """See the module."""

    def __init__(
        self,
        store: Store,
        watcher: FleetWatcher,
        making: RegionMaking,
        driver: ReplacementDriver,
        replacing: Replacing,
        detached: Detached,
    ) -> None:
        self._store = store
        self._making = making
        self._watcher = watcher
        self._driver = driver
        self._replacing = replacing
        self._detached = detached
        self._locks: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    async def start(
        self, disk: str, wish: Wish, *, validate_only: bool = False, asked_by: str = OPERATOR
    ) -> StartAnswer:
        """The answer; every refusal leaves everything as it was.

        ConflictError (REPLACEMENT_RUNNING) while another replacement of the disk runs; StateError
        (NO_SPARE) with every candidate and its reason when none fits.
        """
        return await self._detached.run(self._start(disk, wish, validate_only, asked_by))

    async def _start(
        self, name: str, wish: Wish, validate_only: bool, asked_by: str
    ) -> StartAnswer:
        wish = replace(
            wish,
            old_target=wish.old_target and checked_address(wish.old_target, "old_target"),
            new_target=wish.new_target and checked_address(wish.new_target, "new_target"),
        )
        first = await self._store.disk(name)
        async with self._locks.setdefault(first.key, asyncio.Lock()):
            disk = await self._store.disk(str(first.volume_id))
            newest = await self._store.newest_replacement(disk.key)
            if newest is not None:
                newest = self._driver.running(newest.id) or newest
                if disk.construction == newest.replacement and replace_intent.is_same(newest, wish):
                    return await self._again(disk, newest, validate_only)
                if not newest.state.ended:
                    raise replace_intent.running(newest)
            found = replace_intent.locate(disk, wish)
            if wish.new_target:
                return await self._to_named(disk, found, wish.new_target, validate_only, asked_by)
            return await self._to_spare(disk, found, validate_only, asked_by)

    async def _again(
        self, disk: DiskRecord, newest: Replacement, validate_only: bool
    ) -> StartAnswer:
        """The answer to what was asked before; one that has failed goes on."""
        answer = await self._replacing.replace(
            ReplaceWish(str(disk.volume_id), "", "", disk.construction, "vcr", validate_only)
        )
        wish = Wish(newest.slot, region_path=newest.region_path)
        return StartAnswer(
            found=replace(replace_intent.locate(disk, wish), target=newest.old_target),
            new_target=newest.new_target,
            to_generation=newest.to_generation,
            placement=newest.placement or Placement(newest.new_target, named=True),
            replacement=answer.replacement,
            already=True,
        )

    async def _to_named(
        self, disk: DiskRecord, found: Found, target: str, validate_only: bool, asked_by: str
    ) -> StartAnswer:
        if target == found.target:
            text = f"{target} is what is in slot {found.slot} already; name another one, or none"
            raise InvalidRequestError(
                f"new_target {text}",
                (FieldViolation("new_target", text, "NO_DIFFERENCE"),),
                reason="NO_DIFFERENCE",
            )
        entries = {each.record.address: each for each in await self._store.fleet()}
        vacancy = await self._vacancy(disk, found, entries.values())
        where = entries[target].place if target in entries else default_place(target)
        placement = named(vacancy, Candidate(where, Role.SPARE))
        return await self._send(disk, found, placement, validate_only, asked_by)

    async def _to_spare(
        self, disk: DiskRecord, found: Found, validate_only: bool, asked_by: str
    ) -> StartAnswer:
        """By the best spare, or by a region that is made where none fits."""
        replacement_id = uuid4()
        self._making.hold(replacement_id)
        try:
            return await self._tried(disk, found, validate_only, asked_by, replacement_id)
        finally:
            self._making.let_go(replacement_id)

    async def _tried(
        self,
        disk: DiskRecord,
        found: Found,
        validate_only: bool,
        asked_by: str,
        replacement_id: UUID,
    ) -> StartAnswer:
        """Tries the best spare, and the next when that one turns out to be taken or away."""
        refused: dict[str, Rejection] = {}
        made_by = ""
        for _ in range(CHOICES_MAX):
            placement = await self._chosen(disk, found, refused)
            if not placement.chosen and not made_by:
                placement = await self._maker(disk, found, placement)
                made_by = placement.made_by
                if made_by and validate_only:
                    return _answer(found, placement, ReplaceAnswer(Result.STARTED))
                if made_by:
                    await self._make(disk, found, placement, replacement_id)
                    placement = await self._chosen(disk, found, refused)
            if not placement.chosen:
                break
            placement = replace(placement, made_by=made_by)
            self._making.require(replacement_id)
            try:
                return await self._send(
                    disk, found, placement, validate_only, asked_by, replacement_id
                )
            except (StateError, UnavailableError) as error:
                if not error.reason.startswith(_OF_THE_TARGET):
                    raise
                where = (await self._store.places()).get(placement.chosen)
                where = where or default_place(placement.chosen)
                refused[placement.chosen] = Rejection(
                    where.address, where.host, where.failure_domain, error.reason, error.message
                )
        raise no_spare(disk.name, found.region_path, found.slot, placement)

    async def _maker(self, disk: DiskRecord, found: Found, none: Placement) -> Placement:
        """The agent that is to make a region, with what speaks against everything else."""
        entries = await self._store.fleet()
        vacancy = await self._vacancy(disk, found, entries)
        chosen = await self._making.choose(vacancy, await self._load(entries))
        return replace(chosen, rejections=(*none.rejections, *chosen.rejections))

    async def _make(
        self, disk: DiskRecord, found: Found, placement: Placement, replacement_id: UUID
    ) -> None:
        vacancy = await self._vacancy(disk, found, await self._store.fleet())
        try:
            await self._making.make(replacement_id, placement.made_by, vacancy)
        except StateError as error:
            agent = placement.made_by
            failed = Rejection(agent, agent, "", error.reason, error.message)
            rejections = (*placement.rejections, failed)
            raise no_spare(
                disk.name, found.region_path, found.slot, replace(placement, rejections=rejections)
            ) from error

    async def _chosen(
        self, disk: DiskRecord, found: Found, refused: dict[str, Rejection]
    ) -> Placement:
        """The choice among the spares as they are now."""
        entries = await self._store.fleet()
        asked = [each for each in entries if each.record.role is Role.SPARE]
        looks = await self._watcher.look(asked)
        vacancy = await self._vacancy(disk, found, entries)
        candidates = []
        for entry in entries:
            address = entry.record.address
            # Members serve somebody: they are no candidates, and need no reason.
            if address in refused or entry.record.role is Role.MEMBER:
                continue
            candidates.append(_candidate(entry, looks.get(address)))
        placement = place(vacancy, candidates, await self._load(entries))
        rejections = sorted(
            (*placement.rejections, *refused.values()), key=lambda each: each.address
        )
        return replace(placement, rejections=tuple(rejections))

    async def _vacancy(
        self, disk: DiskRecord, found: Found, entries: Iterable[FleetEntry]
    ) -> Vacancy:
        """The slot with what stays around it, as it is now."""
        known = {each.record.address: each for each in entries}
        stay = [each for each in found.region.options.targets if each != found.target]
        looks = await self._watcher.look(known[each] for each in stay if each in known)
        told = [facts for _look, facts in looks.values() if facts is not None]
        drains = await self._store.holding_drains()
        return Vacancy(
            volume_id=disk.volume_id,
            region=found.region,
            leaves=found.target,
            stay=tuple(_place(known, each) for each in stay),
            cipher=told[0].cipher if told else None,
            stored_bytes=max((each.stored_bytes for each in told), default=0),
            drained=frozenset(each.target for each in drains),
        )

    async def _load(self, entries: Iterable[FleetEntry]) -> list[Place]:
        """Where the members of all volumes stand."""
        known = {each.record.address: each for each in entries}
        return [
            _place(known, address)
            for disk in await self._store.list_disks(limit=0)
            for _path, address, _region in targets(disk.construction)
        ]

    async def _send(
        self,
        disk: DiskRecord,
        found: Found,
        placement: Placement,
        validate_only: bool,
        asked_by: str,
        replacement_id: UUID | None = None,
    ) -> StartAnswer:
        """By the way of every construction request."""
        wanted = replace_intent.wanted(disk, found, placement.chosen)
        wish = ReplaceWish(
            name=str(disk.volume_id),
            id="",
            instance="",
            wanted=wanted,
            field="vcr",
            validate_only=validate_only,
            asked_by=asked_by,
            placement=placement,
            replacement_id=replacement_id,
        )
        try:
            answer = await self._replacing.replace(wish)
        except InvalidRequestError as error:
            now = await self._store.disk(str(disk.volume_id))
            if now.construction == disk.construction:
                raise
            raise ConflictError(
                f"the recorded construction request of disk {disk.name!r} was changed meanwhile;"
                " ask again",
                reason="RECORDED_VCR_CHANGED",
                disk=disk.name,
            ) from error
        return _answer(found, placement, answer)


def _candidate(entry: FleetEntry, seen: tuple[Look, RegionFacts | None] | None) -> Candidate:
    """An entry with what was seen of it, if anybody looked."""
    record = entry.record
    if seen is None:
        return Candidate(entry.place, record.role, record.volume_id)
    look, facts = seen
    return Candidate(
        place=entry.place,
        role=record.role,
        volume_id=record.volume_id,
        facts=facts,
        health=look.health,
        trouble=look.trouble,
        free_bytes=look.free_bytes,
    )


def _place(known: dict[str, FleetEntry], address: str) -> Place:
    return known[address].place if address in known else default_place(address)


def _answer(found: Found, placement: Placement, answer: ReplaceAnswer) -> StartAnswer:
    return StartAnswer(
        found=found,
        new_target=placement.chosen,
        to_generation=replace_intent.raised(found),
        placement=placement,
        replacement=answer.replacement,
        already=answer.result in (Result.STARTED_ALREADY, Result.COMPLETED_ALREADY),
    )
