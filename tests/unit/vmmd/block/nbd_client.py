"""A small NBD client over asyncio streams, for tests that look at single messages."""

from __future__ import annotations

import asyncio
import struct

from vmmd.block import nbd_wire as wire


class NbdClient:
    """Speaks one message at a time; reads with a deadline so that a silent server fails a test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.structured = False

    @classmethod
    async def connect(cls, path: str) -> NbdClient:
        client = cls(*await asyncio.open_unix_connection(path))
        try:
            magic, option_magic, flags = wire.GREETING.unpack(await client.exactly(18))
        except BaseException:
            client.writer.transport.abort()
            raise
        assert (magic, option_magic) == (wire.MAGIC, wire.OPTION_MAGIC)
        assert flags & wire.HANDSHAKE_FIXED_NEWSTYLE
        client.writer.write(wire.CLIENT_FLAGS.pack(3))
        return client

    async def exactly(self, count: int) -> bytes:
        async with asyncio.timeout(10):
            return await self.reader.readexactly(count)

    async def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """(reply type, data) up to the final reply."""
        self.writer.write(wire.OPTION.pack(wire.OPTION_MAGIC, option, len(data)) + data)
        replies = []
        while True:
            magic, echoed, kind, length = wire.OPTION_REPLY.unpack(await self.exactly(20))
            assert (magic, echoed) == (wire.OPTION_REPLY_MAGIC, option)
            replies.append((kind, await self.exactly(length)))
            if kind == wire.OptionReply.ACK or kind >> 31:
                return replies

    async def go(self, name: bytes = b"block2", *, structured: bool = True) -> NbdClient:
        if structured:
            assert await self.option(wire.Option.STRUCTURED_REPLY) == [(wire.OptionReply.ACK, b"")]
        self.structured = structured
        request = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        replies = await self.option(wire.Option.GO, request)
        assert replies[-1][0] == wire.OptionReply.ACK
        return self

    async def statuses(
        self, offset: int, length: int, *, flags: int = 0
    ) -> list[tuple[int, int]] | int:
        """(bytes, flags) of each stretch a BLOCK_STATUS tells of, or its error."""
        self.send(wire.Command.BLOCK_STATUS, offset, length, flags=flags)
        chunk, kind, handle, size = struct.unpack(">4xHHQI", await self.exactly(20))
        assert (chunk, handle) == (wire.CHUNK_DONE, 1)
        body = await self.exactly(size)
        if kind == wire.CHUNK_ERROR_TYPE:
            return int(struct.unpack(">I", body[:4])[0])
        assert kind == wire.CHUNK_BLOCK_STATUS
        assert body[:4] == struct.pack(">I", wire.ALLOCATION_CONTEXT_ID)
        return list(struct.iter_unpack(">II", body[4:]))

    def send(
        self, command: int, offset: int, length: int, *, flags: int = 0, handle: int = 1,
        payload: bytes = b"",
    ) -> None:  # fmt: skip
        header = wire.REQUEST.pack(wire.REQUEST_MAGIC, flags, command, handle, offset, length)
        self.writer.write(header + payload)

    async def reply(self, read_bytes: int = 0) -> tuple[int, int, bytes]:
        """(handle, error, data); `read_bytes` is what a READ with simple replies asked for."""
        (magic,) = struct.unpack(">I", await self.exactly(4))
        if magic == wire.SIMPLE_REPLY_MAGIC:
            error, handle = struct.unpack(">IQ", await self.exactly(12))
            data = await self.exactly(read_bytes) if read_bytes and not error else b""
            return handle, error, data
        assert magic == wire.STRUCTURED_REPLY_MAGIC
        flags, kind, handle, length = struct.unpack(">HHQI", await self.exactly(16))
        assert flags == wire.CHUNK_DONE
        body = await self.exactly(length)
        if kind == wire.CHUNK_OFFSET_DATA:
            return handle, 0, body[8:]
        assert kind == wire.CHUNK_ERROR_TYPE
        return handle, struct.unpack(">I", body[:4])[0], b""

    async def ask(self, command: int, offset: int = 0, length: int = 0, **fields) -> int:
        """The error of a request without data in its reply."""
        self.send(command, offset, length, **fields)
        return (await self.reply())[1]

    async def write(self, offset: int, data: bytes, **fields) -> int:
        return await self.ask(wire.Command.WRITE, offset, len(data), payload=data, **fields)

    async def read(self, offset: int, length: int) -> tuple[int, bytes]:
        self.send(wire.Command.READ, offset, length)
        _, error, data = await self.reply(length)
        return error, data

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()
