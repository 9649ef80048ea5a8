"""News inside the process."""

from __future__ import annotations

import pytest

from controlplane.feed import NEWS_MAX, Feed
from stairlib.model.errors import UnavailableError


async def test_news_reach_those_who_asked_for_the_key_in_order() -> None:
    feed = Feed[int]()
    with feed.subscribe("a") as first, feed.subscribe("a") as second, feed.subscribe("b") as other:
        feed.publish("a", 1)
        feed.publish("a", 2)
        feed.publish("b", 3)
        for subscription, expected in ((first, [1, 2]), (second, [1, 2]), (other, [3])):
            got = []
            async for item in subscription:
                got.append(item)
                if len(got) == len(expected):
                    break
            assert got == expected
    assert feed._subscriptions == {}


async def test_a_slow_one_loses_the_oldest_and_never_the_newest() -> None:
    feed = Feed[int]()
    with feed.subscribe("a") as news:
        for number in range(NEWS_MAX + 5):
            feed.publish("a", number)
        got = []
        async for item in news:
            got.append(item)
            if item == NEWS_MAX + 4:
                break
    assert got == list(range(5, NEWS_MAX + 5))


async def test_a_feed_that_closes_ends_its_watchers_after_the_news() -> None:
    feed = Feed[int]()
    with feed.subscribe("a") as news:
        feed.publish("a", 1)
        feed.close()
        items = aiter(news)
        assert await anext(items) == 1
        with pytest.raises(UnavailableError, match="stopping"):
            await anext(items)
