"""Containers that die, hang, are cut off, slowed and restarted, under a verified load.

The load, and what the disk's slots are one after another, come from vmmd itself (`watched.py`). The
tests share one cluster, in this order; each leaves it whole and reads everything back.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import pytest_asyncio

from stairlib.model.errors import UnavailableError
from stairlib.runtime.limits import SESSION_SILENCE_SECONDS
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.vmmd.v1.guest_service_pb2 import WORKLOAD_KIND_MIXED
from tests.compose.conftest import run
from tests.compose.watched import DISKS, REPLACEMENT, ROOT, ComposeVolume, Daemon
from tests.integration.cluster import MIB, Calls, until
from tests.integration.slot_watch import FAULTED, OFFLINE, reported, stands_still
from tests.integration.volume import Load, faultless

pytestmark = pytest.mark.timeout(300)

COMPOSE_PROFILES = ("faults",)
FILL_BYTES = 64 * MIB
# Some seconds for what `fill` wrote: a restart of the control plane fits in.
SLOW = 4 * MIB
CLIENT = Path(__file__).parents[1] / "integration/nbd_client.py"
# Of every run that `fill` wrote, by an NBD client inside: the export is a socket of that container.
DIGEST = """
import hashlib
digest = hashlib.sha256()
with NbdClient({uri!r}) as client:
    for run in range({runs}):
        digest.update(client.read(run * (client.size // {runs}), 1 << 20))
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def machine(cluster):
    """The walk-through's machine runs."""
    cluster.stairwell("new", "crub", "--crucible-disks", DISKS)
    assert "running" in cluster.stairwell("state", "run", "--wait").stdout
    return cluster


@pytest_asyncio.fixture
async def volume(machine):
    """Its disk, filled."""
    calls = Calls(Daemon(machine, "controlplane", 55400), Daemon(machine, "vmmd", 55401))
    made = ComposeVolume(machine, calls)
    try:
        await made.find()
        await made.fill(FILL_BYTES)
        yield made
    finally:
        await calls.close()


async def apart(call, *arguments):
    """Runs what waits for docker in a thread: the load goes on being looked at."""
    return await asyncio.to_thread(call, *arguments)


async def test_a_member_is_killed_and_started_again(volume):
    cluster = volume.containers
    async with volume.watched() as watch, volume.load(directly=True) as load:
        await apart(cluster.docker, "kill", "ds2")
        await watch.out(1, modes=(OFFLINE,))
        await load.goes_on()
        await apart(cluster.docker, "start", "ds2")
        await watch.all_active()
        watch.assert_came_back(1)
        watch.assert_undisturbed(0, 2)
    await volume.intact()


async def test_a_member_is_paused_for_longer_than_the_limit_of_silence(volume):
    """Its connections stand, and say nothing."""
    cluster = volume.containers
    async with volume.watched() as watch, volume.load(directly=True) as load:
        began = time.monotonic()
        await apart(cluster.docker, "pause", "ds3")
        await watch.out(2)
        assert time.monotonic() - began < 2 * SESSION_SILENCE_SECONDS
        await load.goes_on()
        await apart(cluster.docker, "unpause", "ds3")
        await watch.all_active()
        watch.assert_came_back(2)
        watch.assert_undisturbed(0, 1)
    await volume.intact()


async def test_a_member_is_cut_off_until_it_is_given_up(volume):
    """No packet tells of it; back on the network it may have another address."""
    cluster = volume.containers
    async with volume.watched() as watch, volume.load(directly=True) as load:
        await apart(cluster.cut_off, "ds1")
        await watch.out(0, modes=(FAULTED,))
        await load.goes_on()
        await apart(cluster.join, "ds1")
        await watch.all_active()
        watch.assert_came_back(0)
        watch.assert_undisturbed(1, 2)
        assert watch.repairs[0] == 1
    await volume.intact()


async def test_two_members_are_cut_off_for_a_moment_and_the_guest_waits(volume):
    """Nothing can become durable on one member alone: requests are held, and none of them fails."""
    cluster = volume.containers
    async with volume.watched() as watch:
        # Before the load: docker takes them off one after the other, and what the second still
        # answers meanwhile may be more than is kept for the first.
        await apart(cluster.cut_off, "ds1", "ds2")
        load = Load(volume.reports(WORKLOAD_KIND_MIXED, seed=2, queue_depth=4, directly=True))
        try:
            await stands_still(load)
            held = load.last
            await apart(cluster.join, "ds1", "ds2")
            await load.goes_on()
            await watch.all_active()
            # Their connections went on, or were replaced by others. With the first back the guest
            # goes on, and the other may then miss more than is kept for it: no other reason will
            # do to give it up.
            given_up = [slot for slot in (0, 1) if watch.was(slot, FAULTED)]
            assert len(given_up) < 2, watch.reasons
            assert watch.repairs == [slot in given_up for slot in range(3)], watch.reasons
            for reason in watch.reasons:
                assert "FAULTED" not in reason or "jobs" in reason, watch.reasons
            watch.assert_undisturbed(2)
            assert load.last.ios > held.ios
            faultless(load.last)
        finally:
            await load.stop()
    await volume.intact()


async def test_two_members_are_given_up_and_writes_are_refused_until_one_is_back(volume):
    """The limits of the one before: then the guest is told, and what it wrote stays readable."""
    cluster = volume.containers
    load = Load(volume.reports(WORKLOAD_KIND_MIXED, seed=2, queue_depth=4, directly=True))
    try:
        async with volume.watched() as watch:
            await load.goes_on()
            faultless(load.last)
            await apart(cluster.cut_off, "ds1", "ds2")
            await watch.out(0, 1, modes=(FAULTED,))
            await reported(load, lambda report: report.errors)
            reads = load.last.reads
            await reported(load, lambda report: report.reads > reads)
            await apart(cluster.join, "ds1", "ds2")
            await watch.all_active()
            watch.assert_came_back(0, 1)
            watch.assert_undisturbed(2)
            # Commands that were in flight by then are over with the next report but one.
            await load.goes_on()
            errors = load.last.errors
            await load.goes_on()
            assert (load.last.errors, load.last.mismatches) == (errors, 0), load.last
    finally:
        await load.stop()
    await volume.intact()


async def test_vmmd_and_the_control_plane_are_cut_off_from_each_other(volume):
    """The guest does not notice, and a member that dies meanwhile comes back without help."""
    cluster = volume.containers

    def listed():
        return cluster.execute("controlplane", "stairwell", "get", "crub", check=False)

    async def asked():
        # A call that is sent on the connection from before the cut ends with that connection.
        try:
            return await volume.cluster.get_instance(volume.instance)
        except UnavailableError:
            return None

    async with volume.watched() as watch, volume.load(directly=True) as load:
        await apart(cluster.cut_off, "controlplane")
        # Asked from inside, since nobody reaches it from outside.
        await until(lambda: apart(listed), lambda said: "last known state" in said)
        await apart(cluster.docker, "kill", "ds2")
        await watch.out(1, modes=(OFFLINE,))
        await load.goes_on()
        await apart(cluster.docker, "start", "ds2")
        await watch.all_active()
        watch.assert_came_back(1)
        watch.assert_undisturbed(0, 2)
        await apart(cluster.join, "controlplane")
        volume.cluster.controlplane = Daemon(cluster, "controlplane", 55400)
        instance = await until(asked, lambda one: one is not None and not one.reason)
        assert instance.state == instance_pb.INSTANCE_STATE_RUNNING
        await volume.settled()
    await volume.intact()


async def test_the_control_plane_is_restarted_in_the_middle_of_a_replacement(volume):
    cluster = volume.containers
    await volume.limit(SLOW)
    request = json.loads((ROOT / REPLACEMENT).read_text())["vcr"]
    async with volume.watched() as watch, volume.load(directly=True) as load:
        started = await volume.replace(request)
        assert started.result == disk_pb.REPLACE_RESULT_STARTED
        before = await volume.mid_repair(started.replacement_id)
        await apart(cluster.docker, "kill", "controlplane")
        await load.goes_on()
        await apart(cluster.docker, "start", "controlplane")
        volume.cluster.controlplane = Daemon(cluster, "controlplane", 55400)
        resumed = await volume.mid_repair(started.replacement_id)
        assert resumed.bytes_done >= before.bytes_done
        await volume.limit(0)
        await volume.done(started.replacement_id)
        await watch.all_active()
        assert "LIVE_REPAIR" in watch.states(2), watch.slots
        assert watch.repairs[2] == 1
        watch.assert_undisturbed(0, 1)
    assert (await volume.slot(2)).address == started.new_target == "ds4:8840"
    await volume.intact()


async def digest(volume):
    """Of what the guest has on the disk, read through the machine."""
    uri = (await volume.info()).volume.nbd_uri
    runs = FILL_BYTES // MIB
    script = CLIENT.read_text() + DIGEST.format(uri=uri, runs=runs)
    return await asyncio.to_thread(
        lambda: volume.containers.execute("vmmd", "python3", "-", script=script)
    )


async def test_everything_is_restarted_in_turn(volume):
    """The members and the control plane under the load; vmmd last, whose machine comes back."""
    cluster = volume.containers
    async with volume.load(directly=True) as load:
        for slot, service in enumerate(("ds1", "ds2", "ds4")):
            async with volume.watched() as watch:
                await apart(cluster.docker, "restart", service)
                await watch.out(slot, modes=(OFFLINE,))
                await load.goes_on()
                await watch.all_active()
                watch.assert_undisturbed(*{0, 1, 2} - {slot})
        await apart(cluster.docker, "restart", "controlplane")
        volume.cluster.controlplane = Daemon(cluster, "controlplane", 55400)
        await load.goes_on()
        await volume.settled()
    await volume.intact()
    written = await digest(volume)
    generation = (await volume.info()).volume.regions[0].generation
    await apart(cluster.docker, "restart", "vmmd")
    volume.cluster.vmmd = Daemon(cluster, "vmmd", 55401)
    await until(
        volume.info,
        lambda disk: any(region.generation > generation for region in disk.volume.regions),
    )
    await volume.reach(instance_pb.INSTANCE_STATE_RUNNING)
    await volume.settled()
    assert await digest(volume) == written
    await volume.verify()


async def test_a_member_behind_a_link_is_slowed_and_cut_by_hand(volume):
    """Profile "faults": a member is replaced by the one behind the link, which is then made bad."""
    cluster = volume.containers

    def link(*words):
        return json.loads(cluster.execute("link", "python3", "-m", "stairlib.link", *words))

    request = json.loads((ROOT / REPLACEMENT).read_text())["vcr"]
    [region] = request["sub_volumes"]
    region["gen"] = (await volume.info()).recorded_generation + 1
    region["opts"]["target"] = ["ds1:8810", "link:8850", "ds4:8840"]
    await volume.done((await volume.replace(request)).replacement_id)
    await volume.settled()
    async with volume.watched() as watch, volume.load(directly=True, queue_depth=16) as load:
        before = await apart(link, "set", "--delay", "20ms", "--jitter", "20ms", "--rate", "2MiB")
        for _ in range(3):
            await load.goes_on()
        after = await apart(link, "clear")
        await load.goes_on()
        watch.assert_undisturbed(0, 1, 2)
        assert after["there"]["bytes"] > before["there"]["bytes"] > 0
    await volume.intact()
    async with volume.watched() as watch, volume.load(directly=True) as load:
        await apart(link, "cut")
        await watch.out(1)
        await load.goes_on()
        await apart(link, "join")
        await watch.all_active()
        watch.assert_came_back(1)
        watch.assert_undisturbed(0, 2)
    await volume.intact()


async def test_what_leaves_a_member_is_bounded_by_the_kernel(volume):
    """All of it, also what the member itself connects to, which a link does not see."""
    if os.getuid() != 0 or not all(map(shutil.which, ("nsenter", "tc"))):
        pytest.skip("this takes root, nsenter and tc (Debian's iproute2)")
    inside = ("nsenter", "-t", volume.containers.inspect("ds4")["State"]["Pid"], "-n")
    interface = next(
        each["ifname"]
        for each in json.loads(run(*inside, "ip", "-j", "address").stdout)
        if each["ifname"] != "lo"
    )
    limit = ("rate", "8mbit", "burst", "64kb", "latency", "400ms")
    done = run(*inside, "tc", "qdisc", "add", "dev", interface, "root", "tbf", *limit, check=False)
    if done.returncode:
        pytest.skip(f"this kernel has no token bucket filter: {done.stderr.strip()}")
    async with volume.watched() as watch, volume.load(directly=True, queue_depth=16) as load:
        for _ in range(3):
            await load.goes_on()
        await apart(run, *inside, "tc", "qdisc", "del", "dev", interface, "root")
        await load.goes_on()
        watch.assert_undisturbed(0, 1, 2)
    await volume.intact()
