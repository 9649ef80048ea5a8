"""The old member is retired as soon as the machine was told of the new one."""

from __future__ import annotations

from controlplane.core.replacement import TRANSITIONS, Applied, State


def plant(patch) -> None:
    patch.setitem(TRANSITIONS[State.APPLY], Applied, (State.RETIRE,))
