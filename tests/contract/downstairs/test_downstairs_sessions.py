"""Negotiation, promotion, takeover and fencing, over real gRPC and a real data connection."""

import asyncio
import contextlib
import socket
import uuid

import numpy as np
import pytest

from downstaird.store.memory import MemoryDisk
from stairlib.model.cipher import CIPHERS, DEFAULT_CIPHER
from stairlib.model.context import encrypted_check
from stairlib.model.errors import InvalidRequestError, StateError
from stairlib.wire.frame import DATA_VERSION, FrameKind, OpKind
from stairwell.downstairs.v1 import block_service_pb2 as block_pb
from stairwell.downstairs.v1 import region_service_pb2 as region_pb


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data_versions": [99]}, "VERSION_MISMATCH"),
        ({"region_id": str(uuid.UUID(int=5))}, "REGION_MISMATCH"),
        (
            {"geometry": region_pb.Geometry(block_size=512, extent_size=256, extent_count=8)},
            "GEOMETRY_MISMATCH",
        ),
        ({"encrypted": True}, "ENCRYPTION_MISMATCH"),
        ({"read_only": True}, "READ_ONLY_MISMATCH"),
    ],
)
async def test_each_mismatch_is_refused_with_its_reason(serve, upstairs, changes, reason):
    downstairs = await serve()
    with pytest.raises(StateError) as caught:
        await downstairs.open(upstairs, **changes)
    assert caught.value.reason == reason
    assert set(caught.value.metadata) >= {"requested", "actual"}
    region = await downstairs.get()
    assert (region.promoted_generation, region.owner_id) == (0, "")


@pytest.mark.parametrize("field", ["upstairs_id", "session_id", "region_id"])
async def test_a_field_that_is_no_uuid_is_named(serve, upstairs, field):
    downstairs = await serve()
    with pytest.raises(InvalidRequestError) as caught:
        await downstairs.open(upstairs, **{field: "x"})
    assert caught.value.violations[0].field == field


async def test_a_session_is_told_all_about_the_region(serve, upstairs):
    downstairs = await serve()
    session = uuid.uuid4()
    answer = await downstairs.open(upstairs, 3, session)
    assert answer.region.promoted_generation == 3
    assert answer.region.owner_id == str(upstairs)
    assert answer.region.active_session_id == str(session)
    assert answer.data_version == DATA_VERSION
    assert len(answer.token) == 32
    assert list(answer.extent_generations) == list(answer.extent_flushes) == [0] * 8
    assert answer.extent_flags == bytes(8)
    assert answer.data_address == f"127.0.0.1:{downstairs.daemon.data.port}"


async def test_a_newer_generation_takes_over_and_the_older_session_is_told(serve, upstairs):
    downstairs = await serve()
    old = await downstairs.session(upstairs, 1)
    new = await downstairs.session(upstairs, 2)
    assert (await old.wait_ended()).startswith("NO_LONGER_ACTIVE")
    await new.write(0, bytes(4096))
    assert (await downstairs.get()).promoted_generation == 2


async def test_the_end_of_the_old_connection_leaves_the_new_session(serve, upstairs):
    downstairs = await serve()
    old = await downstairs.session(upstairs, 1)
    session = uuid.uuid4()
    new = await downstairs.session(upstairs, 2, session)
    await old.wait_ended()
    await old.close()
    assert (await downstairs.get()).active_session_id == str(session)
    await new.write(0, bytes(4096))


async def test_a_refused_proposal_leaves_the_session_that_is(serve, upstairs):
    downstairs = await serve()
    session = uuid.uuid4()
    client = await downstairs.session(upstairs, 5, session)
    for who, generation, reason in (
        (upstairs, 4, "GENERATION_TOO_LOW"),
        (upstairs, 5, "GENERATION_TOO_LOW"),
        (uuid.uuid4(), 6, "REGION_IN_USE"),
    ):
        with pytest.raises(StateError) as caught:
            await downstairs.open(who, generation)
        assert caught.value.reason == reason
    await client.write(0, bytes(4096))
    assert (await downstairs.get()).active_session_id == str(session)


async def test_the_same_session_may_come_back_in_its_generation(serve, upstairs):
    downstairs = await serve()
    session = uuid.uuid4()
    old = await downstairs.session(upstairs, 1, session)
    new = await downstairs.session(upstairs, 1, session)
    await old.wait_ended()
    await new.write(0, bytes(4096))


async def test_an_older_generation_is_fenced_over_a_restart(serve, upstairs):
    disk = MemoryDisk()
    first = await serve(disk)
    await first.session(upstairs, 7)
    await first.daemon.stop()
    again = await serve(disk)
    with pytest.raises(StateError) as caught:
        await again.open(upstairs, 7)
    assert caught.value.reason == "GENERATION_TOO_LOW"
    with pytest.raises(StateError) as caught:
        await again.open(uuid.uuid4(), 8)
    assert caught.value.reason == "REGION_IN_USE"
    await again.session(upstairs, 8)


