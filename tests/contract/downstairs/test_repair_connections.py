"""Blocks of a repair that travel on a connection of their own: who gets one, and that no way of
losing, changing or refusing it gives a copy that is not the source's."""

import asyncio
import socket
import threading
import time
import uuid

import grpc
import pytest

from downstaird import repair_intake
from downstaird.core.repair_plan import CopySource
from downstaird.repair_intake import IDLE_SECONDS, Intake, Intakes
from downstaird.repair_sending import BlockConnection
from downstaird.services.repair_service import RepairServicer
from downstaird.store.files import DirectoryFile
from stairlib.model.context import written
from stairlib.model.errors import RefusedError, StateError
from stairlib.wire.frame import OpKind, OpStatus
from stairlib.wire.repair_chunk import decode_chunk
from stairwell.downstairs.v1 import repair_service_pb2 as repair_pb
from tests.certificates import Authority
from tests.contract.downstairs.conftest import DataClient, EndedError
from tests.contract.downstairs.test_downstairs_repair import (
    BLOCK,
    EXTENTS,
    PER_EXTENT,
    begin,
    copies,
    equal,
    eventually,
    flush,
    pattern,
    rot,
)

MOVED = EXTENTS * PER_EXTENT * BLOCK
WAIT_SECONDS = 30
ONE_LOOP = True


class Sent:
    """Counts what left by sendfile; `change` may do to each piece what a medium or a checkpoint
    can."""

    def __init__(self, monkeypatch):
        self.bytes = 0
        self.change = None
        real = DirectoryFile.sendfile

        def sendfile(file, descriptor, offset, size):
            if self.change is not None:
                offset = self.change(offset)
            count = real(file, descriptor, offset, size)
            self.bytes += count
            return count

        monkeypatch.setattr(DirectoryFile, "sendfile", sendfile)


@pytest.fixture
def sent(monkeypatch):
    return Sent(monkeypatch)


async def pair(serve, upstairs, root, extents=EXTENTS, **how):
    """A source that is full, a target to be filled, and a session of each."""
    source, target = await serve(root / "a", **how), await serve(root / "b", **how)
    a, b = await source.session(upstairs), await target.session(upstairs)
    for extent in range(extents):
        await a.write(extent * PER_EXTENT, pattern(extent, PER_EXTENT))
    await a.flush(1)
    await b.do(begin(), flush(1))
    return source, target, a, b


async def copied(b, source, upstairs, extents=range(EXTENTS)):
    answers = await asyncio.wait_for(
        asyncio.gather(*b.start_ops(*copies(source, upstairs, 1, extents))), WAIT_SECONDS
    )
    assert {answer.status for answer in answers} == {OpStatus.OK}, answers
    return sum(answer.number for answer in answers)


async def whole(a, b):
    for client in (a, b):
        await client.flush(2)
    assert (await b.one(OpKind.REPAIR_END)).status is OpStatus.OK
    await equal(a, b)
    for extent in (0, EXTENTS - 1):
        assert await b.read(extent * PER_EXTENT, PER_EXTENT) == pattern(extent, PER_EXTENT)


def ask(upstairs, generation=1):
    return repair_pb.OpenBlockConnectionRequest(upstairs_id=str(upstairs), generation=generation)


@pytest.mark.parametrize("way", ["unix", "tcp"])
async def test_blocks_travel_beside_the_messages(serve, upstairs, tmp_path, sent, way):
    source, _, a, b = await pair(serve, upstairs, tmp_path)
    if way == "tcp":
        source.daemon.data.unix_path = None
    assert await copied(b, source, upstairs) == MOVED
    assert sent.bytes == MOVED
    await whole(a, b)


class Older(RepairServicer):
    """Of a release that knows no such connection."""

    async def OpenBlockConnection(self, request, context):
        del request
        await context.abort(12, "Method not found!")


