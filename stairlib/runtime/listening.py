"""Ends listening without losing a connection that was accepted just before."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable


async def stop_listening(servers: Iterable[asyncio.Server]) -> None:
    """Closes servers of this loop; when it returns, the protocol of each connection they accepted
    has been told of it, or the coroutine for its streams has begun (with TLS, once hands are
    shaken).

    asyncio accepts a connection in one turn of its loop and makes the transport in the next. When
    the server was closed in between, the transport is forgotten half made (python/cpython#109564):
    its socket stays open until the garbage is collected, and the peer waits for an answer. So the
    loop is first kept from accepting, and has as many turns as what it has accepted may need.
    """
    closing = list(servers)
    loop = asyncio.get_running_loop()
    for server in closing:
        for listener in server.sockets:
            # uvloop has no reader there, makes transports as it accepts, and says False.
            loop.remove_reader(listener.fileno())
    for _turn in ("transports are made", "protocols are told", "coroutines begin"):
        await asyncio.sleep(0)
    for server in closing:
        server.close()
