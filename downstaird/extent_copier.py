"""The target's side of a repair: copies extents from another downstairs into the region, while it
is written to.

One task per extent, a few of them at a time. Each asks the source for the extent's contexts,
compares them with its own, and streams only what differs; every block is checked against its
context, then merged by the engine, which leaves alone what the session wrote itself meanwhile.
Invariants: steps are small, with rests while the guest is at work, so that the loop stays with the
guest's I/O; there is no total
deadline, only one for silence; nothing is merged after the session ended."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, Protocol

import grpc
from opentelemetry.trace import Span

from downstaird.core.engine import Engine
from downstaird.core.rate_limit import (
    Rests,
    Stride,
    TokenBucket,
    allowed,
    step_bytes,
    timer_seconds,
)
from downstaird.core.repair_plan import (
    CHUNK_BYTES_MAX,
    STEP_BYTES,
    WINDOW_BLOCKS,
    CopySource,
    Run,
    checksum,
    compare,
    contexts_of,
    first_steps,
    spared,
    steps,
)
from downstaird.core.session_counters import Counters
from downstaird.core.session_effects import CopyExtent
from downstaird.repair_intake import IDLE_SECONDS, Incoming, Intake, Intakes
from downstaird.repair_threads import RepairThreads
from stairlib.model.context import (
    CONTEXT_BYTES,
    ContextArray,
    context_array,
    empty_contexts,
    mismatches,
)
from stairlib.model.errors import DataError, StairwellError, StateError, UnavailableError
from stairlib.model.geometry import Geometry
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.rpc.tls import TlsFiles, reach
from stairlib.telemetry.logs import get_logger
from stairlib.telemetry.tracing import Tracing, context_from
from stairlib.wire.repair_chunk import Chunk, ChunkError, decode_chunk
from stairwell.downstairs.v1 import repair_service_pb2 as repair_pb
from stairwell.downstairs.v1 import repair_service_pb2_grpc as repair_grpc

_log = get_logger(__name__)

# More than an upstairs asks for unless it is told to; each holds one chunk.
COPIES_AT_A_TIME = 16
# With a limit, no more is asked of the source at a time than all copies may take in so many
# seconds: what it has sent was read, and waits here for its turn.
ASK_SECONDS = 1.0
# Sources of one session: as many members as a set can have, with room for a replacement.
CHANNELS_MAX = 8


class CopyHost(Protocol):
    """Whose region is filled."""

    engine: Engine
    tracing: Tracing
    tls: TlsFiles | None
    repair_threads: RepairThreads

    def keep(self, task: asyncio.Task[None]) -> None:
        """Holds on to a task nobody waits for until it is done."""
        ...


class CopyAsker(Protocol):
    """Who asks for copies, and is told of each exactly once."""

    counters: Counters

    def copy_done(self, effect: CopyExtent, stamp: tuple[int, int], copied: int) -> None:
        """The extent is as the source's was; `stamp` is what the source had before."""
        ...

    def copy_failed(self, effect: CopyExtent, error: StairwellError) -> None:
        """The copy was given up."""
        ...


async def open_source(address: str, tracing: Tracing, files: TlsFiles | None) -> grpc.aio.Channel:
    """A channel to a daemon that is copied from. To it this one is a client like any other, with
    its own certificate."""
    peer = await reach(address, files) if files is not None else None
    return open_channel(address, tracing=tracing, tls=peer)


