"""A disk for a hypervisor: listens on a unix socket, one connection at a time.

    export = VhostUserExport(backend, serial="disk-1", socket="/run/x/disk.sock")
    await export.start(); ...; await export.stop()

A hypervisor with `reconnect` comes back after this process was killed and hands over the memory in
which its requests are noted. What was acknowledged and not flushed is made again first, in order,
then what was in flight is begun again: the guest notices a pause and nothing else.
"""

from __future__ import annotations

import asyncio
import socket as sockets
from collections.abc import Callable, Sequence
from pathlib import Path

from stairlib.telemetry.logs import get_logger
from vmmd.block.attachment import Attachment, AttachmentCounters
from vmmd.block.backend import Backend, BlockOp, BlockStatus, Completion, Request
from vmmd.block.hypervisor_export import HypervisorExport
from vmmd.block.pieces import DISCARD_PIECE_BYTES, TRANSFER_PIECE_BYTES, ZEROES, split
from vmmd.hw.virtio.ring import Chain
from vmmd.hw.virtio_blk import identify
from vmmd.hw.virtio_blk.core import Change, Effects, NoJournal, VirtioBlkCore
from vmmd.vhost_user.core.journal import ChangeJournal
from vmmd.vhost_user.session import Session

_log = get_logger(__name__)

RINGS = 4
# What may be acknowledged and not flushed; half of it makes the device flush by itself.
JOURNAL_BYTES = 64 << 20
# Between tries to make changes again on a volume that refuses them.
REDO_SECONDS = 1.0
# Changes made again at one time.
REDO_REQUESTS = 64
_STOP_SECONDS = 5.0


