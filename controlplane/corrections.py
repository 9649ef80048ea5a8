"""What a replacement has the machine do besides the straight way: fill again, and take back.

Each method is one effect of the workflow and gives the event that it came to; a failed call raises.
"""

from __future__ import annotations

from collections.abc import Callable

from controlplane.core import replacement as core
from controlplane.core.replacement import Event, Replacement
from controlplane.peers.vmmd import Vmmd
from controlplane.steps import instance_ended, is_held, undoable
from controlplane.store.base import Store
from stairlib.model.errors import ConflictError, NotFoundError, StateError

CANNOT_TAKE_BACK = "CANNOT_TAKE_BACK"


class Corrections:
    """See the module."""

    def __init__(
        self,
        store: Store,
        vmmd: Vmmd,
        clock: Callable[[], float],
        require: Callable[[Replacement], None],
    ) -> None:
        """`require` raises when the replacement is not driven here any more."""
        self._require = require
        self._store = store
        self._vmmd = vmmd
        self._clock = clock

    async def restart(self, record: Replacement) -> Event:
        """Has the repair that does not move begun anew."""
        return await self._fill_again(record, whole=False)

    async def mend(self, record: Replacement) -> Event:
        """Has the member that differs compared and filled as a whole."""
        return await self._fill_again(record, whole=True)

    async def _fill_again(self, record: Replacement, *, whole: bool) -> Event:
        slot = record.slot if record.mending is None else record.mending
        await self._vmmd.repair_member(
            record.instance_id, record.disk, record.region_path, slot, whole=whole,
            reason=record.last_error,
        )  # fmt: skip
        return core.RetryDue(at=self._clock())

    async def ask(self, record: Replacement) -> Event:
        """Whether the replacement can be undone."""
        info = await self._vmmd.get_volume_info(record.instance_id, record.disk)
        event = undoable(record, info, self._clock())
        if not isinstance(event, core.CanUndo) and is_held(record, info):
            # It was paused, and nobody will resume it.
            self._require(record)
            await self._vmmd.hold_repair(
                record.instance_id, record.disk, record.region_path, record.slot, held=False
            )
        return event

    async def take_back(self, record: Replacement) -> Event:
        """Has the machine keep the old member. The recorded request is the old one already, so that
        a machine that is made meanwhile has it too."""
        try:
            await self._vmmd.take_back(
                record.instance_id, record.disk, record.region_path, record.slot,
                old=record.old_target, new=record.new_target, replacement_id=record.id,
            )  # fmt: skip
        except ConflictError as error:
            if error.reason != CANNOT_TAKE_BACK:
                raise
            return await self._too_late(record, error)
        except (NotFoundError, StateError):
            if not await instance_ended(self._store, record.instance_id):
                raise
            # No machine has it, and none will.
        return core.Undone(at=self._clock())

    async def _too_late(self, record: Replacement, error: ConflictError) -> Event:
        """The old member has left since it was asked."""
        event = await self.ask(record)
        if isinstance(event, core.CanUndo):
            return core.StepFailed(at=self._clock(), error=error.message)
        return event
