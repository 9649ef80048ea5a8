"""The walk-through on containers: create, run, write, replace a member by the spare, prove it.

The tests build on each other, in this order, on one cluster.
"""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from stairlib.rpc import health_check
from stairlib.rpc.channel import open_channel
from stairwell.controlplane.v1 import instance_service_pb2 as pb
from stairwell.controlplane.v1 import instance_service_pb2_grpc as pb_grpc
from stairwell.vmmd.v1 import guest_service_pb2 as guest_pb

pytestmark = pytest.mark.timeout(600)

VOLUME = "0cedae45-3d6e-4d90-b2cb-56f1a1a42a89"
DISKS = "examples/compose/crucible-disks.json"
REPLACE = "examples/compose/replace.json"
FILL_BYTES = 64 << 20
FILL = guest_pb.WorkloadKind.WORKLOAD_KIND_FILL
MIXED = guest_pb.WorkloadKind.WORKLOAD_KIND_MIXED
READ_BACK = guest_pb.WorkloadKind.WORKLOAD_KIND_READ_BACK


@asynccontextmanager
async def guest(cluster):
    """Starts workloads of the machine's built-in guest, through the control plane."""
    async with open_channel(f"127.0.0.1:{cluster.port}") as channel:
        stub = pb_grpc.InstanceServiceStub(channel)
        yield lambda kind, **fields: stub.RunGuestWorkload(
            pb.RunGuestWorkloadRequest(
                name="crub", workload=guest_pb.Workload(kind=kind, disk="block2", **fields)
            ),
            timeout=300,
        )


@asynccontextmanager
async def loaded(call, reports):
    """Keeps a workload running; it has reported before the block begins and when it ended."""

    async def collect():
        async for message in call:
            reports.append(message.report)
            arrived.set()

    arrived = asyncio.Event()
    collecting = asyncio.create_task(collect())
    async with asyncio.timeout(60):
        await arrived.wait()
    yield
    arrived.clear()
    async with asyncio.timeout(60):
        await arrived.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await collecting


async def last_report(call):
    reports = [message.report async for message in call]
    assert reports[-1].finished
    assert (reports[-1].errors, reports[-1].mismatches) == (0, 0), reports[-1].first_error
    return reports[-1]


def slots(cluster):
    return cluster.stairwell_json("disk", "status", "block2")


def test_every_program_is_healthy_and_no_root_and_writes_only_what_it_is_given(cluster):
    for service in cluster.services:
        assert cluster.health(service) == "healthy"
        assert cluster.execute(service, "id", "-u") == "10001"
        assert cluster.inspect(service)["HostConfig"]["ReadonlyRootfs"]
    assert asyncio.run(health_check.check(f"127.0.0.1:{cluster.port}")) == "SERVING"


def test_the_machine_is_made_and_runs(cluster):
    cluster.stairwell("new", "crub", "--crucible-disks", DISKS)
    assert "running" in cluster.stairwell("state", "run", "--wait").stdout


async def test_a_member_is_replaced_by_the_spare_under_load(cluster):
    async with guest(cluster) as start:
        filled = await last_report(start(FILL, bytes=FILL_BYTES, seed=7))
        assert filled.bytes_written >= FILL_BYTES
        reports = []
        async with loaded(start(MIXED, queue_depth=4, seed=11), reports):
            replaced = await asyncio.to_thread(
                cluster.stairwell_json, "vcr", "-u", VOLUME, "--vcr-replace", REPLACE
            )
    assert (reports[-1].errors, reports[-1].mismatches) == (0, 0), reports[-1].first_error
    assert reports[-1].ios > reports[0].ios
    assert replaced["result"].lower().endswith("started")
    text = json.dumps(replaced)
    assert "ds3:8830" in text
    assert "ds4:8840" in text


def test_sent_again_it_is_completed_already(cluster):
    done = cluster.stairwell("vcr", "-u", VOLUME, "--vcr-replace", REPLACE)
    assert "completed_already" in done.stdout


def test_the_disk_names_its_new_member(cluster):
    text = json.dumps(slots(cluster))
    assert "ds4:8840" in text
    assert "ds3:8830" not in text


def test_one_trace_covers_every_program_it_went_through(cluster):
    trace = cluster.stairwell_json("trace")
    assert {"controlplane", "vmmd", "machine", "downstairs"} <= set(trace["services"])


async def test_the_new_member_alone_holds_every_block(cluster):
    cluster.compose("kill", "ds1", "ds2")
    async with guest(cluster) as start:
        report = await last_report(start(READ_BACK, queue_depth=8))
    assert report.bytes_read >= FILL_BYTES
