"""One data connection's talk with a session, whatever carries its frames.

HELLO with a token makes the session; requests are worked off in turns, each of which sends at most
one reply; outcomes of flushes and copies come back here and go on with it. The carrier gives whole
frames, one at a time while `ready`, and is told to `proceed` when another may come. Invariants: the
session ends with its connection and the other way round; a stalled peer costs a bounded buffer; bad
bytes end this connection only."""

from __future__ import annotations

import asyncio
from typing import Protocol

from downstaird.core.session import Session
from downstaird.core.session_effects import PUT_OFF, CopyExtent, Effect, LimitRepair, RunWork
from downstaird.core.session_table import Grant
from downstaird.extent_copier import ExtentCopier
from downstaird.region_host import RegionHost
from stairlib.model.errors import RefusedError, StairwellError
from stairlib.telemetry.logs import get_logger
from stairlib.wire.frame import (
    Bytes,
    Frame,
    FrameError,
    FrameKind,
    done_behind,
    encode,
    pack_op,
)

_log = get_logger(__name__)

# A peer pings every 5 seconds: four lost ones mean that it, or the way to it, is gone.
SILENCE_SECONDS = 20.0
# A connection that does not say who it is does not stay.
HELLO_SECONDS = 10.0
# HELLO carries a token of 32 bytes; nothing longer is read from a peer that has not shown one.
HELLO_FRAME_BYTES_MAX = 1024
# Replies to writes that wait for that of a flush: those of the frames before it, and before such as
# it does the work of; no more than that, since the peer admits requests by what was answered.
KEPT_FRAMES_MAX = 16


class Wire(Protocol):
    """What carries the frames. `last_activity` is when bytes last came or went, on the loop's
    clock."""

    last_activity: float

    @property
    def writable(self) -> bool:
        """Whether the peer drains what it is sent."""
        ...

    def send(self, buffers: list[Bytes]) -> None:
        """Sends a frame; buffers it if it must."""
        ...

    def proceed(self) -> None:
        """Another frame may be fed."""
        ...

    def finish(self) -> None:
        """Closes once what was sent has left, or soon."""
        ...


def hello_token(frame: Frame) -> bytes | None:
    """What a first frame shows; None when it is no HELLO."""
    if frame.kind is not FrameKind.HELLO:
        return None
    return frame.blob(0) if len(frame.ops) else bytes(frame.payload)


