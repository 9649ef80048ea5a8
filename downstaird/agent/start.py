"""`downstaird agent`: keeps a host's regions and serves AgentService until it is told to stop."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

from downstaird.agent import servicer
from downstaird.agent.host import Host, HostOptions
from downstaird.agent.servicer import AgentServicer
from stairlib.model.call_rate import CallRate
from stairlib.model.settings import Setting
from stairlib.rpc.call_guard import CallGuard
from stairlib.rpc.server import RpcServer, Service
from stairlib.runtime import process
from stairlib.runtime.process import StopSignal
from stairlib.telemetry import logs, trace_service
from stairlib.telemetry.configuration_service import configuration_service, own_configuration
from stairlib.telemetry.trace_service import TraceServicer
from stairlib.telemetry.tracing import Tracing
from stairwell.agent.v1 import agent_service_pb2_grpc as pb_grpc
from stairwell.telemetry.v1 import trace_service_pb2_grpc as telemetry_grpc

SERVICE = "agent"
# Watches never end by themselves.
STOP_GRACE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """One agent. `stop_regions`: its regions' processes end with it. `settings` is what may be
    told of how it was started, `calls` how often each caller may call."""

    host: HostOptions
    listen: str
    stop_regions: bool
    settings: tuple[Setting, ...] = ()
    calls: CallRate | None = None


def run(options: AgentOptions, *, level: str, log_format: str) -> int:
    """Serves; the exit status."""
    json = {"json": True, "human": False}.get(log_format)
    logs.configure(SERVICE, level=level, json=json)
    return process.run(lambda stop: _serve(options, stop))


async def _serve(options: AgentOptions, stop: StopSignal) -> int:
    tls = options.host.launcher.tls
    tracing = Tracing.configure(SERVICE, options.listen)
    host = Host(options.host)
    server = RpcServer(
        options.listen,
        (
            *services(host, tracing),
            configuration_service(own_configuration(SERVICE, options.listen, options.settings)),
        ),
        tracing,
        tls=tls.server() if tls is not None else None,
        insecure=options.host.launcher.insecure,
        guard=CallGuard(options.calls, spares_daemons=True),
    )
    try:
        # The root first: whoever has it has the address too, most likely, and is named better so.
        host.start()
        try:
            await server.start()
            print(
                f"ready {server.address} root={options.host.root} "
                f"regions={len(host.intent.present())}",
                flush=True,
            )
            await stop.event.wait()
        finally:
            await server.stop(STOP_GRACE_SECONDS)
            await host.close(stop_regions=options.stop_regions and stop.event.is_set())
    finally:
        tracing.shutdown()
    return 0


def services(host: Host, tracing: Tracing) -> tuple[Service, ...]:
    """What an agent offers."""
    version = metadata.version("stairwell")
    return (
        Service(
            servicer.SERVICE_NAME,
            lambda server: pb_grpc.add_AgentServiceServicer_to_server(
                AgentServicer(host, version), server
            ),
        ),
        Service(
            trace_service.SERVICE_NAME,
            lambda server: telemetry_grpc.add_TraceServiceServicer_to_server(
                TraceServicer(tracing), server
            ),
        ),
    )
