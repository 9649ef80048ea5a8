"""What the store does with the recorded request and the fleet when a replacement is undone."""

from __future__ import annotations

from uuid import UUID

import pytest

from controlplane.core import replacement as core
from controlplane.core.records import DownstairsRecord, Role
from controlplane.core.replacement import Event, Replacement, State, step
from controlplane.store.sql_store import SqlStore
from stairlib.model.errors import ConflictError
from tests.unit.controlplane.core.records_made import (
    DISK_KEY,
    TARGETS,
    disk,
    instance,
    region,
    volume,
)
from tests.unit.controlplane.store.test_sql_store import NEW, begun, roles

APPLIED = core.Applied(at=5, result="STARTED")
# Of the leases under which the replacements are driven.
EPOCHS: dict[UUID, int] = {}
CANCEL, CAN, UNDONE = core.CancelAsked(at=6), core.CanUndo(at=7), core.Undone(at=8)


@pytest.fixture
async def home(store: SqlStore) -> SqlStore:
    await store.add_instance(instance(), [disk()])
    return store


async def saved(store: SqlStore, record: Replacement, *events: Event) -> Replacement:
    for event in events:
        record, _ = step(record, event)
        await store.save_replacement(record, EPOCHS[record.id])
    return record


async def begin(store: SqlStore, **changes: object) -> Replacement:
    record = begun(**changes)
    EPOCHS[record.id] = (await store.begin_replacement(record)).epoch
    return record


async def test_every_field_of_a_stopped_one_comes_back(home: SqlStore) -> None:
    record = await begin(home, restarts=3, mended=2, mending=0, target_was="SPARE")
    record = await saved(home, record, core.PauseAsked(at=4), core.Blocked(at=5, on="vmmd is away"))
    assert record.blocked_since == 5
    assert await home.replacement(record.id) == record
    assert await home.running_replacements() == [record]


async def test_the_recorded_request_goes_with_the_state(home: SqlStore) -> None:
    record = await begin(home)
    record = await saved(home, record, CANCEL)
    assert (await home.disk("block2")).construction == record.replacement
    record = await saved(home, record, CAN)
    assert (await home.disk("block2")).construction == record.original
    assert (await home.disk("block2")).recorded_generation == 1
    back = await saved(home, record, core.Kept(at=8, detail="filled"))
    assert (await home.disk("block2")).construction == record.replacement
    again = await saved(home, back, CANCEL, CAN, core.GaveUp(at=9, error="no"))
    assert (await home.disk("block2")).construction == record.original
    revived, _ = step(again, core.Retried(at=10))
    await home.retry_replacement(revived)
    assert (await home.disk("block2")).construction == record.original


async def test_a_request_that_was_changed_meanwhile_is_left_alone(home: SqlStore) -> None:
    record = await saved(home, await begin(home), CANCEL)
    other = volume(region((*TARGETS[:2], NEW), gen=9))
    await home.record_construction(DISK_KEY, record.replacement, other)
    undo, _ = step(record, CAN)
    with pytest.raises(ConflictError) as caught:
        await home.save_replacement(undo, EPOCHS[undo.id])
    assert caught.value.reason == "RECORDED_VCR_CHANGED"
    assert (await home.replacement(record.id)).state is State.CANCELLING
    assert (await home.disk("block2")).construction == other


@pytest.mark.parametrize(
    ("was", "applied", "role"),
    [
        ("", False, "SPARE"),
        ("SPARE", False, "SPARE"),
        ("", True, "LEFTOVER"),
        ("SPARE", True, "LEFTOVER"),
        ("RETIRED", True, "RETIRED"),
        ("LEFTOVER", False, "LEFTOVER"),
    ],
)
async def test_what_becomes_of_the_new_target(
    home: SqlStore, was: str, applied: bool, role: str
) -> None:
    record = await begin(home, target_was=was)
    assert (await roles(home))[NEW] == "MEMBER"
    await saved(home, record, *([APPLIED] if applied else []), CANCEL, CAN, UNDONE)
    assert await roles(home) == {**dict.fromkeys(TARGETS, "MEMBER"), NEW: role}
    known = await home.downstairs(NEW)
    assert known is not None
    assert (known.volume_id is None) is (role == "SPARE")


async def test_a_leftover_that_was_made_anew_is_a_spare(home: SqlStore) -> None:
    await saved(home, await begin(home), APPLIED, CANCEL, CAN, UNDONE)
    await home.note_region(NEW, DISK_KEY)
    same = DownstairsRecord(address=NEW, role=Role.SPARE, region_id=DISK_KEY)
    assert (await home.put_downstairs(same)).role is Role.LEFTOVER
    anew = DownstairsRecord(address=NEW, role=Role.SPARE, region_id=instance().id)
    assert (await home.put_downstairs(anew)).role is Role.SPARE


async def test_an_undone_one_is_not_the_newest_and_another_may_begin(home: SqlStore) -> None:
    first = await saved(home, await begin(home), CANCEL, CAN, UNDONE)
    assert await home.newest_replacement(DISK_KEY) is None
    assert await home.running_replacements() == []
    second = await begin(home, number=8)
    assert await home.newest_replacement(DISK_KEY) == second
    listed = await home.list_replacements(limit=9)
    assert [each.id for _, each in listed] == [second.id, first.id]
