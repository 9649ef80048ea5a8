"""A volume under torment: its members, the upstairs in this process, a verified load, and the looks
that have to be good in the end.

The upstairs is the machine's own (`vmmd.upstairs.shell`), over real connections; losing it is to
close it without a word, as a killed machine does: nothing is flushed, nobody is told.
"""

from __future__ import annotations

import asyncio
import base64
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from stairlib.model.construction import RegionOptions, RegionSpec, Secret
from stairlib.model.errors import StairwellError
from stairlib.model.geometry import Geometry
from stairlib.telemetry.tracing import Tracing
from tests.torture.ledger import Ledger
from tests.torture.members import Members
from vmmd.block.backend import BlockOp, BlockStatus, Completion, Request
from vmmd.upstairs.core.slot_states import SlotMode, SlotState
from vmmd.upstairs.core.status import SlotStatus
from vmmd.upstairs.core.upstairs_states import UpstairsState
from vmmd.upstairs.shell.runner import RegionUpstairs

BLOCK_SIZE = 4096
DEADLINE = 90.0
_LOOK_SECONDS = 0.01


class TormentError(AssertionError):
    """The volume did not do what it promises."""


class Tormentor:
    """`seed` decides everything that is not left to the machine's mood."""

    def __init__(self, root: Path, seed: int, *, extents: int = 16, cipher: str = "") -> None:
        self.rng = random.Random(seed)
        self.geometry = Geometry(BLOCK_SIZE, 64, extents)
        self.members = Members(root, self.geometry, 4, cipher)
        self.ledger = Ledger(self.geometry.block_count, BLOCK_SIZE, seed)
        self.counts: Counter[str] = Counter()
        self.places = [0, 1, 2]
        self.two_after = 0.0
        self.upstairs: RegionUpstairs | None = None
        self._volume = uuid.UUID(int=self.rng.getrandbits(128), version=4)
        self._key = Secret(base64.b64encode(self.rng.randbytes(32)).decode()) if cipher else None
        self._generation = 0
        self._tracing = Tracing("torture", "test")
        self._tokens = 0
        self._busy: set[int] = set()
        self._flying: set[asyncio.Task[None]] = set()
        self.longest_wait = 0.0

    # ---- the volume

    @property
    def volume(self) -> RegionUpstairs:
        """The upstairs in use."""
        assert self.upstairs is not None
        return self.upstairs

    def slot(self, number: int) -> SlotStatus:
        """What the upstairs says of a slot."""
        return self.volume.status().slots[number]

    @property
    def spare(self) -> int:
        """The first daemon that is no member."""
        return next(n for n in range(len(self.members.programs)) if n not in self.places)

    def make(self, *, read_only: bool = False) -> RegionUpstairs:
        """A new upstairs of the next generation; the older one is none of its business."""
        self._generation += 1
        addresses = self.members.addresses
        targets = tuple(addresses[place] for place in self.places)
        options = RegionOptions(
            id=self._volume, targets=targets, read_only=read_only, key=self._key
        )
        spec = RegionSpec(self.geometry, options, self._generation)
        self.upstairs = RegionUpstairs(
            spec, tracing=self._tracing, activate_with_two_after=self.two_after
        )
        return self.upstairs

    async def activate(self, *, read_only: bool = False) -> None:
        """A new upstairs, active."""
        await self.make(read_only=read_only).activate(timeout_seconds=DEADLINE)

    async def vanish(self) -> None:
        """The machine is killed: what it had not flushed may be gone."""
        for task in self._flying:
            task.cancel()
        await asyncio.gather(*self._flying, return_exceptions=True)
        self._flying.clear()
        self._busy.clear()
        await self.volume.close()
        self.ledger.lost()
        self.counts["vanished"] += 1

    async def deactivate(self) -> None:
        """Flushed and let go."""
        marks = self.ledger.mark()
        await self.volume.deactivate()
        self.ledger.flushed(marks)
        await self.volume.close()

    async def until(self, true: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
        """Waits for something of the volume; TormentError when it does not come."""
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                raise TormentError(f"{what}: not after {seconds:g} s: {self.volume.status()}")
            await asyncio.sleep(_LOOK_SECONDS)

    def healthy(self) -> bool:
        """Active, and every slot is."""
        status = self.volume.status()
        return status.state is UpstairsState.ACTIVE and all(
            slot.state is SlotState.ACTIVE and not slot.departing_address for slot in status.slots
        )

    async def well(self) -> None:
        """Waits until all members serve."""
        await self.until(self.healthy, "all members are active")

    async def given_up(self, number: int) -> None:
        """Waits until a slot has to be filled."""

        def faulted() -> bool:
            return self.slot(number).mode is SlotMode.FAULTED

        await self.until(faulted, f"slot {number} is given up")

    # ---- the guest

    async def ask(
        self, op: BlockOp, first: int = 0, count: int = 0, data: bytes | None = None
    ) -> Completion:
        """One request, to its end."""
        self._tokens += 1
        answer: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()

        def done(completions: list[Completion]) -> None:
            one = completions[0]
            kept = one._replace(data=None if one.data is None else bytes(one.data))
            if not answer.done():
                answer.set_result(kept)

        began = time.monotonic()
        self.volume.submit([Request(op, self._tokens, first, count, data)], done)
        async with asyncio.timeout(DEADLINE):
            found = await answer
        self.longest_wait = max(self.longest_wait, time.monotonic() - began)
        self.counts["ios"] += 1
        return found

    async def flush(self) -> bool:
        """Whether it ended well; if not, what is not flushed may be gone."""
        marks = self.ledger.mark()
        ended = await self.ask(BlockOp.FLUSH)
        if ended.status is BlockStatus.OK:
            self.ledger.flushed(marks)
            return True
        self.counts["flushes failed"] += 1
        return False

    async def one(self, *, reads: float = 0.4, failing: bool = False) -> None:
        """One random request on blocks that no other is at. `failing`: errors are borne with."""
        rng = self.rng
        count = rng.choice((1, 1, 2, 8, 33, 64))
        first = rng.randrange(self.geometry.block_count - count + 1)
        blocks = set(range(first, first + count))
        if blocks & self._busy:
            await asyncio.sleep(0)
            return
        self._busy |= blocks
        try:
            if rng.random() < reads:
                await self._read(first, count, failing=failing)
            else:
                await self._change(first, count, failing=failing)
        finally:
            self._busy -= blocks

    async def _read(self, first: int, count: int, *, failing: bool) -> None:
        ended = await self.ask(BlockOp.READ, first, count)
        if ended.status is BlockStatus.OK:
            assert isinstance(ended.data, bytes)
            self.ledger.check(first, ended.data)
        else:
            self._refused(ended, failing=failing)

    async def _change(self, first: int, count: int, *, failing: bool) -> None:
        if self.rng.random() < 0.1:
            data, versions = None, [0] * count
        else:
            data, versions = self.ledger.data(first, count)
        self.ledger.began(first, versions)
        op = BlockOp.DISCARD if data is None else BlockOp.WRITE
        ended = await self.ask(op, first, count, data)
        if ended.status is BlockStatus.OK:
            self.ledger.changed(first, versions)
        else:
            self.ledger.failed(first, versions)
            self._refused(ended, failing=failing)

    def _refused(self, ended: Completion, *, failing: bool) -> None:
        self.counts["failed"] += 1
        if not failing:
            raise TormentError(f"a request ended {ended.status.name}: {self.volume.status()}")

    async def work(self, requests: int, *, depth: int = 8, flush_every: int = 40) -> None:
        """So many requests, several at a time; nothing may fail."""
        left = requests

        async def worker() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                if left % flush_every == 0 and not await self.flush():
                    raise TormentError("a flush failed though members serve")
                await self.one()

        await asyncio.gather(*(worker() for _ in range(depth)))

    @asynccontextmanager
    async def load(self, *, depth: int = 6, failing: bool = False) -> AsyncIterator[None]:
        """Requests without end meanwhile."""
        going = True

        async def worker(number: int) -> None:
            while going:
                flushes = number == 0 and self.rng.random() < 0.1
                if flushes and not await self.flush() and not failing:
                    raise TormentError("a flush failed though members serve")
                await self.one(failing=failing)

        self._flying = {asyncio.create_task(worker(number)) for number in range(depth)}
        tasks = set(self._flying)
        try:
            yield
        finally:
            going = False
            done = await asyncio.gather(*tasks, return_exceptions=True)
            self._flying -= tasks
        for outcome in done:
            if isinstance(outcome, BaseException) and not isinstance(
                outcome, asyncio.CancelledError
            ):
                raise outcome

    async def taken_over(self) -> None:
        """Another machine is about to take over under load: like `vanish`, but this one is not told
        and goes on as long as it can."""
        for task in self._flying:
            task.cancel()
        await asyncio.gather(*self._flying, return_exceptions=True)
        self._flying.clear()
        self._busy.clear()
        self.ledger.lost()
        self.counts["taken over"] += 1

    async def read_all(self) -> None:
        """The whole disk, against the ledger."""
        step = 64
        for first in range(0, self.geometry.block_count, step):
            ended = await self.ask(BlockOp.READ, first, step)
            if ended.status is not BlockStatus.OK:
                raise TormentError(f"a read ended {ended.status.name}: {self.volume.status()}")
            assert isinstance(ended.data, bytes)
            self.ledger.check(first, ended.data)

    # ---- the end of a loop

    async def good(self) -> None:
        """All members serve, hold the same and what they may; then the same of their files."""
        await self.well()
        await self.read_all()
        if not await self.flush():
            raise TormentError("the last flush failed")
        found = await self.volume.verify(read_data=True)
        if not found.equal or found.members_compared != 3 or found.bad_blocks:
            raise TormentError(f"the members differ: {found}")
        for slot in self.volume.status().slots:
            self.counts["repairs"] += slot.repairs_completed
            self.counts["repairs given up"] += slot.repairs_aborted
        await self.deactivate()
        await self.members.stop_all()
        dump = self.members.dump(self.places)
        if dump.returncode:
            raise TormentError(f"the files differ:\n{dump.stdout}{dump.stderr}")

    async def close(self) -> None:
        """Lets everything go."""
        for task in self._flying:
            task.cancel()
        await asyncio.gather(*self._flying, return_exceptions=True)
        try:
            if self.upstairs is not None:
                await self.upstairs.close()
        except StairwellError:
            pass
        self._tracing.shutdown()
        self.members.sweep()
