"""What a request comes to, seen from what is recorded."""

from __future__ import annotations

import pytest

from controlplane.core.records import InstanceState
from controlplane.core.replace_decision import Begin, RaiseGeneration, Repeat, decide
from controlplane.core.replacement import Replacement, State
from controlplane.core.scrub import Scrub
from controlplane.core.scrub import State as ScrubState
from stairlib.model.construction import Construction, FileSpec, VolumeSpec
from stairlib.model.construction_diff import Outcome, compare
from stairlib.model.errors import ConflictError, InvalidRequestError, StateError
from tests.unit.controlplane.core.records_made import (
    TARGETS,
    VOLUME,
    disk,
    parent,
    region,
    replacement,
    scrub,
    volume,
)

WANTED = replacement().replacement
THIRD = volume(region((*TARGETS[:2], "127.0.0.1:8850"), gen=3))


def decided(
    wanted: Construction,
    *,
    newest: Replacement | None = None,
    recorded: Construction | None = None,
    state: InstanceState = InstanceState.RUNNING,
    scrubs: tuple[Scrub, ...] = (),
) -> object:
    if recorded is None:
        recorded = newest.replacement if newest else volume()
    found = disk(construction=recorded)
    return decide(found, state, newest, wanted, prefix="vcr", scrubs=scrubs)


def test_the_first_time_it_begins() -> None:
    found = decided(WANTED)
    assert isinstance(found, Begin)
    assert (found.changed.slot, found.changed.new) == (2, "127.0.0.1:8840")


@pytest.mark.parametrize("state", [s for s in State if s.name not in ("VALIDATE", "PREFLIGHT")])
def test_the_same_again_is_the_same_replacement(state: State) -> None:
    record = replacement(state=state)
    assert decided(WANTED, newest=record) == Repeat(record)


def test_the_same_after_another_request_was_recorded_is_judged_anew() -> None:
    record = replacement(state=State.DONE)
    with pytest.raises(InvalidRequestError):
        decided(WANTED, newest=record, recorded=volume(region(gen=3)))


def test_a_generation_alone() -> None:
    assert isinstance(decided(volume(region(gen=2))), RaiseGeneration)


def test_no_difference() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        decided(volume())
    assert caught.value.reason == "NO_DIFFERENCE"


def test_all_violations_carry_the_prefix() -> None:
    wanted = volume(region(("127.0.0.1:1", "127.0.0.1:2", TARGETS[2]), gen=4))
    with pytest.raises(InvalidRequestError) as caught:
        decided(wanted, recorded=volume(region(gen=5)))
    found = {each.field for each in caught.value.violations}
    assert {"vcr.sub_volumes[0].gen", "vcr.sub_volumes[0].opts.target[1]"} <= found
    assert all(each.startswith("vcr.") for each in found)


def test_another_one_while_one_runs_waits_its_turn() -> None:
    record = replacement(state=State.REPAIR)
    with pytest.raises(ConflictError) as caught:
        decided(THIRD, newest=record)
    assert caught.value.metadata["replacement"] == str(record.id)
    # Right against what was recorded before, wrong against what is now: it comes too late, not
    # malformed.
    other_slot = volume(region(("127.0.0.1:1", *TARGETS[1:]), gen=2))
    with pytest.raises(ConflictError):
        decided(other_slot, newest=record)
    with pytest.raises(InvalidRequestError):
        decided(volume(region(gen=2), block_size=512), newest=record)


def test_after_a_failure_another_one_may_begin() -> None:
    found = decided(THIRD, newest=replacement(state=State.FAILED))
    assert isinstance(found, Begin)
    assert found.changed.old == "127.0.0.1:8840"


@pytest.mark.parametrize("state", [InstanceState.FAILED, InstanceState.DESTROYED])
def test_an_instance_that_has_ended_takes_none(state: InstanceState) -> None:
    for wanted in (WANTED, volume(region(gen=2))):
        with pytest.raises(StateError) as caught:
            decided(wanted, state=state)
        assert caught.value.reason == "INSTANCE_ENDED"


