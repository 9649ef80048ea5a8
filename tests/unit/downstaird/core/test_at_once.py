"""What compiled code must leave to the region, though it could do it."""

import pytest

from downstaird.core.at_once import AtOnce
from stairlib import native
from stairlib.model.context import plain_contexts
from stairlib.model.errors import DataError
from stairlib.wire import frame as wire
from stairlib.wire.frame import FrameKind, OpKind, extent_marks
from tests.unit.downstaird.core.region_rig import BLOCK, content, flush, new_region, read

pytestmark = pytest.mark.skipif(not native.compiled, reason="there is no compiled form here")


@pytest.fixture
def region():
    return new_region()


def writes(*offsets):
    data = content("new", len(offsets))
    table = [
        wire.pack_op(job, OpKind.WRITE, offset=offset, length=1)
        for job, offset in enumerate(offsets, start=1)
    ]
    contexts = plain_contexts(data, BLOCK)
    raw = b"".join(wire.encode(FrameKind.REQUEST, table, contexts=contexts, payload=[data]))
    return wire.decode(raw), data


def test_writes_are_taken_and_are_part_of_the_next_flush(region):
    frame, data = writes(3, 17)
    served = AtOnce(region).serve(frame, read_only=False)
    assert served is not None
    assert served[1:] == (0, 2)
    assert read(region, 17, 1) == data[BLOCK:]
    flush(region, 7)
    assert region.extent_states().flushes[:3].tolist() == [7, 7, 0]


def test_none_during_a_repair_which_must_know_of_them(region):
    work = region.repair_begin(extent_marks([1]))
    work.run()
    region.finish_flush(work, None)
    frame, _ = writes(3, 17)
    assert AtOnce(region).serve(frame, read_only=False) is None
    assert read(region, 17, 1) == bytes(BLOCK)


def test_none_where_the_region_takes_none(region):
    frame, _ = writes(3)
    assert AtOnce(region).serve(frame, read_only=True) is None
    region.fault_chunk(6, DataError("made up", reason="IO_ERROR"))
    assert AtOnce(region).serve(frame, read_only=False) is None
    assert read(region, 3, 1) == bytes(BLOCK)


def test_none_of_a_frame_with_one_block_that_is_not_what_its_context_says(region):
    frame, _ = writes(3, 17)
    raw = bytearray(frame.data)
    raw[-1] ^= 1
    assert AtOnce(region).serve(wire.decode(bytes(raw)), read_only=False) is None
    assert read(region, 3, 1) == bytes(BLOCK)
