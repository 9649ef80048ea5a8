"""The upstairs and its downstairs over TLS: every way the data can go, repair, and every way in
which certificates can be wrong."""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import uuid
from types import SimpleNamespace

import pytest

from stairlib.model.errors import InvalidRequestError, StateError, UnavailableError
from stairlib.rpc import tls
from stairlib.rpc.tls import TlsFiles
from stairlib.telemetry.trace_service import collect
from stairlib.telemetry.tracing import Tracing
from stairlib.wire.frame import FrameKind, encode, pack_op
from tests.certificates import EXPIRED, SLOT_NAMES
from tests.contract.downstairs_set import until
from tests.contract.guest_calls import ok
from vmmd.block.backend import BlockOp
from vmmd.machine.process import MachineHost
from vmmd.upstairs.core.events import ReplaceResult
from vmmd.upstairs.core.slot_states import SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState
from vmmd.upstairs.shell.runner import RegionUpstairs
from vmmd.upstairs.shell.transport import SocketConnection, StreamConnection

HOST = "127.0.0.1"


@pytest.fixture
async def make():
    made = []
    tracing = Tracing("machine", "test")
    volume_id = uuid.uuid4()

    def build(daemons, files=None, generation=1, *, stream_only=False, **more):
        if files is not None:
            more |= {"cert_pem": files.cert, "key_pem": files.key, "root_cert_pem": files.root}
        spec = daemons.spec(volume_id, generation, **more)
        made.append(RegionUpstairs(spec, tracing=tracing, stream_only=stream_only))
        return made[-1]

    yield build
    for upstairs in made:
        await upstairs.close()
    tracing.shutdown()


def servers(authority, *names):
    """Four daemons' files: each for its slot's name, the spare for the third's, or for `names`."""
    return [
        authority.issue(f"server-{number}", *(names or (SLOT_NAMES[min(number, 2)],)))
        for number in range(4)
    ]


async def write_and_read(upstairs, seed=1):
    """Small and large, with a flush and a comparison of the members."""
    data = random.Random(seed).randbytes(400 * 4096)
    await ok(upstairs, BlockOp.WRITE, 3, 400, data)
    await ok(upstairs, BlockOp.WRITE, 7, 1, data[:4096])
    expected = data[: 4 * 4096] + data[:4096] + data[5 * 4096 :]
    assert (await ok(upstairs, BlockOp.READ, 3, 400)).data == expected
    await ok(upstairs, BlockOp.FLUSH)
    result = await upstairs.verify(read_data=True)
    assert result.equal
    assert (result.members_compared, result.bad_blocks) == (3, 0)
    assert result.blocks_read >= 3 * 400


async def refusal(upstairs, slot=0) -> str:
    """What the volume's status says of a slot that cannot be reached; activation goes on."""
    waiting = asyncio.create_task(upstairs.activate())
    try:
        await until(lambda: upstairs.status().slots[slot].last_error)
        assert upstairs.status().state is UpstairsState.GO_ACTIVE
        return upstairs.status().slots[slot].last_error
    finally:
        waiting.cancel()


def transports(upstairs):
    return [link._connection for link in upstairs._links.values()]


@pytest.mark.parametrize("way", ["unix", "tcp", "stream"])
async def test_data_goes_over_tls_whatever_carries_it(serve, make, authority, client, way):
    daemons = await serve(*servers(authority)[:3])
    if way == "tcp":
        for daemon in daemons.daemons:
            daemon.data.unix_path = None
    upstairs = make(daemons, client, stream_only=way == "stream")
    await upstairs.activate(timeout_seconds=10)
    await write_and_read(upstairs)
    for connection in transports(upstairs):
        if way == "stream":
            assert isinstance(connection, StreamConnection)
            continue
        assert isinstance(connection, SocketConnection)
        assert connection._transport.get_extra_info("ssl_object").version() == "TLSv1.3"
        family = connection._transport.get_extra_info("socket").family
        assert family == (socket.AF_UNIX if way == "unix" else socket.AF_INET)
    assert {peer.tls.server_name for peer in upstairs.peers()} == set(SLOT_NAMES)
    await upstairs.deactivate()


