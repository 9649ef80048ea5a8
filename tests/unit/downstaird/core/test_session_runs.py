"""Many small writes of one frame, taken in one go."""

import pytest

from stairlib.wire.frame import OpKind, OpStatus
from tests.unit.downstaird.core.session_rig import (
    BLOCK,
    Peer,
    block,
    flush,
    read,
    write,
)


@pytest.fixture
def peer(engine):
    return Peer(engine)


OFFSETS = (9, 3, 20, 3, 11)


def singles(first_job, offsets=OFFSETS):
    """Writes of one block each, of their job's number."""
    return [write(job, offset, block(job)) for job, offset in enumerate(offsets, start=first_job)]


def test_writes_of_one_block_are_taken_in_one_go_and_answered_each(peer):
    peer.send(read(1, 3, 1), *singles(2), flush(7, 1), read(8, 3, 1), *singles(9))
    [frame] = peer.frames
    assert [int(op["job"]) for op in frame.ops] == [1, 2, 3, 4, 5, 6, 8, *range(9, 14)]
    assert [int(op["offset"]) for op in frame.ops[1:6]] == list(OFFSETS)
    assert all(peer.status(job) is OpStatus.OK for job in (*range(1, 7), *range(8, 14)))
    assert peer.data(8) == block(5)  # the later of the two
    assert [call[0] for call in peer.engine.calls] == [
        "read", "write_scattered", "begin_flush", "read", "write_scattered"
    ]  # fmt: skip
    peer.finish(peer.work()[0])
    assert peer.engine.flushes[:2].tolist() == [1, 1]


def test_many_writes_behind_a_flush_that_waits_wait_with_it(peer):
    peer.send(flush(1, 1), write(2, 0, block(2)), flush(3, 2), *singles(4))
    assert all(peer.status(job) is None for job in range(4, 9))
    peer.finish(peer.work()[0])
    assert all(peer.status(job) is OpStatus.OK for job in range(4, 9))
    assert [call[0] for call in peer.engine.calls[:3]] == ["begin_flush", "write", "begin_flush"]


def test_a_flush_right_behind_does_not_share_the_work_of_one_before(peer):
    """As with any write between two flushes."""
    peer.send(flush(1, 1), flush(2, 1))
    assert len(peer.work()) == 1
    peer.finish(peer.work()[0])
    peer.send(*singles(3), flush(8, 2), read(9, 3, 1))
    peer.finish(peer.work()[1])
    assert peer.status(8) is OpStatus.OK
    assert peer.engine.calls[-2:] == [("begin_flush", 2, 1), ("read", 3, 1)]


def test_of_many_writes_the_wrong_ones_alone_are_refused(peer):
    blocks = peer.engine.definition.geometry.block_count
    peer.send(*singles(1), write(6, blocks, block(6)), *singles(7))
    peer.send(*singles(12), write(17, 1, block(17), context_of=block(1)), *singles(18))
    assert peer.status(6) is OpStatus.OUT_OF_RANGE
    assert peer.status(17) is OpStatus.HASH_MISMATCH
    wrong = {6, 17}
    assert all(peer.status(job) is OpStatus.OK for job in range(1, 23) if job not in wrong)
    peer.send(read(30, 3, 1), read(31, 1, 1))
    assert peer.data(30) == block(21)
    assert peer.data(31) == block(0)


@pytest.mark.parametrize("how", ["dependency", "of two", "unwritten"])
def test_what_is_no_plain_write_of_one_block_ends_a_run(peer, how):
    odd = {
        "dependency": write(5, 2, block(5), deps=[1]),
        "of two": write(5, 2, block(5, 2)),
        "unwritten": {**write(5, 2, block(5)), "kind": OpKind.WRITE_UNWRITTEN},
    }[how]
    first, second = (9, 10, 11, 12), (13, 14, 15, 16)
    peer.send(*singles(1, first), odd, *singles(6, second), read(10, 0, 17))
    assert all(peer.status(job) is OpStatus.OK for job in range(1, 11))
    held = peer.data(10)
    assert held[2 * BLOCK : 3 * BLOCK] == block(5)
    assert held[9 * BLOCK :] == b"".join(map(block, (1, 2, 3, 4, 6, 7, 8, 9)))
    runs = [call[1] for call in peer.engine.calls if call[0] == "write_scattered"]
    assert runs == [first, second]


def test_a_region_served_read_only_takes_none_of_many_writes(engine):
    peer = Peer(engine, read_only=True)
    peer.send(*singles(1))
    assert all(peer.status(job) is OpStatus.READ_ONLY for job in range(1, 6))
    assert engine.calls == []
