"""Live repair between daemons: equal contents at the end, whatever is written meanwhile, and
whoever is lost."""

import asyncio
import json
import uuid

import numpy as np
import pytest

from downstaird import extent_copier
from downstaird.core.repair_plan import checksum
from downstaird.services import repair_service
from downstaird.services.repair_service import RepairServicer
from downstaird.store.memory import MemoryDisk
from stairlib.model.context import written
from stairlib.model.errors import RefusedError, StateError
from stairlib.model.geometry import Geometry
from stairlib.telemetry.tracing import Tracing, traceparent
from stairlib.wire.frame import FLAG_INCOMPLETE, OpKind, OpStatus, extent_marks
from stairlib.wire.repair_chunk import Chunk, decode_chunk, encode_chunk
from stairwell.downstairs.v1 import repair_service_pb2 as repair_pb
from stairwell.telemetry.v1 import trace_service_pb2 as trace_pb

BLOCK = 4096
EXTENTS = 8
PER_EXTENT = 256


def pattern(seed, count):
    return np.random.default_rng(seed).bytes(count * BLOCK)


def source_blob(source, upstairs, generation, trace=None):
    fields = {
        "address": source.address,
        "upstairs_id": str(upstairs),
        "generation": generation,
        "traceparent": trace,
    }
    return json.dumps(fields).encode()


def begin(extents=range(EXTENTS)):
    return OpKind.REPAIR_BEGIN, {"blob": extent_marks(list(extents)).tobytes()}


def copies(source, upstairs, generation, extents=range(EXTENTS), trace=None):
    blob = source_blob(source, upstairs, generation, trace)
    return [(OpKind.EXTENT_COPY, {"offset": extent, "blob": blob}) for extent in extents]


def flush(number, generation=1):
    return OpKind.FLUSH, {"number": number, "generation": generation}


class Mirror:
    """Sends the same changes to two sessions, in the same order."""

    def __init__(self, *clients):
        self.clients = clients
        self.number = 0

    def start(self, *ops):
        return [future for client in self.clients for future in client.start_ops(*ops)]

    async def do(self, *ops):
        answers = await asyncio.wait_for(asyncio.gather(*self.start(*ops)), 30)
        assert {answer.status for answer in answers} == {OpStatus.OK}, answers
        return answers

    async def flush(self):
        self.number += 1
        await self.do(flush(self.number))


async def fill(client, seed, extents=range(EXTENTS), blocks=64):
    for extent in extents:
        await client.write(extent * PER_EXTENT + 3, pattern(seed + extent, blocks))


async def equal(a, b):
    """Whether both hold the same blocks and stamps."""
    assert (await a.digests(EXTENTS)) == (await b.digests(EXTENTS))
    assert (await a.states()).tolist() == (await b.states()).tolist()


async def test_an_empty_region_is_filled_from_another(serve, upstairs):
    source, target = await serve(), await serve()
    a, b = await source.session(upstairs), await target.session(upstairs)
    await fill(a, 100, extents=range(0, EXTENTS, 2))
    await a.flush(1)
    [began] = await b.do(begin())
    assert began.status is OpStatus.OK
    assert ((await b.states())[:, 2] & FLAG_INCOMPLETE).all()
    mirror = Mirror(a, b)
    mirror.number = 1
    await mirror.flush()
    answers = await b.do(*copies(source, upstairs, 1))
    assert {answer.status for answer in answers} == {OpStatus.OK}, answers
    assert [answer.number for answer in answers] == [64 * BLOCK, 0] * 4
    assert (await b.one(OpKind.REPAIR_END)).status is not OpStatus.OK
    await mirror.flush()
    assert (await b.one(OpKind.REPAIR_END)).status is OpStatus.OK
    await equal(a, b)
    for extent in range(0, EXTENTS, 2):
        assert await b.read(extent * PER_EXTENT + 3, 64) == pattern(100 + extent, 64)


