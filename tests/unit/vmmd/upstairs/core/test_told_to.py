"""What a control plane tells an upstairs to do with one member: hold its repair, fill it anew, take
its replacement back."""

from __future__ import annotations

from tests.unit.vmmd.upstairs.core.test_troubles import (
    EXTENTS,
    done,
    nothing_is_owed,
    repairing,
    replace,
    settle,
    slot,
    world,
)
from tests.unit.vmmd.upstairs.world import World
from vmmd.upstairs.core import events
from vmmd.upstairs.core.events import ReplaceResult
from vmmd.upstairs.core.repair_limits import RepairLimits
from vmmd.upstairs.core.slot_states import SlotMode, SlotState

__all__ = ["repairing", "world"]


def take_back(world: World, old: str, new: str) -> events.Answer:
    return world.answers[world.ask(lambda key: events.TakeBack(key, old, new))]


def fill_again(world: World, number: int, *, whole: bool = False) -> events.Answer:
    return world.answers[
        world.ask(lambda key: events.RepairMember(key, number, whole, "it was told to"))
    ]


# ---- holding


def test_a_held_repair_copies_nothing_and_the_member_gets_every_write(repairing) -> None:
    repairing.feed(events.HoldRepair(2, held=True))
    assert slot(repairing, 2).repair_held
    # What was under way ends; of the model's copies none can stand still.
    repairing.run_until(lambda: False, 2)
    before = done(repairing)
    assert before < EXTENTS
    repairing.submit([repairing.write(4 * (EXTENTS - 1), 4), repairing.flush()])
    settle(repairing)
    assert done(repairing) == before
    assert slot(repairing, 2).state is SlotState.LIVE_REPAIR
    assert slot(repairing, 2).departing_address == "d2:1"
    newest = repairing.daemons["d2:1"].memory[4 * (EXTENTS - 1)]
    assert repairing.daemons["d3:1"].memory[4 * (EXTENTS - 1)] == newest
    repairing.feed(events.HoldRepair(2, held=False))
    assert repairing.run_until(repairing.healthy, 30)
    assert [repair.error for repair in repairing.repairs] == [""]
    assert nothing_is_owed(repairing)


def test_copies_under_way_are_slowed_to_a_standstill_and_take_up_their_limit(repairing) -> None:
    region = repairing.upstairs._region
    sent: list[int] = []
    send = region.send_control

    def noted(member, kind, **fields):
        if kind.name == "REPAIR_LIMIT":
            sent.append(fields["number"])
        return send(member, kind, **fields)

    region.send_control = noted
    repairing.feed(events.SetRepairLimit(RepairLimits(1 << 20)))
    repairing.feed(events.HoldRepair(2, held=True))
    repairing.feed(events.HoldRepair(2, held=True))
    repairing.feed(events.SetRepairLimit(RepairLimits(2 << 20)))
    repairing.feed(events.HoldRepair(2, held=False))
    assert sent == [1 << 20, 1, 1, 2 << 20]
    assert repairing.run_until(repairing.healthy, 30)


def test_a_hold_outlives_the_member_and_its_successor(repairing) -> None:
    repairing.feed(events.HoldRepair(2, held=True))
    repairing.break_links("d3:1")
    assert repairing.run_until(lambda: slot(repairing, 2).repairs_aborted == 1, 5)
    assert repairing.run_until(lambda: done(repairing) == 0, 20)
    repairing.run_until(lambda: False, 5)
    assert done(repairing) == 0
    assert replace(repairing, "d3:1", "d4:1").value.result is ReplaceResult.STARTED
    assert not repairing.run_until(repairing.healthy, 5)
    repairing.feed(events.HoldRepair(2, held=False))
    assert repairing.run_until(repairing.healthy, 30)


def test_a_held_repair_gives_way_to_another_slot_s(repairing) -> None:
    repairing.feed(events.HoldRepair(2, held=True))
    assert fill_again(repairing, 1).error is None
    repairing.submit([repairing.write(0, 4), repairing.flush()])
    assert repairing.run_until(lambda: slot(repairing, 1).state is SlotState.ACTIVE, 30)
    assert slot(repairing, 2).state is not SlotState.ACTIVE
    assert slot(repairing, 2).departing_address == "d2:1"
    repairing.feed(events.HoldRepair(2, held=False))
    assert repairing.run_until(repairing.healthy, 30)


# ---- filling anew


