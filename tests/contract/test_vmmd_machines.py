"""vmmd over real gRPC with real machine processes: what is made, watched, and missed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc.aio
import pytest

from stairlib.model.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    NotFoundError,
    StateError,
    UnavailableError,
)
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.rpc.server import RpcServer, Service
from stairlib.telemetry.tracing import Tracing
from stairwell.vcr.v1.volume_construction_request_pb2 import VolumeConstructionRequest
from stairwell.vmmd.v1 import guest_service_pb2 as guest_pb
from stairwell.vmmd.v1 import machine_service_pb2 as pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from stairwell.vmmd.v1.guest_service_pb2_grpc import (
    GuestServiceStub,
    add_GuestServiceServicer_to_server,
)
from stairwell.vmmd.v1.machine_service_pb2_grpc import (
    MachineServiceStub,
    add_MachineServiceServicer_to_server,
)
from stairwell.vmmd.v1.volume_service_pb2_grpc import (
    VolumeServiceStub,
    add_VolumeServiceServicer_to_server,
)
from vmmd.core.server_config import ServerConfig
from vmmd.supervisor.machines import Machines
from vmmd.supervisor.services import GuestServicer, MachineServicer, VolumeServicer

pytestmark = [pytest.mark.processes, pytest.mark.timeout(90)]
SECONDS = 30.0


@dataclass
class Vmmd:
    """The daemon's services in this process; stubs to call them by."""

    machines: Any
    volumes: Any
    guests: Any
    registry: Machines


@pytest.fixture
async def vmmd() -> AsyncIterator[Vmmd]:
    tracing = Tracing("vmmd", "test")
    registry = Machines(ServerConfig(), tracing, "warning")
    server = RpcServer(
        "127.0.0.1:0",
        [
            Service(
                "stairwell.vmmd.v1.MachineService",
                lambda s: add_MachineServiceServicer_to_server(MachineServicer(registry), s),
            ),
            Service(
                "stairwell.vmmd.v1.VolumeService",
                lambda s: add_VolumeServiceServicer_to_server(VolumeServicer(registry), s),
            ),
            Service(
                "stairwell.vmmd.v1.GuestService",
                lambda s: add_GuestServiceServicer_to_server(GuestServicer(registry), s),
            ),
        ],
        tracing,
    )
    await server.start()
    channel: grpc.aio.Channel = open_channel(server.address)
    try:
        yield Vmmd(
            MachineServiceStub(channel),
            VolumeServiceStub(channel),
            GuestServiceStub(channel),
            registry,
        )
    finally:
        await channel.close()
        await registry.close()
        await server.stop(0.5)


def spec(name: str = "one", **changes: Any) -> pb.MachineSpec:
    return pb.MachineSpec(id=f"id-{name}", name=name, cpus=1, memory_mib=64, **changes)


async def ensure(vmmd: Vmmd, wanted: pb.MachineSpec) -> pb.Machine:
    with translated("vmmd"):
        request = pb.EnsureMachineRequest(spec=wanted)
        return (await vmmd.machines.EnsureMachine(request, timeout=SECONDS)).machine


async def ask(vmmd: Vmmd, machine_id: str, state: int) -> pb.Machine:
    with translated("vmmd"):
        request = pb.SetMachineStateRequest(id=machine_id, state=state)
        return (await vmmd.machines.SetMachineState(request, timeout=SECONDS)).machine


async def states(vmmd: Vmmd, machine_id: str, until: int) -> list[str]:
    seen = []
    watch = vmmd.machines.WatchMachine(pb.WatchMachineRequest(id=machine_id), timeout=SECONDS)
    async for message in watch:
        seen.append(pb.MachineState.Name(message.machine.state).removeprefix("MACHINE_STATE_"))
        if message.machine.state == until:
            break
    watch.cancel()
    return seen


