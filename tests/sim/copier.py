"""The target's side of a repair in simulated time, and the source's answers.

As `extent_copier.py` and `repair_service.py`: a few extents at a time; contexts first, then the
blocks that differ, each run read at the source at another moment, checked, and merged by the engine
while the session goes on writing. Half of the copies take their blocks as by a connection beside
the messages: the bytes are read later than their contexts, and those that changed meanwhile are
asked for again. A failure of the source is REPAIR_SOURCE, or SOURCE_DAMAGED.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from downstaird.core.rate_limit import TokenBucket
from downstaird.core.repair_plan import (
    CopySource,
    Run,
    compare,
    contexts_of,
    spared,
    steps,
    stored_runs,
)
from downstaird.core.repair_source import check_caller, check_extent
from downstaird.core.session import Session
from downstaird.core.session_effects import CopyExtent
from downstaird.core.verification import joined
from stairlib.model.context import ContextArray, empty_contexts, mismatches
from stairlib.model.errors import DataError, StairwellError, UnavailableError

if TYPE_CHECKING:
    from downstaird.core.engine import Engine, ReadWork
    from tests.sim.daemon import Daemon
    from tests.sim.serving import Host

# As extent_copier.py has them; importing it here would tie the simulator to gRPC.
COPIES_AT_A_TIME = 4
IDLE_SECONDS = 15.0
RATE_LOOK_SECONDS = 0.25
# Of the copies that take their blocks beside the messages.
APART = 0.5
# Between two steps of a copy the loop does other things.
STEP_SECONDS = (0.0, 0.001)


class Contexts(NamedTuple):
    """A source's answer to the first question."""

    stamp: tuple[int, int]
    runs: list[tuple[int, bytes]]


class Announced(NamedTuple):
    """A source's answer to the second one where the blocks come on a connection of their own: what
    will be sent, and by which process. None: they must come in a message."""

    engine: Engine
    work: ReadWork | None


class Chunk(NamedTuple):
    """A source's answer to the second one in a message: a run of blocks."""

    first: int
    contexts: ContextArray
    data: bytes


def source_contexts(daemon: Daemon, source: CopySource, extent: int) -> Contexts:
    """Contexts and stamp of one moment; StairwellError when the daemon refuses or is not there."""
    engine = _engine(daemon, source)
    states = engine.extent_states()
    check_extent(states, extent)
    blocks = engine.definition.geometry.blocks_per_extent
    contexts = engine.contexts(extent * blocks, blocks)
    stamp = (int(states.generations[extent]), int(states.flushes[extent]))
    return Contexts(stamp, stored_runs(contexts))


def source_chunk(daemon: Daemon, source: CopySource, extent: int, run: Run) -> Chunk:
    """Blocks and contexts of one moment."""
    engine = _engine(daemon, source)
    check_extent(engine.extent_states(), extent)
    base = extent * engine.definition.geometry.blocks_per_extent
    contexts, buffers = engine.read(base + run.first, run.count)
    return Chunk(run.first, contexts.copy(), bytes(joined(buffers)))


def source_announces(daemon: Daemon, source: CopySource, extent: int, run: Run) -> Announced:
    """Contexts of one moment; the bytes leave later."""
    engine = _engine(daemon, source)
    check_extent(engine.extent_states(), extent)
    base = extent * engine.definition.geometry.blocks_per_extent
    return Announced(engine, engine.begin_read(base + run.first, run.count))


def source_sends(
    daemon: Daemon, _source: CopySource, _extent: int, run: Run, announced: Announced
) -> Chunk:
    """The bytes as they are by now, beside the contexts of before. Who is asked is not asked again:
    a connection ends with its process."""
    work, host = announced.work, daemon.service
    assert work is not None
    if host is None or host.engine is not announced.engine:
        raise UnavailableError(f"{daemon.address} closed the connection for its blocks")
    return Chunk(run.first, work.contexts, bytes(joined(work.run())))