def test_a_repair_is_begun_anew(repairing) -> None:
    assert fill_again(repairing, 2).error is None
    assert slot(repairing, 2).last_error == "it was told to"
    assert repairing.run_until(repairing.healthy, 30)
    assert (slot(repairing, 2).repairs_aborted, slot(repairing, 2).repairs_completed) == (1, 1)


def test_a_member_that_differs_and_has_the_same_stamps_is_made_equal(world) -> None:
    daemon = world.daemons["d1:1"]
    daemon.memory[7] = daemon.durable[7] = (b"\x01" * 32, b"?" * 512)
    assert fill_again(world, 1).error is None
    assert world.run_until(world.healthy, 30)
    assert daemon.memory[7] != world.daemons["d0:1"].memory[7], "stamps alone do not show it"
    assert fill_again(world, 1, whole=True).error is None
    assert slot(world, 1).mode is SlotMode.FAULTED
    assert world.run_until(world.healthy, 30)
    assert daemon.memory[7] == world.daemons["d0:1"].memory[7]


def test_one_that_is_away_is_filled_when_it_comes_back(world) -> None:
    world.crash("d1:1")
    assert world.run_until(lambda: slot(world, 1).state is SlotState.WAIT_CONNECT, 5)
    assert fill_again(world, 1, whole=True).error is None
    world.start("d1:1")
    assert world.run_until(world.healthy, 60)


def test_the_only_whole_copy_is_left_alone(world) -> None:
    for address in ("d1:1", "d2:1"):
        world.crash(address)
    assert world.run_until(lambda: slot(world, 1).mode is SlotMode.FAULTED, 60)
    assert world.run_until(lambda: slot(world, 2).mode is SlotMode.FAULTED, 60)
    assert fill_again(world, 0).error.reason == "ONLY_COPY"
    assert slot(world, 0).state is SlotState.ACTIVE


def test_only_in_an_active_set() -> None:
    idle = World(3)
    assert "INITIALIZING" in fill_again(idle, 0).error.message
    assert fill_again(idle, 9).error.reason == "SLOT_NOT_FOUND"


# ---- taking back


def test_a_replacement_is_taken_back_while_the_old_one_serves(repairing) -> None:
    repairing.feed(events.HoldRepair(2, held=True))
    assert take_back(repairing, "d2:1", "d3:1").value is True
    assert slot(repairing, 2).address == "d2:1"
    assert slot(repairing, 2).state is SlotState.ACTIVE
    assert not slot(repairing, 2).repair_held
    assert nothing_is_owed(repairing)
    assert take_back(repairing, "d2:1", "d3:1").value is False, "asked again"


def test_a_request_that_comes_after_it_was_taken_back_is_refused(world) -> None:
    for applied in (False, True):
        name = f"replacement-{applied}"
        if applied:
            world.daemons["d3:1"].up = False
            replace(world, "d2:1", "d3:1")
        asked = world.ask(lambda key, name=name: events.TakeBack(key, "d2:1", "d3:1", name))
        assert world.answers[asked].value is applied
        late = world.ask(lambda key, name=name: events.Replace(key, "d2:1", "d3:1", name))
        assert world.answers[late].error.reason == "REPLACEMENT_UNDONE"
        assert slot(world, 2).address == "d2:1"
    other = world.ask(lambda key: events.Replace(key, "d2:1", "d3:1", "another"))
    assert world.answers[other].value.result is ReplaceResult.STARTED


def test_one_that_was_never_applied_is_none(world) -> None:
    world.feed(events.HoldRepair(2, held=True))
    assert take_back(world, "d2:1", "d3:1").value is False
    assert not slot(world, 2).repair_held
    assert world.healthy()


def test_one_whose_old_member_has_left_is_not_taken_back(repairing) -> None:
    assert repairing.run_until(repairing.healthy, 30)
    error = take_back(repairing, "d2:1", "d3:1").error
    assert error.reason == "CANNOT_TAKE_BACK"
    assert "d2:1 has left slot 2" in error.message
    assert slot(repairing, 2).address == "d3:1"


def test_nor_one_whose_old_member_is_not_whole_any_more(repairing) -> None:
    repairing.feed(events.HoldRepair(2, held=True))
    repairing.crash("d2:1")
    assert repairing.run_until(lambda: not slot(repairing, 2).departing_address, 60)
    assert take_back(repairing, "d2:1", "d3:1").error.reason == "CANNOT_TAKE_BACK"
