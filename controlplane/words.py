"""What users say to a task, wherever it runs.

A word about a record (limit this repair, delete that instance) is done by the control plane that
drives the record. Said to another one it is a wish in the store: the driver hears of it, does it,
and answers there. A driver that dies before it answered leaves the wish to the next one, so a word
may be done twice; each has the same effect then. A wish nobody answered in time is taken back.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any
from uuid import uuid4

from controlplane.claims import Claims
from controlplane.core.leases import Kind, LeaseLostError
from controlplane.core.wishes import failure_of, good, read_answer
from controlplane.store.base import LeaseStore, Wish
from stairlib.model.errors import StairwellError, UnavailableError
from stairlib.telemetry.logs import get_logger

_log = get_logger(__name__)

# Beyond the time a dead driver's lease takes to end: the next one has to look and to do it.
PATIENCE_SECONDS = 15.0
# Between looks for what no notice told of.
LOOK_SECONDS = 0.5

Body = dict[str, Any]
Word = Callable[[str, Body], Awaitable[object]]


class Words:
    """See the module. `serve` names what is done here; the words get a record's key and a body."""

    def __init__(self, store: LeaseStore, claims: Claims) -> None:
        self._store = store
        self._claims = claims
        self._served: dict[tuple[Kind, str], Word] = {}
        self._woken = asyncio.Event()
        self._answered: dict[str, asyncio.Event] = {}
        self._doing: dict[str, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None

    def serve(self, kind: Kind, word: str, do: Word) -> None:
        """Names what does a word."""
        self._served[(kind, word)] = do

    def start(self) -> None:
        """Hears wishes from now on, where anybody else could have one."""
        if self._store.lease_seconds is not None:
            self._task = asyncio.create_task(self._run(), name="wishes", context=Context())

    async def stop(self) -> None:
        """Hears no more; what is not answered is the next driver's."""
        tasks = [*self._doing.values(), *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """There is a new wish."""
        self._woken.set()

    def answered(self, wish_id: str) -> None:
        """There is an answer to a wish."""
        if wish_id in self._answered:
            self._answered[wish_id].set()

    async def tell(self, kind: Kind, key: str, word: str, body: Body) -> bool:
        """Has a word done by whoever drives the record; raises what that came to.

        False when nobody drives it any more: it has ended, or is gone.
        """
        if self._claims.epoch(kind, key) is not None:
            await self._served[(kind, word)](key, body)
            return True
        if self._store.lease_seconds is None or not await self._store.is_driven(kind, key):
            return False
        wish = Wish(str(uuid4()), kind, key, word, json.dumps(body))
        arrived = self._answered[wish.id] = asyncio.Event()
        try:
            await self._store.add_wish(wish)
            self._woken.set()
            answer = await self._awaited(wish, arrived)
            answer = await self._store.take_back_wish(wish.id) or answer
        finally:
            del self._answered[wish.id]
        if answer is not None:
            read_answer(answer)
            return True
        if not await self._store.is_driven(kind, key):
            return False
        raise UnavailableError(
            f"the control plane that drives {kind} {key} did not answer in time, and the word was"
            " taken back; look whether it was done all the same, and try again",
            reason="DRIVER_AWAY",
        )

    async def _awaited(self, wish: Wish, arrived: asyncio.Event) -> str | None:
        """The answer; None when none came in time, or none will come."""
        assert self._store.lease_seconds is not None
        loop = asyncio.get_running_loop()
        end = loop.time() + self._store.lease_seconds + PATIENCE_SECONDS
        while loop.time() < end:
            await _either(arrived, LOOK_SECONDS)
            arrived.clear()
            answer = await self._store.wish_answer(wish.id)
            if answer is not None or not await self._store.is_driven(wish.kind, wish.key):
                return answer
        return None

    async def _run(self) -> None:
        while True:
            await _either(self._woken, LOOK_SECONDS)
            self._woken.clear()
            try:
                for wish in await self._store.open_wishes():
                    self._hear(wish)
            except StairwellError as error:
                _log.warning("wishes cannot be read", error=error.message)

    def _hear(self, wish: Wish) -> None:
        """Does a wish in a task of its own, if its record is driven here."""
        mine = self._claims.epoch(wish.kind, wish.key) is not None
        if not mine or wish.id in self._doing:
            return
        task = asyncio.create_task(self._do(wish), name=f"wish {wish.word}", context=Context())
        self._doing[wish.id] = task
        task.add_done_callback(lambda _task: self._doing.pop(wish.id, None))

    async def _do(self, wish: Wish) -> None:
        do = self._served.get((wish.kind, wish.word), _unknown_word)
        try:
            await do(wish.key, json.loads(wish.body))
            answer = good()
        except LeaseLostError:
            return
        except StairwellError as error:
            answer = failure_of(error)
        except Exception as error:  # noqa: BLE001 - the one who waits is told, in general terms
            _log.exception("wish stumbled", word=wish.word, key=wish.key)
            answer = failure_of(StairwellError(f"internal error: {type(error).__name__}"))
        try:
            await self._store.answer_wish(wish, answer)
        except StairwellError as error:
            _log.warning("a wish cannot be answered", error=error.message)


async def _unknown_word(key: str, _body: Body) -> None:
    raise UnavailableError(
        f"the control plane that drives {key} is of another version and does not know this word;"
        " bring all to the same one",
        reason="OTHER_VERSION",
    )


async def _either(event: asyncio.Event, seconds: float) -> None:
    """Returns when the event is set, or after the time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
