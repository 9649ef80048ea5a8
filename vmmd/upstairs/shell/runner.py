"""`RegionUpstairs`: the upstairs' core with a clock, sockets, futures and spans around it.

Everything runs on one loop. Guest submissions of one loop turn become one event; effects are
carried out in order as soon as a step returns. Events that come up while effects are carried out
are queued: steps never nest.
"""

from __future__ import annotations

import asyncio
import base64
import os
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from opentelemetry import trace

from stairlib.model.cipher import KEY_BYTES
from stairlib.model.construction import RegionOptions, RegionSpec
from stairlib.model.errors import InvalidRequestError, UnavailableError
from stairlib.model.extents import ExtentStates
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.rpc.tls import PeerTls, reach, region_tls
from stairlib.telemetry.logs import get_logger
from stairlib.telemetry.tracing import Tracing
from stairlib.wire.frame import Bytes, Frame
from stairwell.downstairs.v1 import region_service_pb2 as region_pb
from stairwell.downstairs.v1 import region_service_pb2_grpc as region_grpc
from vmmd.block.backend import BackendInfo, BlockOp, Done, Request
from vmmd.block.request_run import Run
from vmmd.upstairs.core import events, limits
from vmmd.upstairs.core.codec import Encryption
from vmmd.upstairs.core.events import Replacement, SessionInfo
from vmmd.upstairs.core.region_set import UpstairsConfig
from vmmd.upstairs.core.repair_limits import RepairLimits
from vmmd.upstairs.core.slot_states import SlotMode, SlotState
from vmmd.upstairs.core.status import RegionStatus, SlotLoad
from vmmd.upstairs.core.upstairs import Upstairs
from vmmd.upstairs.core.upstairs_states import UpstairsState
from vmmd.upstairs.shell.behind import behind_seconds
from vmmd.upstairs.shell.comparison import ExtentDifference, VerifyResult, compared
from vmmd.upstairs.shell.repair_spans import RepairSpans
from vmmd.upstairs.shell.slot_link import SessionWish, SlotLink

_log = get_logger(__name__)

TICK_SECONDS = 0.1
# Of one system call; a replay is many frames.
JOINED_BUFFERS_MAX = 64
# Between two messages to one watcher: ten a second is more than anybody reads.
WATCH_SECONDS = 0.1
# Reading back 100 GiB at 100 MiB/s, rounded up.
VERIFY_DATA_SECONDS = 1800.0
ReplaceOutcome = Replacement


@dataclass(frozen=True, slots=True)
class Peer:
    """A downstairs that an upstairs talks or talked to; `tls` None: in plain text."""

    address: str
    tls: PeerTls | None


def check_supported(spec: RegionSpec) -> None:
    """InvalidRequestError names what cannot be, StateError TLS_FILE a file that will not do."""
    options = spec.options
    if len(options.targets) != limits.SLOT_COUNT or len(set(options.targets)) != limits.SLOT_COUNT:
        raise InvalidRequestError("a region has exactly three different targets")
    problems = spec.geometry.problems()
    if problems:
        raise InvalidRequestError("; ".join(f"{field}: {text}" for field, text in problems))
    tls = region_tls(options)
    if tls is not None:
        tls.check()
    encryption_of(options)


