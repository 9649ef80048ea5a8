"""The compiled form of the frame loop beside the Python form: the same bytes, results and refusals
for whatever comes, whole, cut off or malicious. What is not compiled here is not tested here."""

from __future__ import annotations

import itertools
import random
import struct
import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downstaird.core.engine import RegionDefinition
from downstaird.core.layout import Tuning
from downstaird.core.region import Region
from downstaird.core.region_files import version_for
from downstaird.core.session import Session
from downstaird.core.session_effects import RunWork
from downstaird.store.memory import MemoryDisk
from stairlib import native
from stairlib.model.cipher import AES_256_GCM
from stairlib.model.context import encrypted_check, mismatches, plain_contexts
from stairlib.model.geometry import Geometry
from stairlib.wire.frame import (
    HEADER,
    Frame,
    FrameError,
    FrameKind,
    OpKind,
    decode,
    encode,
    pack_op,
)
from tests.native_forms import in_python, needs_compiled
from vmmd.block import nbd_wire as wire
from vmmd.block.backend import BackendInfo, BlockOp, BlockStatus, Completion, Request
from vmmd.block.nbd_transmission import (
    NbdProtocolError,
    NbdRequest,
    RequestParser,
    check_request,
    data_chunk,
    simple_reply,
)
from vmmd.block.request_run import Run, Whole

pytestmark = needs_compiled

BLOCK = 512


def noise(seed: int, blocks: int) -> bytes:
    return random.Random(seed).randbytes(blocks * BLOCK)


# ---- contexts


@given(st.integers(0, 9), st.sampled_from([512, 4096]), st.integers(0, 1 << 30))
def test_contexts_are_the_same(blocks: int, size: int, seed: int) -> None:
    data = random.Random(seed).randbytes(blocks * size)
    with in_python():
        expected = plain_contexts(data, size)
    found = plain_contexts(data, size)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    assert native.as_told(data, expected, size, True)


@given(st.integers(1, 6), st.integers(0, 1 << 30), st.integers(0, 5), st.integers(0, 31))
def test_a_changed_context_or_block_is_found(blocks: int, seed: int, at: int, byte: int) -> None:
    data = bytearray(noise(seed, blocks))
    contexts = plain_contexts(data, BLOCK).copy()
    place = at % blocks
    if seed % 2:
        contexts.view(np.uint8).reshape(-1)[place * 32 + byte % 16] ^= 1
    else:
        data[place * BLOCK + byte] ^= 1
    with in_python():
        expected = mismatches(data, contexts, BLOCK, encrypted=False)
    assert place in expected
    assert mismatches(data, contexts, BLOCK, encrypted=False) == expected
    assert not native.as_told(data, contexts, BLOCK, True)


@given(st.integers(1, 6), st.integers(0, 1 << 30), st.integers(0, 5), st.integers(0, 31))
def test_encrypted_blocks_are_checked_alike(blocks: int, seed: int, at: int, byte: int) -> None:
    """As sealed; with one changed; and with one that has neither context nor contents."""
    data = bytearray(noise(seed, blocks))
    contexts = np.zeros((blocks, 4), dtype="<u8")
    raw = contexts.view(np.uint8)
    for index in range(blocks):
        head = random.Random(seed + index).randbytes(28)
        check = encrypted_check(head, data[index * BLOCK : (index + 1) * BLOCK])
        raw[index] = np.frombuffer(check.to_bytes(4, "little") + head, dtype=np.uint8)
    assert native.as_told(data, contexts, BLOCK, False)
    assert not mismatches(data, contexts, BLOCK, encrypted=True)
    place = at % blocks
    kind = seed % 3
    if kind == 0:
        raw[place, byte] ^= 1
    elif kind == 1:
        data[place * BLOCK + byte] ^= 1
    else:
        raw[place] = 0
        data[place * BLOCK : (place + 1) * BLOCK] = bytes(BLOCK)
    with in_python():
        expected = mismatches(data, contexts, BLOCK, encrypted=True)
    assert expected == ([] if kind == 2 else [place])
    assert mismatches(data, contexts, BLOCK, encrypted=True) == expected
    # What has no context is left to Python, and so are contexts that lie in another order.
    assert not native.as_told(data, contexts, BLOCK, False)
    turned = b"".join(data[i * BLOCK : (i + 1) * BLOCK] for i in reversed(range(blocks)))
    found = mismatches(turned, contexts[::-1], BLOCK, encrypted=True)
    assert found == [blocks - 1 - index for index in expected]