class ExtentCopier:
    """The copies of one session, or of a clone. `changed` is called after it was told an
    outcome."""

    def __init__(self, host: CopyHost, session: CopyAsker, changed: Callable[[], None]) -> None:
        self._host = host
        self._engine = host.engine
        self._session = session
        self._changed = changed
        self._slots = asyncio.Semaphore(COPIES_AT_A_TIME)
        self._numbers = itertools.count()
        self._running: set[int] = set()
        self._running_max = 0
        self._bucket = TokenBucket()
        # Who is in it is the next to move a chunk: the copies take turns, in the order they came.
        # What was counted does not queue behind who still waits for the limit: that may be long.
        self._gate = asyncio.Lock()
        self._resting = asyncio.Lock()
        self._waiting: set[asyncio.Future[None]] = set()
        self._rests = Rests()
        self._stride = Stride(STEP_BYTES, CHUNK_BYTES_MAX, session.counters.guest_frames)
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._intakes = Intakes()
        self._dialling = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        geometry = host.engine.definition.geometry
        self._block_size = geometry.block_size
        self._blocks_per_extent = geometry.blocks_per_extent

    def set_limits(self, bytes_per_second: int, copies: int = 0) -> None:
        """Bounds all copies together, and how many go on at once, from the next chunk on; 0 is no
        bound."""
        if (bytes_per_second, copies) != (self._bucket.bytes_per_second, self._running_max):
            self._bucket.set_rate(bytes_per_second, self._loop.time())
            self._running_max = copies
            self._tell()

    def start(self, effect: CopyExtent) -> None:
        """Copies the extent in a task. The session bounds how many there are."""
        task = self._loop.create_task(self._copy(effect))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """The session has ended: gives up every copy."""
        for task in self._tasks:
            task.cancel()
        self._intakes.close()
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            closing = self._loop.create_task(channel.close())
            self._host.keep(closing)

    async def _copy(self, effect: CopyExtent) -> None:
        try:
            async with self._slots:
                stamp, copied = await self._numbered(effect)
        except StairwellError as error:
            _log.warning(
                "extent not copied",
                extent=effect.extent,
                source=effect.source.address,
                reason=error.reason,
                error=error.message,
            )
            self._session.copy_failed(effect, error)
        except Exception as error:  # noqa: BLE001 - the session must be answered whatever happened
            _log.exception("extent copy failed unexpectedly", extent=effect.extent)
            problem = DataError(f"copying extent {effect.extent} failed: {error}")
            self._session.copy_failed(effect, problem)
        else:
            self._session.copy_done(effect, stamp, copied)
        self._changed()

    async def _numbered(self, effect: CopyExtent) -> tuple[tuple[int, int], int]:
        number = next(self._numbers)
        self._running.add(number)
        try:
            return await self._traced(effect, number)
        finally:
            self._running.discard(number)
            self._tell()

    async def _traced(self, effect: CopyExtent, number: int) -> tuple[tuple[int, int], int]:
        tracer = self._host.tracing.tracer
        with tracer.start_as_current_span(
            "repair.copy_extent",
            context=context_from(effect.source.traceparent),
            attributes={"extent": effect.extent, "source": effect.source.address},
        ) as span:
            return await self._transfer(effect, number, span)

    async def _transfer(
        self, effect: CopyExtent, number: int, span: Span
    ) -> tuple[tuple[int, int], int]:
        """Makes the extent as the source's. The stamp the source had before, and the bytes
        merged."""
        extent, source = effect.extent, effect.source
        stub = repair_grpc.RepairServiceStub(await self._channel(source))
        stamp: tuple[int, int] | None = None
        received = copied = 0
        for first in range(0, self._blocks_per_extent, WINDOW_BLOCKS):
            count = min(WINDOW_BLOCKS, self._blocks_per_extent - first)
            answer = await self._source_contexts(stub, source, extent, first, count)
            if stamp is None:
                self._check_geometry(source, answer)
                stamp = (answer.generation, answer.flush_number)
            if answer.equal:
                break
            theirs = contexts_of(
                ((run.first_block - first, run.contexts) for run in answer.runs), count
            )
            base = extent * self._blocks_per_extent + first
            difference = compare(self._engine.contexts(base, count), theirs, self._block_size)
            if not effect.rehearsal:
                await self._clear(base, difference.clear)
            if difference.fetch:
                wanted = [Run(first + run.first, run.count) for run in difference.fetch]
                cut = steps(wanted, self._block_size)
                while asked := first_steps(cut, self._ask_bytes(), self._block_size):
                    window = await self._fetch(effect, number, asked)
                    received += window[0]
                    copied += window[1]
        span.set_attribute("bytes", received)
        span.set_attribute("bytes_merged", copied)
        assert stamp is not None
        return stamp, copied

    async def _source_contexts(
        self,
        stub: repair_grpc.RepairServiceAsyncStub,
        source: CopySource,
        extent: int,
        first: int,
        count: int,
    ) -> repair_pb.GetExtentContextsResponse:
        request = repair_pb.GetExtentContextsRequest(
            upstairs_id=str(source.upstairs_id),
            generation=source.generation,
            extent=extent,
            first_block=first,
            block_count=count,
        )
        if count == self._blocks_per_extent:
            # Most extents of a member that was away are equal: then no contexts travel. What the
            # session writes meanwhile reaches both.
            request.digest = self._engine.digest(extent)
        try:
            with translated(f"repair source {source.address}"):
                return await stub.GetExtentContexts(request, timeout=IDLE_SECONDS)
        except StairwellError as error:
            raise _source_failed(source, error) from error

    def _check_geometry(
        self, source: CopySource, answer: repair_pb.GetExtentContextsResponse
    ) -> None:
        """The upstairs has compared it; a source that it was not told of may be another one."""
        wanted = self._engine.definition.geometry
        found = Geometry(answer.block_size, answer.blocks_per_extent, answer.extent_count)
        if answer.block_size and found != wanted:
            raise _source_failed(
                source,
                StateError(
                    f"it has {found.describe()}, this region has {wanted.describe()}: repair from "
                    "a replica of the same set",
                    reason="GEOMETRY_MISMATCH",
                ),
            )

    async def _clear(self, base: int, unwritten: list[Run]) -> None:
        """Makes blocks that the source never wrote never-written here."""
        for run in steps(unwritten, self._block_size):
            self._engine.repair_merge(
                base + run.first, empty_contexts(run.count), bytes(run.count * self._block_size)
            )
            await asyncio.sleep(0)

    async def _fetch(
        self, effect: CopyExtent, number: int, wanted: list[Run], *, in_messages: bool = False
    ) -> tuple[int, int]:
        """Streams and merges blocks. Bytes received, and bytes the engine took."""
        channel = await self._channel(effect.source)
        intake = None if in_messages else await self._intakes.take(effect.source, channel)
        request = repair_pb.StreamExtentRequest(
            upstairs_id=str(effect.source.upstairs_id),
            generation=effect.source.generation,
            extent=effect.extent,
            ranges=[
                repair_pb.BlockRange(first_block=run.first, block_count=run.count) for run in wanted
            ],
            block_token=intake.token if intake is not None else b"",
        )
        rate = self._bucket.bytes_per_second
        if not rate:
            request.chunk_bytes = CHUNK_BYTES_MAX
        elif intake is not None:
            request.chunk_bytes = step_bytes(rate, STEP_BYTES, CHUNK_BYTES_MAX)
        # Not by the stub: what it makes of a message is copied several times.
        stream = channel.unary_stream(
            "/stairwell.downstairs.v1.RepairService/StreamExtent",
            request_serializer=repair_pb.StreamExtentRequest.SerializeToString,
            response_deserializer=bytes,
        )
        call = stream(request)
        try:
            with self._intakes.lent(effect.source, intake):
                received, copied = await self._streamed(effect, number, call, intake)
                if received != sum(run.count for run in wanted) * self._block_size:
                    what = "did not send all that was asked for"
                    raise _damaged(effect.source, effect.extent, what)
            return received, copied
        finally:
            call.cancel()

    async def _streamed(
        self,
        effect: CopyExtent,
        number: int,
        call: grpc.aio.UnaryStreamCall[Any, bytes],
        intake: Intake | None,
    ) -> tuple[int, int]:
        """Takes what the call brings, with what comes beside it."""
        source = effect.source
        received = copied = 0
        try:
            while (raw := await self._next_chunk(call, source)) is not None:
                chunk, contexts = self._formed(raw, effect.extent, source, apart=intake is not None)
                blocks = Incoming(chunk, intake)
                received += len(blocks.data)
                copied += await self._taken(effect, number, blocks, contexts)
        except ConnectionError as error:
            # Where the source has ended the connection, the call says why.
            await self._next_chunk(call, source)
            raise _source_failed(source, UnavailableError(str(error))) from error
        return received, copied

    async def _taken(
        self, effect: CopyExtent, number: int, blocks: Incoming, contexts: ContextArray
    ) -> int:
        """Gives what is good of one chunk to the engine, in small steps while the guest is at work
        or the rate is limited. Bytes that it took; a rehearsal's chunk is only checked."""
        threads, size = self._host.repair_threads, self._block_size
        base = effect.extent * self._blocks_per_extent
        encrypted = self._engine.definition.encrypted
        data, first = blocks.data, blocks.first_block

        def check() -> list[int] | None:
            return (
                mismatches(data, contexts, size, encrypted=encrypted) if blocks.arrive() else None
            )

        whole = len(data) <= self._step_bytes(apart=blocks.apart) and not effect.rehearsal
        outcome = None
        if whole:
            # All at once: one thread checks it and writes it.
            await self._turn(number, len(data))
            began = self._loop.time()
            outcome = await threads.merge_checked(base + first, contexts, data, check)
            if outcome is not None and outcome[0] == []:
                self._moved(len(data), began)
                return outcome[1]
        bad = outcome[0] if outcome is not None else await threads.call(check)
        if bad and blocks.apart:
            # Damaged, or changed while they were sent: a message has both of one moment.
            again = [Run(first, len(contexts))]
            return (await self._fetch(effect, number, again, in_messages=True))[1]
        good = self._good(effect, first, contexts, bad)
        if effect.rehearsal:
            await self._turn(number, len(data))
            return 0
        copied = 0
        for run in steps((Run(first + each.first, each.count) for each in good), size):
            done = run.first - first
            part = memoryview(data)[done * size : (done + run.count) * size]
            # Its bytes were counted once.
            await self._turn(number, 0 if whole else len(part))
            began = self._loop.time()
            copied += await threads.merge(base + run.first, contexts[done : done + run.count], part)
            self._moved(len(part), began)
        return copied

    def _moved(self, count: int, began: float) -> None:
        counters, now = self._session.counters, self._loop.time()
        counters.moved_bytes += count
        self._rests.worked(now - began, counters.guest_frames, now)

    def _step_bytes(self, *, apart: bool) -> int:
        """How many bytes may be taken at once, of what came `apart` or in a message."""
        rate = self._bucket.bytes_per_second
        if not apart:
            step = self._stride.bytes(self._session.counters.guest_frames)
            return STEP_BYTES if rate else step
        # Twice: the limit may have gone down a little since it was asked for.
        return 2 * step_bytes(rate, STEP_BYTES, CHUNK_BYTES_MAX) if rate else CHUNK_BYTES_MAX

    async def _next_chunk(
        self,
        call: grpc.aio.UnaryStreamCall[Any, bytes],
        source: CopySource,
    ) -> bytes | None:
        try:
            with translated(f"repair source {source.address}"):
                async with asyncio.timeout(IDLE_SECONDS):
                    chunk = await call.read()
        except TimeoutError:
            silent = UnavailableError(f"it sent nothing for {IDLE_SECONDS:.0f} seconds")
            raise _source_failed(source, silent) from None
        except StairwellError as error:
            raise _source_failed(source, error) from error
        return chunk if isinstance(chunk, bytes) else None

    def _formed(
        self, message: bytes, extent: int, source: CopySource, *, apart: bool
    ) -> tuple[Chunk, ContextArray]:
        """A chunk whose blocks have yet to be checked, and its contexts. `apart`: they may come
        beside it. DataError for what is none."""
        try:
            chunk = decode_chunk(message)
        except ChunkError as error:
            raise _damaged(source, extent, f"sent what is no chunk: {error}") from None
        raw, count = chunk.contexts, len(chunk.contexts) // CONTEXT_BYTES
        length = chunk.sent_bytes if apart and chunk.sent_bytes else len(chunk.data)
        if (
            not count
            or len(raw) % CONTEXT_BYTES
            or length != count * self._block_size
            or length > max(CHUNK_BYTES_MAX, self._block_size)
            or chunk.first_block + count > self._blocks_per_extent
        ):
            raise _damaged(source, extent, "sent a chunk that does not fit")
        if chunk.sent_bytes and (chunk.data or checksum(raw, ()) != chunk.checksum):
            raise _damaged(source, extent, "sent contexts that were damaged on their way")
        # A copy: in the message they lie where numpy is slow.
        return chunk, context_array(raw).copy()

    def _good(
        self, effect: CopyExtent, first: int, contexts: ContextArray, bad: list[int] | None
    ) -> list[Run]:
        """Which blocks of a chunk to take, when these are bad; None says that it came damaged.
        DataError for that, and SOURCE_DAMAGED when a block is bad that is needed here."""
        extent, source = effect.extent, effect.source
        if bad is None:
            raise _damaged(source, extent, "sent a chunk that was damaged on its way")
        count = len(contexts)
        if not bad:
            return [Run(0, count)]
        base = extent * self._blocks_per_extent
        good = spared(bad, contexts, self._engine.contexts(base + first, count))
        if good is None:
            what = f"has a damaged block {first + bad[0]} in the extent"
            raise _damaged(source, extent, what, "SOURCE_DAMAGED")
        return good

    def _ask_bytes(self) -> int:
        """How much a copy is to ask its source for now."""
        rate = self._bucket.bytes_per_second
        if not rate:
            return self._blocks_per_extent * self._block_size
        return int(rate * ASK_SECONDS / max(1, len(self._running)))

    async def _turn(self, number: int, count: int) -> None:
        """Waits until this copy may take `count` bytes more, and counts them; 0 when they were
        counted before."""
        while number not in allowed(self._running, self._running_max):
            await self._told(None)
        if count:
            async with self._gate:
                while (wait := self._bucket.wait(self._loop.time())) > 0:
                    await self._told(wait)
                self._bucket.take(count, self._loop.time())
        async with self._resting:
            while (wait := self._rests.wait(self._loop.time())) > 0:
                await self._told(wait)

    async def _told(self, seconds: float | None) -> None:
        """Waits so long, or until the limits or the copies that run are others."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiting.add(waiter)
        timer = None
        if seconds is not None:
            timer = self._loop.call_later(timer_seconds(seconds), _wake, waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)
            if timer is not None:
                timer.cancel()

    def _tell(self) -> None:
        for waiter in self._waiting:
            _wake(waiter)

    async def _channel(self, source: CopySource) -> grpc.aio.Channel:
        """One channel to each source, for the whole session."""
        async with self._dialling:
            address = source.address
            channel = self._channels.get(address)
            if channel is not None:
                return channel
            if len(self._channels) >= CHANNELS_MAX:
                raise DataError(
                    f"copies from more than {CHANNELS_MAX} sources in one session",
                    reason="REPAIR_SOURCE",
                )
            try:
                channel = await open_source(address, self._host.tracing, self._host.tls)
            except StairwellError as error:
                raise _source_failed(source, error) from error
            self._channels[address] = channel
            return channel


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _source_failed(source: CopySource, error: StairwellError) -> StairwellError:
    if isinstance(error, DataError):
        # It says so itself: its disk does not give the block, or the extent is damaged.
        return DataError(
            f"repair source {source.address}: {error.message}",
            reason="SOURCE_DAMAGED",
            source=source.address,
            cause=error.reason,
        )
    return UnavailableError(
        f"repair source {source.address}: {error.message}",
        reason="REPAIR_SOURCE",
        source=source.address,
        cause=error.reason,
    )


def _damaged(
    source: CopySource, extent: int, what: str, reason: str = "REPAIR_SOURCE"
) -> DataError:
    return DataError(
        f"repair source {source.address} {what} (extent {extent})",
        reason=reason,
        source=source.address,
    )
