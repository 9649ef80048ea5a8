"""The data connection's frames over a gRPC stream: the fallback where only one port can be reached.

The messages are pieces of the byte stream a socket would carry: gRPC's message limit is below the
largest frame. Invariants: what is held of a peer is bounded by a frame and a message; frames out
wait in a bounded queue.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from downstaird.conversation import HELLO_FRAME_BYTES_MAX, Conversation
from stairlib.wire.frame import HEADER_BYTES, Bytes, Frame, FrameError, decode, frame_length
from stairwell.downstairs.v1 import block_service_pb2 as block_pb

# As on a socket: two full replies may wait for a slow peer.
QUEUED_BYTES_MAX = 8 << 20
# Below the 4 MiB that gRPC clients take in a message by default.
MESSAGE_BYTES_MAX = 2 << 20


class StreamWire:
    """The Wire of a conversation on a gRPC stream."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._received = b""
        self._news = asyncio.Event()
        self._may_feed = asyncio.Event()
        self._finished = False
        self.last_activity = self._loop.time()

    @property
    def writable(self) -> bool:
        """Whether the peer drains."""
        return self._queued < QUEUED_BYTES_MAX

    def send(self, buffers: list[Bytes]) -> None:
        """Queues a frame."""
        if not self._finished:
            frame = b"".join(buffers)
            self._queue.append(frame)
            self._queued += len(frame)
            self._news.set()

    def proceed(self) -> None:
        """Another frame may be fed."""
        self._may_feed.set()

    def finish(self) -> None:
        """The stream ends after what is queued."""
        self._finished = True
        self._news.set()
        self._may_feed.set()

    async def receive(
        self, requests: AsyncIterator[block_pb.DataRequest], conversation: Conversation
    ) -> None:
        """Feeds the peer's frames until it has no more."""
        try:
            async for request in requests:
                self.last_activity = self._loop.time()
                self._received += request.frame
                await self._feed(conversation)
                if conversation.over:
                    return
        except FrameError as error:
            conversation.fail(error)
        finally:
            conversation.close("CONNECTION_CLOSED")
            self.finish()

    async def _feed(self, conversation: Conversation) -> None:
        """Feeds the whole frames that have been received, one at a time."""
        while frame := self._next_frame(conversation):
            conversation.feed(frame)
            while not (conversation.ready or conversation.over):
                self._may_feed.clear()
                await self._may_feed.wait()
            if conversation.over:
                return
        conversation.rest()

    def _next_frame(self, conversation: Conversation) -> Frame | None:
        if len(self._received) < HEADER_BYTES:
            return None
        length = frame_length(self._received[:HEADER_BYTES])
        if not conversation.greeted and length > HELLO_FRAME_BYTES_MAX:
            raise FrameError(f"a first frame of {length} bytes")
        if len(self._received) < length:
            return None
        data, self._received = self._received[:length], self._received[length:]
        return decode(data)

    async def messages(self, conversation: Conversation) -> AsyncIterator[bytes]:
        """What to send, in pieces that fit a message, until the end."""
        while True:
            while self._queue:
                frame = self._queue.popleft()
                for at in range(0, len(frame), MESSAGE_BYTES_MAX):
                    yield frame[at : at + MESSAGE_BYTES_MAX]
                was_writable = self.writable
                self._queued -= len(frame)
                self.last_activity = self._loop.time()
                if not was_writable and self.writable:
                    conversation.advance()
            if self._finished:
                return
            self._news.clear()
            await self._news.wait()