async def test_contents_are_equal_after_a_repair_under_writes(serve, upstairs, tmp_path):
    source, target = await serve(tmp_path / "a"), await serve(tmp_path / "b")
    a, b = await source.session(upstairs), await target.session(upstairs)
    await fill(a, 1, blocks=200)
    await fill(b, 50, extents=range(3), blocks=100)
    await a.flush(1)
    mirror = Mirror(a, b)
    mirror.number = 1
    started = b.start_ops(begin())
    rng = np.random.default_rng(7)
    done = asyncio.Event()

    async def load():
        turn = 0
        while not done.is_set() or turn < 60:
            turn += 1
            at = int(rng.integers(0, EXTENTS * PER_EXTENT - 40))
            kind = (OpKind.WRITE, OpKind.WRITE, OpKind.DISCARD)[turn % 3]
            count = int(rng.integers(1, 40))
            fields = {"offset": at, "length": count}
            if kind is not OpKind.DISCARD:
                fields = {"offset": at, "data": pattern(1000 + turn, count)}
            await mirror.do((kind, fields))
            if turn % 9 == 0:
                await mirror.flush()
        return turn

    loading = asyncio.create_task(load())
    await asyncio.gather(*started)
    await mirror.flush()
    for extents in ((0, 1, 2, 3), (4, 5, 6, 7)):
        answers = await b.do(*copies(source, upstairs, 1, extents))
        assert {answer.status for answer in answers} == {OpStatus.OK}, answers
    done.set()
    assert await loading >= 60
    await mirror.flush()
    assert (await b.one(OpKind.REPAIR_END)).status is OpStatus.OK
    await equal(a, b)
    assert not ((await b.states())[:, 2] & FLAG_INCOMPLETE).any()


@pytest.mark.parametrize("geometry", [(4096, 512, 8), (512, 256, 8), (4096, 256, 9)])
async def test_a_source_with_another_geometry_is_refused(serve, upstairs, geometry):
    source, target = await serve(geometry=Geometry(*geometry)), await serve()
    await source.session(upstairs)
    b = await target.session(upstairs)
    await b.write(3, pattern(1, 4))
    await b.flush(1)
    await b.do(begin([0]))
    [answer] = await b.do(*copies(source, upstairs, 1, [0]))
    assert answer.status is not OpStatus.OK
    assert Geometry(*geometry).describe() in str(answer), answer
    # Nothing was taken from it.
    assert await b.read(3, 4) == pattern(1, 4)
    assert (await b.states())[0, 2] & FLAG_INCOMPLETE


async def test_extents_that_are_equal_already_cost_no_blocks(serve, upstairs):
    source, target = await serve(), await serve()
    a, b = await source.session(upstairs), await target.session(upstairs)
    mirror = Mirror(a, b)
    await fill(a, 1)
    await fill(b, 1)
    await mirror.flush()
    await a.write(0, pattern(9, 1))
    await b.do(begin())
    await mirror.flush()
    answers = await b.do(*copies(source, upstairs, 1))
    assert [answer.number for answer in answers] == [BLOCK] + [0] * 7
    assert "StreamExtent" in spans_of(source)
    await mirror.flush()
    await b.one(OpKind.REPAIR_END)
    await equal(a, b)


def spans_of(downstairs):
    """Names of the server spans it finished, in one text."""
    store = downstairs.tracing._store
    raw = (span for trace_id in list(store._traces) for span in store.spans(trace_id))
    return " ".join(trace_pb.Span.FromString(each).name for each in raw)


async def test_an_extent_with_nothing_stored_costs_one_call(serve, upstairs):
    source, target = await serve(), await serve()
    a, b = await source.session(upstairs), await target.session(upstairs)
    await b.do(begin([0]))
    await Mirror(a, b).flush()
    await b.do(*copies(source, upstairs, 1, [0]))
    names = spans_of(source)
    assert names.count("GetExtentContexts") == 1
    assert "StreamExtent" not in names


async def test_what_the_source_never_wrote_is_forgotten_by_the_target(serve, upstairs):
    source, target = await serve(), await serve()
    a, b = await source.session(upstairs), await target.session(upstairs)
    await fill(b, 1, extents=[2])
    await b.do(begin([2]))
    await Mirror(a, b).flush()
    [answer] = await b.do(*copies(source, upstairs, 1, [2]))
    assert answer.status is OpStatus.OK
    answer = await b.one(OpKind.READ, offset=2 * PER_EXTENT, length=PER_EXTENT)
    assert not answer.contexts.any()
    assert answer.data == bytes(PER_EXTENT * BLOCK)


