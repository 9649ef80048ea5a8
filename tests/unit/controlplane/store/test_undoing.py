"""What the store does with the recorded request and the fleet when a replacement is undone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.core import replacement as core
from controlplane.core.records import DownstairsRecord, Role
from controlplane.core.replacement import Event, Replacement, State, step
from controlplane.store.sqlite import SqliteStore
from stairlib.model.errors import ConflictError
from tests.unit.controlplane.core.records_made import (
    DISK_KEY,
    TARGETS,
    disk,
    instance,
    region,
    volume,
)
from tests.unit.controlplane.store.test_sqlite import NEW, begun, roles

APPLIED = core.Applied(at=5, result="STARTED")
CANCEL, CAN, UNDONE = core.CancelAsked(at=6), core.CanUndo(at=7), core.Undone(at=8)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path)
    await opened.add_instance(instance(), [disk()])
    yield opened
    await opened.close()


async def saved(store: SqliteStore, record: Replacement, *events: Event) -> Replacement:
    for event in events:
        record, _ = step(record, event)
        await store.save_replacement(record)
    return record


async def begin(store: SqliteStore, **changes: object) -> Replacement:
    record = begun(**changes)
    await store.begin_replacement(record)
    return record


async def test_every_field_of_a_stopped_one_comes_back(store: SqliteStore) -> None:
    record = await begin(store, restarts=3, mended=2, mending=0, target_was="SPARE")
    record = await saved(
        store, record, core.PauseAsked(at=4), core.Blocked(at=5, on="vmmd is away")
    )
    assert record.blocked_since == 5
    assert await store.replacement(record.id) == record
    assert await store.running_replacements() == [record]


async def test_the_recorded_request_goes_with_the_state(store: SqliteStore) -> None:
    record = await begin(store)
    record = await saved(store, record, CANCEL)
    assert (await store.disk("block2")).construction == record.replacement
    record = await saved(store, record, CAN)
    assert (await store.disk("block2")).construction == record.original
    assert (await store.disk("block2")).recorded_generation == 1
    back = await saved(store, record, core.Kept(at=8, detail="filled"))
    assert (await store.disk("block2")).construction == record.replacement
    again = await saved(store, back, CANCEL, CAN, core.GaveUp(at=9, error="no"))
    assert (await store.disk("block2")).construction == record.original
    revived, _ = step(again, core.Retried(at=10))
    await store.retry_replacement(revived)
    assert (await store.disk("block2")).construction == record.original


async def test_a_request_that_was_changed_meanwhile_is_left_alone(store: SqliteStore) -> None:
    record = await saved(store, await begin(store), CANCEL)
    other = volume(region((*TARGETS[:2], NEW), gen=9))
    await store.record_construction(DISK_KEY, record.replacement, other)
    undo, _ = step(record, CAN)
    with pytest.raises(ConflictError) as caught:
        await store.save_replacement(undo)
    assert caught.value.reason == "RECORDED_VCR_CHANGED"
    assert (await store.replacement(record.id)).state is State.CANCELLING
    assert (await store.disk("block2")).construction == other


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
    store: SqliteStore, was: str, applied: bool, role: str
) -> None:
    record = await begin(store, target_was=was)
    assert (await roles(store))[NEW] == "MEMBER"
    await saved(store, record, *([APPLIED] if applied else []), CANCEL, CAN, UNDONE)
    assert await roles(store) == {**dict.fromkeys(TARGETS, "MEMBER"), NEW: role}
    known = await store.downstairs(NEW)
    assert known is not None
    assert (known.volume_id is None) is (role == "SPARE")


async def test_a_leftover_that_was_made_anew_is_a_spare(store: SqliteStore) -> None:
    await saved(store, await begin(store), APPLIED, CANCEL, CAN, UNDONE)
    await store.note_region(NEW, DISK_KEY)
    same = DownstairsRecord(address=NEW, role=Role.SPARE, region_id=DISK_KEY)
    assert (await store.put_downstairs(same)).role is Role.LEFTOVER
    anew = DownstairsRecord(address=NEW, role=Role.SPARE, region_id=instance().id)
    assert (await store.put_downstairs(anew)).role is Role.SPARE


async def test_an_undone_one_is_not_the_newest_and_another_may_begin(store: SqliteStore) -> None:
    first = await saved(store, await begin(store), CANCEL, CAN, UNDONE)
    assert await store.newest_replacement(DISK_KEY) is None
    assert await store.running_replacements() == []
    second = await begin(store, number=8)
    assert await store.newest_replacement(DISK_KEY) == second
    listed = await store.list_replacements(limit=9)
    assert [each.id for _, each in listed] == [second.id, first.id]
