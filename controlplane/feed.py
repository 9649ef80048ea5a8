"""News inside the process: who changes something publishes, who watches it subscribes.

Invariants: publishing never waits; a subscriber that is slow loses the oldest news, never the
newest, and costs a bounded amount of memory. Subscribe first and read the present state after, so
that nothing falls between the two.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from stairlib.model.errors import UnavailableError

T = TypeVar("T")

# News a subscriber may be behind: all states an instance passes in its life, several times over.
NEWS_MAX = 64


class Subscription(Generic[T]):
    """The news for one subscriber, oldest first."""

    def __init__(self) -> None:
        self._news: deque[T] = deque(maxlen=NEWS_MAX)
        self._arrived = asyncio.Event()
        self._closed = False
        self._over = False

    def close(self) -> None:
        """Ends the iteration once the news so far are read."""
        self._closed = True
        self._arrived.set()

    def end(self) -> None:
        """The same, and nobody is to watch again: what was watched is gone."""
        self._over = True
        self._arrived.set()

    def push(self, item: T) -> None:
        """Adds one item."""
        self._news.append(item)
        self._arrived.set()

    async def __aiter__(self) -> AsyncIterator[T]:
        """Items as they come, to the end; UnavailableError when the feed was closed."""
        while True:
            while self._news:
                yield self._news.popleft()
            if self._over:
                return
            if self._closed:
                raise UnavailableError(
                    "the control plane is stopping; watch again when it is back",
                    reason="STOPPING",
                )
            self._arrived.clear()
            await self._arrived.wait()


class Feed(Generic[T]):
    """News by key. Keys cost nothing while nobody subscribes to them."""

    def __init__(self) -> None:
        self._subscriptions: dict[object, set[Subscription[T]]] = {}

    def close(self) -> None:
        """Ends all subscriptions, so that watchers do not hold up a stop."""
        for group in self._subscriptions.values():
            for subscription in group:
                subscription.close()

    def end(self, key: object) -> None:
        """Ends the subscriptions of a key: there will be no more."""
        for subscription in self._subscriptions.get(key, ()):
            subscription.end()

    def has(self, key: object) -> bool:
        """Whether anybody subscribes to the key."""
        return key in self._subscriptions

    def watched(self) -> list[object]:
        """The keys that somebody subscribes to."""
        return [*self._subscriptions]

    def publish(self, key: object, item: T) -> None:
        """Hands the item to each subscriber of the key."""
        for subscription in self._subscriptions.get(key, ()):
            subscription.push(item)

    @contextmanager
    def subscribe(self, key: object) -> Iterator[Subscription[T]]:
        """A subscription for as long as the block lasts."""
        subscription = Subscription[T]()
        group = self._subscriptions.setdefault(key, set())
        group.add(subscription)
        try:
            yield subscription
        finally:
            group.discard(subscription)
            if not group:
                self._subscriptions.pop(key, None)
