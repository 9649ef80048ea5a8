"""One member: a downstairs that fills a slot, or is about to leave it.

Only `move` changes `state`. What the upstairs has in flight on the member is counted here (jobs,
bytes); the frames themselves are in the replay log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vmmd.upstairs.core import limits
from vmmd.upstairs.core.events import ExtentStamps
from vmmd.upstairs.core.slot_states import SLOT, SlotMode, SlotMove, SlotState

if TYPE_CHECKING:
    from vmmd.upstairs.core.control_jobs import ControlJob

_STREAMING = frozenset({SlotState.ACTIVE, SlotState.LIVE_REPAIR, SlotState.RECONCILE})


class Member:
    """`index` is its place in every per-member array and mask; `slot` the place the user knows."""

    __slots__ = (
        "address",
        "bad_blocks",
        "bit",
        "bytes",
        "cipher",
        "connected_at",
        "departing",
        "index",
        "jobs",
        "joined",
        "last_error",
        "link",
        "mode",
        "offline_since",
        "owned_before",
        "owner_id",
        "region_id",
        "repair_attempts",
        "repaired_bytes",
        "repairs_aborted",
        "repairs_completed",
        "replacing",
        "retry_at",
        "retry_delay",
        "slot",
        "stamped_flush",
        "stamps",
        "stamps_asked",
        "state",
        "stopped_reason",
        "suspect_extents",
        "synced_job",
        "trusted_region",
    )

    def __init__(self, index: int, slot: int, address: str, mode: SlotMode) -> None:
        self.index = index
        self.bit = 1 << index
        self.slot = slot
        self.address = address
        self.mode = mode
        self.state = SlotState.WAIT_CONNECT
        self.link = 0
        self.jobs = 0
        self.bytes = 0
        # The last flush that the member acknowledged, by job: what came after has to be sent again.
        self.synced_job = 0
        self.joined = False
        self.departing = False
        # Came by a replacement and has not been a full member yet.
        self.replacing = False
        self.region_id = ""
        # The region whose stamps may be compared with the others': one that was part of this set.
        self.trusted_region = ""
        self.owned_before = False
        # How the region's blocks are encrypted, and whose they are.
        self.cipher = ""
        self.owner_id = ""
        self.stamps: ExtentStamps | None = None
        # The states of its extents, asked for once it was filled: `stamps` is from before.
        self.stamps_asked: ControlJob | None = None
        # (generation, number) of the last flush it acknowledged that must have left a stamp.
        self.stamped_flush = (0, 0)
        # Extents in which a write failed: their stamps say nothing any more.
        self.suspect_extents: set[int] = set()
        self.last_error = ""
        self.stopped_reason = ""
        self.retry_at = 0.0
        self.retry_delay = limits.RECONNECT_SECONDS_MIN
        self.connected_at = 0.0
        self.offline_since = 0.0
        # Read from it since it became a full member, and not what their contexts say.
        self.bad_blocks = 0
        self.repair_attempts = 0
        self.repairs_completed = 0
        self.repaired_bytes = 0
        self.repairs_aborted = 0

    def move(self, move: SlotMove) -> None:
        """Takes one step of the slot's table; IllegalMoveError when there is none."""
        self.state = SLOT.after(self.state, move)

    @property
    def active(self) -> bool:
        """Serves reads and may be a repair's source."""
        return self.state is SlotState.ACTIVE

    @property
    def streams(self) -> bool:
        """Is sent every mutation now."""
        return self.state in _STREAMING

    @property
    def held(self) -> bool:
        """Away for a short time: mutations are kept for it."""
        return self.mode is SlotMode.OFFLINE and self.state not in _STREAMING

    @property
    def usable(self) -> bool:
        """Counts towards the members that a guest's write or flush needs."""
        return self.state is SlotState.ACTIVE or self.state is SlotState.LIVE_REPAIR or self.held

    @property
    def complete(self) -> bool:
        """Holds, or will hold after its replay, everything that was acknowledged to the guest."""
        return self.state is SlotState.ACTIVE or self.held

    def unproven_extents(self, extent_count: int) -> npt.NDArray[np.bool_]:
        """Extents whose stamp cannot be believed: unclean, or with a failed write; all of a strange
        region."""
        if self.region_id != self.trusted_region or self.stamps is None:
            return np.ones(extent_count, dtype=np.bool_)
        unproven: npt.NDArray[np.bool_] = np.asarray(self.stamps.flags != 0)
        if self.suspect_extents:
            unproven[sorted(self.suspect_extents)] = True
        return unproven

    @property
    def joined_now(self) -> bool:
        """Has a session, or is expected back with one: its region is taken."""
        return self.held or self.state not in (SlotState.WAIT_CONNECT, SlotState.STOPPING)
