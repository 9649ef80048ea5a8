"""Drains: begin, look, watch, cancel. What moves them is the caretaker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from uuid import uuid4

from controlplane.caretaker import Caretaker, DrainView
from controlplane.core.drain import Drain, State
from controlplane.core.fleet import Place, default_place
from controlplane.core.records import targets
from controlplane.feed import Feed
from controlplane.store.base import Store
from stairlib.model.errors import FieldViolation, InvalidRequestError, NotFoundError, StateError


class Drains:
    """See the module. `news` gets the views of drains, under their ids."""

    def __init__(
        self,
        store: Store,
        caretaker: Caretaker,
        news: Feed[DrainView],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._caretaker = caretaker
        self._news = news
        self._clock = clock

    async def begin(self, target: str, *, validate_only: bool = False) -> DrainView:
        """The drain of a host or an address, new or the one there is; NotFoundError when nothing
        is known there."""
        if not target:
            text = "is needed: a host or an address, as `stairwell fleet list` shows them"
            raise InvalidRequestError(
                f"target {text}", (FieldViolation("target", text, "REQUIRED"),)
            )
        now = self._clock()
        drain = Drain(uuid4(), target, now, now)
        if not any(drain.covers(each) for each in await self._places()):
            raise NotFoundError(
                "downstairs", target,
                f"no downstairs is known at {target}, which must be a host or an address as"
                " `stairwell fleet list` shows them",
            )  # fmt: skip
        if validate_only:
            return await self._caretaker.view(drain)
        drain = await self._store.begin_drain(drain)
        self._caretaker.poke()
        return await self._caretaker.view(drain)

    async def _places(self) -> list[Place]:
        """Where every downstairs stands that is registered, or that a recorded request names."""
        places = {each.record.address: each.place for each in await self._store.fleet()}
        for disk in await self._store.list_disks(limit=0):
            for _path, address, _region in targets(disk.construction):
                places.setdefault(address, default_place(address))
        return list(places.values())

    async def get(self, name: str) -> DrainView:
        """By id, or the newest of a target."""
        return await self._caretaker.view(await self._store.drain(name))

    async def listed(self) -> list[DrainView]:
        """The newest hundred, newest first."""
        found = await self._store.list_drains()
        return list(await asyncio.gather(*(self._caretaker.view(each) for each in found)))

    async def watch(self, name: str) -> AsyncGenerator[DrainView, None]:
        """The present view, then each change, until the drain has ended."""
        drain = await self._store.drain(name)
        with self._news.subscribe(drain.id) as news:
            view = await self.get(str(drain.id))
            yield view
            if view.drain.state is not State.RUNNING:
                return
            async for changed in news:
                if changed == view:
                    continue
                view = changed
                yield view
                if view.drain.state is not State.RUNNING:
                    return

    async def cancel(self, name: str) -> DrainView:
        """Begins nothing more of it, and takes what it emptied into use again."""
        drain = await self._store.drain(name)
        if drain.state is State.CANCELLED:
            return await self._caretaker.view(drain)
        ended = replace(drain, state=State.CANCELLED, updated_at=self._clock())
        if not await self._store.end_drain(ended):
            raise StateError(
                f"the drain of {drain.target} has ended meanwhile; look at it again",
                reason="DRAIN_ENDED",
                drain=str(drain.id),
            )
        view = await self._caretaker.view(ended)
        self._caretaker.tell(view)
        self._caretaker.poke()
        return view
