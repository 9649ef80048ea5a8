"""An extent that is written again after a flush that was put off is stored with that flush's stamp:
two copies that say the same then differ."""

from __future__ import annotations

from downstaird.core.extent_table import ExtentTable


def plant(patch) -> None:
    freeze = ExtentTable.freeze

    def frozen(self, generation, number):
        self._active.difference_update(self._put_off)
        return freeze(self, generation, number)

    patch.setattr(ExtentTable, "freeze", frozen)
