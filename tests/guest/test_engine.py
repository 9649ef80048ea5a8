"""Engine "qemu": machines whose firmware boots an image, with replicated disks, driven and watched
as users do it. One guest serves several tests; each leaves it at its console."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from google.protobuf import json_format

from stairlib.model.errors import StairwellError, StateError, UnsupportedError
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.controlplane.v1 import instance_service_pb2_grpc as instance_grpc
from stairwell.vmmd.v1 import machine_service_pb2 as machine_pb
from stairwell.vmmd.v1 import machine_service_pb2_grpc as machine_grpc
from tests.guest.conftest import ROOT, lacking
from tests.guest.serial_guest import SerialGuest
from tests.guest.test_vhost_user import CHURN, TROUBLE
from tests.integration.cluster import MIB, Cluster, children, until
from tests.integration.volume import SLOT_ACTIVE, Volume, fresh_volume
from vmmd.engine import probe
from vmmd.engine.core.hypervisor import Accelerator

pytestmark = [
    pytest.mark.processes,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
]

RUNNING = instance_pb.INSTANCE_STATE_RUNNING
DESTROYED = instance_pb.INSTANCE_STATE_DESTROYED
OVMF = Path("/usr/share/OVMF/OVMF_CODE.fd")
# As the walk-through's server.toml has it.
SERVER = """
bootrom = "{bootrom}"

[block_dev.ubuntu]
type = "file"
path = "{disk}"

[dev.block0]
driver = "pci-nvme"
block_dev = "ubuntu"
pci-path = "0.4.0"
"""
# And a disk behind a bridge.
BEHIND = """
[[pci_bridge]]
pci-path = "0.24.0"
downstream-bus = 1

[block_dev.behind]
type = "file"
path = "{disk}"

[dev.block1]
driver = "{driver}"
block_dev = "behind"
pci-path = "1.4.0"
"""
STUB = machine_grpc.MachineServiceStub


def disk_image(image: Path, disk: Path, block_size: int, *more: str) -> None:
    """A bootable disk; skips where it cannot be made."""
    if not OVMF.is_file():
        lacking(f"{OVMF} is not there (Debian: ovmf)")
    script = ROOT / "scripts/guest_image.py"
    words = [str(image), "--disk", str(disk), "--block-size", str(block_size), *more]
    done = subprocess.run(
        [sys.executable, str(script), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(image: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """A host as the walk-through has it, but for the paths: it names no engine."""
    folder = tmp_path_factory.mktemp("engine")
    await asyncio.to_thread(disk_image, image, folder / "disk.raw", 512)
    config = SERVER.format(bootrom=OVMF, disk=folder / "disk.raw")
    async with Cluster.started(folder / "cluster", config) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def volume(house: Cluster) -> AsyncIterator[Volume]:
    async with fresh_volume(house) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def booted(volume: Volume) -> AsyncIterator[SerialGuest]:
    """Booted from the host's image, the volume beside it."""
    made = SerialGuest(volume.cluster, volume.instance)
    await made.attach()
    await made.ready()
    yield made
    made.hang_up()


@pytest_asyncio.fixture(loop_scope="module")
async def guest(booted: SerialGuest) -> SerialGuest:
    """That one, at its console: what a test before this one may have left there is ended."""
    await booted.attach(history=0)
    booted.type("\x03")
    await booted.run("true")
    return booted


async def device(guest: SerialGuest, serial: str) -> str:
    """The guest's name of the NVMe disk with a serial number, once it is there."""
    look = "d=; for c in /sys/class/nvme/nvme*; do read -r s < $c/serial; "
    look += f"test $s = {serial} && d=$(basename $c)n1; done"
    await guest.run(f"until {look}; test -b /dev/$d; do usleep 50000; done", 30)
    return await guest.run("echo /dev/$d")


async def log_is_clean(guest: SerialGuest) -> None:
    await guest.run(f'dmesg > /tmp/log; ! grep -E "{TROUBLE}" /tmp/log')


def qemu_pid(volume: Volume) -> int:
    """The machine's QEMU; 0 while there is none."""
    for machine in children(volume.cluster.vmmd.pid):
        for pid in children(machine):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if f"guest={volume.instance}".encode() in words and b"-machine" in words:
                return pid
    return 0


def kill_qemu(volume: Volume) -> int:
    """Kills it, and says which it was."""
    pid = qemu_pid(volume)
    # 0 would be all of this test's own processes.
    assert pid, "the machine has no QEMU"
    os.kill(pid, signal.SIGKILL)
    return pid


async def machine(volume: Volume) -> machine_pb.Machine:
    request = machine_pb.GetMachineRequest(id=volume.instance_id)
    vmmd = volume.cluster.vmmd.address
    answer = await volume.cluster.call(STUB, "GetMachine", request, at=vmmd)
    found: machine_pb.Machine = answer.machine
    return found