async def test_a_source_lost_in_the_middle_fails_the_copy_and_another_goes_on(serve, upstairs):
    source, target = await serve(), await serve()
    a, b = await source.session(upstairs), await target.session(upstairs)
    await fill(a, 1)
    await a.flush(1)
    await b.do(begin(), flush(2))
    # One chunk comes through, and no other.
    await b.one(OpKind.REPAIR_LIMIT, number=1)
    futures = b.start_ops(*copies(source, upstairs, 1))
    stored = target.daemon.host.engine
    await eventually(lambda: stored.contexts(0, EXTENTS * PER_EXTENT).any())
    await source.daemon.stop()
    await b.one(OpKind.REPAIR_LIMIT, number=0)
    answers = await asyncio.wait_for(asyncio.gather(*futures), 30)
    # What had left the source already may still have arrived.
    failed = [answer for answer in answers if answer.status is not OpStatus.OK]
    assert len(failed) >= 4
    assert {answer.status for answer in failed} == {OpStatus.REPAIR_SOURCE}
    assert all(source.address in answer.text for answer in failed)
    assert (await b.one(OpKind.REPAIR_END)).status is not OpStatus.OK
    again = await serve(source.place)
    await b.one(OpKind.REPAIR_LIMIT, number=0)
    there = written(stored.contexts(0, EXTENTS * PER_EXTENT)).sum()
    answers = await b.do(*copies(again, upstairs, 1))
    assert {answer.status for answer in answers} == {OpStatus.OK}, answers
    # Gone on with where it was: what had come does not come again.
    all_of_it = written(stored.contexts(0, EXTENTS * PER_EXTENT)).sum()
    assert 0 < there < all_of_it
    assert sum(answer.number for answer in answers) == (all_of_it - there) * BLOCK
    await b.flush(3)
    assert (await b.one(OpKind.REPAIR_END)).status is OpStatus.OK
    for extent in range(EXTENTS):
        assert await b.read(extent * PER_EXTENT + 3, 64) == pattern(1 + extent, 64)


async def eventually(condition, seconds=20):
    until = asyncio.get_running_loop().time() + seconds
    while not (value := condition()):
        assert asyncio.get_running_loop().time() < until, "it did not happen in time"
        await asyncio.sleep(0.01)
    return value


async def test_a_source_that_is_not_there_is_an_answer_not_a_hang(serve, upstairs):
    target = await serve()
    b = await target.session(upstairs)
    await b.do(begin([0]))
    blob = json.dumps(
        {"address": "127.0.0.1:1", "upstairs_id": str(upstairs), "generation": 1}
    ).encode()
    answer = await b.one(OpKind.EXTENT_COPY, offset=0, blob=blob)
    assert answer.status is OpStatus.REPAIR_SOURCE
    assert "127.0.0.1:1" in answer.text


def rot(directory, block):
    """Flips a bit of the block of that content, wherever the region's files hold it."""
    found = 0
    for path in (path for path in directory.rglob("*") if path.is_file()):
        at = path.read_bytes().find(block)
        if at >= 0:
            found += 1
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes([block[0] ^ 1]))
    assert found


async def test_a_damaged_block_of_the_source_is_no_absence_of_it(serve, upstairs, tmp_path):
    """It is told apart, a rehearsal finds it out beforehand, and nothing of it is taken over."""
    source, target = await serve(tmp_path / "a"), await serve(tmp_path / "b")
    a, b = await source.session(upstairs), await target.session(upstairs)
    data = pattern(5, PER_EXTENT)
    for extent in (0, 1):
        await a.write(extent * PER_EXTENT, data)
    await a.flush(1)
    rot(tmp_path / "a", data[7 * BLOCK : 8 * BLOCK])
    blob = source_blob(source, upstairs, 1)
    before = await b.digests(EXTENTS)
    answer = await b.one(OpKind.COPY_CHECK, offset=0, blob=blob)
    assert answer.status is OpStatus.SOURCE_DAMAGED
    assert "damaged block 7" in answer.text
    well = await b.one(OpKind.COPY_CHECK, offset=2, blob=blob)
    assert well.status is OpStatus.OK
    assert await b.digests(EXTENTS) == before
    assert not ((await b.states())[:, 2] & FLAG_INCOMPLETE).any()
    await b.do(begin([0]))
    [answer] = await b.do(*copies(source, upstairs, 1, [0]))
    assert answer.status is OpStatus.SOURCE_DAMAGED


