"""A real agent and what tests ask of it; everything it started goes away with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.rpc.tls import FLAGS, TlsFiles, reach
from stairwell.agent.v1 import agent_service_pb2 as pb
from stairwell.agent.v1 import agent_service_pb2_grpc as pb_grpc
from tests.integration.cluster import (
    BLOCK_SIZE,
    BLOCKS_PER_EXTENT,
    DEADLINE,
    EXTENT_COUNT,
    LOOK_SECONDS,
    LOOPBACK,
    Program,
)
from tests.ports import free_ports

RUNNING = pb.PROCESS_STATE_RUNNING
CREATED = pb.REGION_STATE_CREATED
DESTROYED = pb.REGION_STATE_DESTROYED
TAKEN = pb.SNAPSHOT_STATE_TAKEN
FAILED_SNAPSHOT = pb.SNAPSHOT_STATE_FAILED
FAILED = pb.REGION_STATE_FAILED


class Agent:
    """`downstaird agent` on a root of its own; `places` regions have ports."""

    def __init__(self, folder: Path, places: int, tls: TlsFiles | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.root = folder / "root"
        first = free_ports(places + 1, step=2)
        self.ports = range(first + 2, first + 2 + 2 * places, 2)
        self._folder = folder
        self._port = first
        self._tls = tls
        self.program = self.another()
        self._channel: grpc.aio.Channel | None = None

    def another(self, *flags: str, port: int = 0) -> Program:
        """An agent on the same root; not yet started."""
        at = port or self._port
        command = [
            "downstaird", "agent", "--root", str(self.root), "--listen", f"{LOOPBACK}:{at}",
            "--ports", f"{self.ports.start}-{self.ports.stop - 1}", "-a", LOOPBACK, *flags,
        ]  # fmt: skip
        if self._tls is not None:
            files = (self._tls.cert, self._tls.key, self._tls.root)
            command += [word for pair in zip(FLAGS, files, strict=True) for word in pair]
        return Program("agent", command, at, self._folder / "agent.log", {}, self._tls)

    async def again(self, *flags: str) -> None:
        """The next agent on the root; the one before must have ended."""
        self.program = self.another(*flags)
        await self.program.start()

    async def call(self, method: str, request: Any) -> Any:
        """One call; failures come back as typed errors."""
        if self._channel is None:
            peer = await reach(self.program.address, self._tls) if self._tls else None
            self._channel = open_channel(self.program.address, tls=peer)
        with translated("the agent"):
            bound = getattr(pb_grpc.AgentServiceStub(self._channel), method)
            return await bound(request, timeout=DEADLINE, wait_for_ready=True)

    async def create(self, region: str = "", extents: int = EXTENT_COUNT, **fields: Any) -> str:
        """Asks for a region; its id."""
        asked = pb.CreateRegionRequest(
            id=region or str(uuid.uuid4()),
            geometry=pb.Geometry(
                block_size=BLOCK_SIZE, extent_size=BLOCKS_PER_EXTENT, extent_count=extents
            ),
            **fields,
        )
        created: pb.CreateRegionResponse = await self.call("CreateRegion", asked)
        return created.region.id

    async def destroy(self, region: str) -> pb.Region:
        """Asks for the end of a region."""
        answer = await self.call("DestroyRegion", pb.DestroyRegionRequest(id=region))
        return answer.region  # type: ignore[no-any-return]

    async def snapshot(self, method: str, region: str, name: str) -> None:
        """Asks for a snapshot, or for the end of one."""
        request = getattr(pb, f"{method}Request")(id=region, name=name)
        await self.call(method, request)

    async def snapshots(
        self, region: str, wanted: Callable[[dict[str, tuple[int, bool, bool]]], object]
    ) -> dict[str, tuple[int, bool, bool]]:
        """Watches until the region's snapshots are as wanted: by name their state, whether they
        were asked for here, and whether the region has them. Of two of a name the agent's own."""

        def told(one: pb.Region) -> dict[str, tuple[int, bool, bool]]:
            return {
                each.name: (each.state, each.asked_here, each.present) for each in one.snapshots
            }

        return told(await self.until_one(region, lambda one: wanted(told(one))))

    async def region(self, region: str) -> pb.Region:
        """One region now."""
        answer = await self.call("GetRegion", pb.GetRegionRequest(id=region))
        return answer.region  # type: ignore[no-any-return]

    async def until(
        self, regions: Iterable[str], wanted: Callable[[pb.Region], object]
    ) -> list[pb.Region]:
        """Watches until each of the regions is as wanted."""
        missing = dict.fromkeys(regions)
        names = list(missing)
        assert self._channel is not None
        with translated("the agent"):
            stub = pb_grpc.AgentServiceStub(self._channel)
            watch = stub.WatchRegions(
                pb.WatchRegionsRequest(), timeout=DEADLINE, wait_for_ready=True
            )
            async for message in watch:
                if message.region.id in missing:
                    missing[message.region.id] = message.region
                found = [missing[name] for name in names]
                if all(each is not None and wanted(each) for each in found):
                    watch.cancel()
                    return found  # type: ignore[return-value]
        raise AssertionError(f"the watch ended: {missing}")

    async def serving(self, *regions: str) -> list[pb.Region]:
        """Returns once each of them serves."""
        return await self.until(regions, lambda region: region.process.state == RUNNING)

    async def gone(self, *regions: str) -> None:
        """Returns once each of them is destroyed, with nothing left of it."""
        for region in regions:
            await self.until_one(region, lambda one: one.state == DESTROYED)
            assert not (self.root / "regions" / region).exists()
            assert not self.processes(region)

    async def until_one(self, region: str, wanted: Callable[[pb.Region], object]) -> pb.Region:
        """The same of one region, whatever its state was before."""
        assert self._channel is not None
        with translated("the agent"):
            stub = pb_grpc.AgentServiceStub(self._channel)
            watch = stub.WatchRegions(
                pb.WatchRegionsRequest(id=region), timeout=DEADLINE, wait_for_ready=True
            )
            async for message in watch:
                if wanted(message.region):
                    watch.cancel()
                    return message.region
        raise AssertionError("the watch ended")

    def processes(self, region: str = "") -> list[int]:
        """The processes that name a region of this root, or any, in their arguments."""
        wanted = os.fsencode(self.root / "regions" / region)
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if entry.name.isdecimal() and any(word.startswith(wanted) for word in words):
                    found.append(int(entry.name))
        return found

    async def close(self) -> None:
        """Ends the agent and all that any agent on the root started."""
        if self._channel is not None:
            await self._channel.close()
        self.program.sweep()
        end = time.monotonic() + DEADLINE
        while pids := self.processes():
            assert time.monotonic() < end, pids
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(LOOK_SECONDS)


@asynccontextmanager
async def agent_on(
    folder: Path, places: int, *, start: bool = True, tls: TlsFiles | None = None
) -> AsyncIterator[Agent]:
    """An agent in a folder."""
    agent = Agent(folder, places, tls)
    try:
        if start:
            await agent.program.start()
        yield agent
    finally:
        await agent.close()
