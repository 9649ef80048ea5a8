"""The driver against the emulated controller: identity, I/O, errors, pause, reset, shutdown."""

from __future__ import annotations

import asyncio
import os
from uuid import UUID

import pytest

from tests.unit.vmmd.guest.machine import Machine
from vmmd.block.backend import BlockOp
from vmmd.guest.nvme_driver import NvmeDriver, NvmeError
from vmmd.hw.nvme import bits


def driver(machine: Machine) -> NvmeDriver:
    return machine.guest.disk("").driver


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_identity(machine: Machine) -> None:
    identity = driver(machine).identity
    assert (identity.serial, identity.namespace_uuid) == ("serial-1", UUID(int=5))
    assert (identity.block_size, identity.block_count) == (4096, 4096)
    assert identity.write_cache
    assert identity.can_deallocate


@pytest.mark.parametrize("blocks", [1, 2, 3, 256, 257, 700])
async def test_what_is_written_is_read(machine: Machine, blocks: int) -> None:
    data = os.urandom(blocks * 4096)
    await driver(machine).write(11, data)
    assert await driver(machine).read(11, blocks) == data
    assert machine.backend.memory.content[11 * 4096 : (11 + blocks) * 4096] == data


async def test_512_byte_blocks() -> None:
    machine = Machine(block_size=512)
    disk = await machine.start()
    data = os.urandom(512 * 33)
    await disk.driver.write(5, data)
    assert await disk.driver.read(5, 33) == data
    await machine.guest.stop()


async def test_zeroes_deallocate_and_flush(machine: Machine) -> None:
    nvme = driver(machine)
    await nvme.write(0, b"\xff" * 4096 * 600, fua=True)
    await nvme.write_zeroes(10, 500)
    await nvme.deallocate([(0, 5), (550, 20)])
    await nvme.flush()
    content = machine.backend.memory.content
    assert not any(content[: 5 * 4096])
    assert all(content[5 * 4096 : 10 * 4096])
    assert not any(content[10 * 4096 : 510 * 4096])
    assert not any(content[550 * 4096 : 570 * 4096])
    counters = machine.controller.counters
    assert (counters.flushes, counters.discards) == (1 + 3, 2)


async def test_commands_of_one_turn_arrive_in_one_batch_per_queue(machine: Machine) -> None:
    machine.backend.batches.clear()
    await asyncio.gather(*(driver(machine).read(n, 1) for n in range(32)))
    assert len(machine.backend.batches) <= 4
    assert sum(machine.backend.batches) == 32


async def test_errors_name_what_failed(machine: Machine) -> None:
    with pytest.raises(NvmeError, match="LBA out of range") as caught:
        await driver(machine).read(4096, 1)
    assert caught.value.status == bits.LBA_OUT_OF_RANGE
    machine.backend.failing = {BlockOp.WRITE}
    with pytest.raises(NvmeError, match="write fault"):
        await driver(machine).write(0, bytes(4096))


async def test_a_cancelled_command_keeps_its_slot_until_it_ends(machine: Machine) -> None:
    nvme = driver(machine)
    machine.backend.holding = True
    tasks = [asyncio.create_task(nvme.read(0, 1)) for _ in range(nvme.slots)]
    await turns()
    tasks[0].cancel()
    waiting = asyncio.create_task(nvme.read(1, 1))
    await turns()
    assert not waiting.done()
    assert machine.controller.in_flight == nvme.slots
    machine.backend.let_go()
    await asyncio.wait_for(waiting, 5)
    await asyncio.gather(*tasks[1:])


async def test_pause_waits_for_what_is_in_flight_and_holds_the_rest(machine: Machine) -> None:
    nvme, paused = driver(machine), asyncio.Event()
    machine.backend.holding = True
    first = asyncio.create_task(nvme.write(0, bytes(4096), fua=True))
    await turns()
    machine.controller.pause(paused.set)
    second = asyncio.create_task(nvme.read(1, 1))
    await turns()
    assert not paused.is_set()
    assert machine.controller.in_flight == 1
    machine.backend.let_go()
    await asyncio.wait_for(first, 5)
    assert paused.is_set()
    assert machine.controller.counters.flushes == 1
    assert not second.done()
    machine.controller.resume()
    await asyncio.wait_for(second, 5)


async def test_a_reboot_ends_what_waits_and_the_guest_comes_up_again(machine: Machine) -> None:
    disk = machine.guest.disk("block2")
    assert not (await disk.write(3, 4)).error
    machine.backend.holding = True
    pending = asyncio.create_task(disk.driver.read(0, 1))
    await turns()
    machine.guest.reboot_begun()
    with pytest.raises(NvmeError, match="stopped"):
        await pending
    paused = asyncio.Event()
    machine.controller.pause(paused.set)
    machine.backend.let_go()
    await asyncio.wait_for(paused.wait(), 5)
    machine.topology.reset()
    machine.controller.resume()
    await machine.guest.start()
    assert machine.guest.disk("block2") is disk
    assert not (await disk.read(0, 16)).error


async def test_rebooting_does_not_use_up_the_memory(machine: Machine) -> None:
    for _ in range(8):
        machine.guest.reboot_begun()
        machine.controller.pause(lambda: None)
        machine.topology.reset()
        machine.controller.resume()
        await machine.guest.start()
    assert driver(machine).slots >= 16


async def test_stop_shuts_down_with_a_flush() -> None:
    machine = Machine()
    await machine.start()
    await machine.guest.stop()
    assert machine.controller.counters.flushes == 1


async def test_commands_after_stop_fail_at_once() -> None:
    machine = Machine()
    disk = await machine.start()
    await machine.guest.stop()
    with pytest.raises(NvmeError, match="stopped"):
        await disk.driver.read(0, 1)