async def test_a_damaged_block_that_is_not_needed_is_left_out(serve, upstairs, tmp_path):
    """The target has it, by its context; it comes along in a step of which most differs."""
    source, target = await serve(tmp_path / "a"), await serve(tmp_path / "b")
    a, b = await source.session(upstairs), await target.session(upstairs)
    data = pattern(6, PER_EXTENT)
    seventh = data[7 * BLOCK : 8 * BLOCK]
    await a.write(0, data)
    await b.write(7, seventh)
    mirror = Mirror(a, b)
    await mirror.flush()
    rot(tmp_path / "a", seventh)
    answer = await b.one(OpKind.COPY_CHECK, offset=0, blob=source_blob(source, upstairs, 1))
    assert answer.status is OpStatus.OK
    await b.do(begin([0]))
    await mirror.flush()
    [answer] = await b.do(*copies(source, upstairs, 1, [0]))
    assert answer.status is OpStatus.OK
    await mirror.flush()
    assert (await b.one(OpKind.REPAIR_END)).status is OpStatus.OK
    assert await b.read(0, PER_EXTENT) == data
    assert await b.digests(1) == await a.digests(1)


async def test_an_incomplete_extent_is_no_source(serve, upstairs):
    source, target = await serve(), await serve()
    a, b = await source.session(upstairs), await target.session(upstairs)
    await a.do(begin([3]))
    await b.do(begin([3]), flush(1))
    [answer] = await b.do(*copies(source, upstairs, 1, [3]))
    assert answer.status is OpStatus.REPAIR_SOURCE
    assert "under repair" in answer.text


async def test_strangers_may_not_copy(serve, upstairs):
    source = await serve()
    await source.session(upstairs, 4)
    for who, generation, kind, reason in (
        (uuid.uuid4(), 4, RefusedError, "OWNER_MISMATCH"),
        (upstairs, 3, StateError, "GENERATION_MISMATCH"),
        (upstairs, 5, StateError, "GENERATION_MISMATCH"),
    ):
        request = repair_pb.GetExtentContextsRequest(
            upstairs_id=str(who), generation=generation, extent=0
        )
        with pytest.raises(kind) as caught:
            await source.call(source.repair.GetExtentContexts, request)
        assert caught.value.reason == reason


async def test_the_end_of_the_session_ends_its_copies(serve, upstairs):
    source, target = await serve(), await serve()
    a, b = await source.session(upstairs), await target.session(upstairs)
    await fill(a, 1, blocks=200)
    await b.do(begin(), flush(1))
    await b.one(OpKind.REPAIR_LIMIT, number=256 << 10)
    b.start_ops(*copies(source, upstairs, 1))
    engine = target.daemon.host.engine
    await eventually(lambda: engine.contexts(0, PER_EXTENT).any())
    await b.close()
    c = await target.session(upstairs, 2)
    before = await c.digests(EXTENTS)
    await asyncio.sleep(0.7)
    assert await c.digests(EXTENTS) == before
    assert ((await c.states())[:, 2] & FLAG_INCOMPLETE).all()


async def test_incomplete_marks_outlive_the_daemon(serve, upstairs):
    disk = MemoryDisk()
    target = await serve(disk)
    b = await target.session(upstairs)
    await b.write(5 * PER_EXTENT, pattern(1, 4))
    await b.flush(3)
    await b.do(begin([5]))
    await target.daemon.stop()
    again = await serve(disk)
    c = await again.session(upstairs, 2)
    assert (await c.states())[5].tolist() == [0, 0, FLAG_INCOMPLETE]
    assert (await again.get()).incomplete_extents == 1