OVER_PARENT = volume(region(gen=3), read_only_parent=parent())
DROPS = {
    "alone": volume(region(gen=3)),
    "with a generation": volume(region(gen=4)),
    "with a target": volume(region((*TARGETS[:2], "127.0.0.1:8840"), gen=4)),
}


@pytest.mark.parametrize("how", DROPS)
@pytest.mark.parametrize("replacing", [None, State.DONE, State.REPAIR])
def test_a_parent_that_was_not_copied_is_not_dropped(how: str, replacing: State | None) -> None:
    newest = replacing and replacement(state=replacing, replacement=OVER_PARENT)
    for state in (None, ScrubState.STOPPED, ScrubState.FAILED):
        scrubs = (scrub(state=state),) if state else ()
        with pytest.raises(StateError) as caught:
            decided(DROPS[how], recorded=OVER_PARENT, newest=newest, scrubs=scrubs)
        assert caught.value.reason == "PARENT_NOT_SCRUBBED"
        assert caught.value.metadata["path"] == ""
        assert caught.value.metadata["field"] == "vcr.read_only_parent"
        assert "`stairwell disk scrub block2`" in caught.value.message
    # The comparison alone goes on accepting it.
    assert compare(OVER_PARENT, DROPS[how]).outcome is not Outcome.REJECT


def test_a_drop_while_the_scrub_runs_is_told_to_wait() -> None:
    with pytest.raises(StateError) as caught:
        decided(DROPS["alone"], recorded=OVER_PARENT, scrubs=(scrub(),))
    assert caught.value.reason == "PARENT_NOT_SCRUBBED"
    assert "its scrub is running" in caught.value.message


def test_a_drop_deeper_down_is_named_by_its_path() -> None:
    def nested(under: VolumeSpec | None) -> VolumeSpec:
        inner = VolumeSpec(VOLUME, 4096, (region(("n:1", "n:2", "n:3")),), under)
        return volume(region(gen=3 if under else 4), inner)

    with pytest.raises(StateError) as caught:
        decided(nested(None), recorded=nested(parent()))
    assert caught.value.metadata["path"] == "sub_volumes[1]"
    assert "--path 'sub_volumes[1]'" in caught.value.message
    # Of a parent's own parent, too: its blocks are seen through it.
    upper = volume(region(gen=4), read_only_parent=parent())
    base = FileSpec(VOLUME, 4096, "/x")
    lower = volume(region(gen=3), read_only_parent=parent(read_only_parent=base))
    with pytest.raises(StateError) as caught:
        decided(upper, recorded=lower)
    assert caught.value.metadata["path"] == "read_only_parent"


def test_a_request_with_the_parent_after_the_scrub_is_told_that_it_is_gone() -> None:
    done = scrub(state=ScrubState.DONE, recorded_generation=4)
    with pytest.raises(InvalidRequestError) as caught:
        decided(OVER_PARENT, recorded=volume(region(gen=4)), scrubs=(done,))
    found = {each.field: each for each in caught.value.violations}
    assert found["vcr.read_only_parent"].reason == "PARENT_SCRUBBED"
    assert "gen at least 4" in found["vcr.read_only_parent"].description
    assert found["vcr.sub_volumes[0].gen"].reason == "GENERATION_LOWERED"
    with pytest.raises(InvalidRequestError) as caught:
        decided(OVER_PARENT, recorded=volume(region(gen=3)))
    assert caught.value.violations[0].reason == "READ_ONLY_PARENT_ADDED"


def test_trees_are_remembered_too() -> None:
    """The same request again is the replacement it led to, wherever the target was."""
    for path in ("sub_volumes[0]", "read_only_parent.sub_volumes[0]"):
        record = replacement(
            state=State.DONE, original=OVER_PARENT, region_path=path,
            replacement=volume(region(gen=4), read_only_parent=parent(("p:9", "p:2", "p:3"))),
        )  # fmt: skip
        assert decided(record.replacement, newest=record) == Repeat(record)
    with pytest.raises(InvalidRequestError) as caught:
        decided(OVER_PARENT, recorded=OVER_PARENT)
    assert caught.value.reason == "NO_DIFFERENCE"
