"""The engine alone, in this process, beside plain files: flushes and sequential I/O."""

from __future__ import annotations

import os
import shutil
import statistics
import time
import uuid

from figures import Figure

from downstaird.core.engine import RegionDefinition
from downstaird.core.region import Region
from downstaird.core.region_files import version_for
from downstaird.core.session import Session
from downstaird.store.files import FileDisk
from stairlib.model.context import mismatches, plain_contexts
from stairlib.model.geometry import Geometry
from stairlib.wire.frame import FrameKind, OpKind, decode, encode, pack_op

BLOCK = 4096
EXTENT_BLOCKS = (64 << 20) // BLOCK
MIB = 1 << 20
# What both sides work on: page cache on all sides.
SPAN_BYTES = 1 << 30
# Sequential jobs: bytes of a round, and to a flush.
JOB_BYTES = 256 * MIB
FLUSH_BYTES = 64 * MIB
SCATTERED = 32
BATCHES = 96
DATA = os.urandom(MIB)
CONTEXTS = plain_contexts(DATA, BLOCK)


def definition_of(extents):
    """A region with that many extents of 64 MiB, blocks of 4 KiB."""
    geometry = Geometry(BLOCK, EXTENT_BLOCKS, extents)
    return RegionDefinition(uuid.uuid4(), geometry, "", version_for(""))


