"""Asks the control plane for what `top` shows, and follows the replacements that run.

One round a tick: everything there is, then the new samples of the disks in sight. Each running
replacement has a watch of its own, so that none of its transitions is missed. A control plane that
goes away is told as news and asked again; whoever looks on decides when to give up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing

from controlplane.cli.commands.instance import list_disks, list_instances
from controlplane.cli.session import Session
from controlplane.cli.top.model import (
    Away,
    HistoryNews,
    Inventory,
    Model,
    News,
    ReplacementNews,
)
from controlplane.cli.watch import has_ended
from stairlib.model.errors import StairwellError
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import fleet_service_pb2 as fleet_pb
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb
from stairwell.vmmd.v1.volume_service_pb2 import VolumeSample

# Disks whose samples are asked for in one round; the rest show none until they are in sight.
HISTORIES_MAX = 24
SAMPLES_FIRST = 120


class Feed:
    """`tell` gets all news, `in_sight` says which disks' histories are wanted."""

    def __init__(
        self,
        session: Session,
        model: Model,
        tell: Callable[[News], None],
        in_sight: Callable[[], Iterable[str]] | None = None,
    ) -> None:
        self._session = session
        self._model = model
        self._tell = tell
        self._in_sight = in_sight or self._all_disks
        self._watches: dict[str, asyncio.Task[None]] = {}

    async def run(self, interval: float) -> None:
        """Rounds, for ever; a control plane that is away is told and asked again."""
        try:
            while True:
                try:
                    await self.round()
                    self._follow()
                except StairwellError as error:
                    self._tell(Away(time.time(), error.message))
                await asyncio.sleep(interval)
        finally:
            await self.close()

    async def close(self) -> None:
        """Ends the watches."""
        watches, self._watches = list(self._watches.values()), {}
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)

    async def round(self) -> None:
        """One look at everything; StairwellError when the control plane does not answer."""
        instances, disks, downstairs, policy = await asyncio.gather(
            list_instances(self._session),
            list_disks(self._session),
            self._session.call(
                self._session.fleet.ListDownstairs,
                fleet_pb.ListDownstairsRequest(),
                fleet_pb.ListDownstairsResponse,
            ),
            self._session.call(
                self._session.fleet.GetFleetPolicy,
                fleet_pb.GetFleetPolicyRequest(),
                fleet_pb.GetFleetPolicyResponse,
            ),
        )
        self._tell(
            Inventory(
                time.time(), tuple(instances), tuple(disks), tuple(downstairs.downstairs),
                policy.policy, tuple(policy.faulted),
            )
        )  # fmt: skip
        wanted = [name for name in self._in_sight() if any(one.name == name for one in disks)]
        await asyncio.gather(*(self._history(name) for name in wanted[:HISTORIES_MAX]))

    async def replacements(self) -> None:
        """One look at each replacement that runs, for who does not follow them."""
        for name in self._model.running():
            answer = await self._session.call(
                self._session.replacements.GetReplacement,
                replacement_pb.GetReplacementRequest(id=name),
                replacement_pb.GetReplacementResponse,
            )
            self._tell(ReplacementNews(time.time(), answer.replacement))

    def _all_disks(self) -> list[str]:
        return [disk.name for disk in self._model.inventory.disks]

    async def _history(self, name: str) -> None:
        request = disk_pb.GetDiskHistoryRequest(name=name, samples_max=SAMPLES_FIRST)
        newest: VolumeSample | None = self._model.newest_sample(name)
        if newest is not None:
            request.after_time.CopyFrom(newest.end_time)
        try:
            answer = await self._session.call(
                self._session.disks.GetDiskHistory, request, disk_pb.GetDiskHistoryResponse
            )
        except StairwellError:
            # Its machine is away, which the disk's own row says; or it has gone meanwhile.
            return
        self._tell(HistoryNews(name, tuple(answer.samples)))

    def _follow(self) -> None:
        """A watch for each replacement that runs and has none."""
        for name in [name for name, watch in self._watches.items() if watch.done()]:
            del self._watches[name]
        for name in self._model.running():
            if name not in self._watches:
                self._watches[name] = asyncio.create_task(self._watch(name), name=f"watch {name}")

    async def _watch(self, name: str) -> None:
        updates = self._session.watch(
            self._session.replacements.WatchReplacement,
            replacement_pb.WatchReplacementRequest(id=name),
            replacement_pb.WatchReplacementResponse,
            until=lambda update: has_ended(update.replacement),
            on_away=lambda _error: None,
        )
        try:
            async with aclosing(updates) as messages:
                async for update in messages:
                    self._tell(
                        ReplacementNews(time.time(), update.replacement, tuple(update.transitions))
                    )
        except StairwellError:
            # The next round follows it again if it still runs.
            return
