"""The NBD handshake, server side: bytes in, bytes and a verdict out. Knows no sockets.

    greeting → client flags → options, each answered → GO or EXPORT_NAME: transmission
                                                     → ABORT, or nonsense: closed

Unknown options are refused, not fatal; what is not the protocol at all ends the connection.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from vmmd.block import nbd_wire as wire
from vmmd.block.backend import BackendInfo
from vmmd.block.nbd_options import NAME_LENGTH, NbdOptionError, OptionReader, option_reply

_COUNT = struct.Struct(">H")
# A query for all contexts of the namespace.
_NAMESPACE = b"base:"


@dataclass(frozen=True, slots=True)
class ExportDescription:
    """What clients are told of the one export. The empty name means it, too."""

    name: str
    info: BackendInfo

    def flags(self, *, structured: bool) -> int:
        """Transmission flags. A flush covers the writes of every client: they share one backend."""
        flags = (
            wire.ExportFlag.HAS_FLAGS
            | wire.ExportFlag.SEND_FLUSH
            | wire.ExportFlag.SEND_FUA
            | wire.ExportFlag.CAN_MULTI_CONN
        )
        if self.info.read_only:
            flags |= wire.ExportFlag.READ_ONLY
        else:
            flags |= wire.ExportFlag.SEND_WRITE_ZEROES
            if self.info.supports_discard:
                flags |= wire.ExportFlag.SEND_TRIM
        if structured:
            # A read is always answered in one chunk.
            flags |= wire.ExportFlag.SEND_DF
        return int(flags)


class Verdict(enum.Enum):
    """Where the handshake is."""

    GOING_ON = "going on"
    TRANSMISSION = "transmission"
    CLOSED = "closed"


class Handshake:
    """One client's handshake. `structured` says whether it asked for structured replies."""

    def __init__(self, export: ExportDescription) -> None:
        self._export = export
        self._reader = OptionReader()
        self._out: list[bytes] = []
        self.verdict = Verdict.GOING_ON
        self.structured = False
        # The export's name with which the client has selected its allocation context.
        self._context_of: bytes | None = None
        self._entered = b""

    @staticmethod
    def greeting() -> bytes:
        """What the server sends first."""
        flags = wire.HANDSHAKE_FIXED_NEWSTYLE | wire.HANDSHAKE_NO_ZEROES
        return wire.GREETING.pack(wire.MAGIC, wire.OPTION_MAGIC, flags)

    @property
    def tells_holes(self) -> bool:
        """Whether the client selected `base:allocation`, under the name it then came in by."""
        return self.structured and self._context_of == self._entered

    @property
    def rest(self) -> bytes:
        """Bytes that came after the handshake's end; they belong to the transmission."""
        return self._reader.rest

    def receive(self, data: bytes) -> bytes:
        """Takes bytes of the client and returns the answer to send; look at `verdict` after."""
        self._reader.feed(data)
        self._out = []
        try:
            while self.verdict is Verdict.GOING_ON and (option := self._reader.next()):
                self._answer(option.number, option.data)
        except NbdOptionError:
            self.verdict = Verdict.CLOSED
        return b"".join(self._out)

    def _answer(self, option: int, data: bytes) -> None:
        if option == wire.Option.EXPORT_NAME:
            self._export_name(data)
        elif option == wire.Option.ABORT:
            self._reply(option, wire.OptionReply.ACK)
            self.verdict = Verdict.CLOSED
        elif option == wire.Option.LIST:
            self._list(data)
        elif option in (wire.Option.INFO, wire.Option.GO):
            self._info(option, data)
        elif option == wire.Option.STRUCTURED_REPLY:
            if data:
                self._reply(option, wire.OptionReply.ERR_INVALID, b"this option has no data")
            else:
                self.structured = True
                self._reply(option, wire.OptionReply.ACK)
        elif option in (wire.Option.LIST_META_CONTEXT, wire.Option.SET_META_CONTEXT):
            self._meta_context(option, data)
        else:
            self._reply(option, wire.OptionReply.ERR_UNSUP)

    def _known(self, name: bytes) -> bool:
        return name in (b"", self._export.name.encode())

    def _export_name(self, name: bytes) -> None:
        """The old way in, which has no way to say no but to hang up."""
        if not self._known(name):
            self.verdict = Verdict.CLOSED
            return
        flags = self._export.flags(structured=self.structured)
        self._out.append(wire.EXPORT.pack(self._export.info.total_bytes, flags))
        assert self._reader.flags is not None
        if not self._reader.flags & wire.HANDSHAKE_NO_ZEROES:
            self._out.append(wire.EXPORT_NAME_PADDING)
        self._entered = name
        self.verdict = Verdict.TRANSMISSION

    def _list(self, data: bytes) -> None:
        if data:
            self._reply(wire.Option.LIST, wire.OptionReply.ERR_INVALID, b"LIST has no data")
            return
        name = self._export.name.encode()
        entry = NAME_LENGTH.pack(len(name)) + name
        self._reply(wire.Option.LIST, wire.OptionReply.SERVER, entry)
        self._reply(wire.Option.LIST, wire.OptionReply.ACK)

    def _info(self, option: int, data: bytes) -> None:
        parsed = _parse_info(data)
        if parsed is None:
            self._reply(option, wire.OptionReply.ERR_INVALID, b"malformed information request")
            return
        name, wanted = parsed
        if not self._known(name):
            self._unknown(option)
            return
        info = self._export.info
        flags = self._export.flags(structured=self.structured)
        body = wire.INFO_EXPORT_BODY.pack(wire.Info.EXPORT, info.total_bytes, flags)
        self._reply(option, wire.OptionReply.INFO, body)
        if wire.Info.NAME in wanted:
            body = _COUNT.pack(wire.Info.NAME) + self._export.name.encode()
            self._reply(option, wire.OptionReply.INFO, body)
        # Sent whether asked for or not: requests that are not whole blocks will be refused.
        body = wire.INFO_BLOCK_SIZE_BODY.pack(
            wire.Info.BLOCK_SIZE,
            info.block_size,
            max(4096, info.block_size),
            wire.REQUEST_BYTES_MAX,
        )
        self._reply(option, wire.OptionReply.INFO, body)
        self._reply(option, wire.OptionReply.ACK)
        if option == wire.Option.GO:
            self._entered = name
            self.verdict = Verdict.TRANSMISSION

    def _meta_context(self, option: int, data: bytes) -> None:
        selecting = option == wire.Option.SET_META_CONTEXT
        parsed = _parse_queries(data)
        if selecting:
            self._context_of = None
        if parsed is None or (selecting and not self.structured):
            text = b"malformed queries" if parsed is None else b"ask for structured replies first"
            self._reply(option, wire.OptionReply.ERR_INVALID, text)
            return
        name, queries = parsed
        if not self._known(name):
            self._unknown(option)
            return
        wanted = wire.ALLOCATION_CONTEXT in queries
        if not selecting:
            wanted = wanted or not queries or _NAMESPACE in queries
        if wanted:
            if selecting:
                self._context_of = name
            number = wire.ALLOCATION_CONTEXT_ID if selecting else 0
            body = wire.CHUNK_CONTEXT.pack(number) + wire.ALLOCATION_CONTEXT
            self._reply(option, wire.OptionReply.META_CONTEXT, body)
        self._reply(option, wire.OptionReply.ACK)

    def _unknown(self, option: int) -> None:
        text = f'there is no export of that name; the one here is "{self._export.name}"'
        self._reply(option, wire.OptionReply.ERR_UNKNOWN, text.encode())

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self._out.append(option_reply(option, kind, data))


