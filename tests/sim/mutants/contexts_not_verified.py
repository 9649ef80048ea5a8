"""Data is given to the guest without a look at its context."""

from __future__ import annotations

from vmmd.upstairs.core.codec import PlainCodec


def plant(patch) -> None:
    patch.setattr(PlainCodec, "open", lambda _self, data, _contexts, _spans: data)
