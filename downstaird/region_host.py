"""The region a daemon serves: its engine, its worker lane, and who may use it now.

Both transports and all services meet here. Invariants: a promotion is on disk before it is
answered; the sessions it ends are told and gone before the new one can send; only what the table
says is a session."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from downstaird.core.by_hand import next_flush
from downstaird.core.engine import Engine, FlushWork
from downstaird.core.promotion import Proposal, check_compatible, check_key, promoted
from downstaird.core.session_counters import Counters
from downstaird.core.session_table import Grant, SessionTable
from downstaird.faults import Delays
from downstaird.lane import Lane
from downstaird.repair_sending import RepairSending
from downstaird.repair_threads import RepairThreads
from stairlib.model.errors import StateError
from stairlib.rpc.tls import TlsFiles
from stairlib.telemetry.logs import get_logger
from stairlib.telemetry.tracing import Tracing
from stairlib.wire.frame import DATA_VERSION

if TYPE_CHECKING:
    from downstaird.conversation import Conversation
    from downstaird.core.session import Session

_log = get_logger(__name__)

TOKEN_BYTES = 32
# How often silent peers and unused tokens are looked for, and signs of life are sent.
CHECK_SECONDS = 5.0
# How long a deletion waits before it asks again whether its snapshot is written out.
SETTLE_SECONDS = 0.05


class RegionHost:
    """One region in service. All methods are called on the loop."""

    def __init__(
        self,
        engine: Engine,
        *,
        read_only: bool,
        tracing: Tracing,
        delays: Delays,
        tls: TlsFiles | None = None,
    ) -> None:
        self.engine = engine
        self.read_only = read_only
        self.tracing = tracing
        self.delays = delays
        self.tls = tls
        self.conversations: set[Conversation] = set()
        self._ended = Counters()
        self.lane = Lane(engine, self)
        self.repair_threads = RepairThreads(engine)
        # What is encrypted is written by its transport alone.
        self.repair_sending = RepairSending(offered=tls is None)
        self._table = SessionTable()
        self._kept: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(CHECK_SECONDS, self._check)

    def open_session(self, proposal: Proposal) -> tuple[Grant, int]:
        """Promotes and grants; older sessions are ended. Also returns the data version to speak."""
        version = check_compatible(
            proposal,
            self.engine.definition,
            read_only=self.read_only,
            versions=(DATA_VERSION,),
        )
        now = self._loop.time()
        self._table.expire(now)
        current = self.engine.ownership
        if self.read_only:
            check_key(proposal, current)
        else:
            wanted = promoted(proposal, current, blank=self.blank)
            if wanted != current:
                self.engine.promote(wanted)
        grant, ended = self._table.grant(proposal, secrets.token_bytes(TOKEN_BYTES), now)
        for old in ended:
            self._end_grant(old, f"NO_LONGER_ACTIVE taken over by {grant.describe}")
        _log.info(
            "session granted",
            upstairs_id=str(grant.upstairs_id),
            session_id=str(grant.session_id),
            generation=grant.generation,
            lossy=grant.lossy,
            ended=len(ended),
        )
        return grant, version

    @property
    def blank(self) -> bool:
        """Whether nothing was ever written to the region."""
        states = self.engine.extent_states()
        return not (states.generations.any() or states.flushes.any() or states.flags.any())

    def _end_grant(self, grant: Grant, reason: str) -> None:
        for conversation in list(self.conversations):
            if conversation.serial == grant.serial:
                conversation.end(reason)

    def connect(self, token: bytes) -> Grant:
        """The session a data connection shows the token of; RefusedError when there is none."""
        return self._table.connect(token, self._loop.time())

    def conversation_over(self, conversation: Conversation) -> None:
        """A data connection has gone, and its session with it."""
        if conversation in self.conversations and conversation.session is not None:
            self._ended += conversation.session.counters
        self.conversations.discard(conversation)
        if conversation.serial is not None:
            self._table.remove(conversation.serial)

    def writer(self) -> Grant | None:
        """The session that owns the region now."""
        self._table.expire(self._loop.time())
        return self._table.writer

    def require_no_writer(self) -> None:
        """StateError SESSION_ACTIVE while a session owns the region."""
        grant = self.writer()
        if grant is not None:
            raise StateError(
                f"the region is in use by {grant.describe}: stop that volume first",
                reason="SESSION_ACTIVE",
                upstairs_id=str(grant.upstairs_id),
                session_id=str(grant.session_id),
            )

    async def flush_by_hand(self, snapshot: str = "") -> int:
        """One flush outside any session; its number. Waits its turn for the lane."""
        while not self.lane.free:
            await self.lane.wait_free()
        self.require_no_writer()
        number = next_flush(self.engine)
        work = self.engine.begin_flush(number, self.engine.ownership.generation, snapshot)
        await self._carried_out(work)
        return number

    async def _carried_out(self, work: FlushWork) -> None:
        outcome = self.lane.begun(work)
        # A session that came meanwhile must know that the lane is taken.
        self.changed(free=False)
        await outcome

    async def delete_snapshot(self, name: str) -> None:
        """Deletes it durably, whoever uses the region; one that was just taken is waited for.
        StateError READ_ONLY, and as Engine.begin_delete_snapshot."""
        while True:
            while not self.lane.free or self.reserved():
                await self.lane.wait_free()
                await asyncio.sleep(0)
            try:
                work = self.engine.begin_delete_snapshot(name)
            except StateError as error:
                if error.reason != "SNAPSHOT_SETTLING":
                    raise
            else:
                await self._carried_out(work)
                return
            self.lane.checkpoint_if_wanted()
            if self.lane.free:
                # Something else goes first.
                await asyncio.sleep(SETTLE_SECONDS)

    def keep(self, task: asyncio.Task[None]) -> None:
        """Holds on to a task nobody waits for until it is done."""
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)

    def wanted(self) -> bool:
        """Whether an op waits that may need the lane (Demand)."""
        for conversation in self.conversations:
            session = conversation.session
            if session is not None and session.wants_lane and not session.ended:
                return True
        return False

    @property
    def session_count(self) -> int:
        """Sessions that are connected."""
        return len(self._sessions())

    def totals(self) -> Counters:
        """Of all sessions so far."""
        present = [conversation.session for conversation in self.conversations]
        return sum((one.counters for one in present if one is not None), self._ended)

    @property
    def guest_frames(self) -> int:
        """Frames so far, of the sessions that are there, that ask for blocks."""
        return sum(session.counters.guest_frames for session in self._sessions())

    def reserved(self) -> bool:
        """Whether a session is about to take the lane (Demand)."""
        return any(session.reserves_lane for session in self._sessions())

    def changed(self, *, free: bool) -> None:
        """Tells the sessions of the lane's state (Demand); the first to take it leaves none."""
        for conversation in list(self.conversations):
            conversation.lane_changed(free=free and self.lane.free)

    def _sessions(self) -> list[Session]:
        found = [conversation.session for conversation in self.conversations]
        return [session for session in found if session is not None and not session.ended]

    def _check(self) -> None:
        self._timer = self._loop.call_later(CHECK_SECONDS, self._check)
        now = self._loop.time()
        for grant in self._table.expire(now):
            _log.info("session expired unconnected", session_id=str(grant.session_id))
        for conversation in list(self.conversations):
            conversation.check(now)
        self.lane.checkpoint_if_wanted()

    def end_sessions(self, reason: str) -> None:
        """Tells every session that it is over."""
        for conversation in list(self.conversations):
            conversation.end(reason)

    async def close(self) -> None:
        """Waits for running work and closes the engine. Nothing is flushed: what its owner has not
        flushed is not promised to anybody."""
        self._timer.cancel()
        self.end_sessions("SHUTTING_DOWN the daemon is being stopped")
        if self._kept:
            await asyncio.wait(self._kept)
        await self.repair_sending.close()
        await self.repair_threads.close()
        await self.lane.close()
        self.engine.close()
