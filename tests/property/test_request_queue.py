"""Random requests against the laws a caller relies on, whatever the order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stairlib.model.errors import StateError
from vmmd.core.request_queue import Decision, QueueState, RequestKind, RequestQueue

ACTIONS = st.lists(
    st.one_of(
        st.sampled_from(list(RequestKind)),
        st.sampled_from(["do", "fail"]),
    ),
    max_size=40,
)


@given(ACTIONS)
def test_whatever_is_asked_the_machine_can_be_stopped_and_stays_stopped(
    actions: list[RequestKind | str],
) -> None:
    queue = RequestQueue()
    running: list[RequestKind] = []
    for action in actions:
        if isinstance(action, RequestKind):
            try:
                queue.submit(action)
            except StateError as error:
                assert error.message  # noqa: PT017 - a refusal must say why
        else:
            request = queue.pop()
            if request is not None:
                queue.completed(request.kind, failed=action == "fail")
                running.append(request.kind)
        assert len(queue._state_changes) <= 3
    was_over = queue.state in (QueueState.STOPPED, QueueState.FAILED)
    assert queue.submit(RequestKind.STOP) in (Decision.QUEUE, Decision.IGNORE)
    while (request := queue.pop()) is not None:
        queue.completed(request.kind)
    assert queue.state is QueueState.STOPPED or was_over
    assert running.count(RequestKind.RUN) <= 1
    for kind in (RequestKind.RUN, RequestKind.REBOOT, RequestKind.REPLACE):
        try:
            queue.submit(kind)
        except StateError:
            continue
        raise AssertionError(f"{kind} was taken after the end")
