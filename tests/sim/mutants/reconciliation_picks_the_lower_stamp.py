"""The copy that was flushed first wins, not the one flushed last."""

from __future__ import annotations

import numpy as np

from vmmd.upstairs.core import reconcile_plan as reconcile


def plant(patch) -> None:
    best = reconcile._best_rows

    def worst(keys):
        quality, generations, flushes, sound, dirty = keys
        top = np.uint64(2**63)
        return best((quality, top - generations, top - flushes, sound, dirty))

    patch.setattr(reconcile, "_best_rows", worst)
