"""Two control planes on one PostgreSQL, in containers: what a dead one drove, the other one ends.

The tests share one cluster, in this order.
"""

from __future__ import annotations

import asyncio
import json

import pytest
import pytest_asyncio

from stairlib.model.errors import StairwellError
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from tests.compose.watched import DISKS, REPLACEMENT, ROOT, ComposeVolume, Daemon
from tests.integration.cluster import MIB, Calls, until
from tests.integration.volume import DONE

pytestmark = pytest.mark.timeout(300)

COMPOSE_FILES = ("docker-compose.postgres.yml",)
FILL_BYTES = 64 * MIB
# Of which a repair then takes longer than a lease, and what it takes to notice.
SLOW = 2 * MIB


def plane(cluster, service):
    return Daemon(cluster, service, 55400)


@pytest_asyncio.fixture
async def volume(cluster):
    """The walk-through's disk, on a machine that the second control plane was asked to run."""
    calls = Calls(plane(cluster, "controlplane2"), Daemon(cluster, "vmmd", 55401))
    made = ComposeVolume(cluster, calls)
    try:
        await made.find()
        yield made
    finally:
        await calls.close()


def test_what_one_is_told_the_other_one_knows(cluster):
    cluster.stairwell("new", "crub", "--crucible-disks", DISKS)
    said = cluster.stairwell("state", "run", "--wait", service="controlplane2")
    assert "running" in said.stdout
    assert "running" in cluster.stairwell("get", "crub").stdout


def test_no_password_is_shown(cluster):
    """Neither by docker nor by the programs: it is in a file of their user's."""
    password = cluster.execute("controlplane", "cat", "/etc/stairwell/keys/password")
    assert len(password) == 64
    shown = json.dumps([cluster.inspect(each) for each in (*cluster.services, "keys")])
    assert password not in shown + cluster.logs()
    assert cluster.execute("controlplane", "stat", "-c", "%a %u", "/etc/stairwell/keys/pgpass") == (
        "600 10001"
    )


async def test_a_replacement_whose_control_plane_is_killed_is_ended_by_the_other(volume):
    cluster = volume.containers
    await volume.fill(FILL_BYTES)
    await volume.limit(SLOW)
    request = json.loads((ROOT / REPLACEMENT).read_text())["vcr"]
    async with volume.watched() as watch, volume.load(directly=True) as load:
        volume.cluster.controlplane = plane(cluster, "controlplane")
        started = await volume.replace(request)
        assert started.result == disk_pb.REPLACE_RESULT_STARTED
        before = await volume.mid_repair(started.replacement_id)
        await asyncio.to_thread(cluster.docker, "kill", "controlplane")
        volume.cluster.controlplane = plane(cluster, "controlplane2")
        resumed = await until(
            lambda: volume.cluster.get_replacement(started.replacement_id),
            lambda one: one.bytes_done > before.bytes_done,
        )
        assert resumed.state != DONE
        await load.goes_on()
        await volume.limit(0)
        await volume.done(started.replacement_id)
        await watch.all_active()
        watch.assert_undisturbed(0, 1)
        assert watch.repairs[2] == 1
    await volume.verify()
    await volume.read_back()
    logged = cluster.compose("logs", "--no-color", "controlplane2").stdout
    assert "replacement resumed" in logged
    assert started.replacement_id in logged
    await asyncio.to_thread(cluster.docker, "start", "controlplane")
    volume.cluster.controlplane = plane(cluster, "controlplane")
    assert (await volume.cluster.get_replacement(started.replacement_id)).state == DONE
    assert (await volume.slot(2)).address == "ds4:8840"


async def test_both_go_on_when_their_database_is_back(volume):
    """Meanwhile the guest does not notice, and who asks is told."""
    cluster = volume.containers

    async def refused():
        try:
            await volume.info()
        except StairwellError as error:
            return error.reason
        return ""

    async with volume.load(directly=True) as load:
        await asyncio.to_thread(cluster.docker, "stop", "postgres")
        await until(refused, lambda reason: reason == "STORE_UNAVAILABLE")
        await load.goes_on()
        await asyncio.to_thread(cluster.docker, "start", "postgres")
        for service in ("controlplane", "controlplane2"):
            volume.cluster.controlplane = plane(cluster, service)
            await until(refused, lambda reason: not reason)
    await volume.verify()
