"""Every test of a store runs on SQLite, and on PostgreSQL where that is installed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.store.place import Place
from controlplane.store.sql_store import SqlStore

BOTH = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture(params=BOTH)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where a new store can be, with a key for secrets."""
    if request.param == "sqlite":
        return Place(tmp_path / "data")
    url = request.getfixturevalue("postgres").new_database()
    return Place(tmp_path / "unused", url=url, key_text="5a" * 32, lease_seconds=60.0)


@pytest.fixture
async def store(place: Place) -> AsyncIterator[SqlStore]:
    opened = await SqlStore.open(place)
    yield opened
    await opened.close()