class VhostUserExport(HypervisorExport):
    """See the module. Satisfies `session.Device`."""

    protocol = "vhost-user"

    def __init__(
        self, backend: Backend, *, serial: str, socket: Path | str, rings: int = RINGS
    ) -> None:
        super().__init__(socket)
        self.rings = rings
        self.journal_bytes = 0 if backend.info.read_only else JOURNAL_BYTES
        self._attachment = Attachment(backend)
        self._core = VirtioBlkCore(backend.info, serial)
        self.features = identify.features(backend.info, rings)
        self.config = identify.config(backend.info, rings)
        self._session: Session | None = None
        self._serving: asyncio.Task[None] | None = None
        self._redoing: asyncio.Task[None] | None = None
        self._requests: list[Request] = []
        self._done: dict[int, list[tuple[int, int]]] = {}
        self._working = False
        self._journal: ChangeJournal | None = None

    @property
    def counters(self) -> AttachmentCounters:
        """What it asked of its backend so far."""
        return self._attachment.counters

    async def stop(self) -> None:
        """Stops listening, hangs up, and waits a moment for what is in flight; then nothing of what
        was acknowledged is left to be made again."""
        self.stop_listening()
        journal = self._journal if self._redoing is None else None
        for task in (self._serving, self._redoing):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        idle = asyncio.Event()
        self._attachment.when_idle(idle.set)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await idle.wait()
        except TimeoutError:
            _log.warning("vhost-user requests left at stop", count=self._attachment.in_flight)
        if journal is not None and len(journal):
            await self._settle(journal)

    async def _settle(self, journal: ChangeJournal) -> None:
        """Has all changes durable: made again by a later process, they could undo what somebody
        else wrote meanwhile."""
        mark = journal.mark()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                if await self._ask(Request(BlockOp.FLUSH, None)) is BlockStatus.OK:
                    journal.let_go(mark)
        except TimeoutError:
            _log.warning("changes left in the journal at stop", socket=self.path)

    def begin(self, connection: sockets.socket) -> None:
        """As HypervisorExport."""
        self._session = Session(connection, self)
        self._serving = asyncio.create_task(self._serve(self._session), name="vhost-user")

    async def _serve(self, session: Session) -> None:
        try:
            await session.run()
        finally:
            session.close()
            self._session = None
            if self._redoing is not None:
                self._redoing.cancel()
            self._core.use_journal(NoJournal())
            self._journal = None
            self.ended()

    # --- the session's calls

    def take(self, ring: int, chains: Sequence[Chain]) -> None:
        """As Device.take."""
        self._carry_out(self._core.take(ring, chains))

    def forget(self, ring: int) -> None:
        """As Device.forget."""
        self._core.forget(ring)
        self._done.pop(ring, None)

    def use_journal(self, area: memoryview | None, ready: Callable[[], None]) -> None:
        """As Device.use_journal."""
        for ring in range(self.rings):
            self.forget(ring)
        self._journal = None
        if area is None:
            self._core.use_journal(NoJournal())
            ready()
            return
        journal = ChangeJournal(area, self._attachment.info.block_size)
        self._core.use_journal(journal)
        self._journal = journal
        if self._redoing is not None:
            self._redoing.cancel()
        self._redoing = asyncio.create_task(self._redo(journal, ready), name="vhost-user redo")

    # --- work

    def _carry_out(self, effects: Effects) -> None:
        """A backend may complete inside `submit`: then the inner call only adds to the lists."""
        self._requests += effects.requests
        for ring, head, written in effects.done:
            self._done.setdefault(ring, []).append((head, written))
        if self._working:
            return
        self._working = True
        try:
            while self._requests or self._done:
                done, self._done = self._done, {}
                if self._session is not None:
                    for ring, chains in done.items():
                        self._session.give_back(ring, chains)
                batch, self._requests = self._requests, []
                if batch:
                    self._attachment.submit(batch, self._completed)
        finally:
            self._working = False

    def _completed(self, completions: Sequence[Completion]) -> None:
        self._carry_out(self._core.complete(completions))

    # --- what an earlier process left

    async def _redo(self, journal: ChangeJournal, ready: Callable[[], None]) -> None:
        """Makes every change of the journal again, flushes, and lets go of them."""
        changes = journal.changes()
        if changes:
            _log.info("changes made again", socket=self.path, count=len(changes))
        mark = journal.mark()
        while not await self._redone(changes):
            _log.warning("the volume does not take changes made before a crash", socket=self.path)
            await asyncio.sleep(REDO_SECONDS)
        journal.let_go(mark)
        self._redoing = None
        ready()

    async def _redone(self, changes: Sequence[Change]) -> bool:
        """One try; whether all of it is durable. Each request is a batch of its own, so that the
        backend keeps their order."""
        requests = [request for change in changes for request in _requests(change, self._size)]
        for start in range(0, len(requests), REDO_REQUESTS):
            waiting = [self._ask(one) for one in requests[start : start + REDO_REQUESTS]]
            statuses = await asyncio.gather(*waiting)
            if any(status is not BlockStatus.OK for status in statuses):
                return False
        return await self._ask(Request(BlockOp.FLUSH, None)) is BlockStatus.OK

    @property
    def _size(self) -> int:
        return self._attachment.info.block_size

    def _ask(self, request: Request) -> asyncio.Future[BlockStatus]:
        answer: asyncio.Future[BlockStatus] = asyncio.get_running_loop().create_future()

        def done(completions: Sequence[Completion]) -> None:
            if not answer.done():
                answer.set_result(completions[0].status)

        self._attachment.submit([request], done)
        return answer


def _requests(change: Change, size: int) -> list[Request]:
    """A change in pieces."""
    discard = change.op is BlockOp.DISCARD
    step = (DISCARD_PIECE_BYTES if discard else TRANSFER_PIECE_BYTES) // size
    found = []
    for first, blocks in split(change.first, change.blocks, step):
        data: memoryview | None = None
        if not discard:
            start = (first - change.first) * size
            data = change.data[0][start : start + blocks * size] if change.data else None
            data = ZEROES[: blocks * size] if data is None else data
        found.append(Request(change.op, None, first, blocks, data))
    return found
