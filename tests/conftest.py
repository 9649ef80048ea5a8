"""For every test: property tests are judged by what they find, never by how long they took."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres_server import PostgresServer, postgres_server

settings.register_profile(
    "stairwell", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("stairwell")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this run's own; the test is skipped where there is none."""
    with postgres_server() as running:
        yield running
