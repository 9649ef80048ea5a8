"""The order of a session's ops, case by case."""

import pytest

from downstaird.core import work_queue
from downstaird.core.work_queue import WAITING_BYTES_MAX, WAITING_OPS_MAX, Claim, Order, WorkQueue


def look(job, first, end, **more):
    return Claim(job, Order.LOOK, None, first, end, **more)


def change(job, first, end, **more):
    return Claim(job, Order.CHANGE, None, first, end, **more)


def flush(job, **more):
    return Claim(
        job, Order.BARRIER, None, asynchronous=True, needs_lane=True, may_join=True, **more
    )


def copy(job, **more):
    return Claim(job, Order.FOLLOW, None, asynchronous=True, **more)


def jobs(claims):
    return [claim.job for claim in claims]


def test_plain_io_starts_at_once_and_leaves_nothing_behind():
    queue = WorkQueue()
    assert queue.offer(change(1, 0, 8))
    assert queue.offer(look(2, 0, 8))
    assert queue.idle
    assert not queue.is_pending(1)


def test_writes_go_on_beside_a_running_flush():
    queue = WorkQueue()
    assert queue.offer(flush(1))
    assert queue.offer(change(2, 0, 8))
    assert queue.offer(look(3, 0, 8))


def test_a_second_flush_waits_for_the_lane_and_holds_back_later_writes_but_no_reads():
    queue = WorkQueue()
    queue.offer(flush(1))
    assert not queue.offer(flush(2))
    assert not queue.offer(change(3, 0, 8))
    assert queue.offer(look(4, 8, 16))
    assert not queue.offer(look(5, 7, 9))
    queue.finish(1)
    queue.lane_free = True
    assert jobs(queue.release()) == [2, 3, 5]
    assert queue.idle
    assert not queue.lane_free


def test_what_is_far_behind_is_not_looked_at_each_time(monkeypatch):
    """A member that lags has thousands of ops waiting: each end of a flush sets two of them
    free."""
    queue = WorkQueue()
    queue.offer(flush(0))
    for job in range(1, 1001, 2):
        assert not queue.offer(flush(job))
        assert not queue.offer(change(job + 1, job, job + 1))
    looked = []
    blocks = work_queue._Waiting.blocks
    monkeypatch.setattr(
        work_queue._Waiting,
        "blocks",
        lambda waiting, claim: looked.append(claim.job) or blocks(waiting, claim),
    )
    queue.lane_free = False
    assert queue.release() == []
    for job in range(1, 201, 2):
        queue.finish(job - 1)
        queue.lane_free = True
        assert jobs(queue.release()) == [job, job + 1]
        queue.finish(job)
    assert len(looked) < 100 * 5
    assert queue.waiting == 800


def test_a_read_far_behind_goes_on_with_the_write_it_waits_for():
    queue = WorkQueue()
    queue.offer(flush(1))
    queue.offer(flush(2))
    queue.offer(change(3, 0, 8))
    queue.offer(flush(4))
    queue.offer(change(5, 20, 28))
    assert not queue.offer(look(6, 4, 6))
    assert not queue.offer(look(7, 20, 21))
    queue.finish(1)
    queue.lane_free = True
    assert jobs(queue.release()) == [2, 3, 6]
    queue.finish(2)
    queue.lane_free = True
    assert jobs(queue.release()) == [4, 5, 7]
    assert queue.idle


def test_flushes_with_nothing_between_them_share_one_piece_of_work():
    queue = WorkQueue()
    queue.offer(flush(1))
    for job in (2, 3, 4):
        queue.offer(flush(job))
    queue.offer(change(5, 0, 1))
    queue.offer(flush(6))
    queue.finish(1)
    queue.lane_free = True
    [leader, write] = queue.release()
    assert (leader.job, leader.joined, write.job) == (2, [3, 4], 5)
    assert queue.waiting == 1
    assert queue.is_pending(4)


def test_a_flush_does_not_share_work_across_a_write_that_waits():
    queue = WorkQueue()
    queue.offer(flush(1))
    queue.offer(copy(2))
    queue.offer(flush(3))
    queue.offer(change(4, 0, 1, dependencies=(2,)))
    queue.offer(flush(5))
    queue.finish(1)
    queue.lane_free = True
    [leader] = queue.release()
    assert (leader.job, leader.joined) == (3, [])


def test_a_dependency_waits_for_the_end_of_an_asynchronous_job():
    queue = WorkQueue()
    queue.offer(flush(1))
    assert not queue.offer(copy(2, dependencies=(1,)))
    assert queue.release() == []
    queue.finish(1)
    assert jobs(queue.release()) == [2]


