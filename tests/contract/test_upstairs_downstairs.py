"""The upstairs against real daemons in one process: the guest's view, loss and return of a member,
replacement under load, takeover, typed refusals, both kinds of transport."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import uuid

import pytest

from stairlib.model.errors import StairwellError, StateError, UnavailableError
from stairlib.model.geometry import Geometry
from stairlib.telemetry.tracing import Tracing
from tests.contract.downstairs_set import DownstairsSet, until
from tests.contract.guest_calls import all_active, flush, one, read, write
from vmmd.block.backend import BlockOp, BlockStatus
from vmmd.upstairs.core.events import ReplaceResult
from vmmd.upstairs.core.slot_states import SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState
from vmmd.upstairs.shell.runner import RegionUpstairs

GEOMETRY = Geometry(4096, 64, 8)


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
    volume_id = uuid.uuid4()

    def build(generation=1, *, stream_only=False, two_after=0.0, **changes):
        spec = daemons.spec(volume_id, generation)
        if changes:
            spec = dataclasses.replace(spec, **changes)
        upstairs = RegionUpstairs(
            spec, tracing=tracing, stream_only=stream_only, activate_with_two_after=two_after
        )
        made.append(upstairs)
        return upstairs

    yield build
    for upstairs in made:
        await upstairs.close()


@pytest.mark.parametrize("stream_only", [False, True])
async def test_what_is_written_is_read_back(make, stream_only):
    upstairs = make(stream_only=stream_only)
    await upstairs.activate(timeout_seconds=10)
    data = random.Random(1).randbytes(5 * 4096)
    await write(upstairs, 62, data)
    assert await read(upstairs, 60, 8) == bytes(2 * 4096) + data + bytes(4096)
    large = random.Random(2).randbytes(300 * 4096) * 4
    big = large[: 500 * 4096]
    await write(upstairs, 3, big)
    assert await read(upstairs, 3, 500) == big
    done = await one(upstairs, BlockOp.DISCARD, 3, 2)
    assert done.status is BlockStatus.OK
    assert await read(upstairs, 3, 2) == bytes(2 * 4096)
    await flush(upstairs)
    done = await one(upstairs, BlockOp.READ, 511, 2)
    assert done.status is BlockStatus.OUT_OF_RANGE
    result = await upstairs.verify(read_data=True)
    assert result.equal
    assert result.members_compared == 3
    assert result.blocks_read > 0
    await upstairs.deactivate()
    assert upstairs.status().state is UpstairsState.INITIALIZING


async def test_a_newer_upstairs_finds_the_data_and_fences_the_older(make):
    older = make(1)
    await older.activate(timeout_seconds=10)
    data = random.Random(3).randbytes(4096)
    await write(older, 7, data)
    await flush(older)
    newer = make(2)
    await newer.activate(timeout_seconds=10)
    assert await read(newer, 7, 1) == data
    await until(lambda: older.status().state is UpstairsState.DISABLED)
    assert "taken over" in older.status().reason
    assert (await one(older, BlockOp.READ, 7, 1)).status is BlockStatus.ABORTED


async def test_a_generation_that_was_used_is_refused_with_the_required_one(make):
    first = make(5)
    await first.activate(timeout_seconds=10)
    await write(first, 0, bytes(4096))
    await flush(first)
    await first.deactivate()
    with pytest.raises(StateError) as refused:
        await make(5).activate(timeout_seconds=10)
    assert refused.value.reason == "GENERATION_TOO_LOW"
    assert "6" in refused.value.message


async def test_another_geometry_is_named_while_activation_waits(make):
    upstairs = make(geometry=Geometry(4096, 64, 9))
    with pytest.raises(UnavailableError) as pending:
        await upstairs.activate(timeout_seconds=0.7)
    assert "9 extents" in pending.value.message
    assert upstairs.status().state is UpstairsState.GO_ACTIVE
    await upstairs.deactivate()


async def test_a_member_that_was_away_is_sent_what_it_missed(make, daemons):
    upstairs = make()
    await upstairs.activate(timeout_seconds=10)
    await write(upstairs, 0, random.Random(4).randbytes(4096))
    await flush(upstairs)
    await daemons.stop(1)
    await until(lambda: upstairs.status().slots[1].state is not SlotState.ACTIVE)
    data = random.Random(5).randbytes(4 * 4096)
    await write(upstairs, 10, data)
    await flush(upstairs)
    await daemons.start(1)
    await until(lambda: all_active(upstairs))
    await flush(upstairs)
    result = await upstairs.verify(read_data=True)
    assert result.equal
    assert result.members_compared == 3
    assert upstairs.status().slots[1].repairs_completed == 0


async def test_a_member_is_replaced_under_load(make, daemons):
    upstairs = make()
    await upstairs.activate(timeout_seconds=10)
    rng = random.Random(6)
    blocks = [bytes(4096)] * GEOMETRY.block_count
    for at in range(0, GEOMETRY.block_count, 32):
        data = rng.randbytes(32 * 4096)
        await write(upstairs, at, data)
        blocks[at : at + 32] = [data[i * 4096 : (i + 1) * 4096] for i in range(32)]
    await flush(upstairs)
    stop = asyncio.Event()

    async def load() -> int:
        rounds = 0
        while not stop.is_set() or rounds < 20:
            at = rng.randrange(GEOMETRY.block_count)
            data = rng.randbytes(4096)
            await write(upstairs, at, data)
            blocks[at] = data
            other = rng.randrange(GEOMETRY.block_count)
            assert await read(upstairs, other, 1) == blocks[other]
            if rounds % 10 == 0:
                await flush(upstairs)
            rounds += 1
        return rounds

    loading = asyncio.create_task(load())
    old, new = daemons.addresses[2], daemons.addresses[3]
    outcome = await upstairs.replace(old, new, "replacement-1")
    assert (outcome.result, outcome.slot) == (ReplaceResult.STARTED, 2)
    again = await upstairs.replace(old, new, "replacement-1")
    assert again.result is ReplaceResult.STARTED_ALREADY
    seen = []
    async with asyncio.timeout(30):
        async for status in upstairs.watch():
            seen.append(status)
            if all_active(upstairs):
                break
    stop.set()
    assert await loading >= 20
    assert (await upstairs.replace(old, new)).result is ReplaceResult.COMPLETED_ALREADY
    missing = await upstairs.replace("127.0.0.1:1", "127.0.0.1:2")
    assert missing.result is ReplaceResult.MISSING
    with pytest.raises(StateError, match="not in use"):
        await upstairs.replace(new, daemons.addresses[0])
    result = await upstairs.verify(read_data=True)
    assert result.equal
    assert result.members_compared == 3
    # The new member alone gives everything back.
    await daemons.stop(0)
    await daemons.stop(1)
    await until(lambda: [s.state for s in upstairs.status().slots].count(SlotState.ACTIVE) == 1)
    for at in range(0, GEOMETRY.block_count, 64):
        assert await read(upstairs, at, 64) == b"".join(blocks[at : at + 64])


async def test_the_repair_belongs_to_the_trace_of_the_request(make, daemons, tracing):
    upstairs = make()
    await upstairs.activate(timeout_seconds=10)
    await write(upstairs, 0, random.Random(7).randbytes(64 * 4096))
    await flush(upstairs)
    with tracing.tracer.start_as_current_span("request") as span:
        trace_id = f"{span.get_span_context().trace_id:032x}"
        await upstairs.replace(daemons.addresses[0], daemons.addresses[3], "r")
    await until(lambda: all_active(upstairs))
    await until(lambda: "upstairs.live_repair" in {s.name for s in tracing.spans(trace_id)})
    assert "upstairs.replace" in {s.name for s in tracing.spans(trace_id)}
    target = daemons.daemons[3].host.tracing
    assert "repair.copy_extent" in {s.name for s in target.spans(trace_id)}


async def test_a_third_member_away_does_not_block_a_replacement(make, daemons):
    upstairs = make()
    await upstairs.activate(timeout_seconds=10)
    data = random.Random(8).randbytes(64 * 4096)
    await write(upstairs, 100, data)
    await flush(upstairs)
    await daemons.stop(0)
    await until(lambda: upstairs.status().slots[0].state is not SlotState.ACTIVE)
    outcome = await upstairs.replace(daemons.addresses[2], daemons.addresses[3])
    assert outcome.result is ReplaceResult.STARTED
    await until(
        lambda: (
            upstairs.status().slots[2].state is SlotState.ACTIVE
            and not upstairs.status().slots[2].departing_address
        )
    )
    await daemons.start(0)
    await until(lambda: all_active(upstairs))
    assert (await upstairs.verify(read_data=True)).equal
    assert await read(upstairs, 100, 64) == data


async def test_a_member_swapped_for_an_unreachable_one_can_be_rescued(make, daemons):
    await daemons.stop(1)
    upstairs = make()
    with pytest.raises(UnavailableError, match="slot 1"):
        await upstairs.activate(timeout_seconds=0.5)
    waiting = asyncio.create_task(upstairs.activate())
    await asyncio.sleep(0)
    outcome = await upstairs.replace(daemons.addresses[1], daemons.addresses[3])
    assert outcome.result is ReplaceResult.STARTED
    async with asyncio.timeout(20):
        await waiting
    await write(upstairs, 1, bytes(4096))
    await flush(upstairs)


async def test_deactivation_ends_with_a_member_away(make, daemons):
    upstairs = make()
    await upstairs.activate(timeout_seconds=10)
    await daemons.stop(0)
    await until(lambda: upstairs.status().slots[0].state is not SlotState.ACTIVE)
    await write(upstairs, 1, bytes(4096))
    async with asyncio.timeout(15):
        await upstairs.deactivate()


@pytest.mark.parametrize("before", [False, True])
async def test_a_mistake_in_the_core_ends_the_volume_and_nothing_else(make, monkeypatch, before):
    """Planted before or after the core has taken the requests."""
    upstairs = make()
    await upstairs.activate(timeout_seconds=10)
    data = random.Random(6).randbytes(4096)
    await write(upstairs, 0, data)
    await flush(upstairs)
    core = upstairs._core
    name = "submit" if before else "pump"

    def broken(*_):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(core._guest, name, broken)
    done = await asyncio.gather(*(one(upstairs, BlockOp.READ, 0, 1) for _ in range(3)))
    assert [completion.status for completion in done] == [BlockStatus.ABORTED] * 3
    assert upstairs.status().state is UpstairsState.DISABLED
    assert "ZeroDivisionError" in upstairs.status().reason
    assert "higher generation" in upstairs.status().reason
    monkeypatch.undo()
    await upstairs.activate(2, timeout_seconds=10)
    assert await read(upstairs, 0, 1) == data
    await write(upstairs, 1, data)
    await flush(upstairs)
    assert (await upstairs.verify()).equal


async def test_a_mistake_while_something_is_asked_is_the_answer(make, monkeypatch):
    upstairs = make()
    await upstairs.activate(timeout_seconds=10)

    def broken(*_):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("vmmd.upstairs.core.upstairs.decide", broken)
    with pytest.raises(StairwellError, match="mistake") as caught:
        await upstairs.replace("127.0.0.1:1", "127.0.0.1:2")
    assert caught.value.reason == "INTERNAL"
    assert upstairs.status().state is UpstairsState.DISABLED


def flip(path, content):
    """Flips a bit of that content on the medium."""
    at = path.read_bytes().index(content)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([content[0] ^ 4]))


async def test_a_block_that_rots_on_one_medium_is_written_again(make, daemons):
    upstairs = make()
    await upstairs.activate(timeout_seconds=10)
    data = random.Random(9).randbytes(64 * 4096)
    await write(upstairs, 64, data)
    await flush(upstairs)
    medium = daemons.directories[1] / "data"
    for block in (5, 6, 40):
        flip(medium, data[block * 4096 : (block + 1) * 4096])
    before = await upstairs.verify(read_data=True)
    assert before.bad_blocks == 3
    while upstairs.status().blocks_healed < 3:
        # At once, so that every member has some.
        found = await asyncio.gather(*(read(upstairs, 64, 64) for _ in range(6)))
        assert set(found) == {data}
    status = upstairs.status()
    # Reads at the same time may each find the same block.
    assert status.slots[1].bad_blocks >= 3
    assert status.slots[0].bad_blocks == status.slots[2].bad_blocks == 0
    assert "did not match its context" in status.slots[1].last_error
    await flush(upstairs)
    after = await upstairs.verify(read_data=True)
    assert after.equal
    assert after.bad_blocks == 0
    # It is on the medium, not only in the daemon's memory.
    await upstairs.deactivate()
    await daemons.stop(1)
    await daemons.start(1)
    again = make(2)
    await again.activate(timeout_seconds=10)
    result = await again.verify(read_data=True)
    assert result.equal
    assert result.bad_blocks == 0
    assert again.status().slots[1].repairs_completed == 0


async def test_two_of_three_serve_when_the_third_stays_away(make, daemons):
    first = make()
    await first.activate(timeout_seconds=10)
    data = random.Random(10).randbytes(64 * 4096)
    await write(first, 0, data)
    await flush(first)
    await first.deactivate()
    await daemons.stop(2)
    second = make(2, two_after=0.5)
    await second.activate(timeout_seconds=20)
    assert await read(second, 0, 64) == data
    more = random.Random(11).randbytes(64 * 4096)
    await write(second, 32, more)
    await flush(second)
    await daemons.start(2)
    await until(lambda: all_active(second))
    assert second.status().slots[2].repairs_completed == 1
    result = await second.verify(read_data=True)
    assert result.equal
    assert result.members_compared == 3
    assert await read(second, 32, 64) == more


async def test_a_pending_activation_says_when_two_will_serve(make, daemons):
    first = make()
    await first.activate(timeout_seconds=10)
    await write(first, 0, bytes(4096))
    await flush(first)
    await first.deactivate()
    await daemons.stop(2)
    second = make(2, two_after=600)
    with pytest.raises(UnavailableError, match=r"serves with two in \d+ s"):
        await second.activate(timeout_seconds=2)
    await second.deactivate()