async def plug(volume: Volume, request: object, method: str) -> machine_pb.Machine:
    answer = await volume.cluster.call(STUB, method, request, at=volume.cluster.vmmd.address)
    found: machine_pb.Machine = answer.machine
    return found


async def test_the_walk_through_s_host_boots_its_image(volume: Volume, guest: SerialGuest) -> None:
    """Firmware, boot loader, kernel and root from 0.4.0; the volume at 0.19.0 is an empty disk."""
    told = await machine(volume)
    assert (told.engine, told.hypervisor[:5]) == ("qemu", "QEMU ")
    assert told.accelerator in ("kvm", "tcg")
    assert told.accelerator_reason
    answer = await volume.cluster.cli("serial", "--only-history", "--history", "1000000")
    assert "BdsDxe: starting" in answer.good().out
    assert "guest: ready" in answer.out
    places = await guest.run("cat /sys/class/nvme/nvme*/address")
    first_bus = [place for place in places.split() if place.startswith("0000:00")]
    assert sorted(first_bus) == ["0000:00:04.0", "0000:00:13.0"]
    disk = await device(guest, volume.disk)
    size = await guest.run(f"cat /sys/block/{Path(disk).name}/size; blockdev --getss {disk}")
    assert size.split() == ["131072", "4096"]
    status = (await volume.cluster.cli("disk", "status", volume.disk)).good()
    assert "NVMe" in status.out


async def test_a_member_killed_and_one_replaced_while_the_guest_writes_and_a_reboot(
    volume: Volume, guest: SerialGuest
) -> None:
    disk = await device(guest, volume.disk)
    await guest.run("dd if=/dev/urandom of=/tmp/r bs=1M count=8 2> /dev/null")
    await guest.run(f"mke2fs -q -F -t ext4 {disk} && mount -t ext4 {disk} /mnt")
    writing = guest.send(CHURN)
    volume.downstairs[1].kill()
    await volume.slot_not_active(1)
    await guest.wait(writing)
    await volume.downstairs[1].start()
    await until(lambda: volume.slot(1), lambda slot: slot.state == SLOT_ACTIVE)
    writing = guest.send(CHURN)
    started = await volume.replace()
    await guest.wait(writing)
    await volume.done(started.replacement_id)
    await guest.run("cp /tmp/r /mnt/kept && sync")
    kept = await guest.run("sha256sum < /mnt/kept")
    await log_is_clean(guest)
    (await volume.cluster.cli("state", "reboot", volume.instance, "--wait")).good()
    await guest.ready()
    disk = await device(guest, volume.disk)
    await guest.run(f"mount -t ext4 {disk} /mnt")
    assert await guest.run("sha256sum < /mnt/kept") == kept
    await guest.run(f"rm /mnt/kept && fstrim /mnt && umount /mnt && e2fsck -fn {disk}")
    await guest.run(f"blkdiscard -f {disk}")
    await log_is_clean(guest)
    await volume.verify()


async def test_a_disk_plugged_and_unplugged_at_its_place(
    volume: Volume, guest: SerialGuest, house: Cluster
) -> None:
    """Both kinds, one after the other, on the same regions: what the one wrote the other reads. One
    that is there when QEMU is killed is there again, and can be unplugged as before."""
    programs = [house.downstairs() for _ in range(3)]
    more = Volume(house, programs)
    call = partial(house.call, instance_grpc.InstanceServiceStub)
    # The kind that has to be made removable, where there is one.
    by_vfio_user = "vfio-user" in (await volume.info()).volume.guest_device.partition(", since")[0]
    killed_with = "nvme" if by_vfio_user else "virtio"
    try:
        await asyncio.gather(*(program.start() for program in programs))
        for kind in ("nvme", "virtio"):
            request = instance_pb.PlugDiskRequest(name=volume.instance)
            request.disk.device = kind
            request.disk.name = more.disk
            request.disk.slot = 4
            json_format.ParseDict(
                more.vcr(1, more.targets), request.disk.volume_construction_request
            )
            assert more.disk in (await call("PlugDisk", request)).instance.disks
            assert more.disk in (await machine(volume)).disks
            if kind == "nvme":
                disk = await device(guest, more.disk)
                assert "0000:00:14.0" in await guest.run("cat /sys/class/nvme/nvme*/address")
                await guest.run(f"dd if=/dev/urandom of={disk} bs=1M count=4 2> /dev/null; sync")
                wrote = await guest.run(f"dd if={disk} bs=1M count=4 2> /dev/null | sha256sum")
            else:
                disk = "/dev/vda"
                read = f"dd if={disk} bs=1M count=4 2> /dev/null | sha256sum"
                await guest.run(f"until test -b {disk}; do usleep 20000; done", 30)
                assert await guest.run(read) == wrote
            if kind == killed_with:
                await made_again(volume, guest, kill_qemu(volume))
                if kind == "nvme":
                    disk = await device(guest, more.disk)
                await guest.run(f"until test -b {disk}; do usleep 20000; done", 30)
                again = f"dd if={disk} bs=1M count=4 2> /dev/null | sha256sum"
                assert await guest.run(again) == wrote
            gone = instance_pb.UnplugDiskRequest(disk=more.disk)
            assert more.disk not in (await call("UnplugDisk", gone)).instance.disks
            await guest.run(f"! test -b {disk}")
    finally:
        if more.disk in (await machine(volume)).disks:
            # What went wrong is told by this test alone: the others find the machine as it was.
            with contextlib.suppress(StairwellError):
                await call("UnplugDisk", instance_pb.UnplugDiskRequest(disk=more.disk))
        house.remove(programs)


