"""A repair is told in the trace of who follows it, from when he does."""

from __future__ import annotations

import pytest

from stairlib.telemetry.tracing import Tracing, context_from
from vmmd.upstairs.core.events import RepairEnded, RepairStarted
from vmmd.upstairs.shell.repair_spans import RepairSpans

CALL = f"00-{'ab' * 16}-{'cd' * 8}-01"
OTHER = f"00-{'ef' * 16}-{'cd' * 8}-01"
TRACE = "ab" * 16


@pytest.fixture
def tracing():
    return Tracing("machine", "m")


@pytest.fixture
def spans(tracing):
    made = RepairSpans(tracing)
    made.attributes = {"volume.id": "v"}
    return made


def started(slot=2, attempt=1):
    return RepairStarted(slot, "a:1", attempt)


def ended(slot=2, error=""):
    return RepairEnded(slot, error, 7, 70)


def follow(spans, tracing, parent=CALL, replacement="r"):
    with tracing.tracer.start_as_current_span("WatchVolume", context=context_from(parent)):
        return spans.follow(2, replacement)


def repairs(tracing, trace_id=TRACE):
    return [each for each in tracing.spans(trace_id) if each.name == "upstairs.live_repair"]


def test_a_repair_belongs_to_the_call_that_asked_for_it(spans, tracing):
    call = tracing.tracer.start_as_current_span("ReplaceVcr", context=context_from(CALL))
    with call, spans.replacing(2, "r", "old:1", "new:1"):
        pass
    carried = spans.started(started())
    assert carried.split("-")[1] == TRACE
    assert follow(spans, tracing) is None, "it is told there already"
    spans.ended(ended(error="the source is away"))
    spans.started(started(attempt=2))
    spans.ended(ended())
    first, second = repairs(tracing)
    assert (first.status, first.status_message) == ("ERROR", "the source is away")
    assert second.status == "UNSET"
    for each in (first, second):
        assert each.attributes["replacement.id"] == "r"
        assert (each.attributes["volume.id"], each.attributes["slot"]) == ("v", "2")
        assert each.attributes["bytes_copied"] == "70"


def test_a_repair_that_runs_when_its_follower_comes_goes_on_in_his_trace(spans, tracing):
    alone = spans.started(started())
    trace_id, span_id = alone.split("-")[1:3]
    carried = follow(spans, tracing)
    assert carried.split("-")[1] == TRACE
    spans.ended(ended())
    (before,) = repairs(tracing, trace_id)
    assert [event.name for event in before.events] == ["goes on in the trace of the replacement"]
    (after,) = repairs(tracing)
    assert [(link.trace_id, link.span_id) for link in after.links] == [(trace_id, span_id)]
    assert (after.attributes["replacement.id"], after.attributes["attempt"]) == ("r", "1")


def test_a_repair_that_begins_after_its_follower_came_is_his(spans, tracing):
    assert follow(spans, tracing) is None
    assert spans.started(started()).split("-")[1] == TRACE
    assert spans.started(started(slot=1)).split("-")[1] != TRACE, "another slot's is not"


def test_a_repair_after_the_member_was_whole_is_another_story(spans, tracing):
    follow(spans, tracing)
    spans.started(started())
    spans.ended(ended())
    assert spans.started(started(attempt=2)).split("-")[1] != TRACE
    spans.ended(ended(error="no"))
    follow(spans, tracing, OTHER)
    spans.settled(2)
    assert spans.started(started(attempt=3)).split("-")[1] != "ef" * 16


def test_a_region_that_is_let_go_cuts_what_runs(spans, tracing):
    follow(spans, tracing)
    spans.started(started())
    spans.tell(2, "limit changed", bytes_per_second_max=5)
    spans.tell(1, "limit changed", bytes_per_second_max=5)
    spans.close()
    (cut,) = repairs(tracing)
    assert cut.attributes["cut"] == "true"
    assert [event.name for event in cut.events] == ["limit changed"]
