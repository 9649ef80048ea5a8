"""A running downstairs in simulated time: its region's host, the lane, and the conversations.

The real core decides everything (`Session`, `SessionTable`, `promoted`, the region engine); these
classes carry it out as `region_host.py`, `lane.py` and `conversation.py` do, keeping their rules:
one work at a time on the lane, its outcome given to the engine before anybody is told, a frame at a
time while the session is ready, older sessions told and gone before the new one can send.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from downstaird.core.engine import FlushWork
from downstaird.core.promotion import Proposal, check_compatible, check_key, promoted
from downstaird.core.region import Region
from downstaird.core.session import Session
from downstaird.core.session_effects import PUT_OFF, CopyExtent, Effect, LimitRepair, RunWork
from downstaird.core.session_table import Grant, SessionTable
from downstaird.lane import PATIENCE_FLUSHES
from downstaird.region_host import CHECK_SECONDS
from stairlib.model.errors import DataError, RefusedError, StairwellError
from stairlib.sim.network import End
from stairlib.wire.frame import (
    DATA_VERSION,
    Frame,
    FrameKind,
    decode,
    done_behind,
    encode,
    pack_op,
)
from tests.sim.copier import Copier
from tests.sim.shown import shown

if TYPE_CHECKING:
    from tests.sim.daemon import Daemon

# A sync takes this long; begun late where the disk is busy.
SYNC_SECONDS = (0.0002, 0.004)


class Lane:
    """The one worker: what it runs is on the disk some time after it began and told some time after
    that."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._passed = 0
        self.current: object | None = None
        # What a kill may interrupt: begun, and not yet on the disk.
        self.unwritten: object | None = None

    @property
    def free(self) -> bool:
        """Whether work may begin now."""
        return self.current is None

    def run(self, work: FlushWork, done) -> None:
        """Runs what `begin_flush` or `repair_begin` gave."""
        assert self.current is None, "engine work begun while the lane was taken"

        def finished(error: StairwellError | None) -> None:
            self._host.engine.finish_flush(work, error)
            done(error)

        self._start(work, finished)

    def checkpoint_if_wanted(self) -> None:
        """The next step of a checkpoint, when the engine wants one and nobody needs the lane."""
        host = self._host
        if self.current is not None or host.over or host.reserved():
            return
        if not host.engine.wants_checkpoint():
            return
        self._passed = 0
        try:
            work = host.engine.begin_checkpoint()
        except StairwellError as error:
            host.daemon.note(f"checkpoint did not begin: {error.message}")
            return
        self._start(work, lambda error: host.engine.finish_checkpoint(work, error))
        host.changed(free=False)

    def _start(self, work, finished) -> None:
        self.current = self.unwritten = work
        self._host.later(SYNC_SECONDS, self._write, work, finished)

    def _write(self, work, finished) -> None:
        self.unwritten = None
        error: StairwellError | None = None
        try:
            work.run()
        except StairwellError as problem:
            error = problem
            self._host.daemon.note(f"{type(work).__name__} failed: {problem.message}")
        self._host.later(SYNC_SECONDS, self._finish, error, finished)

    def _finish(self, error: StairwellError | None, finished) -> None:
        self.current = None
        finished(error)
        if self._host.wanted() and self._passed < PATIENCE_FLUSHES:
            self._passed += 1
        else:
            self.checkpoint_if_wanted()
        if self.current is None:
            self._host.changed(free=True)
            self.checkpoint_if_wanted()


class Host:
    """The region in service. `later` runs nothing once the process is gone."""

    def __init__(self, daemon: Daemon, engine: Region) -> None:
        self.daemon = daemon
        self.engine = engine
        self.over = False
        self.conversations: dict[Conversation, None] = {}
        self.table = SessionTable()
        self.lane = Lane(self)
        self.later((CHECK_SECONDS, CHECK_SECONDS), self._check)

    def later(self, seconds: tuple[float, float], call, *arguments) -> None:
        """After a time between the two, if the process still lives."""
        world = self.daemon.world
        world.schedule.later(world.chance.uniform(*seconds), self._if_alive, call, *arguments)

    def _if_alive(self, call, *arguments) -> None:
        if not self.over:
            call(*arguments)

    def _check(self) -> None:
        self.later((CHECK_SECONDS, CHECK_SECONDS), self._check)
        self.table.expire(self.daemon.world.schedule.now)
        self.lane.checkpoint_if_wanted()

    @property
    def blank(self) -> bool:
        """Whether nothing was ever written to the region."""
        states = self.engine.extent_states()
        return not (states.generations.any() or states.flushes.any() or states.flags.any())

    def open_session(self, proposal: Proposal) -> Grant:
        """Promotes and grants; older sessions are ended."""
        check_compatible(
            proposal,
            self.engine.definition,
            read_only=self.daemon.read_only,
            versions=(DATA_VERSION,),
        )
        now = self.daemon.world.schedule.now
        self.table.expire(now)
        current = self.engine.ownership
        if self.daemon.read_only:
            check_key(proposal, current)
        else:
            wanted = promoted(proposal, current, blank=self.blank)
            if wanted != current:
                self.engine.promote(wanted)
        grant, ended = self.table.grant(proposal, self.daemon.world.token(), now)
        for old in ended:
            for conversation in list(self.conversations):
                if conversation.serial == old.serial:
                    conversation.end(f"NO_LONGER_ACTIVE taken over by {grant.describe}")
        return grant

    def wanted(self) -> bool:
        """Whether an op waits that may need the lane."""
        return any(session.wants_lane for session in self._sessions())

    def reserved(self) -> bool:
        """Whether a session is about to take the lane."""
        return any(session.reserves_lane for session in self._sessions())

    def changed(self, *, free: bool) -> None:
        """Tells the sessions of the lane's state; the first to take it leaves none."""
        for conversation in list(self.conversations):
            conversation.lane_changed(free=free and self.lane.free)

    def _sessions(self) -> list[Session]:
        found = [conversation.session for conversation in self.conversations]
        return [session for session in found if session is not None and not session.ended]


