"""The guest: a load, and a memory of its own of what each block may hold.

It knows nothing of replicas. What it holds the volume to:

- a read returns what was written last; after a loss (the machine died, or every whole member was
  lost at once) one of the values written since the last flush that ended well, or that flush's; and
  what was seen once stays;
- a flush that ends well keeps for ever what was written before it was asked for;
- writes lost under a guest that went on are told by a flush that fails, before one ends well;
- every request ends.

Values are versions: a write is +n, a discard -n, n counting up over the whole run; 0 is the zeros
of the beginning. A block's data names its block and version.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from vmmd.block.backend import BlockOp, BlockStatus, Completion, Request

if TYPE_CHECKING:
    from tests.sim.world import World

_BLOCK_BYTES = 512
_ZEROS = bytes(_BLOCK_BYTES)
_STAMP = struct.Struct("<QQ")
_ENDED = (BlockStatus.OK, BlockStatus.FAILED, BlockStatus.ABORTED)


# Of a block when a flush was asked for: its versions, the place of the newest one among them, and
# whether it was that for sure.
Mark = tuple[list[int], int, bool]


def block_data(number: int, version: int) -> bytes:
    """What a block of 512 bytes holds that was written with that version."""
    return _STAMP.pack(number, version) * (_BLOCK_BYTES // _STAMP.size)


class Block:
    """`versions[floor:]` are the values it may have; with `exact` it has the last one."""

    __slots__ = ("exact", "floor", "settled", "unsure", "versions")

    def __init__(self, first: int) -> None:
        self.versions = [first]
        self.floor = 0
        self.exact = True
        # Not known for another reason than that members were lost: a flush that ends well after
        # that does not say that it has the last one.
        self.unsure = False
        # Read after a loss, and found to be older than what was written last before the loss.
        self.settled: tuple[int, int] | None = None

    def loosen(self, *, machine: bool) -> None:
        """What was not flushed may be gone, with the machine or with members."""
        unsure = machine or self.unsure or not self.exact
        # A new list: marks that flushes in flight have taken are of the old one.
        self.versions = self.versions[self.floor :]
        self.floor = 0
        self.exact = len(self.versions) == 1
        self.unsure = unsure and not self.exact
        self.settled = None

    def see(self, version: int) -> None:
        """It was read: it is that from now on."""
        last = self.versions[-1]
        self.settled = (version, last) if version != last and not self.unsure else None
        self.unsure = False
        self.versions = [version]
        self.floor = 0
        self.exact = True


class Guest:
    """The load of one seed. `machine` is where its requests go; it may be replaced by another."""

    def __init__(self, world: World) -> None:
        self.world = world
        geometry = world.geometry
        self._size = geometry.block_size
        self.blocks = [Block(world.base(number)) for number in range(geometry.block_count)]
        self._version = max(block.versions[0] for block in self.blocks)
        self._tokens = 0
        self._waiting: dict[object, Callable[[Completion], None]] = {}
        # Tokens of the requests that may end BUSY.
        self._may_be_busy: set[object] = set()
        self.counts = {
            "read": 0,
            "write": 0,
            "discard": 0,
            "flush": 0,
            "read_owned": 0,
            "write_unwritten": 0,
            "failed": 0,
        }
        # Flushes in flight: by token, the mark of each block that is to be kept.
        self._flushes: dict[object, list[Mark]] = {}
        self._lossy = False
        self._losses = 0
        chance = world.chance
        self._weights = {
            "write": chance.choice((4.0, 6.0, 2.0)),
            "read": chance.choice((3.0, 1.0, 5.0)),
            "discard": chance.choice((0.0, 0.5, 1.0)),
            "flush": chance.choice((0.3, 0.7, 1.2)),
        }
        # Of the reads, those that ask who owns the blocks; of the writes, those to unwritten
        # blocks.
        self._owned_share = world.variety.choice((0.0, 0.3))
        self._unwritten_share = world.variety.choice((0.0, 0.0, 0.3))
        if world.parent is not None:
            # Over a parent discards are not offered, and unwritten blocks are the scrub's.
            self._weights["discard"] = self._unwritten_share = 0.0

    @property
    def requests(self) -> int:
        """How many have ended or are under way."""
        return self._tokens

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return bool(self._waiting)

    def complete(self, completion: Completion) -> None:
        """From the machine."""
        done = self._waiting.pop(completion.token, None)
        if done is None:
            self.world.fail(f"request {completion.token} ended twice")
        elif completion.status not in _ENDED and completion.token not in self._may_be_busy:
            self.world.fail(f"request {completion.token} ended {completion.status.name}")
        else:
            if self.world.trace.detailed:
                text = f"request {completion.token} ends {completion.status.name}"
                self.world.trace.note("guest", text)
            done(completion)

    def _show(self, what: str) -> None:
        if self.world.trace.detailed:
            self.world.trace.note("guest", f"request {self._tokens} {what}")

    # ---- the load

    def batch(self) -> None:
        """Some requests at once; those of one batch do not overlap."""
        chance, weights = self.world.chance, self._weights
        total = sum(weights.values())
        taken: set[int] = set()
        requests: list[Request] = []
        for _ in range(chance.randrange(1, 9)):
            left = chance.random() * total
            kind = next((k for k, w in weights.items() if (left := left - w) < 0), "read")
            if kind == "flush":
                requests.append(self.flush())
                continue
            offset, length = self._place()
            blocks = set(range(offset, offset + length))
            if blocks & taken:
                continue
            taken |= blocks
            if kind == "read":
                owned = self.world.variety.random() < self._owned_share
                requests.append(self.read(offset, length, owned=owned))
            elif kind == "write" and self.world.variety.random() < self._unwritten_share:
                requests.append(self.fill(offset, length))
            else:
                requests.append(self.change(offset, length, discard=kind == "discard"))
        if requests:
            self.world.machine.submit(requests)

    def flushing(self, rounds: int) -> None:
        """So often a write and, once it has ended, a flush, and nothing else meanwhile: what a
        database does, and what has one copy be behind."""
        if rounds and self.world.machine.active:
            offset, length = self._place()
            write = self.change(offset, length)
            self._then(write, lambda: self._flushing_on(rounds))
            self.world.machine.submit([write])

    def _flushing_on(self, rounds: int) -> None:
        if self.world.machine.active:
            flush = self.flush()
            self._then(flush, lambda: self.flushing(rounds - 1))
            self.world.machine.submit([flush])

    def _then(self, request: Request, action: Callable[[], None]) -> None:
        """What to do when the request has ended and its end was looked at."""
        done = self._waiting[request.token]

        def both(completion: Completion) -> None:
            done(completion)
            action()

        self._waiting[request.token] = both

    def _place(self) -> tuple[int, int]:
        chance, count = self.world.chance, len(self.blocks)
        if chance.random() < 0.08:
            # Whole chunks, which take another way on the disk.
            length = min(8, count)
            return chance.randrange(0, count // length) * length, length
        length = chance.choice((1, 1, 1, 2, 3, 5))
        return chance.randrange(0, count - length + 1), length

    # ---- requests

    def _token(self, done: Callable[[Completion], None]) -> int:
        self._tokens += 1
        self._waiting[self._tokens] = done
        return self._tokens

    def change(self, offset: int, length: int, *, discard: bool = False) -> Request:
        """A write of new values, or a discard."""
        self._version += 1
        version = -self._version if discard else self._version
        blocks = range(offset, offset + length)
        kind = "discard" if discard else "write"

        def done(completion: Completion) -> None:
            self.counts[kind] += 1
            ok = completion.status is BlockStatus.OK
            if not ok:
                self.counts["failed"] += 1
            if completion.status is BlockStatus.FAILED:
                return
            for number in blocks:
                block = self.blocks[number]
                block.versions.append(version)
                # Of a request that was cut off nobody knows whether it happened.
                block.exact = ok
                block.unsure = not ok

        token = self._token(done)
        self._show(f"{kind}s version {version} to blocks {offset} to {blocks.stop - 1}")
        if discard:
            return Request(BlockOp.DISCARD, token, offset, length)
        return Request(BlockOp.WRITE, token, offset, length, self._data(blocks, version))

    def fill(self, offset: int, length: int) -> Request:
        """A write to those of the blocks that hold nothing; BUSY while a member is filled."""
        self._version += 1
        version = self._version
        blocks = range(offset, offset + length)

        def done(completion: Completion) -> None:
            self.counts["write_unwritten"] += 1
            self._may_be_busy.discard(completion.token)
            ok = completion.status is BlockStatus.OK
            if not ok:
                self.counts["failed"] += 1
            if completion.status in (BlockStatus.FAILED, BlockStatus.BUSY):
                return
            for number in blocks:
                block = self.blocks[number]
                held = block.versions[-1:] if block.exact else block.versions[block.floor :]
                if any(each <= 0 for each in held):
                    block.versions.append(version)
                    block.exact = block.exact and ok

        token = self._token(done)
        self._may_be_busy.add(token)
        self._show(f"writes version {version} where blocks {offset} to {blocks.stop - 1} are empty")
        return Request(BlockOp.WRITE_UNWRITTEN, token, offset, length, self._data(blocks, version))

    def _data(self, blocks: range, version: int) -> bytes:
        return b"".join(block_data(number, version) for number in blocks)

    def read(self, offset: int, length: int, *, owned: bool = False) -> Request:
        """A read that is checked against what may be there; with `owned` also who wrote it."""
        blocks = range(offset, offset + length)
        # What it may have now, and whatever is written until the read ends.
        now = [
            b.versions[-1:] if b.exact else b.versions[b.floor :]
            for b in self.blocks[offset : blocks.stop]
        ]
        newest = self._version
        losses = self._losses

        def done(completion: Completion) -> None:
            self.counts["read_owned" if owned else "read"] += 1
            if completion.status is not BlockStatus.OK:
                self.counts["failed"] += 1
                return
            data = completion.data
            assert data is not None
            if len(data) != length * self._size:
                self.world.fail(f"a read of {length} blocks returned {len(data)} bytes")
            view = memoryview(data)
            for index, number in enumerate(blocks):
                value = bytes(view[index * self._size : (index + 1) * self._size])
                self._check(number, value, now[index], newest, same=losses == self._losses)
                if completion.owned is not None and bool(completion.owned[index]) is not any(value):
                    self.world.fail(
                        f"block {number} is told to be "
                        f"{'written' if completion.owned[index] else 'unwritten'}, which it is not"
                    )
            if (completion.owned is not None) is not owned:
                self.world.fail("ownership is told to who did not ask, or not to who did")

        token = self._token(done)
        self._show(f"reads blocks {offset} to {blocks.stop - 1}{' and who owns them' * owned}")
        return Request(BlockOp.READ_OWNED if owned else BlockOp.READ, token, offset, length)

    def _check(
        self, number: int, value: bytes, before: list[int], newest: int, *, same: bool
    ) -> None:
        """`same`: nothing was lost since the read was asked for, when `newest` was the newest
        version and the block might have `before`."""
        block = self.blocks[number]
        version = self.decode(number, value)
        if same:
            allowed = [each for each in block.versions if each in before or abs(each) > newest]
        else:
            allowed = [*before, *block.versions[block.floor :]]
        found = self._match(version, allowed)
        if found is None:
            self.world.fail(
                f"block {number} reads as version {version}, which is none of {allowed}"
            )
        elif same and not block.exact and abs(block.versions[-1]) <= newest:
            block.see(found)

    def decode(self, number: int, value: bytes) -> int:
        """The version a block's data names; 0 for zeros. Data of no version at all is a failure."""
        if value == _ZEROS:
            return 0
        named, version = _STAMP.unpack_from(value)
        if named != number or value != block_data(number, version):
            self.world.fail(f"block {number} holds data that nobody wrote there")
        return int(version)

    def _match(self, version: int, allowed: list[int]) -> int | None:
        """The newest allowed value that looks like `version`."""
        for each in reversed(allowed):
            if (max(0, each)) == version:
                return each
        return None

    def flush(self) -> Request:
        """A flush; when it ends well, what was written so far is for ever."""
        # Of a block whose value is not known since a loss, a flush keeps whatever it is.
        marks = [(block.versions, len(block.versions) - 1, block.exact) for block in self.blocks]
        # Flushes that were asked for before a loss say nothing about what was lost.
        losses = self._losses

        def done(completion: Completion) -> None:
            self.counts["flush"] += 1
            self._flushes.pop(completion.token, None)
            if completion.status is not BlockStatus.OK:
                self.counts["failed"] += 1
                if completion.status is BlockStatus.FAILED:
                    self._told()
                return
            self._flushed(marks, strict=losses == self._losses and self._lossy)
            self.world.checks.flush_acknowledged(lambda number: self._kept(number, marks[number]))

        token = self._token(done)
        self._show("flushes")
        self._flushes[token] = marks
        return Request(BlockOp.FLUSH, token)

    def _flushed(self, marks: list[Mark], *, strict: bool) -> None:
        """`strict`: members were lost, and no flush has failed since. So nothing was lost."""
        for number, (block, mark) in enumerate(zip(self.blocks, marks, strict=True)):
            versions, at, known = mark
            if strict and block.settled is not None:
                seen, written = block.settled
                self.world.fail(
                    f"block {number} went back from version {written} to {seen}, and the next "
                    "flush ended well"
                )
            if block.versions is versions and (known or (strict and not block.unsure)):
                block.floor = max(block.floor, at)
        if strict:
            self._told()

    def _told(self) -> None:
        """The guest knows how it stands."""
        self._lossy = False
        for block in self.blocks:
            block.settled = None

    def promise(self) -> Callable[[], None]:
        """What a deactivation that ends well keeps; to be called then."""
        marks = [(block.versions, len(block.versions) - 1) for block in self.blocks]

        def kept() -> None:
            for block, (versions, at) in zip(self.blocks, marks, strict=True):
                if block.versions is versions and block.exact and len(versions) - 1 == at:
                    block.floor = at

        return kept

    # ---- losses

    def machine_lost(self) -> None:
        """The machine died: its requests will not end, and unflushed writes may be gone."""
        self._waiting.clear()
        self._may_be_busy.clear()
        self._flushes = {}
        self._lossy = False
        self._loosen(machine=True)

    def taken_over(self) -> Callable[[Completion], None]:
        """Another machine goes on with the volume while this one still runs: as a loss, but a flush
        that ends well on the old one is a promise too. Returns what takes the old one's answers."""
        promises = self._flushes
        self.machine_lost()

        def late(completion: Completion) -> None:
            marks = promises.pop(completion.token, None)
            if marks is None or completion.status is not BlockStatus.OK:
                return
            for number, (block, (versions, at, known)) in enumerate(
                zip(self.blocks, marks, strict=True)
            ):
                if not known:
                    continue
                mark = versions[at]
                if mark in block.versions:
                    block.floor = max(block.floor, block.versions.index(mark))
                elif block.exact and abs(block.versions[0]) < abs(mark):
                    self.world.fail(
                        f"a flush ended well on the machine that was taken over, but block {number}"
                        f" went back from version {mark} to {block.versions[0]}"
                    )

        return late

    def members_lost(self) -> None:
        """Every whole member is out of service: unflushed writes may be gone, and a flush has to
        say so."""
        self._lossy = True
        self._loosen(machine=False)

    def _loosen(self, *, machine: bool) -> None:
        self._losses += 1
        for block in self.blocks:
            block.loosen(machine=machine)

    def _kept(self, number: int, mark: Mark) -> list[int]:
        """What the block may be where a flush with that mark was made durable."""
        versions, at, known = mark
        block = self.blocks[number]
        if block.versions is versions and known:
            return versions[at:]
        return [*versions, *block.versions]

    def floor_versions(self, number: int) -> list[int]:
        """What the block may be on a disk that has all that was flushed, newest last."""
        block = self.blocks[number]
        return block.versions[block.floor :]
