"""A member that comes back is not sent the first frame that it missed."""

from __future__ import annotations

from vmmd.upstairs.core.replay import ReplayLog


def plant(patch) -> None:
    replay = ReplayLog.replay
    patch.setattr(ReplayLog, "replay", lambda self, member: replay(self, member)[1:])