class Conversation:
    """One data connection's talk with a session."""

    def __init__(self, host: Host, end: End) -> None:
        self._host = host
        self._end = end
        self._inbox: deque[Frame] = deque()
        self._copier: Copier | None = None
        self._advancing = False
        self._grant: Grant | None = None
        self.session: Session | None = None
        self.over = False
        host.conversations[self] = None
        end.received = self._received
        end.closed = self._closed

    @property
    def serial(self) -> int | None:
        """Of the session's grant."""
        return self._grant.serial if self._grant is not None else None

    def _received(self, frame: Frame) -> None:
        if frame.kind is FrameKind.REQUEST:
            world = self._host.daemon.world
            if world.trace.detailed:
                self._host.daemon.note(shown(frame))
            world.sealing.arrived(frame)
        self._inbox.append(frame)
        self._feed()

    def _feed(self) -> None:
        while self._inbox and not self.over and (self.session is None or self.session.ready):
            frame = self._inbox.popleft()
            if self.session is None:
                self._hello(frame)
            elif (served := self.session.at_once(frame)) is not None:
                self._end.send(decode(served[0]))
            elif (flush := self.session.flush_at_once(frame)) is not None:
                if flush is not PUT_OFF:
                    self._carry_out(flush)
            else:
                self.session.take(frame)
                self.advance()

    def _hello(self, frame: Frame) -> None:
        try:
            self._grant = self._host.table.connect(
                frame.blob(0), self._host.daemon.world.schedule.now
            )
        except RefusedError as error:
            self.end(f"{error.reason} {error.message}")
            return
        host = self._host
        self.session = Session(
            host.engine, read_only=host.daemon.read_only, lane_free=host.lane.free
        )
        self._copier = Copier(self._host, self.session, self.advance)
        self._end.send(decode(encode(FrameKind.WELCOME)[0]))

    def advance(self) -> None:
        """Goes on with what can go on."""
        session = self.session
        if session is None or self._advancing or self.over:
            return
        self._advancing = True
        try:
            while not self.over:
                turn = session.run()
                if turn.reply is not None:
                    self._end.send(decode(b"".join(turn.reply)))
                for effect in turn.effects:
                    self._carry_out(effect)
                if not turn.more:
                    break
        finally:
            self._advancing = False
        if self._inbox and session.ready:
            self._host.later((0, 0), self._feed)

    def stall(self) -> None:
        """Its copies stand still for good, as by a mistake in the copier."""
        if self._copier is not None:
            self._copier.stalled = True

    def _carry_out(self, effect: Effect) -> None:
        assert self._copier is not None
        if isinstance(effect, RunWork):
            self._host.lane.run(effect.work, lambda error: self._work_done(effect, error))
        elif isinstance(effect, CopyExtent):
            self._copier.start(effect)
        elif isinstance(effect, LimitRepair):
            self._copier.set_rate(effect.bytes_per_second)

    def _work_done(self, effect: RunWork, error: StairwellError | None) -> None:
        session = self.session
        if session is None or session.ended:
            return
        if error is None and not self._advancing and session.done_at_once(effect):
            (reply,) = done_behind([], effect.jobs, effect.kind)
            self._end.send(decode(reply))
            return
        session.work_done(effect, error, lane_free=False)
        self.advance()

    def lane_changed(self, *, free: bool) -> None:
        """The lane was taken by something else, or is free."""
        if self.session is not None and not self.session.ended:
            self.session.lane_changed(free=free)
            self.advance()

    def end(self, reason: str) -> None:
        """Tells the peer why and closes."""
        if self.over:
            return
        blob = reason.encode()
        notice = pack_op(0, 0, blob_bytes=len(blob))
        self._end.send(decode(encode(FrameKind.NOTICE, [notice], blobs=[blob])[0]))
        self._closed(reason)
        self._end.close(reason)

    def _closed(self, _reason: str) -> None:
        """The connection is gone: so is the session."""
        if self.over:
            return
        self.over = True
        self._inbox.clear()
        if self._copier is not None:
            self._copier.close()
        if self.session is not None:
            self.session.end()
        self._host.conversations.pop(self, None)
        if self.serial is not None:
            self._host.table.remove(self.serial)


def unexpected(error: Exception) -> DataError:
    """What a failure nobody foresaw is answered with, as the daemon does."""
    return DataError(f"the engine failed: {error}", reason="IO_ERROR")
