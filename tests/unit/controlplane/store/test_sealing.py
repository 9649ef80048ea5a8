"""Secrets at rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.store.opening import sqlite_engine
from controlplane.store.place import DATABASE_FILE, Place
from controlplane.store.sealing import KEY_BYTES, KEY_FILE, load_sealer
from controlplane.store.sql_store import SqlStore
from stairlib.model.errors import DataError, StateError
from tests.postgres_server import PostgresServer
from tests.unit.controlplane.core.records_made import disk, instance, region, volume


def test_what_is_sealed_opens_again_and_only_here(tmp_path: Path) -> None:
    first = load_sealer(Place(tmp_path))
    sealed = first.seal("secret")
    assert b"secret" not in sealed
    assert first.seal("secret") != sealed
    assert load_sealer(Place(tmp_path)).open(sealed) == "secret"
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError) as caught:
        load_sealer(Place(tmp_path / "other")).open(sealed)
    assert caught.value.reason == "WRONG_SECRET_KEY"
    for damaged in (sealed[:-1] + bytes([sealed[-1] ^ 1]), b"", b"short"):
        with pytest.raises(DataError):
            first.open(damaged)


def test_the_key_file_is_the_owner_s_alone(tmp_path: Path) -> None:
    load_sealer(Place(tmp_path))
    path = tmp_path / KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_bytes()) == KEY_BYTES
    path.chmod(0o644)
    with pytest.raises(DataError) as caught:
        load_sealer(Place(tmp_path))
    assert caught.value.reason == "SECRET_KEY_EXPOSED"
    assert "chmod 600" in caught.value.message


def test_half_a_key_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / KEY_FILE
    path.touch(mode=0o600)
    with pytest.raises(DataError) as caught:
        load_sealer(Place(tmp_path))
    assert caught.value.reason == "WRONG_SECRET_KEY"


def test_a_draft_left_by_a_crash_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "secret.new").write_bytes(b"half")
    load_sealer(Place(tmp_path))
    assert not (tmp_path / "secret.new").exists()


KEY = "5a" * 32
OTHER_KEY = "a5" * 32
SECRET = disk(construction=volume(region(key="k" * 44)))


async def test_the_key_is_proved_when_a_store_is_opened(place: Place) -> None:
    """On both stores; before anything is served, and even if no secret was stored yet."""
    given = replace(place, key_text=KEY)
    store = await SqlStore.open(given)
    await store.add_instance(instance(), [SECRET])
    await store.close()
    for wrong, reason in (
        (replace(place, key_text=OTHER_KEY), "WRONG_SECRET_KEY"),
        (replace(place, key_text="not a key"), "WRONG_SECRET_KEY"),
        (replace(place, key_text=""), "MISSING_SECRET_KEY"),
        (replace(place, key_text="", key_file=Path("/no/such/file")), "MISSING_SECRET_KEY"),
    ):
        with pytest.raises(DataError) as caught:
            await SqlStore.open(wrong)
        assert caught.value.reason == reason
        assert KEY not in caught.value.message
        assert OTHER_KEY not in caught.value.message
    assert not (place.directory / KEY_FILE).exists(), "no second key is made beside a lost one"
    store = await SqlStore.open(given)
    assert await store.disk("block2") == SECRET
    await store.close()


async def test_a_key_file_as_people_make_them(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    path.chmod(0o600)
    store = await SqlStore.open(replace(place, key_text="", key_file=path))
    await store.add_instance(instance(), [SECRET])
    await store.close()
    store = await SqlStore.open(replace(place, key_text=KEY))
    assert await store.disk("block2") == SECRET
    await store.close()
    with pytest.raises(StateError) as caught:
        await SqlStore.open(replace(place, key_text=KEY, key_file=path))
    assert caught.value.reason == "TWO_SECRET_KEYS"


@pytest.mark.postgres
async def test_without_a_key_no_secret_is_stored(postgres: PostgresServer, tmp_path: Path) -> None:
    store = await SqlStore.open(Place(tmp_path, url=postgres.new_database()))
    with pytest.raises(StateError) as caught:
        await store.add_instance(instance(), [SECRET])
    assert caught.value.reason == "NO_SECRET_KEY"
    assert "--secret-key-file" in caught.value.message
    assert await store.list_instances(limit=9) == []
    await store.add_instance(instance(), [disk()])
    await store.close()


async def test_a_store_of_before_keys_were_proved(tmp_path: Path) -> None:
    place = Place(tmp_path)
    store = await SqlStore.open(place)
    await store.add_instance(instance(), [SECRET])
    await store.close()
    engine = sqlite_engine(tmp_path / DATABASE_FILE)
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM facts")
    engine.dispose()
    with pytest.raises(DataError):
        await SqlStore.open(replace(place, key_text=OTHER_KEY))
    store = await SqlStore.open(place)
    assert await store.disk("block2") == SECRET
    await store.close()


def test_a_place_shows_no_key_and_no_password() -> None:
    shown = repr(Place(Path("d"), url="postgresql://u:hidden@h/n", key_text=KEY))
    assert "hidden" not in shown
    assert KEY not in shown
    assert "hidden" not in Place(Path("d"), url="postgresql://u:hidden@h/n").words
