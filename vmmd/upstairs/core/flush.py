"""What is unflushed, when a flush is due, and how one is judged.

A flush succeeds with two acknowledgements. While two or more members are active, these must be two
active ones: a member under repair holds an incomplete copy and must not stand in for a slow good
one.
"""

from __future__ import annotations

from vmmd.upstairs.core import limits
from vmmd.upstairs.core.replay import Mutation

FLUSH_ACKS_NEEDED = 2


class FlushBook:
    """Counts since the last flush that was sent; `number` is that of the next flush."""

    def __init__(self, timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds
        self.number = 1
        # The last flush that ended well, or that all members had made when they began to serve.
        self.proven = 0
        self.jobs = 0
        self.payload_bytes = 0
        self._dirty_since: float | None = None
        self.last: Mutation | None = None
        # Acknowledged writes are gone from every member: the next guest flush has to say so.
        self.lost_writes = False

    def mutated(self, record: Mutation, now: float) -> None:
        """A frame of writes or discards was sent."""
        self.jobs += record.count
        self.payload_bytes += record.payload_bytes
        self.acknowledged(now)

    def acknowledged(self, now: float) -> None:
        """The guest was told that a write is taken, which is held for the frame it is sent in."""
        if self._dirty_since is None:
            self._dirty_since = now

    def sent(self, record: Mutation) -> None:
        """A flush was sent that covers everything so far."""
        self.last = record
        self.number += 1
        self.jobs = 0
        self.payload_bytes = 0
        self._dirty_since = None

    @property
    def dirty(self) -> bool:
        """Something was written since the last flush was sent."""
        return self._dirty_since is not None

    @property
    def unproven(self) -> bool:
        """Something was written that no successful flush covers yet."""
        return self.dirty or (self.last is not None and not self.last.succeeded)

    def due(self, now: float) -> bool:
        """The time for a flush without a caller has come."""
        return self._dirty_since is not None and now - self._dirty_since >= self.timeout_seconds

    def forced(self) -> bool:
        """So much is unflushed that replaying it would cost too much."""
        return (
            self.jobs >= limits.REPLAY_JOBS_FLUSH or self.payload_bytes >= limits.REPLAY_BYTES_FLUSH
        )

    def forget(self) -> None:
        """Nothing is owed any more: all members agree (activation) or all were let go."""
        self.jobs = 0
        self.payload_bytes = 0
        self._dirty_since = None
        self.last = None


def judge(
    record: Mutation, active_mask: int, departing_mask: int = 0, coming_mask: int = 0
) -> bool | None:
    """True: durable on enough members. False: all have finished and it is not. None: wait.

    A member that is being replaced will not be asked at the next activation: beside it, an active
    one that stays must have the data too. It and the one that comes in its place count as one:
    either may be let go, the old one when it is retired, the new one when that is undone. While
    another member still answers, it is waited for.
    """
    acks = record.acked.bit_count()
    stays = not departing_mask or bool(record.acked & active_mask & ~departing_mask)
    if acks >= FLUSH_ACKS_NEEDED and stays:
        pair = departing_mask | coming_mask
        needed = min(FLUSH_ACKS_NEEDED, _places(active_mask, pair))
        if not record.pending or _places(record.acked & active_mask, pair) >= needed:
            return True
        return None
    return None if record.pending else False


def _places(members: int, pair: int) -> int:
    """How many of the members there are, those of `pair` counted once."""
    return (members & ~pair).bit_count() + bool(members & pair)