async def test_the_rate_of_copies_is_bounded(serve, upstairs):
    source, target = await serve(), await serve()
    a, b = await source.session(upstairs), await target.session(upstairs)
    await fill(a, 1, extents=range(4), blocks=128)
    await b.do(begin(), flush(1))
    await b.one(OpKind.REPAIR_LIMIT, number=2 << 20)
    loop = asyncio.get_running_loop()
    began = loop.time()
    answers = await b.do(*copies(source, upstairs, 1))
    assert sum(answer.number for answer in answers) == 2 << 20
    assert loop.time() - began > 0.6


async def test_a_copy_is_a_span_of_the_callers_trace_on_both_sides(serve, upstairs):
    source, target = await serve(), await serve()
    a, b = await source.session(upstairs), await target.session(upstairs)
    await fill(a, 1, extents=[0])
    await b.do(begin([0]), flush(1))
    caller = Tracing("upstairs", "test")
    with caller.tracer.start_as_current_span("repair") as span:
        trace = traceparent()
    [answer] = await b.do(*copies(source, upstairs, 1, [0], trace))
    assert answer.status is OpStatus.OK
    trace_id = format(span.get_span_context().trace_id, "032x")
    [copied] = [s for s in target.tracing.spans(trace_id) if s.name == "repair.copy_extent"]
    assert copied.attributes["bytes"] == str(64 * BLOCK)
    assert copied.attributes["extent"] == "0"
    names = {s.name.rsplit("/", 1)[-1] for s in source.tracing.spans(trace_id)}
    assert names == {"GetExtentContexts", "OpenBlockConnection", "StreamExtent"}
    caller.shutdown()


async def test_an_extent_that_is_equal_costs_no_contexts(serve, upstairs):
    source = await serve()
    a = await source.session(upstairs)
    await a.write(0, pattern(1, 4))
    engine = source.daemon.host.engine

    async def asked(extent, digest):
        request = repair_pb.GetExtentContextsRequest(
            upstairs_id=str(upstairs), generation=1, extent=extent, digest=digest
        )
        return await source.call(source.repair.GetExtentContexts, request)

    equal = await asked(0, engine.digest(0))
    assert (equal.equal, list(equal.runs)) == (True, [])
    other = await asked(0, engine.digest(1))
    assert (other.equal, len(other.runs)) == (False, 1)
    assert (await asked(1, engine.digest(1))).equal


async def test_copies_beyond_a_lowered_number_stand_still_and_go_on_later(serve, upstairs):
    source, target = await serve(), await serve()
    a, b = await source.session(upstairs), await target.session(upstairs)
    await fill(a, 1, extents=range(4), blocks=192)
    await b.do(begin(), flush(1))
    stored = target.daemon.host.engine

    def begun():
        counts = (stored.contexts(extent * PER_EXTENT, PER_EXTENT) for extent in range(4))
        return [bool(count.any()) for count in counts]

    # One chunk of 256 KiB every half second, of each in turn.
    await b.one(OpKind.REPAIR_LIMIT, number=512 << 10)
    futures = b.start_ops(*copies(source, upstairs, 1, range(4)))
    await eventually(lambda: begun()[0])
    await b.one(OpKind.REPAIR_LIMIT, number=0, length=1)
    first = await asyncio.wait_for(futures[0], 30)
    assert first.status is OpStatus.OK
    # They are done in the order in which they began, one after the other.
    for number, future in enumerate(futures):
        assert (await asyncio.wait_for(future, 30)).status is OpStatus.OK
        assert not any(later.done() for later in futures[number + 2 :])
    answer = await b.one(OpKind.REPAIR_LIMIT, number=7, length=2)
    # What was received, and what is in force.
    assert answer.offset == 4 * 192 * BLOCK
    assert (answer.number, answer.length) == (7, 2)


