"""A disk as the built-in guest's programs use it: writes are remembered, reads verified."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass

from vmmd.guest.disk_model import DiskModel
from vmmd.guest.nvme_driver import IoSlot, NvmeDriver, status_text
from vmmd.hw.nvme import bits

_RANGE = struct.Struct("<IIQ")


@dataclass(frozen=True, slots=True)
class IoResult:
    """How one command ended. `error` is empty on success; `mismatches` counts wrong blocks."""

    error: str = ""
    mismatches: int = 0


_GOOD = IoResult()
_STOPPED = IoResult("the machine stopped")


class GuestDisk:
    """One disk with its driver and model. The model lasts as long as the object: across workloads
    and, when the driver is replaced by `renew`, across reboots of the machine."""

    def __init__(self, name: str, driver: NvmeDriver, seed: int) -> None:
        self.name = name
        self.driver = driver
        identity = driver.identity
        self.model = DiskModel(identity.block_size, identity.block_count, seed)

    @property
    def block_size(self) -> int:
        """Bytes of a block."""
        return self.model.block_size

    @property
    def block_count(self) -> int:
        """Blocks of the disk."""
        return self.model.block_count

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return self.driver.identity.read_only

    @property
    def can_discard(self) -> bool:
        """Whether the device takes deallocations."""
        return self.driver.identity.can_deallocate

    @property
    def blocks_max(self) -> int:
        """Blocks of the largest single command."""
        return self.driver.transfer_bytes_max // self.block_size

    def renew(self, driver: NvmeDriver) -> None:
        """The machine was started again: same disk, new driver."""
        assert driver.identity.block_size == self.block_size
        assert driver.identity.block_count == self.block_count
        self.driver = driver

    async def write(self, first: int, count: int) -> IoResult:
        """Writes the next version of the blocks, none of which may be busy."""
        driver, model = self.driver, self.model
        slot = await self._claimed_slot(driver, first, count)
        if slot is None:
            return _STOPPED
        length = count * self.block_size
        model.begin_write(first, count, slot.buffer[:length])

        def ended(status: int) -> None:
            model.end_write(first, count, succeeded=status == bits.OK)

        try:
            status = await driver.start_command(
                slot,
                bits.IoOpcode.WRITE,
                lba=first,
                blocks=count,
                length=length,
                on_complete=ended,
            )
        finally:
            driver.release(slot)
        return _GOOD if status == bits.OK else _failed("write", first, count, status)

    async def read(self, first: int, count: int) -> IoResult:
        """Reads the blocks and checks those whose content is known."""
        driver, model = self.driver, self.model
        slot = await driver.acquire()
        try:
            length = count * self.block_size
            expected = model.begin_read(first, count)
            status = await driver.start_command(
                slot, bits.IoOpcode.READ, lba=first, blocks=count, length=length
            )
            if status != bits.OK:
                return _failed("read", first, count, status)
            wrong = model.mismatches(expected, slot.buffer[:length])
        finally:
            driver.release(slot)
        if not wrong:
            return _GOOD
        return IoResult(
            f"read of {count} blocks at {first}: block {wrong[0]} holds what was never "
            f"written there ({len(wrong)} such blocks)",
            len(wrong),
        )

    async def flush(self) -> IoResult:
        """Makes everything written before durable."""
        slot = await self.driver.acquire()
        try:
            status = await self.driver.start_command(slot, bits.IoOpcode.FLUSH)
        finally:
            self.driver.release(slot)
        return _GOOD if status == bits.OK else IoResult(f"flush: {status_text(status)}")

    async def discard(self, first: int, count: int) -> IoResult:
        """Deallocates the blocks, none of which may be busy."""
        driver, model = self.driver, self.model
        slot = await self._claimed_slot(driver, first, count)
        if slot is None:
            return _STOPPED
        model.begin_discard(first, count)
        _RANGE.pack_into(slot.buffer, 0, 0, count, first)

        def ended(status: int) -> None:
            del status
            model.end_discard(first, count)

        try:
            status = await driver.start_command(
                slot,
                bits.IoOpcode.DATASET_MANAGEMENT,
                blocks=1,
                length=_RANGE.size,
                control=bits.DSM_DEALLOCATE,
                on_complete=ended,
            )
        finally:
            driver.release(slot)
        return _GOOD if status == bits.OK else _failed("discard", first, count, status)

    async def _claimed_slot(self, driver: NvmeDriver, first: int, count: int) -> IoSlot | None:
        """A slot for a change of the blocks, which are claimed before there is time to wait.

        None when the driver stopped meanwhile: the slot's memory is not the driver's any more.
        """
        self.model.claim(first, count)
        try:
            slot = await driver.acquire()
        except asyncio.CancelledError:
            self.model.disclaim(first, count)
            raise
        if not driver.stopped:
            return slot
        driver.release(slot)
        self.model.disclaim(first, count)
        return None


def _failed(what: str, first: int, count: int, status: int) -> IoResult:
    return IoResult(f"{what} of {count} blocks at {first}: {status_text(status)}")
