"""A plain NBD client: fixed newstyle, simple replies, one request at a time.

Written from the protocol's description alone, so that it shares no mistake with the server.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

_OPTION_MAGIC = b"IHAVEOPT"
_OPTION_REPLY_MAGIC = 0x3E889045565A9
_REQUEST_MAGIC = 0x25609513
_REPLY_MAGIC = 0x67446698
_FIXED_NEWSTYLE_NO_ZEROES = 3
_OPT_GO = 7
_REP_ACK, _REP_INFO = 1, 3
_CMD_READ, _CMD_WRITE, _CMD_DISC, _CMD_FLUSH, _CMD_TRIM = 0, 1, 2, 3, 4
SECONDS = 60.0


class NbdClient:
    """A connection to one export, named by its URI. Use as a context manager; calls block."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        assert parts.scheme in ("nbd", "nbd+unix"), uri
        self._export = unquote(parts.path.lstrip("/"))
        self._path = parse_qs(parts.query)["socket"][0] if parts.scheme == "nbd+unix" else ""
        self._address = (parts.hostname or "", parts.port or 10809)
        self._cookie = 0
        self.size = 0

    def __enter__(self) -> Self:
        if self._path:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(SECONDS)
            self._socket.connect(self._path)
        else:
            self._socket = socket.create_connection(self._address, SECONDS)
        self._file = self._socket.makefile("rb")
        assert self._file.read(16) == b"NBDMAGIC" + _OPTION_MAGIC
        assert self._number(">H") & 1, "not fixed newstyle"
        name = self._export.encode()
        data = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self._socket.sendall(
            struct.pack(">I", _FIXED_NEWSTYLE_NO_ZEROES)
            + _OPTION_MAGIC
            + struct.pack(">II", _OPT_GO, len(data))
            + data
        )
        while True:
            magic, option, kind, length = struct.unpack(">QIII", self._file.read(20))
            assert (magic, option) == (_OPTION_REPLY_MAGIC, _OPT_GO)
            body = self._file.read(length)
            if kind == _REP_ACK:
                return self
            assert kind == _REP_INFO, (hex(kind), body)
            if struct.unpack_from(">H", body) == (0,):
                self.size = struct.unpack_from(">Q", body, 2)[0]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._send(_CMD_DISC, 0, 0)
        self._file.close()
        self._socket.close()

    def write(self, offset: int, data: bytes) -> None:
        """Writes; durable only after `flush`."""
        self._do(_CMD_WRITE, offset, len(data), data)

    def read(self, offset: int, length: int) -> bytes:
        """Reads."""
        return self._do(_CMD_READ, offset, length)

    def flush(self) -> None:
        """Makes all that was written before durable."""
        self._do(_CMD_FLUSH, 0, 0)

    def trim(self, offset: int, length: int) -> None:
        """Says that a range is not needed any more."""
        self._do(_CMD_TRIM, offset, length)

    def _number(self, layout: str) -> int:
        value: int = struct.unpack(layout, self._file.read(struct.calcsize(layout)))[0]
        return value

    def _send(self, command: int, offset: int, length: int, data: bytes = b"") -> None:
        self._cookie += 1
        head = struct.pack(">IHHQQI", _REQUEST_MAGIC, 0, command, self._cookie, offset, length)
        self._socket.sendall(head + data)

    def _do(self, command: int, offset: int, length: int, data: bytes = b"") -> bytes:
        self._send(command, offset, length, data)
        magic, error, cookie = struct.unpack(">IIQ", self._file.read(16))
        assert (magic, error, cookie) == (_REPLY_MAGIC, 0, self._cookie)
        if command != _CMD_READ:
            return b""
        found = self._file.read(length)
        assert len(found) == length
        return found
