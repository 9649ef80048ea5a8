"""What a client says in an NBD handshake, cut into its flags and its options. Pure.

Both the server of an export and the gateway to all exports read it so. What is not the protocol, or
more of it than anybody needs, is an `NbdOptionError`: the connection has to end.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vmmd.block import nbd_wire as wire

NAME_LENGTH = struct.Struct(">I")


class NbdOptionError(Exception):
    """The client does not speak the protocol, or chats for ever."""


@dataclass(frozen=True, slots=True)
class ClientOption:
    """One option with its data."""

    number: int
    data: bytes

    def named(self) -> tuple[bytes, bytes] | None:
        """The export's name and what follows it, of an option that begins with one; None when the
        length does not add up."""
        if len(self.data) < NAME_LENGTH.size:
            return None
        (length,) = NAME_LENGTH.unpack_from(self.data)
        end = NAME_LENGTH.size + length
        return (
            None if len(self.data) < end else (self.data[NAME_LENGTH.size : end], self.data[end:])
        )


class OptionReader:
    """Takes bytes in any pieces. `flags` are the client's, None until they are there."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._options = 0
        self.flags: int | None = None

    @property
    def rest(self) -> bytes:
        """Bytes that were not read as an option yet."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> None:
        """Takes bytes of the client."""
        self._buffer += data

    def next(self) -> ClientOption | None:
        """The next option; None when it is not all there yet."""
        if self.flags is None and not self._read_flags():
            return None
        if len(self._buffer) < wire.OPTION.size:
            return None
        magic, number, length = wire.OPTION.unpack_from(self._buffer)
        if (
            magic != wire.OPTION_MAGIC
            or length > wire.OPTION_BYTES_MAX
            or self._options >= wire.OPTIONS_MAX
        ):
            raise NbdOptionError("neither an option nor the end")
        end = wire.OPTION.size + length
        if len(self._buffer) < end:
            return None
        data = bytes(self._buffer[wire.OPTION.size : end])
        del self._buffer[:end]
        self._options += 1
        return ClientOption(number, data)

    def _read_flags(self) -> bool:
        if len(self._buffer) < wire.CLIENT_FLAGS.size:
            return False
        (flags,) = wire.CLIENT_FLAGS.unpack_from(self._buffer)
        del self._buffer[: wire.CLIENT_FLAGS.size]
        known = wire.HANDSHAKE_FIXED_NEWSTYLE | wire.HANDSHAKE_NO_ZEROES
        if flags & ~known or not flags & wire.HANDSHAKE_FIXED_NEWSTYLE:
            raise NbdOptionError("unknown flags of a client")
        self.flags = flags
        return True


def option_request(number: int, data: bytes) -> bytes:
    """An option as a client sends it."""
    return wire.OPTION.pack(wire.OPTION_MAGIC, number, len(data)) + data


def option_reply(number: int, kind: int, data: bytes = b"") -> bytes:
    """The answer to an option."""
    return wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, number, kind, len(data)) + data
