"""Everything there is, for the overview: looked at once for all who watch, and only while somebody
does.

Each round asks the machines of all disks, so that the next one begins no sooner than a few times as
long as the last one took: a large fleet is looked at less often, not harder. Who watches is told
all once, then what is not as it was told, and what is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from controlplane.console.calls import Calls
from stairlib.model.errors import StairwellError
from stairlib.rpc.access import Caller

ROUND_SECONDS: Final = 1.0
# Of the time that rounds may take: a fifth.
REST: Final = 4.0
REPLACEMENTS_SHOWN: Final = 50
_PAGE: Final = 200
# The lists, and the field that tells one of their rows from the others.
_NAMED_BY: Final = {"disks": "name", "replacements": "id", "downstairs": "address"}


@dataclass(frozen=True, slots=True)
class _Found:
    """One round: what there is, by its name in its list. `away` says why it is not of now."""

    time: float
    away: str = ""
    lists: dict[str, dict[str, Any]] = field(default_factory=dict)

    def since(self, before: _Found) -> dict[str, Any]:
        """What a watcher is told who knows what was found before."""
        told: dict[str, Any] = {"time": self.time, "away": self.away, "whole": not before.time}
        for name in _NAMED_BY:
            now, known = self.lists.get(name, {}), before.lists.get(name, {})
            changed = [row for key, row in now.items() if known.get(key) != row]
            told[name] = {"changed": changed, "gone": [key for key in known if key not in now]}
        return told


class Inventory:
    """`caller` is whom the rounds are made for: the watchers' own roles were asked before."""

    def __init__(self, calls: Calls, caller: Caller) -> None:
        self._calls = calls
        self._caller = caller
        self._latest = _Found(0.0)
        self._changed = asyncio.Condition()
        self._number = 0
        self._watchers = 0
        self._task: asyncio.Task[None] | None = None

    async def watch(self) -> AsyncIterator[dict[str, Any]]:
        """What there is, and after each round what changed."""
        self._watchers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._follow(), name="console inventory")
        seen = 0
        told = _Found(0.0)
        try:
            while True:
                async with self._changed:
                    while self._number <= seen:
                        await self._changed.wait()
                    seen, latest = self._number, self._latest
                yield latest.since(told)
                told = latest
        finally:
            self._watchers -= 1
            if not self._watchers and self._task is not None:
                self._task.cancel()
                self._task = None
                # Nobody is to be told an old one first.
                self._number = 0

    async def _follow(self) -> None:
        while True:
            began = time.monotonic()
            try:
                found = await self._round()
            except StairwellError as error:
                found = replace(self._latest, away=error.message)
            async with self._changed:
                self._latest = found
                self._number += 1
                self._changed.notify_all()
            await asyncio.sleep(max(ROUND_SECONDS, REST * (time.monotonic() - began)))

    async def _round(self) -> _Found:
        disks: list[dict[str, Any]] = []
        token = ""
        while True:
            page = await self._ask("DiskService/ListDisks", pageSize=_PAGE, pageToken=token)
            disks += map(_disk_row, page["disks"])
            token = page["nextPageToken"]
            if not token:
                break
        replacements, downstairs = await asyncio.gather(
            self._ask("ReplacementService/ListReplacements", pageSize=REPLACEMENTS_SHOWN),
            self._ask("FleetService/ListDownstairs"),
        )
        for each in replacements["replacements"]:
            each["transitions"] = []
        rows = {
            "disks": disks,
            "replacements": replacements["replacements"],
            "downstairs": downstairs["downstairs"],
        }
        lists = {name: {row[key]: row for row in rows[name]} for name, key in _NAMED_BY.items()}
        return _Found(time.time(), lists=lists)

    async def _ask(self, name: str, **body: object) -> dict[str, Any]:
        return await self._calls.answer(self._caller, name, body)

    async def stop(self) -> None:
        """Ends the rounds."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None


def _disk_row(disk: dict[str, Any]) -> dict[str, Any]:
    """What the overview shows of a disk: not its request, which may be long."""
    volume = disk.get("volume")
    return {
        "name": disk["name"],
        "instance": disk["instance"],
        "replacementId": disk["replacementId"],
        "state": volume["state"] if volume else "",
        "totalBytes": volume["totalBytes"] if volume else "0",
        "slots": [
            {"slot": slot["slot"], "address": slot["address"], "state": slot["state"],
             "mode": slot["mode"]}
            for region in (volume["regions"] if volume else ())
            for slot in region["slots"]
        ],
    }  # fmt: skip
