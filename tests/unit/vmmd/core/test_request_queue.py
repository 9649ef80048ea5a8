"""The decision table, cell by cell, and what a popped request does to the queue."""

from __future__ import annotations

import pytest

from stairlib.model.errors import LimitError, StateError
from vmmd.core.request_queue import (
    REPLACEMENTS_WAITING_MAX,
    TABLE,
    Decision,
    QueueState,
    RequestKind,
    RequestQueue,
)


@pytest.mark.parametrize(("kind", "state"), [(k, s) for k in RequestKind for s in QueueState])
def test_every_cell_is_decided(kind: RequestKind, state: QueueState) -> None:
    queue = RequestQueue(state=state)
    verdict = TABLE[kind, state]
    if isinstance(verdict, Decision):
        assert queue.submit(kind) is verdict
        assert (queue.pop() is not None) == (verdict is Decision.QUEUE)
    else:
        with pytest.raises(StateError, match=verdict[:20]):
            queue.submit(kind)
        assert queue.pop() is None


def test_run_twice_is_done_once() -> None:
    queue = RequestQueue()
    assert queue.submit(RequestKind.RUN) is Decision.QUEUE
    assert queue.submit(RequestKind.RUN) is Decision.IGNORE
    assert queue.pop().kind is RequestKind.RUN
    queue.completed(RequestKind.RUN)
    assert queue.state is QueueState.RUNNING
    assert queue.submit(RequestKind.RUN) is Decision.IGNORE


def test_a_stop_that_waits_refuses_what_would_come_after_it() -> None:
    queue = RequestQueue(state=QueueState.RUNNING)
    queue.submit(RequestKind.STOP)
    assert queue.submit(RequestKind.STOP) is Decision.IGNORE
    for kind in (RequestKind.RUN, RequestKind.REBOOT):
        with pytest.raises(StateError, match="about to stop"):
            queue.submit(kind)
    assert queue.submit(RequestKind.REPLACE) is Decision.QUEUE


def test_state_changes_overtake_replacements() -> None:
    queue = RequestQueue(state=QueueState.RUNNING)
    queue.submit(RequestKind.REPLACE, "one")
    queue.submit(RequestKind.REPLACE, "two")
    queue.submit(RequestKind.STOP)
    assert [queue.pop().kind for _ in range(2)] == [RequestKind.STOP, RequestKind.REPLACE]
    assert [request.token for request in queue.drain()] == ["two"]
    assert queue.pop() is None


def test_a_second_reboot_is_ignored_until_the_first_is_done() -> None:
    queue = RequestQueue(state=QueueState.RUNNING)
    assert queue.submit(RequestKind.REBOOT) is Decision.QUEUE
    assert queue.submit(RequestKind.REBOOT) is Decision.IGNORE
    queue.pop()
    assert queue.submit(RequestKind.REBOOT) is Decision.IGNORE
    queue.completed(RequestKind.REBOOT)
    assert queue.submit(RequestKind.REBOOT) is Decision.QUEUE


def test_a_failed_start_fails_the_machine() -> None:
    queue = RequestQueue()
    queue.submit(RequestKind.RUN)
    queue.pop()
    queue.completed(RequestKind.RUN, failed=True)
    with pytest.raises(StateError, match="has failed"):
        queue.submit(RequestKind.RUN)


def test_waiting_replacements_are_bounded() -> None:
    queue = RequestQueue()
    for _ in range(REPLACEMENTS_WAITING_MAX):
        queue.submit(RequestKind.REPLACE)
    with pytest.raises(LimitError):
        queue.submit(RequestKind.REPLACE)
