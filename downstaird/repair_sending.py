"""The source's end of a repair's block connections: bytes of blocks from the region's files to a
socket, by sendfile.

What is sent, and when, is told by the messages of StreamExtent; on the connection there is nothing
but blocks. The loop's transport stays the socket's owner, for its end; threads write to a duplicate
of the descriptor. Invariants: one send at a time for each connection; a descriptor is closed only
when no thread uses it; where connections are encrypted there are none of these."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import select
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from downstaird.core.block_tokens import BLOCK_CONNECTIONS_MAX, BlockTokens
from downstaird.core.engine import ReadWork
from downstaird.repair_threads import give_way
from stairlib.model.errors import StateError, UnavailableError

TOKEN_BYTES = 32


class BlockConnection:
    """One connection that a target takes blocks from."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLOUT)
        self.taken = False
        self.sending = False
        self.over = False

    def send(self, work: ReadWork) -> None:
        """On a thread: returns when the socket has taken all of it. DataError, OSError."""
        work.send(self._socket.fileno(), self._wait)

    def _wait(self) -> None:
        for _, events in self._poll.poll():
            if events & (select.POLLERR | select.POLLHUP):
                raise ConnectionResetError("the connection has ended")

    def shut(self) -> None:
        """Ends it; a thread that sends is woken."""
        self.over = True
        if self.sending:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        else:
            self.close()

    def close(self) -> None:
        """No thread uses it any more: closes it."""
        if self._socket.fileno() >= 0:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()


class RepairSending:
    """The block connections of one region. Called on the loop."""

    def __init__(self, *, offered: bool) -> None:
        self._offered = offered
        self._tokens: BlockTokens[BlockConnection] = BlockTokens()
        # A peer that does not take its blocks holds the thread of its own connection only.
        self._executor = ThreadPoolExecutor(
            BLOCK_CONNECTIONS_MAX, thread_name_prefix="repair-send", initializer=give_way
        )
        self._running: set[asyncio.Future[Any]] = set()
        self._loop = asyncio.get_running_loop()

    def offer(self) -> bytes:
        """A token for one connection; empty when none is offered. LimitError."""
        if not self._offered:
            return b""
        token = secrets.token_bytes(TOKEN_BYTES)
        self._tokens.offer(token, self._loop.time())
        return token

    def connect(self, token: bytes, duplicate: Callable[[], int]) -> BlockConnection | None:
        """The connection that shows the token, by a descriptor of its own; None when the token is
        none of these."""
        if not self._tokens.takes(token, self._loop.time()):
            return None
        connection = BlockConnection(duplicate())
        self._tokens.connected(token, connection)
        return connection

    def lost(self, token: bytes, connection: BlockConnection) -> None:
        """The peer has closed it, or it is to end."""
        self._tokens.gone(token)
        connection.shut()

    @contextlib.contextmanager
    def taken(self, token: bytes) -> Iterator[BlockConnection | None]:
        """The token's connection, for one call; None without a token. When the call does not end
        well the connection ends too: nobody knows what is still on its way. RefusedError
        TOKEN_UNKNOWN, StateError IN_USE."""
        if not token:
            yield None
            return
        connection = self._tokens.find(token)
        if connection.taken or connection.over:
            raise StateError("the block connection is in use by another call", reason="IN_USE")
        connection.taken = True
        try:
            yield connection
        except BaseException:
            connection.shut()
            raise
        connection.taken = False

    async def send(self, work: ReadWork, connection: BlockConnection) -> None:
        """Sends the blocks, off the loop. DataError, UnavailableError."""
        if connection.over:
            raise UnavailableError("the block connection was lost: the other end closed it")
        connection.sending = True
        job = self._loop.run_in_executor(self._executor, connection.send, work)
        self._running.add(job)
        job.add_done_callback(lambda done: self._sent(done, connection))
        try:
            await asyncio.shield(job)
        except OSError as error:
            raise UnavailableError(f"the block connection was lost: {error}") from error

    def _sent(self, job: asyncio.Future[None], connection: BlockConnection) -> None:
        # Looked at, for the case that who waited has left.
        job.exception()
        self._running.discard(job)
        connection.sending = False
        if connection.over:
            connection.close()

    async def close(self) -> None:
        """Ends every connection, waits for what is sent, and ends the threads."""
        self._offered = False
        for connection in self._tokens.all():
            connection.shut()
        while self._running:
            await asyncio.wait(self._running)
            await asyncio.sleep(0)
        self._executor.shutdown()
