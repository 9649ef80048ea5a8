"""Each torment once, in its shortest form; `make torture` has the long one."""

from __future__ import annotations

import pytest

from tests.torture.run import torment
from tests.torture.scenarios import SCENARIOS

pytestmark = pytest.mark.processes

# What the others are made of; the rest is for `make test-long`.
QUICK = ("live-repair", "replay", "repair", "replace-before-active", "reconnect", "takeover")


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(one, marks=[] if one in QUICK else pytest.mark.long) for one in SCENARIOS],
)
async def test_nothing_is_lost(scenario: str) -> None:
    result = await torment(scenario, seed=1, seconds=0, loops=1, scale=0.5)
    assert not result.error, f"{result.error}\nlogs and regions: {result.folder}"
    assert result.counts["ios"] > 0
