"""A backend on something served over HTTP: range reads, never written.

The size is what a HEAD request says when the backend is opened, and the first block is read then:
a server without ranges is refused before a guest meets it. Each read is one range request; an
answer that is not exactly the range asked for is a failure, never data. When the server names a
strong ETag, every request insists on it: a file that is changed under a running guest fails its
reads instead of mixing two versions. What may pass (timeouts, 429, 5xx, a refused connection) is
tried again for a while. Reference: vcr-and-upstairs.md §1.2.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import aiohttp
import numpy as np
from multidict import CIMultiDictProxy

from stairlib.model.errors import (
    DataError,
    InvalidRequestError,
    NotFoundError,
    StairwellError,
    UnavailableError,
)
from stairlib.telemetry.logs import get_logger
from vmmd.block.backend import (
    READS,
    BackendInfo,
    BlockOp,
    BlockStatus,
    Completion,
    Done,
    Request,
)

log = get_logger(__name__)
_T = TypeVar("_T")

CONNECT_SECONDS = 5.0
# Between two pieces of an answer.
SILENCE_SECONDS = 20.0
# With the delays below, a server may be away for some ten seconds before a read fails.
TRIES = 6
# When a machine is made, the user waits for the answer.
OPEN_TRIES = 2
RETRY_FIRST_SECONDS = 0.3
RETRY_MAX_SECONDS = 5.0
# Requests in flight; more wait.
CONNECTIONS_MAX = 8
_PARTIAL = 206
_PRECONDITION_FAILED = 412
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)", re.ASCII)


class UrlBackend:
    """See the module. Make one with `open`; `close` it at the end."""

    kind = "url"

    def __init__(
        self, url: str, block_size: int, size: int, etag: str, session: aiohttp.ClientSession
    ) -> None:
        self._url = url
        self._size = size
        self._etag = etag
        self._session = session
        self._tasks: set[asyncio.Task[None]] = set()
        self._info = BackendInfo(
            block_size, size // block_size, read_only=True, supports_discard=False
        )
        self.failed = 0
        self.last_error = ""

    @classmethod
    async def open(cls, url: str, block_size: int) -> UrlBackend:
        """Asks for the size and one range. NotFoundError when there is no such thing,
        UnavailableError when nobody answers, InvalidRequestError when its size is not a whole
        number of blocks, DataError when the server's answers are of no use."""
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS
            ),
            auto_decompress=False,
            headers={"Accept-Encoding": "identity"},
            raise_for_status=False,
        )
        try:
            headers = await _persistent(lambda: _head(session, url), OPEN_TRIES)
            size = _checked_size(url, headers, block_size)
            etag = headers.get("ETag", "")
            made = cls(url, block_size, size, "" if etag.startswith("W/") else etag, session)
            await _persistent(lambda: made._get(0, block_size), OPEN_TRIES)
        except BaseException:
            await session.close()
            raise
        return made

    @property
    def info(self) -> BackendInfo:
        """Read-only."""
        return self._info

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        """As `Backend.submit`."""
        answered: list[Completion] = []
        for request in batch:
            end = request.offset + request.length
            if request.op is BlockOp.FLUSH:
                answered.append(Completion(request.token, BlockStatus.OK))
            elif request.op not in READS and request.op is not BlockOp.ALLOCATION:
                answered.append(Completion(request.token, BlockStatus.READ_ONLY))
            elif request.offset < 0 or request.length < 0 or end > self._info.block_count:
                answered.append(Completion(request.token, BlockStatus.OUT_OF_RANGE))
            elif request.op is BlockOp.ALLOCATION:
                held = np.ones(request.length, dtype=np.bool_)
                answered.append(Completion(request.token, BlockStatus.OK, None, held))
            elif self._session.closed:
                answered.append(Completion(request.token, BlockStatus.ABORTED))
            elif not request.length:
                answered.append(_read(request, b""))
            else:
                task = asyncio.create_task(self._serve(request, done))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        if answered:
            done(answered)

    async def close(self) -> None:
        """Ends what is in flight."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._session.close()

    async def _serve(self, request: Request, done: Done) -> None:
        size = self._info.block_size
        start, length = request.offset * size, request.length * size
        try:
            data = await _persistent(lambda: self._get(start, length))
        except StairwellError as error:
            self.failed += 1
            self.last_error = error.message
            log.warning("read of a URL failed", url=self._url, offset=start, error=error.message)
            completion = Completion(request.token, BlockStatus.FAILED)
        except asyncio.CancelledError:
            done([Completion(request.token, BlockStatus.ABORTED)])
            raise
        else:
            completion = _read(request, data)
        done([completion])

    async def _get(self, start: int, length: int) -> bytes:
        headers = {"Range": f"bytes={start}-{start + length - 1}"}
        if self._etag:
            headers["If-Match"] = self._etag
        async with _answered(self._url), self._session.get(self._url, headers=headers) as answer:
            if answer.status == _PRECONDITION_FAILED:
                raise DataError(
                    f"what {self._url} serves was changed since this machine was made: make the "
                    "machine again to use the new version",
                    reason="SOURCE_CHANGED",
                    url=self._url,
                )
            _check_status(self._url, answer.status)
            self._check_range(answer, start, length)
            # One byte more than the right answer would show that it is too long.
            data = await _exactly(answer, length)
        if data is None:
            raise self._wrong(f"the answer has not the {length} bytes asked for")
        return data

    def _check_range(self, answer: aiohttp.ClientResponse, start: int, length: int) -> None:
        if answer.status != _PARTIAL:
            raise self._wrong("the server does not answer range requests; use one that does")
        told = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        expected = (start, start + length - 1, self._size)
        if told is None or tuple(map(int, told.groups())) != expected:
            raise self._wrong(
                f"asked for bytes {expected[0]} to {expected[1]} of {expected[2]}, the server "
                f"answers {answer.headers.get('Content-Range', 'without saying')!r}"
            )

    def _wrong(self, text: str) -> DataError:
        return DataError(f"{self._url}: {text}", reason="SOURCE_ANSWER_WRONG", url=self._url)


async def _exactly(answer: aiohttp.ClientResponse, length: int) -> bytes | None:
    """The body, or None when it is not `length` bytes long; never holds more than that."""
    body = bytearray()
    async for piece in answer.content.iter_any():
        body += piece
        if len(body) > length:
            return None
    return bytes(body) if len(body) == length else None


def _read(request: Request, data: bytes) -> Completion:
    owned = None
    if request.op is BlockOp.READ_OWNED:
        owned = np.ones(request.length, dtype=np.bool_)
    return Completion(request.token, BlockStatus.OK, data, owned)


async def _persistent(ask: Callable[[], Awaitable[_T]], tries: int = TRIES) -> _T:
    """What `ask` answers; asked again while it is only unavailable."""
    delay = RETRY_FIRST_SECONDS
    for _attempt in range(tries - 1):
        try:
            return await ask()
        except UnavailableError:
            await asyncio.sleep(delay)
            delay = min(2 * delay, RETRY_MAX_SECONDS)
    return await ask()


async def _head(session: aiohttp.ClientSession, url: str) -> CIMultiDictProxy[str]:
    async with _answered(url), session.head(url, allow_redirects=True) as answer:
        _check_status(url, answer.status)
        return answer.headers


def _checked_size(url: str, headers: CIMultiDictProxy[str], block_size: int) -> int:
    text = headers.get("Content-Length", "")
    if not text.isascii() or not text.isdigit():
        raise DataError(
            f"{url}: the server does not say how large it is (no Content-Length)",
            reason="SOURCE_ANSWER_WRONG",
            url=url,
        )
    size = int(text)
    if not size or size % block_size:
        raise InvalidRequestError(
            f"{url} has {size} bytes, which is not a whole number of blocks of {block_size}: pad "
            "it, or name another block_size",
            reason="SOURCE_SIZE_INVALID",
            url=url,
        )
    return size


def _check_status(url: str, status: int) -> None:
    if 200 <= status < 300:
        return
    if status in _PASSING:
        raise UnavailableError(
            f"{url} answers {status} for the time being", reason="SOURCE_UNAVAILABLE", url=url
        )
    if status in (404, 410):
        raise NotFoundError("source", url, f"there is nothing at {url} (HTTP {status})")
    raise DataError(f"{url} answers HTTP {status}", reason="SOURCE_ANSWER_WRONG", url=url)


@contextlib.asynccontextmanager
async def _answered(url: str) -> AsyncIterator[None]:
    """The client's errors as ours."""
    try:
        yield
    except (aiohttp.ClientError, TimeoutError) as error:
        why = str(error) or type(error).__name__
        raise UnavailableError(
            f"{url} cannot be read: {why}", reason="SOURCE_UNAVAILABLE", url=url
        ) from error
    except ValueError as error:
        raise InvalidRequestError(f"{url} is not a URL: {error}", reason="URL_INVALID") from error
