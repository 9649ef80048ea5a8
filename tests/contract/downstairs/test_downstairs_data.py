"""Blocks over a real data connection: what is written is read, and what goes wrong stays where it
was."""

import asyncio
import socket
import struct
import uuid

import numpy as np
import pytest

from downstaird.data_server import DataConnection, DataServer
from downstaird.faults import CHANCE, FaultPlan
from downstaird.store.memory import MemoryDisk
from stairlib.model.cipher import DEFAULT_CIPHER
from stairlib.model.context import encrypted_check, plain_contexts
from stairlib.wire import frame as wire
from stairlib.wire.frame import FrameKind, OpKind, OpStatus
from stairwell.downstairs.v1 import block_service_pb2 as block_pb

BLOCK = 4096


def pattern(seed, count):
    return np.random.default_rng(seed).bytes(count * BLOCK)


async def test_what_is_written_is_read_and_discard_forgets_it(serve, upstairs):
    downstairs = await serve()
    client = await downstairs.session(upstairs)
    data = pattern(1, 600)
    await client.write(100, data)
    assert await client.read(100, 600) == data
    await client.one(OpKind.DISCARD, offset=110, length=5)
    answer = await client.one(OpKind.READ, offset=109, length=7)
    assert (
        answer.data == data[9 * BLOCK : 10 * BLOCK] + bytes(5 * BLOCK) + data[15 * BLOCK :][:BLOCK]
    )
    assert [row.any() for row in answer.contexts] == [True, *[False] * 5, True]
    await client.one(OpKind.WRITE_UNWRITTEN, offset=109, data=b"u" * 7 * BLOCK)
    assert (await client.read(109, 7))[:BLOCK] == data[9 * BLOCK : 10 * BLOCK]
    assert (await client.read(110, 5)) == b"u" * 5 * BLOCK


async def test_flushed_blocks_and_stamps_are_there_after_a_restart(serve, upstairs):
    disk = MemoryDisk()
    downstairs = await serve(disk)
    client = await downstairs.session(upstairs, 4)
    await client.write(300, pattern(2, 3))
    await client.flush(17, 4)
    assert (await client.states()).tolist()[:2] == [[0, 0, 0], [4, 17, 0]]
    await client.write(0, pattern(3, 1))
    assert (await client.states())[0, 2] == 1
    await downstairs.daemon.stop()
    again = await serve(disk)
    client = await again.session(upstairs, 5)
    assert await client.read(300, 3) == pattern(2, 3)
    assert (await client.states())[1].tolist() == [4, 17, 0]


async def test_a_frame_is_answered_by_one_frame(serve, upstairs):
    downstairs = await serve()
    client = await downstairs.session(upstairs)
    ops = [(OpKind.WRITE, {"offset": n, "data": pattern(n, 1)}) for n in range(32)]
    ops += [(OpKind.READ, {"offset": n, "length": 1}) for n in range(32)]
    answers = await client.do(*ops)
    assert [answer.data for answer in answers[32:]] == [pattern(n, 1) for n in range(32)]


async def test_a_damaged_write_is_refused_alone(serve, upstairs):
    downstairs = await serve()
    client = await downstairs.session(upstairs)
    good, wrong = await client.do(
        (OpKind.WRITE, {"offset": 0, "data": pattern(1, 1)}),
        (
            OpKind.WRITE,
            {"offset": 1, "data": pattern(2, 2), "contexts": plain_contexts(pattern(3, 2), BLOCK)},
        ),
    )
    assert (good.status, wrong.status) == (OpStatus.OK, OpStatus.HASH_MISMATCH)
    assert "blocks 1 to 3" in wrong.text
    assert await client.read(0, 3) == pattern(1, 1) + bytes(2 * BLOCK)


async def test_encrypted_blocks_come_back_with_their_contexts(serve, upstairs):
    downstairs = await serve(cipher=DEFAULT_CIPHER)
    client = await downstairs.session(upstairs, encrypted=True)
    nonce_and_tag, data = bytes(range(28)), pattern(1, 1)
    check = struct.pack("<I", encrypted_check(nonce_and_tag, data))
    context = np.frombuffer(check + nonce_and_tag, dtype="<u8").reshape(1, 4)
    await client.write(9, data, contexts=context)
    answer = await client.one(OpKind.READ, offset=9, length=1)
    assert answer.data == data
    assert (answer.contexts == context).all()
    damaged = await client.one(OpKind.WRITE, offset=9, data=pattern(2, 1), contexts=context)
    assert damaged.status is OpStatus.HASH_MISMATCH


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (OpKind.READ, {"offset": 2047, "length": 2}),
        (OpKind.WRITE, {"offset": 2048, "data": bytes(BLOCK)}),
        (OpKind.DISCARD, {"offset": 1 << 60, "length": 1}),
        (OpKind.EXTENT_DIGEST, {"offset": 7, "length": 2}),
    ],
)
async def test_past_the_end_is_refused_and_the_session_goes_on(serve, upstairs, kind, fields):
    downstairs = await serve()
    client = await downstairs.session(upstairs)
    assert (await client.one(kind, **fields)).status is OpStatus.OUT_OF_RANGE
    assert await client.read(2047, 1) == bytes(BLOCK)


