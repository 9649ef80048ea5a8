"""A seeded world around the upstairs' core: model downstairs, a network that delays and breaks, a
guest, and checkers that stand outside. Simulated time only; the same seed gives the same run."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from stairlib.model.cipher import AES_256_GCM
from stairlib.model.geometry import Geometry
from stairlib.wire.frame import Frame, OpKind, decode, done_behind
from tests.unit.vmmd.upstairs.model_downstairs import UNKNOWN, ModelDownstairs, Session
from vmmd.block import nbd_wire as wire
from vmmd.block.backend import BackendInfo, BlockOp, BlockStatus, Request
from vmmd.block.nbd_transmission import RequestParser
from vmmd.block.request_run import Run
from vmmd.upstairs.core import events, limits
from vmmd.upstairs.core.codec import Encryption
from vmmd.upstairs.core.region_set import UpstairsConfig
from vmmd.upstairs.core.slot_states import SlotState
from vmmd.upstairs.core.upstairs import Upstairs
from vmmd.upstairs.core.upstairs_states import UpstairsState

UPSTAIRS_ID = "11111111-1111-1111-1111-111111111111"
TICK_SECONDS = 0.1


@dataclass
class Link:
    """One connection: frames arrive in order in both directions until it is cut."""

    number: int
    server: ModelDownstairs
    session: Session | None = None
    to_server_at: float = 0.0
    to_client_at: float = 0.0
    cut: bool = False
    told: bool = False
    # An answer to writes that waits for that of a flush (World.joins).
    kept: bytes = b""


Taken = Callable[[BlockStatus, bytes | None, npt.NDArray[np.bool_] | None], None]


@dataclass
class BlockHistory:
    """Values that a block may have: `values[floor:]`; the last one is what a healthy set must
    give."""

    values: list[bytes] = field(default_factory=list)
    floor: int = 0
    exact: bool = True
    # What scrubs offered while the value was not known, and no flush covers: seen or not, it may
    # be lost again, and the block be unwritten as before.
    offered: set[bytes] = field(default_factory=set)


def runs_of(requests: Sequence[Request], geometry: Geometry) -> list[Run]:
    """As an NBD client's bytes give them: the writes, then the reads."""
    size = geometry.block_size
    parser = RequestParser()
    for number, request in enumerate(requests):
        command = wire.Command.WRITE if request.op is BlockOp.WRITE else wire.Command.READ
        place, length = request.offset * size, request.length * size
        parser.push(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, command, number, place, length))
        parser.push(bytes(request.data or b""))
    info = BackendInfo(size, geometry.block_count, read_only=False, supports_discard=True)
    return parser.runs(info, len(requests), 1 << 30)


