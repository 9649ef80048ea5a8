"""What the engine makes of QEMU's news of devices, with no QEMU there."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from stairlib.model.errors import UnavailableError
from vmmd.block.memory import MemoryBackend
from vmmd.core.pci_path import PciPath
from vmmd.engine.core.command_line import Board
from vmmd.engine.core.hypervisor import Accelerator, DiskDevice, Hypervisor
from vmmd.engine.engine import EngineDisk
from vmmd.engine.qemu import QemuEngine
from vmmd.machine.console import Console


async def test_a_disk_that_was_let_go_late_can_be_taken_away(tmp_path: Path) -> None:
    board = Board("one", 1, 64, str(tmp_path / "c"), str(tmp_path / "q"))
    path = PciPath.parse("0.20.0")
    disk = EngineDisk(
        "late", DiskDevice.NVME, path, MemoryBackend(4096, 16), "nbd", "vhost", "vfio", uuid4()
    )
    hypervisor = Hypervisor("qemu", "7.2.22", Accelerator.TCG, "")
    engine = QemuEngine(hypervisor, board, [disk], Console())
    # QEMU is asked, and there is none.
    with pytest.raises(UnavailableError, match="device_del"):
        await engine.unplug(disk)
    engine._take("DEVICE_DELETED", {"device": "disk-0.20.0"})
    await engine.unplug(disk)
    assert engine._disks == []