@pytest.mark.parametrize(("data", "contexts"), [(511, 32), (512, 31), (512, 64), (1024, 32)])
def test_sizes_that_do_not_go_together_are_not_right(data: int, contexts: int) -> None:
    assert not native.as_told(bytes(data), bytes(contexts), BLOCK, True)
    assert not native.as_told(bytes(data), bytes(contexts), 0, True)


# ---- frames

OPS = st.builds(
    lambda job, kind, status, offset, length: {
        "job": job,
        "kind": kind,
        "status": status,
        "offset": offset,
        "length": length,
    },
    st.integers(0, 2**64 - 1),
    st.integers(0, 255),
    st.sampled_from([0, 0, 0, 1, 255]),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
)


def parts(frame: Frame) -> tuple[Any, ...]:
    return (
        frame.kind,
        frame.sequence,
        frame.flags,
        frame.ops.tobytes(),
        frame.dependencies.tolist(),
        bytes(frame.blobs),
        frame.contexts.tolist(),
        bytes(frame.payload),
        frame.answers if frame.op_count else None,
    )


def parsed(data: bytes) -> Any:
    try:
        return parts(decode(data))
    except FrameError as error:
        return str(error)


@given(
    st.lists(OPS, max_size=20),
    st.sampled_from(list(FrameKind)),
    st.binary(max_size=40),
    st.integers(0, 3),
    st.data(),
)
def test_frames_are_read_alike(
    ops: list[dict[str, int]], kind: FrameKind, rest: bytes, contexts: int, data: st.DataObject
) -> None:
    """As they were made, with bytes changed, cut off, and lengthened."""
    blobs = [b"x" * (op["job"] % 9) for op in ops]
    table = [pack_op(**op, blob_bytes=len(b)) for op, b in zip(ops, blobs, strict=True)]
    array = np.arange(contexts * 4, dtype=np.uint64).reshape(-1, 4)
    whole = b"".join(encode(kind, table, sequence=3, blobs=blobs, contexts=array, payload=[rest]))
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    cut = changed[: data.draw(st.integers(0, len(changed)))]
    for each in (whole, bytes(changed), bytes(cut), bytes(changed) + rest):
        with in_python():
            expected = parsed(each)
        assert parsed(each) == expected


@given(st.binary(max_size=200))
def test_any_bytes_are_no_frame_alike(data: bytes) -> None:
    head = HEADER.pack(0x31465753, 3, 0, len(data) + 40, 1, 0, 0, 0, 0, 0)
    for each in (data, head + data):
        with in_python():
            expected = parsed(each)
        assert parsed(each) == expected


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 99), st.integers(1, 3)), max_size=9))
def test_a_request_s_head_is_the_same(ops: list[tuple[int, int, int]]) -> None:
    contexts = plain_contexts(noise(len(ops), len(ops)), BLOCK)
    table = [pack_op(7 + i, k, offset=o, length=n) for i, (k, o, n) in enumerate(ops)]
    expected = encode(
        FrameKind.REQUEST, table, sequence=7, contexts=contexts, payload=[b"12345678"]
    )
    assert native.request_head(7, ops, contexts, 8) == expected[0]


# ---- a session's requests, done at once and step by step

