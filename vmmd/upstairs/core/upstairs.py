"""The upstairs of one region set: `apply(event, now)` does one step and returns what is to be done.

One task owns an `Upstairs` and is the only caller. A step is synchronous and complete: it takes the
event, lets every part look at the new situation until nothing changes, and returns the effects in
the order in which they have to be carried out. Frames come before the completions that they allow,
so that the guest's next requests find them sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stairlib.model.errors import (
    ConflictError,
    DataError,
    InvalidRequestError,
    StairwellError,
    StateError,
)
from stairlib.model.extents import ExtentStates
from vmmd.block.backend import BlockStatus
from vmmd.upstairs.core import events, limits
from vmmd.upstairs.core.activation import Activation
from vmmd.upstairs.core.copies import ExtentCopies
from vmmd.upstairs.core.extent_map import extent_map
from vmmd.upstairs.core.fill_again import fill_again
from vmmd.upstairs.core.guest_ops import GuestOps
from vmmd.upstairs.core.live_repair import LiveRepair
from vmmd.upstairs.core.read_only import ReadOnlyMembers
from vmmd.upstairs.core.reads import ReadBook
from vmmd.upstairs.core.refusals import Outcome, coded, described, refusal
from vmmd.upstairs.core.region_set import RegionSet, UpstairsConfig
from vmmd.upstairs.core.repair_states import RepairPhase
from vmmd.upstairs.core.replace import decide, refuse_taken_back, take_back
from vmmd.upstairs.core.replay import Mutation
from vmmd.upstairs.core.replies import ReplyRouter, taken_over
from vmmd.upstairs.core.returning import told, what_is_missing
from vmmd.upstairs.core.session_check import session_problem
from vmmd.upstairs.core.short_way import ShortWay
from vmmd.upstairs.core.slot import Member
from vmmd.upstairs.core.slot_states import SlotMode, SlotMove, SlotState
from vmmd.upstairs.core.snapshots import SnapshotFlush
from vmmd.upstairs.core.status import RegionStatus, SlotLoad, snapshot
from vmmd.upstairs.core.upstairs_states import UpstairsMove, UpstairsState
from vmmd.upstairs.core.verify import Verification

_VERIFICATIONS_MAX = 16  # each holds a digest per extent and member
_SETTLE_ROUNDS_MAX = 100  # a step that has not settled by then is a bug


class Upstairs:
    """See the module. A read-only set serves with any one of its members, and changes none."""

    def __init__(self, config: UpstairsConfig) -> None:
        self._region = RegionSet(config)
        self._reads = ReadBook(self._region)
        self._guest = GuestOps(self._region, self._reads)
        self._replies = ReplyRouter(self._region, self._reads)
        self.short_way = ShortWay(self._region, self._reads, self._guest)
        self._activation = Activation(self._region)
        self._read_only = ReadOnlyMembers(self._region) if config.read_only else None
        self._repair: LiveRepair | None = None
        self._verifications: list[Verification] = []
        self._snapshots: list[SnapshotFlush] = []
        self._activate_keys: list[object] = []
        self._deactivate_keys: list[object] = []
        self._final_flush: Mutation | None = None
        self._deactivate_by = 0.0
        self._leave_after: int | None = None
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            events.GuestBatch: self._on_guest,
            events.SlotReply: self._on_reply,
            events.Connected: self._on_connected,
            events.Disconnected: self._on_disconnected,
            events.Notice: self._on_notice,
            events.Tick: self._on_tick,
            events.SendHeld: lambda _event: self._guest.on_time(),
            events.SendBehind: lambda _event: self._region.behind_on_time(),
            events.Activate: self._on_activate,
            events.Deactivate: self._on_deactivate,
            events.Replace: self._on_replace,
            events.TakeBack: self._on_take_back,
            events.HoldRepair: self._on_hold,
            events.RepairMember: self._on_repair_member,
            events.SetRepairLimit: self._on_limit,
            events.Verify: self._on_verify,
            events.Snapshot: self._on_snapshot,
            events.RepairTrace: self._on_trace,
        }

    # ---- the loop

    def apply(self, event: events.Event, now: float) -> list[events.Effect]:
        """One step. `now` in seconds of any clock that never goes back."""
        region = self._region
        assert not region.effects
        assert now >= region.now
        region.now = now
        self.short_way.close(event)
        self._handlers[type(event)](event)
        self._settle()
        effects, region.effects = region.effects, []
        return effects

    def break_off(self, event: events.Event, error: Exception) -> list[events.Effect]:
        """After a step that raised, which is a mistake in this program: the volume is disabled with
        the reason, and everybody who waits is answered. What the step had begun to send is not
        sent, since its members are let go."""
        region = self._region
        self.short_way.open = False
        region.behind.drop()
        kept = (events.CompleteGuest, events.Answer, events.Disconnect, events.RepairEnded)
        region.effects = [effect for effect in region.effects if isinstance(effect, kept)]
        failure = StairwellError(
            f"a mistake in the upstairs ended the volume ({error!r}); what was flushed is safe: "
            "activate it with a higher generation, as a restart of its instance does, and report "
            "this with the log",
            reason="INTERNAL",
        )
        self._fail(failure)
        key = getattr(event, "key", None)
        answered = {e.key for e in region.effects if isinstance(e, events.Answer)}
        if key is not None and key not in answered:
            region.effects.append(events.Answer(key, error=failure))
        if isinstance(event, events.GuestBatch):
            rest = events.unanswered(event, region.effects)
            region.complete(rest, BlockStatus.ABORTED)
        region.changed = False
        effects, region.effects = region.effects, []
        return effects

    def _settle(self) -> None:
        region = self._region
        for _round in range(_SETTLE_ROUNDS_MAX):
            before = len(region.effects)
            if region.changed:
                region.changed = False
                for record in region.log.pending_flushes():
                    region.judge_flush(record)
                region.trim()
                self._reads.pump()
            self._advance()
            if region.changed or len(region.effects) != before:
                continue
            if region.state is UpstairsState.ACTIVE:
                self._guest.pump()
                if region.flushes.forced():
                    region.send_flush()
            if not region.changed:
                waits = self._guest.waiting or self._reads.parked_jobs()
                busy = self._repair or self._verifications or self._snapshots or waits
                self.short_way.look(busy=bool(busy) or self._leave_after is not None)
                return
        raise AssertionError("the upstairs did not come to rest")

    def _advance(self) -> None:
        region = self._region
        state = region.state
        if self._read_only is not None:
            if region.joining and state in (UpstairsState.GO_ACTIVE, UpstairsState.ACTIVE):
                self._advance_read_only(self._read_only)
        elif state is UpstairsState.GO_ACTIVE or (
            state is UpstairsState.ACTIVE and not region.active
        ):
            self._advance_activation()
        if state is UpstairsState.ACTIVE:
            if self._repair is not None or region.repair_wanted:
                self._advance_repair()
            if region.departing is not None or self._leave_after is not None:
                self._advance_departing()
        if state is UpstairsState.DEACTIVATING:
            self._advance_deactivation()
        if self._verifications:
            for verification in self._verifications:
                verification.advance()
            self._verifications = [v for v in self._verifications if not v.over]
        if self._snapshots:
            for one in self._snapshots:
                one.advance()
            self._snapshots = [s for s in self._snapshots if not s.over]

    # ---- looking

    def status(self) -> RegionStatus:
        """The status as of the last step."""
        return snapshot(
            self._region,
            self._copies(),
            now=self._region.now,
            waiting=self._guest.waiting,
            reason=self._region.reason or self._activation.waiting,
        )

    def extents(self) -> list[ExtentStates]:
        """What is known of the extents of each slot's member, as of the last step."""
        run = self._activation.running
        return extent_map(self._region, self._copies(), run.plan if run is not None else None)

    def loads(self) -> list[SlotLoad]:
        """Of each slot's member, as of the last step."""
        return [SlotLoad(each.slot, each.jobs, each.bytes) for each in self._region.slots]

    def _copies(self) -> dict[int, ExtentCopies]:
        copies = dict(self._activation.copies)
        repair = self._repair
        if repair is not None and repair.copies is not None:
            copies[repair.target.index] = repair.copies
        return copies

    @property
    def state(self) -> UpstairsState:
        """The upstairs' state."""
        return self._region.state

    @property
    def filling(self) -> tuple[int, int]:
        """How many members are being filled, and how many bytes they have received since their
        fillings began."""
        running = self._copies().values()
        moving = sum(not copies.held for copies in running)
        return moving, sum(copies.bytes_moved for copies in running)

    @property
    def repairing(self) -> bool:
        """A live repair or a reconciliation is running: progress is worth telling."""
        return self._repair is not None or self._activation.running is not None

    @property
    def quiet(self) -> bool:
        """No guest request is waiting or in flight, and no member owes an answer."""
        return (
            not self._guest.waiting
            and not self._guest.holding
            and self._reads.idle
            and all(m.jobs == 0 for m in self._region.members)
        )

    # ---- guest

    def _on_guest(self, event: events.GuestBatch) -> None:
        self._guest.submit(event.submissions)

    def _on_reply(self, event: events.SlotReply) -> None:
        error = self._replies.take(event.link, event.frame)
        if error is not None:
            self._fail(error)

    # ---- members

    def _on_connected(self, event: events.Connected) -> None:
        region = self._region
        member = region.member_of(event.link)
        if member is None or member.state is not SlotState.NEGOTIATING:
            return
        session = event.session
        code, problem = session_problem(region, member, session)
        if code:
            region.stop(member, member.mode, problem)
            self._refused(member, code, problem)
            return
        if session.region_id != member.region_id:
            member.owned_before = session.owned_before
            member.region_id = session.region_id
        member.cipher, member.owner_id = session.cipher, session.owner_id
        region.encrypt_as(session.cipher, session.owner_id)
        before, member.stamps, member.stamps_asked = told(member), session.stamps, None
        member.connected_at = region.now
        if region.state is UpstairsState.GO_ACTIVE or self._read_only is not None:
            member.move(SlotMove.JOIN)
            region.touch()
        elif member.mode is SlotMode.OFFLINE:
            missing = what_is_missing(before, session.stamps, member.stamped_flush)
            if missing:
                region.fault(member, missing)
            else:
                region.replay(member)
        else:
            member.move(SlotMove.READY)
            region.touch()

    def _on_disconnected(self, event: events.Disconnected) -> None:
        region = self._region
        member = region.member_of(event.link)
        if member is None:
            return
        negotiating = member.state is SlotState.NEGOTIATING
        member.last_error = event.reason
        region.lost(member, event.reason)
        if negotiating and event.code:
            self._refused(member, event.code, described(event.code, event.reason))

    def _refused(self, member: Member, code: str, reason: str) -> None:
        """Carries out what the table of refusals says. The member is on its way out already."""
        region = self._region
        member.last_error = reason
        outcome = refusal(code).outcome(
            region.state, held=member.held, read_only=self._read_only is not None
        )
        if outcome in (Outcome.FAULT, Outcome.DISABLE_IF_ALONE) and (
            region.state is UpstairsState.ACTIVE
        ):
            region.fault(member, reason)
        elif outcome is Outcome.DISABLE_IF_JOINED and member.joined:
            self._fail(taken_over(member, reason))
        elif outcome is Outcome.DISABLE or (
            outcome is Outcome.DISABLE_IF_ALONE and not self._others_may_serve()
        ):
            generation = str(region.generation)
            self._fail(StateError(reason, reason=code, requested=generation, target=member.address))

    def _others_may_serve(self) -> bool:
        """In a read-only set one strange member does not count while others may serve."""
        return self._read_only is not None and self._read_only.others_may_serve()

    def _on_notice(self, event: events.Notice) -> None:
        member = self._region.member_of(event.link)
        if member is None:
            return
        member.last_error = event.text
        if (
            "NO_LONGER_ACTIVE" in event.text
            and self._region.state is not UpstairsState.INITIALIZING
        ):
            self._fail(taken_over(member, event.text))

    def _on_tick(self, _event: events.Tick) -> None:
        region = self._region
        if region.state is UpstairsState.ACTIVE:
            for member in region.members:
                away = region.now - member.offline_since
                if member.held and away >= limits.OFFLINE_SECONDS_MAX:
                    region.fault(member, f"away for {away:.0f} s: {member.last_error}")
            if region.flushes.due(region.now) and region.links:
                region.send_flush()
        if self.repairing:
            for copies in self._copies().values():
                copies.look()
        self._connect_due()

    def _connect_due(self) -> None:
        region = self._region
        if region.state not in (UpstairsState.ACTIVE, UpstairsState.GO_ACTIVE):
            return
        for member in region.members:
            if member.state is SlotState.WAIT_CONNECT and region.now >= member.retry_at:
                region.connect(member)

    def _advance_departing(self) -> None:
        """Lets the replaced member go once the new one holds everything durably."""
        region = self._region
        departing = region.departing
        if departing is None:
            self._leave_after = None
            return
        successor = next(m for m in region.slots if m.slot == departing.slot)
        if successor.active and self._read_only is not None:
            region.drop_member(departing, f"replaced by {successor.address}")
        elif successor.active:
            if self._leave_after is None:
                self._leave_after = region.send_flush().last_job
            if successor.synced_job >= self._leave_after:
                region.drop_member(departing, f"replaced by {successor.address}")
        else:
            self._leave_after = None
            if not departing.complete and region.active:
                region.drop_member(departing, f"faulted while leaving: {departing.last_error}")

    def _advance_repair(self) -> None:
        region = self._region
        if self._repair is not None:
            self._repair.give_way()
            self._repair.advance()
            if self._repair.phase is not RepairPhase.OVER:
                return
            self._repair = None
            region.touch()
        if not region.active:
            return
        ready = [m for m in region.slots if m.state is SlotState.LIVE_REPAIR_READY]
        # One that is held fills nobody: it comes last.
        for member in sorted(ready, key=lambda m: m.slot in region.held):
            held = member.slot in region.held
            self._repair = LiveRepair(region, member, held=held)
            self._repair.advance()
            return

    # ---- activation, deactivation

    def _on_activate(self, event: events.Activate) -> None:
        region = self._region
        generation = region.generation if event.generation is None else event.generation
        answer = region.effects.append
        # A read-only set takes nothing over from anybody: any generation will do.
        ordered = self._read_only is None
        if generation < 1 and ordered:
            error: StairwellError = InvalidRequestError(
                "generation 0 is not legal: the first activation of a set takes 1",
                reason="GENERATION_ZERO",
            )
            answer(events.Answer(event.key, error=error))
        elif region.state in (UpstairsState.ACTIVE, UpstairsState.GO_ACTIVE):
            if generation != region.generation and ordered:
                error = StateError(
                    f"active with generation {region.generation}: deactivate to activate "
                    "with another",
                    reason="GENERATION_INVALID",
                )
                answer(events.Answer(event.key, error=error))
            elif region.state is UpstairsState.ACTIVE:
                answer(events.Answer(event.key))
            else:
                self._activate_keys.append(event.key)
        elif region.state is UpstairsState.DEACTIVATING:
            error = ConflictError("deactivating: activate again when that has ended")
            answer(events.Answer(event.key, error=error))
        else:
            region.generation = generation
            region.reason = ""
            region.move(UpstairsMove.ACTIVATE)
            self._activate_keys.append(event.key)
            if self._read_only is not None:
                self._read_only.begin()
            for member in region.members:
                member.retry_at = region.now
                member.retry_delay = limits.RECONNECT_SECONDS_MIN
            self._connect_due()

    def _advance_activation(self) -> None:
        served = self._activation.advance()
        if self._activation.failure is not None:
            self._fail(self._activation.failure)
        elif served:
            self._activated()

    def _advance_read_only(self, members: ReadOnlyMembers) -> None:
        if members.advance():
            self._activated()

    def _activated(self) -> None:
        if self._region.state is UpstairsState.GO_ACTIVE:
            self._region.move(UpstairsMove.QUORUM)
            self._answer_all(self._activate_keys)

    def _on_deactivate(self, event: events.Deactivate) -> None:
        region = self._region
        if region.state in (UpstairsState.INITIALIZING, UpstairsState.DISABLED):
            # Asked again, or after a failure: there is nothing left to do.
            region.effects.append(events.Answer(event.key))
            return
        self._deactivate_keys.append(event.key)
        if region.state is UpstairsState.DEACTIVATING:
            return
        was_active = region.state is UpstairsState.ACTIVE
        region.move(UpstairsMove.DEACTIVATE)
        self._deactivate_by = region.now + limits.DEACTIVATE_SECONDS_MAX
        self._stop_work("the volume is being deactivated")
        self._final_flush = None
        if not was_active:
            self._let_go("deactivated")
            return
        for member in [m for m in region.members if m.held]:
            region.fault(member, "away at deactivation")
        # A flush that two members have answered is waited for all the same: the third one is to be
        # let go with it.
        last = region.flushes.last
        self._final_flush = region.send_flush() if region.flushes.unproven else last
        self._guest.abort()

    def _advance_deactivation(self) -> None:
        region = self._region
        flush = self._final_flush
        late = region.now >= self._deactivate_by
        if any(m.streams for m in region.members):
            owed = flush is not None and (not flush.judged or flush.pending)
            if (owed or not self._reads.idle) and not late:
                return
            if flush is not None and not flush.judged:
                flush.judged = True
            self._let_go("deactivated")
        if any(m.state is not SlotState.WAIT_CONNECT for m in region.members) and not late:
            return
        failed = flush is not None and not flush.succeeded
        self._final_flush = None
        region.flushes.forget()
        region.reason = ""
        region.move(UpstairsMove.STOPPED)
        error = DataError(
            "the last flush did not reach two members: what was written since the flush before "
            "may be lost",
            reason="FLUSH_FAILED",
        )
        self._answer_all(self._deactivate_keys, error if failed else None)

    def _fail(self, error: StairwellError) -> None:
        """A lasting error: nothing is served until activated again."""
        region = self._region
        if region.state in (UpstairsState.INITIALIZING, UpstairsState.DISABLED):
            return
        region.reason = coded(error.reason, error.message)
        region.move(UpstairsMove.FAIL)
        self._answer_all(self._activate_keys, error)
        self._stop_work(error.message)
        self._let_go(error.message)
        self._guest.abort()
        region.flushes.forget()
        self._answer_all(self._deactivate_keys, error)

    def _stop_work(self, reason: str) -> None:
        if self._repair is not None:
            self._repair.cancel(reason)
            self._repair = None
        self._activation.cancel()
        for verification in self._verifications:
            verification.abort()
        self._verifications = []
        for one in self._snapshots:
            one.abort(reason)
        self._snapshots = []
        self._answer_all(self._activate_keys, StateError(reason, reason="ACTIVATION_ENDED"))

    def _let_go(self, reason: str) -> None:
        region = self._region
        departing = region.departing
        if departing is not None:
            region.drop_member(departing, reason)
        self._reads.abort()
        region.stop_all(reason)

    def _answer_all(self, keys: list[object], error: StairwellError | None = None) -> None:
        for key in keys:
            self._region.effects.append(events.Answer(key, error=error))
        keys.clear()

    # ---- operations

    def _on_replace(self, event: events.Replace) -> None:
        run = self._activation.running
        plan = run.plan if run is not None else None
        interrupted = self._activation.interrupted

        def replaced() -> events.Replacement:
            refuse_taken_back(self._region, event.replacement_id)
            return decide(self._region, event.old, event.new, plan, interrupted)

        self._answered(event.key, replaced)
        self._connect_due()

    def _on_take_back(self, event: events.TakeBack) -> None:
        old, new, name = event.old, event.new, event.replacement_id
        self._answered(event.key, lambda: take_back(self._region, old, new, name))

    def _on_hold(self, event: events.HoldRepair) -> None:
        self._region.hold(event.slot, held=event.held)
        if self._repair is not None and self._repair.target.slot == event.slot:
            self._repair.hold(event.held)

    def _on_repair_member(self, event: events.RepairMember) -> None:
        slot, reason, whole = event.slot, event.reason, event.whole
        self._answered(event.key, lambda: fill_again(self._region, slot, reason, whole=whole))

    def _answered(self, key: object, act: Callable[[], object]) -> None:
        """Answers with what it gives, or with its refusal."""
        try:
            answer = events.Answer(key, act())
        except StairwellError as error:
            answer = events.Answer(key, error=error)
        self._region.effects.append(answer)

    def _on_limit(self, event: events.SetRepairLimit) -> None:
        self._region.repair_limits = event.limits
        running = self._copies().values()
        moving = sum(not copies.held for copies in running)
        for copies in running:
            copies.limit(event.limits.share(moving))

    def _on_verify(self, event: events.Verify) -> None:
        if len(self._verifications) >= _VERIFICATIONS_MAX:
            error = ConflictError("enough comparisons are running: wait for one of them to end")
            self._region.effects.append(events.Answer(event.key, error=error))
            return
        verification = Verification(self._region, event.key)
        if not verification.over:
            self._verifications.append(verification)

    def _on_snapshot(self, event: events.Snapshot) -> None:
        one = SnapshotFlush(self._region, event.key, event.name)
        if not one.over:
            self._snapshots.append(one)

    def _on_trace(self, event: events.RepairTrace) -> None:
        if self._repair is not None and self._repair.target.slot == event.slot:
            self._repair.set_trace(event.traceparent)
