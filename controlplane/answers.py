"""Requests that are answered once: the same request id gets the same answer again.

Only answers are remembered, not refusals: a request that failed changed nothing and may be sent
again under its id. The same id with another request is an error.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar
from weakref import WeakValueDictionary

from google.protobuf.message import Message

from controlplane.store.base import StoredAnswer, TraceStore
from stairlib.model.errors import FieldViolation, InvalidRequestError

_Answer = TypeVar("_Answer", bound=Message)

REQUEST_ID_MAX = 128


class AnswerBook:
    """The answers to request ids."""

    def __init__(self, store: TraceStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def once(
        self,
        method: str,
        request_id: str,
        request: Message,
        kind: type[_Answer],
        answer: Callable[[], Awaitable[_Answer]],
    ) -> _Answer:
        """The answer given before under this id, or the one `answer` gives now."""
        if not request_id:
            return await answer()
        if len(request_id) > REQUEST_ID_MAX:
            text = f"is longer than {REQUEST_ID_MAX} characters"
            raise InvalidRequestError(
                f"the request id {text}", (FieldViolation("request_id", text, "TOO_LONG"),)
            )
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        async with self._locks.setdefault((method, request_id), asyncio.Lock()):
            known = await self._store.answer(method, request_id)
            if known is None:
                given = await answer()
                stored = StoredAnswer(digest, given.SerializeToString())
                known = await self._store.save_answer(method, request_id, stored, self._clock())
                if known == stored:
                    return given
        if known.digest != digest:
            text = "was used for another request; choose a new one"
            raise InvalidRequestError(
                f"the request id {request_id!r} {text}",
                (FieldViolation("request_id", text, "REQUEST_ID_REUSED"),),
                reason="REQUEST_ID_REUSED",
            )
        return kind.FromString(known.body)
