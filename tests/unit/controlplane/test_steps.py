"""What peers' answers mean to a replacement."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.core import replacement as core
from controlplane.steps import (
    as_event,
    held,
    look,
    odd_one,
    original_as_running,
    region_ids,
    released,
    serves_alone,
    undoable,
    verified,
)
from stairlib.model.construction import regions
from stairlib.model.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    StairwellError,
    StateError,
    UnavailableError,
)
from stairwell.vmmd.v1 import volume_service_pb2 as pb
from tests.unit.controlplane.core.records_made import GEOMETRY, TARGETS, replacement

RECORD = replacement()
NEW = RECORD.new_target


def info(
    slot_state: Any = pb.SLOT_STATE_LIVE_REPAIR, state: Any = pb.VOLUME_STATE_ACTIVE, **slot: Any
) -> pb.VolumeInfo:
    third = pb.SlotInfo(**{"slot": 2, "address": NEW, "state": slot_state, **slot})
    others = [
        pb.SlotInfo(slot=number, address=TARGETS[number], state=pb.SLOT_STATE_ACTIVE)
        for number in (0, 1)
    ]
    region = pb.RegionInfo(path="sub_volumes[0]", state=state, slots=[*others, third])
    return pb.VolumeInfo(state=state, regions=[region])


@pytest.mark.parametrize(
    ("error", "ended", "expected"),
    [
        (UnavailableError("away"), "", core.Blocked(at=1, on="away")),
        (UnavailableError("slow", reason="DEADLINE_EXCEEDED"), "", core.StepFailed),
        (NotFoundError("machine", "x"), "", core.Blocked),
        (NotFoundError("target", "x"), "", core.StepFailed),
        (StateError("not now"), "", core.StepFailed(at=1, error="not now")),
        (ConflictError("busy"), "", core.StepFailed),
        (InvalidRequestError("wrong"), "", core.GaveUp(at=1, error="wrong")),
        (StairwellError("?"), "", core.StepFailed),
        (NotFoundError("machine", "x"), "it is gone", core.GaveUp),
        (StateError("no"), "it is gone", core.GaveUp(at=1, error="it is gone: no")),
        (UnavailableError("away"), "it is gone", core.Blocked),
    ],
)
def test_what_a_failure_means(error: StairwellError, ended: str, expected: Any) -> None:
    event = as_event(error, 1, ended)
    if isinstance(expected, type):
        assert type(event) is expected
    else:
        assert event == expected


def test_a_member_that_is_active_is_repaired() -> None:
    volume = info(pb.SLOT_STATE_ACTIVE)
    volume.regions[0].slots[RECORD.slot].repaired_bytes = 4096
    assert look(RECORD, volume, 1) == core.Repaired(at=1, bytes_copied=4096)
    not_yet = look(RECORD, info(pb.SLOT_STATE_ACTIVE, pb.VOLUME_STATE_GO_ACTIVE), 1)
    assert isinstance(not_yet, core.Observed)
    assert "GO_ACTIVE" in not_yet.blocked_on


def test_extents_that_need_no_repair_count_as_done() -> None:
    repair = pb.RepairProgress(
        bytes_done=10, bytes_total=100, bytes_copied=7, extents_done=1, extents_total=5
    )
    event = look(RECORD, info(repair=repair), 1)
    assert event == core.Observed(
        at=1, bytes_done=GEOMETRY.total_bytes - 90, bytes_copied=7, extents_done=124
    )


def test_what_it_waits_for() -> None:
    waiting = look(RECORD, info(pb.SLOT_STATE_WAIT_CONNECT, last_error="refused"), 1)
    assert waiting == core.Observed(at=1, blocked_on=f"slot 2 ({NEW}) is WAIT_CONNECT: refused")
    idle = look(RECORD, info(pb.SLOT_STATE_WAIT_CONNECT, pb.VOLUME_STATE_INITIALIZING), 1)
    assert isinstance(idle, core.Observed)
    assert "when the instance runs" in idle.blocked_on


def test_a_machine_with_another_target_or_none() -> None:
    other = look(RECORD, info(address=TARGETS[2]), 1)
    assert isinstance(other, core.Unapplied)
    assert isinstance(look(RECORD, pb.VolumeInfo(), 1), core.StepFailed)
    assert isinstance(look(RECORD, info(state=pb.VOLUME_STATE_DISABLED), 1), core.StepFailed)


def differing(region_path: str) -> pb.ExtentDifference:
    return pb.ExtentDifference(region_path=region_path, extent=3)


@pytest.mark.parametrize(
    ("report", "slot_state", "kind"),
    [
        ({"equal": True, "members_compared": 3}, pb.SLOT_STATE_ACTIVE, core.Verified),
        ({"equal": True, "members_compared": 2}, pb.SLOT_STATE_ACTIVE, core.Verified),
        ({"equal": True, "members_compared": 1}, pb.SLOT_STATE_ACTIVE, core.StepFailed),
        ({"equal": False, "members_compared": 3}, pb.SLOT_STATE_ACTIVE, core.StepFailed),
        ({"equal": True, "members_compared": 2}, pb.SLOT_STATE_WAIT_CONNECT, core.MemberLost),
        (
            {"members_compared": 3, "differences": [differing("sub_volumes[0]")]},
            pb.SLOT_STATE_ACTIVE, core.Differed,
        ),
        (
            {"members_compared": 3, "differences": [differing("read_only_parent")]},
            pb.SLOT_STATE_ACTIVE, core.Verified,
        ),
    ],
)  # fmt: skip
def test_what_a_comparison_says(report: dict[str, Any], slot_state: Any, kind: type) -> None:
    event = verified(RECORD, pb.VerifyReport(**report), info(slot_state), 1)
    assert type(event) is kind


@pytest.mark.parametrize(
    ("extents", "slot"),
    [
        ([(1, 1, 2)], 2),
        ([(2, 1, 1)], 0),
        ([(1, 2, 1)], 1),
        ([(0, 1, 2)], 2),
        ([(1, 2, 3)], 2),
        ([(1, 2, 0)], 2),
        ([(2, 1, 1), (1, 1, 2)], 2),
        ([(2, 1, 1), (2, 1, 1), (1, 1, 2)], 0),
        ([(0, 0, 0)], 2),
        ([()], 2),
    ],
)
def test_who_is_filled_again(extents: list[tuple[int, ...]], slot: int) -> None:
    """The one that two others agree against; the new one in doubt."""
    differing = [pb.ExtentDifference(digests=digests) for digests in extents]
    assert odd_one(differing, 2) == slot


def test_another_member_that_differed_is_waited_for() -> None:
    mending = replacement(mending=0)
    volume = info(pb.SLOT_STATE_ACTIVE)
    assert isinstance(look(mending, volume, 1), core.Repaired)
    volume.regions[0].slots[0].state = pb.SLOT_STATE_LIVE_REPAIR
    event = look(mending, volume, 1)
    assert isinstance(event, core.Observed)
    assert "slot 0" in event.blocked_on
    assert isinstance(look(RECORD, volume, 1), core.Repaired)


def test_whether_it_can_be_undone() -> None:
    old = RECORD.old_target
    assert type(undoable(RECORD, info(address=old), 1)) is core.CanUndo
    assert type(undoable(RECORD, info(address="127.0.0.1:9999"), 1)) is core.CanUndo
    assert type(undoable(RECORD, info(departing_address=old), 1)) is core.CanUndo
    filled = undoable(RECORD, info(pb.SLOT_STATE_ACTIVE), 1)
    assert isinstance(filled, core.Kept)
    assert old in filled.detail
    gone = undoable(RECORD, info(), 1)
    assert isinstance(gone, core.CannotUndo)
    assert "retry" in gone.detail
    idle = undoable(RECORD, info(pb.SLOT_STATE_ACTIVE, pb.VOLUME_STATE_INITIALIZING), 1)
    assert isinstance(idle, core.CannotUndo)


def test_what_a_paused_one_sees() -> None:
    repair = pb.RepairProgress(bytes_done=10, bytes_total=100, bytes_copied=7)
    assert held(RECORD, info(repair=repair), 1) is None
    event = held(RECORD, info(repair=repair, repair_held=True), 1)
    assert isinstance(event, core.Observed)
    assert event.bytes_copied == 7
    before = held(RECORD, info(address=RECORD.old_target, repair=repair, repair_held=True), 1)
    assert before == core.Observed(at=1), "the repair of the old member is not this one's"


def test_a_new_member_that_serves_alone_is_read_instead() -> None:
    """Only in a read-only region, and only when its blocks were read and are right."""
    alone = info()
    assert not serves_alone(RECORD, alone)
    alone.regions[0].read_only = True
    for slot in alone.regions[0].slots:
        slot.state = pb.SLOT_STATE_WAIT_CONNECT
    alone.regions[0].slots[RECORD.slot].state = pb.SLOT_STATE_ACTIVE
    assert serves_alone(RECORD, alone)
    read = pb.VerifyReport(equal=True, members_compared=1, blocks_read=7)
    assert isinstance(verified(RECORD, read, alone, 1), core.Verified)
    unread = pb.VerifyReport(equal=True, members_compared=1)
    assert isinstance(verified(RECORD, unread, alone, 1), core.StepFailed)
    bad = pb.VerifyReport(equal=False, members_compared=1, blocks_read=7, bad_blocks=1)
    assert isinstance(verified(RECORD, bad, alone, 1), core.StepFailed)
    alone.regions[0].slots[0].state = pb.SLOT_STATE_ACTIVE
    assert not serves_alone(RECORD, alone)


def test_regions_that_the_machine_has_seen() -> None:
    assert region_ids(info()) == {}
    found = region_ids(info(region_id="00000000-0000-0000-0000-000000000009"))
    assert {address: each.int for address, each in found.items()} == {NEW: 9}


def test_what_the_machine_has_in_the_slot_is_what_is_replaced() -> None:
    for address in ("", RECORD.old_target, NEW):
        assert original_as_running(RECORD, info(address=address)) == RECORD.original
    other = original_as_running(RECORD, info(address="127.0.0.1:9999"))
    ((_, region),) = regions(other)
    assert region.options.targets == (*TARGETS[:2], "127.0.0.1:9999")


def test_a_region_that_was_let_go_with_its_parent_leaves_nothing_to_replace() -> None:
    record = replacement(region_path="read_only_parent.sub_volumes[0]")
    done = pb.ScrubInfo(path="", state=pb.SCRUB_STATE_DONE)
    gone = pb.VolumeInfo(regions=info().regions, scrubs=[done])
    assert released(record, gone)
    assert isinstance(look(record, gone, 1), core.GaveUp)
    assert isinstance(verified(record, pb.VerifyReport(equal=True), gone, 1), core.GaveUp)
    # Not so while it is copied, for another volume's parent, or for a region that is still there.
    done.state = pb.SCRUB_STATE_RUNNING
    assert not released(record, pb.VolumeInfo(scrubs=[done]))
    done.state, done.path = pb.SCRUB_STATE_DONE, "sub_volumes[1]"
    assert not released(record, pb.VolumeInfo(scrubs=[done]))
    done.path = ""
    assert not released(RECORD, pb.VolumeInfo(regions=info().regions, scrubs=[done]))


@pytest.mark.parametrize(
    "error",
    [
        NotFoundError("machine", "m"),
        StateError("machine 'm' has ended (failed)", reason="MACHINE_ENDED"),
    ],
)
def test_a_machine_that_may_be_made_again_is_waited_for(error) -> None:
    event = as_event(error, 5.0, "")
    assert isinstance(event, core.Blocked)
    assert "waiting until the machine is made" in event.on
    assert isinstance(as_event(error, 5.0, "its instance was deleted"), core.GaveUp)
