"""A read-only set takes whoever connects for one of its own."""

from __future__ import annotations

from vmmd.upstairs.core.read_only import ReadOnlyMembers


def plant(patch) -> None:
    def hasty(self, member) -> str:
        member.owner_id = self._region.config.upstairs_id
        return self._agreement.flaw(member.stamps)

    patch.setattr(ReadOnlyMembers, "_unfit", hasty)
