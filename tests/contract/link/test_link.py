"""A link between real sockets: late, slow, lossy, stalled and cut, and never a wrong byte."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import struct
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from stairlib.link.proxy import BACK, THERE, WINDOW_BYTES, Forward, Link
from stairlib.model.errors import InvalidRequestError, UnavailableError
from stairlib.runtime.addresses import Address

# Others may have the machine at the same time.
DEADLINE = 30.0
# In which what may not come would have come.
MOMENT = 0.3
HOST = "127.0.0.1"


class Echo:
    """Sends back what it gets, and its end; keeps what came and the connections."""

    def __init__(self) -> None:
        self.received = asyncio.Queue()
        self.writers = []
        self.port = 0

    async def serve(self, reader, writer):
        self.writers.append(writer)
        try:
            while data := await reader.read(1 << 16):
                self.received.put_nowait(data)
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def echoing(port=0):
    echo = Echo()
    server = await asyncio.start_server(echo.serve, HOST, port)
    echo.port = server.sockets[0].getsockname()[1]
    try:
        yield echo
    finally:
        server.close()
        for writer in echo.writers:
            writer.transport.abort()
        await asyncio.sleep(0)


@pytest_asyncio.fixture
async def echo():
    async with echoing() as made:
        yield made


@pytest_asyncio.fixture
async def link(echo):
    made = Link([Forward(Address(HOST, 0), Address(HOST, echo.port))], random.Random(4))
    await made.start()
    yield made
    await made.close()


@asynccontextmanager
async def connected(link):
    reader, writer = await asyncio.open_connection(HOST, link.addresses[0].port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


async def soon(awaitable):
    return await asyncio.wait_for(awaitable, DEADLINE)


async def never(awaitable):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(awaitable, MOMENT)


async def digest_back(link, data):
    """Sends all of it, then an end; the digest of what comes back until that end."""
    async with connected(link) as (reader, writer):

        async def send():
            writer.write(data)
            await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        digest = hashlib.sha256()
        while piece := await soon(reader.read(1 << 16)):
            digest.update(piece)
        await sending
        return digest.hexdigest()


@pytest.mark.parametrize(
    "values",
    [
        {}, {"delay": 0.01, "jitter": 0.02}, {"rate": 8 << 20},
        {"delay": 0.005, "jitter": 0.005, "rate": 16 << 20, "loss": 0.001},
    ],
    ids=["clear", "late", "slow", "bad"],
)  # fmt: skip
async def test_bytes_and_ends_arrive_in_order_and_once(link, values):
    link.set(values)
    sent = [random.Random(seed).randbytes(1 << 20) for seed in range(3)]
    found = await asyncio.gather(*(digest_back(link, data) for data in sent))
    assert found == [hashlib.sha256(data).hexdigest() for data in sent]
    state = link.state()
    assert [state[way]["bytes"] for way in (THERE, BACK)] == [3 << 20] * 2


async def test_a_round_trip_takes_both_delays(link):
    link.set({"delay": 0.1}, THERE)
    link.set({"delay": 0.2}, BACK)
    async with connected(link) as (reader, writer):
        began = asyncio.get_running_loop().time()
        writer.write(b"ping")
        assert await soon(reader.readexactly(4)) == b"ping"
        assert asyncio.get_running_loop().time() - began >= 0.3


async def test_connections_share_the_rate(link):
    link.set({"rate": 1 << 20}, THERE)
    began = asyncio.get_running_loop().time()
    await asyncio.gather(*(digest_back(link, bytes(128 << 10)) for _ in range(4)))
    assert asyncio.get_running_loop().time() - began >= 0.5


async def test_a_stalled_link_holds_all_and_loses_nothing(link, echo):
    async with connected(link) as (reader, writer):
        writer.write(b"one")
        assert await soon(reader.readexactly(3)) == b"one"
        link.set({"stalled": True})
        writer.write(b"two")
        await never(reader.read(1))
        link.set({"stalled": False})
        assert await soon(reader.readexactly(3)) == b"two"


async def test_one_direction_alone_is_stalled(link, echo):
    """What was sent is done, and its sender is never told."""
    async with connected(link) as (reader, writer):
        writer.write(b"one")
        assert await soon(reader.readexactly(3)) == b"one"
        await soon(echo.received.get())
        link.set({"stalled": True}, BACK)
        writer.write(b"two")
        assert await soon(echo.received.get()) == b"two"
        await never(reader.read(1))
        link.set({"stalled": False}, BACK)
        assert await soon(reader.readexactly(3)) == b"two"


async def test_nobody_is_reached_through_a_stalled_link(link, echo):
    link.set({"stalled": True})
    async with connected(link) as (reader, writer):
        writer.write(b"one")
        await never(reader.read(1))
        assert not echo.writers
        link.set({"stalled": False})
        assert await soon(reader.readexactly(3)) == b"one"


@pytest.mark.parametrize("reset", [False, True])
async def test_an_end_travels_like_bytes(link, echo, reset):
    """Behind a stalled link one does not hear that the other end is gone, in order or not."""
    async with connected(link) as (reader, writer):
        writer.write(b"one")
        assert await soon(reader.readexactly(3)) == b"one"
        link.set({"stalled": True})
        [far] = echo.writers
        if reset:
            raw = far.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            far.transport.abort()
        else:
            far.close()
        await never(reader.read(1))
        link.set({"stalled": False})
        if reset:
            with pytest.raises(ConnectionResetError):
                await soon(reader.read(1))
        else:
            assert await soon(reader.read(1)) == b""


async def test_who_sends_into_a_stalled_link_is_held_up(link):
    """What is under way is bounded: the sender feels it, as on a network."""
    async with connected(link) as (_reader, writer):
        link.set({"stalled": True}, THERE)

        async def send():
            # The window, and what the kernel buffers on its four sides.
            for _ in range((WINDOW_BYTES >> 20) + 32):
                writer.write(bytes(1 << 20))
                await asyncio.wait_for(writer.drain(), MOMENT)

        with pytest.raises(TimeoutError):
            await send()
        assert link.state()[THERE]["bytes"] == 0


async def test_a_cut_resets_and_refuses_until_it_is_joined(link):
    port = link.addresses[0].port
    async with connected(link) as (reader, writer):
        writer.write(b"one")
        assert await soon(reader.readexactly(3)) == b"one"
        await link.cut()
        assert link.state()["cut"]
        with pytest.raises(ConnectionResetError):
            await soon(reader.read(1))
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(HOST, port)
    await link.join()
    await link.join()
    assert not link.state()["cut"]
    assert link.addresses[0].port == port
    assert await digest_back(link, b"two") == hashlib.sha256(b"two").hexdigest()


async def test_a_join_that_is_asked_for_during_a_cut_comes_after_it(link):
    await asyncio.gather(link.cut(), link.join())
    assert not link.state()["cut"]
    assert await digest_back(link, b"three") == hashlib.sha256(b"three").hexdigest()


async def test_a_target_that_is_away_is_a_reset_and_is_looked_for_again():
    async with echoing() as first:
        port = first.port
    link = Link([Forward(Address(HOST, 0), Address("localhost", port))])
    await link.start()
    try:
        async with connected(link) as (reader, _):
            with pytest.raises(ConnectionResetError):
                await soon(reader.read(1))
        async with echoing(port):
            assert await digest_back(link, b"back") == hashlib.sha256(b"back").hexdigest()
    finally:
        await link.close()


async def test_nothing_changes_when_a_value_makes_no_sense(link):
    link.set({"delay": 0.25})
    before = link.state()
    for values, direction in (({"delay": 1, "loss": 2}, ""), ({"delay": 1}, "sideways")):
        with pytest.raises(InvalidRequestError):
            link.set(values, direction)
    assert link.state() == before


async def test_a_port_that_is_taken_is_said_and_none_is_kept(echo):
    free = Forward(Address(HOST, 0), Address(HOST, echo.port))
    taken = Forward(Address(HOST, echo.port), Address(HOST, echo.port))
    link = Link([free, taken])
    with pytest.raises(UnavailableError, match="cannot listen on") as caught:
        await link.start()
    assert caught.value.reason == "PORT_IN_USE"
    assert link.is_cut
