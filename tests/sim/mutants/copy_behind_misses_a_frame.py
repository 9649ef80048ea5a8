"""Of what is kept for the copy that is behind, the last frame is forgotten."""

from __future__ import annotations

from vmmd.upstairs.core.copy_behind import CopyBehind


def plant(patch) -> None:
    taken = CopyBehind.taken

    def less(self):
        effects = taken(self)
        return effects[:-1] if len(effects) > 1 else effects

    patch.setattr(CopyBehind, "taken", less)
