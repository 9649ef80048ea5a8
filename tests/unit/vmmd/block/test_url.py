"""Reading a URL by ranges, against real HTTP servers: well-behaved, broken, and gone."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest
from aiohttp import web

from stairlib.model.errors import (
    DataError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from tests.unit.vmmd.block.stores import SIZE
from vmmd.block import url as url_module
from vmmd.block.backend import BlockOp, BlockStatus, Request
from vmmd.block.url import UrlBackend


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(url_module, "RETRY_FIRST_SECONDS", 0.001)
    monkeypatch.setattr(url_module, "RETRY_MAX_SECONDS", 0.004)


@contextlib.asynccontextmanager
async def served(handler):
    """The URL of a server on a free port whose every request goes to `handler`."""
    app = web.Application()
    app.router.add_route("*", "/image", handler)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"http://127.0.0.1:{port}/image"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def opened(url, size=SIZE):
    """The backend, closed at the end."""
    backend = await UrlBackend.open(url, size)
    try:
        yield backend
    finally:
        await backend.close()


async def ask(backend, *requests):
    """{token: completion} of the requests."""
    found = {}
    complete = asyncio.Event()

    def done(completions):
        found.update({each.token: each for each in completions})
        if len(found) == len(requests):
            complete.set()

    backend.submit(requests, done)
    async with asyncio.timeout(20):
        await complete.wait()
    return found


class Image:
    """A server of some bytes that answers as it is told."""

    def __init__(self, blocks=16):
        self.data = os.urandom(blocks * SIZE)
        self.asked = []
        self.failures = []
        self.etag = '"one"'
        self.change = {}

    async def answer(self, request):
        self.asked.append((request.method, request.headers.get("Range", "")))
        if self.failures:
            return web.Response(status=self.failures.pop(0))
        headers = {"ETag": self.etag, "Accept-Ranges": "bytes"}
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(len(self.data))})
        if request.headers.get("If-Match", self.etag) != self.etag:
            return web.Response(status=412)
        span = request.http_range
        body = self.data[span.start : span.stop]
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{len(self.data)}"
        answer = {"status": 206, "body": body, "headers": headers}
        return web.Response(**{**answer, **self.change})


async def test_the_size_is_asked_once_and_reads_are_ranges():
    image = Image()
    async with served(image.answer) as url, opened(url) as backend:
        assert (backend.info.block_count, backend.info.read_only) == (16, True)
        done = await ask(
            backend,
            Request(BlockOp.READ, "a", 0, 1),
            Request(BlockOp.READ, "b", 3, 4),
            Request(BlockOp.READ_OWNED, "c", 15, 1),
        )
        assert done["a"].data == image.data[:SIZE]
        assert done["b"].data == image.data[3 * SIZE : 7 * SIZE]
        assert done["b"].owned is None
        assert done["c"].owned.tolist() == [True]
        assert image.asked[:2] == [("HEAD", ""), ("GET", f"bytes=0-{SIZE - 1}")]
        assert ("GET", f"bytes={3 * SIZE}-{7 * SIZE - 1}") in image.asked
        assert len(image.asked) == 5


async def test_changes_are_refused_a_flush_has_nothing_to_do():
    async with served(Image().answer) as url, opened(url) as backend:
        done = await ask(
            backend,
            Request(BlockOp.WRITE, "w", 0, 1, bytes(SIZE)),
            Request(BlockOp.WRITE_UNWRITTEN, "u", 0, 1, bytes(SIZE)),
            Request(BlockOp.DISCARD, "d", 0, 1),
            Request(BlockOp.FLUSH, "f"),
            Request(BlockOp.READ, "far", 15, 2),
            Request(BlockOp.READ, "none", 16, 0),
        )
        assert {token: each.status.name for token, each in done.items()} == {
            "w": "READ_ONLY",
            "u": "READ_ONLY",
            "d": "READ_ONLY",
            "f": "OK",
            "far": "OUT_OF_RANGE",
            "none": "OK",
        }


async def test_what_passes_is_tried_again():
    image = Image()
    async with served(image.answer) as url:
        image.failures = [503]
        async with opened(url) as backend:
            image.failures = [500, 429, 504]
            done = await ask(backend, Request(BlockOp.READ, "r", 0, 1))
            assert done["r"].data == image.data[:SIZE]
            assert backend.failed == 0


async def test_a_server_that_stays_in_trouble_fails_the_read_and_is_remembered():
    image = Image()
    async with served(image.answer) as url, opened(url) as backend:
        image.failures = [503] * url_module.TRIES
        done = await ask(backend, Request(BlockOp.READ, "r", 0, 1))
        assert done["r"].status is BlockStatus.FAILED
        assert backend.failed == 1
        assert "503" in backend.last_error
        done = await ask(backend, Request(BlockOp.READ, "r", 0, 1))
        assert done["r"].status is BlockStatus.OK


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"status": 200}, "does not answer range requests"),
        ({"status": 403}, "403"),
        ({"body": b"short"}, "bytes asked for"),
        ({"body": bytes(SIZE + 1)}, "bytes asked for"),
        ({"headers": {}}, "without saying"),
        ({"headers": {"Content-Range": "bytes 0-511/99"}}, "bytes 0-511/99"),
        ({"headers": {"Content-Range": "bytes 512-1023/8192"}}, "bytes 512-1023/8192"),
    ],
)
async def test_an_answer_that_is_not_the_range_is_no_data(change, words):
    image = Image()
    async with served(image.answer) as url, opened(url) as backend:
        image.change = change
        done = await ask(backend, Request(BlockOp.READ, "r", 0, 1))
        assert (done["r"].status, done["r"].data) == (BlockStatus.FAILED, None)
        assert words in backend.last_error


async def test_a_file_that_is_changed_fails_its_reads():
    image = Image()
    async with served(image.answer) as url, opened(url) as backend:
        image.etag = '"two"'
        done = await ask(backend, Request(BlockOp.READ, "r", 0, 1))
        assert done["r"].status is BlockStatus.FAILED
        assert "changed" in backend.last_error


async def test_a_weak_etag_is_not_insisted_on():
    image = Image()
    image.etag = 'W/"one"'
    async with served(image.answer) as url, opened(url) as backend:
        image.etag = 'W/"two"'
        done = await ask(backend, Request(BlockOp.READ, "r", 0, 1))
        assert done["r"].status is BlockStatus.OK


async def test_sizes_that_do_not_fit():
    image = Image()
    async with served(image.answer) as url:
        image.data = image.data[: SIZE * 9]
        with pytest.raises(InvalidRequestError, match="whole number of blocks of 4096"):
            await UrlBackend.open(url, 4096)
        image.data = b""
        with pytest.raises(InvalidRequestError, match="0 bytes"):
            await UrlBackend.open(url, SIZE)


async def test_who_is_not_there():
    async with served(Image().answer) as url:
        with pytest.raises(NotFoundError, match="404"):
            await UrlBackend.open(url.replace("image", "other"), SIZE)
    with pytest.raises(UnavailableError, match="cannot be read"):
        await UrlBackend.open(url, SIZE)


async def test_a_server_without_ranges_is_refused_before_a_guest_reads():
    image = Image()
    image.change = {"status": 200, "body": image.data}
    async with served(image.answer) as url:
        with pytest.raises(DataError, match="does not answer range requests; use one that does"):
            await UrlBackend.open(url, SIZE)


async def test_a_server_that_does_not_say_its_size():
    async def endless(_request):
        return web.Response(status=200, headers={"Transfer-Encoding": "chunked"})

    async with served(endless) as url:
        with pytest.raises(DataError, match="does not say how large"):
            await UrlBackend.open(url, SIZE)


async def test_closing_ends_what_is_in_flight():
    image = Image()
    reached, never = asyncio.Event(), asyncio.Event()

    async def hang(request):
        if len(image.asked) < 2:
            return await image.answer(request)
        reached.set()
        await never.wait()
        return web.Response()

    async with served(hang) as url:
        backend = await UrlBackend.open(url, SIZE)
        found = []
        backend.submit([Request(BlockOp.READ, "r", 0, 1)], found.extend)
        async with asyncio.timeout(20):
            await reached.wait()
            await backend.close()
        assert [each.status for each in found] == [BlockStatus.ABORTED]
        backend.submit([Request(BlockOp.READ, "late", 0, 1)], found.extend)
        assert found[-1].status is BlockStatus.ABORTED
        never.set()
