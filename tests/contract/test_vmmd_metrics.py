"""The metrics of vmmd, of a real machine's process with a real volume, as Prometheus reads them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stairlib.model.construction import VolumeSpec
from stairlib.model.errors import InvalidRequestError
from stairlib.model.geometry import Geometry
from stairlib.runtime.process import StopSignal
from stairlib.telemetry.metrics import Metrics
from stairlib.telemetry.process_metrics import PROCESS_METRICS
from stairlib.telemetry.tracing import Tracing
from stairlib.wire import construction as construction_wire
from stairwell.vmmd.v1 import guest_service_pb2 as guest_pb
from stairwell.vmmd.v1 import machine_service_pb2 as pb
from stairwell.vmmd.v1.guest_service_pb2_grpc import GuestServiceStub
from tests.contract.downstairs_set import DownstairsSet
from tests.contract.test_controlplane_metrics import DOCUMENT, labelled, scraped
from vmmd.config import parse_arguments
from vmmd.core.request_queue import RequestKind
from vmmd.core.server_config import ServerConfig
from vmmd.daemon import serve
from vmmd.metrics import METRICS, MachineMetrics
from vmmd.supervisor.machines import Machines

pytestmark = [pytest.mark.processes, pytest.mark.timeout(90)]
SECONDS = 30.0
GEOMETRY = Geometry(4096, 64, 8)
DISK = {"machine": "one", "disk": "data"}
REGION = {**DISK, "region": "sub_volumes[0]"}


@pytest.fixture
async def members(tmp_path: Path) -> AsyncIterator[DownstairsSet]:
    found = DownstairsSet(tmp_path, GEOMETRY, 3)
    await found.start_all()
    yield found
    await found.close()


@pytest.fixture
async def machines() -> AsyncIterator[Machines]:
    found = Machines(ServerConfig(), Tracing("vmmd", "test"), "warning")
    yield found
    await found.close()


@pytest.fixture
async def address(machines: Machines) -> AsyncIterator[str]:
    """Where the metrics are read."""
    metrics = Metrics.configure("vmmd", "test", "127.0.0.1:0")
    MachineMetrics(metrics, machines)
    yield metrics.address
    await asyncio.to_thread(metrics.shutdown)


async def running(machines: Machines, members: DownstairsSet) -> pb.MachineSpec:
    """A machine that runs, with one disk."""
    identity = uuid.uuid4()
    request = VolumeSpec(identity, 4096, (members.spec(identity),))
    disk = pb.MachineDisk(
        device="nvme",
        name="data",
        pci_path="0.16.0",
        volume_construction_request=construction_wire.to_message(request),
    )
    spec = pb.MachineSpec(id="id-one", name="one", cpus=1, memory_mib=64, disks=[disk])
    await machines.ensure(spec)
    await machines.request_state(spec.id, RequestKind.RUN)
    async with asyncio.timeout(SECONDS):
        async for _, published in machines.watch(spec.id, 0):
            if published.state.value == "running":
                break
    return spec


async def fill(machines: Machines, size: int) -> guest_pb.WorkloadReport:
    """The guest writes so many bytes; its last report."""
    stub: Any = GuestServiceStub(machines.channel("id-one"))
    workload = guest_pb.Workload(kind=guest_pb.WORKLOAD_KIND_FILL, disk="data", bytes=size, seed=1)
    wanted = guest_pb.RunWorkloadRequest(machine_id="id-one", workload=workload)
    reports = [each.report async for each in stub.RunWorkload(wanted, timeout=SECONDS)]
    assert reports[-1].finished
    assert not reports[-1].errors
    return reports[-1]


def bucketed(found: dict[Any, float], what: str, kind: str) -> dict[float, float]:
    """Counts by their bounds."""
    return {
        float(dict(labels)["le"]): value
        for (name, labels), value in found.items()
        if name == f"stairwell_volume_{what}_bucket_total" and dict(labels)["kind"] == kind
    }


async def test_what_the_guest_does_and_feels_is_told(
    machines: Machines, members: DownstairsSet, address: str
) -> None:
    await running(machines, members)
    report = await fill(machines, 1 << 20)
    found = await scraped(address)
    assert found["stairwell_machines", labelled(state="running")] == 1
    assert found["stairwell_machines", labelled(state="failed")] == 0
    assert found["stairwell_machine_memory_bytes", labelled(machine="one")] > 1 << 20
    assert found["stairwell_volume_state", labelled(**DISK, state="active")] == 1
    assert found["stairwell_volume_state", labelled(**DISK, state="disabled")] == 0
    assert found["stairwell_volume_slots", labelled(**REGION, state="active")] == 3
    kinds = {
        kind: found["stairwell_volume_requests_total", labelled(**DISK, kind=kind)]
        for kind in ("read", "write", "flush", "discard")
    }
    assert kinds["write"] == report.writes > 0
    assert kinds["flush"] >= 1
    written = found["stairwell_volume_io_bytes_total", labelled(**DISK, direction="write")]
    assert written == report.bytes_written == 1 << 20
    for kind in ("write", "flush"):
        buckets = bucketed(found, "latency", kind)
        in_order = [buckets[bound] for bound in sorted(buckets)]
        assert in_order == sorted(in_order)
        assert in_order[-1] == kinds[kind]
        waited = found["stairwell_volume_latency_sum_seconds_total", labelled(**DISK, kind=kind)]
        # The longest bucket that everything lies in bounds the sum.
        whole = min(bound for bound, value in buckets.items() if value == in_order[-1])
        assert 0 < waited < whole * in_order[-1]
    sizes = bucketed(found, "size", "write")
    assert sizes[float("inf")] == sizes[1 << 20] == kinds["write"]
    assert sizes[2048] == 0
    for name in ("in_flight", "waiting", "repair_remaining_bytes"):
        assert found[f"stairwell_volume_{name}", labelled(**DISK)] == 0
    failures = {
        (dict(labels)["kind"], dict(labels)["reason"]): value
        for (name, labels), value in found.items()
        if name == "stairwell_volume_failures_total"
    }
    assert len(failures) == 16
    assert not any(failures.values())
    jobs = [name for name in found if name[0] == "stairwell_volume_slot_jobs"]
    assert len(jobs) == 3


async def test_a_member_that_is_away_is_no_active_slot_and_its_jobs_are_held(
    machines: Machines, members: DownstairsSet, address: str
) -> None:
    await running(machines, members)
    await members.stop(1)
    await fill(machines, 1 << 20)
    found = await scraped(address)
    assert found["stairwell_volume_slots", labelled(**REGION, state="active")] == 2
    jobs = {
        dict(labels)["slot"]: value
        for (name, labels), value in found.items()
        if name == "stairwell_volume_slot_jobs"
    }
    assert jobs["1"] > 0
    held = labelled(**REGION, slot="1")
    assert found["stairwell_volume_slot_bytes", held] >= 1 << 20


async def test_a_machine_that_does_not_answer_is_counted_and_holds_up_no_reading(
    machines: Machines, members: DownstairsSet, address: str
) -> None:
    await running(machines, members)
    await machines.ensure(pb.MachineSpec(id="id-two", name="two", cpus=1, memory_mib=64))
    frozen = machines.find("id-two").record.process_id
    os.kill(frozen, signal.SIGSTOP)
    try:
        found = await scraped(address)
    finally:
        os.kill(frozen, signal.SIGCONT)
    assert found["stairwell_machines_silent", ()] == 1
    assert ("stairwell_machine_memory_bytes", labelled(machine="two")) not in found
    assert found["stairwell_volume_state", labelled(**DISK, state="active")] == 1


async def test_the_document_lists_what_is_exposed(
    machines: Machines, members: DownstairsSet, address: str
) -> None:
    await running(machines, members)
    part = DOCUMENT.read_text().partition("<!-- states: metrics-vmmd -->")[2]
    # What the server counts, the daemon adds to these.
    part = part.partition("<!-- states: metrics-rpc -->")[0]
    listed = re.findall(r"^\| `([a-z_.]+)` \| `(\w+)` \|", part, re.MULTILINE)
    assert [name for name, _ in listed] == [each.name for each in (*METRICS, *PROCESS_METRICS)]
    exposed = {
        re.sub(r"_created$", "", name)
        for name, _ in await scraped(address)
        if not name.startswith(("target_info", "otel_scope"))
    }
    assert exposed == {name for _, name in listed}


async def test_other_hosts_read_them_only_if_it_is_said(tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text('engine = "none"\n')
    stop = StopSignal()
    words = ["run", str(config), f"unix:{tmp_path}/vmmd.sock", "--metrics"]
    with pytest.raises(InvalidRequestError, match="metrics"):
        await serve(parse_arguments([*words, "0.0.0.0:0"]), stop)
