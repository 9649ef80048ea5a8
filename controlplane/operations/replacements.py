"""Replacements that are recorded: find, watch, retry, limit, and read their trace."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from uuid import UUID

from controlplane.core.repair_shares import RepairWish, WishChange
from controlplane.core.replacement import Replacement, State
from controlplane.driver import ReplacementDriver
from controlplane.feed import Feed
from controlplane.operations.paging import bad_token, page_size, position, token
from controlplane.repair_limiter import RepairLimiter
from controlplane.store.base import Store
from controlplane.traces import TraceKeeper
from stairlib.model.errors import FieldViolation, InvalidRequestError, NotFoundError, StateError
from stairwell.telemetry.v1 import trace_service_pb2 as telemetry_pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb

_TRACE_ID_DIGITS = 32


@dataclass(frozen=True, slots=True)
class LimitsSet:
    """What is wanted of a disk's repairs now, whether the machine knows it, and the replacement
    that runs."""

    wish: RepairWish
    told: bool
    running: Replacement | None


class Replacements:
    """See the module."""

    def __init__(
        self,
        store: Store,
        driver: ReplacementDriver,
        traces: TraceKeeper,
        news: Feed[Replacement],
        limiter: RepairLimiter,
    ) -> None:
        self._store = store
        self._driver = driver
        self._traces = traces
        self._news = news
        self._limiter = limiter

    async def get(self, text: str) -> Replacement:
        """By id; with the latest progress while it runs."""
        return await self._find(_id(text))

    async def _find(self, replacement_id: UUID) -> Replacement:
        running = self._driver.running(replacement_id)
        return running or await self._store.replacement(replacement_id)

    async def page(self, disk: str, size: int, page_token: str) -> tuple[list[Replacement], str]:
        """One page of the replacements of a disk (or of all), newest first, and the next token."""
        wanted = page_size(size)
        before = None
        if page_token:
            text = position(page_token)
            if not text.isdecimal():
                raise bad_token()
            before = int(text)
        found = await self._store.list_replacements(disk=disk, before=before, limit=wanted + 1)
        shown = found[:wanted]
        fresh = [self._driver.running(record.id) or record for _, record in shown]
        return fresh, token(str(shown[-1][0])) if len(found) > wanted else ""

    async def watch(self, text: str) -> AsyncGenerator[Replacement, None]:
        """The present record, then each change, until it has ended."""
        replacement_id = _id(text)
        with self._news.subscribe(replacement_id) as news:
            record = await self._find(replacement_id)
            yield record
            if record.state.ended:
                return
            async for changed in news:
                if changed.updated_at < record.updated_at:
                    continue
                record = changed
                yield record
                if record.state.ended:
                    return

    async def retry(self, replacement_id: UUID) -> Replacement:
        """Starts a failed one again where it failed; StateError for any other one."""
        record = await self._find(replacement_id)
        if record.state is not State.FAILED:
            raise StateError(
                f"replacement {record.id} has not failed, it is {record.state}",
                reason="REPLACEMENT_NOT_FAILED",
                replacement=str(record.id),
                state=record.state,
            )
        newest = await self._store.newest_replacement(record.disk_key)
        if newest is None or newest.id != record.id:
            raise StateError(
                f"a later replacement of disk {record.disk!r} took the place of {record.id}",
                reason="REPLACEMENT_SUPERSEDED",
                replacement=str(record.id),
            )
        try:
            disk = await self._store.disk(str(record.volume_id))
        except NotFoundError:
            disk = None
        if disk is None or disk.construction != record.replacement:
            raise StateError(
                f"disk {record.disk!r} is not recorded any more as replacement {record.id} left it",
                reason="REPLACEMENT_SUPERSEDED",
                replacement=str(record.id),
            )
        return await self._driver.retry(record)

    async def retry_text(self, text: str) -> Replacement:
        """The same, by the id as the user wrote it."""
        return await self.retry(_id(text))

    async def set_limits(self, text: str, disk: str, change: WishChange) -> LimitsSet:
        """Bounds the repairs of a disk, or of the disk of a replacement that has not ended."""
        if bool(text) == bool(disk):
            why = "name a replacement or a disk, and not both"
            raise InvalidRequestError(why, (FieldViolation("id", why, "ONE_OF"),))
        record: Replacement | None
        if text:
            record = await self._find(_id(text))
            if record.state.ended:
                raise StateError(
                    f"replacement {record.id} is {record.state}: there is no repair to limit; name"
                    f" the disk, {record.disk!r}, to limit its later ones",
                    reason="REPLACEMENT_ENDED",
                    replacement=str(record.id),
                )
            found = await self._store.disk(str(record.volume_id))
        else:
            found = await self._store.disk(disk)
            record = await self._store.newest_replacement(found.key)
        wish, told = await self._limiter.change(found, change)
        running = self._driver.running(record.id) if record is not None else None
        if running is not None and running.bytes_per_second_max != wish.bytes_per_second_max:
            running = await self._driver.set_limit(running.id, wish.bytes_per_second_max)
        return LimitsSet(wish, told, running)

    def rate_of(self, record: Replacement) -> volume_pb.RepairRate | None:
        """As `RepairLimiter.rate_of`."""
        return self._limiter.rate_of(record)

    async def trace(self, text: str) -> tuple[str, list[telemetry_pb.Span]]:
        """(trace id, spans) by replacement id or trace id."""
        trace_id = text.lower()
        if (
            len(text) != _TRACE_ID_DIGITS
            or await self._store.replacement_of_trace(trace_id) is None
        ):
            trace_id = (await self._find(_id(text))).trace_id
        return trace_id, await self._traces.read(trace_id)


def _id(text: str) -> UUID:
    """The id a user wrote; InvalidRequestError when it is none."""
    try:
        return UUID(text)
    except ValueError:
        why = f"{text!r} is not the id of a replacement, which is a UUID"
        raise InvalidRequestError(why, (FieldViolation("id", why, "BAD_UUID"),)) from None
