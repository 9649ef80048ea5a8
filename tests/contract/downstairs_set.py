"""Real downstairs daemons with real regions in this process, for tests of what drives them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from downstaird.config import CreateOptions, RunOptions
from downstaird.daemon import Daemon
from downstaird.faults import FaultPlan
from downstaird.regions import create_region, open_region
from stairlib.model.construction import RegionOptions, RegionSpec
from stairlib.model.geometry import Geometry
from stairlib.rpc.tls import TlsFiles
from stairlib.runtime.addresses import parse_address
from stairlib.telemetry.tracing import Tracing


class DownstairsSet:
    """`count` daemons; each keeps its address and directory over restarts. `read_only` is for the
    daemons started from then on, and for specs; `tls` by number, plain text where there is none.
    `cipher` empty: the regions are not encrypted."""

    def __init__(
        self,
        root: Path,
        geometry: Geometry,
        count: int,
        tls: Sequence[TlsFiles | None] = (),
        cipher: str = "",
    ) -> None:
        self.geometry = geometry
        self.read_only = False
        self.tls = list(tls) or [None] * count
        self.directories = [root / f"region-{number}" for number in range(count)]
        self.ids = [uuid.uuid4() for _ in range(count)]
        self.addresses = ["127.0.0.1:0"] * count
        self.daemons: list[Daemon | None] = [None] * count
        self.faults = [FaultPlan()] * count
        self.tracings: list[Tracing] = []
        for number, directory in enumerate(self.directories):
            create_region(CreateOptions(directory, self.ids[number], geometry, cipher=cipher))

    async def start(self, number: int) -> None:
        tracing = Tracing(f"downstairs-{number}", "test")
        self.tracings.append(tracing)
        options = RunOptions(
            directory=self.directories[number],
            address=parse_address(self.addresses[number]),
            data_port=None,
            advertise="",
            read_only=self.read_only,
            faults=self.faults[number],
            create=None,
            tls=self.tls[number],
        )
        engine = open_region(self.directories[number], read_only=self.read_only)
        daemon = Daemon(engine, options, tracing)
        await daemon.start()
        self.addresses[number] = f"127.0.0.1:{daemon.rpc.port}"
        self.daemons[number] = daemon

    async def start_all(self) -> None:
        for number in range(len(self.directories)):
            await self.start(number)

    async def stop(self, number: int) -> None:
        daemon, self.daemons[number] = self.daemons[number], None
        if daemon is not None:
            await daemon.stop()

    async def restart_all(self, *, read_only: bool) -> None:
        """Every daemon again, in the other mode or the same."""
        self.read_only = read_only
        for number in range(len(self.directories)):
            await self.stop(number)
        await self.start_all()

    async def close(self) -> None:
        for number in range(len(self.daemons)):
            await self.stop(number)
        for tracing in self.tracings:
            tracing.shutdown()

    def spec(self, volume_id: uuid.UUID, generation: int = 1, **more: Any) -> RegionSpec:
        """`more` are fields of the region's options."""
        targets = tuple(self.addresses[:3])
        options = RegionOptions(id=volume_id, targets=targets, read_only=self.read_only, **more)
        return RegionSpec(self.geometry, options, generation)


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits for something that comes without an event of its own."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - it has none
            await asyncio.sleep(0.005)
