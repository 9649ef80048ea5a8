"""The machine process: started by vmmd, one per machine, never by hand.

It serves vmmd on a unix socket and lives until the machine has ended or its standard input closes,
which is how it learns that vmmd is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path

from stairlib import native
from stairlib.rpc.server import RpcServer, Service
from stairlib.runtime.process import StopSignal, run
from stairlib.telemetry import logs
from stairlib.telemetry.trace_service import TraceServicer
from stairlib.telemetry.tracing import Tracing
from stairwell.telemetry.v1.trace_service_pb2_grpc import add_TraceServiceServicer_to_server
from stairwell.vmmd.v1.guest_service_pb2_grpc import add_GuestServiceServicer_to_server
from stairwell.vmmd.v1.machine_process_service_pb2_grpc import (
    add_MachineProcessServiceServicer_to_server,
)
from stairwell.vmmd.v1.serial_service_pb2_grpc import add_SerialServiceServicer_to_server
from stairwell.vmmd.v1.volume_service_pb2_grpc import add_VolumeServiceServicer_to_server
from vmmd.core.request_queue import RequestKind
from vmmd.machine.process import MachineHost
from vmmd.machine.services import (
    GuestServicer,
    MachineProcessServicer,
    SerialServicer,
    VolumeServicer,
)

log = logs.get_logger(__name__)

# What watchers of the last state need to receive it.
STOP_GRACE_SECONDS = 2.0
# After a signal, for vmmd to close the pipe if it was signalled too.
PARENT_SECONDS = 1.0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """vmmd writes this command line."""
    parser = argparse.ArgumentParser(prog="vmmd.machine", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--log-level", default="info")
    return parser.parse_args(argv)


async def serve(arguments: argparse.Namespace, stop: StopSignal) -> int:
    """Serves until the machine has ended."""
    tracing = Tracing.configure("machine", arguments.name)
    host = MachineHost(tracing)
    server = RpcServer(
        f"unix:{arguments.socket}",
        [
            Service(
                "stairwell.vmmd.v1.MachineProcessService",
                lambda s: add_MachineProcessServiceServicer_to_server(
                    MachineProcessServicer(host), s
                ),
            ),
            Service(
                "stairwell.vmmd.v1.VolumeService",
                lambda s: add_VolumeServiceServicer_to_server(VolumeServicer(host), s),
            ),
            Service(
                "stairwell.vmmd.v1.GuestService",
                lambda s: add_GuestServiceServicer_to_server(GuestServicer(host), s),
            ),
            Service(
                "stairwell.vmmd.v1.SerialService",
                lambda s: add_SerialServiceServicer_to_server(SerialServicer(host), s),
            ),
            Service(
                "stairwell.telemetry.v1.TraceService",
                lambda s: add_TraceServiceServicer_to_server(
                    TraceServicer(tracing, host.downstairs), s
                ),
            ),
        ],
        tracing,
    )
    await server.start()
    log.info("serving", frame_loop=native.describe())
    parent = asyncio.create_task(_until_parent_is_gone())
    signalled = asyncio.create_task(stop.event.wait())
    ended = asyncio.create_task(host.ended())
    try:
        await asyncio.wait({parent, signalled, ended}, return_when=asyncio.FIRST_COMPLETED)
        if signalled.done():
            # A terminal or a supervisor signals vmmd as well, which first sends its watchers away:
            # to them its end is no end of the machine.
            await asyncio.wait(
                {parent, ended}, timeout=PARENT_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
        if not ended.done():
            host.request(RequestKind.STOP)
            await ended
    finally:
        for task in (parent, signalled, ended):
            task.cancel()
        await server.stop(STOP_GRACE_SECONDS)
        await host.close()
        tracing.shutdown()
    return 0


async def _until_parent_is_gone() -> None:
    """Returns when standard input closes."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _protocol = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    with contextlib.closing(transport):
        while await reader.read(4096):
            pass
    log.info("vmmd is gone: stopping the machine")


def main(argv: list[str] | None = None) -> int:
    """Runs the process; returns the exit status."""
    arguments = parse_arguments(argv)
    logs.configure("machine", level=arguments.log_level)
    return run(lambda stop: serve(arguments, stop))


if __name__ == "__main__":
    sys.exit(main())
