"""Progress lines, their pace, and when a wait is over."""

import pytest

from controlplane.cli import watch
from stairwell.controlplane.v1.instance_service_pb2 import Instance, InstanceState, RequestedState
from stairwell.controlplane.v1.replacement_service_pb2 import Replacement, ReplacementState

MIB = 1 << 20
STATE = ReplacementState
REPAIR = STATE.REPLACEMENT_STATE_REPAIR


def repairing(**changes) -> Replacement:
    values = {
        "id": "r1",
        "disk": "block2",
        "slot": 2,
        "new_target": "127.0.0.1:8840",
        "state": REPAIR,
        "bytes_done": 256 * MIB,
        "bytes_total": 512 * MIB,
        "bytes_copied": 100 * MIB,
        "bytes_per_second": 88.5 * MIB,
        "eta_seconds": 2.9,
    }
    return Replacement(**{**values, **changes})


def at(seconds: float, state: int, replacement: Replacement) -> None:
    step = replacement.transitions.add(state=state)
    step.time.FromNanoseconds(int(seconds * 1e9))


def test_a_line_has_bytes_rate_time_left_and_phase():
    line = watch.progress_line(repairing())
    assert line.startswith("repair ")
    for part in ("50 %", "256 MiB of 512 MiB", "100 MiB copied", "88.5 MiB/s", "ETA 2.9 s"):
        assert part in line


def test_a_line_says_what_it_waits_for_and_which_attempt_it_is():
    line = watch.progress_line(repairing(blocked_on="vmmd is away", attempt=3))
    assert line.endswith("attempt 3  waits: vmmd is away")


def test_before_the_repair_there_is_nothing_to_count():
    line = watch.progress_line(Replacement(state=STATE.REPLACEMENT_STATE_PREFLIGHT))
    assert line == "preflight"


@pytest.mark.parametrize(
    ("done", "filled"), [(0, 0), (511 * MIB, 23), (512 * MIB, 24), (256 * MIB, 12)]
)
def test_the_bar_is_full_only_when_all_is_done(done, filled):
    assert watch.bar(done, 512 * MIB).count("━") == filled
    assert len(watch.live_line(repairing(bytes_done=done)).split()[0]) == watch.BAR_CELLS


@pytest.mark.parametrize(("columns", "cells"), [(200, 24), (100, 20), (40, 6)])
def test_the_bar_gives_way_on_narrow_terminals(columns, cells):
    line = watch.live_line(repairing(), columns)
    assert len(line.split()[0]) == cells
    assert len(line) < columns or cells == watch.BAR_CELLS_MIN


def test_the_bar_of_an_unknown_total_is_empty():
    assert "━" not in watch.bar(0, 0)


def test_the_last_words_of_a_good_end():
    done = repairing(state=STATE.REPLACEMENT_STATE_DONE, bytes_done=512 * MIB)
    at(10, STATE.REPLACEMENT_STATE_APPLY, done)
    at(11, REPAIR, done)
    at(13.5, STATE.REPLACEMENT_STATE_VERIFY, done)
    at(14, STATE.REPLACEMENT_STATE_DONE, done)
    first, second = watch.closing_lines(done)
    assert "slot 2 of block2 is now 127.0.0.1:8840, verified" in first
    assert "100 MiB copied in 2.5 s" in first
    assert second == "`stairwell trace r1` shows where the time went"


def test_the_last_words_of_a_bad_end():
    failed = repairing(state=STATE.REPLACEMENT_STATE_FAILED, last_error="the target is full")
    assert watch.closing_lines(failed) == ["failed: the target is full"]


def test_repair_time_spans_all_attempts():
    one = Replacement()
    at(1, REPAIR, one)
    at(3, REPAIR, one)
    at(7, STATE.REPLACEMENT_STATE_VERIFY, one)
    assert watch.repair_seconds(one) == 6


def test_repair_time_without_transitions_is_that_of_the_whole():
    one = Replacement()
    one.create_time.FromNanoseconds(10**9)
    one.update_time.FromNanoseconds(3 * 10**9)
    assert watch.repair_seconds(one) == 2


def test_a_log_gets_a_line_for_each_phase_and_otherwise_at_its_pace():
    pace = watch.Pace(interval=2.0)
    assert pace.admits("repair", 0.0)
    assert not pace.admits("repair", 1.9)
    assert pace.admits("verify", 1.95)
    assert not pace.admits("verify", 3.9)
    assert pace.admits("verify", 4.0)
    assert pace.admits("verify", 4.1, final=True)


def test_a_new_obstacle_is_news():
    assert watch.phase_of(repairing()) != watch.phase_of(repairing(blocked_on="vmmd"))


RUN, STOP, REBOOT = (
    RequestedState.REQUESTED_STATE_RUN,
    RequestedState.REQUESTED_STATE_STOP,
    RequestedState.REQUESTED_STATE_REBOOT,
)


def instance(state: str, generation: int = 5) -> Instance:
    return Instance(
        state=InstanceState.Value(f"INSTANCE_STATE_{state}"), state_generation=generation
    )


@pytest.mark.parametrize(
    ("wanted", "now", "reached"),
    [
        (RUN, instance("STARTING"), None),
        (RUN, instance("RUNNING"), True),
        (RUN, instance("FAILED"), False),
        (RUN, instance("DESTROYED"), False),
        (STOP, instance("STOPPED"), None),
        (STOP, instance("DESTROYED"), True),
        (STOP, instance("FAILED"), False),
        (REBOOT, instance("RUNNING", 5), None),
        (REBOOT, instance("REBOOTING", 6), None),
        (REBOOT, instance("RUNNING", 7), True),
        (REBOOT, instance("DESTROYED", 7), False),
    ],
)
def test_when_a_wait_is_over(wanted, now, reached):
    assert watch.wanted_reached(wanted, instance("CREATING", 5), now) is reached