class Opened:
    """A region and its flush numbers; flushes and checkpoints run here, as its lane would."""

    def __init__(self, region):
        self.region = region
        self.number = 0

    def flush(self):
        self.number += 1
        work = self.region.begin_flush(self.number, 1)
        work.run()
        self.region.finish_flush(work, None)

    def checkpoint_step(self):
        """One step, if one is due."""
        if self.region.wants_checkpoint():
            work = self.region.begin_checkpoint()
            work.run()
            self.region.finish_checkpoint(work, None)

    def checkpoint(self):
        """All steps, if one is due: as in a daemon that is idle meanwhile."""
        while self.region.wants_checkpoint():
            self.checkpoint_step()

    def fill(self, size):
        """Writes the first `size` bytes, and has them go home."""
        for at in range(0, size, MIB):
            self.region.write(at // BLOCK, CONTEXTS, DATA)
            if (at + MIB) % FLUSH_BYTES == 0:
                self.flush()
        self.flush()
        self.region.checkpoint_now()


def written_file(path, size):
    """A file every byte of which was written and is on the medium."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    for at in range(0, size, MIB):
        os.pwrite(descriptor, DATA, at)
    os.fdatasync(descriptor)
    return descriptor


def measure(directory, rounds):
    """All figures of the engine alone."""
    opened = Opened(Region.create(FileDisk(directory / "engine"), definition_of(16)))
    descriptor = written_file(directory / "plain", SPAN_BYTES)
    try:
        opened.fill(SPAN_BYTES)
        yield from flushes(opened, descriptor, rounds)
        yield from sequential(opened, descriptor, directory, rounds)
    finally:
        os.close(descriptor)
        opened.region.close()
        shutil.rmtree(directory / "engine")
        (directory / "plain").unlink()


# ---- flushes


def places(turn):
    """32 blocks far apart, the same for all candidates."""
    blocks = SPAN_BYTES // BLOCK
    return [(turn * SCATTERED + n) * 7919 * 31 % blocks for n in range(SCATTERED)]


def one_by_one(session, offsets):
    """The writes as the engine takes each by itself, unchecked."""
    region, contexts = session.region, CONTEXTS[:SCATTERED]
    blocks = memoryview(DATA)[: SCATTERED * BLOCK]

    def put():
        for index, offset in enumerate(offsets):
            block = blocks[index * BLOCK : (index + 1) * BLOCK]
            region.write(offset, contexts[index : index + 1], block)

    return put


def unchecked(session, offsets):
    """The writes as the engine takes those of one frame, without compiled code."""
    region, contexts = session.region, CONTEXTS[:SCATTERED]
    blocks = memoryview(DATA)[: SCATTERED * BLOCK]

    def put():
        assert region.write_scattered(offsets, contexts, blocks)

    return put


def one_frame(session, offsets):
    """The writes as they come from a volume: a frame that is decoded, checked block by block,
    carried out and answered, in whichever form the daemon here has (docs/adr/0056)."""
    table = [
        pack_op(number + 1, OpKind.WRITE, offset=offset, length=1)
        for number, offset in enumerate(offsets)
    ]
    payload = [memoryview(DATA)[: SCATTERED * BLOCK]]
    raw = b"".join(encode(FrameKind.REQUEST, table, contexts=CONTEXTS[:SCATTERED], payload=payload))

    def put():
        frame = decode(raw)
        if session.session.at_once(frame) is None:
            session.session.take(frame)
            assert session.session.run().reply

    return put


class Attended:
    """A region with a session, as a daemon has it."""

    def __init__(self, region):
        self.region = region
        self.session = Session(region, read_only=False, lane_free=True)


def engine_batches(opened, first, prepare=one_frame):
    """Seconds of each batch of writes and its flush, of all together with what checkpoints took,
    and the processor time of each batch."""
    session = Attended(opened.region)
    puts = [prepare(session, places(turn)) for turn in range(first, first + BATCHES)]
    found, worked = [], []
    began = time.perf_counter()
    for put in puts:
        used = time.thread_time()
        start = time.perf_counter()
        put()
        opened.flush()
        found.append(time.perf_counter() - start)
        worked.append(time.thread_time() - used)
        opened.checkpoint_step()
    return found, time.perf_counter() - began, worked


def one_write_batches(descriptor, first):
    """The same bytes by one write, and fdatasync."""
    data = memoryview(DATA)[: SCATTERED * BLOCK]
    found = []
    for turn in range(first, first + BATCHES):
        start = time.perf_counter()
        os.pwrite(descriptor, data, turn * len(data) % SPAN_BYTES)
        os.fdatasync(descriptor)
        found.append(time.perf_counter() - start)
    return found


def worked_batches(descriptor, first, seconds):
    """The same after the processor was busy for so long, within what is timed: a medium, and a
    scheduler, answer later than when they are asked again at once."""
    data = memoryview(DATA)[: SCATTERED * BLOCK]
    found = []
    for turn in range(first, first + BATCHES):
        start = time.perf_counter()
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass
        os.pwrite(descriptor, data, turn * len(data) % SPAN_BYTES)
        os.fdatasync(descriptor)
        found.append(time.perf_counter() - start)
    return found


def scattered_batches(descriptor, first):
    """The same writes where they belong, and fdatasync."""
    block = DATA[:BLOCK]
    found = []
    for turn in range(first, first + BATCHES):
        offsets = places(turn)
        start = time.perf_counter()
        for offset in offsets:
            os.pwrite(descriptor, block, offset * BLOCK)
        os.fdatasync(descriptor)
        found.append(time.perf_counter() - start)
    return found


def flushes(opened, descriptor, rounds):
    """32 scattered blocks and a flush."""
    what = "32 scattered 4 KiB writes + flush"
    once = "one write of the same bytes + fdatasync, file written before"
    median = Figure(f"{what}, time", once, at_most=2.0)
    mean = Figure(f"{what}, mean time, checkpoints included", once)
    spread = Figure(f"{what}, time", "the same 32 writes + fdatasync, file written before")
    after = Figure(f"{what}, time", f"{once}, after as much work of the processor")
    work = Figure("  of it work of the processor, ms", "")
    single = Figure(f"{what}, each by itself, time", once)
    python = Figure(f"{what}, by the engine in Python, unchecked, time", once)
    beyond = Figure("  longer than that, ms", once)
    for number in range(-1, rounds):
        first = (number + 1) * BATCHES
        one = one_write_batches(descriptor, first)
        ours, total, worked = engine_batches(opened, first)
        apart, *_ = engine_batches(opened, first, one_by_one)
        plain, *_ = engine_batches(opened, first, unchecked)
        spent = statistics.median(worked)
        busy = worked_batches(descriptor, first, spent)
        scattered = scattered_batches(descriptor, first)
        if number < 0:
            continue  # the first round pays for memory that is used for the first time
        median.values.append(statistics.median(ours) / statistics.median(one))
        mean.values.append(total / sum(one))
        spread.values.append(statistics.median(ours) / statistics.median(scattered))
        after.values.append(statistics.median(ours) / statistics.median(busy))
        work.values.append(spent * 1000)
        single.values.append(statistics.median(apart) / statistics.median(one))
        python.values.append(statistics.median(plain) / statistics.median(one))
        beyond.values.append((statistics.median(ours) - statistics.median(one)) * 1000)
    opened.checkpoint()
    yield [median, beyond, mean, spread, after, work, python, single]


# ---- sequential


def engine_write(opened, first):
    """Blocks checked against their contexts, as each write of a session is, and taken. Seconds."""
    region = opened.region
    began = time.perf_counter()
    for at in range(first, first + JOB_BYTES, MIB):
        assert not mismatches(DATA, CONTEXTS, BLOCK, encrypted=False)
        region.write(at % SPAN_BYTES // BLOCK, CONTEXTS, DATA)
        if (at + MIB) % FLUSH_BYTES == 0:
            opened.flush()
            opened.checkpoint_step()
    return time.perf_counter() - began


def plain_write(descriptor, first):
    """The same with pwrite."""
    began = time.perf_counter()
    for at in range(first, first + JOB_BYTES, MIB):
        assert not mismatches(DATA, CONTEXTS, BLOCK, encrypted=False)
        os.pwrite(descriptor, DATA, at % SPAN_BYTES)
        if (at + MIB) % FLUSH_BYTES == 0:
            os.fdatasync(descriptor)
    return time.perf_counter() - began


def engine_read(opened, first):
    """Blocks read and checked. Seconds."""
    region = opened.region
    began = time.perf_counter()
    for at in range(first, first + JOB_BYTES, MIB):
        contexts, buffers = region.read(at % SPAN_BYTES // BLOCK, MIB // BLOCK)
        done = 0
        for part in buffers:
            count = len(part) // BLOCK
            assert not mismatches(part, contexts[done : done + count], BLOCK, encrypted=False)
            done += count
        assert done == MIB // BLOCK
    return time.perf_counter() - began


def plain_read(descriptor, first):
    """The same with pread."""
    began = time.perf_counter()
    for at in range(first, first + JOB_BYTES, MIB):
        data = os.pread(descriptor, MIB, at % SPAN_BYTES)
        assert not mismatches(data, CONTEXTS, BLOCK, encrypted=False)
    return time.perf_counter() - began


def forget(descriptor):
    """Has the page cache drop a file that is on the medium."""
    os.fdatasync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def engine_fresh(directory):
    """A new region's first writes. Seconds."""
    opened = Opened(Region.create(FileDisk(directory / "fresh"), definition_of(16)))
    try:
        return engine_write(opened, 0)
    finally:
        opened.region.close()
        shutil.rmtree(directory / "fresh")


def plain_fresh(directory):
    """A new file's. Seconds."""
    path = directory / "fresh-plain"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        return plain_write(descriptor, 0)
    finally:
        os.close(descriptor)
        path.unlink()


def sequential(opened, descriptor, directory, rounds):
    """1 MiB at a time."""
    written = "pwrite with the same checks, fdatasync each 64 MiB, file written before"
    fresh = "pwrite with the same checks, fdatasync each 64 MiB, file grows"
    over = Figure("1 MiB sequential writes over old ones, rate", written, at_least=0.7)
    new = Figure("1 MiB sequential writes into a new region, rate", fresh, at_least=0.7)
    cached = Figure("1 MiB sequential reads, rate", "pread with the same checks", at_least=0.7)
    cold_text = "pread with the same checks, nothing in the page cache"
    cold = Figure("1 MiB sequential reads from the medium, rate", cold_text, at_least=0.7)
    source = opened.region.chunks.data.descriptor
    for number in range(-1, rounds):
        first = (number + 1) * JOB_BYTES
        found = [
            plain_write(descriptor, first) / engine_write(opened, first),
            plain_fresh(directory) / engine_fresh(directory),
            plain_read(descriptor, first) / engine_read(opened, first),
        ]
        forget(descriptor)
        forget(source)
        found.append(plain_read(descriptor, first) / engine_read(opened, first))
        if number >= 0:
            for figure, value in zip((over, new, cached, cold), found, strict=True):
                figure.values.append(value)
    yield [over, new, cached, cold]