async def test_a_certificate_may_be_for_the_host_instead_of_the_slot(
    serve, make, authority, client
):
    daemons = await serve(*servers(authority, HOST)[:3])
    upstairs = make(daemons, client)
    await upstairs.activate(timeout_seconds=10)
    await write_and_read(upstairs)
    assert {peer.tls.server_name for peer in upstairs.peers()} == {HOST}


async def test_a_member_that_was_away_comes_back_over_tls(serve, make, authority, client):
    daemons = await serve(*servers(authority)[:3])
    upstairs = make(daemons, client)
    await upstairs.activate(timeout_seconds=10)
    await daemons.stop(1)
    await until(lambda: upstairs.status().slots[1].state is not SlotState.ACTIVE)
    await ok(upstairs, BlockOp.WRITE, 0, 8, random.Random(2).randbytes(8 * 4096))
    await daemons.start(1)
    await until(lambda: all(s.state is SlotState.ACTIVE for s in upstairs.status().slots))
    await write_and_read(upstairs, 3)


async def test_a_read_only_set_is_read_over_tls(serve, make, authority, client):
    daemons = await serve(*servers(authority)[:3])
    writing = make(daemons, client)
    await writing.activate(timeout_seconds=10)
    await write_and_read(writing)
    await writing.close()
    for number in range(3):
        await daemons.stop(number)
    daemons.read_only = True
    await daemons.start(1)
    reading = make(daemons, client)
    await reading.activate(timeout_seconds=10)
    data = random.Random(1).randbytes(400 * 4096)
    assert (await ok(reading, BlockOp.READ, 100, 64)).data == data[97 * 4096 : 161 * 4096]


@pytest.mark.parametrize("names", [(), (HOST,)], ids=["slots", "host"])
async def test_a_member_is_replaced_and_repaired_over_tls(serve, make, authority, client, names):
    daemons = await serve(*servers(authority, *names))
    upstairs = make(daemons, client)
    await upstairs.activate(timeout_seconds=10)
    await write_and_read(upstairs)
    old, new = daemons.addresses[2], daemons.addresses[3]
    outcome = await upstairs.replace(old, new)
    assert outcome.result is ReplaceResult.STARTED
    await until(lambda: upstairs.status().slots[2].repairs_completed == 1)
    await until(lambda: all(s.state is SlotState.ACTIVE for s in upstairs.status().slots))
    await daemons.stop(0)
    await daemons.stop(1)
    await until(lambda: [s.state for s in upstairs.status().slots].count(SlotState.ACTIVE) == 1)
    data = random.Random(1).randbytes(400 * 4096)
    assert (await ok(upstairs, BlockOp.READ, 100, 64)).data == data[97 * 4096 : 161 * 4096]


async def test_a_certificate_for_another_slot_is_refused(serve, make, authority, client):
    files = servers(authority)
    daemons = await serve(files[1], files[1], files[2])
    error = await refusal(make(daemons, client))
    assert "is for downstairs1" in error
    assert "downstairs0 or 127.0.0.1" in error


async def test_strangers_are_refused_on_both_sides(serve, make, authority, stranger, client):
    daemons = await serve(*servers(authority)[:3])
    foreign = stranger.issue("foreign")
    known = TlsFiles(foreign.cert, foreign.key, client.root)
    error = await refusal(make(daemons, known))
    assert "does not accept our certificate" in error
    assert "opts.cert_pem" in error
    error = await refusal(make(daemons, TlsFiles(client.cert, client.key, foreign.root)))
    assert "is not accepted" in error
    assert "opts.root_cert_pem" in error


async def test_certificates_that_have_run_out(serve, make, authority, client, monkeypatch):
    fresh = servers(authority)[:3]
    late = authority.issue("late", *SLOT_NAMES, period=EXPIRED)
    # Neither side starts with such files, but a certificate may run out meanwhile.
    with monkeypatch.context() as patched:
        patched.setattr(tls, "_check_period", lambda *_: None)
        daemons = await serve(late, late, late)
        assert "(certificate has expired)" in await refusal(make(daemons, client))
        daemons = await serve(*fresh)
        assert "does not accept our certificate" in await refusal(make(daemons, late))
    upstairs = make(daemons, client)
    await upstairs.activate(timeout_seconds=10)