async def test_many_large_reads_at_once_are_all_answered_though_the_peer_is_slow(serve, upstairs):
    downstairs = await serve()
    client = await downstairs.session(upstairs)
    data = pattern(1, 1024)
    await client.write(0, data)
    futures = client.start_ops(*[(OpKind.READ, {"offset": 0, "length": 1024})] * 12)
    answers = await asyncio.wait_for(asyncio.gather(*futures), 60)
    assert all(answer.data == data for answer in answers)


async def test_a_peer_that_never_reads_holds_no_more_than_the_bound(serve, upstairs, monkeypatch):
    monkeypatch.setattr("downstaird.region_host.CHECK_SECONDS", 0.1)
    monkeypatch.setattr("downstaird.conversation.SILENCE_SECONDS", 1.0)
    monkeypatch.setattr("downstaird.data_server.FINISH_SECONDS", 0.2)
    downstairs = await serve()
    answer = await downstairs.open(upstairs)
    client = await downstairs.dial(answer)
    client.send_frame(
        FrameKind.HELLO,
        [wire.pack_op(0, OpKind.NOOP, blob_bytes=32)],
        blobs=[answer.token],
    )
    reads = [wire.pack_op(job, OpKind.READ, offset=0, length=1024) for job in range(200)]
    client.send_frame(FrameKind.REQUEST, reads)
    [connection] = await eventually(lambda: list(downstairs.daemon.data._connections))
    await eventually(lambda: not connection.writable)
    assert connection._transport.get_write_buffer_size() < 20 << 20
    await eventually(lambda: not downstairs.daemon.data._connections)
    assert (await downstairs.get()).active_session_id == ""


async def eventually(condition, seconds=10):
    until = asyncio.get_running_loop().time() + seconds
    while not (value := condition()):
        assert asyncio.get_running_loop().time() < until, "it did not happen in time"
        await asyncio.sleep(0.01)
    return value


@pytest.mark.parametrize(
    "bad",
    [
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" + bytes(64),
        wire.HEADER.pack(wire.MAGIC, 3, 0, 1 << 31, 0, 0, 0, 0, 0, 0),
        wire.HEADER.pack(wire.MAGIC, 3, 0, 40, 5, 0, 0, 0, 0, 0),
        wire.HEADER.pack(wire.MAGIC, 77, 0, 40, 0, 0, 0, 0, 0, 0),
        b"".join(wire.encode(FrameKind.HELLO)),
        b"".join(wire.encode(FrameKind.REQUEST, [wire.pack_op(1, OpKind.WRITE, length=1)])),
        b"".join(wire.encode(FrameKind.REPLY)),
    ],
)
async def test_bad_bytes_end_their_connection_only(serve, upstairs, bad, tmp_path):
    downstairs = await serve()
    client = await downstairs.session(upstairs)
    await client.write(0, pattern(1, 1))
    client.writer.write(bad)
    assert (await client.wait_ended()).startswith("BAD_FRAME")
    again = await downstairs.session(upstairs, 2)
    assert await again.read(0, 1) == pattern(1, 1)


async def test_a_large_first_frame_is_not_waited_for(serve, upstairs):
    downstairs = await serve()
    client = await downstairs.dial(await downstairs.open(upstairs))
    client.writer.write(wire.HEADER.pack(wire.MAGIC, 1, 0, 4 << 20, 0, 0, 0, 0, 0, 0))
    notice = await asyncio.wait_for(client.read_frame(), 5)
    assert notice.kind is FrameKind.NOTICE
    assert notice.blob(0).startswith(b"BAD_FRAME")


