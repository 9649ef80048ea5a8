"""One invocation's connection to the control plane and its way of printing.

The only module of the client that makes calls: each has a deadline, and each failure comes back
as the typed error the daemon raised. JSON goes to stdout as it is; everything for people goes
through rich, with markup off, since names and addresses may look like markup.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Self, TypeVar

import grpc.aio
from google.protobuf.message import Message
from rich.console import Console, RenderableType
from rich.text import Text

from controlplane.cli.failure import Locate, nowhere, peer_name
from controlplane.cli.patience import Patience
from controlplane.cli.plain import dump
from controlplane.cli.settings import CALL_SECONDS, Output, Settings
from stairlib.model.errors import CallRateError, UnavailableError
from stairlib.rpc.channel import open_channel
from stairlib.rpc.tls import saying_why
from stairlib.telemetry.tracing import Tracing
from stairwell.controlplane.v1.disk_service_pb2_grpc import DiskServiceStub
from stairwell.controlplane.v1.fleet_service_pb2_grpc import FleetServiceStub
from stairwell.controlplane.v1.instance_service_pb2_grpc import InstanceServiceStub
from stairwell.controlplane.v1.replacement_service_pb2_grpc import ReplacementServiceStub
from stairwell.controlplane.v1.serial_service_pb2_grpc import SerialServiceStub
from stairwell.controlplane.v1.vcr_service_pb2_grpc import VcrServiceStub
from stairwell.telemetry.v1.configuration_service_pb2_grpc import ConfigurationServiceStub

Request = TypeVar("Request")
Response = TypeVar("Response")

# Tables keep their columns when piped; nobody's terminal decides then.
PIPED_COLUMNS = 160
# How long a watch outlives a control plane that went away: a restart with its recovery.
RECONNECT_SECONDS = 60.0
RECONNECT_DELAY_FIRST = 0.25
RECONNECT_DELAY_MAX = 5.0


def console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is, and keeps tables whole when not on a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPED_COLUMNS
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


class Session:
    """An open conversation with the control plane. Use as an async context manager."""

    def __init__(self, settings: Settings, tracing: Tracing) -> None:
        self.settings = settings
        self.tracing = tracing
        self.out = console()
        self.err = console(stderr=True)
        # Set by commands that send a file, so that errors can point into it.
        self.locate: Locate = nowhere
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._channel is not None:
            await self._channel.close()

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel, opened at first use: a command that refuses its input opens none."""
        if self._channel is None:
            address = self.settings.address
            tls = self.settings.credentials.peer(address)
            self._channel = open_channel(address, tracing=self.tracing, tls=tls)
        return self._channel

    @property
    def peer(self) -> str:
        """How messages name who was called."""
        return peer_name(self.settings.address)

    @property
    def instances(self) -> InstanceServiceStub:
        """Machines."""
        return InstanceServiceStub(self.channel)

    @property
    def serial_ports(self) -> SerialServiceStub:
        """Consoles of machines."""
        return SerialServiceStub(self.channel)

    @property
    def disks(self) -> DiskServiceStub:
        """Disks and their recorded construction requests."""
        return DiskServiceStub(self.channel)

    @property
    def vcrs(self) -> VcrServiceStub:
        """The judge of construction requests."""
        return VcrServiceStub(self.channel)

    @property
    def replacements(self) -> ReplacementServiceStub:
        """Replacement workflows."""
        return ReplacementServiceStub(self.channel)

    @property
    def fleet(self) -> FleetServiceStub:
        """Known downstairs."""
        return FleetServiceStub(self.channel)

    @property
    def configurations(self) -> ConfigurationServiceStub:
        """How daemons were started."""
        return ConfigurationServiceStub(self.channel)

    @property
    def is_json(self) -> bool:
        """Whether stdout belongs to a program."""
        return self.settings.output is Output.JSON

    def _said(self) -> AbstractAsyncContextManager[None]:
        """Failures as domain errors; what is wrong with certificates is found out and said."""
        settings = self.settings
        return saying_why(
            self.peer, lambda error: settings.credentials.why(settings.address, error)
        )

    async def call(
        self,
        method: Callable[..., Any],
        request: Request,
        answer: type[Response],
        *,
        seconds: float = CALL_SECONDS,
    ) -> Response:
        """One unary call; `seconds` is its deadline unless the user gave one, waits of a caller who
        calls too often included.

        Raises StairwellError as the daemon raised it.
        """
        patience = Patience(self.settings.timeout or seconds)
        while True:
            try:
                async with self._said():
                    response = await method(request, timeout=patience.left())
                break
            except CallRateError as error:
                await patience.wait(error)
        assert isinstance(response, answer)
        return response

    async def stream(
        self, method: Callable[..., Any], request: Request, answer: type[Response]
    ) -> AsyncGenerator[Response]:
        """The messages of a server stream; leaving the loop cancels the call."""
        patience = Patience(self.settings.timeout or CALL_SECONDS)
        while True:
            try:
                async with self._said():
                    call = method(request)
                    try:
                        async for response in call:
                            assert isinstance(response, answer)
                            yield response
                    finally:
                        call.cancel()
            except CallRateError as error:
                # Before its first message: a stream that was begun is not refused any more.
                await patience.wait(error)
            else:
                return

    async def watch(
        self,
        method: Callable[..., Any],
        request: Message | Callable[[], Message],
        answer: type[Response],
        *,
        until: Callable[[Response], bool],
        on_away: Callable[[UnavailableError], None],
    ) -> AsyncGenerator[Response]:
        """A stream that starts again when the control plane restarts under it; ends after `until`.

        Watches answer the present state first, so nothing is lost by starting again; one whose news
        are numbered gives a `request` that is made anew each time, and goes on where it was.
        `on_away` is told once each time the connection is lost. A control plane that was never
        reached, or that stays away for RECONNECT_SECONDS, is an UnavailableError.
        """
        loop = asyncio.get_running_loop()
        lost_at: float | None = None
        delay = RECONNECT_DELAY_FIRST
        reached = False
        while True:
            try:
                asked = request() if callable(request) else request
                async with aclosing(self.stream(method, asked, answer)) as messages:
                    async for message in messages:
                        reached, lost_at, delay = True, None, RECONNECT_DELAY_FIRST
                        yield message
                        if until(message):
                            return
            except UnavailableError as error:
                now = loop.time()
                if lost_at is None:
                    lost_at = now
                    on_away(error)
                if not reached or now - lost_at > RECONNECT_SECONDS:
                    raise
            await asyncio.sleep(delay)
            delay = min(delay * 2, RECONNECT_DELAY_MAX)

    def show(self, data: Any, human: RenderableType) -> None:
        """Prints the one result of a command: `data` as a JSON document, or `human`."""
        if self.is_json:
            self.out.file.write(dump(data) + "\n")
        else:
            self.say(human)

    def line(self, data: Any, human: RenderableType) -> None:
        """Prints one message of a watch: a JSON line, or `human`; at once, also into a pipe."""
        if self.is_json:
            self.out.file.write(dump(data, lines=True) + "\n")
        else:
            self.say(human)
        self.out.file.flush()

    def say(self, human: RenderableType) -> None:
        """Prints for people; text lines are never folded, tables fit the width."""
        self.out.print(human, soft_wrap=isinstance(human, str | Text))

    def note(self, text: str) -> None:
        """Something worth knowing that is no result: stderr, so that pipes stay clean."""
        self.err.print(text, soft_wrap=True)
