"""A channel for as long as a daemon lives, whose certificates may be renewed meanwhile.

gRPC takes a client's certificate when a channel is made. This one is a channel as stubs want it,
and opens another one underneath once the files have changed: calls begun before go on, watches are
begun anew by whoever needs them when the old one is let go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc

from stairlib.rpc.channel import open_channel
from stairlib.rpc.renewal import Renewed
from stairlib.rpc.tls import ClientTls, PeerTls, TlsFiles
from stairlib.runtime.addresses import parse_address
from stairlib.telemetry.tracing import Tracing

# What a call that was begun with the old certificate may still take; endless ones are cut.
RETIRE_SECONDS: Final = 120.0


class RenewedChannel:
    """To one daemon, whose certificate must be for the host of `address`. StateError TLS_FILE at
    construction when the files will not do."""

    def __init__(self, address: str, files: TlsFiles, tracing: Tracing | None = None) -> None:
        self._address = address
        self._host = parse_address(address).host
        self._tracing = tracing
        self._files: Renewed[ClientTls] = Renewed(
            "certificates", (files.cert, files.key, files.root), files.client
        )
        self._made_of = self._files.now()
        self._channel = self._open()
        self._retiring: dict[asyncio.Task[None], grpc.aio.Channel] = {}

    def _open(self) -> grpc.aio.Channel:
        client = self._made_of
        peer = PeerTls(client.credentials, client.context, self._host)
        return open_channel(self._address, tracing=self._tracing, tls=peer)

    def current(self) -> grpc.aio.Channel:
        """The channel of the files as they are now."""
        newest = self._files.now()
        if newest is not self._made_of:
            old, self._made_of = self._channel, newest
            self._channel = self._open()
            task = asyncio.get_running_loop().create_task(old.close(RETIRE_SECONDS))
            self._retiring[task] = old
            task.add_done_callback(lambda done: self._retiring.pop(done, None))
        return self._channel

    async def close(self, grace: float | None = None) -> None:
        """Ends every call and the connections."""
        retiring = dict(self._retiring)
        for task in retiring:
            task.cancel()
        await asyncio.gather(*retiring, return_exceptions=True)
        # A close that is cancelled while it waits has ended nothing yet.
        for old in retiring.values():
            await old.close()
        await self._channel.close(grace)

    def _callable(self, kind: str, path: str, *given: Any, **named: Any) -> Callable[..., Any]:
        made: tuple[grpc.aio.Channel, Any] | None = None

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal made
            channel = self.current()
            if made is None or made[0] is not channel:
                made = channel, getattr(channel, kind)(path, *given, **named)
            return made[1](*arguments, **options)

        return call

    def unary_unary(self, path: str, *given: Any, **named: Any) -> Callable[..., Any]:
        """As of a channel."""
        return self._callable("unary_unary", path, *given, **named)

    def unary_stream(self, path: str, *given: Any, **named: Any) -> Callable[..., Any]:
        """As of a channel."""
        return self._callable("unary_stream", path, *given, **named)

    def stream_unary(self, path: str, *given: Any, **named: Any) -> Callable[..., Any]:
        """As of a channel."""
        return self._callable("stream_unary", path, *given, **named)

    def stream_stream(self, path: str, *given: Any, **named: Any) -> Callable[..., Any]:
        """As of a channel."""
        return self._callable("stream_stream", path, *given, **named)
