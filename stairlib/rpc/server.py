"""The gRPC server every daemon runs: services, health, reflection, tracing and error mapping.

Invariants: an address that is taken is an `UnavailableError` that names it, never a silently shared
port; health says NOT_SERVING before the first call is turned away at a stop; calls are bounded in
number and messages in size.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from stairlib.model.call_rate import CallRate
from stairlib.model.errors import StairwellError, UnavailableError
from stairlib.rpc.call_guard import CallGuard
from stairlib.rpc.gate import Gate, require_private
from stairlib.rpc.interceptors import ErrorInterceptor, LoggingInterceptor, TracingInterceptor
from stairlib.rpc.reflection import add_reflection
from stairlib.rpc.tokens import TokenBook
from stairlib.runtime import limits
from stairlib.runtime.addresses import Address, parse_address
from stairlib.telemetry.logs import get_logger
from stairlib.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from stairlib.rpc.tls import ServerTls, TlsFiles

_log = get_logger(__name__)

_HEALTH_NAME: Final = "grpc.health.v1.Health"
OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", 1_000 * limits.RPC_HANDSHAKE_SECONDS),
    ("grpc.keepalive_time_ms", 1_000 * limits.RPC_KEEPALIVE_SECONDS),
    ("grpc.keepalive_timeout_ms", 1_000 * limits.RPC_KEEPALIVE_TIMEOUT_SECONDS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000 * limits.RPC_KEEPALIVE_ALLOWED_SECONDS),
    ("grpc.max_send_message_length", limits.RPC_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", limits.RPC_MESSAGE_BYTES),
)


@dataclass(frozen=True, slots=True)
class Service:
    """One service to offer: its full protocol name, and what adds its servicer to a server."""

    name: str
    register: Callable[[grpc.aio.Server], None]


@dataclass(frozen=True, slots=True)
class TokenPort:
    """A second port, for people who show tokens; its address is TCP, over TLS like the first."""

    address: Address
    book: TokenBook


@dataclass(frozen=True, slots=True)
class Security:
    """How a daemon is spoken to, and speaks to its like: with the files `tls`, or else in plain
    text, to other hosts only if `insecure`. `calls` is how often each caller may call; None: as
    often as it can."""

    tls: TlsFiles | None = None
    insecure: bool = False
    tokens: TokenPort | None = None
    calls: CallRate | None = None


class RpcServer:
    """Serves `services` at `address` ("host:port" with 0 for any free port, or "unix:/path").

    With `tls` it speaks that and nothing else, and asks each caller who it is; at the address of
    `tokens` too, where people show those instead of a certificate. Without, whoever can connect may
    do everything: so only on this host, unless `insecure`. `guard` refuses who calls too often.
    """

    def __init__(
        self,
        address: str,
        services: Sequence[Service],
        tracing: Tracing,
        *,
        tls: ServerTls | None = None,
        insecure: bool = False,
        tokens: TokenPort | None = None,
        guard: CallGuard | None = None,
    ) -> None:
        """InvalidRequestError PLAIN_TEXT where that would go over a network."""
        self._wanted = parse_address(address)
        if tls is None and not insecure:
            require_private(address, "listening")
        self._tls = tls
        self._tokens = tokens if tls is not None else None
        self._guard = guard
        self._tokens_bound: Address | None = None
        self._bound: Address | None = None
        self._services = tuple(services)
        self._tracing = tracing
        self._health = health.aio.HealthServicer()
        self._serving = True
        self._announcements: set[asyncio.Task[None]] = set()
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        """Where it listens, with the port in fact bound; what was asked for before `start`."""
        return str(self._bound or self._wanted)

    @property
    def tokens_address(self) -> str:
        """Where people with tokens are served; empty when nowhere."""
        return str(self._tokens_bound or "")

    @property
    def port(self) -> int:
        """The bound TCP port; 0 on a unix socket."""
        return (self._bound or self._wanted).port

    async def start(self) -> None:
        """Binds and serves; raises UnavailableError (PORT_IN_USE, CANNOT_LISTEN) if it cannot."""
        await _probe(self._wanted)
        if self._tokens is not None:
            await _probe(self._tokens.address)
        server = grpc.aio.server(
            interceptors=[
                TracingInterceptor(self._tracing),
                LoggingInterceptor(),
                ErrorInterceptor(self._gate()),
            ],
            options=OPTIONS,
            maximum_concurrent_rpcs=limits.RPC_CONCURRENT_CALLS,
        )
        for service in self._services:
            service.register(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        add_reflection(server, [*(service.name for service in self._services), _HEALTH_NAME])
        try:
            port = self._bind(server)
            if self._tokens is not None and self._tls is not None:
                where = self._tokens.address
                bound = server.add_secure_port(str(where), self._tls.token_credentials)
                self._tokens_bound = where.with_port(bound)
        except RuntimeError as error:  # lost the race between the probe and here
            raise _in_use(self._wanted) from error
        await self._announce(self._serving)
        await server.start()
        self._server = server
        _restrict(self._wanted)
        self._bound = self._wanted if self._wanted.is_unix else self._wanted.with_port(port)
        _log.info("listening", address=self.address, tls=self._tls is not None)

    def _gate(self) -> Gate | None:
        asks = self._tls is not None
        if not asks and self._guard is None:
            return None
        book = self._tokens.book if self._tokens is not None else None
        return Gate(book, asks=asks, guard=self._guard)

    def _bind(self, server: grpc.aio.Server) -> int:
        if self._tls is None:
            return server.add_insecure_port(str(self._wanted))
        return server.add_secure_port(str(self._wanted), self._tls.credentials)

    def set_serving(self, serving: bool) -> None:
        """Says through health whether calls make sense now; true from `start` unless set before."""
        self._serving = serving
        if self._server is not None:
            task = asyncio.get_running_loop().create_task(self._announce(serving))
            self._announcements.add(task)
            task.add_done_callback(self._announcements.discard)

    async def stop(self, grace_seconds: float) -> None:
        """Health off, no new calls, up to `grace_seconds` for those running, then cancels them."""
        if self._server is None:
            return
        server, self._server = self._server, None
        await self._health.enter_graceful_shutdown()
        await server.stop(grace_seconds)
        _remove(self._wanted)
        _log.info("stopped listening", address=self.address)

    async def _announce(self, serving: bool) -> None:
        answer = health_pb2.HealthCheckResponse
        status = answer.SERVING if serving else answer.NOT_SERVING
        for name in ("", *(service.name for service in self._services)):
            await self._health.set(name, status)


def _restrict(address: Address) -> None:
    """Whoever may connect may command: a socket is its owner's alone."""
    if address.path is not None:
        Path(address.path).chmod(stat.S_IRUSR | stat.S_IWUSR)