def _engine(daemon: Daemon, source: CopySource):
    host = daemon.service
    if host is None:
        raise UnavailableError(f"{daemon.address} refuses connections")
    check_caller(host.engine.ownership, source.upstairs_id, source.generation, read_only=False)
    return host.engine


class Copier:
    """The copies of one session."""

    def __init__(self, host: Host, session: Session, changed) -> None:
        self.host = host
        self.session = session
        self._changed = changed
        self.bucket = TokenBucket()
        self.closed = False
        # Stands still for good, as by a mistake in it: nothing is answered any more.
        self.stalled = False
        self._waiting: deque[CopyExtent] = deque()
        self._running = 0

    def set_rate(self, bytes_per_second: int) -> None:
        """Bounds all copies together; 0 is no bound."""
        self.bucket.set_rate(bytes_per_second, self.host.daemon.world.schedule.now)

    def start(self, effect: CopyExtent) -> None:
        """Copies the extent, now or when one before it has ended."""
        self._waiting.append(effect)
        self._next()

    def _next(self) -> None:
        while self._waiting and self._running < COPIES_AT_A_TIME and not self.stalled:
            self._running += 1
            _Copy(self, self._waiting.popleft()).ask()

    def close(self) -> None:
        """The session has ended: gives up every copy."""
        self.closed = True
        self._waiting.clear()

    def done(self, effect: CopyExtent, stamp: tuple[int, int], copied: int) -> None:
        """The extent is as the source's was."""
        self._running -= 1
        daemon = self.host.daemon
        daemon.world.checks.copied(daemon, self.host.engine, effect.extent)
        self.session.copy_done(effect, stamp, copied)
        self._next()
        self._changed()

    def failed(self, effect: CopyExtent, error: StairwellError) -> None:
        """The copy was given up."""
        self._running -= 1
        self.host.daemon.note(f"extent {effect.extent} not copied: {error.message}")
        self.session.copy_failed(effect, error)
        self._next()
        self._changed()