def encryption_of(options: RegionOptions) -> Encryption | None:
    """The region's key, ready for use; None without one. InvalidRequestError, which does not show
    it."""
    if options.key is None:
        return None
    try:
        key = base64.b64decode(options.key.reveal(), validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise InvalidRequestError(f"key must be base64 of {KEY_BYTES} bytes", reason="KEY_INVALID")
    return Encryption(key, os.urandom)


class RegionUpstairs:
    """One region set as a block backend. `stream_only` forces the gRPC transport;
    `activate_with_two_after` as UpstairsConfig."""

    def __init__(
        self,
        spec: RegionSpec,
        *,
        tracing: Tracing,
        stream_only: bool = False,
        activate_with_two_after: float = 0.0,
    ) -> None:
        check_supported(spec)
        options = spec.options
        timeout = options.flush_timeout
        self.geometry = spec.geometry
        self._encryption = encryption_of(options)
        self._tls = region_tls(options)
        self._lossy = options.lossy
        if options.control is not None:
            # Compared with other requests, so that none passes for another; all it offers is
            # offered over gRPC.
            _log.info("control address not served", control=options.control)
        targets = options.targets
        self._core = Upstairs(
            UpstairsConfig(
                upstairs_id=str(options.id),
                session_id=str(uuid.uuid4()),
                generation=spec.generation,
                geometry=spec.geometry,
                targets=(targets[0], targets[1], targets[2]),
                flush_timeout_seconds=limits.FLUSH_TIMEOUT_SECONDS if timeout is None else timeout,
                encryption=self._encryption,
                read_only=options.read_only,
                activate_with_two_after=activate_with_two_after,
                behind_seconds=behind_seconds(),
            )
        )
        # Asking for the running one is a system call each time.
        self._loop = asyncio.get_running_loop()
        self._tracing = tracing
        self._stream_only = stream_only
        self._links: dict[int, SlotLink] = {}
        self._events: deque[events.Event] = deque()
        self._stepping = False
        self._submissions: list[tuple[object, Sequence[Request]]] = []
        self._ticking: asyncio.TimerHandle | None = None
        self._holding: asyncio.TimerHandle | None = None
        self._keeping: asyncio.TimerHandle | None = None
        self._watchers: set[asyncio.Event] = set()
        self.spans = RepairSpans(tracing)
        self._peers: dict[str, PeerTls | None] = dict.fromkeys(targets)
        self._closed = False
        self._info = BackendInfo(
            spec.geometry.block_size,
            spec.geometry.block_count,
            read_only=options.read_only,
            supports_discard=not options.read_only,
        )
        self._carriers = self._all_carriers()

    def _all_carriers(self) -> dict[type[Any], Callable[[Any], None]]:
        """What carries out each kind of effect."""
        return {
            events.SendFrame: self._send,
            events.CompleteGuest: self._complete,
            events.Connect: self._connect,
            events.Disconnect: self._disconnect,
            events.Answer: self._answer,
            events.SendHeldAfter: self._send_held_after,
            events.SendBehindAfter: self._send_behind_after,
            events.Changed: self._changed,
            events.RepairStarted: self._repair_started,
            events.RepairEnded: self._repair_ended,
            events.SlotLeft: self._slot_left,
            events.BlocksHealed: self._healed,
        }

    # ---- backend

    @property
    def info(self) -> BackendInfo:
        """Size and abilities."""
        return self._info

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        """As `Backend.submit`; the batch starts at the end of this loop turn, with all others of
        the turn, unless nothing was there before it and it is one for the short way, or a flush
        alone: who sends that waits for it."""
        if not self._submissions and not self._stepping:
            now, way = self._loop.time(), self._core.short_way
            if type(batch) is Run:
                if self._went(way.start, done, batch, now):
                    return
            elif len(batch) == 1 and batch[0].op is BlockOp.FLUSH:
                if not self._went(way.flush, done, batch[0].token, now):
                    self._feed(events.GuestBatch([(done, batch)]))
                return
        if not self._submissions:
            self._loop.call_soon(self._start_submissions)
        self._submissions.append((done, batch))

    def _start_submissions(self) -> None:
        submissions, self._submissions = self._submissions, []
        self._feed(events.GuestBatch(submissions))

    # ---- operations

    async def activate(
        self, generation: int | None = None, *, timeout_seconds: float | None = None
    ) -> None:
        """Returns when active. After `timeout_seconds` UnavailableError names what is missing; the
        upstairs goes on trying, so that a replacement can still rescue it."""
        self._start_ticking()
        with self._tracing.tracer.start_as_current_span(
            "upstairs.activate", attributes=self.spans.attributes
        ):
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._ask(lambda key: events.Activate(key, generation))
            except TimeoutError:
                raise UnavailableError(self._missing(), reason="ACTIVATION_PENDING") from None
        # What was being filled when the process before this one ended was filled by now.
        for slot in self.status().slots:
            if slot.state is SlotState.ACTIVE:
                self.spans.settled(slot.slot)

    def _missing(self) -> str:
        slots = [
            f"slot {slot.slot} ({slot.address}) is {slot.state.name}"
            + (f": {slot.last_error}" if slot.last_error else "")
            for slot in self.status().slots
            if slot.state is not SlotState.WAIT_QUORUM
        ]
        reason = [self.status().reason] if self.status().reason else []
        return "not active yet: " + "; ".join(slots + reason or ["all members are connected"])

    async def deactivate(self) -> None:
        """Flushes and lets all members go; always ends. DataError when the last flush failed."""
        await self._ask(events.Deactivate)

    async def replace(self, old: str, new: str, replacement_id: str = "") -> Replacement:
        """Starts replacing `old` by `new`, or says how far that is. StateError, ConflictError when
        refused."""
        slots = {slot.address: slot.slot for slot in self.status().slots}
        slot = slots.get(old, slots.get(new, -1))
        with self.spans.replacing(slot, replacement_id, old, new) as span:
            outcome = cast(
                "Replacement",
                await self._ask(lambda key: events.Replace(key, old, new, replacement_id)),
            )
            span.set_attribute("result", outcome.result.name)
            self._peers.setdefault(new)
            return outcome

    def follow_repair(self, slot: int, replacement_id: str) -> None:
        """The repair of the slot is told in the trace of the current span from now on."""
        if self.status().slots[slot].state is SlotState.ACTIVE:
            return
        parent = self.spans.follow(slot, replacement_id)
        if parent:
            self._feed(events.RepairTrace(slot, parent))

    async def verify(self, *, read_data: bool = False) -> VerifyResult:
        """Compares the active members at one place in the order of writes; with `read_data` each
        also reads all of its data and checks it."""
        with self._tracing.tracer.start_as_current_span(
            "upstairs.verify", attributes=self.spans.attributes
        ):
            digests = cast("events.Digests", await self._ask(events.Verify))
            bad = read = 0
            if read_data:
                active = [s for s in self.status().slots if s.state is SlotState.ACTIVE]
                for blocks_read, blocks_bad in await asyncio.gather(
                    *(self._verify_data(slot.slot, slot.address) for slot in active)
                ):
                    read += blocks_read
                    bad += blocks_bad
        return compared(digests, bad, read)

    def begin_snapshot(self, name: str) -> asyncio.Future[object]:
        """Has all members keep, under a name, what the volume holds now. What was sent before this
        call is in, what comes after is not; the outcome is a SnapshotTaken. StateError
        SNAPSHOT_NEEDS_THREE, NOT_ACTIVE or READ_ONLY; DataError SNAPSHOT_FAILED names who did not
        take it."""
        if self._submissions:
            # Requests of this turn of the loop were submitted before.
            self._start_submissions()
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._feed(events.Snapshot(future, name))
        return future

    async def _verify_data(self, slot: int, address: str) -> tuple[int, int]:
        peer = await reach(address, self._tls, slot) if self._tls is not None else None
        async with open_channel(address, tracing=self._tracing, tls=peer) as channel:
            with translated(address):
                report = await region_grpc.RegionServiceStub(channel).VerifyRegion(
                    region_pb.VerifyRegionRequest(), timeout=VERIFY_DATA_SECONDS
                )
        return report.blocks_read, report.blocks_bad

    async def take_back(self, old: str, new: str, replacement_id: str = "") -> bool:
        """Whether `old` was being replaced by `new`: that is over, `old` stays. ConflictError
        CANNOT_TAKE_BACK when it has left."""
        return cast(
            "bool", await self._ask(lambda key: events.TakeBack(key, old, new, replacement_id))
        )

    def hold_repair(self, slot: int, *, held: bool) -> None:
        """Has the repairs of a slot stand still, or go on."""
        self._feed(events.HoldRepair(slot, held))

    async def repair_member(self, slot: int, reason: str, *, whole: bool) -> None:
        """Takes the member of a slot out of service and fills it anew; errors as `fill_again`."""
        await self._ask(lambda key: events.RepairMember(key, slot, whole, reason))

    def set_repair_limits(self, limits: RepairLimits) -> None:
        """Bounds repair traffic from now on."""
        self._feed(events.SetRepairLimit(limits))

    def note_limit(self, bytes_per_second_max: int) -> None:
        """Tells in the trace of each repair that users changed its limit; what is made of that with
        every look at the guest is told nowhere."""
        for slot in self.status().slots:
            self.spans.tell(slot.slot, "limit changed", bytes_per_second_max=bytes_per_second_max)

    @property
    def filling(self) -> tuple[int, int]:
        """As `Upstairs.filling`."""
        return self._core.filling

    def status(self) -> RegionStatus:
        """The status now."""
        return self._core.status()

    def extents(self) -> list[ExtentStates]:
        """What is known of the extents of each slot's member now; made anew at each call."""
        return self._core.extents()

    def loads(self) -> list[SlotLoad]:
        """What is in flight on each member now."""
        return self._core.loads()

    def peers(self) -> tuple[Peer, ...]:
        """Every downstairs it talks or talked to; over TLS, those it has reached."""
        return tuple(
            Peer(address, tls)
            for address, tls in self._peers.items()
            if tls is not None or self._tls is None
        )

    async def watch(self) -> AsyncGenerator[RegionStatus, None]:
        """The status now, and again after changes, coalesced; ends when the upstairs is closed."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            while not self._closed:
                yield self.status()
                await changed.wait()
                changed.clear()
                await asyncio.sleep(WATCH_SECONDS)
        finally:
            self._watchers.discard(changed)

    async def close(self) -> None:
        """Lets everything go, flushed or not; deactivate first to keep unflushed writes."""
        if self._closed:
            return
        self._closed = True
        for timer in (self._ticking, self._holding, self._keeping):
            if timer is not None:
                timer.cancel()
        links = list(self._links.values())
        for link in links:
            link.close("the upstairs is closed")
        await asyncio.gather(*(link.wait_closed() for link in links))
        self.spans.close()
        self._wake()

    # ---- the loop

    async def _ask(self, make: Callable[[object], events.Event]) -> object:
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._feed(make(future))
        return await future

    def _feed(self, event: events.Event) -> None:
        self._events.append(event)
        if self._stepping:
            return
        self._stepping = True
        now = self._loop.time()
        try:
            while self._events:
                event = self._events.popleft()
                error = self._carry(self._step(event, now))
                if error is not None:
                    # What the core believes of the world may be wrong from here on.
                    self._carry(self._core.break_off(events.Tick(), error))
        finally:
            self._stepping = False

    def _carry(self, effects: Sequence[events.Effect]) -> Exception | None:
        """Carries out all of them. Returns what one of them raised, which is a mistake too."""
        broken: Exception | None = None
        for effect in _joined(effects) if len(effects) > 1 else effects:
            try:
                self._carriers[type(effect)](effect)
            except Exception as error:  # noqa: BLE001 - as in `_step`
                _log.exception("an effect of the upstairs broke", effect=type(effect).__name__)
                broken = error
        return broken

    def _went(self, way: Callable[..., Sequence[events.Effect] | None], *arguments: object) -> bool:
        """Goes one of the core's short ways; False when it is not open for this."""
        try:
            effects = way(*arguments)
            broken = self._carry(effects) if effects else None
        except Exception as error:  # noqa: BLE001 - as in `_step`
            _log.exception("the upstairs broke", during="a short step")
            effects, broken = None, error
        if broken is not None:
            self._carry(self._core.break_off(events.Tick(), broken))
        return effects is not None

    def _step(self, event: events.Event, now: float) -> list[events.Effect]:
        """One step of the core. A mistake in it ends this volume, and nothing else."""
        try:
            return self._core.apply(event, now)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told and contained
            _log.exception("the upstairs broke", during=type(event).__name__)
            return self._core.break_off(event, error)

    def _start_ticking(self) -> None:
        if self._ticking is None and not self._closed:
            self._tick()

    def _tick(self) -> None:
        self._ticking = self._loop.call_later(TICK_SECONDS, self._tick)
        self._feed(events.Tick())
        if self._core.repairing:
            self._wake()

    def _wake(self) -> None:
        for watcher in self._watchers:
            watcher.set()

    # ---- effects

    def _send(self, effect: events.SendFrame) -> None:
        for number in effect.links:
            link = self._links.get(number)
            if link is not None:
                link.send(effect.buffers)

    def _complete(self, effect: events.CompleteGuest) -> None:
        cast("Done", effect.key)(effect.completions)

    def _send_held_after(self, effect: events.SendHeldAfter) -> None:
        self._holding = self._loop.call_later(effect.seconds, self._held_long_enough)

    def _held_long_enough(self) -> None:
        if self._stepping or not self._went(self._core.short_way.on_time, self._loop.time()):
            self._feed(events.SendHeld())

    def _send_behind_after(self, effect: events.SendBehindAfter) -> None:
        self._keeping = self._loop.call_later(effect.seconds, self._behind_long_enough)

    def _behind_long_enough(self) -> None:
        way = self._core.short_way
        if self._stepping or not self._went(way.behind_on_time, self._loop.time()):
            self._feed(events.SendBehind())

    def _connect(self, effect: events.Connect) -> None:
        status = self._core.status()
        wish = SessionWish(
            link=effect.link,
            slot=effect.slot,
            address=effect.address,
            upstairs_id=status.upstairs_id,
            session_id=status.session_id,
            generation=effect.generation,
            region_id=effect.region_id,
            geometry=self.geometry,
            encryption=self._encryption,
            read_only=status.read_only,
            stream_only=self._stream_only,
            lossy=self._lossy,
            tls=self._tls,
        )
        # Attempts that nobody asked for, every few seconds, would fill the span store.
        asked = trace.get_current_span().is_recording()
        self._links[effect.link] = SlotLink(wish, self, self._tracing if asked else None)

    def _disconnect(self, effect: events.Disconnect) -> None:
        link = self._links.get(effect.link)
        if link is not None:
            link.close(effect.reason)

    def _answer(self, effect: events.Answer) -> None:
        future = cast("asyncio.Future[object]", effect.key)
        if future.done():
            return
        if effect.error is not None:
            future.set_exception(effect.error)
        else:
            future.set_result(effect.value)

    def _changed(self, _effect: events.Changed) -> None:
        self._wake()

    def _slot_left(self, effect: events.SlotLeft) -> None:
        # At deactivation, and while a set is being assembled, members come and go without harm.
        log = _log.info if effect.mode == SlotMode.NEW.name else _log.warning
        log(
            "slot left service",
            slot=effect.slot,
            address=effect.address,
            mode=effect.mode,
            reason=effect.reason,
        )

    def _healed(self, effect: events.BlocksHealed) -> None:
        _log.warning(
            "bad blocks were written again from a good copy",
            upstairs_id=self._core.status().upstairs_id,
            blocks=effect.blocks,
            block=effect.block,
        )

    def _repair_started(self, effect: events.RepairStarted) -> None:
        _log.info("live repair started", slot=effect.slot, address=effect.address)
        parent = self.spans.started(effect)
        if parent:
            self._feed(events.RepairTrace(effect.slot, parent))

    def _repair_ended(self, effect: events.RepairEnded) -> None:
        _log.info(
            "live repair ended",
            slot=effect.slot,
            error=effect.error,
            extents=effect.extents,
            bytes_copied=effect.bytes_copied,
        )
        self.spans.ended(effect)

    # ---- LinkOwner

    def link_up(self, link: int, session: SessionInfo) -> None:
        """A session stands."""
        made = self._links.get(link)
        if made is not None:
            self._peers[made.address] = made.peer
        self._feed(events.Connected(link, session))

    def link_frame(self, link: int, frame: Frame) -> None:
        """A reply has come."""
        if not self._stepping and self._went(self._core.short_way.reply, link, frame):
            return
        self._feed(events.SlotReply(link, frame))

    def link_notice(self, link: int, text: str) -> None:
        """A daemon says why it ends the session."""
        self._feed(events.Notice(link, text))

    def link_down(self, link: int, reason: str, code: str) -> None:
        """A link is gone."""
        self._links.pop(link, None)
        if not self._closed:
            self._feed(events.Disconnected(link, reason, code))


def _joined(effects: Sequence[events.Effect]) -> list[events.Effect]:
    """The same effects; frames that follow one another to the same links are one to send, up to
    JOINED_BUFFERS_MAX buffers."""
    joined: list[events.Effect] = []
    links: tuple[int, ...] | None = None
    buffers: list[Bytes] = []
    for effect in effects:
        if not isinstance(effect, events.SendFrame):
            links = None
            joined.append(effect)
        elif effect.links == links and len(buffers) + len(effect.buffers) <= JOINED_BUFFERS_MAX:
            buffers += effect.buffers
        else:
            links, buffers = effect.links, list(effect.buffers)
            joined.append(events.SendFrame(links, buffers))
    return joined


__all__ = [
    "ExtentDifference",
    "Peer",
    "RegionUpstairs",
    "ReplaceOutcome",
    "SlotState",
    "UpstairsState",
    "VerifyResult",
]
