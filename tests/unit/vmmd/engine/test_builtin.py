"""The engine without a processor: what it refuses, and the order of a reset and of the end."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from stairlib.model.errors import UnsupportedError
from tests.unit.vmmd.guest.machine import PATH, MoodyBackend
from vmmd.core.guest_events import GuestEvent
from vmmd.core.pci_path import PciPath
from vmmd.engine import builtin
from vmmd.engine.builtin import BuiltInEngine
from vmmd.engine.core.hypervisor import DiskDevice
from vmmd.engine.engine import EngineDisk
from vmmd.guest import nvme_driver
from vmmd.machine.console import Console


def engine_on(backend: MoodyBackend) -> BuiltInEngine:
    disk = EngineDisk(
        "block2", DiskDevice.NVME, PciPath.parse(PATH), backend, "", "", "", UUID(int=5)
    )
    return BuiltInEngine(64, [disk], {PATH: "block2"}, Console())


async def held(backend: MoodyBackend, engine: BuiltInEngine) -> asyncio.Task[bool]:
    """A write that is at the backend and stays there; whether it failed."""

    async def write() -> bool:
        return bool((await engine.guest.disk("block2").write(0, 1)).error)

    backend.holding = True
    writing = asyncio.create_task(write())
    for _turn in range(100):
        await asyncio.sleep(0)
    assert backend.held
    return writing


def test_a_disk_that_cannot_be_plugged_is_refused_before_it_is_opened() -> None:
    engine = BuiltInEngine(64, [], {}, Console())
    with pytest.raises(UnsupportedError, match=r"'late'.*engine = \"qemu\""):
        engine.require_plugging("late")


async def test_a_panic_is_told_and_the_guest_goes_on() -> None:
    console = Console()
    engine = BuiltInEngine(64, [], {}, console)
    told: list[tuple[GuestEvent, str]] = []
    engine.on_event = lambda event, reason: told.append((event, reason))
    await engine.start()
    await console.type(b"panicked\rpani\rdo not panic\r")
    assert not told
    await console.type(b"panic\r")
    assert told == [(GuestEvent.PANICKED, "the guest's kernel panicked")]
    assert engine.panic_port.host_handled == 1
    assert b"panic\r\n" in console.history.read_from(0).data
    await engine.halt()


async def test_a_reset_waits_for_what_is_in_flight_and_then_all_works() -> None:
    backend = MoodyBackend(4096, 64)
    engine = engine_on(backend)
    await engine.start()
    writing = await held(backend, engine)
    resetting = asyncio.create_task(engine.reset())
    assert await writing, "the guest hears at once that its machine is reset"
    for _turn in range(50):
        await asyncio.sleep(0)
    assert not resetting.done()
    backend.let_go()
    await asyncio.wait_for(resetting, 10)
    # With the power-on state the driver began anew.
    assert not (await engine.guest.disk("block2").write(0, 1)).error
    await engine.halt()


async def test_the_end_does_not_wait_for_a_disk_that_is_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(builtin, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(nvme_driver, "_READY_SECONDS", 0.05)
    backend = MoodyBackend(4096, 64)
    engine = engine_on(backend)
    await engine.start()
    writing = await held(backend, engine)
    await asyncio.wait_for(engine.halt(), 10)
    assert await writing
    # What comes late is nobody's.
    backend.let_go()
