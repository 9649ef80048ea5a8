"""A reply that tells of one more op than it did."""

from stairlib.wire.frame import OPS_MAX, FrameKind, OpKind, decode, done_behind, encode, pack_op


def reply_of(*jobs):
    table = [pack_op(job, OpKind.WRITE, offset=8 * job, length=1) for job in jobs]
    return b"".join(encode(FrameKind.REPLY, table, sequence=9))


def told(buffers):
    """(job, kind) of each op of each frame."""
    frames = [decode(each) for each in buffers]
    return [list(zip(f.ops["job"].tolist(), f.ops["kind"].tolist(), strict=True)) for f in frames]


WRITES = [(1, int(OpKind.WRITE)), (2, int(OpKind.WRITE))]
FLUSHED = (3, int(OpKind.FLUSH))


def test_one_more_op_is_in_the_reply_that_was_kept():
    (joined,) = done_behind([reply_of(1, 2)], [3], OpKind.FLUSH)
    assert told([joined]) == [[*WRITES, FLUSHED]]
    frame = decode(joined)
    assert frame.sequence == 9
    assert frame.answers == (1, 3, True)
    assert frame.ops["offset"].tolist() == [8, 16, 0]


def test_it_is_a_reply_of_its_own_where_none_was():
    assert told(done_behind([], [3], OpKind.FLUSH)) == [[FLUSHED]]


def test_several_of_both_are_in_one_frame():
    kept = [reply_of(1, 2), reply_of(4), reply_of(6)]
    (joined,) = done_behind(kept, [3, 5, 7], OpKind.FLUSH)
    writes = [(job, int(OpKind.WRITE)) for job in (1, 2, 4, 6)]
    assert told([joined]) == [[*writes, *((job, int(OpKind.FLUSH)) for job in (3, 5, 7))]]
    # Whoever asked for all of them sees it by the first, the last, and how many there are.
    assert decode(joined).answers == (1, 7, True)


def test_a_full_table_takes_no_more():
    full = reply_of(*range(OPS_MAX))
    kept, behind = done_behind([full], [OPS_MAX], OpKind.FLUSH)
    assert kept == full
    assert told([behind]) == [[(OPS_MAX, int(OpKind.FLUSH))]]


def test_what_carries_more_than_a_table_is_left_as_it_is():
    data = b"".join(encode(FrameKind.REPLY, [pack_op(1, OpKind.READ, length=1)], payload=[b"1234"]))
    kept, behind = done_behind([data], [2], OpKind.FLUSH)
    assert kept == data
    assert told([behind]) == [[(2, int(OpKind.FLUSH))]]
