"""The data connection's frames over a gRPC stream: the fallback where only one port can be
reached."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from downstaird.conversation import HELLO_FRAME_BYTES_MAX, Conversation
from stairlib.wire.frame import Bytes, Frame, FrameError, decode
from stairwell.downstairs.v1 import block_service_pb2 as block_pb

# As on a socket: two full replies may wait for a slow peer.
QUEUED_BYTES_MAX = 8 << 20


class StreamWire:
    """The Wire of a conversation on a gRPC stream. Frames out wait in a bounded queue."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: deque[bytes] = deque()
        self._queued = 0
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
                conversation.feed(_decoded(request.frame, greeted=conversation.greeted))
                while not (conversation.ready or conversation.over):
                    self._may_feed.clear()
                    await self._may_feed.wait()
                if conversation.over:
                    return
        except FrameError as error:
            conversation.fail(error)
        finally:
            conversation.close("CONNECTION_CLOSED")
            self.finish()

    async def frames(self, conversation: Conversation) -> AsyncIterator[bytes]:
        """The frames to send, until the end."""
        while True:
            while self._queue:
                frame = self._queue.popleft()
                yield frame
                was_writable = self.writable
                self._queued -= len(frame)
                self.last_activity = self._loop.time()
                if not was_writable and self.writable:
                    conversation.advance()
            if self._finished:
                return
            self._news.clear()
            await self._news.wait()


def _decoded(data: bytes, *, greeted: bool) -> Frame:
    if not greeted and len(data) > HELLO_FRAME_BYTES_MAX:
        raise FrameError(f"a first frame of {len(data)} bytes")
    return decode(data)