class _Copy:
    """One extent on its way."""

    def __init__(self, copier: Copier, effect: CopyExtent) -> None:
        self._copier = copier
        self._effect = effect
        self._host = copier.host
        definition = self._host.engine.definition
        self._size = definition.geometry.block_size
        self._count = definition.geometry.blocks_per_extent
        self._encrypted = definition.encrypted
        self._base = effect.extent * self._count
        self._stamp = (0, 0)
        self._clear: deque[Run] = deque()
        self._fetch: deque[Run] = deque()
        self._copied = 0
        # By a connection beside the messages, or as from a source that knows none.
        self._apart = self._host.daemon.world.variety.random() < APART

    def ask(self) -> None:
        """Begins: what has the source?"""
        self._call(source_contexts, (), self._compare)

    def _call(self, serve, arguments, then) -> None:
        world = self._host.daemon.world
        effect = self._effect
        source = world.hosts.get(effect.source.address)

        def answer(reply) -> None:
            try:
                reply(serve(source, effect.source, effect.extent, *arguments))
            except StairwellError as error:
                reply(error)

        def answered(answer) -> None:
            if not self._over():
                if isinstance(answer, StairwellError):
                    world.reached[f"copy refused {answer.reason}"] += 1
                    self._fail(_source_failed(effect.source, answer))
                else:
                    self._guarded(then, answer)

        def late() -> None:
            if not self._over():
                silent = UnavailableError(f"it sent nothing for {IDLE_SECONDS:.0f} seconds")
                self._fail(_source_failed(effect.source, silent))

        if source is None:
            self._fail(_source_failed(effect.source, UnavailableError("no such host")))
            return
        world.network.call(
            self._host.daemon.host, source.host, answer, answered, late, IDLE_SECONDS
        )

    def _over(self) -> bool:
        return self._copier.closed or self._copier.stalled or self._host.over

    def _guarded(self, call, *arguments) -> None:
        if self._over():
            return
        try:
            call(*arguments)
        except StairwellError as error:
            self._fail(error)

    def _fail(self, error: StairwellError) -> None:
        self._copier.failed(self._effect, error)

    def _compare(self, answer: Contexts) -> None:
        self._stamp = answer.stamp
        theirs = contexts_of(answer.runs, self._count)
        own = self._host.engine.contexts(self._base, self._count)
        difference = compare(own, theirs, self._size)
        if not self._effect.rehearsal:
            self._clear = deque(steps(difference.clear, self._size))
        self._fetch = deque(steps(difference.fetch, self._size))
        self._go_on()

    def _go_on(self) -> None:
        if self._clear:
            run = self._clear.popleft()
            self._host.engine.repair_merge(
                self._base + run.first, empty_contexts(run.count), bytes(run.count * self._size)
            )
            self._host.later(STEP_SECONDS, self._guarded, self._go_on)
        elif self._fetch:
            run = self._fetch.popleft()
            if self._apart:
                self._call(source_announces, (run,), partial(self._announced, run))
            else:
                self._call(source_chunk, (run,), self._merge)
        else:
            self._copier.done(self._effect, self._stamp, self._copied)

    def _announced(self, run: Run, announced: Announced) -> None:
        if announced.work is None:
            self._call(source_chunk, (run,), self._merge)
        else:
            self._call(source_sends, (run, announced), partial(self._arrived, run))

    def _arrived(self, run: Run, chunk: Chunk) -> None:
        reached = self._host.daemon.world.reached
        reached["copy takes blocks beside messages"] += 1
        if mismatches(chunk.data, chunk.contexts, self._size, encrypted=self._encrypted):
            reached["copy asks again for blocks that changed"] += 1
            self._call(source_chunk, (run,), self._merge)
        else:
            self._merge(chunk)

    def _merge(self, chunk: Chunk) -> None:
        bad = mismatches(chunk.data, chunk.contexts, self._size, encrypted=self._encrypted)
        count = len(chunk.contexts)
        own = self._host.engine.contexts(self._base + chunk.first, count)
        if bad:
            kind = "rehearsal" if self._effect.rehearsal else "copy"
            self._host.daemon.world.reached[f"{kind} meets a damaged block"] += 1
        good = spared(bad, chunk.contexts, own) if bad else [Run(0, count)]
        if good is None:
            self._host.daemon.world.reached[f"{kind} fails on a damaged block"] += 1
            raise DataError(
                f"repair source {self._effect.source.address} has a damaged block "
                f"{chunk.first + bad[0]} in the extent (extent {self._effect.extent})",
                reason="SOURCE_DAMAGED",
            )
        for run in good if not self._effect.rehearsal else ():
            end = run.first + run.count
            self._copied += self._host.engine.repair_merge(
                self._base + chunk.first + run.first,
                chunk.contexts[run.first : end],
                chunk.data[run.first * self._size : end * self._size],
            )
        self._copier.bucket.take(len(chunk.data), self._host.daemon.world.schedule.now)
        self._pace()

    def _pace(self) -> None:
        """Goes on when the rate allows it, which is looked at again and again: it may be raised."""
        wait = self._copier.bucket.wait(self._host.daemon.world.schedule.now)
        if wait > RATE_LOOK_SECONDS:
            self._host.later((RATE_LOOK_SECONDS, RATE_LOOK_SECONDS), self._guarded, self._pace)
        else:
            self._host.later((wait, wait + STEP_SECONDS[1]), self._guarded, self._go_on)


def _source_failed(source: CopySource, error: StairwellError) -> StairwellError:
    if isinstance(error, DataError):
        return DataError(
            f"repair source {source.address}: {error.message}", reason="SOURCE_DAMAGED"
        )
    return UnavailableError(
        f"repair source {source.address}: {error.message}", reason="REPAIR_SOURCE"
    )
