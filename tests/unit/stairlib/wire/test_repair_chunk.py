"""Chunks of a copy as bytes: the same as the generated message makes of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairlib.wire.repair_chunk import Chunk, ChunkError, decode_chunk, encode_chunk
from stairwell.downstairs.v1 import repair_service_pb2 as repair_pb

NUMBERS = st.integers(0, 2**64 - 1)


@given(NUMBERS, st.binary(max_size=300), st.binary(max_size=20_000), NUMBERS, NUMBERS)
def test_both_ends_may_use_the_generated_message(first, contexts, data, checksum, sent):
    chunk = Chunk(first, contexts, data, checksum, sent)
    read = repair_pb.StreamExtentResponse.FromString(encode_chunk(chunk))
    assert (read.first_block, read.contexts, read.data, read.checksum, read.sent_bytes) == (
        first,
        contexts,
        data,
        checksum,
        sent,
    )
    assert decode_chunk(read.SerializeToString()) == chunk


def test_an_empty_message_is_an_empty_chunk():
    assert decode_chunk(b"") == Chunk(0, b"", b"", 0)


@pytest.mark.parametrize(
    "unknown",
    [b"\x78\x96\x01", b"\x7a\x03abc", b"\x79" + bytes(8), b"\x7d" + bytes(4)],
    ids=["number", "bytes", "64 bits", "32 bits"],
)
def test_fields_of_a_later_release_are_passed_over(unknown):
    chunk = Chunk(7, b"c" * 32, b"d" * 512, 9)
    raw = encode_chunk(chunk)
    assert decode_chunk(unknown + raw) == chunk
    assert decode_chunk(raw + unknown) == chunk


def test_a_message_that_is_cut_off_is_told_from_a_whole_one():
    raw = encode_chunk(Chunk(300, b"c" * 32, b"d" * 512, 9))
    whole = {0, 3, 37, 552}  # between two fields: that something is missing shows later
    for end in range(len(raw)):
        if end in whole:
            assert decode_chunk(raw[:end]).checksum == 0
            continue
        with pytest.raises(ChunkError):
            decode_chunk(raw[:end])


@pytest.mark.parametrize("raw", [b"\x0b", b"\x08" + b"\xff" * 11, b"\x12\xff\xff\xff\x7f"])
def test_what_is_no_message_is_refused(raw):
    with pytest.raises(ChunkError):
        decode_chunk(raw)
