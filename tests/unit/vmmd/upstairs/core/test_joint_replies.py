"""Several jobs answered in one frame: each takes its own part of the payload."""

from types import SimpleNamespace

import numpy as np

from stairlib.model.geometry import Geometry
from stairlib.wire.frame import FrameKind, OpKind, OpStatus, decode, encode, pack_op
from vmmd.upstairs.core.control_jobs import ControlBook, ControlJob, Outcome
from vmmd.upstairs.core.replies import ReplyRouter


def words(*values: int) -> bytes:
    return np.array(values, dtype="<u8").tobytes()


def answered(entries: list[bytes], payload: list[bytes], jobs: list[ControlJob], member) -> None:
    region = SimpleNamespace(
        config=SimpleNamespace(geometry=Geometry(4096, 16, 4)),
        control=ControlBook(),
        member_of=lambda _link: member,
        log=SimpleNamespace(find=lambda _job: None),
    )
    for job in jobs:
        region.control.add(job)
    reads = SimpleNamespace(find=lambda _member, _job: None, whole=lambda *_: None)
    frame = decode(b"".join(map(bytes, encode(FrameKind.REPLY, entries, payload=payload))))
    assert ReplyRouter(region, reads).take(1, frame) is None


def test_two_digests_that_waited_for_one_flush():
    member = SimpleNamespace(streams=True)
    jobs = [ControlJob(number, OpKind.EXTENT_DIGEST, member, 0, 2) for number in (7, 8)]
    entries = [
        pack_op(7, OpKind.EXTENT_DIGEST, offset=0, length=2),
        pack_op(8, OpKind.EXTENT_DIGEST, offset=2, length=2),
    ]
    answered(entries, [words(1, 2), words(3, 4)], jobs, member)
    assert [job.outcome for job in jobs] == [Outcome.OK, Outcome.OK]
    assert [job.payload for job in jobs] == [words(1, 2), words(3, 4)]


def test_states_before_a_digest_and_a_job_that_failed():
    member = SimpleNamespace(streams=True)
    kinds = [OpKind.EXTENT_STATES, OpKind.EXTENT_DIGEST, OpKind.EXTENT_DIGEST]
    lengths = [2, 2, 1]
    jobs = [ControlJob(7 + at, kinds[at], member, 0, lengths[at]) for at in range(3)]
    entries = [
        pack_op(7, OpKind.EXTENT_STATES, offset=0, length=2),
        pack_op(8, OpKind.EXTENT_DIGEST, length=2, status=OpStatus.IO_ERROR),
        pack_op(9, OpKind.EXTENT_DIGEST, offset=1, length=1),
    ]
    states = words(1, 2, 3, 4, 5, 6)
    answered(entries, [states, words(9)], jobs, member)
    assert [job.outcome for job in jobs] == [Outcome.OK, Outcome.FAILED, Outcome.OK]
    assert jobs[0].payload == states
    assert jobs[2].payload == words(9)


def test_an_answer_of_another_size_than_was_asked_for_is_none():
    member = SimpleNamespace(streams=True, address="d0:1")
    jobs = [ControlJob(7, OpKind.EXTENT_DIGEST, member, 0, 3)]
    answered([pack_op(7, OpKind.EXTENT_DIGEST, length=2)], [words(1, 2)], jobs, member)
    assert jobs[0].outcome is Outcome.FAILED
    assert "16 bytes instead of 24" in jobs[0].describe()
    jobs = [ControlJob(7, OpKind.EXTENT_DIGEST, member, 0, 3)]
    answered([pack_op(7, OpKind.EXTENT_STATES, length=1)], [words(1, 2, 3)], jobs, member)
    assert jobs[0].outcome is Outcome.FAILED