TUNING = Tuning(
    large_bytes=4 * BLOCK,
    arena_bytes=24 * BLOCK,
    log_bytes=12 * 4096,
    log_bytes_max=24 * 4096,
    fresh_context_bytes=6 * 4 * 32,
    cached_context_bytes=2 * 4 * 32,
    step_blocks=3,
    log_zero_bytes=4096,
)
GEOMETRY = Geometry(BLOCK, 8, 4)


class Daemon:
    """One region with one session."""

    def __init__(self, cipher: str) -> None:
        definition = RegionDefinition(
            uuid.UUID(int=7), GEOMETRY, cipher=cipher, format_version=version_for(cipher)
        )
        self.region = Region.create(MemoryDisk(), definition, tuning=TUNING, chunk_bytes=4 * BLOCK)
        self.session = Session(self.region, read_only=False, lane_free=True)
        self.at_once = 0

    def ask(self, data: bytes) -> list[bytes]:
        frame = decode(data)
        if native.compiled:
            served = self.session.at_once(frame)
            if served is not None:
                self.at_once += 1
                reply, patient = served
                assert patient == (frame.ops["kind"][0] == OpKind.WRITE)
                return [reply]
        try:
            self.session.take(frame)
        except FrameError as error:
            return [str(error).encode()]
        found: list[bytes] = []
        while True:
            turn = self.session.run()
            if turn.reply is not None:
                table = decode(b"".join(turn.reply)).ops
                changes = np.isin(table["kind"], (OpKind.WRITE, OpKind.DISCARD)).all()
                assert turn.patient == (changes and not table["status"].any())
                found.append(b"".join(turn.reply))
            works = [effect for effect in turn.effects if isinstance(effect, RunWork)]
            for effect in works:
                effect.work.run()
                self.region.finish_flush(effect.work, None)
                self.session.work_done(effect, None, lane_free=True)
            if not turn.more and not works:
                return found

    def checkpoint(self) -> None:
        if self.region.wants_checkpoint() or self.region.has_log():
            self.region.checkpoint_now()

    def contents(self) -> tuple[Any, ...]:
        contexts, buffers = self.region.read(0, GEOMETRY.block_count)
        states = self.region.extent_states()
        return contexts.tolist(), b"".join(map(bytes, buffers)), states.flags.tolist()


STEP = st.one_of(
    st.tuples(
        st.just("write"),
        st.lists(
            st.tuples(st.integers(0, 33), st.integers(0, 5), st.integers(0, 1 << 20)),
            min_size=1,
            max_size=6,
        ),
        st.sampled_from(["", "", "", "", "context", "payload", "short"]),
    ),
    st.tuples(
        st.just("read"),
        st.lists(st.tuples(st.integers(0, 33), st.integers(0, 9)), min_size=1, max_size=6),
    ),
    st.tuples(st.just("discard"), st.integers(0, 31), st.integers(1, 8)),
    st.tuples(st.just("flush")),
    st.tuples(st.just("checkpoint")),
)


def sealed(data: bytes, cipher: str) -> Any:
    if not cipher:
        return plain_contexts(data, BLOCK)
    made = bytearray()
    for at in range(0, len(data), BLOCK):
        head = bytes(range(28))
        made += struct.pack("<I", encrypted_check(head, data[at : at + BLOCK])) + head
    return np.frombuffer(bytes(made), dtype=np.uint64).reshape(-1, 4)


