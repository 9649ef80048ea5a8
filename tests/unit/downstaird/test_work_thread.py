"""A thread beside the loop: order, failures, its end."""

import asyncio
import threading

import pytest

from downstaird.work_thread import WorkThread


@pytest.fixture
def thread():
    made = WorkThread("test")
    yield made
    made.close()


async def test_work_is_done_in_order_beside_the_loop(thread):
    done = []
    begun = [thread.begin(lambda number=number: done.append(number)) for number in range(5)]
    await asyncio.gather(*begun)
    assert done == list(range(5))


async def test_it_has_its_own_thread_and_the_loop_goes_on(thread):
    go_on = threading.Event()
    where = []

    def wait():
        where.append(threading.current_thread().name)
        assert go_on.wait(10)

    outcome = thread.begin(wait)
    await asyncio.sleep(0)
    assert not outcome.done()
    go_on.set()
    async with asyncio.timeout(10):
        await outcome
    assert where == ["test"]


async def test_what_fails_is_told_and_the_next_is_done(thread):
    def fail():
        raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError, match="no"):
        await thread.begin(fail)
    assert await thread.begin(lambda: None) is None


async def test_its_end_waits_for_what_was_begun():
    thread = WorkThread("test")
    done = []
    outcome = thread.begin(lambda: done.append(1))
    thread.close()
    assert done == [1]
    await outcome
    assert "test" not in {each.name for each in threading.enumerate()}


def test_one_without_work_has_no_thread():
    before = threading.active_count()
    thread = WorkThread("test")
    assert threading.active_count() == before
    thread.close()


async def test_an_outcome_that_nobody_wants_any_more_is_dropped(thread):
    go_on = threading.Event()
    outcome = thread.begin(lambda: go_on.wait(10))
    outcome.cancel()
    go_on.set()
    assert await thread.begin(lambda: None) is None
