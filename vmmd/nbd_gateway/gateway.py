"""The TCP listener of NBD: every disk of the host by name, with TLS.

    gateway = NbdGateway(parse_address("0.0.0.0:10809"), exports, tls)
    await gateway.start(); gateway.address; await gateway.stop()

What is said until a client has its export is decided in `core.entrance`; from then on bytes go
between the client and the unix socket of the export unread. Each machine's process serves its disks
itself; this is in the daemon, since it alone knows them all (ADR 0041).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from typing import Protocol, cast

from stairlib.model.errors import RefusedError, StairwellError, UnavailableError
from stairlib.rpc.access import ANYBODY, Caller, require_exports
from stairlib.rpc.tls import ServerTls, certificate_caller_of
from stairlib.runtime.addresses import Address
from stairlib.runtime.listening import stop_listening
from stairlib.telemetry.logs import get_logger
from vmmd.block import nbd_wire as wire
from vmmd.nbd_gateway.core.entrance import (
    GREETING,
    AskExport,
    Entrance,
    ListExports,
    Say,
    StartTls,
    Step,
)
from vmmd.nbd_gateway.pipe import Pipe, PipeEnded

# From the connection to the export: who has not got there by then is in the way of others.
HANDSHAKE_SECONDS = 20.0
# Clients that are not there yet, and those that are.
HANDSHAKES_MAX = 32
CLIENTS_MAX = 128
# For what was sent already, when one side has hung up.
LINGER_SECONDS = 5.0
_REPLY_BYTES_MAX = 16 << 10
# A client's host that is gone without a word is noticed after a minute.
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)

_log = get_logger(__name__)


class Exports(Protocol):
    """The disks there are now."""

    def names(self) -> Sequence[str]:
        """What they are called."""

    async def socket_of(self, name: str) -> str:
        """The path where that one's NBD server listens; StairwellError when it cannot be had."""


