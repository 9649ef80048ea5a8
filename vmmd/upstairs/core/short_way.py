"""The short way of the most usual steps: reads and small writes of a guest, as runs, a flush that
comes alone, and the replies to them, while nothing else goes on in the set.

A step of the upstairs lets every part look at the new situation. For a run that is sent, a write
that is held, and a reply that answers one frame whole and right, none of them would find anything:
`open` says after each full step whether that is so. What is not done here is not begun here; the
caller then makes a full step of it. Invariant: what is done leaves the set as the full step would.
"""

from __future__ import annotations

from collections.abc import Sequence

from stairlib.wire.frame import Frame
from vmmd.block.request_run import Run, Whole
from vmmd.upstairs.core import limits
from vmmd.upstairs.core.events import (
    CompleteGuest,
    Disconnected,
    Effect,
    Event,
    GuestBatch,
    SendBehind,
    SendHeld,
    SlotReply,
)
from vmmd.upstairs.core.guest_ops import GuestOps
from vmmd.upstairs.core.reads import ReadBook, RunReads
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.slot import Member
from vmmd.upstairs.core.slot_states import SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState

_NOTHING: tuple[Effect, ...] = ()
# Full steps that change nothing about who is sent what, unless they meet with something.
_SERVING = frozenset((GuestBatch, SlotReply, SendHeld, SendBehind))


class ShortWay:
    """See the module."""

    def __init__(self, region: RegionSet, reads: ReadBook, guest: GuestOps) -> None:
        self._region = region
        self._reads = reads
        self._guest = guest
        self._block_size = region.config.geometry.block_size
        self._block_count = region.config.geometry.block_count
        # Whether a full step would have nothing to do but the event itself.
        self.open = False

    def close(self, event: Event) -> None:
        """A full step begins, with this. Unless it is one of serving the guest, what is kept for
        the copy behind goes before all that it sends; to a link that is gone, nothing does."""
        self.open = False
        behind = self._region.behind
        if behind.member is None or type(event) in _SERVING:
            return
        if type(event) is Disconnected and event.link == behind.member.link:
            behind.drop()
        else:
            self._region.effects += behind.stop()

    def look(self, *, busy: bool) -> None:
        """After a full step. `busy`: some part has something going on, or something waits."""
        region = self._region
        self.open = (
            not busy
            and region.state is UpstairsState.ACTIVE
            and bool(region.active)
            and not (region.repair_wanted or region.departing or region.filling)
            and not region.config.read_only
        )
        alike = self.open and region.active == region.receivers
        region.effects += region.behind.look(region.active if alike else ())

    def start(self, key: object, run: Run, now: float) -> tuple[Effect, ...] | None:
        """A run of the guest's. None: not done."""
        if not self.open or run.end > self._block_count or run.block_size != self._block_size:
            return None
        if not run.reads:
            return self._guest.hold_run(key, run, now)
        if self._guest.holding or run.data_bytes > limits.READ_FRAME_BYTES_MAX:
            return None
        member = self._reads.least_busy()
        if member is None or member.jobs + run.requests > limits.ADMITTED_JOBS_MAX:
            return None
        if member.bytes + run.data_bytes > limits.ADMITTED_BYTES_MAX:
            return None
        request = self._reads.request(key, run, member)
        return (*self._taken(), request)

    def flush(self, key: object, token: object, now: float) -> Sequence[Effect] | None:
        """A flush of the guest's that came alone. None: not done."""
        if not self.open or not self._guest.flush_alone(key, token, now):
            return None
        return self._taken()

    def on_time(self, now: float) -> Sequence[Effect] | None:
        """A SendHeld where nothing is to be sent now: something that came before it sent what was
        held. None: not done."""
        if not self.open or (self._guest.holding and not self._guest.left_to_hold(now)):
            return None
        self._region.now = now
        self._guest.on_time()
        return self._taken()

    def behind_on_time(self, now: float) -> Sequence[Effect] | None:
        """A SendBehind. None: not done."""
        return self._region.behind.on_time(now) if self.open else None

    def _several(self, member: Member, first: int, last: int) -> Sequence[Effect] | None:
        """Frames that were sent one after the other, answered together: writes with the flush right
        behind them, or many of both."""
        records = self._region.log.settle_all(member, first, last)
        if records is None:
            return None
        self._region.flushes_acked(member, records)
        return self._taken()

    def _taken(self) -> Sequence[Effect]:
        region = self._region
        effects, region.effects = region.effects, []
        return effects

    def reply(self, link: int, frame: Frame) -> Sequence[Effect] | None:
        """A member's answer. None: not done."""
        region = self._region
        member = region.member_of(link)
        if not self.open or member is None or member.state is not SlotState.ACTIVE:
            return None
        count = frame.op_count
        if not count:
            return None
        first, last, good = frame.answers
        if not good or last - first + 1 != count:
            return None
        asked = self._reads.whole(member, first, count)
        if asked is None:
            record = region.log.find(first)
            if record is None:
                return None
            if record.last_job < last:
                return self._several(member, first, last)
            if not region.log.settle(member, record, count):
                return None
            if not record.is_flush:
                return _NOTHING
            region.flushes_acked(member, (record,))
            return self._taken()
        reads, payload = asked.reads, frame.payload
        if type(reads) is not RunReads or asked.trail.bad or frame.context_count != asked.blocks:
            return None
        if len(payload) != asked.blocks * self._block_size:
            return None
        opened = region.codec.open_at_once(payload, frame.raw_contexts, reads.run.spans)
        if opened is None:
            return None
        self._reads.answered(asked)
        return (CompleteGuest(reads.key, Whole(reads.run, opened)),)
