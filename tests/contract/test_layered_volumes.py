"""Volumes of every shape on real daemons: layers, nesting, files, URLs, scrubs, replacements.

The cases are those of the original's own tests (reference vcr-and-upstairs.md §21, end).
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from downstaird.faults import CHANCE, FaultPlan
from stairlib.model.construction import FileSpec, UrlSpec, VolumeSpec
from stairlib.model.errors import NotFoundError, StairwellError, StateError
from tests.contract.layers import SIZE, Layers, ask, flush, over, read, seen, write
from vmmd.block.backend import BlockOp, BlockStatus, Request
from vmmd.block.scrub import ScrubState
from vmmd.block.volume import Volume, VolumeStatus
from vmmd.upstairs.core.events import ReplaceResult
from vmmd.upstairs.core.slot_states import SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def layers(tmp_path: Path) -> AsyncIterator[Layers]:
    made = Layers(tmp_path / "regions")
    yield made
    await made.close()


def scrub_done(status: VolumeStatus, path: str = "") -> bool:
    return any(each.path == path and each.state is ScrubState.DONE for each in status.scrubs)


async def scrubbed(volume: Volume, path: str = "") -> None:
    volume.start_scrub(path)
    await seen(volume, lambda status: scrub_done(status, path))


# ---- layers


async def test_two_layers(layers: Layers) -> None:
    parent = await layers.region(16, {0: 1, 1: 2, 9: 3})
    front = await layers.region(16)
    spec = over(front, parent=parent)
    volume = await layers.active(spec)
    assert await read(volume, 0, 16) == [1, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0]
    assert await write(volume, 1, 7, 8) is BlockStatus.OK
    assert await write(volume, 9, 0) is BlockStatus.OK
    assert await read(volume, 0, 4) == [1, 7, 8, 0]
    assert await read(volume, 8, 3) == [0, 0, 0]
    assert await flush(volume) is BlockStatus.OK
    volume = await layers.again(volume, spec)
    assert await read(volume, 0, 16) == [1, 7, 8, *[0] * 13]
    volume = await layers.again(volume, parent)
    assert await read(volume, 0, 2) == [1, 2]
    assert await read(volume, 9, 1) == [3]


async def test_three_layers(layers: Layers) -> None:
    bottom = await layers.region(16, {0: 1, 1: 2, 2: 3})
    middle = await layers.region(16, {1: 20, 5: 21})
    front = await layers.region(16, {2: 30})
    volume = await layers.active(over(front, parent=over(middle, parent=bottom)))
    assert await read(volume, 0, 8) == [1, 20, 30, 0, 0, 21, 0, 0]


async def test_a_smaller_parent_under_several_sub_volumes(layers: Layers) -> None:
    parent = await layers.region(16, {6: 1, 7: 2, 8: 3, 15: 4})
    first, second = await layers.region(8), await layers.region(16, {0: 9})
    spec = over(first, second, parent=parent)
    volume = await layers.active(spec)
    assert volume.info.block_count == 24
    assert await read(volume, 5, 5) == [0, 1, 2, 9, 0]
    assert await read(volume, 14, 4) == [0, 4, 0, 0]
    assert await write(volume, 6, 5, 6, 7, 8) is BlockStatus.OK
    assert await read(volume, 5, 6) == [0, 5, 6, 7, 8, 0]
    volume = await layers.again(volume, spec)
    assert await read(volume, 5, 6) == [0, 5, 6, 7, 8, 0]


async def test_volumes_in_volumes(layers: Layers) -> None:
    regions = [await layers.region(8) for _ in range(3)]
    spec = over(regions[0], over(regions[1], regions[2]))
    volume = await layers.active(spec)
    assert await write(volume, 4, *range(1, 17)) is BlockStatus.OK
    volume = await layers.again(volume, spec)
    assert await read(volume, 0, 24) == [0] * 4 + list(range(1, 17)) + [0] * 4
    assert [path for path, _ in volume.status().regions] == [
        "sub_volumes[0]",
        "sub_volumes[1].sub_volumes[0]",
        "sub_volumes[1].sub_volumes[1]",
    ]


async def test_a_sub_volume_with_a_parent_of_its_own(layers: Layers) -> None:
    inner_parent = await layers.region(8, {0: 1})
    inner = over(await layers.region(8), parent=inner_parent)
    outer_parent = await layers.region(16, {0: 5, 1: 6, 9: 7})
    volume = await layers.active(over(inner, await layers.region(8), parent=outer_parent))
    assert await read(volume, 0, 10) == [1, 6, 0, 0, 0, 0, 0, 0, 0, 7]


async def test_a_volume_of_a_parent_alone_is_read_only(layers: Layers) -> None:
    volume = await layers.active(over(parent=await layers.region(8, {3: 1})))
    assert volume.info.read_only
    assert await read(volume, 2, 3) == [0, 1, 0]
    assert await write(volume, 0, 1) is BlockStatus.READ_ONLY
    assert await flush(volume) is BlockStatus.OK


async def test_one_region_is_verified_whatever_the_others_are(layers: Layers) -> None:
    """A parent whose members are away says nothing about the region above it."""
    parent = await layers.region(16, {0: 1})
    volume = await layers.active(over(await layers.region(16), parent=parent))
    assert await write(volume, 0, 7) is BlockStatus.OK
    daemons = layers.daemons(parent)
    for number in range(3):
        await daemons.stop(number)
    one = await volume.verify(region_path="sub_volumes[0]")
    assert one.equal
    assert (one.members_compared, one.extents_compared) == (3, 2)
    with pytest.raises(StairwellError):
        await volume.verify(region_path="read_only_parent")
    with pytest.raises(NotFoundError):
        await volume.verify(region_path="sub_volumes[1]")


# ---- limits


@pytest.mark.parametrize("op", [BlockOp.READ, BlockOp.WRITE, BlockOp.WRITE_UNWRITTEN])
async def test_what_passes_the_end_is_refused_whole(layers: Layers, op: BlockOp) -> None:
    spec = over(await layers.region(8), await layers.region(8))
    volume = await layers.active(spec)
    data = None if op is BlockOp.READ else bytes([1]) * 4 * SIZE
    done = await ask(volume, Request(op, "x", 14, 4, data), Request(op, "y", 16, 4, data))
    assert {each.status for each in done.values()} == {BlockStatus.OUT_OF_RANGE}
    assert await read(volume, 12, 4) == [0, 0, 0, 0]


async def test_activating_twice_and_anew(layers: Layers) -> None:
    spec = over(await layers.region(8), await layers.region(8))
    volume = await layers.active(spec)
    await volume.activate(timeout_seconds=20)
    assert await write(volume, 7, 1, 2) is BlockStatus.OK
    old = volume
    # Another one with higher generations takes over; the first may serve no more.
    volume = await layers.active(spec)
    await seen(old, lambda status: status.state is UpstairsState.DISABLED)
    assert await write(old, 0, 9) is BlockStatus.ABORTED
    assert await read(volume, 0, 1) == [0]


# ---- unwritten writes


async def test_unwritten_writes_that_are_sparse_or_span_regions(layers: Layers) -> None:
    spec = over(await layers.region(8), await layers.region(8))
    volume = await layers.active(spec)
    for at, value in ((2, 1), (7, 2), (8, 3), (12, 4)):
        await write(volume, at, value)
    assert await write(volume, 6, *[9] * 8, op=BlockOp.WRITE_UNWRITTEN) is BlockStatus.OK
    expected = [0, 0, 1, 0, 0, 0, 9, 2, 3, 9, 9, 9, 4, 9, 0, 0]
    assert await read(volume, 0, 16) == expected
    done = (await ask(volume, Request(BlockOp.READ_OWNED, "o", 0, 16)))["o"]
    assert done.owned is not None
    assert done.owned.tolist() == [bool(value) for value in expected]
    verified = await volume.verify()
    assert verified.equal
    volume = await layers.again(volume, spec)
    assert await read(volume, 0, 16) == expected


# ---- scrubs


async def test_a_scrub_of_a_short_sparse_parent(layers: Layers) -> None:
    parent = await layers.region(16, {0: 1, 3: 2, 15: 3})
    front = await layers.region(32, {3: 8, 20: 9})
    spec = over(front, parent=parent)
    volume = await layers.active(spec)
    before = await read(volume, 0, 32)
    await scrubbed(volume)
    assert await read(volume, 0, 32) == before
    assert [path for path, _ in volume.status().regions] == ["sub_volumes[0]"]
    for number in range(3):
        await layers.daemons(parent).stop(number)
    # Durable, and nothing of the parent is needed any more.
    volume = await layers.again(volume, dataclasses.replace(spec, read_only_parent=None))
    assert await read(volume, 0, 32) == before
    owned = (await ask(volume, Request(BlockOp.READ_OWNED, "o", 0, 32)))["o"].owned
    assert owned is not None
    assert [at for at in range(32) if owned[at]] == [0, 3, 15, 20]


async def test_a_scrub_that_is_not_needed(layers: Layers) -> None:
    parent = await layers.region(8, {0: 1})
    front = await layers.region(8, dict.fromkeys(range(8), 5))
    volume = await layers.active(over(front, parent=parent))
    await scrubbed(volume)
    assert await read(volume, 0, 8) == [5] * 8


async def test_a_scrub_without_a_parent(layers: Layers) -> None:
    volume = await layers.active(over(await layers.region(8)))
    with pytest.raises(NotFoundError, match="nothing to copy"):
        volume.start_scrub("")


async def test_a_scrub_of_what_may_not_be_written(layers: Layers) -> None:
    below = over(await layers.region(8), parent=await layers.region(8))
    volume = await layers.active(over(await layers.region(8), parent=below))
    with pytest.raises(StateError, match="read-only"):
        volume.start_scrub("read_only_parent")


async def test_a_scrub_of_a_parent_deep_in_the_tree(layers: Layers) -> None:
    inner_parent = await layers.region(8, {0: 1, 1: 0})
    inner = over(await layers.region(8, {4: 2}), parent=inner_parent)
    outer_parent = await layers.region(16, {0: 5, 1: 6, 9: 7})
    second = await layers.region(8)
    volume = await layers.active(over(inner, second, parent=outer_parent))
    before = await read(volume, 0, 16)
    assert before[:2] == [1, 0]
    await scrubbed(volume, "sub_volumes[0]")
    assert await read(volume, 0, 16) == before
    await scrubbed(volume)
    assert await read(volume, 0, 16) == before
    assert [path for path, _ in volume.status().regions] == [
        "sub_volumes[0].sub_volumes[0]",
        "sub_volumes[1]",
    ]


async def test_a_guest_writes_during_a_scrub(layers: Layers) -> None:
    parent = await layers.region(4096, dict.fromkeys(range(0, 4096, 64), 1))
    front = await layers.region(4096)
    volume = await layers.active(over(front, parent=parent))
    expected = await read(volume, 0, 4096)
    volume.start_scrub("", 4 << 20)
    at = 0
    while not scrub_done(volume.status()):
        at = (at + 577) % 4096
        assert await write(volume, at, 2) is BlockStatus.OK
        expected[at] = 2
    assert await read(volume, 0, 4096) == expected
    assert (await volume.verify()).equal


async def test_a_scrub_while_a_member_is_replaced(layers: Layers) -> None:
    parent = await layers.region(2048, dict.fromkeys(range(0, 2048, 16), 1))
    front = await layers.region(2048, dict.fromkeys(range(0, 2048, 128), 3), daemons=4)
    volume = await layers.active(over(front, parent=parent))
    before = await read(volume, 0, 2048)
    daemons = layers.daemons(front)
    volume.start_scrub("", 1 << 20)
    outcome = await volume.replace("sub_volumes[0]", daemons.addresses[1], daemons.addresses[3])
    assert outcome.result is ReplaceResult.STARTED
    await seen(volume, scrub_done)
    await seen(volume, lambda status: _all_active(status, "sub_volumes[0]"))
    assert await read(volume, 0, 2048) == before
    verified = await volume.verify(read_data=True)
    assert verified.equal
    assert verified.members_compared == 3


def _all_active(status: VolumeStatus, path: str) -> bool:
    region = dict(status.regions)[path]
    return all(slot.state is SlotState.ACTIVE for slot in region.slots)


# ---- replacement anywhere


@pytest.mark.parametrize(
    "path",
    [
        "sub_volumes[1]",
        "read_only_parent.sub_volumes[0]",
        "read_only_parent.read_only_parent",
    ],
)
async def test_a_member_of_any_region_is_replaced(layers: Layers, path: str) -> None:
    regions = {
        "sub_volumes[0]": await layers.region(8),
        "sub_volumes[1]": await layers.region(8, {1: 4}, daemons=4),
        "read_only_parent.sub_volumes[0]": await layers.region(16, {0: 1, 9: 2}, daemons=4),
        "read_only_parent.read_only_parent": await layers.region(16, {1: 3}, daemons=4),
    }
    spec = over(
        regions["sub_volumes[0]"],
        regions["sub_volumes[1]"],
        parent=over(
            regions["read_only_parent.sub_volumes[0]"],
            parent=regions["read_only_parent.read_only_parent"],
        ),
    )
    volume = await layers.active(spec)
    before = await read(volume, 0, 16)
    assert before == [1, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0]
    daemons = layers.daemons(regions[path])
    pair = daemons.addresses[0], daemons.addresses[3]
    assert (await volume.replace(path, *pair)).result is ReplaceResult.STARTED
    await seen(volume, lambda status: _all_active(status, path))
    assert (await volume.replace(path, *pair)).result is ReplaceResult.COMPLETED_ALREADY
    assert (await volume.verify(read_data=True)).equal
    await daemons.stop(0)
    await daemons.stop(1)
    assert await read(volume, 0, 16) == before


# ---- files and URLs


async def test_a_file_as_parent_and_as_sub_volume(layers: Layers, tmp_path: Path) -> None:
    base, own = tmp_path / "base.img", tmp_path / "own.img"
    base.write_bytes(b"\1" * SIZE * 4)
    own.write_bytes(b"\2" * SIZE * 2)
    front = await layers.region(8, {1: 7})
    spec = over(
        front,
        FileSpec(uuid.uuid4(), SIZE, str(own)),
        parent=FileSpec(uuid.uuid4(), SIZE, str(base)),
    )
    volume = await layers.active(spec)
    assert await read(volume, 0, 10) == [1, 7, 1, 1, 0, 0, 0, 0, 2, 2]
    assert await write(volume, 7, 5, 6) is BlockStatus.OK
    assert await flush(volume) is BlockStatus.OK
    assert own.read_bytes()[:1] == b"\6"
    await scrubbed(volume)
    assert await read(volume, 0, 10) == [1, 7, 1, 1, 0, 0, 0, 5, 6, 2]
    assert base.read_bytes() == b"\1" * SIZE * 4
    assert [source.path for source in volume.status().sources] == ["sub_volumes[1]"]


async def test_a_url_as_parent(layers: Layers, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"".join(bytes([value]) * SIZE for value in (1, 2, 3, 4)))
    app = web.Application()
    app.router.add_static("/", tmp_path)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/image"
    try:
        front = await layers.region(8, {1: 7})
        volume = await layers.active(over(front, parent=UrlSpec(uuid.uuid4(), SIZE, url)))
        assert await read(volume, 0, 6) == [1, 7, 3, 4, 0, 0]
        [source] = volume.status().sources
        assert (source.path, source.kind, source.total_bytes) == ("read_only_parent", "url", 2048)
        await scrubbed(volume)
    finally:
        await runner.cleanup()
    assert await read(volume, 0, 6) == [1, 7, 3, 4, 0, 0]
    assert not volume.status().sources


async def test_a_disk_of_a_file_alone(layers: Layers, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE * 4))
    spec = FileSpec(uuid.uuid4(), SIZE, str(path))
    volume = await layers.active(spec)
    assert volume.id == spec.id
    assert volume.status().state is UpstairsState.ACTIVE
    assert await write(volume, 3, 1) is BlockStatus.OK
    assert await flush(volume) is BlockStatus.OK
    assert await read(volume, 2, 2) == [0, 1]
    assert (await volume.verify()).equal


# ---- trouble


async def test_rounds_of_io_with_a_member_that_fails_at_random(layers: Layers) -> None:
    """One member fails one request in four, over and over: repaired each time, data right."""
    region = await layers.region(2048)
    daemons = layers.daemons(region)
    await daemons.stop(1)
    daemons.faults[1] = FaultPlan(read_errors=CHANCE, write_errors=CHANCE, flush_errors=CHANCE)
    await daemons.start(1)
    volume = await layers.active(VolumeSpec(uuid.uuid4(), SIZE, (region,)))
    data = bytearray(2048 * SIZE)
    for _round in range(6):
        for at in range(0, 2048, 256):
            piece = os.urandom(256 * SIZE)
            data[at * SIZE : (at + 256) * SIZE] = piece
            done = await ask(volume, Request(BlockOp.WRITE, "w", at, 256, piece))
            assert done["w"].status is BlockStatus.OK
        assert await flush(volume) is BlockStatus.OK
        for at in range(0, 2048, 256):
            done = await ask(volume, Request(BlockOp.READ, "r", at, 256))
            assert done["r"].status is BlockStatus.OK
            assert done["r"].data == data[at * SIZE : (at + 256) * SIZE]
    await daemons.stop(1)
    daemons.faults[1] = FaultPlan()
    await daemons.start(1)
    await seen(volume, lambda status: _all_active(status, "sub_volumes[0]"))
    assert (await volume.verify(read_data=True)).equal
    for at in range(0, 2048, 256):
        done = await ask(volume, Request(BlockOp.READ, "r", at, 256))
        assert done["r"].data == data[at * SIZE : (at + 256) * SIZE]


async def test_a_parent_whose_members_are_all_away_fails_only_its_own_reads(
    layers: Layers,
) -> None:
    parent = await layers.region(8, {0: 1, 1: 2})
    front = await layers.region(8, {1: 7})
    volume = await layers.active(over(front, parent=parent))
    for number in range(3):
        await layers.daemons(parent).stop(number)
    assert await read(volume, 1, 1) == [7]
    assert await write(volume, 0, 5) is BlockStatus.OK
    assert await read(volume, 0, 2) == [5, 7]
    waiting = asyncio.create_task(read(volume, 2, 1))
    await asyncio.sleep(0)
    assert not waiting.done()
    for number in range(3):
        await layers.daemons(parent).start(number)
    assert await waiting == [0]