async def test_a_raised_rate_ends_the_wait_under_the_old_one(serve, upstairs):
    source, target = await serve(), await serve()
    a, b = await source.session(upstairs), await target.session(upstairs)
    await fill(a, 1, extents=range(4), blocks=192)
    await b.do(begin(), flush(1))
    await b.one(OpKind.REPAIR_LIMIT, number=1)
    futures = b.start_ops(*copies(source, upstairs, 1, range(4)))
    stored = target.daemon.host.engine
    await eventually(lambda: stored.contexts(0, EXTENTS * PER_EXTENT).any())
    # The next chunk would come in three days.
    done, _ = await asyncio.wait(futures, timeout=0.5)
    assert not done
    await b.one(OpKind.REPAIR_LIMIT, number=0)
    answers = await asyncio.wait_for(asyncio.gather(*futures), 30)
    assert {answer.status for answer in answers} == {OpStatus.OK}


async def test_what_was_counted_waits_for_nobody_elses_turn(serve, upstairs, monkeypatch):
    """A chunk that is checked while the next copy already waits for the limit is still merged."""
    source, target = await serve(), await serve()
    a, b = await source.session(upstairs), await target.session(upstairs)
    await fill(a, 1, extents=range(2))
    await b.do(begin(), flush(1))
    await b.one(OpKind.REPAIR_LIMIT, number=1)
    arrived, second = [], asyncio.Event()
    threads = target.daemon.host.repair_threads
    checked = threads.call

    def counted(message):
        arrived.append(message)
        if len(arrived) == 2:
            second.set()
        return decode_chunk(message)

    async def checked_late(check):
        await second.wait()
        return await checked(check)

    monkeypatch.setattr(extent_copier, "decode_chunk", counted)
    monkeypatch.setattr(threads, "call", checked_late)
    futures = b.start_ops(*copies(source, upstairs, 1, range(2)))
    stored = target.daemon.host.engine
    await eventually(lambda: stored.contexts(0, EXTENTS * PER_EXTENT).any())
    await b.one(OpKind.REPAIR_LIMIT, number=0)
    answers = await asyncio.wait_for(asyncio.gather(*futures), 30)
    assert {answer.status for answer in answers} == {OpStatus.OK}


async def test_a_source_that_ends_early_has_not_been_copied(serve, upstairs, monkeypatch):
    whole = RepairServicer.StreamExtent

    async def cut_short(self, request, context):
        async for message in whole(self, request, context):
            chunk = decode_chunk(message)
            size = len(chunk.contexts) // 2
            raw, data = bytes(chunk.contexts[:size]), bytes(chunk.data[: len(chunk.data) // 2])
            yield encode_chunk(Chunk(chunk.first_block, raw, data, checksum(raw, (data,))))
            return

    monkeypatch.setattr(RepairServicer, "StreamExtent", cut_short)
    source, target = await serve(), await serve()
    a, b = await source.session(upstairs), await target.session(upstairs)
    await fill(a, 1)
    await a.flush(1)
    await b.do(begin(), flush(2))
    answers = await b.do(*copies(source, upstairs, 1))
    assert {answer.status for answer in answers} == {OpStatus.REPAIR_SOURCE}
    assert all("did not send all" in answer.text for answer in answers)
    await b.flush(3)
    assert (await b.one(OpKind.REPAIR_END)).status is not OpStatus.OK


async def test_what_is_no_chunk_is_the_sources_fault(serve, upstairs, monkeypatch):
    monkeypatch.setattr(repair_service, "encode_chunk", lambda _chunk: b"\x12\x7f")
    source, target = await serve(), await serve()
    a, b = await source.session(upstairs), await target.session(upstairs)
    await fill(a, 1)
    await a.flush(1)
    await b.do(begin(), flush(2))
    answers = await b.do(*copies(source, upstairs, 1))
    assert {answer.status for answer in answers} == {OpStatus.REPAIR_SOURCE}
    assert all("no chunk" in answer.text for answer in answers)


async def test_a_clean_stop_leaves_no_log(serve, upstairs, tmp_path):
    downstairs = await serve(tmp_path / "region")
    client = await downstairs.session(upstairs)
    await fill(client, 1)
    await client.flush(1)
    assert downstairs.daemon.host.engine.has_log()
    await downstairs.daemon.stop()
    again = await serve(tmp_path / "region")
    assert not again.daemon.host.engine.has_log()
    client = await again.session(upstairs, 2)
    assert await client.read(3, 64) == pattern(1, 64)
