"""A client's way through the NBD gateway, up to its export: bytes in, one step after another out.

    greeting → flags → STARTTLS, nothing else → TLS → options → an export's own server takes over

The gateway answers what is of the host: STARTTLS, LIST, ABORT, STRUCTURED_REPLY. What is of one
export it asks that export's server, with the same negotiation and the empty name, which means the
one export there. Invariants: with TLS, nothing but STARTTLS and ABORT is answered in plain text
("FORCEDTLS" of doc/proto.md of the NBD project); what was said before TLS is forgotten with it, and
what was sent along with STARTTLS ends the connection; a caller that is refused learns no names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from vmmd.block import nbd_wire as wire
from vmmd.block.nbd_options import (
    NAME_LENGTH,
    ClientOption,
    NbdOptionError,
    OptionReader,
    option_reply,
    option_request,
)
from vmmd.block.nbd_wire import Option, OptionReply

GREETING = wire.GREETING.pack(
    wire.MAGIC, wire.OPTION_MAGIC, wire.HANDSHAKE_FIXED_NEWSTYLE | wire.HANDSHAKE_NO_ZEROES
)
# The protocol's bound of a string; a reason is cut there.
_TEXT_BYTES_MAX = 4096
_OF_AN_EXPORT = (Option.INFO, Option.GO, Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT)


@dataclass(frozen=True, slots=True)
class Say:
    """Send these bytes; then end the connection, where it `ends`."""

    data: bytes
    ends: bool = False


@dataclass(frozen=True, slots=True)
class StartTls:
    """Send these bytes, shake hands, and tell `secured` or `refuse`."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ListExports:
    """Tell `listing` the names and send what it makes of them."""


@dataclass(frozen=True, slots=True)
class AskExport:
    """Connect to the server of the export `name`, send `request`, drop the replies to its first
    `preamble` options, and pass on those to the last one, `option`; tell `answered` how it went.

    EXPORT_NAME is answered in another form, and not at all in the end: there is only to be joined.
    """

    name: str
    option: int
    request: bytes
    preamble: int


Step: TypeAlias = Say | StartTls | ListExports | AskExport


class Entrance:
    """One client. `tls` is whether it has to speak TLS first."""

    def __init__(self, *, tls: bool) -> None:
        self._reader = OptionReader()
        self._forced = tls
        self._tls = False
        self._refusal: bytes | None = None
        self._structured = False
        # The last SET_META_CONTEXT that was answered, and the one that is being asked.
        self._selected: tuple[bytes, bytes] | None = None
        self._selecting: tuple[bytes, bytes] | None = None

    @property
    def rest(self) -> bytes:
        """What came after the last option: the client's first requests."""
        return self._reader.rest

    def feed(self, data: bytes) -> None:
        """Takes bytes of the client."""
        self._reader.feed(data)

    def next(self) -> Step | None:
        """What to do now; None when more bytes are needed first."""
        try:
            option = self._reader.next()
        except NbdOptionError:
            return Say(b"", ends=True)
        return None if option is None else self._step(option)

    def secured(self) -> None:
        """TLS is spoken from here on."""
        self._forced, self._tls = False, True
        self._structured, self._selected = False, None

    def refuse(self, why: str) -> None:
        """Who has shaken hands may not have disks."""
        self._refusal = _text(why)

    def listing(self, names: Iterable[str]) -> bytes:
        """The answer to LIST."""
        entries = [name.encode() for name in names]
        replies = [
            option_reply(Option.LIST, OptionReply.SERVER, NAME_LENGTH.pack(len(entry)) + entry)
            for entry in entries
        ]
        return b"".join((*replies, option_reply(Option.LIST, OptionReply.ACK)))

    def answered(self, *, well: bool) -> None:
        """How the server of the export took the option it was asked."""
        if self._selecting is not None:
            self._selected = self._selecting if well else None
            self._selecting = None

    def unknown(self, option: int, why: str) -> Say:
        """There is no such export, or it cannot be had now."""
        # This one has no way to say no but to hang up.
        if option == Option.EXPORT_NAME:
            return Say(b"", ends=True)
        return Say(option_reply(option, OptionReply.ERR_UNKNOWN, _text(why)))

    def _step(self, option: ClientOption) -> Step:
        number = option.number
        if number == Option.ABORT:
            return Say(option_reply(number, OptionReply.ACK), ends=True)
        if number == Option.STARTTLS:
            return self._start_tls(option)
        if self._forced or self._refusal is not None:
            if number == Option.EXPORT_NAME:
                return Say(b"", ends=True)
            if self._forced:
                text = b"this server speaks TLS alone: use nbds:// and a certificate"
                return Say(option_reply(number, OptionReply.ERR_TLS_REQD, text))
            return Say(option_reply(number, OptionReply.ERR_POLICY, self._refusal or b""))
        if number in (Option.LIST, Option.STRUCTURED_REPLY) and option.data:
            return Say(option_reply(number, OptionReply.ERR_INVALID, b"this option has no data"))
        if number == Option.LIST:
            return ListExports()
        if number == Option.STRUCTURED_REPLY:
            self._structured = True
            return Say(option_reply(number, OptionReply.ACK))
        if number == Option.EXPORT_NAME:
            return self._ask(number, option.data, b"")
        if number in _OF_AN_EXPORT:
            named = option.named()
            if named is None:
                return Say(option_reply(number, OptionReply.ERR_INVALID, b"malformed name"))
            return self._ask(number, *named)
        return Say(option_reply(number, OptionReply.ERR_UNSUP))

    def _start_tls(self, option: ClientOption) -> Step:
        if option.data or self._tls:
            text = b"TLS is spoken already" if self._tls else b"STARTTLS has no data"
            return Say(option_reply(option.number, OptionReply.ERR_INVALID, text))
        if not self._forced:
            text = b"this server has no certificate: it speaks plain text"
            return Say(option_reply(option.number, OptionReply.ERR_POLICY, text))
        if self._reader.rest:
            # Somebody in between would like it to be taken for what the client says under TLS.
            return Say(b"", ends=True)
        return StartTls(option_reply(option.number, OptionReply.ACK))

    def _ask(self, number: int, name: bytes, rest: bytes) -> Step:
        try:
            text = name.decode()
        except UnicodeDecodeError:
            return self.unknown(number, "names of exports are UTF-8")
        # None: it has given them, or there was no option yet.
        assert self._reader.flags is not None
        parts = [wire.CLIENT_FLAGS.pack(self._reader.flags)]
        if self._structured:
            parts.append(option_request(Option.STRUCTURED_REPLY, b""))
        if number == Option.SET_META_CONTEXT:
            self._selected, self._selecting = None, (name, rest)
        elif self._selected is not None and self._selected[0] == name:
            data = _NO_NAME + self._selected[1]
            parts.append(option_request(Option.SET_META_CONTEXT, data))
        preamble = len(parts) - 1
        parts.append(
            option_request(number, b"" if number == Option.EXPORT_NAME else _NO_NAME + rest)
        )
        return AskExport(text, number, b"".join(parts), preamble)


_NO_NAME = NAME_LENGTH.pack(0)


def _text(why: str) -> bytes:
    return why.encode()[:_TEXT_BYTES_MAX].decode(errors="ignore").encode()
