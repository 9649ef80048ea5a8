"""The vmmd daemon: its services around the machines of this host."""

from __future__ import annotations

import asyncio

from stairlib.model.errors import InvalidRequestError
from stairlib.model.settings import Setting
from stairlib.rpc.call_guard import CallGuard
from stairlib.rpc.flags import security
from stairlib.rpc.gate import is_private, require_private
from stairlib.rpc.server import RpcServer, Security, Service
from stairlib.runtime.addresses import Address, parse_address
from stairlib.runtime.process import StopSignal
from stairlib.telemetry.configuration_service import configuration_service, own_configuration
from stairlib.telemetry.logs import get_logger
from stairlib.telemetry.metrics import Metrics
from stairlib.telemetry.trace_service import TraceServicer
from stairlib.telemetry.tracing import Tracing
from stairwell.telemetry.v1.trace_service_pb2_grpc import add_TraceServiceServicer_to_server
from stairwell.vmmd.v1.guest_service_pb2_grpc import add_GuestServiceServicer_to_server
from stairwell.vmmd.v1.machine_service_pb2_grpc import add_MachineServiceServicer_to_server
from stairwell.vmmd.v1.serial_service_pb2_grpc import add_SerialServiceServicer_to_server
from stairwell.vmmd.v1.volume_service_pb2_grpc import add_VolumeServiceServicer_to_server
from vmmd.config import Arguments, confined, file_settings, load_server_config, missing_media
from vmmd.core.server_config import ServerConfig
from vmmd.engine.core.hypervisor import Hypervisor
from vmmd.metrics import MachineMetrics
from vmmd.nbd_gateway.gateway import NbdGateway
from vmmd.supervisor.engine_choice import choose_engine
from vmmd.supervisor.machines import Machines
from vmmd.supervisor.nbd_exports import NbdExports
from vmmd.supervisor.services import (
    GatewayUri,
    GuestServicer,
    MachineServicer,
    SerialServicer,
    VolumeServicer,
)

log = get_logger(__name__)

STOP_GRACE_SECONDS = 2.0


async def serve(arguments: Arguments, stop: StopSignal) -> int:
    """Serves until told to stop; StairwellError says why it could not start."""
    secured = security(arguments.security)
    if secured.tls is None and not secured.insecure:
        require_private(arguments.address, "listening")
    if arguments.metrics and not secured.insecure:
        require_private(arguments.metrics, "serving metrics", tls=False)
    nbd_address = nbd_listener(arguments.nbd_listen, secured)
    tracing = Tracing.configure("vmmd", arguments.address)
    config, hypervisor, settings = await _host(arguments, secured)
    machines = Machines(
        config, tracing, arguments.log_level, arguments.runtime_directory, hypervisor
    )
    tls = secured.tls.server() if secured.tls is not None else None
    exports = NbdExports(machines)
    gateway = nbd_address and NbdGateway(nbd_address, exports, tls)

    def gateway_uri(machine: str, disk: str) -> str:
        if not gateway:
            return ""
        return exports.uri(gateway.address, machine, disk, tls=tls is not None)

    told = own_configuration("vmmd", arguments.address, settings)
    guard = CallGuard(secured.calls, spares_daemons=True)
    server = RpcServer(
        arguments.address,
        [*_services(machines, tracing, gateway_uri), configuration_service(told)],
        tracing,
        tls=tls,
        insecure=secured.insecure,
        guard=guard,
    )
    metrics = None
    try:
        metrics = Metrics.configure("vmmd", arguments.address, arguments.metrics)
        MachineMetrics(metrics, machines)
        guard.observe(metrics)
        if gateway:
            await gateway.start()
        await server.start()
        log.info("vmmd ready", address=server.address, engine=config.engine.value)
        await stop.event.wait()
        log.info("vmmd stopping", machines=len(machines.records()))
    finally:
        server.set_serving(False)
        if metrics is not None:
            # It may read once more, which the loop answers.
            await asyncio.to_thread(metrics.shutdown)
        if gateway:
            await gateway.stop()
        await machines.close()
        await server.stop(STOP_GRACE_SECONDS)
        tracing.shutdown()
    return 0


async def _host(
    arguments: Arguments, secured: Security
) -> tuple[ServerConfig, Hypervisor | None, list[Setting]]:
    """What this host gives to machines, with which hypervisor, and what may be told of it all."""
    given = load_server_config(arguments.config)
    config = confined(
        given,
        reachable=secured.tls is not None or not is_private(arguments.address),
        plain_text=secured.insecure,
    )
    for name, block in missing_media(config):
        log.warning(
            "no such file: machines go without this device", block_dev=name, path=block.path
        )
    config, hypervisor = await choose_engine(config)
    told = [*arguments.settings, *file_settings(arguments.config, given, config)]
    return config, hypervisor, told


def nbd_listener(given: str, secured: Security) -> Address | None:
    """Where NBD is served by TCP, if anywhere; InvalidRequestError when it must not be there."""
    if not given:
        return None
    address = parse_address(given)
    if address.is_unix:
        raise InvalidRequestError(
            "--nbd-listen takes IP:PORT: on unix sockets every disk is served anyway"
        )
    if secured.tls is None and not secured.insecure:
        require_private(given, "serving NBD")
    return address


def _services(machines: Machines, tracing: Tracing, gateway_uri: GatewayUri) -> list[Service]:
    return [
        Service(
            "stairwell.vmmd.v1.MachineService",
            lambda s: add_MachineServiceServicer_to_server(MachineServicer(machines), s),
        ),
        Service(
            "stairwell.vmmd.v1.VolumeService",
            lambda s: add_VolumeServiceServicer_to_server(VolumeServicer(machines, gateway_uri), s),
        ),
        Service(
            "stairwell.vmmd.v1.GuestService",
            lambda s: add_GuestServiceServicer_to_server(GuestServicer(machines), s),
        ),
        Service(
            "stairwell.vmmd.v1.SerialService",
            lambda s: add_SerialServiceServicer_to_server(SerialServicer(machines), s),
        ),
        Service(
            "stairwell.telemetry.v1.TraceService",
            lambda s: add_TraceServiceServicer_to_server(
                TraceServicer(tracing, machines.channels), s
            ),
        ),
    ]
