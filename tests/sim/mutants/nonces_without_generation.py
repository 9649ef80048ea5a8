"""Each process counts its nonces from the beginning, and nothing else tells them apart."""

from __future__ import annotations

from vmmd.upstairs.core.codec import CounterNonces


def plant(patch) -> None:
    take = CounterNonces.take
    patch.setattr(CounterNonces, "take", lambda self, count, _generation: take(self, count, 1))
