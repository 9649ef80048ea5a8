"""The pvpanic port."""

from __future__ import annotations

import pytest

from vmmd.hw.pvpanic.core import PanicNews, PanicPort


def test_both_events_are_offered() -> None:
    assert PanicPort().read() == 3


@pytest.mark.parametrize(
    ("value", "news", "counted"),
    [
        (1, PanicNews.PANICKED, (1, 0)),
        (2, PanicNews.CRASH_LOADED, (0, 1)),
        (3, PanicNews.PANICKED, (1, 0)),
        (0, None, (0, 0)),
        (0xFC, None, (0, 0)),
    ],
)
def test_what_is_written_is_news_or_nothing(
    value: int, news: PanicNews | None, counted: tuple[int, int]
) -> None:
    port = PanicPort()
    assert port.write(value) is news
    assert (port.host_handled, port.guest_handled) == counted
