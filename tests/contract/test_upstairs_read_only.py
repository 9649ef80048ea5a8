"""Read-only sets, ownership of blocks and unwritten writes against real daemons in one process."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import uuid

import pytest

from downstaird.cloning import Cloning, ask_source
from downstaird.core.clone_plan import Expected
from downstaird.regions import open_clone
from stairlib.model.errors import UnavailableError
from stairlib.model.geometry import Geometry
from stairlib.telemetry.tracing import Tracing
from tests.contract.downstairs_set import DownstairsSet, until
from tests.contract.guest_calls import one, submit
from vmmd.block.backend import BlockOp, BlockStatus, Request
from vmmd.upstairs.core.repair_limits import RepairLimits
from vmmd.upstairs.core.slot_states import SlotMode, SlotState
from vmmd.upstairs.shell.runner import RegionUpstairs

SIZE = 4096
GEOMETRY = Geometry(SIZE, 64, 8)
BLOCKS = GEOMETRY.block_count


@pytest.fixture
async def daemons(tmp_path):
    found = DownstairsSet(tmp_path, GEOMETRY, 4)
    await found.start_all()
    yield found
    await found.close()


@pytest.fixture
def tracing():
    found = Tracing("machine", "test")
    yield found
    found.shutdown()


@pytest.fixture
async def make(daemons, tracing):
    made = []
    writer = uuid.uuid4()

    def build(generation=1, *, reader=None, stream_only=False):
        spec = daemons.spec(reader or writer, generation)
        upstairs = RegionUpstairs(spec, tracing=tracing, stream_only=stream_only)
        made.append(upstairs)
        return upstairs

    yield build
    for upstairs in made:
        await upstairs.close()


async def fill(make, daemons, *, restart=True) -> bytes:
    """Every block but the last ten is written, flushed, and served read-only from then on."""
    content = random.Random(5).randbytes((BLOCKS - 10) * SIZE)
    upstairs = make()
    await upstairs.activate(timeout_seconds=20)
    done = await one(upstairs, BlockOp.WRITE, 0, BLOCKS - 10, content)
    assert done.status is BlockStatus.OK
    await upstairs.deactivate()
    await upstairs.close()
    if restart:
        await daemons.restart_all(read_only=True)
    return content + bytes(10 * SIZE)


async def check(upstairs, content: bytes) -> None:
    """Reads everything, each time in other pieces."""
    for step in (BLOCKS, 50):
        requests = [
            Request(BlockOp.READ_OWNED, at, at, min(step, BLOCKS - at))
            for at in range(0, BLOCKS, step)
        ]
        found = await submit(upstairs, requests)
        assert {each.status for each in found.values()} == {BlockStatus.OK}
        assert b"".join(found[at.token].data for at in requests) == content
        owned = list(itertools.chain(*(found[at.token].owned.tolist() for at in requests)))
        assert owned == [True] * (BLOCKS - 10) + [False] * 10


def serving(upstairs) -> list[int]:
    return [s.slot for s in upstairs.status().slots if s.state is SlotState.ACTIVE]


def missing_members():
    """Each one, then each two."""
    return [(n,) for n in range(3)] + list(itertools.combinations(range(3), 2))


async def test_a_set_serves_with_any_of_its_members_missing(make, daemons):
    content = await fill(make, daemons)
    for missing in missing_members():
        for number in missing:
            await daemons.stop(number)
        upstairs = make()
        await upstairs.activate(timeout_seconds=20)
        await check(upstairs, content)
        result = await upstairs.verify(read_data=True)
        assert result.equal
        assert set(serving(upstairs)).isdisjoint(missing)
        for number in missing:
            await daemons.start(number)
        await until(lambda up=upstairs: len(serving(up)) == 3)
        await check(upstairs, content)
        await upstairs.deactivate()
        await upstairs.close()


@pytest.mark.parametrize("stream_only", [False, True])
async def test_nothing_can_be_changed(make, daemons, stream_only):
    content = await fill(make, daemons)
    upstairs = make(stream_only=stream_only)
    await upstairs.activate(timeout_seconds=20)
    assert upstairs.info.read_only
    assert not upstairs.info.supports_discard
    assert upstairs.status().read_only
    for op in (BlockOp.WRITE, BlockOp.WRITE_UNWRITTEN, BlockOp.DISCARD):
        data = None if op is BlockOp.DISCARD else bytes(SIZE)
        assert (await one(upstairs, op, 0, 1, data)).status is BlockStatus.READ_ONLY
    assert (await one(upstairs, BlockOp.FLUSH)).status is BlockStatus.OK
    await check(upstairs, content)
    result = await upstairs.verify(read_data=True)
    assert result.equal
    assert result.members_compared == 3
    assert result.blocks_read >= 3 * (BLOCKS - 10)


async def test_a_member_lost_and_back_serves_again(make, daemons):
    content = await fill(make, daemons)
    upstairs = make()
    await upstairs.activate(timeout_seconds=20)
    await until(lambda: len(serving(upstairs)) == 3)
    for number in range(3):
        await daemons.stop(number)
        await check(upstairs, content) if number < 2 else None
    waiting = asyncio.ensure_future(one(upstairs, BlockOp.READ, 0, 8))
    await until(lambda: not serving(upstairs))
    assert not waiting.done()
    await daemons.start(1)
    assert (await waiting).data == content[: 8 * SIZE]
    for number in (0, 2):
        await daemons.start(number)
    await until(lambda: len(serving(upstairs)) == 3)
    await check(upstairs, content)


async def test_several_upstairs_read_the_same_regions(make, daemons):
    content = await fill(make, daemons)
    readers = [make(reader=uuid.uuid4(), generation=number + 1) for number in range(3)]
    for upstairs in readers:
        await upstairs.activate(timeout_seconds=20)
    for upstairs in readers:
        await until(lambda up=upstairs: len(serving(up)) == 3)
        await check(upstairs, content)


async def test_the_mode_of_daemon_and_set_must_agree(make, daemons):
    await fill(make, daemons, restart=False)
    daemons.read_only = True
    upstairs = make()
    with pytest.raises(UnavailableError) as refused:
        await upstairs.activate(timeout_seconds=1)
    assert "asked for read-only, the region has not read-only" in refused.value.message
    await daemons.restart_all(read_only=True)
    await upstairs.activate(timeout_seconds=20)
    daemons.read_only = False
    writer = make(generation=9)
    with pytest.raises(UnavailableError) as refused:
        await writer.activate(timeout_seconds=1)
    assert "asked for not read-only, the region has read-only" in refused.value.message


async def test_a_member_that_missed_a_flush_does_not_serve(make, daemons):
    """One daemon is away while the others are written to; then all are served read-only."""
    await fill(make, daemons, restart=False)
    writer = make(generation=2)
    await writer.activate(timeout_seconds=20)
    await daemons.stop(1)
    await until(lambda: writer.status().slots[1].mode is SlotMode.OFFLINE)
    for number in range(5):
        done = await one(writer, BlockOp.WRITE, number, 1, bytes([number + 1]) * SIZE)
        assert done.status is BlockStatus.OK
    assert (await one(writer, BlockOp.FLUSH)).status is BlockStatus.OK
    await writer.close()
    await daemons.restart_all(read_only=True)
    upstairs = make()
    await upstairs.activate(timeout_seconds=20)
    await until(lambda: "MEMBER_OUTDATED" in upstairs.status().slots[1].last_error)
    for _ in range(20):
        done = await one(upstairs, BlockOp.READ, 0, 5)
        assert done.data == b"".join(bytes([number + 1]) * SIZE for number in range(5))
    assert serving(upstairs) == [0, 2]


async def test_a_member_is_replaced_by_a_clone_and_by_nothing_less(make, daemons, tracing):
    content = await fill(make, daemons)
    upstairs = make()
    await upstairs.activate(timeout_seconds=20)
    await until(lambda: len(serving(upstairs)) == 3)
    # The fourth daemon's region is empty: it is not served from, and the old member stays.
    await upstairs.replace(daemons.addresses[1], daemons.addresses[3])
    await until(lambda: "MEMBER_OUTDATED" in upstairs.status().slots[1].last_error)
    assert upstairs.status().slots[1].departing_address == daemons.addresses[1]
    await check(upstairs, content)
    await daemons.stop(3)
    shutil.rmtree(daemons.directories[3])
    source = daemons.addresses[0]
    task = await ask_source(source, tracing, uuid.uuid4(), Expected())
    unfinished = open_clone(daemons.directories[3], task.definition)
    await Cloning(task, unfinished, tracing, lambda _: None).run()
    await daemons.start(3)
    await until(lambda: len(serving(upstairs)) == 3)
    slot = upstairs.status().slots[1]
    assert (slot.address, slot.departing_address) == (daemons.addresses[3], "")
    for number in range(3):
        await daemons.stop(number)
    await check(upstairs, content)
    result = await upstairs.verify(read_data=True)
    assert result.equal
    assert result.members_compared == 1


async def test_unwritten_writes_fill_what_is_free(make, daemons):
    upstairs = make()
    await upstairs.activate(timeout_seconds=20)
    rng = random.Random(7)
    guest = {block: rng.randbytes(SIZE) for block in (1, 60, 63, 64, 130, 400)}
    batch = [Request(BlockOp.WRITE, ("w", b), b, 1, data) for b, data in guest.items()]
    below = rng.randbytes(450 * SIZE)
    pieces = [
        Request(
            BlockOp.WRITE_UNWRITTEN, at, at, min(100, 450 - at), below[at * SIZE :][: 100 * SIZE]
        )
        for at in range(0, 450, 100)
    ]
    pieces[-1] = pieces[-1]._replace(data=below[400 * SIZE :])
    found = await submit(upstairs, [*pieces[:2], *batch, *pieces[2:]])
    assert {each.status for each in found.values()} == {BlockStatus.OK}
    assert (await one(upstairs, BlockOp.FLUSH)).status is BlockStatus.OK
    wanted = bytearray(below + bytes((BLOCKS - 450) * SIZE))
    for block, data in guest.items():
        wanted[block * SIZE : (block + 1) * SIZE] = data
    done = await one(upstairs, BlockOp.READ_OWNED, 0, BLOCKS)
    assert done.data == wanted
    assert done.owned.tolist() == [True] * 450 + [False] * (BLOCKS - 450)
    result = await upstairs.verify(read_data=True)
    assert result.equal
    assert result.members_compared == 3


async def test_unwritten_writes_beside_a_replacement_leave_the_members_equal(make, daemons):
    upstairs = make()
    await upstairs.activate(timeout_seconds=20)
    rng = random.Random(8)
    content = bytearray(BLOCKS * SIZE)
    for at in range(0, BLOCKS, 3):
        content[at * SIZE : (at + 1) * SIZE] = rng.randbytes(SIZE)
        data = bytes(content[at * SIZE : (at + 1) * SIZE])
        assert (await one(upstairs, BlockOp.WRITE, at, 1, data)).status is BlockStatus.OK
    # A second at least, so that the writes meet the repair.
    upstairs.set_repair_limits(RepairLimits(512 << 10))
    await upstairs.replace(daemons.addresses[2], daemons.addresses[3])
    await until(lambda: upstairs.status().slots[2].state is SlotState.LIVE_REPAIR)
    busy = 0
    for at in range(0, BLOCKS, 16):
        data = rng.randbytes(16 * SIZE)
        async with asyncio.timeout(60):
            while True:
                done = await one(upstairs, BlockOp.WRITE_UNWRITTEN, at, 16, data)
                if done.status is not BlockStatus.BUSY:
                    break
                busy += 1
                await asyncio.sleep(0.01)
        assert done.status is BlockStatus.OK
        for block in range(at, at + 16):
            if block % 3:
                start = (block - at) * SIZE
                content[block * SIZE : (block + 1) * SIZE] = data[start : start + SIZE]
    await until(lambda: len(serving(upstairs)) == 3, 60)
    assert busy
    assert upstairs.status().slots[2].repairs_aborted == 0
    assert (await one(upstairs, BlockOp.READ, 0, BLOCKS)).data == content
    result = await upstairs.verify(read_data=True)
    assert result.equal
    assert result.members_compared == 3
