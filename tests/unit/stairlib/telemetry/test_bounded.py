"""What is left out of a trace that is too large."""

from stairlib.telemetry.trace_service import bounded
from stairwell.telemetry.v1.trace_service_pb2 import Span


def span(span_id, parent="", start=0, end=1, **more):
    return Span(
        trace_id="t", span_id=span_id, parent_span_id=parent, name="n",
        start_time_unix_nano=start, end_time_unix_nano=end, **more,
    )  # fmt: skip


def test_steps_and_failures_stay_when_ten_thousand_copies_do_not_fit():
    steps = [span(f"step{n}", "root", 1_000_000 * n + 2) for n in range(5)]
    copies = [span(f"copy{n}", "step1", n + 10) for n in range(10_000)]
    copies[9_000].status = "ERROR"
    kept = bounded([*copies, *steps, span("root", start=1)], 4_000)
    assert sum(each.ByteSize() for each in kept) <= 4_000
    ids = {each.span_id for each in kept}
    assert {"root", "copy9000", *(each.span_id for each in steps)} <= ids
    assert 10 < len(kept) < 1_000
    assert kept == sorted(kept, key=lambda one: one.start_time_unix_nano)


def test_what_has_ended_takes_the_place_of_what_was_under_way():
    early, late = span("a", end=0), span("a", end=9)
    assert bounded([early, late, early], 1_000) == [late]


def test_a_cycle_ends():
    assert len(bounded([span("a", "b"), span("b", "a")], 1)) == 0
    assert len(bounded([span("a", "b"), span("b", "a")], 1_000)) == 2
