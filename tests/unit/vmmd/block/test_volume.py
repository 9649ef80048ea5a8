"""A volume over several region sets: cutting, joining, refusing."""

from __future__ import annotations

import dataclasses
import uuid

import pytest

from stairlib.model.construction import FileSpec, RegionOptions, RegionSpec, Secret, VolumeSpec
from stairlib.model.errors import InvalidRequestError, UnsupportedError
from stairlib.model.geometry import Geometry
from stairlib.telemetry.tracing import Tracing
from vmmd.block.backend import BlockOp, BlockStatus, Completion, Request
from vmmd.block.volume import Volume
from vmmd.upstairs.core.states import UpstairsState


@pytest.fixture
def tracing():
    found = Tracing("machine", "test")
    yield found
    found.shutdown()


def region(first_port, blocks=8, block_size=512):
    targets = tuple(f"127.0.0.1:{first_port + number}" for number in range(3))
    return RegionSpec(Geometry(block_size, blocks, 1), RegionOptions(uuid.uuid4(), targets), 1)


def volume_spec(*regions, parent=None, block_size=512):
    return VolumeSpec(uuid.uuid4(), block_size, regions, parent)


class Memory:
    """Stands in for a region set: keeps blocks, answers at once."""

    def __init__(self, upstairs):
        self.info = upstairs.info
        self.data = bytearray(self.info.total_bytes)
        self.seen = []
        self.fail = False

    def submit(self, batch, done):
        self.seen.extend(batch)
        completions = []
        for op, token, offset, length, data in batch:
            size = self.info.block_size
            part = slice(offset * size, (offset + length) * size)
            if self.fail:
                completions.append(Completion(token, BlockStatus.FAILED))
            elif op is BlockOp.READ:
                completions.append(Completion(token, BlockStatus.OK, self.data[part]))
            else:
                if op is BlockOp.WRITE:
                    self.data[part] = data
                completions.append(Completion(token, BlockStatus.OK))
        done(completions)


@pytest.fixture
def volume(tracing):
    made = Volume(volume_spec(region(1000), region(2000), region(3000)), tracing=tracing)
    for one in made._regions:
        one.upstairs = Memory(one.upstairs)
    return made


def submit(volume, *requests):
    found = {}
    volume.submit(requests, lambda done: found.update({c.token: c for c in done}))
    return found


def test_the_regions_follow_each_other(volume):
    assert volume.info.block_count == 24
    data = bytes(range(256)) * 2 * 20
    assert submit(volume, Request(BlockOp.WRITE, "w", 2, 20, data))["w"].status is BlockStatus.OK
    read = submit(volume, Request(BlockOp.READ, "r", 2, 20))["r"]
    assert bytes(read.data) == data
    assert bytes(volume._regions[1].upstairs.data) == data[6 * 512 : 14 * 512]
    assert [r.offset for r in volume._regions[0].upstairs.seen] == [2, 2]


def test_a_request_within_one_region_keeps_its_token(volume):
    submit(volume, Request(BlockOp.READ, "r", 9, 7))
    assert [r.token for r in volume._regions[1].upstairs.seen] == ["r"]


def test_a_flush_goes_to_every_region_and_fails_with_any(volume):
    assert submit(volume, Request(BlockOp.FLUSH, "f"))["f"].status is BlockStatus.OK
    volume._regions[1].upstairs.fail = True
    assert submit(volume, Request(BlockOp.FLUSH, "f"))["f"].status is BlockStatus.FAILED
    assert [len(one.upstairs.seen) for one in volume._regions] == [2, 2, 2]
    assert volume.counters.flushes == 2
    assert volume.counters.failed == 1


def test_a_request_that_passes_the_end_is_refused_whole(volume):
    done = submit(volume, Request(BlockOp.WRITE, "w", 20, 5, bytes(5 * 512)))
    assert done["w"].status is BlockStatus.OUT_OF_RANGE
    assert not any(one.upstairs.seen for one in volume._regions)


def test_a_read_only_volume_takes_no_changes(tracing):
    made = Volume(volume_spec(region(1000)), tracing=tracing, read_only=True)
    done = submit(made, Request(BlockOp.WRITE, "w", 0, 1, bytes(512)))
    assert done["w"].status is BlockStatus.READ_ONLY
    assert made.info.read_only


def test_counters_and_status(volume, tracing):
    made = Volume(volume_spec(region(1000), region(2000)), tracing=tracing)
    status = made.status()
    assert status.state is UpstairsState.INITIALIZING
    assert [path for path, _ in status.regions] == ["sub_volumes[0]", "sub_volumes[1]"]
    submit(volume, Request(BlockOp.READ, 1, 0, 2), Request(BlockOp.DISCARD, 2, 0, 2))
    assert (volume.counters.reads, volume.counters.read_bytes) == (1, 1024)
    assert volume.counters.discards == 1


def test_what_this_version_does_not_offer_is_said(tracing):
    plain = region(1000)
    keyed = dataclasses.replace(plain.options, key=Secret("c2VjcmV0"))
    file = FileSpec(uuid.uuid4(), 512, "/x")
    for spec, words in [
        (volume_spec(plain, parent=plain), "read_only_parent"),
        (volume_spec(volume_spec(plain)), "sub_volumes"),
        (volume_spec(file), "sub_volumes"),
        (volume_spec(), "without sub_volumes"),
        (volume_spec(dataclasses.replace(plain, options=keyed)), "key"),
    ]:
        with pytest.raises(UnsupportedError, match=words) as refused:
            Volume(spec, tracing=tracing)
        assert "c2VjcmV0" not in str(refused.value)
    with pytest.raises(InvalidRequestError, match="512"):
        Volume(volume_spec(region(1000, block_size=4096)), tracing=tracing)