async def test_a_machine_lives_in_a_process_of_its_own_from_creation_to_the_end(vmmd: Vmmd) -> None:
    machine = await ensure(vmmd, spec())
    assert machine.state == pb.MACHINE_STATE_CREATING
    assert machine.process_id not in (0, os.getpid())
    assert (await ensure(vmmd, spec())).process_id == machine.process_id
    await ask(vmmd, machine.id, pb.MACHINE_REQUESTED_STATE_RUN)
    assert "RUNNING" in await states(vmmd, machine.id, pb.MACHINE_STATE_RUNNING)
    await ask(vmmd, machine.id, pb.MACHINE_REQUESTED_STATE_STOP)
    seen = await states(vmmd, machine.id, pb.MACHINE_STATE_DESTROYED)
    assert seen == ["CREATING", "STARTING", "RUNNING", "STOPPING", "STOPPED", "DESTROYED"]
    with pytest.raises(StateError, match="create it again"):
        await ask(vmmd, machine.id, pb.MACHINE_REQUESTED_STATE_RUN)
    await ask(vmmd, machine.id, pb.MACHINE_REQUESTED_STATE_STOP)
    again = await ensure(vmmd, spec())
    assert again.state == pb.MACHINE_STATE_CREATING


async def test_who_waits_for_a_state_that_cannot_come_any_more_is_not_kept(vmmd: Vmmd) -> None:
    machine = await ensure(vmmd, spec())
    request = pb.WatchMachineRequest(id=machine.id, after_generation=1000)
    watch = vmmd.machines.WatchMachine(request, timeout=SECONDS)
    waiting = asyncio.create_task(anext(aiter(watch), None))
    # A call that is answered after it: the watch is in its place by then.
    await ask(vmmd, machine.id, pb.MACHINE_REQUESTED_STATE_RUN)
    await states(vmmd, machine.id, pb.MACHINE_STATE_RUNNING)
    assert not waiting.done()
    await ask(vmmd, machine.id, pb.MACHINE_REQUESTED_STATE_STOP)
    assert await waiting is None


async def test_another_specification_under_the_same_id_is_refused(vmmd: Vmmd) -> None:
    await ensure(vmmd, spec())
    other = spec()
    other.memory_mib = 128
    with pytest.raises(AlreadyExistsError, match="another specification"):
        await ensure(vmmd, other)


async def test_a_process_that_dies_is_a_failed_machine_and_harms_no_other(vmmd: Vmmd) -> None:
    victim = await ensure(vmmd, spec("victim"))
    other = await ensure(vmmd, spec("other"))
    os.kill(victim.process_id, signal.SIGKILL)
    assert "FAILED" in await states(vmmd, victim.id, pb.MACHINE_STATE_FAILED)
    found = await vmmd.machines.GetMachine(pb.GetMachineRequest(id=victim.id), timeout=SECONDS)
    assert "signal 9" in found.machine.reason
    with pytest.raises(StateError, match="has ended"), translated("vmmd"):
        await vmmd.volumes.GetVolumeInfo(
            volume_pb.GetVolumeInfoRequest(machine_id=victim.id, disk="x"), timeout=SECONDS
        )
    await ask(vmmd, other.id, pb.MACHINE_REQUESTED_STATE_RUN)
    assert "RUNNING" in await states(vmmd, other.id, pb.MACHINE_STATE_RUNNING)


async def test_a_machine_stops_in_order_when_its_daemon_goes(vmmd: Vmmd) -> None:
    machine = await ensure(vmmd, spec())
    await ask(vmmd, machine.id, pb.MACHINE_REQUESTED_STATE_RUN)
    await states(vmmd, machine.id, pb.MACHINE_STATE_RUNNING)
    process = vmmd.registry.find(machine.id)
    await asyncio.wait_for(vmmd.registry.close(), SECONDS)
    assert [p.state.name for p in process.history][-3:] == ["STOPPING", "STOPPED", "DESTROYED"]
    with pytest.raises(ProcessLookupError):
        os.kill(machine.process_id, 0)


async def test_states_a_machine_cannot_take_are_refused_with_the_reason(vmmd: Vmmd) -> None:
    machine = await ensure(vmmd, spec())
    with pytest.raises(StateError, match="reboot needs a running machine"):
        await ask(vmmd, machine.id, pb.MACHINE_REQUESTED_STATE_REBOOT)
    with pytest.raises(InvalidRequestError) as caught:
        await ask(vmmd, machine.id, pb.MACHINE_REQUESTED_STATE_UNSPECIFIED)
    assert [v.field for v in caught.value.violations] == ["state"]