def request(step: tuple[Any, ...], job: int, flush: int, cipher: str) -> bytes:
    if step[0] == "flush":
        op = pack_op(job, OpKind.FLUSH, number=flush, generation=1)
        return b"".join(encode(FrameKind.REQUEST, [op], sequence=job))
    if step[0] == "discard":
        op = pack_op(job, OpKind.DISCARD, offset=step[1], length=step[2])
        return b"".join(encode(FrameKind.REQUEST, [op], sequence=job))
    if step[0] == "read":
        ops = [
            pack_op(job + i, OpKind.READ, offset=offset, length=length)
            for i, (offset, length) in enumerate(step[1])
        ]
        return b"".join(encode(FrameKind.REQUEST, ops, sequence=job))
    ops = [
        pack_op(job + i, OpKind.WRITE, offset=offset, length=length)
        for i, (offset, length, _seed) in enumerate(step[1])
    ]
    data = bytearray(b"".join(noise(seed, length) for _offset, length, seed in step[1]))
    contexts = sealed(bytes(data), cipher).copy()
    if step[2] == "context" and len(contexts):
        contexts[-1, 0] ^= np.uint64(1)
    elif step[2] == "payload" and data:
        data[-1] ^= 1
    elif step[2] == "short":
        contexts = contexts[:-1]
    return b"".join(
        encode(FrameKind.REQUEST, ops, sequence=job, contexts=contexts, payload=[bytes(data)])
    )


@settings(max_examples=150)
@given(st.lists(STEP, min_size=1, max_size=40), st.sampled_from(["", "", AES_256_GCM]))
def test_a_session_answers_alike_at_once_and_step_by_step(
    steps: list[tuple[Any, ...]], cipher: str
) -> None:
    compiled, python = Daemon(cipher), Daemon(cipher)
    for number, step in enumerate(steps):
        if step[0] == "checkpoint":
            compiled.checkpoint()
            python.checkpoint()
            continue
        data = request(step, 1 + number * 10, 1 + number, cipher)
        found = compiled.ask(data)
        with in_python():
            assert found == python.ask(data), step
    assert compiled.contents() == python.contents()
    assert compiled.session.counters == python.session.counters


def test_most_of_what_a_guest_asks_is_done_at_once() -> None:
    """Else the comparison above would compare nothing."""
    daemon = Daemon("")
    steps = [("write", [(4, 2, 1), (9, 1, 2)], ""), ("read", [(0, 12)]), ("flush",)]
    for number, step in enumerate([*steps, ("read", [(3, 9), (30, 1)])]):
        daemon.ask(request(step, 1 + number * 10, 1, ""))
    assert daemon.at_once == 3


# ---- NBD

INFO = BackendInfo(BLOCK, 64, read_only=False, supports_discard=True)
NBD = st.tuples(
    st.sampled_from([0, 0, 0, 1, 4]),
    st.sampled_from([0, 0, 0, 1, 1, 1, 3, 4, 9]),
    st.integers(0, 2**64 - 1),
    st.one_of(st.integers(0, 65).map(lambda b: b * BLOCK), st.integers(0, 2**64 - 1)),
    st.one_of(st.integers(0, 4).map(lambda b: b * BLOCK), st.integers(0, 3000)),
)


def stream(requests: list[tuple[int, int, int, int, int]]) -> bytes:
    made = b""
    for flags, command, handle, offset, length in requests:
        made += wire.REQUEST.pack(wire.REQUEST_MAGIC, flags, command, handle, offset, length)
        if command == wire.Command.WRITE:
            made += random.Random(handle).randbytes(length)
    return made


def singles(run: Run) -> list[NbdRequest]:
    found = []
    for index, asked in enumerate(run):
        handle, offset, length, _before = run.span(index)
        command = wire.Command.READ if run.reads else wire.Command.WRITE
        data = None if asked.data is None else bytes(asked.data)
        assert asked.token == (run, index)
        assert (asked.offset, asked.length) == (offset, length)
        found.append(NbdRequest(0, command, handle, offset * BLOCK, length * BLOCK, data))
    return found


def taken(parser: RequestParser, info: BackendInfo, room: int, *, runs: bool) -> list[NbdRequest]:
    found: list[NbdRequest] = []
    while True:
        if runs:
            some = parser.runs(info, room, 1 << 20)
            found += [each for run in some for each in singles(run)]
            if some:
                continue
        one = parser.next_request()
        if one is None:
            return found
        found.append(one._replace(payload=None if one.payload is None else bytes(one.payload)))


