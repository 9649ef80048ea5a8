"""The frame codec: what is encoded comes back, and no bytes make it do anything but refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairlib.wire import frame
from stairlib.wire.frame import CONTEXT_BYTES, HEADER, HEADER_BYTES, FrameError, FrameKind, OpKind

OPS = st.lists(
    st.tuples(
        st.integers(0, 2**64 - 1),
        st.sampled_from(list(OpKind)),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**32 - 1),
        st.lists(st.integers(0, 2**64 - 1), max_size=3),
        st.binary(max_size=20),
    ),
    max_size=8,
)


def build(ops, contexts: bytes, payload: list[bytes]) -> bytes:
    packed = [
        frame.pack_op(
            job,
            kind,
            offset=offset,
            length=length,
            dependency_count=len(deps),
            blob_bytes=len(blob),
        )
        for job, kind, offset, length, deps, blob in ops
    ]
    return b"".join(
        frame.encode(
            FrameKind.REQUEST,
            packed,
            sequence=7,
            dependencies=[dep for op in ops for dep in op[4]],
            blobs=[op[5] for op in ops],
            contexts=np.frombuffer(contexts, dtype="<u8").reshape(-1, 4),
            payload=payload,
        )
    )


@given(
    OPS,
    st.integers(0, 5).flatmap(lambda n: st.binary(min_size=n * 32, max_size=n * 32)),
    st.lists(st.binary(max_size=64), max_size=3),
)
def test_what_is_encoded_comes_back(ops, contexts: bytes, payload: list[bytes]) -> None:
    data = build(ops, contexts, payload)
    assert frame.frame_length(data[:HEADER_BYTES]) == len(data)
    got = frame.decode(data)
    assert got.kind is FrameKind.REQUEST
    assert got.sequence == 7
    assert got.ops["job"].tolist() == [op[0] for op in ops]
    assert got.ops["kind"].tolist() == [op[1] for op in ops]
    assert got.ops["offset"].tolist() == [op[2] for op in ops]
    assert got.ops["length"].tolist() == [op[3] for op in ops]
    assert got.dependencies.tolist() == [dep for op in ops for dep in op[4]]
    assert [got.blob(index) for index in range(len(ops))] == [op[5] for op in ops]
    assert got.contexts.tobytes() == contexts
    assert len(got.contexts) == len(contexts) // CONTEXT_BYTES
    assert bytes(got.payload) == b"".join(payload)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_not_obeyed(data: bytes) -> None:
    with pytest.raises(FrameError):
        frame.decode(data)


@given(st.data())
def test_a_frame_with_one_changed_byte_is_parsed_or_refused(data) -> None:
    whole = bytearray(
        build([(1, OpKind.WRITE, 0, 1, [4], b"xy")], bytes(CONTEXT_BYTES), [bytes(512)])
    )
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    try:
        got = frame.decode(whole)
    except FrameError:
        return
    assert len(got.ops) == 1
    assert len(got.blob(0)) <= 8


@pytest.mark.parametrize("length", [0, HEADER_BYTES - 1, frame.FRAME_BYTES_MAX + 1])
def test_a_length_that_cannot_be_is_refused_before_anything_is_read(length: int) -> None:
    head = HEADER.pack(frame.MAGIC, 3, 0, length, 0, 0, 0, 0, 0, 0)
    with pytest.raises(FrameError):
        frame.frame_length(head)


def test_another_protocol_is_recognised_by_its_first_bytes() -> None:
    with pytest.raises(FrameError, match="not a frame"):
        frame.frame_length(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".ljust(HEADER_BYTES, b"\0"))


@pytest.mark.parametrize("count", [1, 2, 16, 17, 40])
@pytest.mark.parametrize("field", ["dependency_count", "blob_bytes"])
def test_counts_of_ops_that_do_not_add_up_are_refused(count: int, field: str) -> None:
    blobs = [bytes(8)] * count
    ops = [
        frame.pack_op(job, OpKind.NOOP, dependency_count=1, blob_bytes=8) for job in range(count)
    ]
    whole = b"".join(frame.encode(FrameKind.REQUEST, ops, dependencies=range(count), blobs=blobs))
    assert len(frame.decode(whole).ops) == count
    table = np.frombuffer(b"".join(ops), dtype=frame.OP).copy()
    table[field][-1] += 8
    wrong = whole[:HEADER_BYTES] + table.tobytes() + whole[HEADER_BYTES + table.nbytes :]
    with pytest.raises(FrameError, match="do not add up"):
        frame.decode(wrong)
