"""Opening a store: migrations, the lock, directories that will not do."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext

from controlplane.store import opening
from controlplane.store.base import StoredSpan
from controlplane.store.place import DATABASE_FILE, Place
from controlplane.store.schema import metadata
from controlplane.store.sql_store import SqlStore
from stairlib.model.errors import DataError, LimitError, StateError, UnavailableError


def test_the_migrations_lead_to_the_schema(tmp_path: Path) -> None:
    opened = opening.open_place(Place(tmp_path / "new" / "deep"))
    with opened.engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    opened.close()
    assert (tmp_path / "new" / "deep").stat().st_mode & 0o077 == 0


def test_opening_again_migrates_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        opening.open_place(Place(tmp_path)).close()


def test_two_control_planes_cannot_share_a_directory(tmp_path: Path) -> None:
    opened = opening.open_place(Place(tmp_path))
    with pytest.raises(StateError) as caught:
        opening.open_place(Place(tmp_path))
    assert caught.value.reason == "DATA_DIRECTORY_IN_USE"
    opened.close()
    opening.open_place(Place(tmp_path)).close()


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    opened = opening.open_place(Place(tmp_path))
    with opened.engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = '9999'"))
    opened.close()
    with pytest.raises(StateError) as caught:
        opening.open_place(Place(tmp_path))
    assert caught.value.reason == "STORE_TOO_NEW"


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError) as caught:
        opening.open_place(Place(tmp_path / "file" / "below"))
    assert caught.value.reason == "BAD_DATA_DIRECTORY"
    assert "--data" in caught.value.message


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / DATABASE_FILE).write_bytes(b"something else entirely" * 100)
    with pytest.raises(DataError) as caught:
        opening.open_place(Place(tmp_path))
    assert DATABASE_FILE in caught.value.message


def migrations(connection: sqlalchemy.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(opening.__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def test_downgrade_leaves_nothing(tmp_path: Path) -> None:
    engine = opening.sqlite_engine(tmp_path / "x.sqlite")
    opening.migrate(engine)
    with engine.begin() as connection:
        command.downgrade(migrations(connection), "base")
        assert set(sqlalchemy.inspect(connection).get_table_names()) == {"alembic_version"}
    engine.dispose()


def test_of_several_drains_that_ran_for_a_target_the_newest_goes_on(tmp_path: Path) -> None:
    engine = opening.sqlite_engine(tmp_path / "x.sqlite")
    before = [("a", "h1", "RUNNING"), ("b", "h1", "DONE"), ("c", "h2", "RUNNING")]
    before += [("d", "h1", "RUNNING"), ("e", "h1", "RUNNING"), ("f", "h1", "DONE")]
    with engine.begin() as connection:
        command.upgrade(migrations(connection), "0010")
        for drain in before:
            connection.exec_driver_sql(
                "INSERT INTO drains (id, target, state, created_at, updated_at)"
                " VALUES (?, ?, ?, 1, 1)",
                drain,
            )
        command.upgrade(migrations(connection), "head")
        running = connection.exec_driver_sql("SELECT id FROM drains WHERE state = 'RUNNING'")
        assert sorted(running.scalars()) == ["c", "e"]
        given_up = connection.exec_driver_sql("SELECT id FROM drains WHERE state = 'CANCELLED'")
        assert sorted(given_up.scalars()) == ["a", "d"]
    engine.dispose()


async def test_a_full_disk_is_said_and_got_over(tmp_path: Path) -> None:
    store = await SqlStore.open(Place(tmp_path))
    with store._opened.engine.begin() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    spans = [StoredSpan("t", "s", b"x" * 100_000)]
    with pytest.raises(LimitError) as caught:
        await store.save_spans(spans)
    assert caught.value.reason == "STORE_FULL"
    assert await store.spans("t") == []
    with store._opened.engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=1000000")
    await store.save_spans(spans)
    assert await store.spans("t") == spans
    await store.close()


async def test_a_database_that_somebody_else_has_locked_is_busy(tmp_path: Path) -> None:
    store = await SqlStore.open(Place(tmp_path))
    with store._opened.engine.begin() as connection:
        connection.exec_driver_sql("SELECT 1")
    store._opened.engine.dispose()
    other = sqlite3.connect(tmp_path / DATABASE_FILE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(UnavailableError) as caught:
        await store.list_downstairs()
    assert caught.value.reason == "STORE_BUSY"
    other.execute("ROLLBACK")
    other.close()
    assert await store.list_downstairs() == []
    await store.close()
