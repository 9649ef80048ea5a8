"""A real Linux on a replicated disk by vhost-user, and what becomes of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from tests.guest.machine import Guest, tools_disk, verified_work, vhost_user_disk
from tests.integration.cluster import children, until
from tests.integration.volume import SLOT_ACTIVE, Volume

pytestmark = [
    pytest.mark.processes,
    pytest.mark.asyncio(loop_scope="module"),
    # Fifteen seconds on an idle machine; guests are emulated, and slow where others work beside.
    pytest.mark.timeout(600),
]

# What a guest's log says of a disk that failed it.
TROUBLE = "I/O error|Buffer I/O|EXT4-fs error|blk_update|timeout|hung_task"
# Writes a file of random data again and again, each time synced and compared.
CHURN = (
    "for i in 1 2 3 4 5 6; do cp /tmp/r /mnt/r && sync && cmp /tmp/r /mnt/r && rm /mnt/r"
    " || exit_code=bad; done; test -z $exit_code"
)


@asynccontextmanager
async def guest_on(
    volume: Volume, image: Path, folder: Path, *devices: str, **options: Any
) -> AsyncIterator[Guest]:
    """A booted guest with the volume as /dev/vda; in the end it must have seen no trouble."""
    socket = (await volume.info()).volume.vhost_user_socket
    guest = Guest(folder, image, [*vhost_user_disk(socket), *devices], **options)
    try:
        await asyncio.to_thread(guest.wait_ready)
        yield guest
        if guest.process.poll() is None:
            await run(guest, f'dmesg > /tmp/log; ! grep -E "{TROUBLE}" /tmp/log')
    finally:
        await asyncio.to_thread(guest.close)


async def run(guest: Guest, command: str, seconds: float = 120.0) -> str:
    return await asyncio.to_thread(guest.run, command, seconds)


async def mounted(guest: Guest, size_mib: int = 12) -> None:
    """An ext4 on the disk, and random data to write there."""
    await run(guest, f"dd if=/dev/urandom of=/tmp/r bs=1M count={size_mib} 2> /dev/null")
    await run(guest, "mke2fs -q -F -t ext4 /dev/vda && mount -t ext4 /dev/vda /mnt")


async def unmounted(guest: Guest) -> None:
    await run(guest, "umount /mnt && e2fsck -fn /dev/vda")


def machine_pid(volume: Volume) -> int:
    """The machine's process; 0 while there is none."""
    for pid in children(volume.cluster.vmmd.pid):
        if volume.instance in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
            return pid
    return 0


async def killed(volume: Volume) -> None:
    """Kills the machine's process; returns when the next one serves."""
    dead = machine_pid(volume)
    # 0 would be all of this test's own processes.
    assert dead, "there is no machine"
    os.kill(dead, signal.SIGKILL)

    async def another() -> bool:
        return machine_pid(volume) not in (0, dead)

    await until(another, bool)
    await volume.reach(instance_pb.INSTANCE_STATE_RUNNING)


async def test_a_file_system_while_a_replica_is_replaced_and_over_a_reboot(
    volume: Volume, image: Path, tmp_path: Path
) -> None:
    async with guest_on(volume, image, tmp_path, reboots=True) as guest:
        blocks = await run(guest, "cat /sys/block/vda/size /sys/block/vda/queue/logical_block_size")
        assert blocks.split() == ["131072", "4096"]
        await mounted(guest)
        writing = guest.send(CHURN)
        started = await volume.replace()
        await asyncio.to_thread(guest.wait, writing)
        await volume.done(started.replacement_id)
        await run(guest, "cp /tmp/r /mnt/kept && sync")
        kept = await run(guest, "sha256sum < /mnt/kept")
        await run(guest, f'dmesg > /tmp/log; ! grep -E "{TROUBLE}" /tmp/log')
        guest.send("sync; reboot -f")
        await asyncio.to_thread(guest.wait_ready)
        await run(guest, "mount -t ext4 /dev/vda /mnt")
        assert await run(guest, "sha256sum < /mnt/kept") == kept
        await run(guest, "rm /mnt/kept && fstrim /mnt")
        await unmounted(guest)
        await run(guest, "blkdiscard -f /dev/vda && blkdiscard -f -z -l 1M /dev/vda")
        zeros = await run(
            guest, "dd if=/dev/vda bs=1M iflag=direct 2> /dev/null | tr -d '\\0' | wc -c"
        )
        assert zeros == "0"
        await asyncio.to_thread(guest.run, "sync")
    await volume.verify()


