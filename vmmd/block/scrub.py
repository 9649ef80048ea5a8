"""Fills an overlay from its parent, so that the parent can be let go.

From block 0 to the parent's end, piece by piece: what the front lacks is read from the parent and
given to the front as *unwritten* writes, which never replace what a guest wrote. At the end the
front is flushed. Whenever a flush failed meanwhile, anybody's, writes that were acknowledged may be
gone: everything is looked at once more. A block that the parent does not own is left unwritten
(reference vcr-and-upstairs.md §16 writes zeros for all).

Trouble with the front is waited for as long as it lasts, since the volume comes back or is stopped;
the parent is tried a few times. Progress never goes back, and reaches the end only after the flush.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stairlib.telemetry.logs import get_logger
from vmmd.block.backend import Backend, BlockOp, BlockStatus, Completion, Done, Request
from vmmd.block.overlay import Overlay
from vmmd.block.pieces import TRANSFER_PIECE_BYTES

log = get_logger(__name__)

RETRY_FIRST_SECONDS = 0.1
RETRY_MAX_SECONDS = 5.0
# As the reference: with the delays above, some three seconds.
PARENT_TRIES = 6
# What another try cannot mend.
_FINAL = frozenset({BlockStatus.READ_ONLY, BlockStatus.UNSUPPORTED, BlockStatus.OUT_OF_RANGE})


class ScrubState(enum.IntEnum):
    """Values are those of stairwell.vmmd.v1.ScrubState."""

    RUNNING = 1
    DONE = 2
    STOPPED = 3
    FAILED = 4


@dataclass(frozen=True, slots=True)
class ScrubStatus:
    """`path` is of the volume whose parent is copied; `reason` why it failed or what it waits
    for."""

    path: str
    state: ScrubState
    bytes_done: int
    bytes_total: int
    bytes_per_second_max: int
    elapsed_seconds: float
    reason: str


class _GaveUp(Exception):  # noqa: N818 - never leaves this module
    """What could not be done, in words."""


class Scrub:
    """One scrub. `run` does it; `changed` is called when the status is another one.

    `skip_zeros` leaves the parent's zero blocks unwritten too: right where nothing lies below the
    overlay that could show through.
    """

    def __init__(
        self,
        overlay: Overlay,
        path: str,
        *,
        bytes_per_second_max: int,
        skip_zeros: bool,
        changed: Callable[[], None],
    ) -> None:
        parent = overlay.parent
        assert parent is not None
        self._overlay = overlay
        self._parent: Backend = parent
        self._path = path
        self._rate = bytes_per_second_max
        self._skip_zeros = skip_zeros
        self._changed = changed
        self._block_size = overlay.info.block_size
        self._state = ScrubState.RUNNING
        self._reason = ""
        self._done = 0
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._ended: float | None = None
        self._rate_changed = asyncio.Event()

    def status(self) -> ScrubStatus:
        """The status now."""
        until = self._loop.time() if self._ended is None else self._ended
        return ScrubStatus(
            path=self._path,
            state=self._state,
            bytes_done=self._done * self._block_size,
            bytes_total=self._overlay.covered * self._block_size,
            bytes_per_second_max=self._rate,
            elapsed_seconds=until - self._began,
            reason=self._reason,
        )

    @property
    def state(self) -> ScrubState:
        """Where it is."""
        return self._state

    def set_rate(self, bytes_per_second_max: int) -> None:
        """Takes effect at once; zero means no limit."""
        self._rate = bytes_per_second_max
        self._rate_changed.set()
        self._changed()

    async def run(self) -> bool:
        """To the end: True when everything is in the front and durable. Cancel it to stop, then say
        `stopped`."""
        try:
            while not await self._pass():
                self._waits("a flush of the volume failed: what was copied is looked at again")
                await asyncio.sleep(RETRY_MAX_SECONDS)
        except _GaveUp as error:
            self._end(ScrubState.FAILED, str(error))
            return False
        except Exception as error:
            # Who follows it must not wait for ever.
            log.exception("scrub stumbled", path=self._path)
            self._end(ScrubState.FAILED, f"unexpectedly: {error!r}")
            return False
        self._done = self._overlay.covered
        return True

    def stopped(self) -> None:
        """`run` was cancelled; nothing when it had ended by itself."""
        if self._state is ScrubState.RUNNING:
            self._end(ScrubState.STOPPED, "stopped")

    def finished(self) -> None:
        """The parent was let go: the scrub is done."""
        self._end(ScrubState.DONE, "")

    def _end(self, state: ScrubState, reason: str) -> None:
        self._state, self._reason = state, reason
        self._ended = self._loop.time()
        log.info("scrub ended", path=self._path, state=state.name, reason=reason)
        self._changed()

    async def _pass(self) -> bool:
        """Copies what is missing and flushes it; False when a flush failed meanwhile."""
        overlay = self._overlay
        failed_before = overlay.failed_flushes
        step = max(1, TRANSFER_PIECE_BYTES // self._block_size)
        for first in range(0, overlay.covered, step):
            end = min(first + step, overlay.covered)
            began = self._loop.time()
            moved = await self._copy(first, end - first)
            if end < overlay.covered:
                self._done = max(self._done, end)
            self._changed()
            if moved:
                await self._pace(began, moved)
        [flush] = await _submitted(overlay.submit_flush, [Request(BlockOp.FLUSH, None)])
        return flush.status is BlockStatus.OK and overlay.failed_flushes == failed_before

    async def _copy(self, first: int, count: int) -> int:
        """Bytes read from the parent for the piece."""
        [front] = await self._front(
            [Request(BlockOp.READ_OWNED, None, first, count)], "a read of the volume"
        )
        assert front.owned is not None
        if front.owned.all():
            return 0
        missing = np.flatnonzero(~front.owned)
        first, count = first + int(missing[0]), int(missing[-1] - missing[0]) + 1
        wanted = ~front.owned[missing[0] : missing[-1] + 1]
        parent = await self._read_parent(first, count)
        assert parent.owned is not None
        assert parent.data is not None
        wanted &= parent.owned
        if self._skip_zeros:
            rows = np.frombuffer(parent.data, dtype=np.uint8).reshape(count, self._block_size)
            wanted &= rows.any(axis=1)
        data = memoryview(parent.data)
        writes = [
            Request(
                BlockOp.WRITE_UNWRITTEN,
                None,
                first + begin,
                end - begin,
                data[begin * self._block_size : end * self._block_size],
            )
            for begin, end in _runs(wanted)
        ]
        if writes:
            await self._front(writes, "a write to the volume")
        return count * self._block_size

    async def _read_parent(self, first: int, count: int) -> Completion:
        delay = RETRY_FIRST_SECONDS
        for attempt in range(PARENT_TRIES):
            request = Request(BlockOp.READ_OWNED, None, first, count)
            [read] = await _submitted(self._parent.submit, [request])
            if read.status is BlockStatus.OK:
                return read
            if read.status in _FINAL or attempt + 1 == PARENT_TRIES:
                break
            await asyncio.sleep(delay)
            delay = min(2 * delay, RETRY_MAX_SECONDS)
        raise _GaveUp(
            f"the parent cannot be read at block {first}: {read.status.name}; see the state of its "
            "members or source"
        )

    async def _front(self, requests: list[Request], what: str) -> list[Completion]:
        """Until all have succeeded."""
        delay = RETRY_FIRST_SECONDS
        while True:
            found = await _submitted(self._overlay.front.submit, requests)
            bad = [n for n, c in enumerate(found) if c.status is not BlockStatus.OK]
            if not bad:
                self._waits("")
                return found
            worst = next((found[n] for n in bad if found[n].status in _FINAL), found[bad[0]])
            if worst.status in _FINAL:
                raise _GaveUp(f"{what} was refused: {worst.status.name}")
            requests = [requests[n] for n in bad]
            self._waits(f"{what} ended {worst.status.name}; tried again until it succeeds")
            await asyncio.sleep(delay)
            delay = min(2 * delay, RETRY_MAX_SECONDS)

    def _waits(self, reason: str) -> None:
        if reason != self._reason:
            self._reason = reason
            self._changed()

    async def _pace(self, began: float, moved: int) -> None:
        """Waits as long as the rate asks for since `began`, also when it is changed meanwhile."""
        while self._rate:
            left = began + moved / self._rate - self._loop.time()
            if left <= 0:
                break
            self._rate_changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._rate_changed.wait()
            except TimeoutError:
                break
        # Guest requests get their turn in any case.
        await asyncio.sleep(0)


def _runs(flags: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(begin, end) of each run of true values."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
    pairs: list[list[int]] = edges.reshape(-1, 2).tolist()
    return [(begin, end) for begin, end in pairs]


async def _submitted(
    submit: Callable[[Sequence[Request], Done], None], requests: Sequence[Request]
) -> list[Completion]:
    """The completions in the order of the requests, with data of their own."""
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    found: dict[int, Completion] = {}

    def done(completions: Sequence[Completion]) -> None:
        for completion in completions:
            index = completion.token
            assert isinstance(index, int)
            data = completion.data
            found[index] = completion._replace(data=None if data is None else bytes(data))
        if len(found) == len(requests) and not answer.done():
            answer.set_result(None)

    numbered = [request._replace(token=index) for index, request in enumerate(requests)]
    submit(numbered, done)
    await answer
    return [found[index] for index in range(len(requests))]
