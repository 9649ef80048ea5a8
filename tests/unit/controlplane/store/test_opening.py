"""Opening a store: migrations, the lock, directories that will not do."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from controlplane.store import opening
from controlplane.store.place import DATABASE_FILE, Place
from controlplane.store.schema import metadata
from stairlib.model.errors import DataError, StateError


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


def test_downgrade_leaves_nothing(tmp_path: Path) -> None:
    from alembic import command
    from alembic.config import Config

    engine = opening.sqlite_engine(tmp_path / "x.sqlite")
    opening.migrate(engine)
    config = Config()
    config.set_main_option("script_location", str(Path(opening.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert set(sqlalchemy.inspect(connection).get_table_names()) == {"alembic_version"}
    engine.dispose()
