"""The intent file on a disk: kept whole, with the one before; one agent to a root."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path

import pytest

from downstaird.agent.core.intent import Intent, Wanted, requested
from downstaird.agent.core.intent_file import decode
from downstaird.agent.intent_store import IntentStore
from stairlib.model.errors import DataError, LimitError, StairwellError, StateError
from stairlib.model.geometry import Geometry


def with_regions(count: int) -> Intent:
    intent = Intent()
    for number in range(count):
        shape = Geometry(512, 16, 4)
        intent = requested(intent, Wanted(uuid.UUID(int=number), shape), 8810 + 2 * number)
    return intent


def read(path: Path) -> int:
    return len(decode(path.read_bytes(), str(path)).records)


@pytest.fixture
def store(tmp_path: Path) -> IntentStore:
    made = IntentStore(tmp_path / "root")
    made.open()
    return made


def test_what_was_stored_is_opened_again_and_the_one_before_is_kept(store: IntentStore) -> None:
    store.store(with_regions(1))
    store.store(with_regions(2))
    store.close()
    assert len(IntentStore(store.root).open().records) == 2
    assert read(store.root / "agent.intent.previous") == 1


def test_a_second_agent_is_kept_off_until_the_first_lets_go(store: IntentStore) -> None:
    with pytest.raises(StateError, match="another agent") as failed:
        IntentStore(store.root).open()
    assert failed.value.reason == "ROOT_LOCKED"
    store.close()
    IntentStore(store.root).open()


def test_damage_is_refused_and_the_copy_before_takes_its_place(store: IntentStore) -> None:
    store.store(with_regions(1))
    store.store(with_regions(2))
    store.close()
    raw = bytearray(store.path.read_bytes())
    raw[-10] ^= 1
    store.path.write_bytes(raw)
    with pytest.raises(DataError, match=r"agent\.intent\.previous"):
        IntentStore(store.root).open()
    os.replace(store.root / "agent.intent.previous", store.path)
    assert len(IntentStore(store.root).open().records) == 1


def test_regions_without_a_record_of_them_are_never_taken_for_an_empty_host(
    store: IntentStore,
) -> None:
    (store.root / "regions" / "some").mkdir()
    store.close()
    store.path.unlink()
    with pytest.raises(StateError) as failed:
        IntentStore(store.root).open()
    assert failed.value.reason == "INTENT_MISSING"


@pytest.mark.parametrize(
    ("number", "kind", "reason"),
    [
        (errno.ENOSPC, LimitError, "NO_SPACE"),
        (errno.EIO, StairwellError, "INTENT_NOT_STORED"),
    ],
)
def test_a_failed_write_leaves_the_file_as_it_was(
    store: IntentStore,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[StairwellError],
    reason: str,
) -> None:
    store.store(with_regions(1))

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(kind) as failed:
            store.store(with_regions(2))
    assert failed.value.reason == reason
    assert read(store.path) == 1
    store.store(with_regions(3))
    assert read(store.path) == 3


def test_on_a_full_disk_room_was_set_aside_for_what_makes_some(
    store: IntentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare = store.root / "agent.spare"
    assert spare.stat().st_blocks * 512 >= 4 << 20
    store.store(with_regions(1))
    original = os.fsync

    def full(descriptor: int) -> None:
        if spare.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LimitError):
        store.store(with_regions(2), more=True)
    assert read(store.path) == 1
    store.store(Intent())
    assert read(store.path) == 0
    # Set aside again once there is room.
    assert spare.exists()


def test_the_name_always_has_a_whole_file(
    store: IntentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that dies between any two steps of a change leaves the old or the new."""
    seen = []

    def watched(name: str) -> None:
        original = getattr(os, name)

        def call(*arguments: object, **more: object) -> object:
            seen.append(read(store.path))
            done = original(*arguments, **more)
            seen.append(read(store.path))
            return done

        monkeypatch.setattr(os, name, call)

    store.store(with_regions(1))
    for name in ("fsync", "link", "replace", "unlink"):
        watched(name)
    store.store(with_regions(2))
    assert set(seen) == {1, 2}
    assert seen == sorted(seen)
