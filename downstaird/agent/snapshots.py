"""Carries out what is wanted of one region's snapshots: through its process, or at rest.

Invariants: a region is looked at before anything is done to it, so that doing it again after any
interruption ends the same; what cannot be found out, or did not reach the region, is left for
later; what the region refuses to take has failed, and what it refuses to delete is tried again.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from downstaird.agent.core.intent import Record
from downstaird.agent.core.snapshot_wishes import (
    PENDING,
    Wish,
    WishEvent,
    WishState,
    wish_named,
)
from downstaird.core.snapshot_file import SNAPSHOTS_NAME
from downstaird.launching import Launcher, RegionPlan
from stairlib.model.errors import NotFoundError, StairwellError, UnavailableError
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.rpc.tls import reach
from stairlib.telemetry.logs import get_logger
from stairwell.downstairs.v1 import block_service_pb2 as block_pb
from stairwell.downstairs.v1 import block_service_pb2_grpc as block_grpc
from stairwell.downstairs.v1 import region_service_pb2 as region_pb
from stairwell.downstairs.v1 import region_service_pb2_grpc as region_grpc

_log = get_logger(__name__)

LOOK_SECONDS = 10.0
# A flush of much that was written, behind a checkpoint of as much.
CHANGE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A snapshot that the region has. Bytes: only it has, and in all."""

    name: str
    generation: int
    flush: int
    unique_bytes: int
    total_bytes: int
    damaged: bool


class Region(Protocol):
    """A way to a region's snapshots. StairwellError for what the region refuses, UnavailableError
    where it was not reached or nothing is known of the outcome."""

    async def look(self) -> list[Seen]:
        """All there are, oldest first."""

    async def take(self, name: str) -> None:
        """Durable when it returns."""

    async def delete(self, name: str) -> None:
        """Durable when it returns. NotFoundError."""


class Served:
    """Through the process that serves the region."""

    def __init__(self, launcher: Launcher, plan: RegionPlan) -> None:
        self._address = launcher.address(plan)
        self._tls = launcher.tls

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[Any]:
        peer = await reach(self._address, self._tls) if self._tls is not None else None
        async with open_channel(self._address, tls=peer) as channel:
            with translated(f"the downstairs at {self._address}"):
                yield channel

    async def look(self) -> list[Seen]:
        """As Region says."""
        async with self._channel() as channel:
            stub = region_grpc.RegionServiceStub(channel)
            answer = await stub.ListSnapshots(
                region_pb.ListSnapshotsRequest(), timeout=LOOK_SECONDS
            )
        return [
            Seen(
                each.name,
                each.generation,
                each.flush_number,
                each.unique_bytes,
                each.total_bytes,
                each.damaged,
            )
            for each in answer.snapshots
        ]

    async def take(self, name: str) -> None:
        """By a flush of nothing more: refused while a volume uses the region."""
        async with self._channel() as channel:
            stub = block_grpc.BlockServiceStub(channel)
            await stub.Flush(block_pb.FlushRequest(snapshot=name), timeout=CHANGE_SECONDS)

    async def delete(self, name: str) -> None:
        """Whoever uses the region."""
        async with self._channel() as channel:
            stub = region_grpc.RegionServiceStub(channel)
            await stub.DeleteSnapshot(
                region_pb.DeleteSnapshotRequest(name=name), timeout=CHANGE_SECONDS
            )