async def test_plain_text_and_tls_do_not_mix(serve, make, authority, client):
    secure = await serve(*servers(authority)[:3])
    error = await refusal(make(secure))
    assert "speaks TLS only: name cert_pem" in error
    plain = await serve(None, None, None)
    error = await refusal(make(plain, client))
    assert "does not speak TLS: start that downstairs with --cert-pem" in error
    mixed = await serve(*servers(authority)[:2], None)
    error = await refusal(make(mixed, client), slot=2)
    assert "does not speak TLS" in error


async def test_files_are_read_anew_for_each_connection(
    serve, make, authority, stranger, client, tmp_path
):
    daemons = await serve(*servers(authority)[:3])
    foreign = stranger.issue("foreign")
    files = TlsFiles(str(tmp_path / "c.pem"), str(tmp_path / "k.pem"), client.root)
    shutil.copy(foreign.cert, files.cert)
    shutil.copy(foreign.key, files.key)
    upstairs = make(daemons, files)
    with pytest.raises(UnavailableError, match="does not accept our certificate"):
        await upstairs.activate(timeout_seconds=0.5)
    shutil.copy(client.cert, files.cert)
    shutil.copy(client.key, files.key)
    await upstairs.activate(timeout_seconds=20)
    await write_and_read(upstairs)


@pytest.mark.parametrize("missing", ["cert_pem", "key_pem", "root_cert_pem"])
async def test_a_request_whose_files_will_not_do_is_refused_when_it_is_built(
    serve, make, client, missing, tmp_path
):
    daemons = await serve(None, None, None)
    paths = {"cert_pem": client.cert, "key_pem": client.key, "root_cert_pem": client.root}
    with pytest.raises(InvalidRequestError) as partly:
        make(daemons, **{**paths, missing: None})
    assert partly.value.reason == "TLS_INCOMPLETE"
    assert [each.field for each in partly.value.violations] == [f"opts.{missing}"]
    with pytest.raises(StateError) as absent:
        make(daemons, **{**paths, missing: str(tmp_path / "none.pem")})
    assert absent.value.reason == "TLS_FILE"
    assert f"opts.{missing}: {tmp_path}/none.pem cannot be read on this host" in (
        absent.value.message
    )


async def test_the_data_port_takes_nobody_without_a_certificate(serve, authority, client):
    daemons = await serve(*servers(authority)[:3])
    hello = b"".join(encode(FrameKind.HELLO, [pack_op(0, 0, blob_bytes=32)], blobs=[bytes(32)]))
    data = daemons.daemons[0].data
    for connecting in (
        asyncio.open_connection(HOST, data.port),
        asyncio.open_unix_connection(str(data.unix_path)),
    ):
        reader, writer = await connecting
        writer.write(hello)
        async with asyncio.timeout(10):
            answer = await reader.read()
        # At most a TLS alert; no frame.
        assert answer[:1] in (b"", b"\x15")
        writer.transport.abort()
    assert not daemons.daemons[0].host.conversations


async def test_traces_are_collected_by_the_way_the_volume_goes(serve, make, authority, client):
    daemons = await serve(*servers(authority)[:3])
    upstairs = make(daemons, client)
    host = MachineHost(upstairs._tracing)
    host._machine = SimpleNamespace(volumes=lambda: [upstairs])
    # Nobody was reached yet, so there is nobody to ask.
    assert list(host.downstairs()) == []
    await upstairs.activate(timeout_seconds=10)
    before = dict(host.downstairs())
    assert set(before) == set(daemons.addresses)
    for address, channel in before.items():
        assert await collect(address, channel, "0" * 32) == []
        await asyncio.wait_for(channel.channel_ready(), 10)
    assert dict(host.downstairs()) == before
    # A connection that is made anew may use other certificates: so do the questions from then on.
    await daemons.stop(1)
    await until(lambda: upstairs.status().slots[1].state is not SlotState.ACTIVE)
    await daemons.start(1)
    await until(lambda: upstairs.status().slots[1].state is SlotState.ACTIVE)
    after = dict(host.downstairs())
    changed = daemons.addresses[1]
    assert after[changed] is not before[changed]
    assert {**after, changed: None} == {**before, changed: None}
    await asyncio.wait_for(after[changed].channel_ready(), 10)
    await host.close()
