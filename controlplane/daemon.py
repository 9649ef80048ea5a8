"""The control plane put together: store, peers, operations, services, and their order at the ends.

Start: the store is open and the replacements are taken up before the first call is served. Stop:
no new calls, then the drivers and followers, then the peers, then the store; nothing that runs
outlives what it uses.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID

from controlplane import breakpoints
from controlplane.answers import AnswerBook
from controlplane.chronicle import Chronicle
from controlplane.claims import Claims
from controlplane.core.records import InstanceRecord
from controlplane.core.replacement import Replacement
from controlplane.core.replacement_log import renews
from controlplane.detached import Detached
from controlplane.driver import ReplacementDriver
from controlplane.feed import Feed
from controlplane.fleet_care import FleetCare
from controlplane.machines import MachineFollower
from controlplane.metrics import WorkflowMetrics
from controlplane.operations.configurations import Configurations
from controlplane.operations.disks import Disks
from controlplane.operations.instances import Instances
from controlplane.operations.plugging import Plugging
from controlplane.operations.replacements import Replacements
from controlplane.operations.replacing import Replacing
from controlplane.operations.scrubs import Scrubs
from controlplane.peers.agent import Agents
from controlplane.peers.downstairs import Fleet
from controlplane.peers.vmmd import Vmmd
from controlplane.relay import Relay
from controlplane.repair_limiter import RepairLimiter
from controlplane.scrub_driver import ScrubDriver
from controlplane.services.disks import DiskServicer
from controlplane.services.fleet import FleetServicer
from controlplane.services.instances import InstanceServicer
from controlplane.services.replacements import ReplacementServicer
from controlplane.services.serial import SerialServicer
from controlplane.services.vcr import VcrServicer
from controlplane.store.base import Store
from controlplane.store.place import Place
from controlplane.store.sql_store import SqlStore
from controlplane.traces import TraceKeeper
from controlplane.words import Words
from stairlib.model.errors import UnsupportedError
from stairlib.model.settings import Setting
from stairlib.rpc.call_guard import CallGuard
from stairlib.rpc.server import RpcServer, Security, Service
from stairlib.rpc.tls import TlsFiles
from stairlib.runtime.addresses import parse_address
from stairlib.runtime.limits import STOP_GRACE_SECONDS
from stairlib.telemetry.configuration_service import configuration_service, own_configuration
from stairlib.telemetry.metrics import Metrics
from stairlib.telemetry.process_metrics import observe_process
from stairlib.telemetry.trace_service import SERVICE_NAME, TraceServicer
from stairlib.telemetry.tracing import Tracing
from stairwell.controlplane.v1 import disk_service_pb2_grpc as disk_grpc
from stairwell.controlplane.v1 import fleet_service_pb2_grpc as fleet_grpc
from stairwell.controlplane.v1 import instance_service_pb2_grpc as instance_grpc
from stairwell.controlplane.v1 import replacement_service_pb2_grpc as replacement_grpc
from stairwell.controlplane.v1 import serial_service_pb2_grpc as serial_grpc
from stairwell.controlplane.v1 import vcr_service_pb2_grpc as vcr_grpc
from stairwell.telemetry.v1 import trace_service_pb2_grpc as trace_grpc

_PACKAGE = "stairwell.controlplane.v1"


@dataclass(slots=True)
class _News:
    """The feeds of one control plane."""

    instances: Feed[InstanceRecord] = field(default_factory=Feed)
    replacements: Feed[Replacement] = field(default_factory=lambda: Feed(renews))
    disks: Feed[None] = field(default_factory=Feed)

    def disk_changed(self, key: UUID) -> None:
        """Says so to who watches the disk."""
        self.disks.publish(key, None)

    def watchers(self) -> dict[str, int]:
        """How many there are, by what they watch."""
        return {
            "instance": self.instances.subscribers,
            "replacement": self.replacements.subscribers,
            "disk": self.disks.subscribers,
        }

    def close(self) -> None:
        """Ends every watch."""
        for feed in (self.instances, self.replacements, self.disks):
            feed.close()


class ControlPlane:
    """One control plane: `async with` serves for as long as the block lasts.

    `store`, the drivers and `address` may be read inside the block.
    """

    store: Store
    driver: ReplacementDriver
    scrub_driver: ScrubDriver

    def __init__(
        self,
        address: str,
        vmmd: str,
        place: Place | Path,
        *,
        downstairs_tls: TlsFiles | None = None,
        security: Security | None = None,
        metrics: str = "",
        console: str = "",
        settings: Iterable[Setting] = (),
        grace_seconds: float = STOP_GRACE_SECONDS,
        pace: float = 1.0,
    ) -> None:
        """`place` is where its state is, or the directory of it; `downstairs_tls` is what it shows
        the downstairs it asks, by default the files of `security`, which says how it is spoken to,
        and speaks to vmmd; `metrics` is the address they are read from, if any, and
        `console` that of the web console; `settings` is what may be told of all that; `pace` scales
        the waits between a replacement's attempts; tests make it small."""
        self._wanted = address
        self._vmmd_address = str(parse_address(vmmd))
        self._place = place if isinstance(place, Place) else Place(place)
        self._security = security or Security()
        # Nothing calls upwards: whoever does has no business of a daemon here.
        self._guard = CallGuard(self._security.calls, spares_daemons=False)
        self._downstairs_tls = downstairs_tls or self._security.tls
        self._metrics_wanted = metrics
        self.metrics_address = ""
        self._console_wanted = console
        self.console_url = ""
        self._settings = tuple(settings)
        self._grace_seconds = grace_seconds
        self._pace = pace
        self._stack = AsyncExitStack()
        self._server: RpcServer | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        assert self._server is not None, "not started"
        return self._server.address

    @property
    def tokens_address(self) -> str:
        """Where people with tokens are served; empty when nowhere."""
        assert self._server is not None, "not started"
        return self._server.tokens_address

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)

    async def _start(self, stack: AsyncExitStack) -> None:
        """Starts everything; what was started is on the stack, in the order to end it."""
        store = await SqlStore.open(self._place)
        stack.push_async_callback(store.close)
        tracing = Tracing.configure("controlplane", self._wanted)
        stack.callback(tracing.shutdown)
        vmmd = Vmmd(self._vmmd_address, tracing, self._security.tls)
        stack.push_async_callback(vmmd.close)
        news, detached = _News(), Detached()
        claims = Claims(store)
        words = Words(store, claims)
        traces = TraceKeeper(store, vmmd, tracing, shared=store.lease_seconds is not None)
        limiter = await stack.enter_async_context(RepairLimiter(store, vmmd, pace=self._pace))
        # Last, once nothing drives any more: others take over at once.
        stack.push_async_callback(claims.stop)
        stack.push_async_callback(traces.close)
        driver, scrub_driver = self._workflows(
            stack, store, claims, vmmd, detached, traces, tracing, limiter, news
        )
        for end in (detached.drain, scrub_driver.stop, driver.stop):
            stack.push_async_callback(end)
        follower = MachineFollower(store, claims, vmmd, news.instances, limiter)
        fleet = Fleet(tracing, self._downstairs_tls)
        answers = AnswerBook(store)
        replacements = Replacements(store, driver, words, traces, news.replacements, limiter)
        replacing = Replacing(
            store, fleet, driver, replacements, detached, tracing, disk_changed=news.disk_changed
        )
        instances = Instances(
            store, vmmd, follower, driver, scrub_driver, words, detached, news.instances,
            reached=breakpoints.from_environment(),
        )  # fmt: skip
        plugging = Plugging(store, vmmd, instances, follower, driver, scrub_driver, words, detached)
        disks = Disks(store, vmmd, scrub_driver, news.disks)
        care = FleetCare(
            store, claims, vmmd, fleet, driver, replacing, detached, tracing,
            tls=self._downstairs_tls, pace=self._pace,
        )  # fmt: skip
        relay = Relay(
            store, claims, words, news.instances, news.replacements, news.disks, care.poke
        )
        for end in (follower.stop, relay.stop, words.stop, claims.halt, care.stop):
            stack.push_async_callback(end)
        await _begin(claims, words, relay, care)
        shown = (
            DiskServicer(disks, replacing, Scrubs(store, scrub_driver, words, detached), answers),
            ReplacementServicer(replacements, care.starting, answers),
            FleetServicer(care.book, care.drains, answers),
        )
        services = _services(
            InstanceServicer(instances, plugging, answers, self._vmmd_address),
            SerialServicer(instances), *shown, TraceServicer(tracing, vmmd.channels),
        )  # fmt: skip
        services.append(self._configurations(store, vmmd, fleet, tracing))
        stack.push_async_callback(detached.drain)
        self._server = await self._served(stack, services, tracing)
        stack.callback(news.close)
        stack.callback(care.news.close)
        await self._show(stack, *shown)
        self.store, self.driver, self.scrub_driver = store, driver, scrub_driver

    def _configurations(self, store: Store, vmmd: Vmmd, fleet: Fleet, tracing: Tracing) -> Service:
        """What tells how this daemon and those below were started."""
        below = Configurations(store, vmmd, fleet, Agents(tracing, self._downstairs_tls))
        own = own_configuration("controlplane", self._wanted, self._settings)
        return configuration_service(own, below.behind)

    async def _served(
        self, stack: AsyncExitStack, services: list[Service], tracing: Tracing
    ) -> RpcServer:
        """The server, which takes calls."""
        security = self._security
        server = RpcServer(
            self._wanted, services, tracing,
            tls=security.tls.server() if security.tls is not None else None,
            insecure=security.insecure, tokens=security.tokens, guard=self._guard,
        )  # fmt: skip
        await server.start()
        stack.push_async_callback(server.stop, self._grace_seconds)
        return server

    async def _show(
        self,
        stack: AsyncExitStack,
        disks: DiskServicer,
        replacements: ReplacementServicer,
        fleet: FleetServicer,
    ) -> None:
        """The web console, where it is wanted."""
        if not self._console_wanted:
            return
        try:
            from controlplane.console.calls import Calls
            from controlplane.console.server import ConsoleServer
        except ModuleNotFoundError as error:
            if error.name not in ("starlette", "uvicorn"):
                raise
            raise UnsupportedError(
                "--console needs the extra `console`: pip install 'stairwell[console]'"
            ) from None
        calls = Calls(
            {"DiskService": disks, "ReplacementService": replacements, "FleetService": fleet,
             "VcrService": VcrServicer()}
        )  # fmt: skip
        server = ConsoleServer(self._console_wanted, calls, self._security)
        await server.start()
        stack.push_async_callback(server.stop)
        self.console_url = server.url

    def _workflows(
        self,
        stack: AsyncExitStack,
        store: Store,
        claims: Claims,
        vmmd: Vmmd,
        detached: Detached,
        traces: TraceKeeper,
        tracing: Tracing,
        limiter: RepairLimiter,
        news: _News,
    ) -> tuple[ReplacementDriver, ScrubDriver]:
        """The drivers, not started, and the metrics that read from them."""
        metrics = Metrics.configure("controlplane", self._wanted, self._metrics_wanted)
        stack.callback(metrics.shutdown)
        self.metrics_address = metrics.address
        counted = WorkflowMetrics(metrics)
        observe_process(metrics)
        self._guard.observe(metrics)
        driver = ReplacementDriver(
            store, claims, vmmd, traces, news.replacements, detached, Chronicle(tracing), limiter,
            metrics=counted, disk_changed=news.disk_changed, pace=self._pace,
            reached=breakpoints.from_environment(),
        )  # fmt: skip
        scrub_driver = ScrubDriver(
            store, claims, vmmd, detached, traces, Chronicle(tracing),
            disk_changed=news.disk_changed, pace=self._pace,
        )  # fmt: skip
        counted.reads(
            replacements=driver.records, scrubs=scrub_driver.records, watchers=news.watchers
        )
        return driver, scrub_driver


