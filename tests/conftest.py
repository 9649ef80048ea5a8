"""For every test: property tests are judged by what they find, never by how long they took."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.ports import refusing
from tests.postgres_server import PostgresServer, postgres_server

settings.register_profile(
    "stairwell", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("stairwell")

# A shell that starts the tests in the background has them ignore Ctrl-C, and every process they
# start would inherit that: the tests of Ctrl-C are about programs started as a user starts them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this run's own; the test is skipped where there is none."""
    with postgres_server() as running:
        yield running


@pytest.fixture
def refusing_port() -> Iterator[int]:
    """A TCP port of 127.0.0.1 that refuses everybody for as long as the test lasts."""
    with refusing() as port:
        yield port
