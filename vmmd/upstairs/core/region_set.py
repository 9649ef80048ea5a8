"""What the parts of the upstairs share: the members, the jobs in flight, and the few ways to change
them.

The parts (guest operations, reads, activation, repair, ...) hold a `RegionSet` and act on it;
effects are collected in `effects` in the order in which they are to be carried out. Membership
changes set `changed`, and the apply loop lets every part look at the new situation until nothing
changes any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stairlib import native
from stairlib.model.context import ContextArray
from stairlib.model.geometry import Geometry
from stairlib.wire.frame import (
    FLUSH_KEEPS_MARKS,
    Bytes,
    FrameKind,
    OpKind,
    encode,
    pack_op,
)
from vmmd.block.backend import BlockStatus, Completion
from vmmd.upstairs.core import limits
from vmmd.upstairs.core.codec import Codec, Encryption, Keyring, PlainCodec
from vmmd.upstairs.core.control_jobs import ControlBook, ControlJob
from vmmd.upstairs.core.copy_behind import CopyBehind
from vmmd.upstairs.core.events import (
    Changed,
    CompleteGuest,
    Connect,
    Disconnect,
    Effect,
    SendFrame,
    SlotLeft,
)
from vmmd.upstairs.core.flush import FlushBook, judge
from vmmd.upstairs.core.repair_limits import RepairLimits
from vmmd.upstairs.core.replay import Mutation, ReplayLog
from vmmd.upstairs.core.slot import Member
from vmmd.upstairs.core.slot_states import SlotMode, SlotMove, SlotState, mode_after_loss
from vmmd.upstairs.core.upstairs_states import UPSTAIRS, UpstairsMove, UpstairsState


@dataclass(frozen=True, slots=True)
class UpstairsConfig:
    """What an upstairs is for its whole life, except for targets and generation, which may move
    on."""

    upstairs_id: str
    session_id: str
    generation: int
    geometry: Geometry
    targets: tuple[str, str, str]
    flush_timeout_seconds: float = limits.FLUSH_TIMEOUT_SECONDS
    read_only: bool = False
    # Seconds after which two of three members may serve (docs/adr/0018); 0 = never.
    activate_with_two_after: float = 0.0
    # How long one of three copies may be behind (copy_behind.py); 0 = never. How many flushes are
    # looked at before one is.
    behind_seconds: float = limits.BEHIND_SECONDS
    behind_after_flushes: int = limits.BEHIND_LEARNED_FLUSHES
    # None for a set whose blocks are kept as they are.
    encryption: Encryption | None = None


class ReadsInFlight(Protocol):
    """The part of the reads that membership changes touch."""

    def lose(self, member: Member) -> None:
        """The member will not answer."""
        ...


class RegionSet:
    """Three slots, at most four members, and everything in flight on them."""

    def __init__(self, config: UpstairsConfig) -> None:
        self.config = config
        self.generation = config.generation
        self.state = UpstairsState.INITIALIZING
        self.reason = ""
        self.now = 0.0
        self.effects: list[Effect] = []
        self.log = ReplayLog()
        self.flushes = FlushBook(config.flush_timeout_seconds)
        self.control = ControlBook()
        self.behind = CopyBehind(config.behind_seconds, config.behind_after_flushes)
        self.repair_limits = RepairLimits()
        # Slots to which nothing is copied.
        self.held: set[int] = set()
        # Replacements that were undone; a request for one may still be on its way.
        self.taken_back: set[str] = set()
        self.reads: ReadsInFlight
        # Sends what was acknowledged to the guest and not sent yet.
        self.send_held: Callable[[], None] = lambda: None
        block_size = config.geometry.block_size
        # How the members' blocks are encrypted, and the owner whose they are; empty when they are
        # not, and until a member has told.
        self.encrypted_as = ("", "")
        self.codec: Codec = PlainCodec(block_size)
        encryption = config.encryption
        self._keyring = None if encryption is None else Keyring(encryption, block_size)
        self.read_mismatches = 0
        self.blocks_healed = 0
        self.changed = True
        # Extents written since a repair's survey began; None while nobody asks.
        self.touched: npt.NDArray[np.bool_] | None = None
        self._next_job = 1
        self._next_link = 1
        self._by_link: dict[int, Member] = {}
        self.members = [
            Member(slot, slot, address, SlotMode.NEW) for slot, address in enumerate(config.targets)
        ]
        self.receivers: list[Member] = []
        self.links: tuple[int, ...] = ()
        self.active: list[Member] = []
        self.usable_count = 0
        # A member streams that does not hold all blocks yet.
        self.filling = False
        # Members wait to be compared.
        self.joining = False
        # The members that fill the three slots, by slot; and the good one that is being replaced
        # and serves until its successor can.
        self.slots: list[Member] = []
        self.departing: Member | None = None
        self.repair_wanted = False
        self.refresh()

    # ---- looking

    def member_of(self, link: int) -> Member | None:
        """The member behind a link; None for a link that was given up."""
        return self._by_link.get(link)

    def refresh(self) -> None:
        """Recomputes what is derived from the members' states."""
        self.receivers = [m for m in self.members if m.streams or m.held]
        self.links = tuple(m.link for m in self.members if m.streams)
        self.active = [m for m in self.members if m.active]
        self.usable_count = sum(m.usable for m in self.members)
        self.filling = any(m.state is SlotState.LIVE_REPAIR for m in self.members)
        self.joining = any(m.state is SlotState.WAIT_QUORUM for m in self.members)
        self.slots = sorted((m for m in self.members if not m.departing), key=lambda m: m.slot)
        self.departing = next((m for m in self.members if m.departing), None)
        self.repair_wanted = any(m.state is SlotState.LIVE_REPAIR_READY for m in self.slots)

    def hold(self, slot: int, *, held: bool) -> None:
        """Has the repairs of a slot stand still, or go on."""
        if (slot in self.held) is not held:
            self.held ^= {slot}
            self.touch()

    def touch(self) -> None:
        """Notes a membership change: derived values are right at once, the parts look again
        later."""
        self.refresh()
        self.effects += self.behind.changed()
        if not self.changed:
            self.changed = True
            self.effects.append(Changed())

    def take_jobs(self, count: int) -> int:
        """The first of `count` new consecutive job ids."""
        first = self._next_job
        self._next_job = first + count
        return first

    @property
    def last_job(self) -> int:
        """The newest job id given out."""
        return self._next_job - 1

    @property
    def cipher(self) -> str:
        """The suite, as in `encrypted_as`."""
        return self.encrypted_as[0]

    def encrypt_as(self, cipher: str, owner_id: str) -> None:
        """Takes the suite of a member that was found to go with all others."""
        if self._keyring is not None:
            self.encrypted_as = (cipher, owner_id)
            self.codec = self._keyring.codec(cipher, owner_id)

    # ---- sending

    def send_mutation(self, record: Mutation, only: Sequence[Member] = ()) -> None:
        """To every member that streams, or to some of these; held for those away, which are given
        up when it gets too much, unless the guest's writes need them: then it waits for them."""
        if only:
            for member in only:
                self.catch_up(member)
            self.log.append(record, only)
            self.effects.append(SendFrame(tuple(m.link for m in only), record.buffers))
            return
        self.log.append(record, self.receivers)
        if self.behind.member is not None:
            self.behind.send(record, self.now, self.effects)
            return
        if self.links:
            self.effects.append(SendFrame(self.links, record.buffers))
        if len(self.links) != len(self.receivers):
            for member in [m for m in self.receivers if m.held]:
                much = (
                    member.jobs > limits.OFFLINE_JOBS_MAX or member.bytes > limits.OFFLINE_BYTES_MAX
                )
                if much and self._spared(member):
                    self.fault(
                        member, f"away with {member.jobs} jobs, {member.bytes} bytes held for it"
                    )

    def catch_up(self, member: Member) -> None:
        """Something is about to be sent to this member alone: behind what is kept for it."""
        if member is self.behind.member:
            self.effects += self.behind.taken()

    def behind_on_time(self) -> None:
        """The time of a SendBehindAfter is over."""
        self.effects += self.behind.on_time(self.now)

    def _spared(self, member: Member) -> bool:
        """Whether what the guest writes becomes durable without the member. One that is being
        filled does not count: it may be lost again before it is whole."""
        others = (m for m in self.members if m is not member)
        return sum(m.state is SlotState.ACTIVE for m in others) >= limits.WRITES_NEEDED

    def mutate(
        self, ops: Sequence[tuple[int, int, int]], contexts: ContextArray | None, payload: Bytes
    ) -> None:
        """Sends writes and discards as one frame: (kind, first block, blocks) each. `contexts` and
        `payload` are of the writes, in order; None and nothing when there are none."""
        first = self.take_jobs(len(ops))
        buffers = _frame_of(first, ops, contexts, payload)
        dirties = any(op[0] != OpKind.WRITE_UNWRITTEN for op in ops)
        record = Mutation(first, len(ops), buffers, len(payload), dirties=dirties)
        self.flushes.mutated(record, self.now)
        if self.touched is not None:
            per_extent = self.config.geometry.blocks_per_extent
            for _kind, offset, length in ops:
                self.touched[offset // per_extent : (offset + length - 1) // per_extent + 1] = True
        self.send_mutation(record)

    def send_flush(
        self,
        waiters: Sequence[tuple[object, object]] = (),
        *,
        clears_marks: bool = False,
        only: Sequence[Member] = (),
        snapshot: str = "",
    ) -> Mutation:
        """A flush of everything acknowledged so far, to all members or `only` some. With
        `clears_marks`, extents that were copied by now are no longer incomplete after it. With
        `snapshot` they keep what it covers under that name."""
        self.send_held()
        job = self.take_jobs(1)
        number = self.flushes.number
        flags = 0 if clears_marks else FLUSH_KEEPS_MARKS
        name = snapshot.encode()
        op = pack_op(
            job,
            OpKind.FLUSH,
            generation=self.generation,
            number=number,
            flags=flags,
            blob_bytes=len(name),
        )
        record = Mutation(
            job,
            1,
            encode(FrameKind.REQUEST, [op], sequence=job, blobs=[name] if name else ()),
            0,
            is_flush=True,
            flush_number=number,
        )
        record.waiters.extend(waiters)
        record.stamps = self.log.changed_since_flush()
        self.flushes.sent(record)
        self.send_mutation(record, only)
        if not record.pending:
            self.judge_flush(record)
        return record

    def send_control(
        self,
        member: Member,
        kind: OpKind,
        *,
        offset: int = 0,
        length: int = 0,
        number: int = 0,
        blob: bytes = b"",
    ) -> ControlJob:
        """One job to one member, in a frame of its own; the returned record fills with its
        outcome."""
        assert member.streams
        self.catch_up(member)
        job = self.take_jobs(1)
        op = pack_op(
            job,
            kind,
            offset=offset,
            length=length,
            number=number,
            generation=self.generation,
            blob_bytes=len(blob),
        )
        blobs: Sequence[Bytes] = [blob] if blob else ()
        self.effects.append(
            SendFrame((member.link,), encode(FrameKind.REQUEST, [op], sequence=job, blobs=blobs))
        )
        return self.control.add(ControlJob(job, kind, member, offset, length))

    # ---- flushes

    def flushes_acked(self, member: Member, records: Iterable[Mutation]) -> None:
        """The member made these flushes durable; other records among them are passed over."""
        for record in records:
            if not record.is_flush:
                continue
            record.acked |= member.bit
            member.synced_job = max(member.synced_job, record.last_job)
            if record.stamps:
                stamp = (self.generation, record.flush_number)
                member.stamped_flush = max(member.stamped_flush, stamp)
            if not record.pending:
                self.behind.answered_last(member)
            self.judge_flush(record)
        self.trim()

    def judge_flush(self, record: Mutation) -> None:
        """Answers the flush's waiters once its outcome is certain."""
        if record.judged:
            return
        old = self.departing
        departing = coming = 0
        if old is not None:
            departing = old.bit
            coming = next((m.bit for m in self.slots if m.slot == old.slot), 0)
        verdict = judge(record, sum(m.bit for m in self.active), departing, coming)
        if verdict is None:
            return
        record.judged = True
        record.succeeded = verdict
        if verdict:
            self.flushes.proven = max(self.flushes.proven, record.flush_number)
        status = BlockStatus.OK if verdict else BlockStatus.FAILED
        if verdict and self.flushes.lost_writes and record.waiters:
            status = BlockStatus.FAILED
            self.flushes.lost_writes = False
        self.complete(record.waiters, status)
        record.waiters = []

    def complete(self, waiters: Sequence[tuple[object, object]], status: BlockStatus) -> None:
        """Completes guest requests that carry no data, grouped by key."""
        run: list[Completion] = []
        last_key: object = None
        for key, token in waiters:
            if not run or key is not last_key:
                run = []
                last_key = key
                self.effects.append(CompleteGuest(key, run))
            run.append(Completion(token, status))

    def trim(self) -> None:
        """Forgets what every member in service has flushed."""
        if self.receivers:
            self.log.trim(min(m.synced_job for m in self.receivers))
        else:
            self.log.trim(self.last_job)

    # ---- members coming and going

    def connect(self, member: Member) -> None:
        """Begins an attempt to open the member's session."""
        member.move(SlotMove.CONNECT)
        member.link = self._next_link
        self._next_link += 1
        self._by_link[member.link] = member
        expected = self.expected_region(member)
        self.effects.append(
            Connect(member.link, member.slot, member.address, expected, self.generation)
        )
        self.touch()

    def expected_region(self, member: Member) -> str:
        """The region that the member must bring; empty when any may be brought, and is looked
        at."""
        known = member.joined and self.state is UpstairsState.ACTIVE
        return member.region_id if known else ""

    def stop(self, member: Member, mode: SlotMode, reason: str) -> None:
        """Lets the member go; it is gone once the shell has confirmed."""
        if member.state in (SlotState.WAIT_CONNECT, SlotState.STOPPING):
            member.mode = mode
        else:
            member.move(SlotMove.STOP)
            member.stopped_reason = reason
            self._left(member, mode, reason)
            self.effects.append(Disconnect(member.link, reason))
        self.touch()

    def lost(self, member: Member, reason: str) -> None:
        """The shell says that the link is gone: after `stop`, or by itself."""
        del self._by_link[member.link]
        stopped = member.state is SlotState.STOPPING
        mode = member.mode
        if not stopped:
            mode = mode_after_loss(member.state, mode, self.state)
        was_complete = member.complete
        member.move(SlotMove.LOST)
        self._schedule(member)
        if not stopped:
            self._left(member, mode, reason)
            if mode is SlotMode.FAULTED:
                self._drop_stream(member, was_complete=was_complete)
        self.touch()

    def _left(self, member: Member, mode: SlotMode, reason: str) -> None:
        if mode is SlotMode.OFFLINE and member.mode is not SlotMode.OFFLINE:
            member.offline_since = self.now
        member.mode = mode
        member.last_error = reason
        self.refresh()
        self.effects.append(SlotLeft(member.slot, member.address, reason, mode.name))
        self.control.lose(member)
        self.reads.lose(member)

    def _schedule(self, member: Member) -> None:
        if member.connected_at and self.now - member.connected_at >= limits.CONNECTION_GOOD_SECONDS:
            member.retry_delay = limits.RECONNECT_SECONDS_MIN
        member.retry_at = self.now + member.retry_delay
        member.retry_delay = min(2 * member.retry_delay, limits.RECONNECT_SECONDS_MAX)
        member.connected_at = 0.0

    def fault(self, member: Member, reason: str) -> None:
        """Takes the member out of service: it owes nothing more, and comes back by repair only."""
        was_complete = member.complete
        self.stop(member, SlotMode.FAULTED, reason)
        member.last_error = reason
        self._drop_stream(member, was_complete=was_complete)
        self.touch()

    def _drop_stream(self, member: Member, *, was_complete: bool) -> None:
        self.refresh()
        # It is filled before it serves again, and its stamps are then others.
        member.stamped_flush = (0, 0)
        # An unanswered write may have failed, and a flush behind it may still stamp its extent.
        per_extent = self.config.geometry.blocks_per_extent
        member.suspect_extents |= self.log.owed_extents(member, per_extent)
        for record in self.log.skip(member):
            self.judge_flush(record)
        still_complete = any(m.complete for m in self.members)
        if was_complete and not still_complete and self.flushes.unproven:
            self.flushes.lost_writes = True
        self.trim()

    def activate_member(self, member: Member) -> None:
        """The member holds everything now and serves reads."""
        filled = member.streams
        member.move(SlotMove.ACTIVATE)
        self.member_joined(member)
        if filled:
            # What it told when its session began is not what it has now.
            count = self.config.geometry.extent_count
            member.stamps_asked = self.send_control(member, OpKind.EXTENT_STATES, length=count)

    def member_joined(self, member: Member) -> None:
        """Bookkeeping for a member that has become active."""
        member.mode = SlotMode.NEW
        member.joined = True
        member.replacing = False
        member.trusted_region = member.region_id
        member.suspect_extents.clear()
        member.repair_attempts = 0
        member.bad_blocks = 0
        member.last_error = ""
        self.touch()

    def replay(self, member: Member) -> None:
        """Sends a member that was away for a short time everything since its last flush again.

        Its stamps tell of flushes whose answers were lost. What these cover must not be sent: the
        member would go back in time for a while, and its older blocks, being dirty, would win over
        flushed ones if everything stopped just then.
        """
        stamps = member.stamps
        assert stamps is not None
        flushed = stamps.flushes[stamps.generations == self.generation]
        for record in self.log.flushes_up_to(int(flushed.max(initial=0))):
            record.acked |= member.bit
            member.synced_job = max(member.synced_job, record.last_job)
        member.move(SlotMove.REPLAYED)
        for record in self.log.replay(member):
            self.effects.append(SendFrame((member.link,), record.buffers))
        self.member_joined(member)

    def drop_member(self, member: Member, reason: str) -> None:
        """Removes a member for good: one that was replaced."""
        was_complete = member.complete
        if member.state is not SlotState.WAIT_CONNECT:
            self._by_link.pop(member.link, None)
            if member.state is not SlotState.STOPPING:
                self.effects.append(Disconnect(member.link, reason))
            # Whoever still holds the member sees that it has left.
            member.move(SlotMove.LOST)
        member.mode = SlotMode.NEW
        member.last_error = reason
        self.members.remove(member)
        self.refresh()
        self.control.lose(member)
        self.reads.lose(member)
        self._drop_stream(member, was_complete=was_complete)
        self.touch()

    def stop_all(self, reason: str) -> None:
        """Lets every member go; what is owed by them is not waited for."""
        for member in self.members:
            self.stop(member, SlotMode.NEW, reason)
            for record in self.log.skip(member):
                record.judged = True
                self.complete(record.waiters, BlockStatus.ABORTED)
                record.waiters = []
        self.log.trim(self.last_job)

    def add_member(self, slot: int, address: str, mode: SlotMode) -> Member:
        """A new member for a slot whose old one is leaving or gone."""
        used = {m.index for m in self.members}
        index = next(i for i in range(limits.MEMBER_COUNT_MAX) if i not in used)
        # A freed place may still be marked in old records; its new holder owes none of them.
        member = Member(index, slot, address, mode)
        self.log.vacate(member.bit)
        self.members.append(member)
        self.touch()
        return member

    def move(self, move: UpstairsMove) -> None:
        """Takes one step of the upstairs' table."""
        self.state = UPSTAIRS.after(self.state, move)
        self.touch()


def _frame_of(
    first: int,
    ops: Sequence[tuple[int, int, int]],
    contexts: ContextArray | None,
    payload: Bytes,
) -> Sequence[Bytes]:
    """The request of `mutate`, whose first job is `first`."""
    if native.compiled:
        found = b"" if contexts is None else contexts
        head = native.request_head(first, list(ops), found, len(payload))
        return (head, payload) if payload else (head,)
    table = [
        pack_op(first + index, kind, offset=offset, length=length)
        for index, (kind, offset, length) in enumerate(ops)
    ]
    if not payload:
        return encode(FrameKind.REQUEST, table, sequence=first)
    return encode(FrameKind.REQUEST, table, sequence=first, contexts=contexts, payload=[payload])