async def _begin(claims: Claims, words: Words, relay: Relay, care: FleetCare) -> None:
    """Takes up what was left, then hears of others, and only then begins anything unasked."""
    await claims.start()
    words.start()
    relay.start()
    care.start()


def _services(
    instances: InstanceServicer,
    serial: SerialServicer,
    disks: DiskServicer,
    replacements: ReplacementServicer,
    fleet: FleetServicer,
    traces: TraceServicer,
) -> list[Service]:
    """Everything that is served, by its full name."""
    return [
        Service(
            f"{_PACKAGE}.InstanceService",
            lambda server: instance_grpc.add_InstanceServiceServicer_to_server(instances, server),
        ),
        Service(
            f"{_PACKAGE}.SerialService",
            lambda server: serial_grpc.add_SerialServiceServicer_to_server(serial, server),
        ),
        Service(
            f"{_PACKAGE}.DiskService",
            lambda server: disk_grpc.add_DiskServiceServicer_to_server(disks, server),
        ),
        Service(
            f"{_PACKAGE}.VcrService",
            lambda server: vcr_grpc.add_VcrServiceServicer_to_server(VcrServicer(), server),
        ),
        Service(
            f"{_PACKAGE}.ReplacementService",
            lambda server: replacement_grpc.add_ReplacementServiceServicer_to_server(
                replacements, server
            ),
        ),
        Service(
            f"{_PACKAGE}.FleetService",
            lambda server: fleet_grpc.add_FleetServiceServicer_to_server(fleet, server),
        ),
        Service(
            SERVICE_NAME,
            lambda server: trace_grpc.add_TraceServiceServicer_to_server(traces, server),
        ),
    ]
