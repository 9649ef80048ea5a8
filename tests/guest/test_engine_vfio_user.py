"""Engine "qemu" with a QEMU that speaks vfio-user: the same tests, with the machine's own NVMe
controllers under firmware, boot loader and kernel; and what is different then."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from stairlib.model.errors import StateError
from stairwell.vmmd.v1 import machine_service_pb2 as machine_pb
from tests.guest import test_engine
from tests.guest.serial_guest import SerialGuest
from tests.guest.test_engine import (
    BEHIND,
    OVMF,
    SERVER,
    device,
    disk_image,
    log_is_clean,
    plug,
)
from tests.integration.cluster import MIB, Cluster
from tests.integration.volume import Volume

pytestmark = [
    pytest.mark.processes,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
]

volume = test_engine.volume
booted = test_engine.booted
guest = test_engine.guest


@pytest.fixture(scope="module")
def newer_path(newer_qemu: str) -> str:
    """PATH with the newer QEMU first."""
    found = Path(newer_qemu)
    return f"{found.parent}:{os.environ['PATH']}" if found.is_absolute() else os.environ["PATH"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(
    image: Path, newer_path: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Cluster]:
    """The walk-through's host, with that QEMU, and a disk behind a bridge."""
    folder = tmp_path_factory.mktemp("engine")
    await asyncio.to_thread(disk_image, image, folder / "disk.raw", 512)
    (folder / "behind.raw").write_bytes(bytes(8 * MIB))
    config = SERVER.format(bootrom=OVMF, disk=folder / "disk.raw")
    config += BEHIND.format(disk=folder / "behind.raw", driver="pci-nvme")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", newer_path)
        async with Cluster.started(folder / "cluster", config) as started:
            yield started


test_it_boots = test_engine.test_the_walk_through_s_host_boots_its_image
test_replaced_and_rebooted = (
    test_engine.test_a_member_killed_and_one_replaced_while_the_guest_writes_and_a_reboot
)
test_plugged_and_unplugged = test_engine.test_a_disk_plugged_and_unplugged_at_its_place
test_it_stands_still = test_engine.test_a_disk_that_stands_still_for_a_while
test_a_dead_one_is_made_again = test_engine.test_a_hypervisor_that_dies_is_made_again


async def test_disks_come_by_vfio_user_and_are_told_apart(
    volume: Volume,
    guest: SerialGuest,
) -> None:
    told = (await volume.info()).volume
    assert told.guest_device == "NVMe, the machine's own controller by vfio-user"
    models = await guest.run("cat /sys/class/nvme/nvme*/model")
    assert [each.strip() for each in models.split("\n")] == ["Stairwell NVMe"] * 3
    names = (await guest.run("cat /sys/class/nvme/nvme*/subsysnqn")).split()
    assert len(set(names)) == 3
    assert any(told.volume_id in name for name in names)
    disk = await device(guest, volume.disk)
    assert await guest.run(f"cat /sys/block/{Path(disk).name}/uuid") == told.volume_id
    behind = await device(guest, "block1")
    assert "0000:01:04.0" in await guest.run("cat /sys/class/nvme/nvme*/address")
    await guest.run("dd if=/dev/urandom of=/tmp/b bs=1M count=2 2> /dev/null")
    await guest.run(f"dd if=/tmp/b of={behind} bs=1M conv=fsync 2> /dev/null")
    await guest.run(f"dd if={behind} bs=1M count=2 iflag=direct 2> /dev/null | cmp - /tmp/b")
    await log_is_clean(guest)


async def test_a_disk_that_was_there_at_the_start_stays(
    volume: Volume,
    guest: SerialGuest,
) -> None:
    request = machine_pb.UnplugDiskRequest(id=volume.instance_id, disk=volume.disk)
    with pytest.raises(StateError, match="cannot let such an NVMe disk go") as refused:
        await plug(volume, request, "UnplugDisk")
    assert refused.value.reason == "DISK_NOT_REMOVABLE"
    await device(guest, volume.disk)


# The first of these ends the machine of those before it.
test_the_power_button = test_engine.test_the_power_button_ends_the_machine_in_order
test_a_stop_ends = test_engine.test_a_stop_ends_though_disks_do_not_answer
test_no_qemu_outlives = test_engine.test_no_qemu_outlives_whom_it_belongs_to
