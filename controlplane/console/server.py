"""The console's server, in the control plane's own loop.

Invariants: an address that is taken is an UnavailableError that names it; in plain text it listens
on this host alone, unless `insecure`; with TLS it takes tokens, and nobody without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any, Final

import uvicorn

from controlplane.console.application import Console
from controlplane.console.calls import Calls
from controlplane.console.protection import Protection
from stairlib.model.errors import InvalidRequestError, UnavailableError
from stairlib.rpc.gate import require_private
from stairlib.rpc.server import Security
from stairlib.rpc.tokens import TokenBook
from stairlib.runtime.addresses import Address, parse_address
from stairlib.telemetry.logs import get_logger

_log = get_logger(__name__)

BACKLOG: Final = 128
STOP_SECONDS: Final = 2


class _Quiet(uvicorn.Server):
    """Signals are the control plane's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


def console_tokens(security: Security) -> TokenBook | None:
    """Whom the console asks for tokens; None in plain text. InvalidRequestError where a browser
    would have nothing to show."""
    if security.tls is None:
        return None
    if security.tokens is None:
        raise InvalidRequestError(
            "--console with TLS takes people's tokens: give --tokens and --tokens-listen too"
            " (`stairwell pki token` makes them)",
            reason="TOKENS_NEEDED",
        )
    return security.tokens.book


class ConsoleServer:
    """Serves from `start` to `stop`; `address` is where, with the port in fact bound."""

    def __init__(self, address: str, calls: Calls, security: Security) -> None:
        """InvalidRequestError for an address that a console cannot have."""
        self._wanted = parse_address(address)
        if self._wanted.is_unix:
            raise InvalidRequestError("--console takes HOST:PORT: browsers know no unix sockets")
        if security.tls is None and not security.insecure:
            require_private(address, "serving the console")
        self._security = security
        self._console = Console(calls, console_tokens(security))
        self._server: _Quiet | None = None
        self._task: asyncio.Task[None] | None = None
        self._bound: Address | None = None

    @property
    def address(self) -> str:
        """host:port."""
        return str(self._bound or self._wanted)

    @property
    def url(self) -> str:
        """What to open."""
        return f"{self._scheme}://{self.address}/"

    @property
    def _scheme(self) -> str:
        return "http" if self._security.tls is None else "https"

    async def start(self) -> None:
        """Binds and serves."""
        tls = self._security.tls.server() if self._security.tls is not None else None
        # With TLS the certificate says which names are ours.
        names = frozenset() if tls else frozenset({"localhost", self._wanted.host})
        more: dict[str, Any] = {}
        if tls is not None:
            more["ssl_context_factory"] = lambda _config, _default: tls.people_context
        config = uvicorn.Config(
            Protection(self._console.app, names, self._scheme),
            log_config=None, access_log=False, lifespan="off", ws="none", server_header=False,
            date_header=False, proxy_headers=False, timeout_graceful_shutdown=STOP_SECONDS,
            h11_max_incomplete_event_size=32 << 10, **more,
        )  # fmt: skip
        listener = await _bound(self._wanted)
        self._bound = self._wanted.with_port(listener.getsockname()[1])
        self._server = _Quiet(config)
        self._task = asyncio.create_task(self._server.serve([listener]), name="console")
        _log.info("the console listens", address=self.address, tls=tls is not None)

    async def stop(self) -> None:
        """Ends watches and connections."""
        await self._console.stop()
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await self._task
            self._server = None


async def _bound(address: Address) -> socket.socket:
    """A socket that listens; UnavailableError when there cannot be one."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, _kind, _protocol, _name, where = found[0]
        listener = socket.create_server(where[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise UnavailableError(
            f"the console cannot listen on {address}: {error.strerror or error}",
            reason="CANNOT_LISTEN",
            address=str(address),
        ) from error
    listener.setblocking(False)
    return listener
