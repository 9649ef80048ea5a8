"""The running daemon: one region served over gRPC and its data connection, until it is told to
stop."""

from __future__ import annotations

import random
from importlib import metadata

import numpy as np

from downstaird.config import RunOptions
from downstaird.core.engine import Engine
from downstaird.data_server import DataServer, socket_path
from downstaird.faults import Delays, with_faults
from downstaird.region_host import RegionHost
from downstaird.services import block_service, region_service, repair_service
from downstaird.services.block_service import BlockServicer, DataPlace
from downstaird.services.region_service import RegionServicer
from stairlib import native
from stairlib.model.errors import DataError, UnavailableError
from stairlib.rpc.call_guard import CallGuard
from stairlib.rpc.server import RpcServer, Service
from stairlib.runtime.addresses import MAX_PORT
from stairlib.telemetry import trace_service
from stairlib.telemetry.configuration_service import configuration_service, own_configuration
from stairlib.telemetry.logs import get_logger
from stairlib.telemetry.trace_service import TraceServicer
from stairlib.telemetry.tracing import Tracing
from stairlib.wire.frame import FLAG_FAULTED
from stairwell.downstairs.v1 import block_service_pb2_grpc as block_grpc
from stairwell.downstairs.v1 import region_service_pb2_grpc as region_grpc
from stairwell.telemetry.v1 import trace_service_pb2_grpc as telemetry_grpc

_log = get_logger(__name__)

# Calls are short; a verification or a copy that still runs then is given up.
STOP_GRACE_SECONDS = 1.0
# What is flushed goes home before a stop, so that the next start has no log to read: a full log of
# scattered blocks takes about a second. Supervisors wait longer than this before they kill.
STOP_SETTLE_SECONDS = 3.0
_WILDCARDS = frozenset({"0.0.0.0", "::"})


class Daemon:
    """One engine in service. Owns the engine from `start` on. StateError TLS_FILE at construction
    when it cannot speak TLS as it should."""

    def __init__(self, engine: Engine, options: RunOptions, tracing: Tracing) -> None:
        version = metadata.version("stairwell")
        chance = random.Random()
        self._options = options
        tls = options.tls.server() if options.tls is not None else None
        self.host = RegionHost(
            with_faults(engine, options.faults, chance),
            read_only=options.read_only,
            tracing=tracing,
            delays=Delays(options.faults, chance),
            tls=options.tls,
        )
        self.data = DataServer(self.host, tls.context if tls is not None else None)
        self.guard = CallGuard(options.calls, spares_daemons=True)
        self.rpc = RpcServer(
            str(options.address),
            (
                Service(
                    region_service.SERVICE_NAME,
                    lambda server: region_grpc.add_RegionServiceServicer_to_server(
                        RegionServicer(self.host, version, options.directory), server
                    ),
                ),
                Service(
                    block_service.SERVICE_NAME,
                    lambda server: block_grpc.add_BlockServiceServicer_to_server(
                        BlockServicer(self.host, version, self.place), server
                    ),
                ),
                Service(
                    repair_service.SERVICE_NAME,
                    lambda server: repair_service.register(server, self.host, self.place),
                ),
                Service(
                    trace_service.SERVICE_NAME,
                    lambda server: telemetry_grpc.add_TraceServiceServicer_to_server(
                        TraceServicer(tracing), server
                    ),
                ),
                configuration_service(
                    own_configuration("downstairs", str(options.address), options.settings)
                ),
            ),
            tracing,
            tls=tls,
            insecure=options.insecure,
            guard=self.guard,
        )

    def place(self) -> DataPlace:
        """Where data connections go. UnavailableError while it is not known yet."""
        if not self.data.port:
            raise UnavailableError("the daemon is starting: ask again", reason="STARTING")
        address = self._options.address.host
        host = self._options.advertise or ("" if address in _WILDCARDS else address)
        return DataPlace(host, self.data.port, self.data.unix_path)

    async def start(self) -> None:
        """Serves. UnavailableError when a port is taken."""
        options, definition = self._options, self.host.engine.definition
        host = options.address.host
        self.rpc.set_serving(False)
        await self.rpc.start()
        wanted = options.data_port
        if wanted is None:
            following = self.rpc.port + 1
            await self.data.listen(host, following if following <= MAX_PORT else 0, or_any=True)
        else:
            await self.data.listen(host, wanted, or_any=False)
        await self.data.listen_unix(socket_path(options.directory, definition.id))
        self.rpc.set_serving(True)
        self._tell_damage()
        _log.info(
            "ready",
            region=str(definition.id),
            address=self.rpc.address,
            data_port=self.data.port,
            data_unix_path=str(self.data.unix_path or ""),
            read_only=options.read_only,
            tls=options.tls is not None,
            frame_loop=native.describe(),
        )

    def _tell_damage(self) -> None:
        """Says how much of the region waits for repair, and of the first what was found."""
        engine = self.host.engine
        faulted = np.flatnonzero(engine.extent_states().flags & FLAG_FAULTED)
        if not len(faulted):
            return
        first = int(faulted[0])
        try:
            engine.contexts(first * engine.definition.geometry.blocks_per_extent, 1)
        except DataError as error:
            _log.error("extents are damaged", extents=len(faulted), first=error.message)

    async def stop(self) -> None:
        """Health off, sessions told, then everything closed. Nothing is flushed; what was goes
        home, as far as there is time."""
        self.rpc.set_serving(False)
        self.host.end_sessions("SHUTTING_DOWN the daemon is being stopped")
        await self.rpc.stop(STOP_GRACE_SECONDS)
        await self.data.close()
        await self.host.lane.settle(STOP_SETTLE_SECONDS)
        await self.host.close()
