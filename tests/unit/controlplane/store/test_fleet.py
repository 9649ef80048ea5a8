"""What the store keeps for the care of the fleet, on each kind of store."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from controlplane.core.drain import Drain, State
from controlplane.core.fleet import FaultedMember, FleetPolicy, Health, Look, Making, Place
from controlplane.core.placement import Placement, Rejection
from controlplane.core.records import DownstairsRecord, Role
from controlplane.core.replacement import State as ReplacementState
from controlplane.store.sql_store import SqlStore
from stairlib.model.errors import NotFoundError, StateError
from tests.unit.controlplane.core import records_made as made

SPARE = DownstairsRecord("s:1", Role.SPARE, UUID(int=9), None, made.GEOMETRY)
HERE = Place("s:1", "h1", "rack-a", "g:1", made.VOLUME)


async def test_places_looks_and_the_end_of_both(store: SqlStore) -> None:
    await store.register_downstairs(SPARE, HERE)
    seen = Look("s:1", 10.0, Health.ANSWERS, "", 10.0, 5, 1 << 50, True, UUID(int=9))
    await store.save_looks([seen, replace(seen, address="nobody:1")])
    (entry,) = await store.fleet()
    assert (entry.record, entry.place, entry.look) == (SPARE, HERE, seen)
    away = Look("s:1", 20.0, Health.AWAY, "no answer")
    await store.save_looks([away])
    (entry,) = await store.fleet()
    assert entry.look == replace(away, seen_at=10.0), "when it last answered stays known"
    await store.add_instance(made.instance(), [made.disk()])
    with pytest.raises(StateError) as caught:
        await store.deregister_downstairs(made.TARGETS[0])
    assert caught.value.reason == "DOWNSTAIRS_IN_USE"
    await store.deregister_downstairs("s:1")
    assert "s:1" not in {each.record.address for each in await store.fleet()}
    assert "s:1" not in await store.places()
    with pytest.raises(NotFoundError):
        await store.deregister_downstairs("s:1")


async def test_the_policy_and_the_faulted_members(store: SqlStore) -> None:
    assert await store.fleet_policy() == FleetPolicy()
    wanted = FleetPolicy(True, 12.5, True, 7)
    await store.set_fleet_policy(FleetPolicy())
    await store.set_fleet_policy(wanted)
    assert await store.fleet_policy() == wanted
    late = FaultedMember(made.DISK_KEY, "d", "r", 1, "a:1", 20.0, "gone", "a spare")
    early = replace(late, slot=2, since=10.0)
    await store.set_faulted_members([late, early])
    assert await store.faulted_members() == [early, late]
    await store.set_faulted_members([])
    assert await store.faulted_members() == []


async def test_agents_and_makings(store: SqlStore) -> None:
    agent = Place("g:1", "g", "rack-g")
    await store.put_agent(replace(agent, host="former"))
    await store.put_agent(agent)
    assert await store.agents() == [agent]
    making = Making(UUID(int=3), "g:1", 5.0)
    await store.save_making(making)
    await store.save_making(replace(making, address="s:1"))
    assert await store.makings() == [replace(making, address="s:1")]
    for _ in range(2):
        await store.forget_making(making.replacement_id)
    assert await store.makings() == []
    await store.forget_agent("g:1")
    with pytest.raises(NotFoundError):
        await store.forget_agent("g:1")


async def test_drains(store: SqlStore) -> None:
    drain = Drain(UUID(int=1), "h1", 1.0, 1.0)
    assert await store.begin_drain(drain) == drain
    other = Drain(UUID(int=2), "h1", 2.0, 2.0)
    assert await store.begin_drain(other) == drain, "there is one already"
    done = replace(drain, state=State.DONE, updated_at=3.0)
    assert await store.end_drain(done)
    assert not await store.end_drain(done)
    assert await store.holding_drains() == [done]
    again = await store.begin_drain(other)
    assert (again.id, again.state) == (drain.id, State.RUNNING), "it goes on"
    cancelled = replace(drain, state=State.CANCELLED)
    assert await store.end_drain(cancelled)
    assert not await store.end_drain(done), "a cancelled one stays so"
    assert await store.holding_drains() == []
    assert await store.begin_drain(other) == other
    assert await store.drain("h1") == other
    assert await store.drain(str(drain.id)) == cancelled
    assert await store.list_drains() == [other, cancelled]
    with pytest.raises(NotFoundError):
        await store.drain("h2")


async def test_who_began_a_replacement_and_how_its_target_was_found(store: SqlStore) -> None:
    await store.add_instance(made.instance(), [made.disk()])
    placement = Placement(
        "127.0.0.1:8840", False, ("close",), (Rejection("a:1", "h", "", "SAME_HOST", "ü"),), "g:1"
    )
    record = made.replacement(
        state=ReplacementState.APPLY, asked_by="automatic", placement=placement
    )
    await store.begin_replacement(record)
    found = await store.replacement(record.id)
    assert (found.asked_by, found.placement) == ("automatic", placement)
    assert [each.id for each in await store.replacements_asked_by("automatic")] == [record.id]
    last = await store.last_asked_by("automatic", made.DISK_KEY)
    assert last is not None
    assert last.id == record.id
    assert await store.last_asked_by("operator", made.DISK_KEY) is None
