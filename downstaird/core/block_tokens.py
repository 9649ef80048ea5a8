"""Who may take a repair's blocks beside its messages: the tokens of such connections, and the
connections. Pure: tokens and times come in as arguments."""

from __future__ import annotations

from typing import Generic, TypeVar

from downstaird.core.session_table import TOKEN_SECONDS
from stairlib.model.errors import LimitError, RefusedError

# Two targets, each with as many copies as it may run at a time.
BLOCK_CONNECTIONS_MAX = 32

C = TypeVar("C")


class BlockTokens(Generic[C]):
    """Tokens that wait to be shown, and what was connected with one. A token stays the name of its
    connection; it is known to nobody but who was given it."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, float] = {}
        self._connected: dict[bytes, C] = {}

    def offer(self, token: bytes, now: float) -> None:
        """A connection may come with it for a short time. LimitError when there are too many."""
        self._waiting = {one: until for one, until in self._waiting.items() if now < until}
        if len(self._waiting) + len(self._connected) >= BLOCK_CONNECTIONS_MAX:
            raise LimitError(
                f"{BLOCK_CONNECTIONS_MAX} block connections are open: take the blocks in messages",
                limit=str(BLOCK_CONNECTIONS_MAX),
            )
        self._waiting[token] = now + TOKEN_SECONDS

    def takes(self, token: bytes, now: float) -> bool:
        """Whether it waits to be shown; from now on it does not."""
        return now < self._waiting.pop(token, now)

    def connected(self, token: bytes, connection: C) -> None:
        """It came."""
        self._connected[token] = connection

    def gone(self, token: bytes) -> None:
        """It has been closed."""
        self._connected.pop(token, None)

    def find(self, token: bytes) -> C:
        """The connection of the token. RefusedError TOKEN_UNKNOWN when there is none."""
        found = self._connected.get(token)
        if found is None:
            raise RefusedError("there is no block connection of this token", reason="TOKEN_UNKNOWN")
        return found

    def all(self) -> list[C]:
        """Every connection."""
        return list(self._connected.values())
