"""A filled member serves at once; nobody made its copies durable."""

from __future__ import annotations

from vmmd.upstairs.core.live_repair import LiveRepair
from vmmd.upstairs.core.repair_states import RepairPhase


def plant(patch) -> None:
    copy = LiveRepair._copy

    def hasty(self: LiveRepair) -> None:
        copy(self)
        if self.phase is RepairPhase.FINAL:
            self.target.repairs_completed += 1
            self._region.activate_member(self.target)
            self.phase = RepairPhase.END
            self._over("")

    patch.setattr(LiveRepair, "_copy", hasty)
