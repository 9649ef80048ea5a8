"""What is wanted of a region's snapshots, carried out on a real one: ended at every step and begun
again it ends the same."""

from __future__ import annotations

import copy
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from downstaird.agent.core.intent import (
    Intent,
    Record,
    Wanted,
    moved,
    requested,
    snapshot_asked,
    snapshot_moved,
    snapshot_unasked,
)
from downstaird.agent.core.intent_file import decode, encode
from downstaird.agent.core.region_states import RegionEvent
from downstaird.agent.core.snapshot_wishes import WishEvent, WishState
from downstaird.agent.snapshots import Seen, Snapshots
from downstaird.commands import snapshot as commands
from downstaird.config import CreateOptions
from downstaird.regions import create_region, delete_snapshot, opened
from stairlib.model.errors import StateError, UnavailableError
from stairlib.model.geometry import Geometry

ONE = uuid.UUID(int=1)
SHAPE = Geometry(512, 16, 4)


class Killed(BaseException):
    """The agent's end."""


class House:
    """A region in a directory, its record, and a count of steps to the agent's end; each thing that
    lasts is a step, and the end comes before or after it."""

    def __init__(self, folder: Path) -> None:
        self.directory = folder / str(ONE)
        create_region(CreateOptions(self.directory, ONE, SHAPE, ""))
        intent = requested(Intent(), Wanted(ONE, SHAPE), 8810)
        intent = moved(intent, ONE, RegionEvent.CREATE_BEGUN)
        self.raw = encode(moved(intent, ONE, RegionEvent.CREATE_DONE))
        self.ends_at = -1
        self.steps = 0
        self.told = 0

    def _step(self) -> None:
        self.steps += 1
        if self.steps == self.ends_at:
            raise Killed

    # ---- Ledger

    @property
    def intent(self) -> Intent:
        return decode(self.raw, "agent.intent")

    def record(self, region: uuid.UUID) -> Record:
        return self.intent.one(region)

    async def move_snapshot(
        self, region: uuid.UUID, name: str, event: WishEvent, **more: Any
    ) -> None:
        self._step()
        self.raw = encode(snapshot_moved(self.intent, region, name, event, **more))
        self._step()

    def changed(self) -> None:
        self.told += 1

    # ---- Region

    async def look(self) -> list[Seen]:
        with opened(self.directory) as engine:
            found = [asdict(facts) for facts in engine.list_snapshots()]
        return [Seen(**{name: each[name] for name in Seen.__slots__}) for each in found]

    async def take(self, name: str) -> None:
        self._step()
        commands.create(self.directory, name)
        self._step()

    async def delete(self, name: str) -> None:
        self._step()
        delete_snapshot(self.directory, name)
        self._step()

    # ----

    def ask(self, name: str) -> None:
        self.raw = encode(snapshot_asked(self.intent, ONE, name))

    def unask(self, name: str) -> None:
        self.raw = encode(snapshot_unasked(self.intent, ONE, name))

    def state(self, name: str) -> WishState | None:
        found = {wish.name: wish for wish in self.record(ONE).snapshots}
        return found[name].state if name in found else None

    def copied(self, folder: Path) -> House:
        """Another as this one is now."""
        other = copy.copy(self)
        other.directory = folder / str(ONE)
        shutil.copytree(self.directory, other.directory)
        return other

    async def there(self) -> list[str]:
        return sorted(each.name for each in await self.look())


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def keeper(house: House) -> Snapshots:
    return Snapshots(ONE, house, house.directory)


async def begun(tmp_path: Path) -> House:
    """One to take, one to delete, one whose name is taken, and one that is to stay."""
    house = House(tmp_path)
    for name in ("old", "kept", "theirs"):
        await house.take(name)
    house.steps = 0
    house.ask("new")
    house.unask("old")
    house.ask("theirs")
    return house


async def test_ended_at_any_step_and_begun_again_it_ends_the_same(tmp_path: Path) -> None:
    first = await begun(tmp_path / "first")
    whole = first.copied(tmp_path / "whole")
    await keeper(whole).carry_out(whole)
    assert whole.steps > 8
    for step in range(1, whole.steps + 1):
        house = first.copied(tmp_path / str(step))
        house.ends_at = step
        with pytest.raises(Killed):
            await keeper(house).carry_out(house)
        house.ends_at = -1
        again = keeper(house)
        await again.carry_out(house)
        assert await house.there() == ["kept", "new", "theirs"], step
        assert house.state("new") is WishState.TAKEN
        assert house.state("old") is None
        assert house.state("theirs") is WishState.FAILED
        assert "already, of flush" in house.record(ONE).snapshots[-1].reason
        assert again.pending == []
        # Once more changes nothing.
        before, steps = house.raw, house.steps
        await keeper(house).carry_out(house)
        assert (house.raw, house.steps) == (before, steps)


async def test_what_the_region_refuses_to_take_failed_and_is_tried_when_asked_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(name: str) -> None:
        raise StateError("the region is in use by a volume", reason="SESSION_ACTIVE")

    house.ask("a")
    with monkeypatch.context() as patched:
        patched.setattr(house, "take", refuse)
        await keeper(house).carry_out(house)
    assert house.state("a") is WishState.FAILED
    assert house.record(ONE).snapshots[0].reason == "the region is in use by a volume"
    house.ask("a")
    await keeper(house).carry_out(house)
    assert house.state("a") is WishState.TAKEN


async def test_what_did_not_reach_the_region_waits_and_says_so(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(name: str) -> None:
        raise UnavailableError("nobody is there")

    house.ask("a")
    one = keeper(house)
    with monkeypatch.context() as patched:
        patched.setattr(house, "take", away)
        await one.carry_out(house)
    assert house.state("a") is WishState.TAKING
    assert one.troubles == {"a": "nobody is there"}
    assert house.told
    await one.carry_out(house)
    assert (house.state("a"), one.troubles) == (WishState.TAKEN, {})


async def test_a_deletion_that_is_refused_is_tried_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def busy(name: str) -> None:
        raise StateError("somebody reads it", reason="SNAPSHOT_BUSY")

    await house.take("a")
    house.unask("a")
    one = keeper(house)
    with monkeypatch.context() as patched:
        patched.setattr(house, "delete", busy)
        await one.carry_out(house)
    assert house.state("a") is WishState.DELETING
    assert one.troubles == {"a": "somebody reads it"}
    await one.carry_out(house)
    assert house.state("a") is None
    assert await house.there() == []


async def test_one_that_somebody_else_deleted_is_missed(house: House) -> None:
    house.ask("a")
    await keeper(house).carry_out(house)
    await house.delete("a")
    await keeper(house).carry_out(house)
    assert house.state("a") is WishState.FAILED
    assert "somebody deleted it" in house.record(ONE).snapshots[0].reason


async def test_a_region_that_never_had_one_need_not_be_asked(house: House) -> None:
    one = keeper(house)
    assert one.seen == {}
    await house.take("a")
    assert one.seen is None
    await one.look(house)
    assert one.seen is not None
    assert list(one.seen) == ["a"]
