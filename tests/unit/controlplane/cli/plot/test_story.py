"""What a picture tells of a replacement and its samples."""

from __future__ import annotations

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.cli.plot.story import Phase, tell
from stairwell.controlplane.v1.replacement_service_pb2 import (
    Replacement,
    ReplacementState,
    Transition,
)
from stairwell.vmmd.v1.volume_service_pb2 import VolumeSample

T0 = 1_000_000
STEPS = (("PREFLIGHT", 0), ("APPLY", 1), ("REPAIR", 2), ("PAUSED", 4), ("REPAIR", 6), ("VERIFY", 9))


def moment(seconds):
    found = Timestamp()
    found.FromNanoseconds(round((T0 + seconds) * 1e9))
    return found


def replacement(steps=(*STEPS, ("DONE", 10)), **more):
    transitions = [
        Transition(state=f"REPLACEMENT_STATE_{name}", time=moment(at), number=number)
        for number, (name, at) in enumerate(steps)
    ]
    return Replacement(
        id="r1", disk="block2", slot=2, old_target="a:1", new_target="b:2",
        state=transitions[-1].state if transitions else ReplacementState.REPLACEMENT_STATE_REPAIR,
        create_time=moment(0), update_time=moment(steps[-1][1] if steps else 0),
        transitions=transitions, bytes_copied=3 << 20, **more,
    )  # fmt: skip


def sample(end, p99=2.0, completed=10, **more):
    return VolumeSample(
        end_time=moment(end), seconds=1.0, completed=completed, p50_milliseconds=p99 / 2,
        p99_milliseconds=p99, **more,
    )  # fmt: skip


def test_phases_follow_each_other_to_the_end():
    story = tell(replacement(), [], 5)
    assert story.phases == (
        Phase("preflight", 0, 1), Phase("apply", 1, 2), Phase("repair", 2, 4),
        Phase("paused", 4, 6), Phase("repair", 6, 9), Phase("verify", 9, 10),
    )  # fmt: skip
    assert story.end == 10
    assert story.title == "block2 slot 2: a:1 -> b:2, done"


def test_a_state_that_is_entered_again_at_once_is_one_phase():
    steps = (("REPAIR", 0), ("REPAIR", 3), ("DONE", 5))
    assert tell(replacement(steps), [], 5).phases == (Phase("repair", 0, 5),)


def test_one_that_runs_goes_up_to_the_newest_sample():
    story = tell(replacement(STEPS[:3]), [sample(7)], 5)
    assert story.end == 7
    assert story.phases[-1] == Phase("repair", 2, 7)


def test_only_what_is_around_it_is_shown():
    story = tell(replacement(), [sample(end) for end in range(-20, 40)], 3)
    assert (story.moments[0].end, story.moments[-1].start) == (-2, 12)


def test_an_idle_guest_has_no_latency_and_a_rate_of_nothing():
    (one,) = tell(replacement(), [sample(3, completed=0)], 5).moments
    assert (one.p50, one.p99, one.guest) == (None, None, 0.0)


def test_rates_are_per_second_and_a_limit_counts_while_something_is_filled():
    half = VolumeSample(
        end_time=moment(3), seconds=0.5, read_bytes=10, write_bytes=20, repair_bytes=50,
        members_filled=1, repair_bytes_per_second_max=99,
    )  # fmt: skip
    (one,) = tell(replacement(), [half], 5).moments
    assert (one.guest, one.repair, one.limit) == (60, 100, 99)
    half.members_filled = 0
    (one,) = tell(replacement(), [half], 5).moments
    assert one.limit is None


def test_the_figures_before_during_and_after():
    samples = [sample(-1, 1.0), sample(0, 3.0), sample(5, 8.0), sample(12, 4.0)]
    summary = tell(replacement(), samples, 5).summary
    assert "before 2.0 ms, during 8.0 ms, after 4.0 ms" in summary
    assert "3 MiB copied in 7.0 s" in summary


@pytest.mark.parametrize("samples", [[], [sample(5, completed=0)]])
def test_what_is_not_known_is_not_told(samples):
    assert "p99" not in tell(replacement(), samples, 5).summary


def test_one_without_transitions_has_no_phases():
    assert tell(replacement(()), [sample(1)], 5).phases == ()