async def made_again(volume: Volume, guest: SerialGuest, dead: int) -> None:
    """Returns once there is another QEMU than the dead one, and a guest at its console."""

    async def another() -> int:
        return 0 if (pid := qemu_pid(volume)) == dead else pid

    made = await until(another, bool)
    await volume.reach(RUNNING)
    await guest.attach_until_ready()
    assert qemu_pid(volume) == made, "it was made again more than once"


@pytest.mark.parametrize("seconds", [10, 45])
async def test_a_disk_that_stands_still_for_a_while(
    volume: Volume, guest: SerialGuest, seconds: int
) -> None:
    """Two members stand still for 10 s, the machine's process for 45 s. Nothing fails."""
    disk = await device(guest, volume.disk)
    await guest.run("dd if=/dev/urandom of=/tmp/r bs=1M count=4 2> /dev/null")
    members = [member.pid for member in volume.downstairs[:2]]
    stopped = members if seconds == 10 else children(volume.cluster.vmmd.pid)
    writing = guest.send(f"dd if=/tmp/r of={disk} bs=1M conv=fsync 2> /dev/null")
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        # What is tested is time that passes.
        await asyncio.sleep(seconds)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    await guest.wait(writing)
    await guest.run(f"dd if={disk} bs=1M count=4 iflag=direct 2> /dev/null | cmp - /tmp/r")
    await log_is_clean_of_errors(guest)
    await volume.settled()


async def log_is_clean_of_errors(guest: SerialGuest) -> None:
    """A driver may say that it waits; nothing may have failed."""
    await guest.run('dmesg > /tmp/log; ! grep -E "I/O error|Buffer I/O|EXT4-fs error" /tmp/log')


async def test_an_nmi_reaches_the_guest_and_a_panic_is_told(
    volume: Volume, guest: SerialGuest
) -> None:
    (await volume.cluster.cli("nmi", volume.instance)).good()
    await guest.run("until dmesg | grep -q 'NMI received'; do usleep 50000; done", 30)
    before = (await volume.cluster.get_instance(volume.instance)).state_generation
    watched = asyncio.create_task(
        until(
            lambda: volume.cluster.get_instance(volume.instance),
            lambda one: "panicked" in one.reason,
        )
    )
    guest.type("echo c > /proc/sysrq-trigger\n")
    told = await watched
    assert told.state_generation > before
    told = await volume.reach(RUNNING)
    # It reset itself since; what led to it is still told.
    assert told.reason == "the guest's kernel panicked"
    await guest.ready()


async def test_a_hypervisor_that_dies_is_made_again(volume: Volume, guest: SerialGuest) -> None:
    disk = await device(guest, volume.disk)
    await guest.run("dd if=/dev/urandom of=/tmp/r bs=1M count=2 2> /dev/null")
    await guest.run(f"dd if=/tmp/r of={disk} bs=1M conv=fsync 2> /dev/null")
    wrote = await guest.run("sha256sum < /tmp/r")
    await made_again(volume, guest, kill_qemu(volume))
    disk = await device(guest, volume.disk)
    assert await guest.run(f"dd if={disk} bs=1M count=2 2> /dev/null | sha256sum") == wrote
    await volume.verify()


async def test_the_power_button_ends_the_machine_in_order(
    volume: Volume, guest: SerialGuest
) -> None:
    (await volume.cluster.cli("state", "shutdown", volume.instance, "--wait")).good()
    told = await volume.reach(DESTROYED)
    assert told.reason == "the guest powered off"
    assert qemu_pid(volume) == 0
    with pytest.raises((StateError, UnsupportedError)):
        await plug(
            volume, machine_pb.UnplugDiskRequest(id=volume.instance_id, disk="x"), "UnplugDisk"
        )


