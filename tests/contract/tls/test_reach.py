"""Finding out how a daemon is reached over TLS, and the clear word where it is not."""

from __future__ import annotations

import asyncio

import pytest

from downstaird.dsc.core.layout import MemberPlan, region_id
from downstaird.launching import Launcher
from stairlib.model.errors import UnavailableError
from stairlib.rpc import health_check, tls
from stairlib.rpc.channel import open_channel
from stairlib.rpc.server import RpcServer
from stairlib.rpc.tls import explained, reach, speaks_tls
from stairlib.telemetry.tracing import Tracing
from tests.certificates import SLOT_NAMES


@pytest.fixture
async def listen():
    """`await listen(files, address)` starts a gRPC server with nothing but health."""
    tracing = Tracing("downstairs", "test")
    made = []

    async def start(files=None, address="127.0.0.1:0"):
        secure = files.server() if files is not None else None
        server = RpcServer(address, (), tracing, tls=secure)
        await server.start()
        made.append(server)
        return server.address

    yield start
    for server in made:
        await server.stop(0)
    tracing.shutdown()


@pytest.fixture
async def mute():
    """The address of somebody who takes connections and says nothing."""
    ends, tasks = [], []

    async def take(reader, writer):
        ends.append(writer)
        tasks.append(asyncio.current_task())
        await reader.read()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for writer in ends:
        writer.transport.abort()
    await asyncio.gather(*tasks, return_exceptions=True)


async def reason(awaitable) -> str:
    with pytest.raises(UnavailableError) as caught:
        await awaitable
    assert "PRIVATE" not in caught.value.message
    return caught.value.reason


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "localhost:0"])
@pytest.mark.parametrize("named", ["slot", "host"])
async def test_a_daemon_is_reached_by_slot_or_host(listen, authority, client, address, named):
    host = address.rpartition(":")[0].strip("[]")
    server = authority.issue("server", "downstairs2" if named == "slot" else host)
    found = await listen(server, address)
    peer = await reach(found, client, 2)
    assert peer.server_name == ("downstairs2" if named == "slot" else host)
    async with open_channel(found, tls=peer) as channel:
        await asyncio.wait_for(channel.channel_ready(), 10)
    assert await health_check.check(found, tls=client) == "SERVING"


async def test_any_slot_s_name_will_do_where_the_slot_is_not_known(listen, authority, client):
    for name in SLOT_NAMES:
        found = await listen(authority.issue(name, name))
        assert (await reach(found, client)).server_name == name


async def test_reasons(listen, authority, stranger, client, refusing_port):
    secure = await listen(authority.issue("server", "downstairs0"))
    nameless = await listen(authority.issue("nameless"))
    plain = await listen()
    foreign = stranger.issue("foreign", "downstairs0")
    untrusting = await listen(foreign)
    assert await reason(reach(secure, client, 1)) == "TLS_NAME"
    assert await reason(reach(nameless, client)) == "TLS_NAME"
    assert await reason(reach(plain, client)) == "TLS_NOT_SPOKEN"
    assert await reason(reach(untrusting, client)) == "TLS_UNTRUSTED"
    ours = tls.TlsFiles(foreign.cert, foreign.key, client.root)
    assert await reason(reach(secure, ours)) == "TLS_REFUSED"
    assert await reason(reach(f"127.0.0.1:{refusing_port}", client)) == "UNAVAILABLE"


async def test_who_says_nothing_is_given_up(mute, client, monkeypatch):
    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 0.2)
    assert await reason(reach(mute, client)) == "DEADLINE_EXCEEDED"
    assert not await speaks_tls(mute)


async def test_a_failure_without_tls_is_explained(listen, authority, refusing_port):
    secure = await listen(authority.issue("server", "downstairs0"))
    plain = await listen()
    failure = UnavailableError("Socket closed")
    found = await explained(secure, failure, "give it a certificate")
    assert found.reason == "TLS_NEEDED"
    assert found.message.endswith("speaks TLS only: give it a certificate")
    assert await explained(plain, failure, "") is failure
    assert await explained(f"127.0.0.1:{refusing_port}", failure, "") is failure


async def test_health_is_asked_by_hand_with_the_same_files(listen, authority, client):
    found = await listen(authority.issue("server", "localhost", "127.0.0.1"))
    flags = ["--cert-pem", client.cert, "--key-pem", client.key, "--root-cert-pem", client.root]
    assert await asyncio.to_thread(health_check.main, [found, *flags]) == 0
    assert await asyncio.to_thread(health_check.main, [found]) == 1
    assert await asyncio.to_thread(health_check.main, [found, *flags[:2]]) == 1


async def test_a_daemon_that_goes_away_meanwhile_is_not_blamed_for_its_certificates(client):
    async def take(_reader, writer):
        writer.transport.abort()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for _ in range(5):
        assert await reason(reach(address, client)) == "UNAVAILABLE"
    server.close()


async def test_a_daemon_that_ends_a_connection_meanwhile(client):
    async def take(reader, writer):
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for _ in range(5):
        assert await reason(reach(address, client)) == "UNAVAILABLE"
    server.close()


async def test_dsc_waits_for_members_that_speak_tls(listen, authority):
    def plan(address):
        return MemberPlan(0, int(address.rpartition(":")[2]), region_id(1), "", "")

    files = authority.issue("rack", "127.0.0.1")
    launcher = Launcher("downstaird", "127.0.0.1", read_only=False, tls=files)
    async with asyncio.timeout(20):
        await launcher.serving(plan(await listen(files)))
    elsewhere = await listen(authority.issue("other", "elsewhere"))
    assert await reason(launcher.serving(plan(elsewhere))) == "TLS_NAME"
