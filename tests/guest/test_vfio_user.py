"""A real Linux on a replicated disk as this project's NVMe controller, by vfio-user."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.guest.machine import Guest, tools_disk, verified_work, vfio_user_disk
from tests.guest.test_vhost_user import (
    CHURN,
    TROUBLE,
    killed,
    rows_seen,
    run,
    written_while_it_stands_still,
)
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


async def test_a_member_killed_while_the_guest_writes(
    volume: Volume, image: Path, newer_qemu: str, tmp_path: Path
) -> None:
    async with guest_on(volume, image, newer_qemu, tmp_path) as guest:
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
    volume: Volume, image: Path, newer_qemu: str, tools: Path, tmp_path: Path
) -> None:
    async with guest_on(volume, image, newer_qemu, tmp_path, *tools_disk(tools)) as guest:
        working = guest.send(verified_work(DISK, tools="/dev/vda"))
        started = await volume.replace()
        await asyncio.to_thread(guest.wait, working)
        await volume.done(started.replacement_id)
    await volume.verify()


async def told(guest: Guest, command: str) -> Any:
    """What an nvme command says, as JSON."""
    return json.loads(await run(guest, f"nvme {command} -o json"))


async def test_what_nvme_cli_asks(
    volume: Volume, image: Path, newer_qemu: str, tmp_path: Path
) -> None:
    """Identity, health, logs and features; and refusals that leave the disk as it is."""
    identity = (await volume.info()).volume.volume_id
    async with guest_on(volume, image, newer_qemu, tmp_path) as guest:
        controller = await told(guest, "id-ctrl /dev/nvme0")
        assert controller["sn"].strip() == volume.disk[:20]
        assert controller["mn"].strip() == "Stairwell NVMe"
        assert controller["subnqn"].endswith(identity)
        assert (controller["ver"], controller["nn"], controller["mdts"]) == (0x10400, 1, 8)
        namespace = await told(guest, f"id-ns {DISK}")
        assert namespace["nsze"] == 16384
        assert namespace["lbafs"][0]["ds"] == 12
        assert namespace["nguid"] == identity.replace("-", "")
        (listed,) = (await told(guest, "list"))["Devices"]
        assert (listed["DevicePath"], listed["SectorSize"]) == (DISK, 4096)
        assert "[   0]:0x1" in await run(guest, "nvme list-ns /dev/nvme0")
        assert "[   0]:0x1" in await run(guest, "nvme list-ctrl /dev/nvme0")
        assert identity in await run(guest, f"nvme ns-descs {DISK}")

        before = await told(guest, "smart-log /dev/nvme0")
        await run(guest, f"dd if=/dev/zero of={DISK} bs=1M count=8 oflag=direct 2> /dev/null")
        after = await told(guest, "smart-log /dev/nvme0")
        for counter, least in (("host_write_commands", 8), ("data_units_written", 16)):
            assert int(after[counter]) >= int(before[counter]) + least
        assert [int(after[name]) for name in ("critical_warning", "media_errors")] == [0, 0]

        get = "nvme get-feature /dev/nvme0 -f"
        for feature in (1, 2, 4, 5, 6, 7, 8, 9, 10, 11):
            assert "Current value" in await run(guest, f"{get} {feature}")
        await run(guest, "nvme set-feature /dev/nvme0 -f 6 -v 0")
        assert "00000000" in await run(guest, f"{get} 6")
        await run(guest, "nvme set-feature /dev/nvme0 -f 6 -v 1")
        await run(guest, "nvme set-feature /dev/nvme0 -f 4 -v 300")
        assert int((await told(guest, "smart-log /dev/nvme0"))["critical_warning"]) != 0
        await run(guest, "nvme set-feature /dev/nvme0 -f 4 -v 350")

        wrote = await run(guest, f"dd if={DISK} bs=1M count=8 2> /dev/null | sha256sum")
        refused = await run(guest, f"nvme format {DISK} -f 2>&1; test $? != 0")
        assert "Invalid Command Opcode" in refused
        refused = await run(guest, "nvme set-feature /dev/nvme0 -f 2 -v 3 2>&1; test $? != 0")
        assert "Invalid Field" in refused
        (newest, *_) = (await told(guest, "error-log /dev/nvme0 -e 2"))["errors"]
        assert int(newest["error_count"]) >= 2
        await run(guest, f"nvme flush {DISK} -n 1 && nvme write-zeroes {DISK} -s 9000 -c 7")
        await run(guest, f"nvme dsm {DISK} -d -s 9000 -b 8 && nvme reset /dev/nvme0")
        assert await run(guest, f"dd if={DISK} bs=1M count=8 2> /dev/null | sha256sum") == wrote
    await volume.verify()


@pytest.mark.parametrize("what", ["members", "machine"])
async def test_a_disk_that_stands_still_for_a_while(
    volume: Volume, image: Path, newer_qemu: str, tmp_path: Path, what: str
) -> None:
    """For 10 s nothing can be flushed, since two members stand still; for 45 s the machine's
    process does, and the driver asks after 30 s to abort what it waits for. Nothing fails."""
    async with guest_on(volume, image, newer_qemu, tmp_path) as guest:
        await mounted(guest, 4)
        await written_while_it_stands_still(volume, guest, what)
        await unmounted(guest)
        errors = "I/O error|Buffer I/O|EXT4-fs error|controller is down"
        await run(guest, f'dmesg > /tmp/log; ! grep -E "{errors}" /tmp/log')
        # What a driver says while it waits was looked at.
        await run(guest, "dmesg -c > /dev/null")
    await volume.settled()
    await volume.verify()


async def test_the_machine_s_process_killed(
    volume: Volume, image: Path, newer_qemu: str, tmp_path: Path
) -> None:
    """QEMU does not come back to a device that it has lost: the guest sees a disk that was pulled
    out, and the next guest all that was flushed."""
    async with guest_on(volume, image, newer_qemu, tmp_path / "first") as guest:
        await mounted(guest, 4)
        await run(guest, "cp /tmp/r /mnt/r && sync")
        wrote = await run(guest, "sha256sum < /mnt/r")
        await killed(volume)
        gone = f"until ! test -b {DISK}; do cat {DISK} > /dev/null 2>&1; done; true"
        await run(guest, gone, 90)
        guest.process.kill()
        guest.process.wait()
    await volume.settled()
    async with guest_on(volume, image, newer_qemu, tmp_path / "second") as guest:
        await run(guest, f"mount -t ext4 {DISK} /mnt")
        assert await run(guest, "sha256sum < /mnt/r") == wrote
        await unmounted(guest)
    await volume.verify()


async def test_a_database_and_a_power_cut(
    volume: Volume, image: Path, newer_qemu: str, tmp_path: Path
) -> None:
    """QEMU is: what a database had committed is there, and the file system is sound."""
    async with guest_on(volume, image, newer_qemu, tmp_path / "first") as guest:
        await mounted(guest, 1)
        insert = "pragma synchronous = extra; insert into t select coalesce(max(n), 0) + 1 from t;"
        insert += " select max(n) from t;"
        await run(guest, "sqlite3 /mnt/db 'create table t (n integer primary key)'")
        await run(guest, "sync")
        guest.send(f'while sqlite3 /mnt/db "{insert}" > /tmp/n; do cat /tmp/n; done')
        committed = await asyncio.to_thread(rows_seen, guest, 20)
        guest.process.kill()
        guest.process.wait()
    async with guest_on(volume, image, newer_qemu, tmp_path / "second") as guest:
        await run(guest, f"mount -t ext4 {DISK} /mnt")
        assert await run(guest, "sqlite3 /mnt/db 'pragma integrity_check'") == "ok"
        count, highest = (
            await run(guest, "sqlite3 /mnt/db 'select count(*), max(n) from t'")
        ).split("|")
        assert count == highest
        assert int(highest) >= committed
        await unmounted(guest)
    await volume.verify()
