"""What a request comes to, seen from what is recorded."""

from __future__ import annotations

import pytest

from controlplane.core.records import InstanceState
from controlplane.core.replace_decision import Begin, RaiseGeneration, Repeat, decide
from controlplane.core.replacement import Replacement, State
from stairlib.model.construction import Construction
from stairlib.model.errors import ConflictError, InvalidRequestError, StateError
from tests.unit.controlplane.core.records_made import TARGETS, disk, region, replacement, volume

WANTED = replacement().replacement
THIRD = volume(region((*TARGETS[:2], "127.0.0.1:8850"), gen=3))


def decided(
    wanted: Construction,
    *,
    newest: Replacement | None = None,
    recorded: Construction | None = None,
    state: InstanceState = InstanceState.RUNNING,
) -> object:
    if recorded is None:
        recorded = newest.replacement if newest else volume()
    return decide(disk(construction=recorded), state, newest, wanted, prefix="vcr")


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
