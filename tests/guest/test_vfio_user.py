"""A real Linux on a replicated disk as this project's NVMe controller, by vfio-user."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.guest.machine import Guest, vfio_user_disk
from tests.guest.test_vhost_user import CHURN, TROUBLE, killed, run
from tests.integration.cluster import until
from tests.integration.volume import SLOT_ACTIVE, Volume

pytestmark = [
    pytest.mark.processes,
    pytest.mark.asyncio(loop_scope="module"),
    # Fifteen seconds on an idle machine; guests are emulated, and slow where others work beside.
    pytest.mark.timeout(600),
]

DISK = "/dev/nvme0n1"
# What a driver says of a controller that it has no trust in.
COMPLAINTS = f"{TROUBLE}|bogus|Abort status|controller is down|Ignoring|completion polled"


@asynccontextmanager
async def guest_on(
    volume: Volume, image: Path, qemu: str, folder: Path, *devices: str, **options: Any
) -> AsyncIterator[Guest]:
    """A booted guest with the volume as /dev/nvme0n1; in the end it must have seen no trouble."""
    socket = (await volume.info()).volume.vfio_user_socket
    devices = (*vfio_user_disk(socket), *devices)
    guest = Guest(folder, image, devices, qemu=(qemu,), **options)
    try:
        await asyncio.to_thread(guest.wait_ready)
        yield guest
        if guest.process.poll() is None:
            await log_is_clean(guest)
    finally:
        await asyncio.to_thread(guest.close)


async def log_is_clean(guest: Guest) -> None:
    await run(guest, f'dmesg > /tmp/log; ! grep -E "{COMPLAINTS}" /tmp/log')


async def mounted(guest: Guest, size_mib: int = 12) -> None:
    """An ext4 on the disk, and random data to write there."""
    await run(guest, f"dd if=/dev/urandom of=/tmp/r bs=1M count={size_mib} 2> /dev/null")
    await run(guest, f"mke2fs -q -F -t ext4 {DISK} && mount -t ext4 {DISK} /mnt")


async def unmounted(guest: Guest) -> None:
    await run(guest, f"umount /mnt && e2fsck -fn {DISK}")


async def test_a_file_system_while_a_replica_is_replaced_and_over_a_reboot(
    volume: Volume, image: Path, newer_qemu: str, tmp_path: Path
) -> None:
    async with guest_on(volume, image, newer_qemu, tmp_path, reboots=True) as guest:
        queue = f"/sys/block/{Path(DISK).name}"
        blocks = await run(guest, f"cat {queue}/size {queue}/queue/logical_block_size")
        assert blocks.split() == ["131072", "4096"]
        await mounted(guest)
        writing = guest.send(CHURN)
        started = await volume.replace()
        await asyncio.to_thread(guest.wait, writing)
        await volume.done(started.replacement_id)
        await run(guest, "cp /tmp/r /mnt/kept && sync")
        kept = await run(guest, "sha256sum < /mnt/kept")
        await log_is_clean(guest)
        guest.send("sync; reboot -f")
        await asyncio.to_thread(guest.wait_ready)
        await run(guest, f"mount -t ext4 {DISK} /mnt")
        assert await run(guest, "sha256sum < /mnt/kept") == kept
        await run(guest, "rm /mnt/kept && fstrim /mnt")
        await unmounted(guest)
        await run(guest, f"blkdiscard -f {DISK} && blkdiscard -f -z -l 1M {DISK}")
        zeros = await run(
            guest, f"dd if={DISK} bs=1M iflag=direct 2> /dev/null | tr -d '\\0' | wc -c"
        )
        assert zeros == "0"
    await volume.verify()