async def test_a_stop_ends_though_disks_do_not_answer(house: Cluster) -> None:
    """One that cannot become active, so that QEMU was never started; one that has stopped to answer
    while the firmware reads it; and the image is had by one machine at a time."""
    async with fresh_volume(house, run=False, spare=False) as made:
        made.downstairs[2].kill()
        await made.set_state(instance_pb.REQUESTED_STATE_RUN)
        await made.reach(instance_pb.INSTANCE_STATE_STARTING)
        assert qemu_pid(made) == 0
        others = [house.downstairs() for _ in range(3)]
        with pytest.raises(StateError, match="another machine's disk"):
            await Volume(house, others).create()
        await made.stop()
    async with fresh_volume(house, spare=False) as made:
        qemu = qemu_pid(made)
        for member in made.downstairs:
            member.signal(signal.SIGSTOP)
        await made.stop()
        assert qemu
        assert qemu_pid(made) == 0


@pytest.mark.parametrize("who", ["machine", "vmmd"])
async def test_no_qemu_outlives_whom_it_belongs_to(house: Cluster, who: str) -> None:
    async with fresh_volume(house, spare=False) as made:
        qemu = qemu_pid(made)
        assert qemu
        (parent,) = (pid for pid in children(house.vmmd.pid) if qemu in children(pid))
        os.kill(parent if who == "machine" else house.vmmd.pid, signal.SIGKILL)

        async def gone() -> bool:
            return not await asyncio.to_thread(Path(f"/proc/{qemu}").exists)

        await until(gone, bool)
        if who == "vmmd":
            house.vmmd.kill()
            await house.vmmd.start()
        await made.reach(RUNNING)


@pytest.mark.parametrize("kind", ["virtio", "nvme"])
async def test_the_root_file_system_on_the_volume_and_a_power_cut(
    image: Path, tmp_path: Path, kind: str
) -> None:
    """An image is copied onto a volume over NBD, boots from it, and QEMU is killed in the middle of
    a database's commits: what was committed is there, and the file system is sound. The firmware
    reads a virtio disk by vhost-user."""
    more = ["--virtio"] if kind == "virtio" else []
    await asyncio.to_thread(disk_image, image, tmp_path / "disk.raw", 4096, *more)
    (tmp_path / "behind.raw").write_bytes(bytes(8 * MIB))
    # Behind the bridge is one of the other kind.
    other = "pci-nvme" if kind == "virtio" else "pci-virtio-block"
    config = f'engine = "qemu"\nbootrom = "{OVMF}"\n'
    config += BEHIND.format(disk=tmp_path / "behind.raw", driver=other)
    async with (
        Cluster.started(tmp_path / "cluster", config) as cluster,
        fresh_volume(cluster, spare=False, extent_count=112, device=kind) as volume,
    ):
        uri = (await volume.info()).volume.nbd_uri
        copy = ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw"]
        await asyncio.to_thread(
            subprocess.run, [*copy, str(tmp_path / "disk.raw"), uri], check=True
        )
        await volume.set_state(instance_pb.REQUESTED_STATE_REBOOT)
        guest = SerialGuest(cluster, volume.instance)
        await guest.attach()
        await guest.ready()
        assert " / ext4 " in await guest.run("cat /proc/mounts")
        if kind == "virtio":
            root, behind = "/dev/vda", await device(guest, "block1")
        else:
            root, behind = await device(guest, volume.disk) + "p", "/dev/vda"
        place = await guest.run(f"readlink -f /sys/block/{Path(behind).name}")
        assert "/0000:01:04.0/" in place
        await guest.run(f"dd if=/dev/urandom of={behind} bs=1M count=1 conv=fsync 2> /dev/null")
        insert = "pragma synchronous = extra; insert into t select coalesce(max(n), 0) + 1 from t;"
        insert += " select max(n) from t;"
        await guest.run("sqlite3 /db 'create table t (n integer primary key)'; sync")
        guest.send(f'while sqlite3 /db "{insert}" > /tmp/n; do cat /tmp/n; done')
        committed = 0
        while committed < 20:
            line = (await guest.until(b"\n", 60)).strip()
            committed = int(line) if line.isdigit() else committed
        await made_again(volume, guest, kill_qemu(volume))
        assert await guest.run("sqlite3 /db 'pragma integrity_check'") == "ok"
        count, highest = (await guest.run("sqlite3 /db 'select count(*), max(n) from t'")).split(
            "|"
        )
        assert count == highest
        assert int(highest) >= committed
        await guest.run(f"mount -o remount,ro / && e2fsck -fn {root}2")
        assert any((tmp_path / "behind.raw").read_bytes()[:MIB])
        guest.hang_up()
        await volume.verify()


async def test_the_probe_ends_where_a_guest_runs() -> None:
    """With emulation it does: what KVM is judged by is a program that works."""
    runs, why = await probe.runs_probe(probe.PROGRAM, Accelerator.TCG)
    assert runs, why
