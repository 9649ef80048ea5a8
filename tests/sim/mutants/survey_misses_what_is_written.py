"""What is written while a repair finds out what differs is not repaired."""

from __future__ import annotations

from vmmd.upstairs.core.guest_ops import GuestOps


def plant(patch) -> None:
    patch.setattr(GuestOps, "_mark_touched", lambda _self, _touched, _ops: None)
