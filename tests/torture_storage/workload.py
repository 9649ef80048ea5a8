"""A region on real files, changed by a child process that is killed, cut off or refused; and the
model of what it may hold then.

All changes follow from a seed, so that the parent knows every state without being told. The child
says one byte for each flush that was acknowledged. What is found afterwards must be the state of
the last acknowledged flush, or of the one that was in progress.
"""

from __future__ import annotations

import os
import random
import select
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from downstaird.core.engine import RegionDefinition
from downstaird.core.layout import Tuning
from downstaird.core.region import Region
from downstaird.store.files import FileDisk
from stairlib.model.context import mismatches, plain_contexts
from stairlib.model.errors import DataError
from stairlib.model.geometry import Geometry

BLOCK = 4096
GEOMETRY = Geometry(BLOCK, 64, 24)
CHUNK_BYTES = 16 * BLOCK
# Checkpoints every few flushes, and small writes that overflow memory now and then.
TUNING = Tuning(
    large_bytes=CHUNK_BYTES,
    arena_bytes=64 * BLOCK,
    log_bytes=96 * BLOCK,
    log_bytes_max=512 * BLOCK,
    step_blocks=16,
    log_zero_bytes=32 * BLOCK,
)
FLUSHED = b"."
CHANGES_MAX = 8
SECONDS = 30.0

# Offset in blocks, and the data; a count where the blocks are discarded.
Change = tuple[int, bytes | int]


def changes(seed: int, number: int) -> Iterator[Change]:
    """What is changed before flush `number`."""
    rng = random.Random(seed * 1_000_003 + number)
    for _ in range(rng.randrange(1, CHANGES_MAX)):
        count = rng.choice((1, 1, 1, 2, 4, 16, 32, 64))
        offset = rng.randrange(GEOMETRY.block_count - count)
        if count >= 16 and rng.random() < 0.7:
            offset -= offset % 16
        yield offset, count if rng.random() < 0.15 else rng.randbytes(count * BLOCK)


def after(state: bytes, seed: int, number: int) -> bytes:
    """The content once flush `number` is durable."""
    content = bytearray(state)
    for offset, change in changes(seed, number):
        data = bytes(change * BLOCK) if isinstance(change, int) else change
        content[offset * BLOCK : offset * BLOCK + len(data)] = data
    return bytes(content)


def work(directory: Path, seed: int, number: int, pipe: int) -> None:
    """The child: changes, flushes and checkpoints until it is stopped or refused. What refused it
    goes to the pipe as a line."""
    try:
        region = Region.open(FileDisk(directory), tuning=TUNING)
        while True:
            for offset, change in changes(seed, number):
                if isinstance(change, int):
                    region.discard(offset, change)
                else:
                    region.write(offset, plain_contexts(change, BLOCK), change)
            job = region.begin_flush(number, 1)
            job.run()
            region.finish_flush(job, None)
            os.write(pipe, FLUSHED)
            number += 1
            if region.wants_checkpoint():
                step = region.begin_checkpoint()
                step.run()
                region.finish_checkpoint(step, None)
    except DataError as error:
        os.write(pipe, f"\n{error.reason} {error.message}".encode())


@dataclass
class Torment:
    """One region in `directory` and what it holds."""

    directory: Path
    rng: random.Random
    state: bytes = bytes(GEOMETRY.total_bytes)
    number: int = 1
    rounds: int = 0
    flushes: int = 0
    refusals: list[str] = field(default_factory=list)

    def create(self) -> None:
        definition = RegionDefinition(
            uuid.UUID(int=self.rng.getrandbits(128)), GEOMETRY, cipher="", format_version=1
        )
        disk = FileDisk(self.directory)
        Region.create(disk, definition, tuning=TUNING, chunk_bytes=CHUNK_BYTES).close()

    def start(self) -> Child:
        """A child that works on the region from now on."""
        seed = self.rng.getrandbits(32)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            try:
                work(self.directory, seed, self.number, writer)
                os._exit(0)
            finally:
                os._exit(1)
        os.close(writer)
        return Child(pid, reader, seed)

    def killed_round(self) -> None:
        """A child killed at some moment, and what it leaves."""
        child = self.start()
        # Most within the work; some while it opens what the last one left.
        if self.rng.random() < 0.8:
            child.until_flushed(self.rng.randrange(1, 12))
        child.work_for(0.02 * self.rng.random())
        child.kill()
        self.settle(child)

    def settle(self, child: Child) -> None:
        """Takes over what the child left; AssertionError when that is none of the states it may
        be."""
        acknowledged, refusal = child.said()
        if refusal:
            self.refusals.append(refusal)
        state = self.state
        for number in range(self.number, self.number + acknowledged):
            state = after(state, child.seed, number)
        last = self.number + acknowledged
        allowed = {last - 1: state, last: after(state, child.seed, last)}
        found, newest = contents(self.directory)
        held = [number for number, content in allowed.items() if content == found]
        assert held, (
            f"round {self.rounds}, seed {child.seed}: of no flush from {last - 1} to {last}"
        )
        assert newest <= max(held), f"round {self.rounds}: stamped {newest}, holds {held}"
        self.state = found
        self.number = last + 1
        self.rounds += 1
        self.flushes += acknowledged


def contents(directory: Path) -> tuple[bytes, int]:
    """What a region opened for writing holds, every block checked against its context; the newest
    flush of its stamps."""
    region = Region.open(FileDisk(directory), tuning=TUNING)
    try:
        contexts, buffers = region.read(0, GEOMETRY.block_count)
        data = b"".join(buffers)
        assert not mismatches(data, contexts, BLOCK, encrypted=False)
        states = region.extent_states()
        assert not states.flags.any()
        return data, int(states.flushes.max())
    finally:
        region.close()


@dataclass
class Child:
    """A process at work. What it says is read as it comes, so that its pipe is never full."""

    pid: int
    pipe: int
    seed: int
    heard: bytes = b""
    over: bool = False
    reaped: bool = False

    def work_for(self, seconds: float) -> None:
        """Lets it work so long, or until it ends."""
        while not self.over and select.select([self.pipe], [], [], seconds)[0]:
            self._hear()
            seconds /= 2

    def until_flushed(self, count: int) -> None:
        """Waits for that many flushes, or its end."""
        while not self.over and self.heard.count(FLUSHED) < count:
            assert select.select([self.pipe], [], [], SECONDS)[0], "the child hangs"
            self._hear()

    def until_over(self) -> None:
        """Waits for its end, and that of its hold on files."""
        while not self.over:
            assert select.select([self.pipe], [], [], SECONDS)[0], "the child hangs"
            self._hear()
        if not self.reaped:
            os.waitpid(self.pid, 0)
            self.reaped = True

    @contextmanager
    def between_calls(self) -> Iterator[None]:
        """Stopped meanwhile, in no system call. Shutting a file system down races with a sync that
        is under way: Linux then lets some of them succeed that have written nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        self.reaped = not os.WIFSTOPPED(status)
        try:
            yield
        finally:
            if not self.reaped:
                os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def said(self) -> tuple[int, str]:
        """Flushes acknowledged, and what refused it; once it has ended."""
        self.until_over()
        flushed, _, refusal = self.heard.partition(b"\n")
        return len(flushed), refusal.decode()

    def _hear(self) -> None:
        part = os.read(self.pipe, 65536)
        self.heard += part
        if not part:
            os.close(self.pipe)
            self.over = True