class World:
    """Runs one upstairs at a time; `step` runs the next scheduled thing."""

    # Whether members tell of writes and of the flush right behind them in one frame.
    joins = False
    # Seconds after which the upstairs that is started next serves with two; 0 = never.
    two_after = 0.0

    def __init__(
        self,
        seed: int,
        *,
        geometry: Geometry | None = None,
        spares: int = 1,
        delay: float = 0.005,
        cipher: str = "",
        runs: bool = False,
        behind_after: int = limits.BEHIND_LEARNED_FLUSHES,
    ) -> None:
        """`runs`: the guest's plain reads and writes come as runs, by the short way where it is
        open, and so do the answers. `behind_after`: flushes until one copy may be behind."""
        self.runs, self.behind_after = runs, behind_after
        self.rng = random.Random(seed)
        self.geometry = geometry or Geometry(512, 4, 6)
        self.delay = delay
        self.cipher = cipher
        key = random.Random(seed).randbytes(32)
        # Every counter begins at one place: only generations keep the nonces of sessions apart.
        entropy = bytes if cipher == AES_256_GCM else random.Random(seed + 1).randbytes
        self.encryption = Encryption(key, entropy) if cipher else None
        self.sealed: dict[bytes, bytes] = {}
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.daemons = {
            f"d{number}:1": ModelDownstairs(
                f"d{number}:1",
                f"region-{number}",
                self.geometry,
                random.Random(self.rng.random()),
                self.later,
                lambda address: self.daemons.get(address),
                cipher,
            )
            for number in range(3 + spares)
        }
        self.targets = ["d0:1", "d1:1", "d2:1"]
        self.generation = 0
        self.links: dict[int, Link] = {}
        self.answers: dict[object, events.Answer] = {}
        self.repairs: list[events.RepairEnded] = []
        self.blocks = [
            BlockHistory([bytes(self.geometry.block_size)])
            for _ in range(self.geometry.block_count)
        ]
        self._tokens = itertools.count(1)
        self._keys = itertools.count(1)
        self.in_flight: dict[object, Taken] = {}
        self.busy: dict[int, int] = {}
        self.counts: dict[str, int] = {}
        self.trace: list[str] = []
        self.read_only = False
        # Whose region was once put back to an older copy.
        self.outdated: set[str] = set()
        self.upstairs: Upstairs
        self.start_upstairs()
        self.later(TICK_SECONDS, self._tick)

    # ---- time

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + seconds, next(self._order), call))

    def step(self) -> None:
        at, _order, call = heapq.heappop(self._heap)
        self.now = max(self.now, at)
        call()

    def run_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        end = self.now + seconds
        while not condition():
            if self.now >= end:
                return False
            self.step()
        return True

    def note(self, text: str) -> None:
        self.trace.append(f"{self.now:9.4f} {text}")

    def _tick(self) -> None:
        self.feed(events.Tick())
        self.later(TICK_SECONDS, self._tick)

    # ---- the shell's part

    def start_upstairs(self) -> None:
        """A new upstairs process with a higher generation; the old one's memory is gone."""
        self.generation += 1
        config = UpstairsConfig(
            UPSTAIRS_ID,
            f"session-{self.generation}",
            self.generation,
            self.geometry,
            (self.targets[0], self.targets[1], self.targets[2]),
            encryption=self.encryption,
            read_only=self.read_only,
            activate_with_two_after=self.two_after,
            behind_after_flushes=self.behind_after,
        )
        for link in self.links.values():
            self._cut(link)
        self.links = {}
        self.in_flight = {}
        self.busy = {}
        self.upstairs = Upstairs(config)
        self.was_lossy = False

    def restart_read_only(self) -> None:
        """All daemons and the upstairs are started again and serve what is durable, read-only."""
        for server in self.daemons.values():
            server.crash()
            server.read_only = server.up = True
        self.read_only = True
        self.start_upstairs()

    def feed(self, event: events.Event) -> None:
        way = self.upstairs.short_way
        if (
            self.runs
            and isinstance(event, events.SlotReply)
            and self._short(way.reply(event.link, event.frame))
        ):
            return
        for effect in self.upstairs.apply(event, self.now):
            self._carry_out(effect)
        region = self.upstairs._region
        if region.flushes.lost_writes and not self.was_lossy:
            self.note("writes lost")
            self.loosen()
        self.was_lossy = region.flushes.lost_writes

    def _carry_out(self, effect: events.Effect) -> None:
        if isinstance(effect, events.SendFrame):
            data = b"".join(effect.buffers)
            if self.cipher:
                self._check_nonces(decode(data))
            for number in effect.links:
                self._to_server(self.links[number], data)
        elif isinstance(effect, events.SendHeldAfter):
            upstairs = self.upstairs
            self.later(effect.seconds, lambda: self._held_long_enough(upstairs))
        elif isinstance(effect, events.SendBehindAfter):
            upstairs = self.upstairs
            self.later(effect.seconds, lambda: self._behind_long_enough(upstairs))
        elif isinstance(effect, events.CompleteGuest):
            for completion in effect.completions:
                data = None if completion.data is None else bytes(completion.data)
                self.in_flight.pop(completion.token)(completion.status, data, completion.owned)
        elif isinstance(effect, events.Connect):
            link = Link(effect.link, self.daemons[effect.address])
            self.links[effect.link] = link
            upstairs = self.upstairs
            self.later(self.rng.uniform(0, self.delay), lambda: self._open(upstairs, link, effect))
        elif isinstance(effect, events.Disconnect):
            self.note(f"disconnect {effect.link}: {effect.reason}")
            self.cut(self.links[effect.link], effect.reason)
        elif isinstance(effect, events.Answer):
            self.answers[effect.key] = effect
        elif isinstance(effect, events.RepairEnded):
            self.repairs.append(effect)
            self.note(f"repair of {effect.slot} ended: {effect.error or 'ok'}")
        elif isinstance(effect, events.SlotLeft):
            self.note(f"slot {effect.slot} {effect.address} left, {effect.mode}: {effect.reason}")
            outdated = "MEMBER_OUTDATED" in effect.reason or "MEMBER_NOT_WHOLE" in effect.reason
            assert self.read_only or not outdated or effect.address in self.outdated
            # A scrub must not cost a member its repair.
            assert UNKNOWN not in effect.reason, "an unwritten write met a member being filled"

    def _held_long_enough(self, upstairs: Upstairs) -> None:
        if upstairs is not self.upstairs:
            return
        if not self.runs or not self._short(upstairs.short_way.on_time(self.now)):
            self.feed(events.SendHeld())

    def _behind_long_enough(self, upstairs: Upstairs) -> None:
        if upstairs is not self.upstairs:
            return
        if not self._short(upstairs.short_way.behind_on_time(self.now)):
            self.feed(events.SendBehind())

    def _check_nonces(self, frame: Frame) -> None:
        """A nonce goes out again only in the very frame that it was in."""
        for context in frame.contexts:
            raw = context.tobytes()
            nonce = raw[4:16]
            assert self.sealed.setdefault(nonce, raw) == raw, f"nonce {nonce.hex()} came twice"

    def _open(self, upstairs: Upstairs, link: Link, effect: events.Connect) -> None:
        if upstairs is not self.upstairs or link.cut:
            return
        server = link.server
        if not server.up:
            self.cut(link, "connection refused")
            return
        config = upstairs._region.config
        code, info = server.open_session(
            config.upstairs_id,
            config.session_id,
            effect.generation,
            effect.region_id,
            read_only=config.read_only,
            key_check=self._key_check(config, server),
        )
        if info is None:
            self.cut(link, f"refused: {code}", code)
            return
        link.session = Session(lambda data: self._to_client(upstairs, link, data))
        server.session = link.session
        self.later(
            self.rng.uniform(0, self.delay),
            lambda: self._if_current(upstairs, link, events.Connected(link.number, info)),
        )

    def _key_check(self, config: UpstairsConfig, server: ModelDownstairs) -> bytes:
        if config.encryption is None:
            return b""
        return config.encryption.key_check(server.owner if config.read_only else config.upstairs_id)

    def _if_current(self, upstairs: Upstairs, link: Link, event: events.Event) -> None:
        if upstairs is self.upstairs and not link.cut:
            self.feed(event)

    def _to_server(self, link: Link, data: bytes) -> None:
        if link.cut:
            return
        at = max(link.to_server_at, self.now + self.rng.uniform(0, self.delay))
        link.to_server_at = at

        def arrive() -> None:
            if not link.cut and link.session is not None:
                link.server.handle(link.session, decode(data))

        self.later(at - self.now, arrive)

    def _to_client(self, upstairs: Upstairs, link: Link, data: bytes) -> None:
        frame = decode(data)
        kinds, good = set(frame.ops["kind"].tolist()), frame.answers[2]
        kept, link.kept = link.kept, b""
        if self.joins and not kept and good and kinds <= {OpKind.WRITE, OpKind.DISCARD}:
            link.kept = data
            self.later(4 * self.delay, lambda: self._let_go(upstairs, link, data))
            return
        if kept and good and kinds == {OpKind.FLUSH} and frame.op_count == 1:
            self.counts["joined"] = self.counts.get("joined", 0) + 1
            (joined,) = done_behind([kept], [frame.answers[0]], OpKind.FLUSH)
            self._send_to_client(upstairs, link, bytes(joined))
            return
        for each in filter(None, (kept, data)):
            self._send_to_client(upstairs, link, each)

    def _let_go(self, upstairs: Upstairs, link: Link, data: bytes) -> None:
        if link.kept is data:
            link.kept = b""
            self._send_to_client(upstairs, link, data)

    def _send_to_client(self, upstairs: Upstairs, link: Link, data: bytes) -> None:
        at = max(link.to_client_at, self.now + self.rng.uniform(0, self.delay))
        link.to_client_at = at
        self.later(
            at - self.now,
            lambda: self._if_current(upstairs, link, events.SlotReply(link.number, decode(data))),
        )

    def _cut(self, link: Link) -> None:
        link.cut = True
        if link.session is not None and link.server.session is link.session:
            link.server.end_session()

    def cut(self, link: Link, reason: str, code: str = "") -> None:
        """Ends a connection; the upstairs hears of it a little later."""
        self._cut(link)
        if link.told:
            return
        link.told = True
        upstairs = self.upstairs

        def tell() -> None:
            if upstairs is self.upstairs:
                self.links.pop(link.number, None)
                self.feed(events.Disconnected(link.number, reason, code))

        self.later(self.rng.uniform(0, self.delay), tell)

    # ---- faults

    def crash(self, address: str) -> None:
        self.note(f"crash {address}")
        server = self.daemons[address]
        server.crash()
        for link in list(self.links.values()):
            if link.server is server:
                self.cut(link, "connection reset")

    def put_back(self, address: str, saved: dict[str, Any]) -> None:
        """The daemon dies; its region's directory is an older copy when it is started again."""
        self.crash(address)
        self.note(f"an older copy at {address}")
        self.daemons[address].put_back(saved)
        self.outdated.add(address)

    def start(self, address: str) -> None:
        self.note(f"start {address}")
        self.daemons[address].up = True

    def break_links(self, address: str) -> None:
        self.note(f"break links of {address}")
        for link in list(self.links.values()):
            if link.server.address == address and not link.cut:
                self.cut(link, "broken pipe")

    def crash_upstairs(self) -> None:
        self.note("crash of the upstairs")
        self.loosen()
        self.start_upstairs()

    def loosen(self) -> None:
        """Unflushed writes may be gone: every block may have any value since its last flush."""
        for block in self.blocks:
            block.values = block.values[block.floor :]
            block.offered = set()
            block.floor = 0
            block.exact = len(block.values) == 1

    # ---- the guest

    def ask(self, event_of_key: Callable[[object], events.Event]) -> object:
        key = next(self._keys)
        self.feed(event_of_key(key))
        return key

    def submit(self, requests: list[Request]) -> None:
        if not self.runs:
            self.feed(events.GuestBatch([("guest", requests)]))
            return
        plain = [r for r in requests if r.op in (BlockOp.READ, BlockOp.WRITE)]
        left: list[tuple[object, Sequence[Request]]] = []
        for run in runs_of(plain, self.geometry):
            same = [r for r in plain if r.op is run.op]
            for index, request in enumerate(same):
                self.in_flight[run.token(index)] = self.in_flight.pop(request.token)
            if not self._short(self.upstairs.short_way.start("guest", run, self.now)):
                left.append(("guest", run))
        others = [r for r in requests if r not in plain]
        if len(requests) == 1 and others and others[0].op is BlockOp.FLUSH:
            way = self.upstairs.short_way
            if self._short(way.flush("guest", others[0].token, self.now)):
                return
        if others:
            left.append(("guest", others))
        if left:
            self.feed(events.GuestBatch(left))

    def _short(self, effects: Sequence[events.Effect] | None) -> bool:
        if effects is None:
            return False
        self._count("short way")
        for effect in effects:
            self._carry_out(effect)
        return True

    def write(self, offset: int, length: int, *, discard: bool = False) -> Request:
        size = self.geometry.block_size
        if discard:
            values = [bytes(size)] * length
        else:
            values = [
                self.rng.getrandbits(64).to_bytes(8, "little") * (size // 8) for _ in range(length)
            ]
        token = next(self._tokens)
        self._occupy(offset, length, 1)

        def done(status: BlockStatus, _data: object, _owned: object) -> None:
            self._occupy(offset, length, -1)
            self._count(f"write {status.name}")
            if status is BlockStatus.OK:
                for index, value in enumerate(values):
                    block = self.blocks[offset + index]
                    block.values.append(value)
                    block.exact = True
            else:
                assert status in (BlockStatus.FAILED, BlockStatus.ABORTED)

        self.in_flight[token] = done
        if discard:
            return Request(BlockOp.DISCARD, token, offset, length)
        return Request(BlockOp.WRITE, token, offset, length, bytearray(b"".join(values)))

    def write_unwritten(self, offset: int, length: int) -> Request:
        """What a scrub does. A block that holds something, which is never zeros here, keeps it."""
        size = self.geometry.block_size
        zero = bytes(size)
        value = self.rng.getrandbits(64).to_bytes(8, "little") * (size // 8)
        token = next(self._tokens)
        self._occupy(offset, length, 1)

        def done(status: BlockStatus, _data: object, _owned: object) -> None:
            self._occupy(offset, length, -1)
            self._count(f"unwritten {status.name}")
            if status is not BlockStatus.OK:
                return
            for block in self.blocks[offset : offset + length]:
                possible = block.values[-1:] if block.exact else block.values[block.floor :]
                if zero in possible:
                    block.values.append(value)
                    if not block.exact:
                        block.offered.add(value)

        self.in_flight[token] = done
        return Request(BlockOp.WRITE_UNWRITTEN, token, offset, length, value * length)

    def read(self, offset: int, length: int, *, owned: bool = False) -> Request:
        token = next(self._tokens)
        self._occupy(offset, length, 1)
        size = self.geometry.block_size
        zero = bytes(size)

        def done(
            status: BlockStatus, data: bytes | None, mask: npt.NDArray[np.bool_] | None
        ) -> None:
            self._occupy(offset, length, -1)
            self._count(f"read {status.name}")
            if status is not BlockStatus.OK:
                return
            assert data is not None
            assert len(data) == length * size
            blocks = [data[index * size : (index + 1) * size] for index in range(length)]
            for index, block in enumerate(blocks):
                self._check(offset + index, block)
            if owned:
                assert mask is not None
                assert mask.tolist() == [block != zero for block in blocks]
            else:
                assert mask is None

        self.in_flight[token] = done
        return Request(BlockOp.READ_OWNED if owned else BlockOp.READ, token, offset, length)

    def flush(self) -> Request:
        token = next(self._tokens)
        # Of a block whose value is not known since a loss, a flush makes durable whatever it is.
        marks = [len(block.values) - 1 if block.exact else 0 for block in self.blocks]
        blocks = list(self.blocks)
        bases = [id(block.values) for block in blocks]
        offered = [set(block.offered) for block in blocks]

        def done(status: BlockStatus, _data: object, _owned: object) -> None:
            self._count(f"flush {status.name}")
            if status is not BlockStatus.OK:
                return
            for block, mark, base, covered in zip(blocks, marks, bases, offered, strict=True):
                if id(block.values) == base:
                    block.floor = max(block.floor, mark)
                    block.offered -= covered

        self.in_flight[token] = done
        return Request(BlockOp.FLUSH, token)

    def _check(self, number: int, value: bytes) -> None:
        block = self.blocks[number]
        if block.exact:
            assert value == block.values[-1], f"block {number} is not what was written last"
            return
        allowed = block.values[block.floor :]
        assert value in allowed, f"block {number} has a value that it may not have"
        # Seen once, it has to stay.
        lasting = value not in block.offered
        block.values = [value] if lasting else [bytes(self.geometry.block_size), value]
        block.offered = set()
        block.floor = 0
        block.exact = True

    def _occupy(self, offset: int, length: int, change: int) -> None:
        for block in range(offset, offset + length):
            self.busy[block] = self.busy.get(block, 0) + change

    def free(self, offset: int, length: int) -> bool:
        return not any(self.busy.get(b) for b in range(offset, offset + length))

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    # ---- the end

    def healthy(self) -> bool:
        status = self.upstairs.status()
        return (
            status.state is UpstairsState.ACTIVE
            and all(slot.state is SlotState.ACTIVE for slot in status.slots)
            and not any(slot.departing_address for slot in status.slots)
            and not self.upstairs.repairing
        )

    def members(self) -> list[ModelDownstairs]:
        return [self.daemons[slot.address] for slot in self.upstairs.status().slots]