@pytest.mark.parametrize("why", ["an older release", "not reached", "too many"])
async def test_blocks_come_in_messages_where_there_is_no_connection(
    serve, upstairs, tmp_path, sent, monkeypatch, why
):
    if why == "an older release":
        monkeypatch.setattr(RepairServicer, "OpenBlockConnection", Older.OpenBlockConnection)
    elif why == "too many":
        monkeypatch.setattr("downstaird.core.block_tokens.BLOCK_CONNECTIONS_MAX", 0)
    source, _, a, b = await pair(serve, upstairs, tmp_path)
    if why == "not reached":
        source.daemon.data.unix_path = None
        source.daemon.data.port = 1
    assert await copied(b, source, upstairs) == MOVED
    assert sent.bytes == 0
    await whole(a, b)


async def test_over_tls_blocks_come_in_messages(serve, upstairs, tmp_path, sent):
    files = Authority(tmp_path / "certificates").issue("daemon", "downstairs1")
    source, _, a, b = await pair(serve, upstairs, tmp_path, tls=files)
    answer = await source.call(source.repair.OpenBlockConnection, ask(upstairs))
    assert not answer.token
    assert await copied(b, source, upstairs) == MOVED
    assert sent.bytes == 0
    await whole(a, b)


async def test_a_connection_cut_in_the_middle_fails_the_copy_and_it_is_gone_on_with(
    serve, upstairs, tmp_path, sent, monkeypatch
):
    source, target, a, b = await pair(serve, upstairs, tmp_path)
    connections = set()
    real = BlockConnection.send

    def cut(connection, work):
        connections.add(connection)
        real(connection, work)
        if sent.bytes > MOVED // 2:
            connection._socket.shutdown(2)

    with monkeypatch.context() as patched:
        patched.setattr(BlockConnection, "send", cut)
        # An extent in several steps.
        await b.one(OpKind.REPAIR_LIMIT, number=7 << 20)
        futures = b.start_ops(*copies(source, upstairs, 1))
        answers = await asyncio.wait_for(asyncio.gather(*futures), WAIT_SECONDS)
    failed = [answer for answer in answers if answer.status is not OpStatus.OK]
    assert failed
    assert {answer.status for answer in failed} == {OpStatus.REPAIR_SOURCE}
    assert all(source.address in answer.text for answer in failed)
    stored = target.daemon.host.engine
    there = int(written(stored.contexts(0, EXTENTS * PER_EXTENT)).sum()) * BLOCK
    assert 0 < there < MOVED
    before = sent.bytes
    # What had come does not come again, and the connections are new ones.
    assert await copied(b, source, upstairs) == MOVED - there
    assert sent.bytes - before == MOVED - there
    await whole(a, b)


async def test_a_bit_that_flips_on_the_sources_medium_is_not_copied(
    serve, upstairs, tmp_path, sent
):
    source, target, _, b = await pair(serve, upstairs, tmp_path, extents=2)
    rot(tmp_path / "a", pattern(0, PER_EXTENT)[7 * BLOCK : 8 * BLOCK])
    bad, good = await b.do(*copies(source, upstairs, 1, (0, 1)))
    assert sent.bytes == 2 * PER_EXTENT * BLOCK
    assert bad.status is OpStatus.SOURCE_DAMAGED
    assert "damaged block 7" in bad.text
    assert not target.daemon.host.engine.contexts(7, 1).any()
    assert good.status is OpStatus.OK
    assert await b.read(PER_EXTENT, PER_EXTENT) == pattern(1, PER_EXTENT)


async def test_what_changed_while_it_was_sent_is_asked_for_again(serve, upstairs, tmp_path, sent):
    source, _, a, b = await pair(serve, upstairs, tmp_path)
    # Of other blocks: as when a place was freed and written again.
    sent.change = lambda offset: offset ^ 4096
    assert await copied(b, source, upstairs) == MOVED
    assert sent.bytes
    await whole(a, b)