@given(
    st.lists(NBD, max_size=12),
    st.lists(st.integers(0, 1 << 16), max_size=5),
    st.integers(1, 4),
    st.booleans(),
    st.binary(max_size=30),
)
def test_runs_hold_what_requests_hold(
    requests: list[tuple[int, int, int, int, int]],
    cuts: list[int],
    room: int,
    read_only: bool,
    rest: bytes,
) -> None:
    """In the order of each kind; what a run holds is what would not have been refused."""
    info = BackendInfo(BLOCK, 64, read_only=read_only, supports_discard=not read_only)
    data = stream(requests) + rest
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    found: dict[bool, list[NbdRequest]] = {True: [], False: []}
    for runs in (True, False):
        parser = RequestParser()
        try:
            for start, end in itertools.pairwise(places):
                parser.push(data[start:end])
                got = taken(parser, info, room, runs=runs)
                found[runs] += got
        except NbdProtocolError as error:
            found[runs].append(NbdRequest(0, -1, 0, 0, 0, str(error).encode()))
    for command in {each.command for each in found[False]}:
        mine = [each for each in found[True] if each.command == command]
        assert mine == [each for each in found[False] if each.command == command]
    assert len(found[True]) == len(found[False])


@given(st.binary(max_size=120), st.integers(0, 120), st.integers(0, 120))
def test_any_bytes_make_only_runs_that_are_allowed(data: bytes, start: int, end: int) -> None:
    start, end = sorted((min(start, len(data)), min(end, len(data))))
    used, reads, writes = native.requests(Run, data, start, end, BLOCK, 64, 9, 1 << 20, 4096, False)
    assert 0 <= used <= end - start
    for run in (reads, writes):
        for each in singles(run) if run is not None else ():
            assert check_request(each, INFO) is wire.Error.OK


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 4)), min_size=1, max_size=8),
    st.booleans(),
)
def test_replies_are_the_same(spans: list[tuple[int, int]], structured: bool) -> None:
    for command in (wire.Command.READ, wire.Command.WRITE):
        asked = [(0, int(command), 5 + i, o * BLOCK, n * BLOCK) for i, (o, n) in enumerate(spans)]
        parser = RequestParser()
        parser.push(stream(asked))
        (run,) = parser.runs(INFO, len(spans), 1 << 20)
        expected, data = b"", b""
        for _flags, _command, handle, offset, length in asked:
            if command == wire.Command.WRITE:
                expected += simple_reply(handle, 0)
                continue
            block = random.Random(handle).randbytes(length)
            head = data_chunk(handle, offset, length) if structured else simple_reply(handle, 0)
            expected, data = expected + head + block, data + block
        assert run.replies(data if run.reads else None, structured) == expected
        whole = Whole(run, data if run.reads else None)
        assert len(whole) == len(run) == len(spans)
        assert [each.token for each in whole] == [each.token for each in run]
        assert b"".join(bytes(each.data or b"") for each in whole) == data
        with pytest.raises(ValueError, match="bytes for"):
            run.replies(b"1", structured)


def test_a_run_is_a_sequence_of_requests() -> None:
    parser = RequestParser()
    parser.push(stream([(0, 1, 1, 0, BLOCK), (0, 1, 2, 4 * BLOCK, 2 * BLOCK)]))
    (run,) = parser.runs(INFO, 9, 1 << 20)
    assert run.op is BlockOp.WRITE
    assert run[0] == Request(BlockOp.WRITE, (run, 0), 0, 1, random.Random(1).randbytes(BLOCK))
    assert [each.offset for each in run[0:2]] == [0, 4]
    assert run.token(1) is run[1].token
    assert Whole(run)[1] == Completion((run, 1), BlockStatus.OK)
    sizes = [0] * 20
    run.tally(sizes)
    assert (sizes[9], sizes[10]) == (1, 1)
    with pytest.raises(IndexError):
        run.span(2)
