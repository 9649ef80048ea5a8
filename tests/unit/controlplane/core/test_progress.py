"""Progress that never falls and is full only at the end."""

from __future__ import annotations

import pytest

from controlplane.core.progress import Progress, complete, observe, pause

START = Progress(bytes_total=1000, extents_total=10)


def look(progress: Progress, at: float, done: int) -> Progress:
    return observe(
        progress, at=at, bytes_done=done, bytes_copied=done // 2, extents_done=done // 100
    )


def test_rate_and_eta() -> None:
    progress = look(START, 10.0, 0)
    assert (progress.bytes_per_second, progress.eta_seconds) == (0, 0)
    progress = look(progress, 12.0, 200)
    assert progress.bytes_per_second == pytest.approx(100)
    assert progress.eta_seconds == pytest.approx(8.0)
    for second in range(13, 20):
        progress = look(progress, float(second), 200)
    assert 0 < progress.bytes_per_second < 15, "a rate that is not kept up fades"


def test_a_repair_that_begins_again_does_not_take_the_bar_back() -> None:
    progress = look(look(START, 1.0, 0), 2.0, 500)
    again = look(progress, 3.0, 10)
    assert again.bytes_done == 500
    assert again.bytes_per_second == 0
    assert look(again, 4.0, 60).bytes_per_second == pytest.approx(50)


def test_full_only_when_complete() -> None:
    progress = look(START, 1.0, 1000)
    assert progress.bytes_done == 990
    assert complete(progress).bytes_done == 1000
    assert complete(progress).extents_done == 10
    tiny = observe(Progress(bytes_total=1), at=0, bytes_done=1, bytes_copied=1, extents_done=0)
    assert tiny.bytes_done == 0


def test_a_pause_has_no_rate_and_starts_a_new_one() -> None:
    progress = pause(look(look(START, 1.0, 0), 2.0, 100))
    assert progress.bytes_per_second == 0
    assert progress.bytes_done == 100
    assert look(progress, 100.0, 200).bytes_per_second == 0


def test_time_that_stands_still_divides_nothing() -> None:
    progress = look(look(START, 1.0, 0), 1.0, 100)
    assert progress.bytes_per_second == 0
