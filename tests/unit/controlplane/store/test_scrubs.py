"""Scrubs in the store: kept with their disk, and a parent dropped wholly or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from controlplane.core import replacement as replacement_core
from controlplane.core import scrub as core
from controlplane.core.leases import Lease, LeaseLostError
from controlplane.core.parents import without_parent
from controlplane.core.replacement import State as ReplacementState
from controlplane.core.scrub import Scrub, State, step
from controlplane.store.place import Place
from controlplane.store.sql_store import SqlStore
from stairlib.model.construction import U64_MAX
from stairlib.model.errors import ConflictError, NotFoundError
from tests.unit.controlplane.core.records_made import (
    DISK_KEY,
    INSTANCE,
    TARGETS,
    disk,
    instance,
    parent,
    region,
    replacement,
    scrub,
    volume,
)

OVER_PARENT = volume(read_only_parent=parent())
WANTED = without_parent(OVER_PARENT, "", disk="block2")


@pytest.fixture
async def store(place: Place) -> AsyncIterator[SqlStore]:
    opened = await SqlStore.open(place)
    await opened.add_instance(instance(), [disk(construction=OVER_PARENT)])
    yield opened
    await opened.close()


def dropped(record: Scrub) -> Scrub:
    copied, _ = step(record, core.Copied(at=2000.0, bytes_total=1))
    done, _ = step(copied, core.Dropped(at=2001.0, original=OVER_PARENT, recorded=WANTED))
    return done


async def test_every_field_comes_back(store: SqlStore) -> None:
    record = scrub(
        state=State.DROP, bytes_done=U64_MAX - 1, bytes_total=U64_MAX, bytes_per_second_max=7,
        attempt=2, next_attempt_at=9.5, blocked_on="vmmd", last_error="unreadable",
    )  # fmt: skip
    await store.begin_scrub(record)
    assert await store.scrubs(DISK_KEY) == [record]
    assert await store.running_scrubs() == [record]
    changed = replace(record, state=State.FAILED, next_attempt_at=None)
    await store.save_scrub(changed, 1)
    assert await store.scrubs(DISK_KEY) == [changed]
    assert await store.running_scrubs() == []


async def test_the_newest_of_each_volume(store: SqlStore) -> None:
    first = scrub(state=State.STOPPED)
    inner = scrub(path="sub_volumes[1]", created_at=1500.0)
    again = scrub(created_at=2000.0)
    for record in (first, inner, again):
        await store.begin_scrub(record)
    assert await store.scrubs(DISK_KEY) == [again, inner]
    assert await store.running_scrubs() == [inner, again]


async def test_the_request_and_the_scrub_change_together(store: SqlStore) -> None:
    record = scrub()
    await store.begin_scrub(record)
    done = dropped(record)
    await store.drop_parent(done, OVER_PARENT, WANTED, 1)
    found = await store.disk("block2")
    assert found.construction == WANTED
    assert found.recorded_generation == done.recorded_generation == 2
    assert await store.scrubs(DISK_KEY) == [done]


async def test_the_members_of_a_parent_of_one_s_own_go_with_it(place: Place) -> None:
    """A parent that is not read-only serves this volume alone."""
    own = region(("o:1", "o:2", "o:3"))
    original = volume(region(), read_only_parent=own)
    wanted = without_parent(original, "", disk="block2")
    store = await SqlStore.open(place)
    await store.add_instance(instance(), [disk(construction=original)])
    record = scrub()
    await store.begin_scrub(record)
    await store.drop_parent(dropped(record), original, wanted, 1)
    roles = {each.address: each.role.value for each in await store.list_downstairs()}
    await store.close()
    assert roles == dict.fromkeys(TARGETS, "MEMBER") | dict.fromkeys(own.options.targets, "RETIRED")


async def test_nothing_is_dropped_of_a_request_that_was_changed_meanwhile(
    store: SqlStore,
) -> None:
    record = scrub()
    await store.begin_scrub(record)
    other = volume(region(gen=5), read_only_parent=parent())
    await store.record_construction(DISK_KEY, OVER_PARENT, other)
    with pytest.raises(ConflictError) as caught:
        await store.drop_parent(dropped(record), OVER_PARENT, WANTED, 1)
    assert caught.value.reason == "RECORDED_VCR_CHANGED"
    assert (await store.disk("block2")).construction == other
    assert await store.scrubs(DISK_KEY) == [record]


async def test_nothing_is_dropped_while_a_replacement_runs(store: SqlStore) -> None:
    record = scrub()
    await store.begin_scrub(record)
    target = region((*TARGETS[:2], "127.0.0.1:8840"), gen=2)
    after = volume(target, read_only_parent=parent())
    running = replacement(state=ReplacementState.APPLY, original=OVER_PARENT, replacement=after)
    await store.begin_replacement(running)
    wanted = without_parent(after, "", disk="block2")
    with pytest.raises(ConflictError) as caught:
        await store.drop_parent(dropped(record), after, wanted, 1)
    assert caught.value.reason == "REPLACEMENT_RUNNING"
    assert caught.value.metadata["replacement"] == str(running.id)
    assert (await store.disk("block2")).construction == after
    ended, _ = replacement_core.step(running, replacement_core.GaveUp(at=1, error="no"))
    await store.save_replacement(ended, 1)
    await store.drop_parent(dropped(record), after, wanted, 1)
    assert (await store.disk("block2")).construction == wanted


async def test_of_a_drop_and_a_replacement_at_once_one_starts_from_the_other(
    store: SqlStore,
) -> None:
    """Whichever comes first, the other one finds another request recorded, and nothing is lost."""
    record = scrub()
    await store.begin_scrub(record)
    after = volume(region((*TARGETS[:2], "127.0.0.1:8840"), gen=2), read_only_parent=parent())
    begun = replacement(state=ReplacementState.APPLY, original=OVER_PARENT, replacement=after)
    outcomes = await asyncio.gather(
        store.drop_parent(dropped(record), OVER_PARENT, WANTED, 1),
        store.begin_replacement(begun),
        return_exceptions=True,
    )
    (lost,) = [each for each in outcomes if each is not None and not isinstance(each, Lease)]
    assert isinstance(lost, ConflictError)
    first = WANTED if outcomes[0] is None else after
    assert (await store.disk("block2")).construction == first


async def test_a_failed_replacement_goes_on_only_from_what_it_recorded(
    store: SqlStore,
) -> None:
    after = volume(region((*TARGETS[:2], "127.0.0.1:8840"), gen=2), read_only_parent=parent())
    begun = replacement(state=ReplacementState.APPLY, original=OVER_PARENT, replacement=after)
    await store.begin_replacement(begun)
    failed, _ = replacement_core.step(begun, replacement_core.GaveUp(at=1, error="no"))
    again, _ = replacement_core.step(failed, replacement_core.Retried(at=2))
    await store.save_replacement(failed, 1)
    lease = await store.retry_replacement(again)
    assert await store.replacement(begun.id) == again
    failed, _ = replacement_core.step(again, replacement_core.GaveUp(at=3, error="no"))
    again, _ = replacement_core.step(failed, replacement_core.Retried(at=4))
    with pytest.raises(LeaseLostError):
        await store.save_replacement(failed, 1)
    await store.save_replacement(failed, lease.epoch)
    record = scrub()
    await store.begin_scrub(record)
    await store.drop_parent(dropped(record), after, without_parent(after, "", disk="block2"), 1)
    with pytest.raises(ConflictError) as caught:
        await store.retry_replacement(again)
    assert caught.value.reason == "RECORDED_VCR_CHANGED"
    assert await store.replacement(begun.id) == failed


async def test_a_failed_replacement_does_not_go_on_beside_another(store: SqlStore) -> None:
    begun = replacement(
        state=ReplacementState.APPLY, original=OVER_PARENT,
        replacement=volume(region((*TARGETS[:2], "n:1"), gen=2)), new_target="n:1",
    )  # fmt: skip
    await store.begin_replacement(begun)
    failed, _ = replacement_core.step(begun, replacement_core.GaveUp(at=1, error="no"))
    again, _ = replacement_core.step(failed, replacement_core.Retried(at=2))
    await store.save_replacement(failed, 1)
    second = replacement(
        number=8, state=ReplacementState.APPLY, original=begun.replacement,
        replacement=begun.replacement, new_target="n:1",
    )  # fmt: skip
    await store.begin_replacement(second)
    with pytest.raises(ConflictError) as caught:
        await store.retry_replacement(again)
    assert caught.value.reason == "REPLACEMENT_RUNNING"


async def test_a_disk_takes_its_scrubs_with_it(store: SqlStore) -> None:
    record = scrub()
    await store.begin_scrub(record)
    await store.delete_instance(INSTANCE)
    assert await store.running_scrubs() == []
    with pytest.raises(NotFoundError):
        await store.save_scrub(record, 1)
    with pytest.raises(NotFoundError):
        await store.begin_scrub(record)


async def test_an_instance_that_is_taken_back_takes_them_too(store: SqlStore) -> None:
    await store.begin_scrub(scrub())
    await store.forget_instance(INSTANCE)
    assert await store.scrubs(DISK_KEY) == []


async def test_members_of_a_shared_region_are_nobody_s_to_retire(store: SqlStore) -> None:
    """A parent's old target may still serve other disks; its new one serves them later."""
    await store.add_instance(
        instance(id=UUID(int=11), name="other"),
        [disk(key=uuid4(), name="b", instance_id=UUID(int=11),
              construction=volume(region(("a:1", "a:2", "a:3")), id=uuid4()))],
    )  # fmt: skip
    roles = {each.address: each.role for each in await store.list_downstairs()}
    shared = replacement(
        state=ReplacementState.APPLY, original=OVER_PARENT, old_target="p:1", new_target="p:9",
        path="read_only_parent.sub_volumes[0].opts.target[0]", slot=0,
        region_path="read_only_parent.sub_volumes[0]",
        replacement=volume(read_only_parent=parent(("p:9", "p:2", "p:3"), gen=2)),
    )  # fmt: skip
    await store.begin_replacement(shared)
    await store.retire_member(shared, 1)
    assert {each.address: each.role for each in await store.list_downstairs()} == roles
