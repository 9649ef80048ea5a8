"""A block that does not match its context is copied all the same."""

from __future__ import annotations

from downstaird.core.repair_plan import Run
from tests.sim import copier


def plant(patch) -> None:
    patch.setattr(copier, "spared", lambda _bad, theirs, _own: [Run(0, len(theirs))])