async def test_the_end_of_the_daemon_is_told_to_watchers_as_its_own(vmmd: Vmmd) -> None:
    """The machines end with it, but nobody is told that they have: they may be made again."""
    machine = await ensure(vmmd, spec())
    watch = vmmd.machines.WatchMachine(pb.WatchMachineRequest(id=machine.id), timeout=SECONDS)
    assert (await watch.read()).machine.state == pb.MACHINE_STATE_CREATING
    closing = asyncio.create_task(vmmd.registry.close())
    with pytest.raises(UnavailableError, match="vmmd is stopping"), translated("vmmd"):
        await watch.read()
    with pytest.raises(UnavailableError, match="vmmd is stopping"):
        await ensure(vmmd, spec("two"))
    with pytest.raises(UnavailableError, match="vmmd is stopping"):
        await ask(vmmd, machine.id, pb.MACHINE_REQUESTED_STATE_RUN)
    await closing
    with pytest.raises(ProcessLookupError):
        os.kill(machine.process_id, 0)


async def test_unknown_machines_and_disks_are_named(vmmd: Vmmd) -> None:
    with pytest.raises(NotFoundError, match="nobody"):
        await ask(vmmd, "nobody", pb.MACHINE_REQUESTED_STATE_RUN)
    machine = await ensure(vmmd, spec())
    with pytest.raises(NotFoundError, match="nodisk"), translated("vmmd"):
        await vmmd.volumes.GetVolumeInfo(
            volume_pb.GetVolumeInfoRequest(machine_id=machine.id, disk="nodisk"),
            timeout=SECONDS,
        )


async def test_a_workload_needs_a_running_machine(vmmd: Vmmd) -> None:
    machine = await ensure(vmmd, spec())
    request = guest_pb.RunWorkloadRequest(
        machine_id=machine.id, workload=guest_pb.Workload(kind=guest_pb.WORKLOAD_KIND_FILL)
    )
    with pytest.raises(StateError, match="not running"), translated("vmmd"):
        async for _report in vmmd.guests.RunWorkload(request, timeout=SECONDS):
            pass


@pytest.mark.parametrize(
    ("disk", "field"),
    [
        (pb.MachineDisk(device="nvme", name="d", pci_path="0.99.0"), "spec.disks[0].pci_path"),
        (
            pb.MachineDisk(device="nvme", name="d", pci_path="0.16.0"),
            "spec.disks[0].volume_construction_request.type",
        ),
        (
            pb.MachineDisk(
                device="nvme",
                name="d",
                pci_path="0.16.0",
                volume_construction_request=VolumeConstructionRequest(
                    type="volume",
                    id="0cedae45-3d6e-4d90-b2cb-56f1a1a42a89",
                    block_size=4096,
                ),
            ),
            "spec.disks[0].volume_construction_request.sub_volumes",
        ),
    ],
)
async def test_a_disk_that_cannot_be_is_named_and_leaves_nothing(
    vmmd: Vmmd, disk: pb.MachineDisk, field: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await ensure(vmmd, spec(disks=[disk]))
    assert field in [v.field for v in caught.value.violations]
    listed = await vmmd.machines.ListMachines(pb.ListMachinesRequest(), timeout=SECONDS)
    assert list(listed.machines) == []


async def test_a_file_that_is_not_there_is_named_and_leaves_nothing(vmmd: Vmmd) -> None:
    file = VolumeConstructionRequest(
        type="file", id="0cedae45-3d6e-4d90-b2cb-56f1a1a42a89", block_size=4096, path="/x"
    )
    disk = pb.MachineDisk(
        device="nvme", name="d", pci_path="0.16.0", volume_construction_request=file
    )
    with pytest.raises(NotFoundError, match="disk 'd': there is no file '/x'"):
        await ensure(vmmd, spec(disks=[disk]))
    listed = await vmmd.machines.ListMachines(pb.ListMachinesRequest(), timeout=SECONDS)
    assert list(listed.machines) == []
