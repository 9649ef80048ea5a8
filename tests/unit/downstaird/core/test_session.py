"""A session's ops against a plain region: what is answered, what leaves as work, what stays
untouched."""

import numpy as np
import pytest

from downstaird.core.session import PUT_OFF_MAX, Session
from downstaird.core.session_effects import CopyExtent, LimitRepair
from stairlib.model.cipher import DEFAULT_CIPHER
from stairlib.model.context import encrypted_check, plain_contexts
from stairlib.model.errors import DataError, UnavailableError
from stairlib.wire import frame as wire
from stairlib.wire.frame import (
    FLAG_INCOMPLETE,
    FrameError,
    FrameKind,
    OpKind,
    OpStatus,
    extent_marks,
)
from tests.unit.downstaird.core.session_rig import (
    BLOCK,
    Peer,
    block,
    copy,
    flush,
    read,
    repair_begin,
    write,
)


@pytest.fixture(params=[False, True], ids=["taken", "flush at once"])
def peer(engine, request):
    return Peer(engine, short=request.param)


def test_a_frame_of_io_is_answered_by_one_reply(peer):
    peer.send(
        write(1, 0, block(1, 2)),
        read(2, 0, 3),
        {"job": 3, "kind": OpKind.DISCARD, "offset": 1, "length": 1},
        read(4, 0, 2),
        {"job": 5, "kind": OpKind.NOOP},
    )
    [frame] = peer.frames
    assert frame.sequence == 7
    assert [peer.status(job) for job in range(1, 6)] == [OpStatus.OK] * 5
    assert peer.data(2) == block(1, 2) + block(0)
    assert peer.data(4) == block(1) + block(0)
    assert frame.contexts[2].any() is np.False_
    assert peer.session.ready


def test_write_unwritten_leaves_written_blocks(peer):
    peer.send(write(1, 1, block(1)))
    peer.send({"job": 2, "kind": OpKind.WRITE_UNWRITTEN, "offset": 0, "data": block(2, 3)})
    peer.send(read(3, 0, 3))
    assert peer.data(3) == block(2) + block(1) + block(2)


def test_a_write_that_does_not_match_its_contexts_is_refused_whole_and_alone(peer):
    peer.send(
        write(1, 0, block(1)),
        write(2, 1, block(2, 2), context_of=block(2) + block(9)),
        write(3, 3, block(3)),
        read(4, 0, 4),
    )
    assert peer.status(2) is OpStatus.HASH_MISMATCH
    assert "1 to 3" in peer.text(2)
    assert peer.data(4) == block(1) + block(0, 2) + block(3)


def test_encrypted_blocks_are_checked_without_the_key(make_engine):
    engine = make_engine(cipher=DEFAULT_CIPHER)
    nonce_and_tag, ciphertext = bytes(range(28)), block(5)
    check = encrypted_check(nonce_and_tag, ciphertext).to_bytes(4, "little")
    context = np.frombuffer(check + nonce_and_tag, dtype="<u8").reshape(1, 4)
    for job, data, status in (
        (1, ciphertext, OpStatus.OK),
        (2, block(6), OpStatus.HASH_MISMATCH),
    ):
        session = Session(engine, read_only=False, lane_free=True)
        raw = wire.encode(
            FrameKind.REQUEST,
            [wire.pack_op(job, OpKind.WRITE, offset=0, length=1)],
            contexts=context,
            payload=[data],
        )
        session.take(wire.decode(b"".join(raw)))
        [op] = wire.decode(b"".join(session.run().reply)).ops
        assert op["status"] == status


@pytest.mark.parametrize(
    "op",
    [
        read(1, 127, 2),
        read(1, 1 << 63, 1),
        {"job": 1, "kind": OpKind.DISCARD, "offset": 128, "length": 1},
        {"job": 1, "kind": OpKind.EXTENT_DIGEST, "offset": 8, "length": 1},
        {"job": 1, "kind": OpKind.EXTENT_STATES, "offset": 0, "length": 9},
        write(1, 127, block(1, 2)),
        repair_begin(1, 0, 8),
        copy(1, 8),
    ],
)
def test_what_is_past_the_end_is_refused_with_its_number(peer, op):
    peer.send(op)
    assert peer.status(1) is OpStatus.OUT_OF_RANGE
    assert "region's" in peer.text(1)
    assert peer.effects == []
    assert not any(call[0] in {"write", "discard", "repair_begin"} for call in peer.engine.calls)


