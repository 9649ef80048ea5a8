"""A member of a read-only set serves although another one holds something newer."""

from __future__ import annotations

from vmmd.upstairs.core.agreement import Agreement


def plant(patch) -> None:
    patch.setattr(Agreement, "behind", lambda _self, _stamps: "")
