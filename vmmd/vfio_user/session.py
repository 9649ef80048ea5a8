"""One hypervisor's connection: bytes and descriptors in, answers out, in order and never waiting.

All messages that came together are handled together: what they start reaches the disk as one batch.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from stairlib.telemetry.logs import get_logger
from vmmd.vfio_user.core import wire
from vmmd.vfio_user.core.conversation import Conversation
from vmmd.vfio_user.core.wire import Header, ProtocolError

_log = get_logger(__name__)

READ_BYTES = 64 << 10
# A hypervisor speaks first, and at once; one that does not keeps others out.
FIRST_SECONDS = 5.0
# Requests of one peer that are refused in the log; the rest is counted.
REFUSALS_TOLD = 10

Gathering = Callable[[], AbstractContextManager[None]]
Refused = Callable[[Header, str], None]


class Session:
    """Serves `connection` until either side ends it; then calls `ended` once."""

    def __init__(
        self,
        connection: socket.socket,
        converse: Callable[[Refused], Conversation],
        gathering: Gathering,
        ended: Callable[[], None],
    ) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._conversation = converse(self._told_refused)
        self._gathering = gathering
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        # Of the message that has begun to come.
        self._files: list[int] = []
        self._refused = 0
        self._closed = False
        self._silence: asyncio.TimerHandle | None = self._loop.call_later(
            FIRST_SECONDS, self._silent
        )
        self._loop.add_reader(connection.fileno(), self._readable)

    def close(self) -> None:
        """Hangs up."""
        if self._closed:
            return
        self._closed = True
        if self._silence is not None:
            self._silence.cancel()
        self._loop.remove_reader(self._connection.fileno())
        self._connection.close()
        _close_all(self._files)
        if self._refused > REFUSALS_TOLD:
            _log.warning("requests refused in all", count=self._refused)
        self._ended()

    def _silent(self) -> None:
        _log.warning("hypervisor hung up on", reason=f"it said nothing for {FIRST_SECONDS:g} s")
        self.close()

    def _readable(self) -> None:
        files: list[int] = []
        try:
            data, files, flags, _address = socket.recv_fds(
                self._connection, READ_BYTES, wire.FDS_MAX
            )
            _check_files(flags)
            if data:
                self._take(data, files)
                return
            _check_ended(self._buffer)
        except BlockingIOError:
            return
        except ProtocolError as error:
            _log.warning("hypervisor hung up on", reason=str(error))
        except OSError as error:
            _log.warning("connection of a hypervisor lost", reason=error.strerror or str(error))
        finally:
            _close_all(files)
        self.close()

    def _take(self, data: bytes, files: list[int]) -> None:
        """Handles each message that is whole now. Takes over `files`, whose list is emptied.

        The kernel ends what one call returns behind the message that brought descriptors, so they
        belong to the last message that begins in `data`.
        """
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        begun = bool(self._buffer)
        self._buffer += data
        messages = self._whole_messages()
        if messages and begun:
            messages[0][2].extend(self._files)
            self._files = []
        taken, files[:] = list(files), []
        if self._buffer and (messages or not begun):
            self._files = taken
        elif messages:
            messages[-1][2].extend(taken)
        else:
            self._files += taken
        try:
            self._handle(messages)
        finally:
            for _head, _payload, left in messages:
                _close_all(left)

    def _whole_messages(self) -> list[tuple[Header, bytes, list[int]]]:
        """Taken off the buffer, with no descriptors yet."""
        found: list[tuple[Header, bytes, list[int]]] = []
        at, length = 0, len(self._buffer)
        while length - at >= wire.HEADER.size:
            head = wire.header(memoryview(self._buffer)[at : at + wire.HEADER.size])
            if length - at < head.size:
                break
            payload = bytes(self._buffer[at + wire.HEADER.size : at + head.size])
            found.append((head, payload, []))
            at += head.size
        del self._buffer[:at]
        return found

    def _handle(self, messages: Sequence[tuple[Header, bytes, list[int]]]) -> None:
        with self._gathering():
            answers = [self._conversation.take(*message) for message in messages]
            # Before the disk has its turn: a processor may stand still until it is answered.
            self._send(b"".join(answers))

    def _told_refused(self, head: Header, why: str) -> None:
        """Tells of a request that was not done."""
        self._refused += 1
        if self._refused <= REFUSALS_TOLD:
            _log.warning("request of a hypervisor refused", command=head.command, reason=why)

    def _send(self, data: bytes) -> None:
        """Answers are small: a peer that does not read them is not worth waiting for, and one that
        gets half of an answer is lost."""
        if not data:
            return
        try:
            sent = self._connection.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            raise ProtocolError("it does not read its answers")


def _check_files(flags: int) -> None:
    if flags & socket.MSG_CTRUNC:
        raise ProtocolError(f"more than {wire.FDS_MAX} files at once")


def _check_ended(rest: bytearray) -> None:
    """The peer has hung up; ProtocolError when it did so in the middle of a message."""
    if rest:
        raise ProtocolError("a message that is cut off")


def _close_all(files: list[int]) -> None:
    while files:
        os.close(files.pop())
