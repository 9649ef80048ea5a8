"""Replacements that are recorded: find, watch, retry, limit, and read their trace."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from uuid import UUID

from controlplane.core.replacement import Replacement, State
from controlplane.driver import ReplacementDriver
from controlplane.feed import Feed
from controlplane.store.base import Store
from controlplane.traces import TraceKeeper
from stairlib.model.errors import FieldViolation, InvalidRequestError, NotFoundError, StateError
from stairlib.rpc.paging import bad_token, page_size, position, token
from stairwell.telemetry.v1 import trace_service_pb2 as telemetry_pb

# What the store and the wire agree on; far above any network.
LIMIT_MAX = (1 << 63) - 1
_TRACE_ID_DIGITS = 32


class Replacements:
    """See the module."""

    def __init__(
        self, store: Store, driver: ReplacementDriver, traces: TraceKeeper, news: Feed[Replacement]
    ) -> None:
        self._store = store
        self._driver = driver
        self._traces = traces
        self._news = news

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

    async def set_limit(self, text: str, bytes_per_second_max: int) -> Replacement:
        """Changes the rate of a running repair; zero means no limit."""
        replacement_id = _id(text)
        if bytes_per_second_max > LIMIT_MAX:
            why = f"is above {LIMIT_MAX}; use 0 for no limit"
            raise InvalidRequestError(
                f"the limit {why}", (FieldViolation("bytes_per_second_max", why, "TOO_LARGE"),)
            )
        await self._find(replacement_id)
        return await self._driver.set_limit(replacement_id, bytes_per_second_max)

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