def _remove(address: Address) -> None:
    if address.path is not None:
        Path(address.path).unlink(missing_ok=True)


async def _probe(address: Address) -> None:
    """Finds out why binding would fail: gRPC itself says so only in its own log."""
    if address.path is not None:
        _probe_unix(address, address.path)
        return
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _cannot(address, error.strerror or str(error)) from error
    for family, kind, protocol, _, sockaddr in found[:1]:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(sockaddr)
                probe.listen(1)
            except OSError as error:
                raise _bind_error(address, error) from error


def _probe_unix(address: Address, path: str) -> None:
    """A socket somebody answers is taken; one left behind is not: gRPC replaces it."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if not Path(path).absolute().parent.is_dir():
            raise _cannot(address, "its folder does not exist") from None
        return
    except OSError as error:
        raise _cannot(address, error.strerror) from error
    if not stat.S_ISSOCK(mode):
        raise _cannot(address, "there is a file of that name which is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
        except BlockingIOError:
            pass  # its queue of connections is full, so somebody listens
        except OSError as error:
            raise _cannot(address, error.strerror) from error
    raise _in_use(address)


def _bind_error(address: Address, error: OSError) -> StairwellError:
    if error.errno == errno.EADDRINUSE:
        return _in_use(address)
    return _cannot(address, error.strerror)


def _in_use(address: Address) -> StairwellError:
    return UnavailableError(
        f"{address} is in use by another program; stop it or choose another address",
        reason="PORT_IN_USE",
        address=str(address),
    )


def _cannot(address: Address, why: str | None) -> StairwellError:
    return UnavailableError(
        f"cannot listen on {address}: {why}", reason="CANNOT_LISTEN", address=str(address)
    )
