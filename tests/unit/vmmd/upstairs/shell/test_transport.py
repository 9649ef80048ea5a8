"""Frames out of bytes, however these are cut."""

from __future__ import annotations

import asyncio
import random

import pytest

from stairlib.wire.frame import TEXT_BYTES_MAX, FrameKind, OpKind, encode, pack_op
from vmmd.upstairs.shell import transport
from vmmd.upstairs.shell.transport import SocketConnection


class Heard:
    def __init__(self):
        self.frames = []
        self.notices = []
        self.welcomes = 0
        self.ends = []

    def welcomed(self):
        self.welcomes += 1

    def received(self, frame):
        self.frames.append((frame.sequence, bytes(frame.payload)))

    def noticed(self, text):
        self.notices.append(text)

    def lost(self, reason):
        self.ends.append(reason)


class Pipe:
    """As much of a transport as is used."""

    def __init__(self):
        self.sent = []
        self.aborted = False

    def get_extra_info(self, _name):
        return None

    def write(self, data):
        self.sent.append(bytes(data))

    def writelines(self, buffers):
        self.sent.append(b"".join(buffers))

    def abort(self):
        self.aborted = True


def reply(sequence, payload):
    op = pack_op(sequence, OpKind.NOOP)
    return b"".join(encode(FrameKind.REPLY, [op], sequence=sequence, payload=[payload]))


def feed(connection, data, rng):
    at = 0
    while at < len(data):
        room = connection.get_buffer(-1)
        assert len(room) > 0
        count = min(len(room), len(data) - at, rng.choice([1, 7, 40, 1000, 70_000, 1 << 20]))
        room[:count] = data[at : at + count]
        connection.buffer_updated(count)
        at += count


@pytest.mark.parametrize("seed", range(8))
async def test_frames_arrive_whole_however_the_bytes_are_cut(seed):
    rng = random.Random(seed)
    heard = Heard()
    connection = SocketConnection(heard, b"token")
    connection.connection_made(Pipe())
    sizes = [rng.choice([0, 16, 4096, 300_000, 2_000_000]) for _ in range(12)]
    payloads = [rng.randbytes(size) for size in sizes]
    data = b"".join(encode(FrameKind.WELCOME))
    data += b"".join(reply(number, payload) for number, payload in enumerate(payloads))
    feed(connection, data, rng)
    assert heard.welcomes == 1
    assert heard.frames == list(enumerate(payloads))
    connection.connection_lost(None)
    assert len(heard.ends) == 1


async def test_the_token_is_shown_first():
    pipe = Pipe()
    connection = SocketConnection(Heard(), b"secret-token")
    connection.connection_made(pipe)
    assert b"secret-token" in pipe.sent[0]
    connection.connection_lost(None)


async def test_bad_bytes_end_the_connection():
    heard, pipe = Heard(), Pipe()
    connection = SocketConnection(heard, b"")
    connection.connection_made(pipe)
    room = connection.get_buffer(-1)
    room[:64] = b"x" * 64
    connection.buffer_updated(64)
    assert pipe.aborted
    connection.connection_lost(None)
    assert "not a frame" in heard.ends[0]
    connection.send([b"late"])
    assert b"late" not in pipe.sent


async def test_a_notice_is_never_longer_than_a_message():
    heard = Heard()
    connection = SocketConnection(heard, b"")
    connection.connection_made(Pipe())
    blob = b"\xff" + b"x" * 1_000_000
    notice = encode(FrameKind.NOTICE, [pack_op(0, 0, blob_bytes=len(blob))], blobs=[blob])
    feed(connection, b"".join(notice), random.Random(1))
    assert heard.notices == ["\ufffd" + "x" * (TEXT_BYTES_MAX - 1)]
    connection.connection_lost(None)


@pytest.mark.parametrize("seed", range(150))
async def test_whatever_bytes_come_the_connection_goes_on_or_ends_with_a_reason(seed):
    rng = random.Random(seed)
    heard, pipe = Heard(), Pipe()
    connection = SocketConnection(heard, b"")
    connection.connection_made(pipe)
    notice = encode(FrameKind.NOTICE, [pack_op(0, 0, blob_bytes=5)], blobs=[b"CLOSE"])
    data = bytearray(b"".join([*encode(FrameKind.WELCOME), *notice, *encode(FrameKind.PONG)]))
    data += b"".join(reply(number, rng.randbytes(rng.choice((0, 64)))) for number in range(6))
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data))
        change = rng.choice(("flip", "cut", "add"))
        if change == "flip":
            data[at] ^= 1 << rng.randrange(8)
        elif change == "cut":
            del data[at : at + rng.choice((1, 8, 300))]
        else:
            data[at:at] = rng.randbytes(rng.choice((1, 8, 300)))
    at = 0
    while at < len(data) and not pipe.aborted:
        room = connection.get_buffer(-1)
        count = min(len(room), len(data) - at, rng.choice((1, 40, 1000)))
        room[:count] = data[at : at + count]
        connection.buffer_updated(count)
        at += count
    connection.connection_lost(None)
    assert len(heard.ends) == 1
    assert pipe.aborted == heard.ends[0].startswith("bad frame: ")


async def test_the_reason_of_a_notice_is_told():
    heard = Heard()
    connection = SocketConnection(heard, b"")
    connection.connection_made(Pipe())
    blob = b"NO_LONGER_ACTIVE another"
    notice = encode(FrameKind.NOTICE, [pack_op(0, 0, blob_bytes=len(blob))], blobs=[blob])
    feed(connection, b"".join(notice), random.Random(1))
    assert heard.notices == ["NO_LONGER_ACTIVE another"]
    connection.connection_lost(None)


async def test_silence_ends_the_connection(monkeypatch):
    monkeypatch.setattr(transport, "PING_SECONDS", 0.01)
    monkeypatch.setattr(transport, "SILENCE_SECONDS", 0.05)
    heard, pipe = Heard(), Pipe()
    connection = SocketConnection(heard, b"")
    connection.connection_made(pipe)
    async with asyncio.timeout(5):
        while not pipe.aborted:  # noqa: ASYNC110 - a pipe has no event
            await asyncio.sleep(0.005)
    assert len(pipe.sent) > 1
    connection.connection_lost(None)
    assert "nothing was heard" in heard.ends[0]