async def test_a_member_killed_while_the_guest_writes(
    volume: Volume, image: Path, tmp_path: Path
) -> None:
    async with guest_on(volume, image, tmp_path) as guest:
        await mounted(guest)
        writing = guest.send(CHURN)
        volume.downstairs[1].kill()
        await volume.slot_not_active(1)
        await asyncio.to_thread(guest.wait, writing)
        await volume.downstairs[1].start()
        await until(lambda: volume.slot(1), lambda slot: slot.state == SLOT_ACTIVE)
        await run(guest, "cp /tmp/r /mnt/r && sync && cmp /tmp/r /mnt/r")
        await unmounted(guest)
    await volume.verify()


async def test_what_fio_wrote_it_reads_while_a_replica_is_replaced(
    volume: Volume, image: Path, tools: Path, tmp_path: Path
) -> None:
    async with guest_on(volume, image, tmp_path, *tools_disk(tools)) as guest:
        working = guest.send(verified_work("/dev/vda", tools="/dev/vdb"))
        started = await volume.replace()
        await asyncio.to_thread(guest.wait, working)
        await volume.done(started.replacement_id)
    await volume.verify()


async def test_the_machine_s_process_killed_while_the_guest_writes(
    volume: Volume, image: Path, tmp_path: Path
) -> None:
    """To the guest a pause, whether what it wrote was flushed or not."""
    async with guest_on(volume, image, tmp_path) as guest:
        await mounted(guest)
        writing = guest.send(CHURN)
        for _ in range(2):
            await killed(volume)
            await volume.settled()
        await asyncio.to_thread(guest.wait, writing)
        await unmounted(guest)
        # Acknowledged, and never flushed: no file system, no sync.
        await run(guest, "dd if=/tmp/r of=/dev/vda bs=64k oflag=direct 2> /dev/null")
        await killed(volume)
        await run(guest, "dd if=/dev/vda of=/tmp/s bs=1M count=12 iflag=direct 2> /dev/null")
        await run(guest, "cmp /tmp/r /tmp/s")
    await volume.verify()


async def test_a_disk_plugged_and_unplugged(volume: Volume, image: Path, tmp_path: Path) -> None:
    socket = (await volume.info()).volume.vhost_user_socket
    port = ["-device", "pcie-root-port,id=plug,chassis=1"]
    guest = Guest(tmp_path, image, port)
    try:
        await asyncio.to_thread(guest.wait_ready)

        def plug() -> None:
            address = {"type": "unix", "data": {"path": socket}}
            backend = {
                "type": "socket",
                "data": {"addr": address, "server": False, "reconnect": 1},
            }
            guest.monitor.command("chardev-add", id="disk", backend=backend)
            guest.monitor.command(
                "device_add", driver="vhost-user-blk-pci", id="plugged", bus="plug", chardev="disk"
            )
            guest.run("until test -b /dev/vda; do usleep 20000; done", 30)

        def unplug() -> None:
            guest.monitor.command("device_del", id="plugged")
            while guest.monitor.wait_event("DEVICE_DELETED")["data"].get("device") != "plugged":
                pass
            guest.monitor.command("chardev-remove", id="disk")

        await asyncio.to_thread(plug)
        await mounted(guest, 4)
        await run(guest, "cp /tmp/r /mnt/r && umount /mnt")
        await asyncio.to_thread(unplug)
        await run(guest, "! test -b /dev/vda")
        await asyncio.to_thread(plug)
        await run(guest, "mount -t ext4 /dev/vda /mnt && cmp /tmp/r /mnt/r")
        await unmounted(guest)
    finally:
        await asyncio.to_thread(guest.close)
    await volume.verify()


