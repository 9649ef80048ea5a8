"""A promotion is answered, and only memory knows it."""

from __future__ import annotations

from downstaird.core.region_files import OwnerFile


def plant(patch) -> None:
    store = OwnerFile.store

    def lazy(self: OwnerFile, ownership) -> None:
        if ownership.owner_id is None:
            store(self, ownership)
        self.ownership = ownership

    patch.setattr(OwnerFile, "store", lazy)
