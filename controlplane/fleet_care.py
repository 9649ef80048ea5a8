"""What looks after the fleet, put together: the watcher, the placement of spares, the caretaker."""

from __future__ import annotations

import asyncio

from controlplane import breakpoints
from controlplane.caretaker import Caretaker, DrainView
from controlplane.claims import Claims
from controlplane.detached import Detached
from controlplane.driver import ReplacementDriver
from controlplane.feed import Feed
from controlplane.fleet_watcher import FleetWatcher
from controlplane.operations.drains import Drains
from controlplane.operations.fleet import FleetBook
from controlplane.operations.replacing import Replacing
from controlplane.operations.starting import Starting
from controlplane.peers.agent import Agents
from controlplane.peers.downstairs import Fleet
from controlplane.peers.vmmd import Vmmd
from controlplane.region_making import RegionMaking
from controlplane.store.base import Store
from stairlib.rpc.tls import TlsFiles
from stairlib.telemetry.tracing import Tracing


class FleetCare:
    """`starting`, `book` and `drains` are for the services, `news` is closed before a stop;
    `poke` says that something has changed."""

    def __init__(
        self,
        store: Store,
        claims: Claims,
        vmmd: Vmmd,
        fleet: Fleet,
        driver: ReplacementDriver,
        replacing: Replacing,
        detached: Detached,
        tracing: Tracing,
        *,
        tls: TlsFiles | None = None,
        pace: float = 1.0,
    ) -> None:
        agents = Agents(tracing, tls)
        self.news = Feed[DrainView]()
        self._watcher = FleetWatcher(store, fleet, pace=pace)
        reached = breakpoints.from_environment()
        making = RegionMaking(store, fleet, agents, pace=pace, reached=reached)
        self.starting = Starting(store, self._watcher, making, driver, replacing, detached)
        self._caretaker = Caretaker(
            store, claims, vmmd, driver, self.starting, making, self.news, tracing, pace=pace
        )
        self.poke = self._caretaker.poke
        self.book = FleetBook(store, fleet, agents, self._watcher, changed=self._caretaker.poke)
        self.drains = Drains(store, self._caretaker, self.news)

    def start(self) -> None:
        """From now on the fleet is looked at and taken care of."""
        self._watcher.start()
        self._caretaker.start()

    async def stop(self) -> None:
        """Begins nothing more; what runs goes on."""
        await asyncio.gather(self._caretaker.stop(), self._watcher.stop())