async def test_a_region_written_by_hand_does_not_become_a_member(serve, upstairs):
    downstairs = await serve()
    write = block_pb.WriteRequest(block=3, data=bytes(4096))
    await downstairs.call(downstairs.block.Write, write)
    region = await downstairs.call(downstairs.region.GetRegion, region_pb.GetRegionRequest())
    assert region.region.written
    with pytest.raises(StateError) as caught:
        await downstairs.open(upstairs)
    assert caught.value.reason == "REGION_NOT_BLANK"


async def test_a_token_is_good_once_and_a_made_up_one_never(serve, upstairs):
    downstairs = await serve()
    answer = await downstairs.open(upstairs)
    await (await downstairs.dial(answer)).hello(answer.token)
    for token in (answer.token, bytes(32), b""):
        other = await downstairs.dial(answer)
        with pytest.raises(Exception, match="TOKEN_UNKNOWN"):
            await other.hello(token)


async def test_an_unused_token_expires(serve, upstairs, monkeypatch):
    monkeypatch.setattr("downstaird.core.session_table.TOKEN_SECONDS", 0.0)
    downstairs = await serve()
    answer = await downstairs.open(upstairs)
    with pytest.raises(Exception, match="TOKEN_UNKNOWN"):
        await (await downstairs.dial(answer)).hello(answer.token)
    assert (await downstairs.get()).active_session_id == ""


async def test_the_unix_socket_carries_a_session_too(serve, upstairs):
    downstairs = await serve()
    client = await downstairs.session(upstairs, unix=True)
    await client.write(3, b"x" * 4096)
    assert await client.read(3, 1) == b"x" * 4096
    path = downstairs.daemon.data.unix_path
    assert path.exists()
    await downstairs.daemon.stop()
    assert not path.exists()


async def test_stopping_tells_the_session(serve, upstairs):
    downstairs = await serve()
    client = await downstairs.session(upstairs)
    await downstairs.daemon.stop()
    assert (await client.wait_ended()).startswith("SHUTTING_DOWN")


@pytest.mark.parametrize("turns", range(6))
async def test_who_connects_while_it_stops_is_hung_up_on(serve, turns):
    """However far the loop has come with the connection: in the queue, accepted, let in."""
    downstairs = await serve()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(downstairs.daemon.data.unix_path))
        client.setblocking(False)
        for _ in range(turns):
            await asyncio.sleep(0)
        await downstairs.daemon.data.close()
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(loop.sock_recv(client, 1), 10) == b""


async def test_readers_share_a_read_only_region(serve, tmp_path):
    place = tmp_path / "shared"
    writable = await serve(place)
    client = await writable.session(uuid.uuid4())
    await client.write(0, b"r" * 4096)
    await client.flush(1)
    await writable.daemon.stop()
    downstairs = await serve(place, read_only=True)
    readers = [
        await downstairs.session(uuid.uuid4(), 0, read_only=True, geometry=None) for _ in range(3)
    ]
    for reader in readers:
        assert await reader.read(0, 1) == b"r" * 4096
        answer = await reader.one(OpKind.WRITE, offset=0, data=bytes(4096))
        assert answer.status.name == "READ_ONLY"
    mine = uuid.uuid4()
    first = await downstairs.session(mine, 0, read_only=True)
    await downstairs.session(mine, 0, read_only=True)
    assert (await first.wait_ended()).startswith("NO_LONGER_ACTIVE")
    assert await readers[0].read(0, 1) == b"r" * 4096


async def test_hands_may_read_and_write_while_nobody_owns_the_region(serve):
    downstairs = await serve()
    write = block_pb.WriteRequest(block=2, data=b"h" * 8192)
    read = block_pb.ReadRequest(block=1, count=3)
    await downstairs.call(downstairs.block.Write, write)
    flushed = await downstairs.call(downstairs.block.Flush, block_pb.FlushRequest())
    assert flushed.flush_number == 1
    answer = await downstairs.call(downstairs.block.Read, read)
    assert answer.data == bytes(4096) + b"h" * 8192
    assert answer.contexts[:32] == bytes(32) != answer.contexts[32:64]


async def test_hands_are_refused_while_a_session_owns_the_region(serve, upstairs):
    downstairs = await serve()
    write = block_pb.WriteRequest(block=2, data=b"h" * 8192)
    read = block_pb.ReadRequest(block=1, count=3)
    await downstairs.session(upstairs)
    for method, request in (
        (downstairs.block.Write, write),
        (downstairs.block.Read, read),
        (downstairs.block.Flush, block_pb.FlushRequest()),
    ):
        with pytest.raises(StateError) as caught:
            await downstairs.call(method, request)
        assert caught.value.reason == "SESSION_ACTIVE"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (block_pb.ReadRequest(block=0, count=0), "count"),
        (block_pb.ReadRequest(block=0, count=100_000), "count"),
        (block_pb.ReadRequest(block=2047, count=2), "block"),
        (block_pb.WriteRequest(block=0, data=b"x"), "data"),
        (block_pb.WriteRequest(block=2048, data=bytes(4096)), "block"),
    ],
)
async def test_hands_that_reach_too_far_are_told_the_field(serve, request_, field):
    downstairs = await serve()
    is_read = isinstance(request_, block_pb.ReadRequest)
    method = downstairs.block.Read if is_read else downstairs.block.Write
    with pytest.raises(InvalidRequestError) as caught:
        await downstairs.call(method, request_)
    assert caught.value.violations[0].field == field


