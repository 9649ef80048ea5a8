"""A block that was bad everywhere it was looked at is given to the guest."""

from __future__ import annotations

from vmmd.upstairs.core.codec import AeadCodec


def plant(patch) -> None:
    patch.setattr(AeadCodec, "open", lambda _self, data, _contexts, _spans: data)
