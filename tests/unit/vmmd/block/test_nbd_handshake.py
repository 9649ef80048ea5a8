"""The handshake, message by message."""

from __future__ import annotations

import struct

import pytest

from vmmd.block import nbd_wire as wire
from vmmd.block.backend import BackendInfo
from vmmd.block.nbd_handshake import ExportDescription, Handshake, Verdict
from vmmd.block.nbd_wire import ExportFlag, Option, OptionReply

INFO = BackendInfo(4096, 1000, read_only=False, supports_discard=True)


def shaken(info: BackendInfo = INFO, flags: int = 3) -> Handshake:
    handshake = Handshake(ExportDescription("block2", info))
    assert handshake.receive(struct.pack(">I", flags)) == b""
    return handshake


def ask(handshake: Handshake, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
    answer = handshake.receive(wire.OPTION.pack(wire.OPTION_MAGIC, option, len(data)) + data)
    replies = []
    while answer:
        magic, echoed, kind, length = wire.OPTION_REPLY.unpack_from(answer)
        assert (magic, echoed) == (wire.OPTION_REPLY_MAGIC, option)
        replies.append((kind, answer[20 : 20 + length]))
        answer = answer[20 + length :]
    return replies


def named(name: bytes, *wanted: int) -> bytes:
    return struct.pack(f">I{len(name)}sH{len(wanted)}H", len(name), name, len(wanted), *wanted)


@pytest.mark.parametrize("name", [b"block2", b""])
def test_go(name: bytes) -> None:
    handshake = shaken()
    replies = ask(handshake, Option.GO, named(name, wire.Info.NAME))
    assert [kind for kind, _ in replies] == [OptionReply.INFO] * 3 + [OptionReply.ACK]
    kind, size, flags = wire.INFO_EXPORT_BODY.unpack(replies[0][1])
    assert (kind, size) == (wire.Info.EXPORT, 4096000)
    wanted = ExportFlag.SEND_FLUSH | ExportFlag.SEND_FUA | ExportFlag.SEND_TRIM
    assert flags & (wanted | ExportFlag.CAN_MULTI_CONN) == wanted | ExportFlag.CAN_MULTI_CONN
    assert not flags & ExportFlag.READ_ONLY
    assert replies[1][1] == b"\0\1block2"
    assert wire.INFO_BLOCK_SIZE_BODY.unpack(replies[2][1]) == (3, 4096, 4096, 32 << 20)
    assert handshake.verdict is Verdict.TRANSMISSION


def test_info_leaves_the_choice_open() -> None:
    handshake = shaken()
    assert ask(handshake, Option.INFO, named(b"block2"))[-1] == (OptionReply.ACK, b"")
    assert handshake.verdict is Verdict.GOING_ON


def test_an_unknown_export_names_the_one_there_is() -> None:
    handshake = shaken()
    [(kind, text)] = ask(handshake, Option.GO, named(b"other"))
    assert kind == OptionReply.ERR_UNKNOWN
    assert b"block2" in text
    assert handshake.verdict is Verdict.GOING_ON


def test_list() -> None:
    replies = ask(shaken(), Option.LIST)
    assert replies == [(OptionReply.SERVER, b"\0\0\0\6block2"), (OptionReply.ACK, b"")]
    assert ask(shaken(), Option.LIST, b"x")[0][0] == OptionReply.ERR_INVALID


def test_structured_replies_bring_df() -> None:
    handshake = shaken()
    assert not handshake.structured
    assert ask(handshake, Option.STRUCTURED_REPLY) == [(OptionReply.ACK, b"")]
    assert handshake.structured
    replies = ask(handshake, Option.GO, named(b"block2"))
    assert wire.INFO_EXPORT_BODY.unpack(replies[0][1])[2] & ExportFlag.SEND_DF


@pytest.mark.parametrize("option", [4, 5, 11, 12345])
def test_other_options_are_refused_and_the_talk_goes_on(option: int) -> None:
    handshake = shaken()
    assert ask(handshake, option, b"whatever") == [(OptionReply.ERR_UNSUP, b"")]
    assert handshake.verdict is Verdict.GOING_ON


@pytest.mark.parametrize("data", [b"", b"\0\0\0\\9", b"\0\0\0\0\0\1", b"\xff\xff\xff\xff\0\0"])
def test_malformed_information_requests(data: bytes) -> None:
    assert ask(shaken(), Option.GO, data)[0][0] == OptionReply.ERR_INVALID


def test_abort_is_acknowledged() -> None:
    handshake = shaken()
    assert ask(handshake, Option.ABORT) == [(OptionReply.ACK, b"")]
    assert handshake.verdict is Verdict.CLOSED


@pytest.mark.parametrize(("flags", "length"), [(3, 10), (1, 134)])
def test_the_old_way_in(flags: int, length: int) -> None:
    handshake = shaken(flags=flags)
    option = wire.OPTION.pack(wire.OPTION_MAGIC, Option.EXPORT_NAME, 6) + b"block2"
    answer = handshake.receive(option + b"first request")
    assert len(answer) == length
    assert wire.EXPORT.unpack_from(answer)[0] == 4096000
    assert handshake.verdict is Verdict.TRANSMISSION
    assert handshake.rest == b"first request"


def test_the_old_way_in_to_nowhere() -> None:
    handshake = shaken()
    ask(handshake, Option.EXPORT_NAME, b"other")
    assert handshake.verdict is Verdict.CLOSED


@pytest.mark.parametrize("flags", [0, 2, 4 | 1])
def test_clients_of_another_kind_are_let_go(flags: int) -> None:
    assert shaken(flags=flags).verdict is Verdict.CLOSED


def test_nonsense_and_endless_talk_are_let_go() -> None:
    nonsense = shaken()
    nonsense.receive(b"GET / HTTP/1.1\r\n\r\n")
    assert nonsense.verdict is Verdict.CLOSED
    large = shaken()
    large.receive(wire.OPTION.pack(wire.OPTION_MAGIC, 6, wire.OPTION_BYTES_MAX + 1))
    assert large.verdict is Verdict.CLOSED
    chatty = shaken()
    for _ in range(wire.OPTIONS_MAX):
        ask(chatty, Option.LIST)
    assert chatty.verdict is Verdict.GOING_ON
    ask(chatty, Option.LIST)
    assert chatty.verdict is Verdict.CLOSED


def test_a_read_only_export_offers_no_changes() -> None:
    handshake = shaken(BackendInfo(512, 10, read_only=True, supports_discard=True))
    replies = ask(handshake, Option.GO, named(b""))
    flags = wire.INFO_EXPORT_BODY.unpack(replies[0][1])[2]
    assert flags & ExportFlag.READ_ONLY
    assert not flags & (ExportFlag.SEND_TRIM | ExportFlag.SEND_WRITE_ZEROES)