async def test_a_database_and_a_power_cut(volume: Volume, image: Path, tmp_path: Path) -> None:
    """QEMU is killed: what was committed is there, and the file system is sound."""
    async with guest_on(volume, image, tmp_path / "first") as guest:
        await mounted(guest, 1)
        # EXTRA: without it a power cut may take the last commit back, for want of a sync of its
        # directory.
        insert = "pragma synchronous = extra; insert into t select coalesce(max(n), 0) + 1 from t;"
        insert += " select max(n) from t;"
        await run(guest, "sqlite3 /mnt/db 'create table t (n integer primary key)'")
        await run(guest, "sync")
        guest.send(f'while sqlite3 /mnt/db "{insert}" > /tmp/n; do cat /tmp/n; done')
        committed = await asyncio.to_thread(rows_seen, guest, 20)
        guest.process.kill()
        guest.process.wait()
    async with guest_on(volume, image, tmp_path / "second") as guest:
        await run(guest, "mount -t ext4 /dev/vda /mnt")
        assert await run(guest, "sqlite3 /mnt/db 'pragma integrity_check'") == "ok"
        count, highest = (
            await run(guest, "sqlite3 /mnt/db 'select count(*), max(n) from t'")
        ).split("|")
        assert count == highest
        assert int(highest) >= committed
        await unmounted(guest)
    await volume.verify()


def rows_seen(guest: Guest, least: int) -> int:
    """Reads numbers off the console until one is high enough."""
    highest = 0
    while highest < least:
        line = guest.line(60.0)
        if line.isdigit():
            highest = int(line)
    return highest


async def written_while_it_stands_still(volume: Volume, guest: Guest, what: str) -> None:
    """The guest writes to /mnt while two members stand still for 10 s, or the machine's process for
    45 s."""
    members = [member.pid for member in volume.downstairs[:2]]
    stopped = members if what == "members" else [machine_pid(volume)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    writing = guest.send("cp /tmp/r /mnt/r && sync && cmp /tmp/r /mnt/r")
    try:
        # What is tested is time that passes.
        await asyncio.sleep(10 if what == "members" else 45)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    await asyncio.to_thread(guest.wait, writing)


@pytest.mark.parametrize("what", ["members", "machine"])
async def test_a_disk_that_stands_still_for_a_while(
    volume: Volume, image: Path, tmp_path: Path, what: str
) -> None:
    """For 10 s nothing can be flushed, since two members stand still; for 45 s the machine's
    process does, and nothing is answered at all. Nothing fails."""
    async with guest_on(volume, image, tmp_path) as guest:
        await mounted(guest, 4)
        await written_while_it_stands_still(volume, guest, what)
        await unmounted(guest)
    await volume.settled()
    await volume.verify()


async def test_the_disk_seen_by_nbd_is_the_same(
    volume: Volume, image: Path, tmp_path: Path
) -> None:
    async with guest_on(volume, image, tmp_path) as guest:
        await mounted(guest, 2)
        await run(guest, "cp /tmp/r /mnt/r && umount /mnt && sync")
        inside = (await run(guest, "dd if=/dev/vda bs=1M 2> /dev/null | sha256sum")).split()[0]
    uri = (await volume.info()).volume.nbd_uri
    copied = tmp_path / "copy"
    await asyncio.to_thread(
        subprocess.run, ["qemu-img", "convert", "-O", "raw", uri, str(copied)], check=True
    )
    done = await asyncio.to_thread(
        subprocess.run, ["sha256sum", str(copied)], check=True, capture_output=True, text=True
    )
    assert done.stdout.split()[0] == inside
