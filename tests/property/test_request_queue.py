"""Random requests against the laws a caller relies on, whatever the order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stairlib.model.errors import StateError
from vmmd.core.guest_events import GuestEvent
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


class Oracle:
    """The rules of reference propolis.md §5 and §6, told another way: what a machine is asked and
    what its guest does, as sets of what is wanted rather than queues."""

    def __init__(self) -> None:
        self.phase = QueueState.NOT_STARTED
        self.run = self.stop = self.reboot = False
        self.replacements = 0
        self.news: set[GuestEvent] = set()

    @property
    def over(self) -> bool:
        return self.phase in (QueueState.STOPPED, QueueState.FAILED)

    def takes(self, kind: RequestKind) -> str:
        if kind is RequestKind.STOP:
            return "ignore" if self.over or self.stop else "queue"
        if self.stop and kind is not RequestKind.REPLACE:
            return "refuse"
        if self.over:
            # A reboot that was asked for before is asked for no more.
            return "refuse"
        if kind is RequestKind.REPLACE:
            return "queue"
        if kind is RequestKind.RUN:
            return "queue" if self.phase is QueueState.NOT_STARTED else "ignore"
        if self.phase is not QueueState.RUNNING:
            return "refuse"
        return "ignore" if self.reboot else "queue"

    def note(self, kind: RequestKind) -> None:
        if kind is RequestKind.RUN:
            self.run, self.phase = True, QueueState.STARTING
        elif kind is RequestKind.STOP:
            self.stop = True
        elif kind is RequestKind.REBOOT:
            self.reboot = True
        else:
            self.replacements += 1

    def heard(self) -> GuestEvent | None:
        """What is to be told next."""
        if self.phase is not QueueState.RUNNING or self.stop:
            return None
        gravest = [
            GuestEvent.DIED, GuestEvent.POWERED_OFF, GuestEvent.PANICKED, GuestEvent.RESET,
        ]  # fmt: skip
        return next((event for event in gravest if event in self.news), None)


STEPS = st.lists(
    st.one_of(
        st.sampled_from(list(RequestKind)),
        st.sampled_from(list(GuestEvent)),
        st.sampled_from(["do", "fail", "hear"]),
    ),
    max_size=60,
)


@given(STEPS)
def test_every_request_and_all_news_as_the_oracle_has_them(
    steps: list[RequestKind | GuestEvent | str],
) -> None:
    queue, oracle = RequestQueue(), Oracle()
    for step in steps:
        if isinstance(step, RequestKind):
            _ask(queue, oracle, step)
        elif isinstance(step, GuestEvent):
            wanted = oracle.phase in (QueueState.STARTING, QueueState.RUNNING) and not oracle.stop
            assert queue.tell(step, "why") == wanted
            if wanted:
                oracle.news.add(step)
        elif step == "hear":
            _hear(queue, oracle)
        else:
            _do(queue, oracle, failed=step == "fail")
        assert queue.state is oracle.phase


def _ask(queue: RequestQueue, oracle: Oracle, kind: RequestKind) -> None:
    wanted = oracle.takes(kind)
    try:
        verdict = queue.submit(kind).value
    except StateError:
        verdict = "refuse"
    assert verdict == wanted, kind
    if wanted == "queue":
        oracle.note(kind)


def _hear(queue: RequestQueue, oracle: Oracle) -> None:
    wanted = oracle.heard()
    told = queue.pop_event()
    assert (told.event if told else None) is wanted
    if wanted is None:
        return
    oracle.news.discard(wanted)
    if wanted in (GuestEvent.DIED, GuestEvent.POWERED_OFF):
        failed = wanted is GuestEvent.DIED
        queue.ended_by_itself(failed=failed)
        oracle.phase = QueueState.FAILED if failed else QueueState.STOPPED
        oracle.reboot = False
        oracle.news.clear()


def _do(queue: RequestQueue, oracle: Oracle, *, failed: bool) -> None:
    if oracle.over:
        return  # the machine hands out nothing any more; it answers what waits
    request = queue.pop()
    if request is None:
        assert not any((oracle.run, oracle.stop, oracle.reboot, oracle.replacements))
        return
    queue.completed(request.kind, failed=failed)
    if request.kind is RequestKind.REPLACE:
        assert not any((oracle.run, oracle.stop, oracle.reboot)), "state changes come first"
        oracle.replacements -= 1
    elif request.kind is RequestKind.STOP:
        oracle.stop = oracle.reboot = False
        oracle.phase = QueueState.STOPPED
    else:
        if request.kind is RequestKind.RUN:
            oracle.run = False
        else:
            oracle.reboot = False
        if failed:
            oracle.phase, oracle.reboot = QueueState.FAILED, False
        elif request.kind is RequestKind.RUN:
            oracle.phase = QueueState.RUNNING