class NbdGateway:
    """Listens at `address` (port 0: a free one); in plain text where `tls` is None."""

    def __init__(self, address: Address, exports: Exports, tls: ServerTls | None) -> None:
        self._wanted = address
        self._exports = exports
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._serving: dict[Pipe, asyncio.Task[None]] = {}
        self._handshakes = 0
        self.address = address

    @property
    def client_count(self) -> int:
        """Connections there are, with an export or not yet."""
        return len(self._serving)

    async def start(self) -> None:
        """Listens; UnavailableError when the address cannot be had."""
        loop = asyncio.get_running_loop()
        where = self._wanted
        try:
            server = await loop.create_server(lambda: Pipe(self._connected), where.host, where.port)
        except OSError as error:
            raise UnavailableError(
                f"NBD cannot listen on {where}: {error.strerror or error}", reason="PORT_IN_USE"
            ) from error
        self._server = server
        self.address = where.with_port(server.sockets[0].getsockname()[1])
        _log.info("nbd gateway listening", address=str(self.address), tls=self._tls is not None)

    async def stop(self) -> None:
        """Stops listening and hangs up on everybody."""
        if self._server is not None:
            await stop_listening([self._server])
        tasks = list(self._serving.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    def _connected(self, client: Pipe) -> None:
        if self._handshakes >= HANDSHAKES_MAX or len(self._serving) >= CLIENTS_MAX:
            _log.warning("nbd client refused: too many", clients=len(self._serving))
            client.transport.abort()
            return
        self._handshakes += 1
        task = asyncio.get_running_loop().create_task(self._serve(client))
        self._serving[client] = task
        task.add_done_callback(lambda _task: self._serving.pop(client, None))

    async def _serve(self, client: Pipe) -> None:
        upstream: Pipe | None = None
        plain = client.transport
        try:
            upstream = await self._enter(client)
            if upstream is not None:
                ends = {client.lost, upstream.lost}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            client.transport.close()
            await asyncio.wait({client.lost}, timeout=LINGER_SECONDS)
        except TimeoutError:
            _log.warning("nbd client cut off: no export within the time for it")
        except (PipeEnded, OSError) as error:
            _log.info("nbd client left before it had an export", reason=str(error))
        finally:
            client.transport.abort()
            plain.abort()
            if upstream is not None:
                upstream.transport.close()

    async def _enter(self, client: Pipe) -> Pipe | None:
        """As `_Guest.enter`; TimeoutError when it takes too long."""
        try:
            for option in _KEEPALIVE:
                client.transport.get_extra_info("socket").setsockopt(*option)
            client.transport.write(GREETING)
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                return await _Guest(client, self._exports, self._tls).enter()
        finally:
            self._handshakes -= 1


class _Guest:
    """One client until it has its export."""

    def __init__(self, client: Pipe, exports: Exports, tls: ServerTls | None) -> None:
        self._client = client
        self._exports = exports
        self._tls = tls
        self._entrance = Entrance(tls=tls is not None)
        self._caller: Caller = ANYBODY

    async def enter(self) -> Pipe | None:
        """The connection to the server of its export, joined with the client's; None when it was
        sent away or wanted none. PipeEnded or OSError when it left."""
        while True:
            step = self._entrance.next()
            if step is None:
                self._entrance.feed(await self._client.read())
                continue
            if isinstance(step, Say):
                self._client.transport.write(step.data)
                if step.ends:
                    return None
                continue
            upstream = await self._do(step)
            if upstream is not None:
                return upstream

    async def _do(self, step: Step) -> Pipe | None:
        if isinstance(step, StartTls):
            await self._start_tls(step)
        elif isinstance(step, ListExports):
            self._client.transport.write(self._entrance.listing(self._exports.names()))
        elif isinstance(step, AskExport):
            return await self._ask(step)
        return None

    async def _start_tls(self, step: StartTls) -> None:
        assert self._tls is not None
        if not self._client.is_silent:
            raise PipeEnded
        self._client.transport.write(step.data)
        loop = asyncio.get_running_loop()
        secured = await loop.start_tls(
            self._client.transport,
            self._client,
            self._tls.context,
            server_side=True,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
        )
        if secured is None:
            raise PipeEnded
        self._client.speak_through(secured)
        self._entrance.secured()
        try:
            found = cast("ssl.SSLObject", secured.get_extra_info("ssl_object"))
            self._caller = certificate_caller_of(found)
            require_exports(self._caller)
        except RefusedError as error:
            _log.warning("nbd client refused", caller=self._caller.name, reason=error.message)
            self._entrance.refuse(error.message)

    async def _ask(self, step: AskExport) -> Pipe | None:
        try:
            upstream = await self._reach(step.name)
        except StairwellError as error:
            refused = self._entrance.unknown(step.option, error.message)
            self._client.transport.write(refused.data)
            if refused.ends:
                raise PipeEnded from error
            return None
        joined = False
        try:
            joined = await self._pass_on(step, upstream)
        finally:
            if not joined:
                upstream.transport.abort()
        return upstream if joined else None

    async def _reach(self, name: str) -> Pipe:
        path = await self._exports.socket_of(name)
        try:
            _transport, upstream = await asyncio.get_running_loop().create_unix_connection(
                Pipe, path
            )
            await upstream.read_exactly(wire.GREETING.size)
        except (OSError, PipeEnded) as error:
            raise UnavailableError(f'"{name}" is not served now: try again') from error
        return upstream

    async def _pass_on(self, step: AskExport, upstream: Pipe) -> bool:
        """Asks; whether the client now has the export."""
        upstream.transport.write(step.request)
        for _ in range(step.preamble):
            await _replies(upstream)
        enters = step.option == wire.Option.EXPORT_NAME
        if not enters:
            well, replies = await _replies(upstream)
            self._client.transport.write(replies)
            self._entrance.answered(well=well)
            enters = well and step.option == wire.Option.GO
        if enters:
            _log.info("nbd client admitted", export=step.name, caller=self._caller.name)
            self._client.join(upstream, self._entrance.rest)
        return enters


async def _replies(upstream: Pipe) -> tuple[bool, bytes]:
    """The replies to one option to their end, and whether it was done."""
    found = bytearray()
    while True:
        header = await upstream.read_exactly(wire.OPTION_REPLY.size)
        _magic, _option, kind, length = wire.OPTION_REPLY.unpack(header)
        if length > _REPLY_BYTES_MAX:
            raise PipeEnded
        found += header + await upstream.read_exactly(length)
        if kind == wire.OptionReply.ACK or kind >> 31:
            return kind == wire.OptionReply.ACK, bytes(found)