class Conversation:
    """Connects a wire with a session of the host."""

    def __init__(self, host: RegionHost, wire: Wire, peer: str) -> None:
        self._host = host
        self._wire = wire
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._grant: Grant | None = None
        self._lossy = False
        self._session: Session | None = None
        self._copier: ExtentCopier | None = None
        self._held: asyncio.TimerHandle | None = None
        self._advancing = False
        # Replies that nobody waits for, whole frames.
        self._kept: list[Bytes] = []
        # A flush of the session began after them, and is with the lane.
        self._with_flush = False
        self.over = False
        host.conversations.add(self)

    @property
    def ready(self) -> bool:
        """Whether a frame may be fed: the one before has been worked off."""
        if self.over or self._held is not None:
            return False
        return self._session is None or self._session.ready

    @property
    def greeted(self) -> bool:
        """Whether the peer has shown a token."""
        return self._session is not None

    @property
    def session(self) -> Session | None:
        """The session, from HELLO to the end."""
        return self._session

    @property
    def serial(self) -> int | None:
        """Of the session's grant."""
        return self._grant.serial if self._grant is not None else None

    def feed(self, frame: Frame) -> None:
        """One frame of the peer's, only while `ready`. FrameError when it has no place here."""
        if self._session is None:
            self._hello(frame)
        elif frame.kind is FrameKind.REQUEST:
            delay = self._host.delays.next(lossy=self._lossy)
            if delay:
                self._held = self._loop.call_later(delay, self._late, frame)
            else:
                served = self._session.at_once(frame) if self._wire.writable else None
                if served is not None:
                    self._answer([served[0]], patient=served[1])
                    return
                flush = self._session.flush_at_once(frame)
                if flush is not None:
                    # Replies to the writes before one that is put off wait for the same answer.
                    self._with_flush = True
                    if flush is not PUT_OFF:
                        self._carry_out(flush)
                    return
                self._session.take(frame)
                self._advance()
        elif frame.kind is FrameKind.PING:
            self._wire.send(encode(FrameKind.PONG, sequence=frame.sequence))
        elif frame.kind is not FrameKind.PONG:
            raise FrameError(f"a {frame.kind.name} frame has no place in a session")

    def _hello(self, frame: Frame) -> None:
        token = hello_token(frame)
        if token is None:
            raise FrameError(f"the first frame must be HELLO, not {frame.kind.name}")
        try:
            self._grant = self._host.connect(token)
        except RefusedError as error:
            self.end(f"{error.reason} {error.message}")
            return
        self._lossy = self._grant.lossy
        self._session = Session(
            self._host.engine,
            read_only=self._grant.read_only,
            lane_free=self._host.lane.free,
        )
        self._copier = ExtentCopier(self._host, self._session, self.advance)
        _log.info(
            "session connected",
            upstairs_id=str(self._grant.upstairs_id),
            session_id=str(self._grant.session_id),
            generation=self._grant.generation,
            lossy=self._lossy,
            peer=self._peer,
        )
        self._wire.send(encode(FrameKind.WELCOME, sequence=frame.sequence))

    def _late(self, frame: Frame) -> None:
        self._held = None
        if self._session is None or self.over:
            return
        try:
            self._session.take(frame)
        except FrameError as error:
            self.fail(error)
            return
        self.advance()
        self._wire.proceed()

    def _answer(self, reply: list[Bytes], *, patient: bool) -> None:
        """Sends a reply; one that nobody waits for is kept until `rest`, or for the next one."""
        if patient and len(self._kept) < KEPT_FRAMES_MAX:
            self._kept += reply
            self._with_flush = False
            return
        kept, self._kept = self._kept, []
        self._wire.send([*kept, *reply])

    def rest(self) -> None:
        """Nothing more was received for now. What is kept is sent, unless a flush right behind it
        is under way: one wake-up of the peer is enough for both."""
        if self._kept and not self._with_flush:
            kept, self._kept = self._kept, []
            self._wire.send(kept)

    def advance(self) -> None:
        """Goes on with what can go on while the peer drains."""
        self._advance()
        self.rest()

    def _advance(self) -> None:
        session = self._session
        if session is None or self._advancing:
            return
        stalled = not session.ready
        self._advancing = True
        try:
            while not self.over and self._wire.writable:
                turn = session.run()
                if turn.reply is not None:
                    self._answer(turn.reply, patient=turn.patient)
                for effect in turn.effects:
                    self._carry_out(effect)
                if not turn.more:
                    break
        finally:
            self._advancing = False
        if stalled and session.ready:
            self._wire.proceed()

    def _carry_out(self, effect: Effect) -> None:
        assert self._copier is not None
        if isinstance(effect, RunWork):
            self._with_flush = True
            self._host.lane.run(
                effect.work,
                lambda error: self._work_done(effect, error),
                lambda: self._told_at_once(effect),
            )
        elif isinstance(effect, CopyExtent):
            self._copier.start(effect)
        elif isinstance(effect, LimitRepair):
            self._copier.set_limits(effect.bytes_per_second, effect.copies)

    def _told_at_once(self, effect: RunWork) -> bool:
        """Answers a flush that went well, with the writes before it, where nothing else follows
        from it."""
        session = self._session
        if session is None or not self._wire.writable or self._advancing:
            return False
        if not session.done_at_once(effect):
            return False
        self._with_flush = False
        kept, self._kept = self._kept, []
        self._wire.send(done_behind(kept, effect.jobs, effect.kind))
        return True

    def _work_done(self, effect: RunWork, error: StairwellError | None) -> None:
        self._with_flush = False
        session = self._session
        if session is None or session.ended:
            return
        # Whether the lane is free for the next one is told by the host once it has decided.
        session.work_done(effect, error, lane_free=False)
        self.advance()

    def lane_changed(self, *, free: bool) -> None:
        """The lane was taken by something else, or is free."""
        if self._session is not None and not self._session.ended:
            self._session.lane_changed(free=free)
            if not self._session.idle:
                self.advance()

    def check(self, now: float) -> None:
        """Every few seconds: ends a silent peer, and shows life to one whose frames are not
        read."""
        if self.over:
            return
        if self._session is None:
            if now - self._began > HELLO_SECONDS:
                self.end("HELLO_TIMEOUT no token was shown in time")
        elif not self.ready and self._wire.writable:
            self._wire.send(encode(FrameKind.PONG))
        elif now - self._wire.last_activity > SILENCE_SECONDS:
            self.end(f"SILENCE nothing was heard for {SILENCE_SECONDS:.0f} seconds")

    def fail(self, error: FrameError) -> None:
        """The peer sent what is no frame, or has no place: this connection is over."""
        _log.warning("bad frame", peer=self._peer, error=str(error))
        self.end(f"BAD_FRAME {error}")

    def end(self, reason: str) -> None:
        """Tells the peer why and closes. The first word of `reason` is for programs."""
        if self.over:
            return
        blob = reason.encode()[:1000]
        notice = pack_op(0, 0, blob_bytes=len(blob))
        self._answer(encode(FrameKind.NOTICE, [notice], blobs=[blob]), patient=False)
        self.close(reason)
        self._wire.finish()

    def close(self, reason: str) -> None:
        """The connection has gone, or is about to: so is the session. Later calls do nothing."""
        if self.over:
            return
        self.over = True
        if self._held is not None:
            self._held.cancel()
            self._held = None
        if self._copier is not None:
            self._copier.close()
        if self._session is not None:
            self._session.end()
            counters = self._session.counters
            _log.info(
                "session ended",
                reason=reason,
                peer=self._peer,
                frames=counters.frames,
                flushes=counters.flushes,
                failed_ops=counters.failed,
                copied_bytes=counters.copied_bytes,
            )
        self._host.conversation_over(self)
