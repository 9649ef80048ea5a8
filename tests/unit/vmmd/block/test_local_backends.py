"""The file and memory backends, and the attachment that counts what is in flight."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from stairlib.model.errors import InvalidRequestError, NotFoundError, UnavailableError
from tests.unit.vmmd.guest.machine import MoodyBackend
from vmmd.block.attachment import Attachment
from vmmd.block.backend import Backend, BlockOp, BlockStatus, Completion, Request
from vmmd.block.file import FileBackend
from vmmd.block.memory import MemoryBackend


async def run(backend: Backend, *requests: Request) -> dict[object, Completion]:
    """Completions by token."""
    loop = asyncio.get_running_loop()
    found: dict[object, Completion] = {}
    finished = loop.create_future()

    def done(completions: list[Completion]) -> None:
        for completion in completions:
            data = None if completion.data is None else bytes(completion.data)
            found[completion.token] = completion._replace(data=data)
        if len(found) == len(requests):
            finished.set_result(None)

    backend.submit(requests, done)
    async with asyncio.timeout(10):
        await finished
    return found


@pytest.fixture(params=["file", "memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path):
    if request.param == "memory":
        yield MemoryBackend(512, 100)
        return
    path = tmp_path / "disk"
    path.write_bytes(bytes(51200 + 100))
    made = FileBackend(path, block_size=512, workers=3)
    yield made
    made.close()


async def test_many_requests_of_one_batch(backend: Backend) -> None:
    assert (backend.info.block_size, backend.info.block_count) == (512, 100)
    contents = {n: os.urandom(1024) for n in range(20)}
    writes = [Request(BlockOp.WRITE, n, n * 2, 2, memoryview(c)) for n, c in contents.items()]
    assert {c.status for c in (await run(backend, *writes)).values()} == {BlockStatus.OK}
    assert (await run(backend, Request(BlockOp.FLUSH, 0)))[0].status is BlockStatus.OK
    reads = [Request(BlockOp.READ, n, n * 2, 2) for n in contents]
    assert {t: c.data for t, c in (await run(backend, *reads)).items()} == contents


async def test_every_block_counts_as_written(backend: Backend) -> None:
    block = os.urandom(512)
    await run(backend, Request(BlockOp.WRITE, 0, 7, 1, block))
    found = await run(
        backend,
        Request(BlockOp.READ_OWNED, 1, 6, 3),
        Request(BlockOp.WRITE_UNWRITTEN, 2, 50, 1, block),
        Request(BlockOp.READ_OWNED, 3, 99, 2),
        Request(BlockOp.READ, 4, 50, 1),
    )
    assert found[1].data == bytes(512) + block + bytes(512)
    assert found[1].owned is not None
    assert found[1].owned.tolist() == [True, True, True]
    assert found[2].status is BlockStatus.UNSUPPORTED
    assert (found[3].status, found[3].owned) == (BlockStatus.OUT_OF_RANGE, None)
    assert (found[4].data, found[4].owned) == (bytes(512), None)


async def test_discarded_blocks_read_as_zeros(backend: Backend) -> None:
    await run(backend, Request(BlockOp.WRITE, 0, 0, 80, b"\xff" * 512 * 80))
    await run(backend, Request(BlockOp.DISCARD, 0, 8, 16))
    data = (await run(backend, Request(BlockOp.READ, 0, 0, 80)))[0].data
    assert data == b"\xff" * 8 * 512 + bytes(16 * 512) + b"\xff" * 56 * 512


@pytest.mark.parametrize("op", [BlockOp.READ, BlockOp.WRITE, BlockOp.DISCARD])
@pytest.mark.parametrize("offset", [-1, 100, 99])
async def test_out_of_range(backend: Backend, op: BlockOp, offset: int) -> None:
    done = await run(backend, Request(op, "t", offset, 2, bytes(1024)))
    assert done["t"].status is BlockStatus.OUT_OF_RANGE


async def test_a_write_of_the_wrong_length_fails(backend: Backend) -> None:
    done = await run(backend, Request(BlockOp.WRITE, "t", 0, 2, bytes(100)))
    assert done["t"].status is BlockStatus.FAILED


async def test_read_only(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"r" * 4096)
    path.chmod(0o400)
    file = FileBackend(path, read_only=True)
    for made in (file, MemoryBackend(512, 8, read_only=True)):
        for op in (BlockOp.WRITE, BlockOp.DISCARD):
            done = await run(made, Request(op, 0, 0, 1, bytes(512)))
            assert done[0].status is BlockStatus.READ_ONLY
    assert (await run(file, Request(BlockOp.READ, 0, 0, 1)))[0].data == b"r" * 512
    file.close()
    closed = await run(file, Request(BlockOp.READ, 0, 0, 1))
    assert closed[0].status is BlockStatus.ABORTED


async def test_a_file_cut_short_fails_reads_only(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(8192))
    backend = FileBackend(path)
    os.truncate(path, 600)
    done = await run(backend, Request(BlockOp.READ, 0, 0, 1), Request(BlockOp.READ, 1, 1, 1))
    assert [done[n].status for n in (0, 1)] == [BlockStatus.OK, BlockStatus.FAILED]
    assert (backend.failed, "shorter" in backend.last_error) == (1, True)
    backend.close()


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing"):
        FileBackend(tmp_path / "nothing")
    with pytest.raises(UnavailableError):
        FileBackend(tmp_path)
    small = tmp_path / "small"
    small.write_bytes(b"x")
    with pytest.raises(InvalidRequestError, match="less than one block"):
        FileBackend(small)
    with pytest.raises(InvalidRequestError, match="1000"):
        FileBackend(small, block_size=1000)


def test_an_attachment_knows_when_nothing_is_in_flight() -> None:
    backend = MoodyBackend(512, 8)
    backend.holding = True
    attachment = Attachment(backend)
    events: list[str] = []
    attachment.when_idle(lambda: events.append("at once"))
    attachment.submit(
        [Request(BlockOp.WRITE, 0, 0, 1, bytes(512)), Request(BlockOp.READ, 1, 9, 1)],
        lambda completions: events.append(f"{len(completions)} done"),
    )
    attachment.when_idle(lambda: events.append("idle"))
    assert attachment.in_flight == 2
    backend.let_go()
    assert events == ["at once", "2 done", "idle"]
    counters = attachment.counters
    assert (counters.reads, counters.writes, counters.failures) == (1, 1, 1)


def test_idle_waits_for_what_a_completion_submits() -> None:
    backend = MoodyBackend(512, 8)
    backend.holding = True
    attachment = Attachment(backend)
    events: list[str] = []

    def flush_next(_completions: list[Completion]) -> None:
        backend.holding = True
        attachment.submit([Request(BlockOp.FLUSH, 1)], lambda _c: events.append("flushed"))

    attachment.submit([Request(BlockOp.WRITE, 0, 0, 1, bytes(512))], flush_next)
    attachment.when_idle(lambda: events.append("idle"))
    backend.let_go()
    assert events == []
    backend.let_go()
    assert events == ["flushed", "idle"]
