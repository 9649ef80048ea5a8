"""The store keeps what it is told, whole or not at all."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from controlplane.core import replacement as core
from controlplane.core.records import Desired, DownstairsRecord, InstanceState, Role
from controlplane.core.replacement import Replacement, State, step
from controlplane.store import sql_replacements
from controlplane.store.base import StoredAnswer, StoredSpan
from controlplane.store.place import Place
from controlplane.store.sql_store import SqlStore
from stairlib.model.errors import AlreadyExistsError, ConflictError, NotFoundError, StateError
from tests.unit.controlplane.core.records_made import (
    DISK_KEY,
    GEOMETRY,
    INSTANCE,
    TARGETS,
    VOLUME,
    disk,
    instance,
    region,
    replacement,
    volume,
)

NEW = "127.0.0.1:8840"


def begun(**changes: object) -> Replacement:
    record = replacement(**changes)
    for event in (core.Validated(at=1001), core.Preflighted(at=1002), core.Recorded(at=1003)):
        record, _ = step(record, event)
    return record


async def roles(store: SqlStore) -> dict[str, str]:
    return {each.address: each.role.value for each in await store.list_downstairs()}


async def test_an_instance_with_its_disk_and_members(store: SqlStore) -> None:
    await store.add_instance(instance(), [disk()])
    assert await store.instance("crub") == instance()
    assert await store.instance(str(INSTANCE)) == instance()
    for name in ("block2", str(VOLUME), str(VOLUME).upper()):
        assert await store.disk(name) == disk()
    assert await store.list_disks(instance_id=INSTANCE, limit=0) == [disk()]
    assert await roles(store) == dict.fromkeys(TARGETS, "MEMBER")
    with pytest.raises(NotFoundError):
        await store.instance("x")
    with pytest.raises(NotFoundError):
        await store.disk("x")


async def test_it_is_there_after_a_restart(place: Place) -> None:
    first = await SqlStore.open(place)
    secret = disk(construction=volume(region(key="k" * 44, flush_timeout=0.25)))
    await first.add_instance(instance(), [secret])
    await first.close()
    second = await SqlStore.open(place)
    assert await second.disk("block2") == secret
    await second.close()


async def test_what_is_taken_is_refused_whole(store: SqlStore) -> None:
    await store.add_instance(instance(), [disk()])
    other = instance(id=UUID(int=11), name="other")
    fresh = disk(key=uuid4(), name="block3", instance_id=other.id)
    elsewhere = volume(region(("a:1", "a:2", "a:3")), id=uuid4())
    for taken in (
        (instance(id=UUID(int=11)), []),
        (replace(other, id=INSTANCE), []),
        (other, [replace(fresh, name="block2", construction=elsewhere)]),
        (other, [fresh]),
    ):
        with pytest.raises(AlreadyExistsError):
            await store.add_instance(*taken)
    shared = replace(fresh, construction=volume(region(("a:1", "a:2", TARGETS[0])), id=uuid4()))
    with pytest.raises(StateError) as caught:
        await store.add_instance(other, [shared])
    assert caught.value.reason == "TARGET_IN_USE"
    assert [each.name for each in await store.list_instances(limit=9)] == ["crub"]
    assert await roles(store) == dict.fromkeys(TARGETS, "MEMBER")


async def test_forgotten_as_if_it_had_never_been(store: SqlStore) -> None:
    spare = DownstairsRecord(TARGETS[0], Role.SPARE, UUID(int=5), None, GEOMETRY)
    await store.put_downstairs(spare)
    await store.add_instance(instance(), [disk()])
    await store.forget_instance(INSTANCE)
    assert await store.list_instances(limit=9) == []
    assert await store.list_downstairs() == [spare]


async def test_deleted_leaves_retired_members_and_generations(store: SqlStore) -> None:
    await store.add_instance(instance(confirmed=False), [disk()])
    await store.confirm_instance(INSTANCE, {VOLUME: 4})
    assert (await store.instance("crub")).confirmed
    await store.delete_instance(INSTANCE)
    assert await roles(store) == dict.fromkeys(TARGETS, "RETIRED")
    assert await store.next_generation(VOLUME, 1) == 5
    await store.add_instance(instance(), [disk()])
    assert await roles(store) == dict.fromkeys(TARGETS, "MEMBER")


async def test_states_rise_and_repeat_nothing(store: SqlStore) -> None:
    await store.add_instance(instance(), [])
    assert await store.set_instance_state(INSTANCE, InstanceState.RUNNING, "", 1) is None
    changed = await store.set_instance_state(INSTANCE, InstanceState.FAILED, "why", 1)
    assert changed is not None
    assert (changed.state_generation, changed.reason) == (4, "why")
    assert await store.set_instance_state(uuid4(), InstanceState.FAILED, "", 1) is None
    await store.set_desired(INSTANCE, Desired.STOPPED)
    assert (await store.instance("crub")).desired is Desired.STOPPED


async def test_generations_are_handed_out_once_and_use_all_of_64_bits(store: SqlStore) -> None:
    assert await store.next_generation(VOLUME, 3) == 3
    assert [await store.hand_out_generation(VOLUME, 3) for _ in range(3)] == [3, 4, 5]
    assert await store.hand_out_generation(VOLUME, 9) == 9
    assert await store.hand_out_generation(UUID(int=8), (1 << 64) - 2) == (1 << 64) - 2
    assert await store.hand_out_generation(UUID(int=8), 0) == (1 << 64) - 1


async def test_a_replacement_from_its_first_row_to_its_end(store: SqlStore) -> None:
    await store.add_instance(instance(), [disk()])
    record = begun()
    await store.begin_replacement(record)
    assert await store.replacement(record.id) == record
    assert (await store.disk("block2")).construction == record.replacement
    assert (await store.disk("block2")).recorded_generation == 2
    assert (await roles(store))[NEW] == "MEMBER"
    assert await store.running_replacements() == [record]
    for event in (
        core.StepFailed(at=1004, error="no"), core.RetryDue(at=1005),
        core.Applied(at=1006, result="STARTED"), core.Repaired(at=1007),
        core.Verified(at=1008, extents=128, members=3),
    ):  # fmt: skip
        record, _ = step(record, event)
        await store.save_replacement(record, 1)
        assert await store.replacement(record.id) == record
    for _ in range(2):
        await store.retire_member(record, 1)
    assert (await roles(store))[TARGETS[2]] == "RETIRED"
    record, _ = step(record, core.Retired(at=1009))
    await store.save_replacement(record, 1)
    assert await store.running_replacements() == []
    assert await store.newest_replacement(DISK_KEY) == record
    assert await store.replacement_of_trace(record.trace_id) == record


async def test_beginning_is_all_or_nothing(store: SqlStore) -> None:
    await store.add_instance(instance(), [disk()])
    other = instance(id=UUID(int=11), name="other")
    construction = volume(region((NEW, "a:2", "a:3")), id=uuid4())
    await store.add_instance(
        other, [disk(key=uuid4(), name="b", instance_id=other.id, construction=construction)]
    )
    with pytest.raises(StateError) as caught:
        await store.begin_replacement(begun())
    assert caught.value.reason == "TARGET_IN_USE"
    assert (await store.disk("block2")).construction == volume()
    with pytest.raises(NotFoundError):
        await store.replacement(begun().id)


async def test_only_one_of_two_that_start_from_the_same_request(store: SqlStore) -> None:
    await store.add_instance(instance(), [disk()])
    outcomes = await asyncio.gather(
        *(store.begin_replacement(begun(number=number)) for number in (21, 22)),
        return_exceptions=True,
    )
    (lost,) = [each for each in outcomes if isinstance(each, ConflictError)]
    assert lost.reason == "RECORDED_VCR_CHANGED"
    assert len(await store.running_replacements()) == 1


async def test_one_running_replacement_of_a_disk(store: SqlStore) -> None:
    await store.add_instance(instance(), [disk()])
    first = begun()
    await store.begin_replacement(first)
    second = begun(
        number=8, original=first.replacement, new_target="127.0.0.1:8850",
        replacement=volume(region((*TARGETS[:2], "127.0.0.1:8850"), gen=3)),
    )  # fmt: skip
    with pytest.raises(ConflictError) as caught:
        await store.begin_replacement(second)
    assert caught.value.reason == "REPLACEMENT_RUNNING"
    assert caught.value.metadata["replacement"] == str(first.id)
    assert (await store.disk("block2")).construction == first.replacement
    failed, _ = step(first, core.GaveUp(at=1, error="no"))
    await store.save_replacement(failed, 1)
    await store.begin_replacement(second)
    assert await store.newest_replacement(DISK_KEY) == second


async def test_pages_of_replacements_newest_first(store: SqlStore) -> None:
    await store.add_instance(instance(), [disk()])
    record = begun()
    await store.begin_replacement(record)
    done, _ = step(record, core.GaveUp(at=1, error="no"))
    await store.save_replacement(done, 1)
    second = begun(number=8, original=record.replacement)
    await store.begin_replacement(second)
    ((number, newest),) = await store.list_replacements(limit=1)
    assert newest == second
    ((_, oldest),) = await store.list_replacements(disk="block2", before=number, limit=9)
    assert oldest == done
    assert len(await store.list_replacements(disk=str(VOLUME), limit=9)) == 2
    assert await store.list_replacements(disk="x", limit=9) == []


async def test_a_recorded_request_is_compared_before_it_is_set(store: SqlStore) -> None:
    await store.add_instance(instance(), [disk()])
    raised = volume(region(gen=9))
    await store.record_construction(DISK_KEY, volume(), raised)
    assert (await store.disk("block2")).construction == raised
    with pytest.raises(ConflictError):
        await store.record_construction(DISK_KEY, volume(), volume(region(gen=10)))
    with pytest.raises(ConflictError):
        await store.record_construction(uuid4(), raised, volume())


async def test_saving_what_is_not_there(store: SqlStore) -> None:
    with pytest.raises(NotFoundError):
        await store.save_replacement(begun(state=State.VALIDATE), 1)


async def test_registering_does_not_change_a_role(store: SqlStore) -> None:
    await store.add_instance(instance(), [disk()])
    said = DownstairsRecord(TARGETS[0], Role.SPARE, UUID(int=5), None, GEOMETRY)
    member = await store.put_downstairs(said)
    assert (member.role, member.volume_id) == (Role.MEMBER, VOLUME)
    await store.note_region(TARGETS[1], UUID(int=6))
    assert (await store.downstairs(TARGETS[1])).region_id == UUID(int=6)  # type: ignore[union-attr]
    await store.delete_instance(INSTANCE)
    assert (await store.put_downstairs(said)).role is Role.RETIRED
    renewed = await store.put_downstairs(replace(said, region_id=UUID(int=50)))
    assert (renewed.role, renewed.volume_id) == (Role.SPARE, None)


async def test_read_only_members_belong_to_nobody(store: SqlStore) -> None:
    parent = volume(region(("p:1", "p:2", "p:3"), read_only=True), id=uuid4())
    for number in (1, 2):
        mine = region((f"m{number}:1", f"m{number}:2", f"m{number}:3"))
        construction = volume(mine, id=UUID(int=90 + number), read_only_parent=parent)
        owner = instance(id=UUID(int=number), name=f"vm{number}")
        one = disk(
            key=uuid4(), name=f"d{number}", instance_id=owner.id, instance_name=owner.name,
            construction=construction,
        )  # fmt: skip
        await store.add_instance(owner, [one])
    assert len(await store.list_disks(limit=0)) == 2


async def test_spans_and_answers(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = [StoredSpan("t", f"s{number}", b"x") for number in range(3)]
    await store.save_spans(spans[:2])
    await store.save_spans(spans)
    assert {each.span_id for each in await store.spans("t")} == {"s0", "s1", "s2"}
    assert await store.spans("u") == []
    monkeypatch.setattr(sql_replacements, "ANSWERS_MAX", 2)
    for number in range(4):
        answer = StoredAnswer(b"d", bytes([number]))
        await store.save_answer("M", f"r{number}", answer, float(number))
    assert await store.answer("M", "r1") is None
    assert await store.answer("M", "r3") == StoredAnswer(b"d", b"\x03")
    assert await store.answer("N", "r3") is None
