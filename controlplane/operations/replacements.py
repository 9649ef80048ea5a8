"""Replacements that are recorded: find, watch, pause, cancel, retry, limit; and their traces."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias
from uuid import UUID

from controlplane.core import replacement as core
from controlplane.core.leases import Kind
from controlplane.core.repair_shares import RepairWish, WishChange
from controlplane.core.replacement import Event, Replacement, State, Transition
from controlplane.core.replacement_log import last_number
from controlplane.driver import ReplacementDriver
from controlplane.feed import Feed
from controlplane.repair_limiter import RepairLimiter
from controlplane.store.base import Store
from controlplane.traces import TraceKeeper
from controlplane.words import Body, Words
from stairlib.model.errors import FieldViolation, InvalidRequestError, NotFoundError, StateError
from stairlib.rpc.paging import bad_token, page_size, position, token
from stairwell.telemetry.v1 import trace_service_pb2 as telemetry_pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb

# A record, and the lines of its log that are new to who watches.
Told: TypeAlias = tuple[Replacement, tuple[Transition, ...]]

# Lines of a log in one message.
TOLD_MAX = 200
_SET_LIMIT = "set_limit"
_TELL = "tell"
# What is said of a word that the state does not take; the answer tells the state instead.
_NOT_TAKEN = frozenset({core.IllegalTransitionError.reason, "REPLACEMENT_ENDED"})
# How long the answer to a cancellation waits for what becomes of it.
CANCEL_SECONDS = 5.0
# What to do instead of a word that one takes no more.
_ADVICE = {
    State.DONE: "to go back, replace the slot again",
    State.CANCELLED: "it was undone; ask for a new one",
    State.FAILED: "retry or cancel it",
}
_UNDOING = (State.CANCELLING, State.UNDO)


class CancelOutcome(StrEnum):
    """What became of a cancelled replacement, in the words of the API."""

    UNDONE = "UNDONE"
    FINISHED_FORWARD = "FINISHED_FORWARD"
    REPLACE_AGAIN = "REPLACE_AGAIN"
    PENDING = "PENDING"


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A cancelled replacement as it is now, what became of it, and why."""

    replacement: Replacement
    outcome: CancelOutcome
    reason: str


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
        words: Words,
        traces: TraceKeeper,
        news: Feed[Replacement],
        limiter: RepairLimiter,
    ) -> None:
        self._store = store
        self._words = words
        words.serve(Kind.REPLACEMENT, _SET_LIMIT, self._set_limit_here)
        words.serve(Kind.REPLACEMENT, _TELL, self._tell_here)
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

    async def pause(self, text: str) -> Replacement:
        """Has a running one stand still; one that does already is left so. StateError when it has
        ended or is being cancelled."""
        record = await self.get(text)
        if record.state is State.PAUSED:
            return record
        return await self._tell(record, core.PauseAsked, "paused")

    async def resume(self, text: str) -> Replacement:
        """Has a paused one go on; one that runs is left so. StateError when it has ended."""
        record = await self.get(text)
        if record.state is not State.PAUSED and not record.state.ended:
            return record
        return await self._tell(record, core.ResumeAsked, "resumed")

    async def cancel(self, text: str) -> Cancelled:
        """Undoes it where that is possible, and waits a little to say what becomes of it.

        Asked again, it tells the same. StateError when it is done.
        """
        record = await self.get(text)
        if record.state is State.FAILED:
            record = await self._revive(record, core.CancelAsked)
        elif record.state not in (*_UNDOING, State.CANCELLED):
            record = await self._tell(record, core.CancelAsked, "cancelled")
        try:
            async with asyncio.timeout(CANCEL_SECONDS):
                async with aclosing(self.watch(text)) as records:
                    async for record, _lines in records:
                        if record.state not in _UNDOING:
                            break
        except TimeoutError:
            pass
        return Cancelled(record, _outcome(record), _why(record))

    async def _tell(self, record: Replacement, word: type[Event], done: str) -> Replacement:
        """Says a word to a running replacement; StateError when it takes none such."""
        changed: Replacement | None = None
        key, body = str(record.id), {"word": word.__name__}
        try:
            if await self._words.tell(Kind.REPLACEMENT, key, _TELL, body):
                changed = await self._find(record.id)
        except StateError as error:
            if error.reason not in _NOT_TAKEN:
                raise
        if changed is None:
            record = await self._find(record.id)
            advice = _ADVICE.get(record.state, "watch it")
            raise StateError(
                f"replacement {record.id} is {record.state} and cannot be {done}: {advice}",
                reason="REPLACEMENT_ENDED" if record.state.ended else "REPLACEMENT_CANCELLING",
                replacement=str(record.id),
                state=record.state,
            )
        return changed

    async def _tell_here(self, key: str, body: Body) -> None:
        word = next(each for each in core.EVENTS if each.__name__ == body["word"])
        if await self._driver.tell(UUID(key), word) is None:
            raise StateError(f"replacement {key} is not running", reason="REPLACEMENT_ENDED")

    async def retry(self, replacement_id: UUID) -> Replacement:
        """Starts a failed one again where it failed; StateError for any other one."""
        return await self._revive(await self._find(replacement_id), core.Retried)

    async def _revive(self, record: Replacement, word: type[Event]) -> Replacement:
        """Has a failed one go on; StateError for any other one, and where a later one took its
        place."""
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
        if disk is None or disk.construction != record.recorded:
            raise StateError(
                f"disk {record.disk!r} is not recorded any more as replacement {record.id} left it",
                reason="REPLACEMENT_SUPERSEDED",
                replacement=str(record.id),
            )
        return await self._driver.revive(record, word)

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
        if record is None or record.state.ended:
            return LimitsSet(wish, told, None)
        if record.bytes_per_second_max != wish.bytes_per_second_max:
            # Noted by whoever drives it; one that has ended meanwhile needs it no more.
            body = {"bytes_per_second_max": wish.bytes_per_second_max}
            await self._words.tell(Kind.REPLACEMENT, str(record.id), _SET_LIMIT, body)
        return LimitsSet(wish, told, await self._find(record.id))

    def rate_of(self, record: Replacement) -> volume_pb.RepairRate | None:
        """As `RepairLimiter.rate_of`."""
        return self._limiter.rate_of(record)

    async def _set_limit_here(self, key: str, body: Body) -> None:
        await self._driver.set_limit(UUID(key), body["bytes_per_second_max"])

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


def _outcome(record: Replacement) -> CancelOutcome:
    if record.state in _UNDOING:
        return CancelOutcome.PENDING
    if record.state is State.CANCELLED:
        return CancelOutcome.UNDONE
    return (
        CancelOutcome.REPLACE_AGAIN
        if record.state is State.FAILED
        else CancelOutcome.FINISHED_FORWARD
    )


def _why(record: Replacement) -> str:
    """The reason of the outcome, in a sentence."""
    if record.state in _UNDOING:
        return record.blocked_on or record.last_error or "the machine has not answered yet"
    if record.state is not State.CANCELLED:
        return record.last_error
    return (
        f"{record.old_target} stays slot {record.slot} of {record.disk}; the recorded request and"
        f" its generation {record.from_generation} are as before"
        + (f"; {record.new_target} is not blank any more" if record.touched else "")
    )


def _id(text: str) -> UUID:
    """The id a user wrote; InvalidRequestError when it is none."""
    try:
        return UUID(text)
    except ValueError:
        why = f"{text!r} is not the id of a replacement, which is a UUID"
        raise InvalidRequestError(why, (FieldViolation("id", why, "BAD_UUID"),)) from None
