"""The user's call that replaces a disk's construction request.

The first three states of a replacement pass here, in the call: every wrong request is answered at
once, and nothing is stored before the request is found good. Then the new request, its replacement
and its first log lines are stored together, and the driver goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from uuid import UUID, uuid4
from weakref import WeakValueDictionary

from controlplane.chronicle import trace_id_of
from controlplane.core import replacement as core
from controlplane.core.placement import Placement
from controlplane.core.preflight import RegionFacts, in_use, judge
from controlplane.core.progress import Progress
from controlplane.core.records import DiskRecord, Role, region_at, targets
from controlplane.core.replace_decision import Begin, RaiseGeneration, Repeat, decide
from controlplane.core.replacement import Replacement, State
from controlplane.detached import Detached
from controlplane.driver import ReplacementDriver
from controlplane.operations.replacements import Replacements
from controlplane.peers.downstairs import Fleet
from controlplane.store.base import Store
from stairlib.model.construction import Construction, RegionOptions
from stairlib.model.construction_diff import ChangedTarget
from stairlib.model.errors import (
    ConflictError,
    FieldViolation,
    InvalidRequestError,
    StairwellError,
)
from stairlib.telemetry.logs import get_logger
from stairlib.telemetry.tracing import Tracing, traceparent

_log = get_logger(__name__)

# What the store says of a request that was judged by what another one has changed since.
_OVERTAKEN = "RECORDED_VCR_CHANGED"


class Result(StrEnum):
    """The answers, in the words of the API."""

    STARTED = "STARTED"
    STARTED_ALREADY = "STARTED_ALREADY"
    COMPLETED_ALREADY = "COMPLETED_ALREADY"
    VCR_MATCHES = "VCR_MATCHES"


@dataclass(frozen=True, slots=True)
class ReplaceWish:
    """A wish to replace. `field` is where the request holds the construction; `asked_by` and
    `placement` are kept with a replacement that was not begun by sending one, and which has the id
    `replacement_id` if it is given."""

    name: str
    id: str
    instance: str
    wanted: Construction
    field: str
    validate_only: bool
    asked_by: str = ""
    placement: Placement | None = None
    replacement_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class ReplaceAnswer:
    """What came of it. `changed` is what a replacement that was only judged would change."""

    result: Result
    replacement: Replacement | None = None
    changed: ChangedTarget | None = None


class Replacing:
    """See the module. Requests for one disk pass one after another."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        driver: ReplacementDriver,
        replacements: Replacements,
        detached: Detached,
        tracing: Tracing,
        *,
        disk_changed: Callable[[UUID], None] = lambda _key: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._driver = driver
        self._replacements = replacements
        self._detached = detached
        self._tracing = tracing
        self._disk_changed = disk_changed
        self._clock = clock
        self._locks: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    async def replace(self, wish: ReplaceWish) -> ReplaceAnswer:
        """The answer; every refusal leaves everything as it was."""
        return await self._detached.run(self._replace(wish))

    async def _replace(self, wish: ReplaceWish) -> ReplaceAnswer:
        disk = await self._find(wish)
        async with self._locks.setdefault(disk.key, asyncio.Lock()):
            try:
                disk = await self._store.disk(str(disk.volume_id))
                return await self._judged(disk, wish)
            except ConflictError as error:
                if error.reason != _OVERTAKEN:
                    raise
            # Another control plane was quicker: what is recorded now decides once more.
            disk = await self._store.disk(str(disk.volume_id))
            return await self._judged(disk, wish)

    async def _find(self, wish: ReplaceWish) -> DiskRecord:
        """The disk of a wish; what names it must agree."""
        if not wish.name and not wish.id:
            raise _unclear("name", "is needed: give the disk's name, or the volume's UUID in id")
        disk = await self._store.disk(wish.name or wish.id)
        if wish.id and wish.name:
            other = await self._store.disk(wish.id)
            if other.key != disk.key:
                raise _unclear("id", f"names disk {other.name!r}, and name says {wish.name!r}")
        if wish.instance and wish.instance not in (disk.instance_name, str(disk.instance_id)):
            raise _unclear(
                "instance", f"disk {disk.name!r} belongs to instance {disk.instance_name!r}"
            )
        return disk

    async def _judged(self, disk: DiskRecord, wish: ReplaceWish) -> ReplaceAnswer:
        with self._step("validate", disk):
            newest = await self._store.newest_replacement(disk.key)
            if newest is not None:
                newest = self._driver.running(newest.id) or newest
            instance = await self._store.instance(str(disk.instance_id))
            decision = decide(
                disk, instance.state, newest, wish.wanted, prefix=wish.field,
                scrubs=await self._store.scrubs(disk.key),
            )  # fmt: skip
        match decision:
            case Repeat(replacement=replacement):
                return await self._repeated(replacement, wish)
            case RaiseGeneration():
                if not wish.validate_only:
                    await self._store.record_construction(disk.key, disk.construction, wish.wanted)
                    self._disk_changed(disk.key)
                return ReplaceAnswer(Result.VCR_MATCHES)
            case Begin(changed=changed):
                return await self._begun(disk, wish, changed)

    async def _repeated(self, replacement: Replacement, wish: ReplaceWish) -> ReplaceAnswer:
        """The answer to a request that led to a replacement before; a failed one goes on."""
        if replacement.state is State.FAILED and not wish.validate_only:
            replacement = await self._replacements.retry(replacement.id)
        done = replacement.state is State.DONE
        return ReplaceAnswer(
            Result.COMPLETED_ALREADY if done else Result.STARTED_ALREADY, replacement
        )

    async def _begun(
        self, disk: DiskRecord, wish: ReplaceWish, changed: ChangedTarget
    ) -> ReplaceAnswer:
        """A new replacement, through its first three states."""
        record = self._draft(disk, wish, changed)
        record, _ = core.step(record, core.Validated(at=self._clock()))
        with self._step("preflight", disk, record):
            region_ids = await self._preflight(disk, wish, changed)
            known = await self._store.downstairs(changed.new)
        if wish.validate_only:
            return ReplaceAnswer(Result.STARTED, changed=changed)
        record, _ = core.step(record, core.Preflighted(at=self._clock()))
        with self._step("record", disk, record):
            record, _ = core.step(record, core.Recorded(at=self._clock()))
            record = replace(record, target_was=known.role.value if known is not None else "")
            lease = await self._store.begin_replacement(record)
        await self._driver.begin_traced(record, lease)
        for address, region_id in region_ids.items():
            await self._store.note_region(address, region_id)
        _log.info(
            "replacement recorded",
            replacement=str(record.id),
            disk=disk.name,
            slot=record.slot,
            old=record.old_target,
            new=record.new_target,
        )
        return ReplaceAnswer(Result.STARTED, record, changed)

    def _draft(self, disk: DiskRecord, wish: ReplaceWish, changed: ChangedTarget) -> Replacement:
        """The replacement before its first step."""
        before = region_at(disk.construction, changed.region_path)
        after = region_at(wish.wanted, changed.region_path)
        now = self._clock()
        identity = wish.replacement_id or uuid4()
        return Replacement(
            id=identity,
            disk_key=disk.key,
            disk=disk.name,
            instance_id=disk.instance_id,
            volume_id=disk.volume_id,
            path=changed.path,
            region_path=changed.region_path,
            slot=changed.slot,
            old_target=changed.old,
            new_target=changed.new,
            from_generation=before.generation,
            to_generation=after.generation,
            original=disk.construction,
            replacement=wish.wanted,
            traceparent=traceparent() or "",
            trace_id=trace_id_of(identity),
            created_at=now,
            updated_at=now,
            progress=Progress(
                bytes_total=after.geometry.total_bytes, extents_total=after.geometry.extent_count
            ),
            asked_by=wish.asked_by,
            placement=wish.placement,
        )

    async def _preflight(
        self, disk: DiskRecord, wish: ReplaceWish, changed: ChangedTarget
    ) -> dict[str, UUID]:
        """Asks the new downstairs what it is; raises unless it fits and is free.

        The answer is the regions found behind the addresses of all members.
        """
        field = f"{wish.field}.{changed.path}"
        region = region_at(wish.wanted, changed.region_path)
        known = await self._store.downstairs(changed.new)
        if known is not None and known.role is Role.MEMBER and not region.options.read_only:
            await self._refuse_member(disk, known.volume_id, changed.new, field)
        siblings = [address for address in region.options.targets if address != changed.new]
        options = region.options
        facts = await self._fleet.region(
            changed.new, field=field, options=options, slot=changed.slot
        )
        answers = await asyncio.gather(*(self._sibling(each, field, options) for each in siblings))
        told = dict(zip(siblings, answers, strict=True))
        known_ids = {
            address: found.region_id if isinstance(found, RegionFacts) else found
            for address, found in told.items()
            if found is not None
        }
        others = {} if region.options.read_only else await self._other_members(disk, wish, changed)
        answered = {
            address: found for address, found in told.items() if isinstance(found, RegionFacts)
        }
        judge(
            target=changed.new,
            field=field,
            region=region,
            facts=facts,
            siblings={**others, **known_ids},
            ciphers={address: found.cipher for address, found in answered.items()},
            key_checks={
                address: found.key_check
                for address, found in answered.items()
                if found.owner_id == facts.owner_id
            },
            siblings_written=any(found.written for found in answered.values()),
        )
        return {**known_ids, changed.new: facts.region_id}

    async def _other_members(
        self, disk: DiskRecord, wish: ReplaceWish, changed: ChangedTarget
    ) -> dict[str, UUID]:
        """The regions known behind the other members of the whole volume.

        One of them under another address is owned by this volume, and would be filled over.
        """
        wanted = {address for _path, address, _region in targets(wish.wanted)} - {changed.new}
        return {
            known.address: known.region_id
            for known in await self._store.list_downstairs()
            if known.role is Role.MEMBER
            and known.volume_id == disk.volume_id
            and known.region_id is not None
            and known.address in wanted
        }

    async def _refuse_member(
        self, disk: DiskRecord, holder: UUID | None, target: str, field: str
    ) -> None:
        """StateError when the target is a member of another recorded disk."""
        if holder is not None and holder != disk.volume_id:
            other = await self._store.disk(str(holder))
            raise in_use(target, field, f"it is a member of disk {other.name!r} (volume {holder})")

    async def _sibling(
        self, address: str, field: str, options: RegionOptions
    ) -> RegionFacts | UUID | None:
        """The region a member serves: its own word, else the id that was known; None when
        neither."""
        try:
            return await self._fleet.region(address, field=field, options=options)
        except StairwellError:
            known = await self._store.downstairs(address)
            return known.region_id if known is not None else None

    @contextmanager
    def _step(
        self, name: str, disk: DiskRecord, record: Replacement | None = None
    ) -> Iterator[None]:
        """The span of a step that passes in the call."""
        attributes = {"volume.id": str(disk.volume_id)}
        if record is not None:
            attributes |= {"replacement.id": str(record.id), "slot": str(record.slot)}
        with self._tracing.tracer.start_as_current_span(
            f"replacement {name}", attributes=attributes
        ):
            yield


def _unclear(field: str, text: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"which disk is meant is not clear: {field} {text}",
        (FieldViolation(field, text, "UNCLEAR_DISK"),),
        reason="UNCLEAR_DISK",
    )
