"""`dsc create` and `dsc start`: make the regions, run the members, serve DscService until the end.

What is printed to stdout is for people who watch; scripts wait for the health service on the
control address, which says SERVING once every member runs.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGHUP
from typing import Any

from downstaird.dsc import servicer
from downstaird.dsc.core.layout import MemberPlan
from downstaird.dsc.fleet import Fleet, differing
from downstaird.dsc.launcher import clear_place, require_region
from downstaird.dsc.monitor import Monitor
from downstaird.dsc.servicer import DscServicer
from downstaird.launching import CREATIONS_AT_ONCE, Launcher
from stairlib.model.errors import StairwellError, UnavailableError
from stairlib.model.geometry import Geometry
from stairlib.rpc.server import RpcServer, Service
from stairlib.runtime.limits import STOP_GRACE_SECONDS
from stairlib.runtime.process import StopSignal
from stairlib.telemetry.tracing import Tracing
from stairwell.dsc.v1 import dsc_service_pb2_grpc as pb_grpc


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """Regions to be made. `cipher` empty: not encrypted. `cleanup`: what is in the way is deleted
    instead of refused."""

    geometry: Geometry
    cipher: str
    cleanup: bool


@dataclass(frozen=True, slots=True)
class DscOptions:
    """What one call of `dsc create` or `dsc start` is for. `create` None: the regions exist."""

    plans: tuple[MemberPlan, ...]
    launcher: Launcher
    create: CreateOptions | None
    control: str


async def create(options: DscOptions, stop: StopSignal) -> int:
    """Make the regions and end; the exit status."""
    assert options.create is not None
    _prepare_outputs(options.plans)
    return 0 if await _unless_stopped(_create_regions(options, options.create), stop) else 1


async def start(options: DscOptions, stop: StopSignal) -> int:
    """Run the members until a signal or Shutdown comes; the exit status."""
    asyncio.get_running_loop().add_signal_handler(SIGHUP, stop.request, SIGHUP)
    tracing = Tracing.configure("dsc", options.control)
    fleet = Fleet(options.plans, options.launcher, _report)
    server = RpcServer(
        options.control, [_service(fleet, stop)], tracing, insecure=options.launcher.insecure
    )
    server.set_serving(False)
    try:
        await server.start()
        if await _unless_stopped(_bring_up(options, fleet), stop):
            server.set_serving(True)
            _greet(options, server.address)
            await stop.event.wait()
        print("stopping", flush=True)
    finally:
        server.set_serving(False)
        await fleet.close()
        await server.stop(STOP_GRACE_SECONDS)
        tracing.shutdown()
    return 0


def _service(fleet: Fleet, stop: StopSignal) -> Service:
    offered = DscServicer(fleet, stop.request)
    return Service(
        servicer.SERVICE_NAME,
        lambda server: pb_grpc.add_DscServiceServicer_to_server(offered, server),
    )


async def _bring_up(options: DscOptions, fleet: Fleet) -> None:
    _require_free_ports(options)
    _prepare_outputs(options.plans)
    if options.create is not None:
        await _create_regions(options, options.create)
    else:
        for plan in options.plans:
            require_region(plan)
    await fleet.start()
    for cid in differing(fleet.facts):
        print(
            f"WARNING: region {cid} has {fleet.facts[cid].geometry.describe()}, "
            f"region 0 has {fleet.facts[0].geometry.describe()}",
            flush=True,
        )


async def _unless_stopped(work: Coroutine[Any, Any, None], stop: StopSignal) -> bool:
    """Do `work`; False when the stop came first, which ends it. Errors of the work are raised."""
    task = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(stop.event.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if stop.event.is_set():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return False
    await task
    return True


async def _create_regions(options: DscOptions, wanted: CreateOptions) -> None:
    for plan in options.plans:
        clear_place(plan, cleanup=wanted.cleanup)
    turns = asyncio.Semaphore(CREATIONS_AT_ONCE)

    async def one(plan: MemberPlan) -> None:
        async with turns:
            begun = time.monotonic()
            await options.launcher.create(plan, wanted.geometry, cipher=wanted.cipher)
            seconds = time.monotonic() - begun
            print(f"created region {plan.directory} in {seconds:.2f} s", flush=True)

    try:
        async with asyncio.TaskGroup() as group:
            for plan in options.plans:
                group.create_task(one(plan))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


def _prepare_outputs(plans: Sequence[MemberPlan]) -> None:
    for plan in plans:
        folder = Path(plan.output).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StairwellError(
                f"cannot make the output directory {folder}: {error.strerror}; choose another "
                "with --output-dir",
                reason="CANNOT_WRITE",
            ) from error


def _require_free_ports(options: DscOptions) -> None:
    """Find ports that are taken before a region is touched, not from the end of an output file."""
    taken = []
    for plan in options.plans:
        family = socket.AF_INET6 if ":" in options.launcher.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((options.launcher.host, plan.port))
                probe.listen(1)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    text = f"cannot listen on {options.launcher.host}:{plan.port}: {error.strerror}"
                    raise UnavailableError(text, reason="CANNOT_LISTEN") from error
                taken.append(str(plan.port))
    if taken:
        raise UnavailableError(
            f"port {', '.join(taken)} in use on {options.launcher.host}; a downstairs of an "
            "earlier dsc may still run there: end it (`dsc cmd shutdown`), or choose other ports "
            "with --port-base",
            reason="PORT_IN_USE",
        )


def _report(monitor: Monitor) -> None:
    plan = monitor.plan
    pid = f" pid {monitor.pid}" if monitor.pid is not None else ""
    print(f"[{plan.port}][{plan.cid}] {monitor.state.value}{pid}", flush=True)


def _greet(options: DscOptions, control: str) -> None:
    for plan in options.plans:
        address = options.launcher.address(plan)
        print(f"downstairs {plan.cid} at {address}: {plan.directory}, output {plan.output}")
    print(
        f"{len(options.plans)} downstairs running; control at {control}; "
        "Ctrl-C or `dsc cmd shutdown` ends them",
        flush=True,
    )
