"""A running machine of memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.vmmd.guest.machine import Machine


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    made = Machine()
    await made.start()
    yield made
    made.backend.let_go()
    await made.guest.stop()
