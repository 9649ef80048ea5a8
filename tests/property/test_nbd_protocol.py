"""Random bytes never crash the NBD parsers; legal streams parse alike however they are cut."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmd.block import nbd_wire as wire
from vmmd.block.backend import BackendInfo
from vmmd.block.nbd_handshake import ExportDescription, Handshake, Verdict
from vmmd.block.nbd_job import NbdJob
from vmmd.block.nbd_options import option_request
from vmmd.block.nbd_transmission import (
    NbdProtocolError,
    NbdRequest,
    RequestParser,
    check_request,
)
from vmmd.nbd_gateway.core.entrance import AskExport, Entrance, ListExports, Say, StartTls

INFO = BackendInfo(4096, 1 << 16, read_only=False, supports_discard=True)
EXPORT = ExportDescription("block2", INFO)

OPTION = st.tuples(
    st.sampled_from([2, 3, 4, 5, 6, 7, 8, 9, 10, 99]),
    st.one_of(
        st.binary(max_size=40),
        st.just(b""),
        st.just(struct.pack(">I6sHH", 6, b"block2", 1, 3)),
        st.just(struct.pack(">IH", 0, 0)),
    ),
)
REQUESTS = st.builds(
    lambda flags, command, handle, offset, length: (flags, command, handle, offset, length),
    st.integers(0, 31),
    st.integers(0, 9).filter(lambda command: command != wire.Command.WRITE),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
)
WRITES = st.builds(
    lambda handle, payload: (0, int(wire.Command.WRITE), handle, 0, len(payload), payload),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=9000),
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(st.booleans(), st.lists(st.binary(max_size=200), max_size=10), st.lists(OPTION, max_size=12))
def test_an_entrance_survives_anything(
    tls: bool, chunks: list[bytes], options: list[tuple[int, bytes]]
) -> None:
    """And never asks an export before TLS."""
    entrance = Entrance(tls=tls)
    said = b"".join(option_request(number, data) for number, data in options)
    for chunk in (wire.CLIENT_FLAGS.pack(3), said, *chunks):
        entrance.feed(chunk)
        while (step := entrance.next()) is not None:
            assert not tls or not isinstance(step, AskExport | ListExports)
            if isinstance(step, Say) and step.ends:
                return
            if isinstance(step, StartTls):
                entrance.secured()
                tls = False


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_a_handshake_survives_anything(chunks: list[bytes]) -> None:
    handshake = Handshake(EXPORT)
    for chunk in chunks:
        if handshake.verdict is not Verdict.GOING_ON:
            break
        handshake.receive(chunk)


@given(st.lists(OPTION, max_size=8), st.lists(st.integers(0, 1000), max_size=6))
def test_a_handshake_answers_alike_however_it_is_cut(
    options: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    data = struct.pack(">I", 3) + b"".join(
        wire.OPTION.pack(wire.OPTION_MAGIC, option, len(body)) + body for option, body in options
    )
    whole, cut = Handshake(EXPORT), Handshake(EXPORT)
    expected = whole.receive(data)
    found = b""
    for piece in pieces(data, cuts):
        if cut.verdict is not Verdict.GOING_ON:
            break
        found += cut.receive(piece)
    assert found == expected
    assert cut.verdict is whole.verdict


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=10))
def test_a_parser_survives_anything(chunks: list[bytes]) -> None:
    parser = RequestParser()
    try:
        for chunk in chunks:
            parser.push(chunk)
            while parser.next_request() is not None:
                pass
    except NbdProtocolError:
        pass


@settings(deadline=None)
@given(
    st.lists(st.one_of(REQUESTS, WRITES), max_size=12), st.lists(st.integers(0, 50000), max_size=9)
)
def test_requests_parse_alike_however_they_are_cut(requests: list, cuts: list[int]) -> None:
    data = b"".join(
        wire.REQUEST.pack(wire.REQUEST_MAGIC, *request[:5])
        + (request[5] if len(request) > 5 else b"")
        for request in requests
    )
    parser = RequestParser()
    found = []
    for piece in pieces(data, cuts):
        parser.push(piece)
        while (request := parser.next_request()) is not None:
            found.append(request)
    assert [tuple(r[:5]) for r in found] == [tuple(r[:5]) for r in requests]
    payloads = [bytes(r.payload) for r in found if r.payload is not None]
    assert payloads == [r[5] for r in requests if len(r) > 5]


@given(
    st.integers(0, 31),
    st.integers(0, 9),
    st.one_of(st.integers(0, 80000).map(lambda b: b * 4096), st.integers(0, 2**64 - 1)),
    st.one_of(st.integers(0, 8192).map(lambda b: b * 4096), st.integers(0, 2**32 - 1)),
)
def test_what_is_accepted_stays_inside_the_disk(
    flags: int, command: int, offset: int, length: int
) -> None:
    payload = bytearray(length) if command == 1 and length < 1 << 20 else None
    request = NbdRequest(flags, command, 1, offset, length, payload)
    if check_request(request, INFO) is not wire.Error.OK or (command == 1 and payload is None):
        return
    job = NbdJob(request, INFO)
    for piece in job.begin():
        assert piece.offset + piece.length <= INFO.block_count
        assert piece.length >= (0 if command == wire.Command.FLUSH else 1)


def test_a_write_that_is_too_large_ends_the_conversation() -> None:
    parser = RequestParser()
    length = wire.REQUEST_BYTES_MAX + 1
    parser.push(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.Command.WRITE, 1, 0, length))
    with pytest.raises(NbdProtocolError):
        parser.next_request()
