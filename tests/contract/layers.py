"""Region sets of real daemons in this process, and volumes over them, for tests of whole trees."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from pathlib import Path

from stairlib.model.construction import Construction, RegionSpec, VolumeSpec
from stairlib.model.geometry import Geometry
from stairlib.telemetry.tracing import Tracing
from tests.contract.downstairs_set import DownstairsSet
from tests.contract.guest_calls import submit
from vmmd.block.backend import Backend, BlockOp, BlockStatus, Completion, Request
from vmmd.block.volume import Volume, VolumeStatus

SIZE = 512
SECONDS = 30.0


async def ask(backend: Backend, *requests: Request) -> dict[object, Completion]:
    """{token: completion}; data is copied."""
    return await submit(backend, requests)


async def write(
    backend: Backend, offset: int, *values: int, op: BlockOp = BlockOp.WRITE
) -> BlockStatus:
    """Blocks filled with these values."""
    data = b"".join(bytes([value]) * SIZE for value in values)
    return (await ask(backend, Request(op, "w", offset, len(values), data)))["w"].status


async def read(backend: Backend, offset: int, length: int) -> list[int]:
    """The first byte of each block; every block must be of one value."""
    done = (await ask(backend, Request(BlockOp.READ, "r", offset, length)))["r"]
    assert done.status is BlockStatus.OK, done.status
    assert done.data is not None
    rows = [bytes(done.data[at : at + SIZE]) for at in range(0, len(done.data), SIZE)]
    assert all(row == row[:1] * SIZE for row in rows)
    return [row[0] for row in rows]


async def flush(backend: Backend) -> BlockStatus:
    """The status of a flush."""
    return (await ask(backend, Request(BlockOp.FLUSH, "f")))["f"].status


class Layers:
    """Makes region sets and volumes; closes all of them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._sets: dict[uuid.UUID, DownstairsSet] = {}
        self._generations: dict[uuid.UUID, int] = {}
        self._volumes: list[Volume] = []
        self.tracing = Tracing("machine", "test")

    async def region(
        self, blocks: int, values: dict[int, int] | None = None, *, daemons: int = 3
    ) -> RegionSpec:
        """A region set of `blocks` blocks in extents of eight; `values` are written and flushed."""
        identity = uuid.uuid4()
        folder = self._root / str(len(self._sets))
        made = DownstairsSet(folder, Geometry(SIZE, 8, blocks // 8), daemons)
        self._sets[identity] = made
        await made.start_all()
        spec = made.spec(identity)
        if values:
            volume = await self.active(spec)
            for at, value in values.items():
                assert await write(volume, at, value) is BlockStatus.OK
            await volume.deactivate()
        return spec

    def daemons(self, region: RegionSpec) -> DownstairsSet:
        """The daemons of a region."""
        return self._sets[region.options.id]

    def renewed(self, node: Construction) -> Construction:
        """The same with a generation of its own for every region: a region serves the newest."""
        match node:
            case RegionSpec(geometry, options, _generation):
                following = self._generations.get(options.id, 0) + 1
                self._generations[options.id] = following
                return RegionSpec(geometry, options, following)
            case VolumeSpec(identity, size, subs, parent):
                return VolumeSpec(
                    identity,
                    size,
                    tuple(self.renewed(sub) for sub in subs),
                    None if parent is None else self.renewed(parent),
                )
            case _:
                return node

    async def active(self, node: Construction) -> Volume:
        """A volume over the tree, active."""
        volume = await Volume.open(self.renewed(node), tracing=self.tracing)
        self._volumes.append(volume)
        await volume.activate(timeout_seconds=SECONDS)
        return volume

    async def again(self, volume: Volume, node: Construction) -> Volume:
        """Lets the volume go, then makes one anew over the tree."""
        await volume.deactivate()
        await volume.close()
        return await self.active(node)

    async def close(self) -> None:
        """Everything goes."""
        for volume in self._volumes:
            await volume.close()
        for daemons in self._sets.values():
            await daemons.close()
        self.tracing.shutdown()


def over(*subs: Construction, parent: Construction | None = None) -> VolumeSpec:
    """A volume of sub-volumes, perhaps over a parent."""
    return VolumeSpec(uuid.uuid4(), SIZE, subs, parent)


async def seen(volume: Volume, wanted: Callable[[VolumeStatus], object]) -> VolumeStatus:
    """The first status of the volume that is wanted."""
    async with asyncio.timeout(SECONDS):
        async for status in volume.watch():
            if wanted(status):
                return status
    raise AssertionError("the volume was closed")