async def test_hands_cannot_write_encrypted_regions(serve):
    downstairs = await serve(cipher=DEFAULT_CIPHER)
    with pytest.raises(StateError) as caught:
        await downstairs.call(
            downstairs.block.Write, block_pb.WriteRequest(block=0, data=bytes(4096))
        )
    assert caught.value.reason == "REGION_ENCRYPTED"
    assert "the volume's machine" in caught.value.message


async def test_hands_read_what_is_stored_of_encrypted_blocks(serve, upstairs):
    downstairs = await serve(cipher=DEFAULT_CIPHER)
    client = await downstairs.session(upstairs, encrypted=True)
    nonce_and_tag, data = bytes(range(28)), bytes(range(256)) * 16
    check = encrypted_check(nonce_and_tag, data).to_bytes(4, "little")
    context = np.frombuffer(check + nonce_and_tag, dtype="<u8").reshape(1, 4)
    await client.write(5, data, contexts=context)
    await client.close()
    answer = await downstairs.call(downstairs.block.Read, block_pb.ReadRequest(block=4, count=2))
    assert answer.data == bytes(4096) + data
    assert answer.contexts == bytes(32) + check + nonce_and_tag


@pytest.mark.parametrize("cipher", ["", *CIPHERS])
async def test_a_region_says_how_its_blocks_are_encrypted(serve, upstairs, cipher):
    downstairs = await serve(cipher=cipher)
    assert (await downstairs.get()).cipher == cipher
    assert (await downstairs.open(upstairs, encrypted=bool(cipher))).region.cipher == cipher


async def test_a_verification_finds_what_is_stored(serve, upstairs):
    downstairs = await serve()
    client = await downstairs.session(upstairs)
    await client.write(100, b"v" * 4096 * 300)
    answer = await downstairs.call(downstairs.region.VerifyRegion, region_pb.VerifyRegionRequest())
    assert (answer.blocks_read, answer.blocks_bad) == (300, 0)


async def test_a_peer_that_says_nothing_is_dropped(serve, upstairs, monkeypatch):
    monkeypatch.setattr("downstaird.region_host.CHECK_SECONDS", 0.05)
    monkeypatch.setattr("downstaird.conversation.SILENCE_SECONDS", 0.3)
    monkeypatch.setattr("downstaird.conversation.HELLO_SECONDS", 0.3)
    downstairs = await serve()
    answer = await downstairs.open(upstairs)
    mute = await downstairs.dial(answer)
    assert (await asyncio.wait_for(mute.read_frame(), 5)).blob(0).startswith(b"HELLO_TIMEOUT")
    client = await downstairs.session(upstairs, 2)
    for sequence in range(8):
        client.send_frame(FrameKind.PING, sequence=sequence)
        await asyncio.sleep(0.1)
    assert client.pongs >= 7
    assert not client.ended.done()
    assert (await client.wait_ended()).startswith("SILENCE")
    assert (await downstairs.get()).active_session_id == ""


async def test_a_key_check_is_recorded_compared_and_shown_to_those_who_ask(serve, upstairs):
    downstairs = await serve(cipher=DEFAULT_CIPHER)
    check = bytes(range(16))
    answer = await downstairs.open(upstairs, 1, encrypted=True, key_check=check)
    assert answer.region.key_check == b""
    assert (await downstairs.get()).key_check == check
    for wrong in (b"", bytes(range(1, 17))):
        with pytest.raises(StateError) as caught:
            await downstairs.open(upstairs, 2, encrypted=True, key_check=wrong)
        assert caught.value.reason == "KEY_MISMATCH"
        assert check.hex() not in str(caught.value.metadata)
    region = await downstairs.get()
    # The refused did not take the session over, nor raise what is fenced.
    assert (region.promoted_generation, region.active_session_id != "") == (1, True)
    assert region.key_check == check
    await downstairs.open(upstairs, 2, encrypted=True, key_check=check)


@pytest.mark.parametrize("value", [b"x", b"x" * 15, b"x" * 17, bytes(16), b"x" * 100_000])
async def test_what_is_no_key_check_is_refused_and_not_shown(serve, upstairs, value):
    downstairs = await serve(cipher=DEFAULT_CIPHER)
    with pytest.raises(InvalidRequestError) as caught:
        await downstairs.open(upstairs, encrypted=True, key_check=value)
    assert caught.value.violations[0].field == "key_check"
    assert "xx" not in caught.value.message
    assert (await downstairs.get()).owner_id == ""
