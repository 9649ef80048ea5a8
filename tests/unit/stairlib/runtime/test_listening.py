"""A connection accepted in the moment a server stops is there for whoever stops it."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvloop

from stairlib.runtime.listening import stop_listening

# More than it takes asyncio from a connection in the kernel's queue to its protocol.
TURNS = range(8)


class Told(asyncio.Protocol):
    """Of a connection; keeps its transport."""

    def __init__(self, made: list[asyncio.Transport]) -> None:
        self._made = made

    def connection_made(self, transport):
        self._made.append(transport)


async def of_protocols(made: list[asyncio.Transport]) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: Told(made), "127.0.0.1", 0)


async def of_streams(made: list[asyncio.Transport]) -> asyncio.Server:
    async def serve(_reader, writer):
        made.append(writer.transport)

    return await asyncio.start_server(serve, "127.0.0.1", 0)


async def stopped_after(turns: int, kind) -> tuple[int, bytes]:
    """How many connections the server told of, and what a client of it reads, that connected so
    many turns of the loop before the end."""
    loop = asyncio.get_running_loop()
    made: list[asyncio.Transport] = []
    server = await kind(made)
    with socket.socket() as client:
        client.connect(server.sockets[0].getsockname())
        client.setblocking(False)
        for _ in range(turns):
            await asyncio.sleep(0)
        await stop_listening([server])
        told = len(made)
        for transport in made:
            transport.abort()
        async with asyncio.timeout(10):
            try:
                return told, await loop.sock_recv(client, 1)
            except ConnectionResetError:
                return told, b""


@pytest.mark.parametrize("kind", [of_protocols, of_streams])
@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_nobody_is_left_waiting(factory, kind):
    with asyncio.Runner(loop_factory=factory) as runner:
        ends = [runner.run(stopped_after(turns, kind)) for turns in TURNS]
    assert {data for _, data in ends} == {b""}
    told = [count for count, _ in ends]
    # Not accepted at first: reset by the kernel. Then accepted, and told of before the end.
    assert told[-1] == 1
    assert told == sorted(told)


async def test_a_server_that_does_not_listen_any_more_is_left_alone():
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    await stop_listening([server])
    await stop_listening([server])
    assert not server.is_serving()
