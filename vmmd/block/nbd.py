"""The NBD export of a backend: any NBD client can use a disk.

    export = NbdExport(backend, "block2", socket="/run/x/block2.sock")
    await export.start(); export.uri; await export.stop()

The protocol is in `nbd_handshake`, `nbd_transmission` and `nbd_job`; here are the sockets. All
requests that arrive in one read go to the backend in one batch, all replies of one batch of
completions leave in one write. A client that has too much in flight, or does not read its replies,
is not read from until it has less.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast
from urllib.parse import quote

from stairlib import native
from stairlib.model.errors import UnavailableError
from stairlib.runtime.listening import stop_listening
from stairlib.telemetry.logs import get_logger
from vmmd.block import nbd_wire as wire
from vmmd.block.attachment import Attachment
from vmmd.block.backend import Backend, Completion, Request
from vmmd.block.nbd_handshake import ExportDescription, Handshake, Verdict
from vmmd.block.nbd_job import NbdJob, error_of
from vmmd.block.nbd_transmission import (
    NbdProtocolError,
    NbdRequest,
    RequestParser,
    check_request,
    data_chunk,
    error_chunk,
    simple_reply,
    status_chunk,
)
from vmmd.block.request_run import Run, Whole

# Per client. One request of the largest size may pass the byte limit.
REQUESTS_IN_FLIGHT_MAX = 256
BYTES_IN_FLIGHT_MAX = 32 << 20
CLIENTS_MAX = 16
# A client that does not get through its handshake in this time is in the way of others.
HANDSHAKE_SECONDS = 20.0
_STOP_SECONDS = 5.0
_HANDSHAKE_BUFFER_BYTES = 16 << 10
# Replies up to this size are joined into one buffer, larger ones are passed on as they are.
_JOIN_BYTES = 64 << 10

_ANSWERED_IN_CHUNKS = (wire.Command.READ, wire.Command.BLOCK_STATUS)

_log = get_logger(__name__)


class NbdExport:
    """Serves `backend` under `name` on the unix socket `socket`, a TCP address, or both.

    `tcp` is (host, port); port 0 picks a free one, which `tcp_port` and `uri` then show.
    """

    def __init__(
        self,
        backend: Backend,
        name: str,
        *,
        socket: Path | str | None = None,
        tcp: tuple[str, int] | None = None,
    ) -> None:
        assert socket is not None or tcp is not None
        self.name = name
        self.attachment = Attachment(backend)
        self._description = ExportDescription(name, backend.info)
        self._unix_path = None if socket is None else str(socket)
        self._tcp = tcp
        self._servers: list[asyncio.Server] = []
        self._clients: set[_Client] = set()
        self.tcp_port: int | None = None

    @property
    def uri(self) -> str:
        """What NBD tools take; the unix socket where there is one."""
        if self._unix_path is not None:
            return f"nbd+unix:///{quote(self.name)}?socket={quote(self._unix_path)}"
        assert self._tcp is not None
        host, port = self._tcp
        shown = f"[{host}]" if ":" in host else host
        return f"nbd://{shown}:{self.tcp_port or port}/{quote(self.name)}"

    @property
    def client_count(self) -> int:
        """Clients connected now."""
        return len(self._clients)

    async def start(self) -> None:
        """Listens; UnavailableError when an address cannot be had."""
        loop = asyncio.get_running_loop()
        try:
            if self._unix_path is not None:
                server = await loop.create_unix_server(self._new_client, self._unix_path)
                self._servers.append(server)
            if self._tcp is not None:
                server = await loop.create_server(self._new_client, *self._tcp)
                self._servers.append(server)
                self.tcp_port = server.sockets[0].getsockname()[1]
        except OSError as error:
            await self.stop()
            raise UnavailableError(
                f'NBD export "{self.name}" cannot listen on {self._unix_path or self._tcp}: '
                f"{error.strerror or error}",
                reason="PORT_IN_USE",
            ) from error
        _log.info("nbd export listening", export=self.name, uri=self.uri)

    async def stop(self) -> None:
        """Stops listening, hangs up on clients, and waits a moment for what is in flight."""
        servers, self._servers = self._servers, []
        await stop_listening(servers)
        for client in list(self._clients):
            client.hang_up()
        idle = asyncio.Event()
        self.attachment.when_idle(idle.set)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await idle.wait()
        except TimeoutError:
            _log.warning("nbd requests left at stop", count=self.attachment.in_flight)
        for server in servers:
            await server.wait_closed()

    def _new_client(self) -> _Client:
        return _Client(self._description, self.attachment, self._clients)


class _Client(asyncio.BufferedProtocol):
    """One connection."""

    def __init__(
        self, export: ExportDescription, attachment: Attachment, clients: set[_Client]
    ) -> None:
        self._export = export
        self._attachment = attachment
        self._clients = clients
        self._transport: asyncio.Transport | None = None
        self._handshake: Handshake | None = Handshake(export)
        self._handshake_buffer = bytearray(_HANDSHAKE_BUFFER_BYTES)
        self._deadline: asyncio.TimerHandle | None = None
        self._parser = RequestParser()
        self._structured = False
        self._tells_holes = False
        self._jobs = 0
        self._bytes = 0
        self._requests: list[Request] = []
        self._runs: list[Run] = []
        self._out: list[bytes | bytearray] = []
        self._working = False
        self._write_blocked = False
        self._reading = True
        self._leaving = False

    # --- the transport's calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greets the client, or refuses it when there are too many."""
        # uvloop's transports are no subclasses of asyncio's.
        stream = cast("asyncio.Transport", transport)
        self._transport = stream
        if len(self._clients) >= CLIENTS_MAX:
            _log.warning("nbd client refused", export=self._export.name, clients=CLIENTS_MAX)
            stream.abort()
            return
        self._clients.add(self)
        stream.write(Handshake.greeting())
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(HANDSHAKE_SECONDS, self.hang_up)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        del sizehint
        if self._handshake is not None:
            return memoryview(self._handshake_buffer)
        return self._parser.target()

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        if self._handshake is not None:
            self._shake_hands(bytes(self._handshake_buffer[:nbytes]))
        else:
            self._parser.received(nbytes)
            self._work()

    def pause_writing(self) -> None:
        """The client does not read its replies."""
        self._write_blocked = True

    def resume_writing(self) -> None:
        """It does again."""
        self._write_blocked = False
        self._work()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone; what is in flight completes into nothing."""
        del exc
        self._transport = None
        self._clients.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()

    def hang_up(self) -> None:
        """Ends the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # --- handshake ---

    def _shake_hands(self, data: bytes) -> None:
        assert self._handshake is not None
        assert self._transport is not None
        answer = self._handshake.receive(data)
        if answer:
            self._transport.write(answer)
        if self._handshake.verdict is Verdict.CLOSED:
            self._transport.close()
        elif self._handshake.verdict is Verdict.TRANSMISSION:
            assert self._deadline is not None
            self._deadline.cancel()
            self._structured = self._handshake.structured
            self._tells_holes = self._handshake.tells_holes
            self._parser.push(self._handshake.rest)
            self._handshake = None
            self._work()

    # --- transmission ---

    def _work(self, also: Callable[[], None] | None = None) -> None:
        """Runs `also`, takes what requests it may, submits them, sends the replies there are.

        The backend may complete inside submit; then the completions only add to the lists and the
        outer call goes on with them.
        """
        if also is not None:
            also()
        if self._working:
            return
        self._working = True
        try:
            while True:
                self._take_requests()
                if not self._requests and not self._runs:
                    break
                runs, self._runs = self._runs, []
                batch, self._requests = self._requests, []
                for run in runs:
                    self._attachment.submit(run, self._completed)
                if batch:
                    self._attachment.submit(batch, self._completed)
                # Within the loop: a client that does not read its replies is noticed here, before
                # more of them are made.
                self._send()
        finally:
            self._working = False
        self._send()
        self._balance()

    @property
    def _limited(self) -> bool:
        return (
            self._jobs >= REQUESTS_IN_FLIGHT_MAX
            or self._bytes >= BYTES_IN_FLIGHT_MAX
            or self._write_blocked
            or self._leaving
            or self._transport is None
        )

    def _take_requests(self) -> None:
        try:
            while not self._parser.empty and not self._limited:
                if native.compiled and self._take_runs():
                    continue
                request = self._parser.next_request()
                if request is None:
                    return
                self._begin(request)
        except NbdProtocolError as error:
            _log.warning("nbd client hung up on", export=self._export.name, error=str(error))
            self._leaving = True
            self.hang_up()

    def _take_runs(self) -> bool:
        """Takes what plain requests there are at once; False when there are none."""
        runs = self._parser.runs(
            self._export.info,
            REQUESTS_IN_FLIGHT_MAX - self._jobs,
            BYTES_IN_FLIGHT_MAX - self._bytes,
        )
        for run in runs:
            self._jobs += run.requests
            self._bytes += run.data_bytes
        self._runs += runs
        return bool(runs)

    def _begin(self, request: NbdRequest) -> None:
        if request.command == wire.Command.DISC:
            self._leaving = True
            return
        error = check_request(request, self._export.info)
        if request.command == wire.Command.BLOCK_STATUS and not self._tells_holes:
            error = wire.Error.EINVAL
        if error is not wire.Error.OK:
            self._reply_error(request, error)
            return
        job = NbdJob(request, self._export.info)
        self._jobs += 1
        self._bytes += job.bytes_held
        self._requests.extend(job.begin())

    def _completed(self, completions: Sequence[Completion]) -> None:
        def take() -> None:
            if type(completions) is Whole:
                run = completions.run
                self._jobs -= run.requests
                self._bytes -= run.data_bytes
                self._out.append(run.replies(completions.data, self._structured))
                return
            for completion in completions:
                token = completion.token
                assert isinstance(token, tuple)
                job, offset = token
                if isinstance(job, Run):
                    self._finish_one(job, offset, completion)
                    continue
                further = job.completed(offset, completion)
                # Also for a client that has left: a request begun is carried out.
                self._requests.extend(further)
                if job.outstanding == 0:
                    self._finish(job)

        self._work(take)

    def _finish_one(self, run: Run, index: int, completion: Completion) -> None:
        """A request of a run that was not completed with the others."""
        handle, offset, length, _before = run.span(index)
        size = run.block_size
        self._jobs -= 1
        self._bytes -= length * size
        command = wire.Command.READ if run.reads else wire.Command.WRITE
        request = NbdRequest(0, command, handle, offset * size, length * size, None)
        error = error_of(completion.status)
        if run.reads and completion.data is None:
            error = error or wire.Error.EIO
        if error:
            self._reply_error(request, error)
        else:
            # Data is only lent until the callback returns.
            self._reply(request, bytes(completion.data or b""))

    def _finish(self, job: NbdJob) -> None:
        self._jobs -= 1
        self._bytes -= job.bytes_held
        request = job.request
        if job.error:
            self._reply_error(request, job.error)
        elif job.held is not None:
            one = bool(request.flags & wire.COMMAND_REQ_ONE)
            size = self._export.info.block_size
            self._out.append(status_chunk(request.handle, job.held, size, one=one))
        else:
            self._reply(request, job.data)

    def _reply(self, request: NbdRequest, data: bytes | bytearray) -> None:
        """It ended well; `data` is of a READ."""
        if request.command != wire.Command.READ:
            self._out.append(simple_reply(request.handle, wire.Error.OK))
            return
        if self._structured:
            self._out.append(data_chunk(request.handle, request.offset, request.length))
        else:
            self._out.append(simple_reply(request.handle, wire.Error.OK))
        self._out.append(data)

    def _reply_error(self, request: NbdRequest, error: int) -> None:
        if self._structured and request.command in _ANSWERED_IN_CHUNKS:
            self._out.append(error_chunk(request.handle, error))
        else:
            self._out.append(simple_reply(request.handle, error))

    def _send(self) -> None:
        if not self._out:
            return
        out, self._out = self._out, []
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if len(out) == 1:
            transport.write(out[0])
        elif sum(map(len, out)) <= _JOIN_BYTES:
            transport.write(b"".join(out))
        else:
            transport.writelines(out)

    def _balance(self) -> None:
        """Reads from the client exactly while it may have more in flight; lets it go when done."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._leaving:
            if self._jobs == 0:
                transport.close()
            return
        if self._limited and self._reading:
            self._reading = False
            transport.pause_reading()
        elif not self._limited and not self._reading:
            self._reading = True
            transport.resume_reading()