@pytest.mark.parametrize(
    "op",
    [
        {"job": 1, "kind": 99},
        {"job": 1, "kind": OpKind.REPAIR_BEGIN, "blob": b"abc"},
        {"job": 1, "kind": OpKind.REPAIR_BEGIN},
        {"job": 1, "kind": OpKind.EXTENT_COPY, "offset": 0, "blob": b"{}"},
        {"job": 1, "kind": OpKind.EXTENT_COPY, "offset": 0, "blob": b"\xff"},
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_stays_pending(peer, op):
    peer.send(op)
    assert peer.status(1) is OpStatus.BAD_REQUEST
    peer.send(flush(2, 1))
    assert len(peer.work()) == 1


def test_a_snapshot_goes_with_its_flush_and_alone(peer):
    peer.send(flush(1, 7, blob=b"monday"), flush(2, 8))
    [work] = peer.work()
    assert peer.engine.snapshots == [("monday", 7)]
    assert peer.finish(work).status(1) is OpStatus.OK


def test_a_snapshot_that_is_refused_leaves_the_flush(peer):
    peer.engine.refuses_snapshots = True
    peer.send(write(1, 0, block(1)), flush(2, 7, blob=b"monday"), flush(3, 8))
    [work] = peer.work()
    assert ("begin_flush", 7, 1) in peer.engine.calls
    peer.finish(work)
    assert peer.status(2) is OpStatus.SNAPSHOT_FAILED
    assert "SNAPSHOT" in peer.text(2) or "snapshot" in peer.text(2)
    assert peer.status(3) is OpStatus.OK


def test_a_flush_that_fails_says_so_whatever_its_snapshot(peer):
    peer.engine.fail_with = "NO_SPACE"
    peer.send(flush(1, 7, blob=b"monday"))
    assert peer.status(1) is OpStatus.NO_SPACE


def test_a_region_served_read_only_takes_no_snapshot(engine):
    peer = Peer(engine, read_only=True)
    peer.send(flush(1, 7, blob=b"monday"), flush(2, 8))
    assert peer.status(1) is OpStatus.READ_ONLY
    assert peer.status(2) is OpStatus.OK


def test_errors_of_the_engine_are_answered_and_the_session_goes_on(peer):
    peer.engine.fail_with = "NO_SPACE"
    peer.send(flush(2, 1))
    peer.engine.fail_with = "EXTENT_FAULTED"
    peer.send(read(3, 0, 1))
    peer.engine.fail_with = None
    peer.send(write(4, 0, block(1)), flush(5, 1))
    assert peer.status(2) is OpStatus.NO_SPACE
    assert peer.status(3) is OpStatus.EXTENT_FAULTED
    assert peer.status(4) is OpStatus.OK
    assert peer.finish(peer.work()[0]).status(5) is OpStatus.OK


@pytest.mark.parametrize("missing", ["payload", "contexts"])
def test_a_frame_that_contradicts_itself_is_no_frame(peer, missing):
    raw = wire.encode(
        FrameKind.REQUEST,
        [wire.pack_op(1, OpKind.WRITE, offset=0, length=2)],
        contexts=plain_contexts(block(1, 2), BLOCK)[: 1 if missing == "contexts" else 2],
        payload=[block(1, 1 if missing == "payload" else 2)],
    )
    with pytest.raises(FrameError, match="writes of 2 blocks"):
        peer.session.take(wire.decode(b"".join(raw)))


def test_a_flush_takes_what_was_before_it_and_writes_go_on(peer):
    peer.send(write(1, 0, block(1)), flush(2, 1), write(3, 16, block(2)), read(4, 0, 1))
    assert peer.status(2) is None
    assert peer.status(3) is peer.status(4) is OpStatus.OK
    peer.finish(peer.work()[0])
    assert peer.status(2) is OpStatus.OK
    assert peer.engine.flushes[:2].tolist() == [1, 0]


def test_what_follows_a_waiting_flush_is_no_part_of_it(peer):
    peer.send(
        flush(1, 1), write(2, 0, block(1)), flush(3, 2), write(4, 0, block(2)), read(5, 16, 1)
    )
    peer.send(read(6, 0, 1), flush(7, 3))
    assert peer.status(4) is peer.status(6) is None
    assert peer.status(5) is OpStatus.OK
    peer.finish(peer.work()[0])
    assert peer.status(4) is OpStatus.OK
    assert peer.data(6) == block(2)
    order = [call for call in peer.engine.calls if call[0] in {"begin_flush", "write"}]
    assert order == [
        ("begin_flush", 1, 1),
        ("write", 0, 1),
        ("begin_flush", 2, 1),
        ("write", 0, 1),
    ]
    peer.finish(peer.work()[1])
    peer.finish(peer.work()[2])
    assert peer.status(7) is OpStatus.OK


def test_a_write_that_waits_survives_its_buffer(peer):
    buffer = bytearray(block(1))
    peer.send(flush(1, 1), flush(2, 2, deps=[1]))
    raw = bytearray(
        b"".join(
            wire.encode(
                FrameKind.REQUEST,
                [wire.pack_op(3, OpKind.WRITE, offset=0, length=1)],
                contexts=plain_contexts(buffer, BLOCK),
                payload=[buffer],
            )
        )
    )
    peer.session.take(wire.decode(raw))
    peer.run()
    raw[:] = bytes(len(raw))
    peer.finish(peer.work()[0])
    peer.send(read(4, 0, 1))
    assert peer.data(4) == block(1)


def test_flushes_that_follow_one_another_are_one(peer):
    peer.send(flush(1, 1), flush(2, 2), write(3, 0, block(1)), flush(4, 3), flush(5, 4))
    assert [effect.jobs for effect in peer.work()] == [[1, 2]]
    peer.finish(peer.work()[0])
    assert [effect.jobs for effect in peer.work()] == [[1, 2], [4, 5]]
    peer.finish(peer.work()[1])
    assert [peer.status(job) for job in (1, 2, 4, 5)] == [OpStatus.OK] * 4


def test_a_failed_flush_fails_every_job_it_stood_for(peer):
    peer.send(flush(1, 1), flush(2, 2))
    peer.finish(peer.work()[0], DataError("fsync failed", reason="IO_ERROR"))
    assert peer.status(1) is peer.status(2) is OpStatus.IO_ERROR
    assert peer.text(1) == "fsync failed"


def test_a_flush_waits_for_a_lane_that_others_use(engine):
    peer = Peer(engine, lane_free=False)
    peer.send(flush(1, 1))
    assert peer.work() == []
    assert peer.session.wants_lane
    peer.session.lane_changed(free=True)
    assert peer.session.reserves_lane
    peer.run()
    assert len(peer.work()) == 1
    assert not peer.session.reserves_lane


def test_job_ids_of_pending_jobs_are_refused(peer):
    peer.send(flush(1, 1))
    peer.send({**copy(1, 0)})
    assert peer.status(1) is OpStatus.BAD_REQUEST


def test_a_repair_from_begin_to_end(peer):
    peer.send(write(1, 0, block(1)), repair_begin(2, 0, 3), write(3, 1, block(2)))
    [begin] = peer.work()
    peer.send({"job": 4, "kind": OpKind.REPAIR_END})
    assert peer.status(4) is OpStatus.BAD_REQUEST
    peer.send(flush(5, 9), copy(6, 0, deps=[2]), copy(7, 3, deps=[2]))
    peer.finish(begin)
    assert peer.status(2) is OpStatus.OK
    copies = [effect for effect in peer.effects if isinstance(effect, CopyExtent)]
    assert [effect.extent for effect in copies] == [0, 3]
    for effect in copies:
        peer.session.copy_done(effect, (1, 9), 4096)
    peer.run()
    assert peer.replies[6] == (OpStatus.OK, b"", "", 4096)
    peer.finish(peer.work()[1])
    peer.send(flush(8, 10))
    peer.finish(peer.work()[2])
    assert not (peer.engine.flags & FLAG_INCOMPLETE).any()
    peer.send({"job": 9, "kind": OpKind.REPAIR_END})
    assert peer.status(9) is OpStatus.OK


@pytest.mark.parametrize(
    ("stamp", "taken"), [((1, 9), (1, 9)), ((0, 50), (0, 50)), ((1, 10), (0, 0)), ((2, 1), (0, 0))]
)
def test_a_stamp_from_the_future_is_not_taken_over(peer, stamp, taken):
    """The source flushed a write that this region has yet to receive: it stamps the extent itself
    then."""
    peer.send(flush(1, 9), copy(2, 5))
    [effect] = [effect for effect in peer.effects if isinstance(effect, CopyExtent)]
    peer.session.copy_done(effect, stamp, 0)
    assert ("copied", 5, *taken) in peer.engine.calls


def test_a_failed_copy_says_that_it_was_the_source(peer):
    peer.send(copy(1, 0))
    peer.session.copy_failed(peer.effects[0], UnavailableError("gone"))
    peer.run()
    assert peer.status(1) is OpStatus.REPAIR_SOURCE


def test_states_and_digests(peer):
    peer.send(write(1, 16, block(1)), flush(2, 5))
    peer.finish(peer.work()[0])
    peer.send(
        {"job": 3, "kind": OpKind.EXTENT_STATES},
        {"job": 4, "kind": OpKind.EXTENT_STATES, "offset": 1, "length": 1},
        {"job": 5, "kind": OpKind.EXTENT_DIGEST, "offset": 1, "length": 2},
    )
    states = np.frombuffer(peer.data(3), dtype="<u8").reshape(-1, 3)
    assert states.shape == (8, 3)
    assert states[1].tolist() == [1, 5, 0]
    assert peer.data(4) == states[1].tobytes()
    digests = np.frombuffer(peer.data(5), dtype="<u8")
    assert digests.tolist() == [peer.engine.digest(1), peer.engine.digest(2)]


def test_the_limit_of_repairs_is_passed_on(peer):
    peer.send({"job": 1, "kind": OpKind.REPAIR_LIMIT, "number": 1 << 20, "length": 3})
    assert peer.effects == [LimitRepair(1 << 20, 3)]


def test_a_read_only_session_changes_nothing(engine):
    peer = Peer(engine, read_only=True)
    peer.send(
        write(1, 0, block(1)),
        {"job": 2, "kind": OpKind.DISCARD, "offset": 0, "length": 1},
        repair_begin(3, 0),
        copy(4, 0),
        {"job": 5, "kind": OpKind.REPAIR_END},
        flush(6, 1),
        flush(7, 2),
        read(8, 0, 1),
    )
    assert {peer.status(job) for job in range(1, 6)} == {OpStatus.READ_ONLY}
    assert peer.status(6) is peer.status(7) is peer.status(8) is OpStatus.OK
    assert peer.effects == []
    assert peer.engine.calls == [("read", 0, 1)]


def test_replies_are_cut_where_they_would_be_too_large(make_engine):
    from stairlib.model.geometry import Geometry

    peer = Peer(make_engine(Geometry(512, 8192, 2)))
    peer.send(*(read(job, 0, 6000) for job in range(1, 5)))
    assert len(peer.frames) == 4
    assert all(len(frame.payload) <= wire.PAYLOAD_BYTES_MAX for frame in peer.frames)
    assert {peer.status(job) for job in range(1, 5)} == {OpStatus.OK}
    peer.send(read(9, 0, 8193))
    assert peer.status(9) is OpStatus.BAD_REQUEST


def test_a_full_queue_stops_the_frame_and_resumes_it(peer, monkeypatch):
    monkeypatch.setattr("downstaird.core.work_queue.WAITING_OPS_MAX", 3)
    ops = [
        flush(1, 1),
        flush(2, 2, deps=[1]),
        *(write(job, job, block(job)) for job in range(3, 9)),
    ]
    peer.send(*ops)
    assert not peer.session.ready
    assert peer.status(8) is None
    peer.finish(peer.work()[0])
    assert peer.session.ready
    assert peer.status(8) is OpStatus.OK


def test_nothing_happens_after_the_end(peer):
    peer.send(flush(1, 1), flush(2, 2, deps=[1]), write(3, 0, block(1)), copy(4, 0))
    copies = [effect for effect in peer.effects if isinstance(effect, CopyExtent)]
    peer.session.end()
    peer.finish(peer.work()[0])
    for effect in copies:
        peer.session.copy_done(effect, (1, 1), 0)
    peer.run()
    assert peer.replies == {}
    assert not any(call[0] in {"write", "copied"} for call in peer.engine.calls)


@pytest.mark.parametrize(
    "failing",
    [
        write(1, 0, block(1), context_of=block(2)),
        {"job": 1, "kind": OpKind.DISCARD, "offset": 1 << 40, "length": 1},
    ],
)
def test_no_flush_succeeds_after_a_change_that_failed(peer, failing):
    """The extent would get the stamp of the others, and lack what they have."""
    peer.send(failing)
    peer.send(write(2, 1, block(3)), flush(3, 1))
    assert peer.status(1) is not OpStatus.OK
    assert peer.status(2) is OpStatus.OK
    assert peer.status(3) is not OpStatus.OK
    assert "earlier write" in peer.text(3)
    assert not peer.work()


def test_an_extent_that_is_being_repaired_takes_no_writes_of_unwritten_blocks(peer):
    """Only the source knows which blocks are unwritten; a guess would diverge from it."""
    peer.send(repair_begin(1, 0))
    peer.finish(peer.work()[0])
    peer.send({"job": 2, "kind": OpKind.WRITE_UNWRITTEN, "offset": 1, "data": block(2)})
    assert peer.status(2) is not OpStatus.OK
    assert "being repaired" in peer.text(2)
    peer.send(read(3, 1, 1))
    assert peer.data(3) == block(0)


def test_what_drives_a_repair_is_not_the_guest(engine):
    peer = Peer(engine)
    peer.send({"job": 1, "kind": OpKind.REPAIR_BEGIN, "blob": extent_marks([0]).tobytes()})
    peer.send({"job": 2, "kind": OpKind.REPAIR_LIMIT, "number": 0})
    peer.send({"job": 3, "kind": OpKind.EXTENT_STATES})
    assert (peer.session.counters.frames, peer.session.counters.guest_frames) == (3, 0)
    peer.send({"job": 4, "kind": OpKind.NOOP}, {"job": 5, "kind": OpKind.READ, "length": 1})
    assert peer.session.counters.guest_frames == 1


def test_a_flush_alone_begins_at_once_and_only_where_nothing_comes_first(engine):
    """It takes the lane like any other; what comes behind it meanwhile waits for it or joins it."""
    peer = Peer(engine, short=True)
    peer.send(write(1, 0, block(1)))
    peer.send(flush(2, 1))
    (work,) = peer.work()
    assert (work.jobs, peer.session.wants_lane, peer.status(2)) == ([2], False, None)
    peer.send(flush(3, 2))
    assert peer.session.wants_lane
    assert len(peer.work()) == 1
    work.work.run()
    peer.finish(work)
    assert peer.status(2) is OpStatus.OK
    assert peer.status(3) is None
    behind = peer.work()[1]
    behind.work.run()
    peer.finish(behind)
    assert peer.status(3) is OpStatus.OK
    counters = peer.session.counters
    assert (counters.frames, counters.guest_frames, counters.flushes) == (3, 3, 2)
    # Nothing is kept of them: what names them goes on.
    peer.send(read(4, 0, 1, deps=[2, 3]))
    assert peer.status(4) is OpStatus.OK
    peer.send(write(5, 0, block(2), deps=[3]), flush(6, 3))
    assert peer.status(5) is OpStatus.OK


def test_what_waits_behind_a_flush_is_not_left_by_its_short_end(engine):
    peer = Peer(engine, short=True)
    peer.send(write(1, 0, block(1)))
    peer.send(flush(2, 1))
    (work,) = peer.work()
    peer.send(write(3, 0, block(2), deps=[2]))
    assert peer.status(3) is None
    work.work.run()
    peer.finish(work)
    assert (peer.status(2), peer.status(3)) == (OpStatus.OK, OpStatus.OK)


@pytest.mark.parametrize(
    "more", [{"payload": [block(1)]}, {"contexts": plain_contexts(block(1), BLOCK)}]
)
def test_a_flush_with_data_is_no_frame_and_does_not_begin(peer, more):
    op = wire.pack_op(1, OpKind.FLUSH, number=1, generation=1)
    frame = wire.decode(b"".join(wire.encode(FrameKind.REQUEST, [op], **more)))
    assert peer.session.flush_at_once(frame) is None
    with pytest.raises(FrameError):
        peer.session.take(frame)


@pytest.mark.parametrize("short", [False, True])
def test_a_flush_that_cannot_begin_is_answered_once(engine, short):
    peer = Peer(engine, short=short, read_only=True)
    peer.send(flush(1, 1))
    assert peer.status(1) is OpStatus.OK
    assert not peer.work()


def with_next(job, number, **more):
    return flush(job, number, flags=wire.FLUSH_WITH_NEXT, **more)


def test_flushes_that_go_with_the_next_one_are_answered_with_it(engine):
    peer = Peer(engine, short=True)
    for job in (1, 3, 5):
        peer.send(write(job, job, block(job)))
        peer.send(with_next(job + 1, job))
    assert not peer.work()
    assert [peer.status(job) for job in (2, 4, 6)] == [None] * 3
    peer.send(write(7, 7, block(7)))
    peer.send(flush(8, 7))
    (work,) = peer.work()
    assert work.jobs == [2, 4, 6, 8]
    calls = [call for call in engine.calls if "flush" in call[0]]
    assert calls == [
        *[("put_off_flush", number, 1) for number in (1, 3, 5)],
        ("begin_flush", 7, 1),
    ]
    work.work.run()
    peer.finish(work)
    assert [peer.status(job) for job in work.jobs] == [OpStatus.OK] * 4
    assert peer.session.counters.flushes == 4
    assert not peer.session.wants_lane


def test_they_are_put_off_while_the_lane_is_taken_and_done_by_who_waits_for_it(engine):
    peer = Peer(engine, short=True)
    peer.send(write(1, 0, block(1)))
    peer.send(flush(2, 1))
    (work,) = peer.work()
    peer.send(write(3, 1, block(2)))
    peer.send(with_next(4, 2))
    peer.send(write(5, 2, block(3)))
    peer.send(flush(6, 3))
    work.work.run()
    peer.finish(work)
    assert peer.status(4) is None
    behind = peer.work()[1]
    assert sorted(behind.jobs) == [4, 6]
    behind.work.run()
    peer.finish(behind)
    assert (peer.status(4), peer.status(6)) == (OpStatus.OK, OpStatus.OK)


def test_one_that_does_not_come_alone_is_done_at_once(peer):
    peer.send(write(1, 0, block(1)), with_next(2, 1))
    (work,) = peer.work()
    peer.finish(work)
    assert peer.status(2) is OpStatus.OK


def test_they_fail_with_the_next_one(engine):
    peer = Peer(engine, short=True)
    peer.send(with_next(1, 1))
    engine.fail_with = "NO_SPACE"
    peer.send(flush(2, 2))
    assert (peer.status(1), peer.status(2)) == (OpStatus.NO_SPACE, OpStatus.NO_SPACE)


def test_nothing_can_wait_for_a_flush_that_waits_itself(engine):
    peer = Peer(engine, short=True)
    peer.send(with_next(1, 1))
    peer.send(read(2, 0, 1, deps=[1]), flush(3, 2, deps=[1]))
    assert (peer.status(2), peer.status(3)) == (OpStatus.BAD_REQUEST, OpStatus.BAD_REQUEST)
    assert "next one" in peer.text(2)
    # Its id is taken, like that of any job that is not answered.
    peer.send(with_next(1, 3))
    assert peer.status(1) is OpStatus.BAD_REQUEST


def test_no_more_than_so_many_are_put_off(engine):
    peer = Peer(engine, short=True)
    for job in range(1, PUT_OFF_MAX + 1):
        peer.send(with_next(job, job))
    assert not peer.work()
    peer.send(with_next(PUT_OFF_MAX + 1, PUT_OFF_MAX + 1))
    (work,) = peer.work()
    assert len(work.jobs) == PUT_OFF_MAX + 1


def test_with_a_session_that_ends_they_are_not_answered(engine):
    peer = Peer(engine, short=True)
    peer.send(with_next(1, 1))
    peer.session.end()
    assert engine.calls[-1] == ("put_off_no_more",)
    peer.send(flush(2, 2))
    assert not peer.work()
    assert peer.replies == {}
