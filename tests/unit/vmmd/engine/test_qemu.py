"""What the engine makes of QEMU's answers and news, with a peer in QEMU's place or none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from stairlib.model.errors import ConflictError, StateError, UnavailableError
from tests.unit.vmmd.engine.monitor_peer import MonitorPeer
from vmmd.block.memory import MemoryBackend
from vmmd.core.pci_path import PciPath
from vmmd.engine import qemu
from vmmd.engine.core.command_line import Board
from vmmd.engine.core.hypervisor import Accelerator, DiskDevice, Hypervisor
from vmmd.engine.engine import EngineDisk
from vmmd.engine.qemu import QemuEngine
from vmmd.machine.console import Console

ID = "disk-0.20.0"


def late_disk() -> EngineDisk:
    path = PciPath.parse("0.20.0")
    return EngineDisk(
        "late", DiskDevice.NVME, path, MemoryBackend(4096, 16), "nbd", "vhost", "vfio", uuid4()
    )


def engine_at(folder: Path, *disks: EngineDisk) -> QemuEngine:
    board = Board("one", 1, 64, str(folder / "c"), str(folder / "q"))
    hypervisor = Hypervisor("qemu", "7.2.22", Accelerator.TCG, "")
    return QemuEngine(hypervisor, board, list(disks), Console())


async def test_a_disk_that_was_let_go_late_can_be_taken_away(tmp_path: Path) -> None:
    disk = late_disk()
    engine = engine_at(tmp_path, disk)
    # QEMU is asked, and there is none.
    with pytest.raises(UnavailableError, match="device_del"):
        await engine.unplug(disk)
    engine._take("DEVICE_DELETED", {"device": "disk-0.20.0"})
    await engine.unplug(disk)
    assert engine._disks == []


@pytest_asyncio.fixture
async def peer() -> AsyncIterator[MonitorPeer]:
    made = MonitorPeer()
    yield made
    await made.close()


@pytest_asyncio.fixture
async def engine(tmp_path: Path, peer: MonitorPeer) -> AsyncIterator[QemuEngine]:
    """Its monitor speaks with the peer."""
    made = engine_at(tmp_path)
    await made._monitor.start_server(str(tmp_path / "q"))
    await asyncio.gather(made._monitor.accept(), peer.connect(tmp_path / "q"))
    made._spawn(made._take_events())
    yield made
    await made.halt()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - the engine tells nobody
            await asyncio.sleep(0.01)


async def test_a_disk_that_qemu_refuses_is_taken_back_at_once(
    engine: QemuEngine, peer: MonitorPeer
) -> None:
    peer.refused.add("device_add")
    with pytest.raises(StateError, match="refuses device_add"):
        await engine.plug(late_disk())
    assert [name for name, _ in peer.asked[1:]] == ["blockdev-add", "device_add", "blockdev-del"]
    await engine.plug(late_disk())


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_disk_whose_plugging_is_not_answered_is_taken_back_when_qemu_answers(
    engine: QemuEngine, peer: MonitorPeer, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """Whether QEMU has added it by then or not, nothing of it is left, and the place is free."""
    monkeypatch.setattr(qemu, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(qemu, "TAKE_BACK_SECONDS", 0.05)
    peer.silent.add("device_add")
    with pytest.raises(UnavailableError, match="did not answer device_add"):
        await engine.plug(late_disk())
    with pytest.raises(ConflictError, match="being taken back"):
        await engine.plug(late_disk())
    if not is_there:
        peer.refused.add("device_del")
    peer.answer()
    await until(lambda: ("device_del", {"id": ID}) in peer.asked)
    if is_there:
        assert engine._going_back
        peer.event("DEVICE_DELETED", device=ID)
    await until(lambda: not engine._going_back)
    assert peer.asked[-1] == ("blockdev-del", {"node-name": ID})
    await engine.plug(late_disk())


async def test_a_plugging_that_is_given_up_is_taken_back(
    engine: QemuEngine, peer: MonitorPeer
) -> None:
    peer.silent.add("device_add")
    plugging = asyncio.create_task(engine.plug(late_disk()))
    await until(lambda: peer.asked[-1][0] == "device_add")
    plugging.cancel()
    await asyncio.gather(plugging, return_exceptions=True)
    peer.answer()
    await until(lambda: ("device_del", {"id": ID}) in peer.asked)
    peer.event("DEVICE_DELETED", device=ID)
    await until(lambda: not engine._going_back)


async def test_requests_that_fail_by_the_thousand_are_told_by_the_dozen(tmp_path: Path) -> None:
    engine = engine_at(tmp_path)
    with capture_logs() as told:
        for _ in range(5000):
            engine._take("BLOCK_IO_ERROR", {"node-name": ID, "operation": "write"})
        engine._take("BLOCK_IO_ERROR", {"node-name": "disk-0.21.0"})
    assert [(each["node"], each["count"]) for each in told] == [
        *((ID, 1 << power) for power in range(13)),
        ("disk-0.21.0", 1),
    ]