async def test_frames_may_come_in_any_pieces(serve, upstairs):
    downstairs = await serve()
    client = await downstairs.session(upstairs)
    frames = [
        b"".join(
            wire.encode(
                FrameKind.REQUEST,
                [wire.pack_op(1000 + n, OpKind.WRITE, offset=n * 3, length=3)],
                contexts=plain_contexts(pattern(n, 3), BLOCK),
                payload=[pattern(n, 3)],
            )
        )
        for n in range(40)
    ]
    futures = [asyncio.get_running_loop().create_future() for _ in frames]
    client.waiting.update({1000 + n: future for n, future in enumerate(futures)})
    stream, rng = b"".join(frames), np.random.default_rng(5)
    at = 0
    while at < len(stream):
        size = int(rng.integers(1, 40_000))
        client.writer.write(stream[at : at + size])
        await client.writer.drain()
        await asyncio.sleep(0)
        at += size
    answers = await asyncio.wait_for(asyncio.gather(*futures), 20)
    assert {answer.status for answer in answers} == {OpStatus.OK}
    assert await client.read(0, 120) == b"".join(pattern(n, 3) for n in range(40))


async def test_a_connection_cut_in_the_middle_of_a_frame_changes_nothing(serve, upstairs):
    downstairs = await serve()
    client = await downstairs.session(upstairs)
    raw = b"".join(
        wire.encode(
            FrameKind.REQUEST,
            [wire.pack_op(1, OpKind.WRITE, offset=0, length=2)],
            contexts=plain_contexts(pattern(1, 2), BLOCK),
            payload=[pattern(1, 2)],
        )
    )
    client.writer.write(raw[:-100])
    await client.writer.drain()
    await client.close()
    again = await downstairs.session(upstairs, 2)
    assert await again.read(0, 2) == bytes(2 * BLOCK)


async def test_writes_and_flushes_at_full_tilt_keep_their_order(serve, upstairs, tmp_path):
    downstairs = await serve(tmp_path / "real")
    client = await downstairs.session(upstairs)
    futures = []
    for turn in range(150):
        futures += client.start_ops(
            (OpKind.WRITE, {"offset": turn % 7, "data": pattern(turn, 2)}),
            (OpKind.FLUSH, {"number": 2 * turn + 1, "generation": 1}),
            (OpKind.READ, {"offset": turn % 7, "length": 2}),
            (OpKind.FLUSH, {"number": 2 * turn + 2, "generation": 1}),
        )
    answers = await asyncio.wait_for(asyncio.gather(*futures), 60)
    assert {answer.status for answer in answers} == {OpStatus.OK}
    for turn in range(150):
        assert answers[4 * turn + 2].data == pattern(turn, 2)


async def test_a_flush_that_fails_says_so_and_poisons_the_region(serve, upstairs):
    disk = MemoryDisk()
    downstairs = await serve(disk)
    client = await downstairs.session(upstairs)
    await client.write(0, pattern(1, 1))
    disk.fail_sync = lambda name: True
    answer = await client.one(OpKind.FLUSH, number=1, generation=1)
    assert answer.status is OpStatus.IO_ERROR
    assert answer.text
    later = await client.one(OpKind.WRITE, offset=5, data=pattern(2, 1))
    assert later.status is not OpStatus.OK
    assert (await client.one(OpKind.FLUSH, number=2, generation=1)).status is not OpStatus.OK
    assert await client.read(0, 1) == pattern(1, 1)


async def test_injected_errors_are_answered_as_errors(serve, upstairs):
    downstairs = await serve(
        faults=FaultPlan(read_errors=CHANCE, write_errors=CHANCE, latency_seconds=0.001)
    )
    client = await downstairs.session(upstairs)
    answers = await client.do(
        *[(OpKind.WRITE, {"offset": n, "data": pattern(n, 1)}) for n in range(200)],
        *[(OpKind.READ, {"offset": n, "length": 1}) for n in range(200)],
    )
    assert {answer.status for answer in answers} == {OpStatus.OK, OpStatus.IO_ERROR}
    for n in range(200):
        if answers[n].status is answers[200 + n].status is OpStatus.OK:
            assert answers[200 + n].data == pattern(n, 1)


