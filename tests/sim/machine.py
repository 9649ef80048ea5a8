"""A machine's process in simulated time: the upstairs' real core with the shell's part around it.

As `vmmd/upstairs/shell`: effects are carried out in order, steps never nest, a link is one attempt
(GetRegion, OpenSession, then the data connection with HELLO and WELCOME), and its owner hears of
its end exactly once, some time after it was asked for.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from downstaird.core.promotion import Proposal
from stairlib.model.construction import Construction, RegionSpec
from stairlib.model.errors import StairwellError, StateError
from stairlib.sim.network import End
from stairlib.wire.frame import (
    DATA_VERSION,
    FLUSH_WITH_NEXT,
    Frame,
    FrameKind,
    decode,
    encode,
    pack_op,
)
from tests.sim.reached import situation
from tests.sim.shown import shown
from vmmd.block.backend import Completion, Done, Request
from vmmd.block.repair_governor import RepairRate
from vmmd.block.volume import VolumeStatus
from vmmd.core.repair_rate import RateReason, RepairPolicy
from vmmd.core.replacement_fence import ReplacementFence
from vmmd.core.request_figures import VolumeCounters
from vmmd.machine.services import changed_target
from vmmd.machine.volume_mapping import volume_message
from vmmd.upstairs.core import events
from vmmd.upstairs.core.codec import Encryption
from vmmd.upstairs.core.events import ReplaceResult
from vmmd.upstairs.core.region_set import UpstairsConfig
from vmmd.upstairs.core.status import RegionStatus
from vmmd.upstairs.core.upstairs import Upstairs
from vmmd.upstairs.core.upstairs_states import UpstairsState
from vmmd.upstairs.shell import comparison
from vmmd.upstairs.shell.runner import TICK_SECONDS
from vmmd.upstairs.shell.slot_link import RPC_SECONDS, WELCOME_SECONDS
from vmmd.upstairs.shell.transport import CONNECT_SECONDS

if TYPE_CHECKING:
    from tests.sim.parent import Layers
    from tests.sim.world import World
    from vmmd.upstairs.core.slot import Member

_HELLO_SEQUENCE = 1


class Link:
    """One attempt to reach one downstairs."""

    def __init__(self, machine: Machine, wish: events.Connect) -> None:
        self._machine = machine
        self._wish = wish
        self._daemon = machine.world.hosts[wish.address]
        self._end: End | None = None
        self._session: events.SessionInfo | None = None
        self._owned = False
        self._down = False
        self._reason = ""
        self._call(lambda: self._daemon.get_region(), self._found)

    def _call(self, ask: Callable[[], Any], then: Callable[[Any], None]) -> None:
        def serve(reply: Callable[[Any], None]) -> None:
            try:
                reply(ask())
            except StairwellError as error:
                reply(error)

        def answered(answer: Any) -> None:
            if self._over():
                return
            if isinstance(answer, StairwellError):
                code = answer.reason if isinstance(answer, StateError) else ""
                self._finish(answer.message, code)
            else:
                then(answer)

        def late() -> None:
            if not self._over():
                self._finish(f"{self._wish.address} did not answer in time")

        machine = self._machine
        machine.world.network.call(
            machine.host, self._daemon.host, serve, answered, late, RPC_SECONDS
        )

    def _over(self) -> bool:
        return self._down or bool(self._reason) or not self._machine.alive

    def _found(self, answer: tuple[str, str]) -> None:
        found_id, owner = answer
        machine, wish = self._machine, self._wish
        self._owned = owner == machine.config.upstairs_id
        region_id, key_check = wish.region_id, b""
        encryption = machine.config.encryption
        if encryption is not None:
            # The check is of the region that was asked about: no other may be opened with it.
            region_id = region_id or found_id
            key_check = encryption.key_check(machine.config.upstairs_id)
        proposal = Proposal(
            upstairs_id=uuid.UUID(machine.config.upstairs_id),
            session_id=uuid.UUID(machine.config.session_id),
            generation=wish.generation,
            read_only=machine.config.read_only,
            encrypted=encryption is not None,
            data_versions=(DATA_VERSION,),
            geometry=machine.config.geometry,
            region_id=uuid.UUID(region_id) if region_id else None,
            key_check=key_check,
        )
        self._call(lambda: self._daemon.open_session(proposal), self._opened)

    def _opened(self, answer: tuple[events.SessionInfo, bytes]) -> None:
        told, token = answer
        self._session = replace(told, owned_before=self._owned)
        world, host = self._machine.world, self._machine.host

        def serve(reply: Callable[[Any], None]) -> None:
            connection = world.network.connect(host, self._daemon.host)
            try:
                self._daemon.accept(connection.server)
            except StairwellError as error:
                connection.client.close("refused")
                connection.server.close("refused")
                reply(error)
            else:
                reply(connection.client)

        def answered(answer: Any) -> None:
            if isinstance(answer, StairwellError):
                if not self._over():
                    self._finish(answer.message)
            elif self._over():
                answer.close("given up")
            else:
                self._connected(answer, token)

        def late() -> None:
            if not self._over():
                self._finish(f"{self._wish.address}: the data connection did not open in time")

        world.network.call(host, self._daemon.host, serve, answered, late, CONNECT_SECONDS)

    def _connected(self, end: End, token: bytes) -> None:
        self._end = end
        end.received = self._received
        end.closed = self._lost
        hello = pack_op(0, 0, blob_bytes=len(token))
        end.send(
            decode(encode(FrameKind.HELLO, [hello], blobs=[token], sequence=_HELLO_SEQUENCE)[0])
        )
        self._machine.world.schedule.later(WELCOME_SECONDS, self._not_welcome)

    def _not_welcome(self) -> None:
        if self._session is not None and not self._over():
            self._finish(f"{self._wish.address} did not welcome in time")

    def _received(self, frame: Frame) -> None:
        if self._down or not self._machine.alive:
            return
        number = self._wish.link
        if frame.kind is FrameKind.REPLY:
            trace = self._machine.world.trace
            if trace.detailed:
                trace.note(self._machine.host, f"from {self._daemon.host} {shown(frame)}")
            self._machine.feed(events.SlotReply(number, frame))
        elif frame.kind is FrameKind.WELCOME:
            session, self._session = self._session, None
            if session is not None and not self._reason:
                self._machine.feed(events.Connected(number, session))
        elif frame.kind is FrameKind.NOTICE:
            text = frame.blob(0).decode()
            self._machine.world.reached[f"taken over {text.partition(' ')[0]}"] += 1
            self._machine.feed(events.Notice(number, text))

    def _lost(self, reason: str) -> None:
        if not self._over():
            self._finish(reason)

    def send(self, frame: Frame) -> None:
        """Sends one frame."""
        if self._end is not None and not self._down:
            self._end.send(frame)

    def close(self, reason: str) -> None:
        """Ends the link; its owner hears of it later."""
        if self._reason:
            return
        self._reason = reason
        world = self._machine.world
        world.schedule.later(world.chance.uniform(0, 0.001), self._closed)

    def _closed(self) -> None:
        if not self._down and self._machine.alive:
            self._finish(self._reason)

    def _finish(self, reason: str, code: str = "") -> None:
        if self._down:
            return
        self._down = True
        self.drop(self._reason or reason)
        self._machine.link_down(self._wish.link, self._reason or reason, code)

    def drop(self, reason: str) -> None:
        """Closes the connection, if there is one."""
        if self._end is not None:
            self._end.received = self._end.closed = lambda _item: None
            self._end.close(reason, abort=True)


class Machine:
    """One process with one region set. `region_path` of its volume is the only sub-volume."""

    def __init__(
        self,
        world: World,
        host: str,
        spec: RegionSpec,
        session: str,
        encryption: Encryption | None,
    ) -> None:
        options = spec.options
        targets = options.targets
        self.world = world
        self.host = host
        self.alive = True
        self.config = UpstairsConfig(
            upstairs_id=str(options.id),
            session_id=session,
            generation=spec.generation,
            geometry=spec.geometry,
            targets=(targets[0], targets[1], targets[2]),
            read_only=options.read_only,
            encryption=encryption,
            behind_after_flushes=2,
        )
        self.upstairs = Upstairs(self.config)
        self.status: RegionStatus = self.upstairs.status()
        self._links: dict[int, Link] = {}
        self._events: deque[events.Event] = deque()
        self._stepping = False
        self._news = False
        # Over a parent: what the guest's requests go through, and the parent's own set.
        self.layers: Layers | None = None
        self.below: Machine | None = None
        self._fence = ReplacementFence()
        self._asked: dict[object, Callable[[events.Answer], None]] = {}
        self._keys = 0
        self.generation = spec.generation
        # Has a key that is not the volume's.
        self.mistaken = False
        self.guest: Callable[[Completion], None] = lambda _completion: None
        self.watcher: Callable[[Machine], None] = lambda _machine: None
        self._carriers: dict[type, Callable[[Any], None]] = {
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
        self._tick()

    def note(self, text: str) -> None:
        """A line of the trace."""
        self.world.trace.note(self.host, text)

    # ---- the loop

    def feed(self, event: events.Event) -> None:
        """One event; those that come up meanwhile are queued."""
        self._events.append(event)
        if self._stepping or not self.alive:
            return
        self._stepping = True
        try:
            while self._events and self.alive:
                for effect in self.upstairs.apply(self._events.popleft(), self.world.schedule.now):
                    self._carriers[type(effect)](effect)
                if self.world.pouncing:
                    self.world.faults.mistakes.look_for_prey(self)
                if self._news:
                    self._news = False
                    self.watcher(self)
        finally:
            self._stepping = False

    def _tick(self) -> None:
        if self.alive:
            self.world.schedule.later(TICK_SECONDS, self._tick)
            self.feed(events.Tick())

    def kill(self) -> None:
        """The process ends; its memory, unflushed writes and all, is gone."""
        self.note("the machine is killed")
        if self._is_behind() is not None:
            self.world.reached["copy behind, and the machine dies"] += 1
        self.alive = False
        self._events.clear()
        if self.layers is not None:
            self.layers.stop()
        if self.below is not None:
            self.below.alive = False
        self.world.network.killed(self.host)

    def _is_behind(self) -> Member | None:
        """Who has not been sent yet what the others have."""
        behind = self.upstairs._region.behind
        return behind.member if behind._kept else None

    # ---- effects

    def _send(self, effect: events.SendFrame) -> None:
        frame = decode(b"".join(effect.buffers))
        if frame.op_count == 1 and frame.first_op[3] & FLUSH_WITH_NEXT:
            self.world.reached["copy behind is sent a flush to go with the next"] += 1
        for number in effect.links:
            link = self._links.get(number)
            if link is not None:
                link.send(frame)

    def _send_held_after(self, effect: events.SendHeldAfter) -> None:
        self.world.schedule.later(effect.seconds, lambda: self.feed(events.SendHeld()))

    def _send_behind_after(self, effect: events.SendBehindAfter) -> None:
        self.world.schedule.later(effect.seconds, lambda: self.feed(events.SendBehind()))

    def _complete(self, effect: events.CompleteGuest) -> None:
        cast("Done", effect.key)(effect.completions)

    def _connect(self, effect: events.Connect) -> None:
        self._links[effect.link] = Link(self, effect)

    def _disconnect(self, effect: events.Disconnect) -> None:
        link = self._links.get(effect.link)
        if link is not None:
            link.close(effect.reason)

    def link_down(self, number: int, reason: str, code: str) -> None:
        """A link has ended."""
        self._links.pop(number, None)
        behind = self._is_behind()
        if behind is not None:
            what = "it is lost" if behind.link == number else "another is lost"
            self.world.reached[f"copy behind, and {what}"] += 1
        if code:
            self.world.reached[f"opening refused {code}"] += 1
        self.feed(events.Disconnected(number, reason, code))

    def _answer(self, effect: events.Answer) -> None:
        asked = self._asked.pop(effect.key, None)
        if asked is not None:
            asked(effect)

    def _changed(self, _effect: events.Changed) -> None:
        before, self.status = self.status, self.upstairs.status()
        self.world.reached.status(before, self.status)
        if before.state is not self.status.state:
            reason = f": {self.status.reason}" if self.status.reason else ""
            self.note(f"upstairs is {self.status.state.name}{reason}")
        for old, new in zip(before.slots, self.status.slots, strict=True):
            if (old.address, old.state) != (new.address, new.state):
                self.note(f"slot {new.slot} {new.address} is {new.state.name} {new.mode.name}")
        # Told when the step is whole: what it completed was completed before whatever it lost.
        self._news = True

    def _repair_started(self, effect: events.RepairStarted) -> None:
        self.note(f"repair of slot {effect.slot} begins, attempt {effect.attempt}")

    def _repair_ended(self, effect: events.RepairEnded) -> None:
        self.note(f"repair of slot {effect.slot} ends: {effect.error or 'whole'}")
        self.world.reached.repair_ended(effect.error)
        daemon = self.world.daemons.get(self.status.slots[effect.slot].address)
        if daemon is not None and not effect.error:
            self.world.checks.filled(daemon, self.generation)

    def _slot_left(self, effect: events.SlotLeft) -> None:
        self.note(f"slot {effect.slot} {effect.address} left, {effect.mode}: {effect.reason}")
        self.world.reached.member_left(self.upstairs, effect.address)

    def _healed(self, effect: events.BlocksHealed) -> None:
        self.note(f"{effect.blocks} bad blocks written again, one is {effect.block}")

    # ---- requests

    def submit(self, requests: list[Request]) -> None:
        """A guest's batch."""
        if self.layers is not None:
            self.layers.submit(requests, self._guest_done)
        else:
            self.feed(events.GuestBatch([(self._guest_done, requests)]))

    def _guest_done(self, completions: list[Completion]) -> None:
        if self.alive:
            for completion in completions:
                self.guest(completion)

    def ask(
        self, make: Callable[[object], events.Event], then: Callable[[events.Answer], None]
    ) -> None:
        """Puts a question to the core; `then` gets the answer, if the process lives so long."""
        self._keys += 1
        self._asked[self._keys] = then
        self.feed(make(self._keys))

    def deactivate(self, then: Callable[[events.Answer], None]) -> None:
        """Lets go of the volume, and of its parent after it; `then` gets the volume's answer."""
        below = self.below

        def ended(answer: events.Answer) -> None:
            if below is None:
                then(answer)
            else:
                below.ask(events.Deactivate, lambda _answer: then(answer))

        self.ask(events.Deactivate, ended)

    def activate_again(self, generation: int) -> None:
        """Somebody tries once more after a failure."""
        self.generation = generation
        self.note(f"activated again, generation {generation}")
        self.ask(lambda key: events.Activate(key, generation), self.world.note_refusal)

    def info(self):
        """The volume as vmmd tells it: protobuf, by the real mapping."""
        status = self.upstairs.status()
        volume = VolumeStatus(
            volume_id=self.config.upstairs_id,
            state=status.state,
            reason=status.reason,
            block_size=self.config.geometry.block_size,
            total_bytes=self.config.geometry.total_bytes,
            regions=((self.world.region_path, status),),
            sources=(),
            scrubs=(),
            counters=VolumeCounters(),
            repair_rate=RepairRate(0, RateReason.UNLIMITED, 0.0, 1.0, RepairPolicy()),
        )
        return volume_message(
            "machine",
            "disk",
            volume,
            nbd_uri="",
            vhost_user_socket="",
            vfio_user_socket="",
            guest_device="",
        )

    def replace(
        self,
        original: Construction,
        replacement: Construction,
        replacement_id: str,
        then: Callable[[events.Answer], None],
    ) -> None:
        """What VolumeService.ReplaceVcr does: the one changed target is handed to the core."""
        try:
            changed = changed_target(original, replacement)
            assert changed is not None
            self._fence.check(changed.region_path, changed.generation, replacement_id)
        except StairwellError as error:
            self.world.reached[f"machine told to replace {error.reason}"] += 1
            then(events.Answer(None, error=error))
            return
        old, new = changed.old, changed.new
        kinds = situation(self, old)
        if self._is_behind() is not None:
            kinds.append("while one is behind")

        def answered(answer: events.Answer) -> None:
            if answer.error is None and answer.value.result is not ReplaceResult.MISSING:
                self._fence.begun(changed.region_path, changed.generation, replacement_id)
            said = answer.value.result.name if answer.error is None else answer.error.reason
            self.world.reached.replaced(kinds, said)
            then(answer)

        self.ask(lambda key: events.Replace(key, old, new, replacement_id), answered)

    def take_back(
        self, old: str, new: str, replacement_id: str, then: Callable[[events.Answer], None]
    ) -> None:
        """What VolumeService.TakeBackReplacement does."""

        def answered(answer: events.Answer) -> None:
            if answer.error is None:
                self._fence.taken_back(self.world.region_path, replacement_id)
            then(answer)

        self.ask(lambda key: events.TakeBack(key, old, new, replacement_id), answered)

    def verify(self, then: Callable[[events.Answer], None]) -> None:
        """Compares the members; the answer's value is a VerifyResult."""

        def compared(answer: events.Answer) -> None:
            if answer.error is None:
                answer = events.Answer(None, comparison.compared(answer.value, 0, 0))
            then(answer)

        self.ask(events.Verify, compared)

    @property
    def active(self) -> bool:
        """Whether the guest is served."""
        return self.alive and self.upstairs.state is UpstairsState.ACTIVE
