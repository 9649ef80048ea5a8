"""A clone whose host loses power, at any write and sync: nobody's region yet, or a whole one."""

import asyncio
import random
import uuid

import numpy as np
import pytest

from downstaird.cloning import Cloning, ask_source
from downstaird.config import CreateOptions
from downstaird.core.clone_plan import Expected
from downstaird.core.engine import Ownership
from downstaird.core.region import Region
from downstaird.core.unfinished import UnfinishedDisk
from downstaird.regions import Unfinished, create_region
from downstaird.store.files import FileDisk
from downstaird.store.memory import MemoryDisk
from stairlib.model.context import plain_contexts
from stairlib.model.errors import InvalidRequestError
from stairlib.model.geometry import Geometry
from stairlib.telemetry.tracing import Tracing

GEOMETRY = Geometry(block_size=4096, blocks_per_extent=128, extent_count=6)
OWNER = uuid.UUID(int=5)
CUTS = 25
# For `conftest`: what is durable when does not depend on the loop.
ONE_LOOP = True


class Inline:
    """Runs the lane's work at once: a picture of the disk is then of one moment."""

    def __init__(self, _name):
        pass

    def begin(self, run):
        outcome = asyncio.get_running_loop().create_future()
        try:
            outcome.set_result(run())
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the future's
            outcome.set_exception(error)
        return outcome

    def close(self):
        pass


@pytest.fixture
async def source(serve, tmp_path):
    place = tmp_path / "source"
    create_region(CreateOptions(place, uuid.uuid4(), GEOMETRY, cipher=""))
    region = Region.open(FileDisk(place))
    region.promote(Ownership(OWNER, uuid.uuid4(), 2))
    # Small writes and whole chunks, over one another, in all extents but one.
    rng = np.random.default_rng(1)
    for number, (offset, count) in enumerate([(3, 5), (100, 200), (384, 128), (520, 3), (700, 68)]):
        data = rng.bytes(count * 4096)
        region.write(offset, plain_contexts(data, 4096), data)
        work = region.begin_flush(number + 1, 2)
        work.run()
        region.finish_flush(work, None)
    region.close()
    return await serve(place, read_only=True)


def held(region):
    """Everything that makes a region what it is, but for its id."""
    states = region.extent_states()
    return (
        region.ownership.owner_id,
        region.ownership.generation,
        states.generations.tolist(),
        states.flushes.tolist(),
        states.flags.tolist(),
        [region.digest(extent) for extent in range(GEOMETRY.extent_count)],
        [b"".join(region.read(extent * 128, 128)[1]) for extent in range(GEOMETRY.extent_count)],
    )


@pytest.mark.parametrize("seed", range(4))
async def test_a_power_cut_leaves_a_whole_region_or_none(source, tmp_path, monkeypatch, seed):
    monkeypatch.setattr("downstaird.lane.WorkThread", Inline)
    rng = random.Random(seed)
    tracing = Tracing("clone", "test")
    region_id = uuid.uuid4()
    wanted = held(source.daemon.host.engine)

    async def clone(memory):
        task = await ask_source(source.address, tracing, region_id, Expected())
        disk = UnfinishedDisk(memory)
        engine = Region.open(disk) if disk.begun else Region.create(disk, task.definition)
        unfinished = Unfinished(engine, disk, tmp_path / "marker")
        await asyncio.wait_for(Cloning(task, unfinished, tracing, lambda _: None).run(), 60)

    images = []
    memory = MemoryDisk()

    def picture(_action, _name):
        share = rng.choice([0.0, 0.5, 1.0])
        images.append(memory.image(lambda _file, _sector: rng.random() < share))

    memory.observer = picture
    await clone(memory)
    picture("end", "")
    memory.observer = lambda _action, _name: None
    images.append(memory.image(lambda _file, _sector: False))
    unfinished = 0
    for image in [*rng.sample(images[:-1], min(CUTS, len(images) - 1)), images[-1]]:
        if not image.exists("region.json"):
            unfinished += 1
            with pytest.raises(InvalidRequestError, match="is not a region"):
                Region.open(image)
            await clone(image)
        found = Region.open(image)
        assert held(found) == wanted
        found.close()
    assert unfinished > CUTS // 2
    tracing.shutdown()