class AtRest:
    """By the program, of a region that no process serves."""

    def __init__(self, launcher: Launcher, plan: RegionPlan) -> None:
        self._launcher = launcher
        self._plan = plan

    async def look(self) -> list[Seen]:
        """As Region says."""
        text = await self._launcher.snapshot(self._plan, "list", "--output", "json")
        try:
            return [
                Seen(**{name: each[name] for name in Seen.__slots__}) for each in json.loads(text)
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise UnavailableError(
                f"the program's list of snapshots cannot be read ({type(error).__name__}): is "
                "--ds-bin of this release?",
                reason="SNAPSHOTS_UNKNOWN",
            ) from error

    async def take(self, name: str) -> None:
        """As Region says."""
        await self._launcher.snapshot(self._plan, "create", name)

    async def delete(self, name: str) -> None:
        """As Region says; that there is none is known from having looked."""
        await self._launcher.snapshot(self._plan, "delete", name)


class Ledger(Protocol):
    """Where the region's record is."""

    def record(self, region: UUID) -> Record:
        """As stored last."""

    async def move_snapshot(
        self,
        region: UUID,
        name: str,
        event: WishEvent,
        *,
        flush: tuple[int, int] = (0, 0),
        reason: str = "",
    ) -> None:
        """Store that something happened to a snapshot. StairwellError."""

    def changed(self) -> None:
        """What is told of a region changed."""


class Snapshots:
    """One region's. `troubles`: why what is wanted of a snapshot was not done yet, by name."""

    def __init__(self, region: UUID, ledger: Ledger, directory: Path) -> None:
        self._id = region
        self._ledger = ledger
        self._file = directory / SNAPSHOTS_NAME
        self._seen: list[Seen] | None = None
        self.troubles: dict[str, str] = {}

    @property
    def seen(self) -> Mapping[str, Seen] | None:
        """What the region had when it was last looked at, by name, oldest first; None before."""
        if not self._file.exists():
            # It comes before the first snapshot and stays.
            return {}
        return None if self._seen is None else {each.name: each for each in self._seen}

    @property
    def pending(self) -> list[str]:
        """What there is something to do about."""
        wishes = self._ledger.record(self._id).snapshots
        return [wish.name for wish in wishes if wish.state in PENDING]

    async def look(self, region: Region) -> None:
        """Sees what is there. StairwellError."""
        if not self._file.exists():
            return
        before, self._seen = self._seen, await region.look()
        if before != self._seen:
            self._ledger.changed()

    async def carry_out(self, region: Region) -> None:
        """Looks, and does what can be done now. StairwellError where it could not look, or the
        outcome could not be stored: then it is to be called again."""
        await self.look(region)
        for wish in self._ledger.record(self._id).snapshots:
            if wish.state is WishState.TAKEN and wish.name not in self._there():
                text = "it is gone: somebody deleted it at the region itself"
                await self._moved(wish.name, WishEvent.MISSED, reason=text)
        for name in self.pending:
            # Wished otherwise, or let go, while another one was seen to.
            now = self._wish(name)
            if now is None or now.state not in PENDING:
                continue
            try:
                if now.state is WishState.DELETING:
                    await self._delete(region, name)
                else:
                    await self._take(region, now)
                self.troubles.pop(name, None)
            except StairwellError as error:
                self.troubles[name] = error.message
                _log.warning("snapshot waits", region=str(self._id), name=name, why=error.message)
                self._ledger.changed()
        await self.look(region)

    async def _take(self, region: Region, wish: Wish) -> None:
        found = self._there().get(wish.name)
        if wish.state is WishState.REQUESTED:
            if found is not None:
                text = (
                    f"there is a snapshot {wish.name!r} already, of flush {found.flush} in "
                    f"generation {found.generation}: choose another name, or delete that one"
                )
                await self._moved(wish.name, WishEvent.TAKE_FAILED, reason=text)
                return
            await self._moved(wish.name, WishEvent.TAKE_BEGUN)
            now = self._wish(wish.name)
            if now is None or now.state is not WishState.TAKING:
                return
        if found is None:
            try:
                await region.take(wish.name)
            except UnavailableError:
                raise
            except StairwellError as error:
                await self._moved(wish.name, WishEvent.TAKE_FAILED, reason=error.message)
                return
            await self.look(region)
            found = self._there().get(wish.name)
        if found is None:
            raise UnavailableError("the region did not keep it", reason="SNAPSHOT_UNKNOWN")
        await self._moved(wish.name, WishEvent.TAKE_DONE, flush=(found.generation, found.flush))

    async def _delete(self, region: Region, name: str) -> None:
        if name in self._there():
            with suppress(NotFoundError):
                await region.delete(name)
            self._seen = [each for each in self._seen or () if each.name != name]
        await self._moved(name, WishEvent.DELETE_DONE)

    def _there(self) -> Mapping[str, Seen]:
        return self.seen or {}

    def _wish(self, name: str) -> Wish | None:
        return wish_named(self._ledger.record(self._id).snapshots, name)

    async def _moved(
        self, name: str, event: WishEvent, *, flush: tuple[int, int] = (0, 0), reason: str = ""
    ) -> None:
        if event in (WishEvent.TAKE_FAILED, WishEvent.MISSED):
            _log.error("snapshot failed", region=str(self._id), name=name, reason=reason)
        await self._ledger.move_snapshot(self._id, name, event, flush=flush, reason=reason)