async def test_the_same_frames_go_over_a_grpc_stream(serve, upstairs):
    downstairs = await serve()
    answer = await downstairs.open(upstairs)
    call = downstairs.block.Data()

    async def send(*args, **more):
        frame = b"".join(wire.encode(*args, **more))
        for at in range(0, len(frame), 1 << 20):
            await call.write(block_pb.DataRequest(frame=frame[at : at + (1 << 20)]))

    async def receive():
        data = b""
        while len(data) < wire.HEADER_BYTES or len(data) < wire.frame_length(data[:40]):
            data += (await asyncio.wait_for(call.read(), 10)).frame
        return wire.decode(data)

    hello = wire.pack_op(0, OpKind.NOOP, blob_bytes=32)
    await send(FrameKind.HELLO, [hello], blobs=[answer.token])
    assert (await receive()).kind is FrameKind.WELCOME
    data = pattern(1, 1024)
    await send(
        FrameKind.REQUEST,
        [wire.pack_op(1, OpKind.WRITE, offset=8, length=1024)],
        contexts=plain_contexts(data, BLOCK),
        payload=[data],
    )
    assert (await receive()).ops["status"].tolist() == [0]
    await send(FrameKind.REQUEST, [wire.pack_op(2, OpKind.FLUSH, number=1, generation=1)])
    assert (await receive()).ops["job"].tolist() == [2]
    reads = [wire.pack_op(job, OpKind.READ, offset=8, length=1024) for job in range(3, 13)]
    await send(FrameKind.REQUEST, reads)
    for _ in reads:
        assert (await receive()).payload == data
    await send(FrameKind.PING, sequence=9)
    pong = await receive()
    assert (pong.kind, pong.sequence) == (FrameKind.PONG, 9)
    await call.write(block_pb.DataRequest(frame=b"nonsense" * 8))
    notice = await receive()
    assert notice.kind is FrameKind.NOTICE
    assert notice.blob(0).startswith(b"BAD_FRAME")
    await eventually(lambda: not downstairs.daemon.host.conversations)


async def test_a_stream_that_is_cancelled_ends_its_session(serve, upstairs):
    downstairs = await serve()
    answer = await downstairs.open(upstairs, 1, uuid.uuid4())
    call = downstairs.block.Data()
    hello = b"".join(
        wire.encode(
            FrameKind.HELLO, [wire.pack_op(0, OpKind.NOOP, blob_bytes=32)], blobs=[answer.token]
        )
    )
    await call.write(block_pb.DataRequest(frame=hello))
    await asyncio.wait_for(call.read(), 10)
    call.cancel()
    await eventually(lambda: not downstairs.daemon.host.conversations)
    assert (await downstairs.get()).active_session_id == ""


async def test_one_that_is_accepted_while_it_closes_is_let_go(serve):
    """The loop makes a connection some turns after it was accepted, and it may close in between."""
    downstairs = await serve()
    data = DataServer(downstairs.daemon.host)
    await data.close()
    ours, accepted = socket.socketpair()
    loop = asyncio.get_running_loop()
    await loop.connect_accepted_socket(lambda: DataConnection(data), accepted)
    reader, writer = await asyncio.open_connection(sock=ours)
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_flushes_that_go_with_the_next_are_answered_and_stamped_with_it(serve, upstairs):
    """Each in a frame of its own, as they come from a machine."""
    disk = MemoryDisk()
    downstairs = await serve(disk)
    client = await downstairs.session(upstairs, 4)
    later = {"generation": 4, "flags": wire.FLUSH_WITH_NEXT}
    waiting = []
    for number, block in ((1, 0), (2, 300), (3, 600)):
        waiting += client.start_ops((OpKind.WRITE, {"offset": block, "data": pattern(number, 1)}))
        flags = later if number < 3 else {"generation": 4}
        waiting += client.start_ops((OpKind.FLUSH, {"number": number, **flags}))
    answers = await asyncio.wait_for(asyncio.gather(*waiting), 10)
    assert {answer.status for answer in answers} == {OpStatus.OK}
    assert (await client.states())[:3, 1].tolist() == [1, 2, 3]
    await downstairs.daemon.stop()
    again = await serve(disk)
    client = await again.session(upstairs, 5)
    assert (await client.states())[:3, 1].tolist() == [1, 2, 3]
    assert await client.read(300, 1) == pattern(2, 1)


async def test_a_connection_may_break_before_the_next_one(serve, upstairs):
    """What was written is there, as after any break. The stamp is that of the next session's flush:
    that of the first would tell that everything up to it is there, and not be sent again."""
    downstairs = await serve()
    client = await downstairs.session(upstairs, 4)
    await client.write(0, pattern(1, 1))
    later = {"generation": 4, "flags": wire.FLUSH_WITH_NEXT}
    [waiting] = client.start_ops((OpKind.FLUSH, {"number": 1, **later}))
    # It is not answered by anything else.
    assert (await client.states())[0].tolist() == [0, 0, 1]
    assert not waiting.done()
    await client.close()
    client = await downstairs.session(upstairs, 5)
    assert await client.read(0, 1) == pattern(1, 1)
    await client.flush(2, 5)
    assert (await client.states())[0].tolist() == [5, 2, 0]