def test_a_dependency_on_a_job_that_is_not_pending_counts_as_done():
    queue = WorkQueue()
    assert queue.offer(copy(2, dependencies=(1, 99)))


def test_copies_that_wait_hold_back_neither_writes_nor_flushes():
    queue = WorkQueue()
    queue.offer(flush(1))
    queue.offer(copy(2, dependencies=(1,)))
    assert queue.offer(change(3, 0, 8))
    queue.finish(1)
    queue.lane_free = True
    assert queue.offer(flush(4))


def test_a_copy_starts_after_an_earlier_flush_began():
    queue = WorkQueue()
    queue.offer(flush(1))
    queue.offer(flush(2))
    assert not queue.offer(copy(3))
    queue.finish(1)
    queue.lane_free = True
    assert jobs(queue.release()) == [2, 3]


def test_a_write_does_not_pass_a_read_of_its_blocks_that_waits():
    queue = WorkQueue()
    queue.offer(flush(1))
    queue.offer(look(2, 0, 8, dependencies=(1,)))
    assert not queue.offer(change(3, 7, 8))
    assert queue.offer(change(4, 8, 9))
    queue.finish(1)
    assert jobs(queue.release()) == [2, 3]


@pytest.mark.parametrize("huge", [(0, 1 << 40), (300, 200_000)])
def test_huge_ranges_are_found_too(huge):
    queue = WorkQueue()
    queue.offer(flush(1))
    queue.offer(change(2, *huge, dependencies=(1,)))
    assert not queue.offer(look(3, 1000, 1001))
    other = WorkQueue()
    other.offer(flush(1))
    other.offer(change(2, 1000, 1001, dependencies=(1,)))
    assert not other.offer(look(3, *huge))


def test_it_is_full_by_count_and_by_bytes():
    queue = WorkQueue()
    queue.offer(flush(0))
    queue.offer(flush(1))
    for job in range(WAITING_OPS_MAX - 2):
        queue.offer(change(job + 2, 0, 1))
    assert not queue.full
    queue.offer(change(WAITING_OPS_MAX, 0, 1))
    assert queue.full
    heavy = WorkQueue()
    heavy.offer(flush(0))
    heavy.offer(flush(1))
    heavy.offer(change(2, 0, 1, held_bytes=WAITING_BYTES_MAX))
    assert heavy.full
    heavy.finish(0)
    heavy.lane_free = True
    heavy.release()
    assert not heavy.full


def test_the_end_of_a_session_drops_everything():
    queue = WorkQueue()
    queue.offer(flush(1))
    queue.offer(flush(2))
    queue.offer(change(3, 0, 1))
    queue.drop_all()
    assert queue.idle
    assert not queue.is_pending(1)
    assert queue.release() == []


def test_flushes_that_shared_work_take_no_place_any_more():
    """Else a session that lived long enough would be full for ever."""
    queue = WorkQueue()
    queue.offer(flush(1))
    for round_ in range(3):
        first = 10 * round_ + 2
        for job in range(first, first + 5):
            assert not queue.offer(flush(job, held_bytes=WAITING_BYTES_MAX // 8))
        queue.lane_free = True
        (leader,) = queue.release()
        assert leader.joined == list(range(first + 1, first + 5))
        assert queue.idle
        assert not queue.full


def test_a_member_that_lags_behind_does_not_look_at_all_that_waits(monkeypatch):
    """Hundreds of writes and flushes wait by turns: what lets one go on touches a few of them."""
    queue = WorkQueue()
    queue.offer(flush(1))
    for job in range(2, 600, 2):
        queue.offer(flush(job))
        queue.offer(change(job + 1, job, job + 1))
    looked = []
    blocks = type(queue._summary).blocks
    monkeypatch.setattr(
        type(queue._summary), "blocks", lambda self, claim: looked.append(1) or blocks(self, claim)
    )
    for job in range(2, 600, 2):
        queue.lane_free = True
        assert jobs(queue.release()) == [job, job + 1]
    assert queue.idle
    assert len(looked) < 4 * 300


def test_a_read_that_waits_is_let_go_past_the_barriers_that_stay():
    queue = WorkQueue()
    queue.offer(flush(1))
    queue.offer(flush(2))
    queue.offer(change(3, 0, 8))
    queue.offer(flush(4))
    queue.offer(change(5, 8, 16))
    queue.offer(look(6, 0, 8))
    queue.offer(look(7, 8, 16))
    queue.lane_free = True
    assert jobs(queue.release()) == [2, 3, 6]
    queue.lane_free = True
    assert jobs(queue.release()) == [4, 5, 7]
    assert queue.idle
