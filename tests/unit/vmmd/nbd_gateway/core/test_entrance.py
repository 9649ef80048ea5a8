"""What the gateway decides: one option after another, in plain text, over TLS, and refused."""

from __future__ import annotations

import struct

import pytest

from vmmd.block import nbd_wire as wire
from vmmd.block.nbd_options import ClientOption, OptionReader, option_request
from vmmd.block.nbd_wire import Option, OptionReply
from vmmd.nbd_gateway.core.entrance import AskExport, Entrance, ListExports, Say, StartTls

FLAGS = wire.CLIENT_FLAGS.pack(3)
GO = struct.pack(">I6sH", 6, b"block2", 0)
QUERIES = struct.pack(">I6sII", 6, b"block2", 1, 15) + b"base:allocation"


def entrance(*, tls: bool, secured: bool = False) -> Entrance:
    made = Entrance(tls=tls)
    made.feed(FLAGS)
    assert made.next() is None
    if secured:
        made.secured()
    return made


def answer(to: Entrance, option: int, data: bytes = b""):
    to.feed(option_request(option, data))
    return to.next()


def kind(step: object) -> int:
    assert isinstance(step, Say)
    assert not step.ends
    return int(wire.OPTION_REPLY.unpack_from(step.data)[2])


def options_of(request: bytes) -> list[ClientOption]:
    reader = OptionReader()
    reader.feed(request)
    found = []
    while option := reader.next():
        found.append(option)
    assert not reader.rest
    return found


@pytest.mark.parametrize("option", sorted({*Option, 77} - {1, 2, 5}))
def test_before_tls_there_is_only_tls(option: int) -> None:
    assert kind(answer(entrance(tls=True), option)) == OptionReply.ERR_TLS_REQD


def test_the_way_to_tls_and_what_is_forgotten_with_it() -> None:
    made = entrance(tls=True)
    step = answer(made, Option.STARTTLS)
    assert isinstance(step, StartTls)
    assert wire.OPTION_REPLY.unpack(step.data)[1:3] == (Option.STARTTLS, OptionReply.ACK)
    made.secured()
    asked = answer(made, Option.GO, GO)
    assert isinstance(asked, AskExport)
    assert (asked.name, asked.preamble) == ("block2", 0)
    assert kind(answer(made, Option.STARTTLS)) == OptionReply.ERR_INVALID


def test_what_is_injected_behind_starttls_ends_it() -> None:
    made = entrance(tls=True)
    made.feed(option_request(Option.STARTTLS, b"") + b"\0")
    assert made.next() == Say(b"", ends=True)


def test_starttls_with_data_and_without_certificates() -> None:
    assert kind(answer(entrance(tls=True), Option.STARTTLS, b"x")) == OptionReply.ERR_INVALID
    assert kind(answer(entrance(tls=False), Option.STARTTLS)) == OptionReply.ERR_POLICY


def test_an_export_is_asked_with_what_was_negotiated() -> None:
    made = entrance(tls=True, secured=True)
    assert kind(answer(made, Option.STRUCTURED_REPLY)) == OptionReply.ACK
    chosen = answer(made, Option.SET_META_CONTEXT, QUERIES)
    assert isinstance(chosen, AskExport)
    assert chosen.preamble == 1
    made.answered(well=True)
    asked = answer(made, Option.GO, GO)
    assert isinstance(asked, AskExport)
    assert asked.preamble == 2
    # The empty name is the one export of the server that is asked.
    assert options_of(asked.request) == [
        ClientOption(Option.STRUCTURED_REPLY, b""),
        ClientOption(Option.SET_META_CONTEXT, bytes(4) + QUERIES[10:]),
        ClientOption(Option.GO, bytes(4) + GO[10:]),
    ]


def test_a_choice_that_failed_or_is_another_exports_is_not_repeated() -> None:
    for well, name in ((False, b"block2"), (True, b"block3")):
        made = entrance(tls=True, secured=True)
        answer(made, Option.STRUCTURED_REPLY)
        answer(made, Option.SET_META_CONTEXT, QUERIES)
        made.answered(well=well)
        asked = answer(made, Option.GO, struct.pack(">I6sH", 6, name, 0))
        assert isinstance(asked, AskExport)
        assert asked.preamble == 1


def test_who_is_refused_is_told_why_and_nothing_else() -> None:
    made = entrance(tls=True, secured=True)
    made.refuse("é" * 4000)
    for option in (Option.LIST, Option.GO, Option.SET_META_CONTEXT):
        step = answer(made, option, GO)
        assert kind(step) == OptionReply.ERR_POLICY
        text = step.data[wire.OPTION_REPLY.size :]
        assert len(text) == 4096
        assert text.decode() == "é" * 2048
    assert answer(made, Option.EXPORT_NAME, b"block2") == Say(b"", ends=True)


def test_names_are_listed() -> None:
    made = entrance(tls=False)
    assert isinstance(answer(made, Option.LIST), ListExports)
    said = made.listing(["a"])
    assert said.endswith(option_reply_ack := wire.OPTION_REPLY.pack(
        wire.OPTION_REPLY_MAGIC, Option.LIST, OptionReply.ACK, 0))  # fmt: skip
    assert said[wire.OPTION_REPLY.size : -len(option_reply_ack)] == b"\0\0\0\1a"
    assert kind(answer(made, Option.LIST, b"x")) == OptionReply.ERR_INVALID


@pytest.mark.parametrize("data", [b"", b"\0\0\0", struct.pack(">I", 9) + b"short"])
def test_names_that_cannot_be(data: bytes) -> None:
    assert kind(answer(entrance(tls=False), Option.GO, data)) == OptionReply.ERR_INVALID


def test_a_name_that_is_no_text_and_an_option_nobody_knows() -> None:
    made = entrance(tls=False)
    step = answer(made, Option.GO, struct.pack(">I1sH", 1, b"\xff", 0))
    assert kind(step) == OptionReply.ERR_UNKNOWN
    assert kind(answer(made, 77)) == OptionReply.ERR_UNSUP
    assert answer(made, Option.EXPORT_NAME, b"\xff") == Say(b"", ends=True)


def test_flags_nobody_knows_and_more_options_than_anybody_needs() -> None:
    made = Entrance(tls=False)
    made.feed(wire.CLIENT_FLAGS.pack(8))
    assert made.next() == Say(b"", ends=True)
    chatty = entrance(tls=False)
    for _ in range(wire.OPTIONS_MAX):
        assert kind(answer(chatty, 77)) == OptionReply.ERR_UNSUP
    assert answer(chatty, 77) == Say(b"", ends=True)
