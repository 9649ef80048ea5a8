"""The copy that is a little behind: what a guest writes and flushes goes to two of three members at
once, and to the third one in groups.

A flush is answered with two acknowledgements, so nobody waits for the third; asked for each flush
alone, it takes processor time from the two that are waited for, and from the machine. What it is
sent in a group it makes durable with one sync (FLUSH_WITH_NEXT), each flush with its own stamp.
Nothing else changes: a frame that is kept here is owed by the member as any other, and is in the
replay log (docs/adr/0059).

    learning    all are sent everything at once; who answers last is counted
    behind      `_chosen`, who was last most often, is sent things in groups
    learning    again after so many flushes, or when the other two too often did not answer in time

Invariants: the member receives the same frames in the same order as the others; whatever else is
to be sent to it goes behind what is kept; nothing is kept while the set does anything but serve
its guest with three active members, nor for longer than the config says. What is kept when the
machine dies is on the two others, as the answer to its flushes says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stairlib.wire.frame import with_next
from vmmd.upstairs.core import limits
from vmmd.upstairs.core.events import Effect, SendBehindAfter, SendFrame
from vmmd.upstairs.core.replay import Mutation

if TYPE_CHECKING:
    from vmmd.upstairs.core.slot import Member


class CopyBehind:
    """See the module. Times in seconds of the region's clock."""

    def __init__(self, longest_seconds: float, learned_flushes: int) -> None:
        """No longer than that is a frame kept; 0 is never. So many flushes are looked at first."""
        self._longest = longest_seconds
        self._least = self._learning = learned_flushes
        # Flushes until the next state; those since the last one, and how many were not in time.
        self._left = self._learning
        self._sent = self._slow = 0
        self._lasts: dict[int, int] = {}
        self._chosen: Member | None = None
        # Who is behind now; None: nothing is to be kept.
        self.member: Member | None = None
        self._ahead: tuple[int, ...] = ()
        self._kept: list[Mutation] = []
        self._bytes = 0
        self._flushes = 0
        self._since = 0.0
        self._last_flush: Mutation | None = None
        self._flushed_at = 0.0
        # A SendBehind is on its way.
        self._told = False

    # ---- who

    def look(self, members: Sequence[Member]) -> list[Effect]:
        """After a full step: these are all that is sent to, and nothing but serving goes on among
        them. None when something does: then it returns what is to be sent now."""
        chosen = self._chosen
        if chosen is None or len(members) != limits.SLOT_COUNT:
            return self.stop()
        if self._left <= 0 or chosen not in members:
            # After so many flushes; or it was replaced, and its successor is one of them.
            effects = self.stop()
            self._learn(self._least)
            return effects
        self.member = chosen
        self._ahead = tuple(m.link for m in members if m is not chosen)
        return []

    def answered_last(self, member: Member) -> None:
        """All who were sent a flush have made it durable, this one last."""
        if not self._longest or self._chosen is not None:
            return
        self._lasts[member.index] = self._lasts.get(member.index, 0) + 1
        self._left -= 1
        if self._left <= 0 and max(self._lasts, key=self._lasts.__getitem__) == member.index:
            self._chosen, self._left = member, limits.BEHIND_FLUSHES
            self._sent = self._slow = 0

    def _learn(self, flushes: int) -> None:
        """With nothing kept."""
        self._chosen = self.member = None
        self._lasts.clear()
        self._learning = self._left = flushes

    # ---- what

    def send(self, record: Mutation, now: float, effects: list[Effect]) -> None:
        """Sends a new frame to the two, and keeps it for the third, or sends it there behind what
        is kept. Only while there is a `member`."""
        effects.append(SendFrame(self._ahead, record.buffers))
        if not self._kept:
            self._since = now
        self._kept.append(record)
        self._bytes += record.payload_bytes
        if record.is_flush:
            self._flushes += 1
            self._last_flush, self._flushed_at = record, now
            self._left -= 1
            self._sent += 1
        if (
            self._bytes >= limits.BEHIND_BYTES_MAX
            or self._flushes >= limits.BEHIND_FLUSHES_MAX
            or len(self._kept) >= limits.BEHIND_FRAMES_MAX
        ):
            effects += self.taken()
        elif not self._told:
            self._told = True
            effects.append(SendBehindAfter(min(limits.BEHIND_ANSWER_SECONDS, self._longest)))

    def taken(self) -> list[Effect]:
        """What is kept, to be sent now."""
        kept, member = self._kept, self.member
        if not kept or member is None:
            return []
        self._kept, self._bytes, self._flushes = [], 0, 0
        last = max((i for i, record in enumerate(kept) if record.is_flush), default=0)
        return [
            SendFrame(
                (member.link,),
                with_next(record.buffers) if record.is_flush and index < last else record.buffers,
            )
            for index, record in enumerate(kept)
        ]

    def stop(self) -> list[Effect]:
        """Nothing is kept until the next `look`: what is, to be sent now."""
        effects = self.taken()
        self.member = None
        return effects

    def changed(self) -> list[Effect]:
        """Some member has come or gone."""
        if self.member is not None and not self.member.streams:
            self.drop()
        return self.stop()

    def drop(self) -> None:
        """Nothing is to be sent any more, to it or to anybody: what it missed is in the replay
        log."""
        self._kept, self._bytes, self._flushes, self.member = [], 0, 0, None

    def on_time(self, now: float) -> list[Effect]:
        """The time of a SendBehindAfter is over: what is to be sent, or looked at again later."""
        self._told = False
        if not self._kept:
            return []
        flush = self._last_flush
        waited = 0.0 if flush is None or flush.judged else now - self._flushed_at
        # A loop's clock may tell whole milliseconds.
        if waited >= limits.BEHIND_ANSWER_SECONDS - limits.HELD_SECONDS_LEAST:
            effects = self.taken()
            self._slow += 1
            one_in = limits.BEHIND_SLOW_ONE_IN
            if self._slow * one_in > self._sent + one_in:
                self._learn(min(2 * self._learning, limits.BEHIND_FLUSHES))
            return effects
        left = self._since + self._longest - now
        if left < limits.HELD_SECONDS_LEAST:
            return self.taken()
        self._told = True
        return [SendBehindAfter(min(left, limits.BEHIND_ANSWER_SECONDS))]
