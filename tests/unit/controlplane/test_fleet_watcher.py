"""Looks at the fleet are spread over their period, however large it is."""

from __future__ import annotations

from typing import Any, cast

import pytest

from controlplane.fleet_watcher import LOOKS_PER_SECOND, PERIOD_SECONDS, STORED_SECONDS, spread


def fleet(count: int) -> list[Any]:
    return [cast("Any", number) for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 29, 31, 500, 2000, 12_345])
def test_each_is_looked_at_once_and_never_many_at_a_time(count: int) -> None:
    parts = spread(fleet(count))
    assert [each for part, _seconds in parts for each in part] == fleet(count)
    assert sum(seconds for _part, seconds in parts) == pytest.approx(
        max(PERIOD_SECONDS, count / LOOKS_PER_SECOND)
    )
    for part, seconds in parts:
        assert len(part) / seconds <= LOOKS_PER_SECOND * 1.001
        assert len(part) == 1 or seconds <= 1.5 * STORED_SECONDS
