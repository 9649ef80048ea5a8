"""Replacements that are recorded: find, watch, retry, limit, and read their trace."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import TypeAlias
from uuid import UUID

from controlplane.core.replacement import Replacement, State, Transition
from controlplane.core.replacement_log import last_number
from controlplane.driver import ReplacementDriver
from controlplane.feed import Feed
from controlplane.operations.paging import bad_token, page_size, position, token
from controlplane.store.base import Store
from controlplane.traces import TraceKeeper
from stairlib.model.errors import FieldViolation, InvalidRequestError, NotFoundError, StateError
from stairwell.telemetry.v1 import trace_service_pb2 as telemetry_pb

# A record, and the lines of its log that are new to who watches.
Told: TypeAlias = tuple[Replacement, tuple[Transition, ...]]

# Lines of a log in one message.
TOLD_MAX = 200
# What the store and the wire agree on; far above any network.
LIMIT_MAX = (1 << 63) - 1


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

    async def watch(self, text: str, after: int | None = None) -> AsyncGenerator[Told, None]:
        """The present record, then each change, until it has ended.

        With each comes what was not told yet of its log, of which nothing is left out: what a slow
        watcher missed is read from the store. Told are the lines after number `after`, or all.
        InvalidRequestError when there is no such line.
        """
        replacement_id = _id(text)
        with self._news.subscribe(replacement_id) as news:
            record = await self._find(replacement_id)
            seen = -1 if after is None else after
            if seen > last_number(record):
                raise _no_such_line(seen, last_number(record))
            async for told in self._since(record, seen):
                yield told
            if record.state.ended:
                return
            async for changed in news:
                if _older(changed, record):
                    continue
                seen, record = last_number(record), changed
                async for told in self._since(record, seen):
                    yield told
                if record.state.ended:
                    return

    async def _since(self, record: Replacement, seen: int) -> AsyncGenerator[Told, None]:
        """The record with its log after line `seen`, in pieces that fit into a message."""
        newest = last_number(record)
        if not record.transitions or record.transitions[0].number <= seen + 1:
            yield record, tuple(each for each in record.transitions if each.number > seen)
            return
        while seen < newest:
            page = await self._store.transitions(record.id, seen, TOLD_MAX)
            told = tuple(each for each in page if each.number <= newest)
            if not told:
                break
            yield record, told
            seen = told[-1].number

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
        """(trace id, spans) by the id of a replacement or of a trace, which may be a scrub's.

        NotFoundError when nothing is known by that id.
        """
        trace_id = text.lower()
        is_trace = re.fullmatch(r"[0-9a-f]{32}", trace_id) is not None
        record = await self._store.replacement_of_trace(trace_id) if is_trace else None
        if record is None and is_trace:
            spans = await self._traces.read(trace_id)
            if spans:
                return trace_id, spans
        record = record or await self._find(_id(text))
        if record.state.ended:
            await self._driver.end_trace(record)
        return record.trace_id, await self._traces.read(record.trace_id, record.instance_id)


def _older(news: Replacement, record: Replacement) -> bool:
    """Whether the news were on their way already when the record was read."""
    number, known = last_number(news), last_number(record)
    return number < known or (number == known and news.updated_at < record.updated_at)


def _no_such_line(after: int, newest: int) -> InvalidRequestError:
    why = (
        f"is {after}, and the newest transition has the number {newest}: this is another history;"
        " watch without it"
    )
    return InvalidRequestError(
        f"after_transition {why}", (FieldViolation("after_transition", why, "TOO_LARGE"),)
    )


def _id(text: str) -> UUID:
    """The id a user wrote; InvalidRequestError when it is none."""
    try:
        return UUID(text)
    except ValueError:
        why = f"{text!r} is not the id of a replacement, which is a UUID"
        raise InvalidRequestError(why, (FieldViolation("id", why, "BAD_UUID"),)) from None