def _parse_info(data: bytes) -> tuple[bytes, set[int]] | None:
    """Name and wanted information of INFO and GO; None when the lengths do not add up."""
    if len(data) < NAME_LENGTH.size + _COUNT.size:
        return None
    (name_length,) = NAME_LENGTH.unpack_from(data)
    name_end = NAME_LENGTH.size + name_length
    if len(data) < name_end + _COUNT.size:
        return None
    (count,) = _COUNT.unpack_from(data, name_end)
    wanted = data[name_end + _COUNT.size :]
    if len(wanted) != count * _COUNT.size:
        return None
    return data[NAME_LENGTH.size : name_end], {kind for (kind,) in _COUNT.iter_unpack(wanted)}


def _parse_queries(data: bytes) -> tuple[bytes, list[bytes]] | None:
    """Name and queries of the options about contexts; None when the lengths do not add up."""
    words: list[bytes] = []
    at, count = 0, 0
    while at < len(data) or not words:
        if len(data) - at < NAME_LENGTH.size:
            return None
        (length,) = NAME_LENGTH.unpack_from(data, at)
        at += NAME_LENGTH.size + length
        if at > len(data):
            return None
        words.append(data[at - length : at])
        if len(words) == 1:
            if len(data) - at < NAME_LENGTH.size:
                return None
            (count,) = NAME_LENGTH.unpack_from(data, at)
            at += NAME_LENGTH.size
    return (words[0], words[1:]) if len(words) == count + 1 else None
