"""Snapshots over the wire: taken by a session's flush or by hand, listed, read beside the region,
deleted."""

import dataclasses

import pytest

from downstaird.core.snapshot_reader import open_snapshot
from downstaird.daemon import Daemon
from downstaird.store.files import FileDisk
from stairlib.model.errors import AlreadyExistsError, InvalidRequestError, NotFoundError, StateError
from stairlib.wire.frame import OpKind, OpStatus
from stairwell.downstairs.v1 import block_service_pb2 as block_pb
from stairwell.downstairs.v1 import region_service_pb2 as region_pb
from tests.contract.downstairs.conftest import Downstairs, options, pattern


async def listed(downstairs):
    answer = await downstairs.call(
        downstairs.region.ListSnapshots, region_pb.ListSnapshotsRequest()
    )
    return {each.name: each for each in answer.snapshots}


async def delete(downstairs, name):
    request = region_pb.DeleteSnapshotRequest(name=name)
    await downstairs.call(downstairs.region.DeleteSnapshot, request)


async def snapshot_flush(client, number, name):
    return await client.one(OpKind.FLUSH, number=number, generation=1, blob=name.encode())


async def test_a_session_takes_one_goes_on_and_it_is_deleted(serve, upstairs) -> None:
    downstairs = await serve()
    client = await downstairs.session(upstairs)
    before = pattern(1, 8)
    await client.write(0, before)
    assert (await snapshot_flush(client, 1, "monday")).status is OpStatus.OK
    await client.write(0, pattern(2, 8))
    await client.flush(2)
    found = await listed(downstairs)
    assert [(each.generation, each.flush_number) for each in found.values()] == [(1, 1)]
    # Waits until it is written out.
    await delete(downstairs, "monday")
    assert await listed(downstairs) == {}
    assert await client.read(0, 8) == pattern(2, 8)
    with pytest.raises(NotFoundError):
        await delete(downstairs, "monday")


async def test_one_that_is_refused_leaves_the_flush_durable(serve, upstairs) -> None:
    downstairs = await serve()
    client = await downstairs.session(upstairs)
    assert (await snapshot_flush(client, 1, "a")).status is OpStatus.OK
    await client.write(0, pattern(3, 1))
    answer = await snapshot_flush(client, 2, "a")
    assert answer.status is OpStatus.SNAPSHOT_FAILED
    assert "flush 1" in answer.text
    bad = await snapshot_flush(client, 3, "../a")
    assert bad.status is OpStatus.SNAPSHOT_FAILED
    assert (await client.states())[0].tolist()[:2] == [1, 2]


async def test_it_is_read_beside_the_region_and_not_deleted_meanwhile(
    serve, upstairs, tmp_path
) -> None:
    downstairs = await serve()
    client = await downstairs.session(upstairs)
    before = pattern(1, 300)
    await client.write(0, before)
    assert (await snapshot_flush(client, 1, "monday")).status is OpStatus.OK
    await client.write(0, pattern(2, 300))
    await client.flush(2)
    await delete_of_another_is_a_way_to_wait(downstairs, client)
    engine = open_snapshot(FileDisk(downstairs.place), "monday")
    served = dataclasses.replace(options(tmp_path, read_only=True), snapshot="monday")
    daemon = Daemon(engine, served, downstairs.tracing)
    await daemon.start()
    reader = Downstairs(daemon, downstairs.tracing)
    try:
        region = await reader.get()
        assert region.id != (await downstairs.get()).id
        assert region.owner_id == str(upstairs)
        old = await reader.session(upstairs, region_id=region.id, read_only=True)
        assert await old.read(0, 300) == before
        refused = await old.one(OpKind.FLUSH, number=9, generation=1, blob=b"x")
        assert refused.status is OpStatus.READ_ONLY
        with pytest.raises(StateError) as busy:
            await delete(downstairs, "monday")
        assert busy.value.reason == "SNAPSHOT_BUSY"
        with pytest.raises(StateError) as read_only:
            await delete(reader, "monday")
        assert read_only.value.reason == "READ_ONLY"
    finally:
        await reader.close()
    await delete(downstairs, "monday")
    assert await client.read(0, 300) == pattern(2, 300)


async def delete_of_another_is_a_way_to_wait(downstairs, client) -> None:
    """A deletion returns once its snapshot was written out, and with it all older ones."""
    assert (await snapshot_flush(client, 3, "other")).status is OpStatus.OK
    await delete(downstairs, "other")


async def test_by_hand(serve) -> None:
    downstairs = await serve()
    flush = downstairs.block.Flush
    await downstairs.call(flush, block_pb.FlushRequest(snapshot="a"))
    with pytest.raises(AlreadyExistsError) as exists:
        await downstairs.call(flush, block_pb.FlushRequest(snapshot="a"))
    assert exists.value.reason == "SNAPSHOT_EXISTS"
    with pytest.raises(InvalidRequestError) as name:
        await downstairs.call(flush, block_pb.FlushRequest(snapshot="a b"))
    assert name.value.reason == "SNAPSHOT_NAME"
    assert list(await listed(downstairs)) == ["a"]


async def test_what_changed_since_a_snapshot_is_listed(serve, upstairs) -> None:
    downstairs = await serve()
    client = await downstairs.session(upstairs)
    await client.write(0, pattern(1, 8))
    await snapshot_flush(client, 1, "monday")

    async def changes(generation, number):
        request = region_pb.ListChangesRequest(generation=generation, flush_number=number)
        answer = await downstairs.call(downstairs.region.ListChanges, request)
        return [(each.first_extent, each.extent_count) for each in answer.changed], answer

    (snapshot,) = (await listed(downstairs)).values()
    since = snapshot.generation, snapshot.flush_number
    assert (await changes(*since))[0] == []
    assert (await changes(0, 0))[0] == [(0, 1)]
    size = downstairs.daemon.host.engine.definition.geometry.blocks_per_extent
    await client.write(size, pattern(2, 1))
    found, answer = await changes(*since)
    assert (found, answer.extents_changed) == ([(1, 1)], 1), "not flushed yet"
    await client.flush(2)
    found, answer = await changes(*since)
    assert (found, answer.generation, answer.flush_number) == ([(1, 1)], 1, 2)
    assert (await changes(1, 2))[0] == []
