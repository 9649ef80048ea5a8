"""The configurations of the daemons behind the control plane: vmmd's, and those of the fleet."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from controlplane.fleet_watcher import member_options
from controlplane.peers.agent import Agents
from controlplane.peers.downstairs import Fleet
from controlplane.peers.vmmd import Vmmd
from controlplane.store.base import Store
from stairlib.telemetry.configuration_service import ASK_SECONDS, ask, silent, told
from stairwell.telemetry.v1 import configuration_service_pb2 as pb

# Questions under way at a time: each is a new connection.
AT_ONCE = 32
_LATE = "there was no time left to ask it"


class Configurations:
    """Asks for them; nothing is kept."""

    def __init__(self, store: Store, vmmd: Vmmd, fleet: Fleet, agents: Agents) -> None:
        self._store = store
        self._vmmd = vmmd
        self._fleet = fleet
        self._agents = agents

    async def behind(self, seconds: float) -> list[pb.DaemonConfiguration]:
        """vmmd first, then all known downstairs and agents by address, within `seconds`; of those
        that do not answer, why."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(
            service: str,
            address: str,
            asked: Callable[[float], Awaitable[pb.DaemonConfiguration]],
        ) -> pb.DaemonConfiguration:
            async with slots:
                left = min(ASK_SECONDS, ends - loop.time())
                if left <= 0:
                    return silent(service, address, _LATE)
                return await told(service, address, asked(left))

        options = member_options(await self._store.list_disks(limit=0))
        downstairs = sorted(each.record.address for each in await self._store.fleet())
        agents = sorted(each.address for each in await self._store.agents())
        return await asyncio.gather(
            one("vmmd", self._vmmd.address, self._of_vmmd),
            *(
                one("downstairs", each, partial(self._fleet.configuration, each, options.get(each)))
                for each in downstairs
            ),
            *(one("agent", each, partial(self._agents.configuration, each)) for each in agents),
        )

    async def _of_vmmd(self, seconds: float) -> pb.DaemonConfiguration:
        ((peer, channel),) = self._vmmd.channels()
        return await ask(channel, peer, seconds)
