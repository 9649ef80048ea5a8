"""A downstairs as a model: dictionaries instead of files, the frame contract as written, nothing
shared with the real daemon. What was not flushed is gone after a crash; flushes, repair begins and
copies take time."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from stairlib.model.geometry import Geometry
from stairlib.wire.frame import (
    EXTENT_MARK,
    FLUSH_KEEPS_MARKS,
    FLUSH_WITH_NEXT,
    Frame,
    FrameKind,
    OpKind,
    OpStatus,
    encode,
    pack_op,
)
from vmmd.upstairs.core.events import ExtentStamps, SessionInfo

EMPTY = bytes(32)
DIRTY, INCOMPLETE, TOWARDS = 1, 2, 8
_LOOKING = frozenset({OpKind.READ, OpKind.EXTENT_DIGEST})
UNKNOWN = "what is unwritten there is not known before the repair has ended"

Block = tuple[bytes, bytes]  # context, data


@dataclass
class Extents:
    """Stamps and marks of all extents."""

    generation: list[int]
    flush: list[int]
    incomplete: list[bool]
    # Of those that are incomplete: whether it was told, generation, flush.
    towards: list[tuple[bool, int, int]]

    @classmethod
    def blank(cls, count: int) -> Extents:
        return cls([0] * count, [0] * count, [False] * count, [(False, 0, 0)] * count)

    def copy(self) -> Extents:
        return Extents(
            list(self.generation), list(self.flush), list(self.incomplete), list(self.towards)
        )

    def told(self, extent: int) -> tuple[int, int, int]:
        """Generation, flush and flags as a session is told."""
        if not self.incomplete[extent]:
            return self.generation[extent], self.flush[extent], 0
        told, generation, flush = self.towards[extent]
        return generation, flush, INCOMPLETE | (TOWARDS if told else 0)


@dataclass
class Pending:
    """An asynchronous op under way; `finish` is run when its time has come, then the reply is
    sent."""

    job: int
    kind: OpKind
    finish: Callable[[], tuple[OpStatus, int, str]]
    # Flushes whose work it does as well.
    others: list[int] = field(default_factory=list)


@dataclass
class Session:
    """One data connection. `send` takes reply bytes."""

    send: Callable[[bytes], None]
    open: bool = True
    dead_text: str = ""
    lane: list[Pending] = field(default_factory=list)
    # Flushes that the next one does, and answers.
    put_off: list[int] = field(default_factory=list)


class ModelDownstairs:
    """One daemon with its region. `later(seconds, call)` schedules; `resolve(address)` finds other
    daemons."""

    def __init__(
        self,
        address: str,
        region_id: str,
        geometry: Geometry,
        rng: random.Random,
        later: Callable[[float, Callable[[], None]], None],
        resolve: Callable[[str], ModelDownstairs | None],
        cipher: str = "",
    ) -> None:
        self.address = address
        self.region_id = region_id
        self.geometry = geometry
        self.rng = rng
        self.later = later
        self.resolve = resolve
        self.cipher = cipher
        count = geometry.extent_count
        self.up = True
        self.read_only = False
        self.owner = ""
        self.promoted: tuple[str, int] = ("", 0)
        self.key_check = b""
        self.durable: dict[int, Block] = {}
        self.durable_extents = Extents.blank(count)
        self.session: Session | None = None
        self.write_error_rate = 0.0
        self.flush_error_rate = 0.0
        self.corrupt_rate = 0.0
        self.poisoned = False
        # Blocks whose stored data is not what their contexts say, and how often copies met one.
        self.rotten: set[int] = set()
        self.write_failed = False
        self.asked_to: list[OpKind] = []
        self.snapshots: dict[str, dict[int, Block]] = {}
        self.snapshot_error = ""
        self.flush_seconds_max = 0.02
        self._restart()

    def _restart(self) -> None:
        self.memory = dict(self.durable)
        self.extents = self.durable_extents.copy()
        self.dirty = [False] * self.geometry.extent_count
        # Of extents that are dirty for a flush that was put off, and were not written since.
        self.put_off: dict[int, tuple[int, int]] = {}
        self.copied: set[int] = set()
        self.since_begin: dict[int, set[int]] = {}
        self.changed: set[int] = set()
        self.poisoned = False

    # ---- lifecycle

    def recreate(self, region_id: str) -> None:
        """A new, empty region in the old one's place."""
        self.end_session()
        count = self.geometry.extent_count
        self.region_id = region_id
        self.owner = ""
        self.promoted = ("", 0)
        self.key_check = b""
        self.durable = {}
        self.durable_extents = Extents.blank(count)
        self._restart()

    def copy_of(self, other: ModelDownstairs) -> None:
        """What a clone of another daemon's region is: its data, stamps and owner under another
        id."""
        self.owner = other.owner
        self.key_check = other.key_check
        self.durable = dict(other.durable)
        self.durable_extents = other.durable_extents.copy()
        self._restart()

    def saved(self) -> dict[str, Any]:
        """A copy of the region's directory, as it is on the disk now."""
        names = ("region_id", "owner", "promoted", "key_check", "durable", "durable_extents")
        return copy.deepcopy({name: getattr(self, name) for name in names})

    def put_back(self, saved: dict[str, Any]) -> None:
        """An older copy of the directory takes the place of the region's, while the daemon is
        down."""
        assert not self.up
        for name, value in copy.deepcopy(saved).items():
            setattr(self, name, value)
        self._restart()

    def crash(self) -> None:
        """Power cut: the session is gone and everything unflushed with it."""
        self.end_session(finish_rate=0.5)
        self.up = False
        self._restart()

    def end_session(self, finish_rate: float = 1.0) -> None:
        """The data connection is gone; flushes under way finish, unless power went too."""
        if self.session is not None:
            self.session.open = False
            for pending in self.session.lane:
                if self.rng.random() >= finish_rate:
                    break
                pending.finish()
            self.session.lane = []
            self.session = None
        # What was to be done with a flush that does not come has the stamp of the next one.
        for extent in self.put_off:
            self.dirty[extent] = True
        self.put_off = {}
        self.since_begin = {}
        self.copied = set()
        self.write_failed = False

    def open_session(
        self,
        upstairs_id: str,
        session_id: str,
        generation: int,
        region_id: str,
        *,
        read_only: bool = False,
        key_check: bytes = b"",
    ) -> tuple[str, SessionInfo | None]:
        """(refusal code, info)."""
        if region_id and region_id != self.region_id:
            return "REGION_MISMATCH", None
        if read_only != self.read_only:
            return "READ_ONLY_MISMATCH", None
        if read_only:
            if self.key_check and self.key_check != key_check:
                return "KEY_MISMATCH", None
            self.end_session()
            return "", self._session_info(owned_before=self.owner == upstairs_id)
        if self.owner and self.owner != upstairs_id:
            return "REGION_IN_USE", None
        if self.key_check and self.key_check != key_check:
            return "KEY_MISMATCH", None
        known = self.promoted
        if self.owner and not (generation > known[1] or (session_id, generation) == known):
            return "GENERATION_TOO_LOW", None
        owned_before = bool(self.owner)
        self.owner = upstairs_id
        self.promoted = (session_id, generation)
        self.key_check = key_check
        self.end_session()
        return "", self._session_info(owned_before=owned_before)

    def _session_info(self, *, owned_before: bool) -> SessionInfo:
        return SessionInfo(self.region_id, self._stamps(), owned_before, self.cipher, self.owner)

    def _stamps(self) -> ExtentStamps:
        told = np.array(
            [self.extents.told(extent) for extent in range(self.geometry.extent_count)],
            dtype=np.uint64,
        )
        flags = told[:, 2].astype(np.uint8) | np.array(self.dirty, dtype=np.uint8)
        flags[list(self.put_off)] |= 1
        return ExtentStamps(told[:, 0], told[:, 1], flags)

    def handle(self, session: Session, frame: Frame) -> None:
        """Executes a REQUEST frame in order; immediate ops are answered together."""
        if not session.open or self.session is not session:
            return
        entries: list[bytes] = []
        blobs: list[bytes] = []
        contexts: list[bytes] = []
        payload: list[bytes] = []
        size = self.geometry.block_size
        at = 0
        for index, op in enumerate(frame.ops):
            kind = OpKind(int(op["kind"]))
            job, offset, length = int(op["job"]), int(op["offset"]), int(op["length"])
            assert not self.read_only or kind in _LOOKING, f"{kind.name} in a read-only session"
            data: list[Block] = []
            if kind in (OpKind.WRITE, OpKind.WRITE_UNWRITTEN):
                data = [
                    (
                        frame.contexts[at + i].tobytes(),
                        bytes(frame.payload[(at + i) * size : (at + i + 1) * size]),
                    )
                    for i in range(length)
                ]
                at += length
            if kind is OpKind.FLUSH and int(op["flags"]) & FLUSH_WITH_NEXT:
                self._put_off(session, op)
                continue
            pending = self._start_asynchronous(kind, op, job, frame.blob(index))
            if pending is not None:
                self._queue(session, pending)
                continue
            status, number, text, blocks, raw = self._immediate(kind, offset, length, data)
            blob = text.encode()
            entries.append(
                pack_op(
                    job,
                    kind,
                    offset=offset,
                    length=length,
                    status=status,
                    number=number,
                    blob_bytes=len(blob),
                )
            )
            blobs.append(blob)
            contexts.extend(context for context, _ in blocks)
            payload.extend(block for _, block in blocks)
            payload.append(raw)
        if entries:
            table = np.frombuffer(b"".join(contexts), dtype="<u8").reshape(-1, 4)
            session.send(
                b"".join(
                    encode(FrameKind.REPLY, entries, blobs=blobs, contexts=table, payload=payload)
                )
            )

    def _immediate(
        self, kind: OpKind, offset: int, length: int, data: list[Block]
    ) -> tuple[int, int, str, list[Block], bytes]:
        status, blocks, raw, text = OpStatus.OK, [], b"", ""
        zero = (EMPTY, bytes(self.geometry.block_size))
        if kind is OpKind.READ:
            blocks = [self.memory.get(block, zero) for block in range(offset, offset + length)]
            for index in {block - offset for block in self.rotten} & set(range(length)):
                context, block = blocks[index]
                if context != EMPTY:
                    blocks[index] = (context, bytes([block[0] ^ 1]) + block[1:])
            if self.rng.random() < self.corrupt_rate:
                context, block = blocks[0]
                blocks[0] = (context, bytes([block[0] ^ 1]) + block[1:])
        elif kind is OpKind.WRITE_UNWRITTEN and self._incomplete(offset, length):
            status, text = OpStatus.BAD_REQUEST, UNKNOWN
            self.write_failed = True
        elif kind in (OpKind.WRITE, OpKind.WRITE_UNWRITTEN, OpKind.DISCARD):
            if self.poisoned or self.rng.random() < self.write_error_rate:
                status, text = OpStatus.IO_ERROR, "injected"
                # What a later flush of this session would stamp is not what was asked.
                self.write_failed = True
            else:
                for index in range(length):
                    if kind is not OpKind.WRITE_UNWRITTEN or offset + index not in self.memory:
                        self._change(offset + index, data[index] if data else None)
        elif kind is OpKind.EXTENT_STATES:
            stamps = self._stamps()
            rows = (stamps.generations, stamps.flushes, stamps.flags.astype(np.uint64))
            raw = np.stack(rows, axis=1).astype("<u8").tobytes()
        elif kind is OpKind.EXTENT_DIGEST:
            raw = np.array(
                [self.digest(e) for e in range(offset, offset + length)], dtype="<u8"
            ).tobytes()
        elif kind is OpKind.REPAIR_END:
            if any(self.extents.incomplete):
                status, text = OpStatus.BAD_REQUEST, "an extent is still incomplete"
            else:
                self.since_begin = {}
        return status, 0, text, blocks, raw

    def _incomplete(self, offset: int, length: int) -> bool:
        per_extent = self.geometry.blocks_per_extent
        extents = {block // per_extent for block in range(offset, offset + length)}
        return any(self.extents.incomplete[extent] for extent in extents)

    def _change(self, block: int, value: Block | None) -> None:
        if value is None:
            self.memory.pop(block, None)
        else:
            self.memory[block] = value
        self.changed.add(block)
        self.rotten.discard(block)
        extent = block // self.geometry.blocks_per_extent
        self.dirty[extent] = True
        if extent in self.since_begin:
            self.since_begin[extent].add(block)

    def digest(self, extent: int) -> int:
        first = extent * self.geometry.blocks_per_extent
        blocks = range(first, first + self.geometry.blocks_per_extent)
        return xxhash.xxh3_64_intdigest(
            b"".join(self.memory.get(block, (EMPTY, b""))[0] for block in blocks)
        )

    # ---- asynchronous ops

    def _start_asynchronous(
        self, kind: OpKind, op: np.void, job: int, blob: bytes
    ) -> Pending | None:
        if kind is OpKind.FLUSH:
            keeps = bool(int(op["flags"]) & FLUSH_KEEPS_MARKS)
            flush = self._flush(int(op["number"]), int(op["generation"]), keeps)
            if blob:
                flush = self._with_snapshot(flush, blob.decode())
            return Pending(job, kind, flush, self._taken_from_session())
        if kind is OpKind.REPAIR_BEGIN:
            return Pending(job, kind, self._repair_begin(np.frombuffer(blob, EXTENT_MARK)))
        if kind in (OpKind.EXTENT_COPY, OpKind.COPY_CHECK):
            rehearsal = kind is OpKind.COPY_CHECK
            self.asked_to.append(kind)
            copying = self._copy(int(op["offset"]), json.loads(blob), rehearsal=rehearsal)
            return Pending(job, kind, copying)
        return None

    def _queue(self, session: Session, pending: Pending) -> None:
        if pending.kind in (OpKind.EXTENT_COPY, OpKind.COPY_CHECK):
            self.later(self.rng.uniform(0.001, 0.03), lambda: self._end(session, pending))
            return
        session.lane.append(pending)
        if len(session.lane) == 1:
            self._run_lane(session)

    def _run_lane(self, session: Session) -> None:
        def over() -> None:
            if not session.open or not session.lane:
                return
            pending = session.lane[0]
            self._end(session, pending)
            if not session.lane:
                return
            session.lane.pop(0)
            if session.lane:
                self._run_lane(session)

        self.later(self.rng.uniform(0.0005, self.flush_seconds_max), over)

    def _end(self, session: Session, pending: Pending) -> None:
        if not session.open or self.session is not session:
            return
        status, number, text = pending.finish()
        blob = text.encode()
        jobs = [*pending.others, pending.job]
        entries = [
            pack_op(job, pending.kind, status=status, number=number, blob_bytes=len(blob))
            for job in jobs
        ]
        session.send(b"".join(encode(FrameKind.REPLY, entries, blobs=[blob] * len(jobs))))

    def _put_off(self, session: Session, op: np.void) -> None:
        """Stamps what is dirty now, by the next flush."""
        for extent, is_dirty in enumerate(self.dirty):
            if is_dirty:
                self.put_off[extent] = (int(op["generation"]), int(op["number"]))
                self.dirty[extent] = False
        session.put_off.append(int(op["job"]))

    def _taken_from_session(self) -> list[int]:
        assert self.session is not None
        jobs, self.session.put_off = self.session.put_off, []
        return jobs

    def _flush(
        self, number: int, generation: int, keeps_marks: bool
    ) -> Callable[[], tuple[OpStatus, int, str]]:
        changes = {block: self.memory.get(block) for block in self.changed}
        self.changed = set()
        stamps, self.put_off = self.put_off, {}
        stamps |= {e: (generation, number) for e, is_dirty in enumerate(self.dirty) if is_dirty}
        dirty = list(stamps)
        for extent in dirty:
            self.dirty[extent] = False
        copied: set[int] = set()
        if not keeps_marks:
            copied, self.copied = self.copied, set()
        fails = self.poisoned or self.write_failed or self.rng.random() < self.flush_error_rate

        def finish() -> tuple[OpStatus, int, str]:
            if fails or self.poisoned:
                self.poisoned = True
                for extent in dirty:
                    self.dirty[extent] = True
                return OpStatus.IO_ERROR, 0, "injected"
            for block, value in changes.items():
                if value is None:
                    self.durable.pop(block, None)
                else:
                    self.durable[block] = value
            for extent, stamp in stamps.items():
                self.extents.generation[extent], self.extents.flush[extent] = stamp
            for extent in copied:
                self.extents.incomplete[extent] = False
            self.durable_extents = self.extents.copy()
            return OpStatus.OK, number, ""

        return finish

    def _with_snapshot(
        self, flush: Callable[[], tuple[OpStatus, int, str]], name: str
    ) -> Callable[[], tuple[OpStatus, int, str]]:
        """What is there when the flush begins is kept once it has ended."""
        content = dict(self.memory)

        def finish() -> tuple[OpStatus, int, str]:
            ended = flush()
            if ended[0] is OpStatus.OK and self.snapshot_error:
                return OpStatus.SNAPSHOT_FAILED, 0, self.snapshot_error
            if ended[0] is OpStatus.OK:
                self.snapshots[name] = content
            return ended

        return finish

    def _repair_begin(self, marks: np.ndarray) -> Callable[[], tuple[OpStatus, int, str]]:
        extents = marks["extent"].tolist()
        towards = list(
            zip(
                (marks["told"] != 0).tolist(),
                marks["generation"].tolist(),
                marks["flush"].tolist(),
                strict=True,
            )
        )
        for extent, told in zip(extents, towards, strict=True):
            self.extents.incomplete[extent] = True
            self.extents.towards[extent] = told
            self.extents.generation[extent] = self.extents.flush[extent] = 0
            self.since_begin[extent] = set()
            self.copied.discard(extent)
            self.put_off.pop(extent, None)
            self.dirty[extent] = False

        def finish() -> tuple[OpStatus, int, str]:
            for extent, told in zip(extents, towards, strict=True):
                self.durable_extents.incomplete[extent] = True
                self.durable_extents.towards[extent] = told
                self.durable_extents.generation[extent] = 0
                self.durable_extents.flush[extent] = 0
            return OpStatus.OK, 0, ""

        return finish

    def _copy(
        self, extent: int, source: dict, *, rehearsal: bool = False
    ) -> Callable[[], tuple[OpStatus, int, str]]:
        per_extent = self.geometry.blocks_per_extent
        blocks = range(extent * per_extent, (extent + 1) * per_extent)
        first = self.resolve(source["address"])
        asked = None
        if first is not None and first.up and first.owner == source["upstairs_id"]:
            asked = (
                {block: first.memory.get(block) for block in blocks},
                (first.extents.generation[extent], first.extents.flush[extent]),
                first.extents.incomplete[extent],
            )

        def finish() -> tuple[OpStatus, int, str]:
            again = self.resolve(source["address"])
            if asked is None or again is None or not again.up:
                return OpStatus.REPAIR_SOURCE, 0, "the source is away"
            theirs, stamp, incomplete = asked
            if incomplete:
                return OpStatus.REPAIR_SOURCE, 0, "the source is incomplete"
            needed = {b for b in blocks if _context(theirs[b]) != _context(self.memory.get(b))}
            if needed & again.rotten:
                return OpStatus.SOURCE_DAMAGED, 0, f"damaged blocks {needed & again.rotten}"
            if rehearsal:
                return OpStatus.OK, 0, ""
            if extent not in self.since_begin:
                return OpStatus.BAD_REQUEST, 0, "no repair has begun"
            copied = 0
            for block in blocks:
                mine = self.memory.get(block)
                if _context(theirs[block]) == _context(mine):
                    continue
                if block in self.since_begin[extent]:
                    continue
                # What is streamed is what the source has by then, which may be newer.
                value = again.memory.get(block)
                if value is None:
                    self.memory.pop(block, None)
                else:
                    self.memory[block] = value
                    self.rotten.discard(block)
                    copied += len(value[1])
                self.changed.add(block)
            own = (self.extents.generation[extent], self.extents.flush[extent])
            best = max(own, stamp)
            self.extents.generation[extent], self.extents.flush[extent] = best
            self.copied.add(extent)
            return OpStatus.OK, copied, ""

        return finish


def _context(block: Block | None) -> bytes:
    return EMPTY if block is None else block[0]
