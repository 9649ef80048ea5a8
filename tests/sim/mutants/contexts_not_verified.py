"""Data is given to the guest without a look at its context."""

from __future__ import annotations

from vmmd.upstairs.core.reads import ReadBook


def plant(patch) -> None:
    patch.setattr(ReadBook, "_bad_blocks", lambda _self, _payload, _contexts: False)