async def test_a_medium_that_gives_no_block_is_no_lost_connection(
    serve, upstairs, tmp_path, monkeypatch
):
    source, _, _, b = await pair(serve, upstairs, tmp_path, extents=1)

    def fails(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.sendfile", fails)
    [answer] = await b.do(*copies(source, upstairs, 1, [0]))
    assert answer.status is OpStatus.SOURCE_DAMAGED
    assert "Input/output error" in answer.text


async def test_only_the_set_that_owns_the_region_gets_a_connection(serve, upstairs, tmp_path):
    source, _, _, _ = await pair(serve, upstairs, tmp_path, extents=1)
    for who, generation, kind, reason in (
        (uuid.uuid4(), 1, RefusedError, "OWNER_MISMATCH"),
        (upstairs, 2, StateError, "GENERATION_MISMATCH"),
    ):
        with pytest.raises(kind) as caught:
            await source.call(source.repair.OpenBlockConnection, ask(who, generation))
        assert caught.value.reason == reason


async def dialled(source, upstairs):
    """A connection as a target has it."""
    where = CopySource(source.address, upstairs, 1, None)
    intake = await Intakes().take(where, source.channel)
    [connection] = source.daemon.host.repair_sending._tokens.all()
    # Less than an extent: who sends has to wait for who takes.
    connection._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
    return intake


def stream(source, upstairs, token):
    request = repair_pb.StreamExtentRequest(
        upstairs_id=str(upstairs),
        generation=1,
        ranges=[repair_pb.BlockRange(first_block=0, block_count=PER_EXTENT)],
        chunk_bytes=PER_EXTENT * BLOCK,
        block_token=token,
    )
    return source.repair.StreamExtent(request)


async def test_a_token_is_good_once_and_names_its_connection(serve, upstairs, tmp_path):
    source, _, _, _ = await pair(serve, upstairs, tmp_path, extents=1)
    intake = await dialled(source, upstairs)
    streams = await asyncio.open_connection("127.0.0.1", source.daemon.data.port)
    client = DataClient(*streams, BLOCK)
    with pytest.raises(EndedError, match="TOKEN_UNKNOWN"):
        await client.hello(intake.token)
    client.writer.close()
    for token in (b"made up", bytes(len(intake.token))):
        with pytest.raises(grpc.aio.AioRpcError, match="no block connection"):
            await stream(source, upstairs, token).read()
    # One call at a time has it.
    first = stream(source, upstairs, intake.token)
    assert decode_chunk((await first.read()).SerializeToString()).sent_bytes
    with pytest.raises(grpc.aio.AioRpcError, match="in use by another call"):
        await stream(source, upstairs, intake.token).read()
    # Who says anything on it is cut off.
    intake._socket.send(b"x")
    with pytest.raises(grpc.aio.AioRpcError, match="lost"):
        await first.read()
    with pytest.raises(grpc.aio.AioRpcError, match="no block connection"):
        await stream(source, upstairs, intake.token).read()
    intake.close()


async def test_a_source_that_stops_waits_for_nobody_who_takes_no_blocks(serve, upstairs, tmp_path):
    source, _, _, _ = await pair(serve, upstairs, tmp_path, extents=1)
    intake = await dialled(source, upstairs)
    call = stream(source, upstairs, intake.token)
    assert (await call.read()).sent_bytes == PER_EXTENT * BLOCK
    await asyncio.wait_for(source.daemon.stop(), WAIT_SECONDS)
    intake.close()


async def test_a_limit_holds_on_the_connection_and_can_be_lifted(serve, upstairs, tmp_path, sent):
    source, target, a, b = await pair(serve, upstairs, tmp_path)
    await b.one(OpKind.REPAIR_LIMIT, number=2 << 20)
    began = time.monotonic()
    assert await copied(b, source, upstairs, (0, 1)) == 2 << 20
    assert time.monotonic() - began > 0.6
    assert sent.bytes == 2 << 20
    await b.one(OpKind.REPAIR_LIMIT, number=1)
    futures = b.start_ops(*copies(source, upstairs, 1, range(2, EXTENTS)))
    stored = target.daemon.host.engine
    await eventually(lambda: stored.contexts(2 * PER_EXTENT, 6 * PER_EXTENT).any())
    # The others wait for days, and one alone may go on: it does not wait for what the others hold.
    await b.one(OpKind.REPAIR_LIMIT, number=0, length=1)
    answers = await asyncio.wait_for(asyncio.gather(*futures), WAIT_SECONDS)
    assert {answer.status for answer in answers} == {OpStatus.OK}
    assert sent.bytes == MOVED
    await whole(a, b)


async def test_steps_are_of_the_limits_size_however_busy_the_source_is(
    serve, upstairs, tmp_path, sent, monkeypatch
):
    source, _, a, b = await pair(serve, upstairs, tmp_path)
    sizes = []
    real = BlockConnection.send

    def noted(connection, work):
        sizes.append(sum(size for size, _ in work.parts))
        real(connection, work)

    monkeypatch.setattr(BlockConnection, "send", noted)
    # Eight steps a second, each of an extent.
    await b.one(OpKind.REPAIR_LIMIT, number=8 * PER_EXTENT * BLOCK)
    futures = b.start_ops(*copies(source, upstairs, 1))
    while not all(future.done() for future in futures):
        await a.read(0, 1)
    assert {future.result().status for future in futures} == {OpStatus.OK}
    assert sizes == [PER_EXTENT * BLOCK] * EXTENTS
    await whole(a, b)


async def test_the_end_of_the_session_wakes_who_waits_for_blocks(
    serve, upstairs, tmp_path, monkeypatch
):
    waits, left, may_go = threading.Event(), threading.Event(), threading.Event()
    receive = Intake.receive

    def held(_connection, _work):
        assert may_go.wait(WAIT_SECONDS)
        raise ConnectionResetError("held for long")

    def noted(intake, part):
        waits.set()
        try:
            receive(intake, part)
        finally:
            left.set()

    monkeypatch.setattr(BlockConnection, "send", held)
    monkeypatch.setattr(Intake, "receive", noted)
    source, target, _, b = await pair(serve, upstairs, tmp_path, extents=1)
    b.start_ops(*copies(source, upstairs, 1, [0]))
    await eventually(waits.is_set)
    await b.close()
    # Well before the silence of the source would have woken it.
    await eventually(left.is_set, IDLE_SECONDS / 2)
    may_go.set()
    await eventually(lambda: not target.daemon.host.repair_threads.busy)
    assert not target.daemon.host.engine.contexts(0, PER_EXTENT).any()


async def test_connections_go_when_the_copies_have_been_done_for_a_while(
    serve, upstairs, tmp_path, sent, monkeypatch
):
    source, _, _, b = await pair(serve, upstairs, tmp_path)
    tokens = source.daemon.host.repair_sending._tokens
    assert await copied(b, source, upstairs, (0,)) == PER_EXTENT * BLOCK
    assert len(tokens.all()) == 1
    assert await copied(b, source, upstairs, (1,)) == PER_EXTENT * BLOCK
    assert len(tokens.all()) == 1
    monkeypatch.setattr(repair_intake, "KEEP_SECONDS", 0.05)
    b.writer.transport.abort()
    target = await serve(tmp_path / "c")
    c = await target.session(upstairs)
    await c.do(begin(), flush(1))
    await eventually(lambda: not tokens.all())
    before = sent.bytes
    assert await copied(c, source, upstairs, (0,)) == PER_EXTENT * BLOCK
    assert sent.bytes - before == PER_EXTENT * BLOCK
    await eventually(lambda: not tokens.all())
    # The next ones dial anew.
    assert await copied(c, source, upstairs, (1,)) == PER_EXTENT * BLOCK
    assert sent.bytes - before == 2 * PER_EXTENT * BLOCK
