"""Workloads: what they write, find and report."""

from __future__ import annotations

import asyncio

import pytest

from stairlib.model.errors import (
    InvalidRequestError,
    NotFoundError,
    StateError,
    UnavailableError,
)
from tests.unit.vmmd.guest.machine import Machine
from vmmd.block.backend import BlockOp
from vmmd.guest.workload import WorkloadKind, WorkloadReport, WorkloadSpec

MIB = 1 << 20


async def run(machine: Machine, kind: WorkloadKind, **fields) -> WorkloadReport:
    last = WorkloadReport()
    async for report in machine.guest.run_workload(WorkloadSpec(kind, "block2", **fields)):
        assert not last.finished
        last = report
    assert last.finished
    return last


async def test_fill_spreads_over_the_whole_disk(machine: Machine) -> None:
    report = await run(machine, WorkloadKind.FILL, bytes=4 * MIB, io_bytes=MIB // 4)
    assert (report.writes, report.flushes, report.errors) == (16, 1, 0)
    assert report.bytes_written == 4 * MIB
    runs = machine.guest.disk("block2").model.written_runs(4096)
    assert runs == [(n * 256, 64) for n in range(16)]


async def test_fill_of_everything(machine: Machine) -> None:
    report = await run(machine, WorkloadKind.FILL, bytes=16 * MIB)
    assert report.bytes_written == 16 * MIB
    assert machine.guest.disk("block2").model.written_runs(1 << 20) == [(0, 4096)]


async def test_read_back_is_clean_after_mixed_load(machine: Machine) -> None:
    await run(machine, WorkloadKind.FILL, bytes=2 * MIB, io_bytes=MIB // 8)
    mixed = await run(machine, WorkloadKind.MIXED, seconds=0.4, seed=3)
    assert (mixed.errors, mixed.mismatches, mixed.first_error) == (0, 0, "")
    assert min(mixed.reads, mixed.writes, mixed.flushes) > 0
    assert 0 < mixed.p50_milliseconds <= mixed.p99_milliseconds <= mixed.max_milliseconds
    back = await run(machine, WorkloadKind.READ_BACK)
    assert (back.errors, back.mismatches) == (0, 0)
    assert back.bytes_read >= 2 * MIB


async def test_damage_is_found_and_named(machine: Machine) -> None:
    await run(machine, WorkloadKind.FILL, bytes=16 * MIB)
    for block in (5, 1000):
        machine.backend.memory.content[block * 4096 + 17] ^= 1
    report = await run(machine, WorkloadKind.READ_BACK)
    assert (report.mismatches, report.errors) == (2, 0)
    assert "block 5 " in report.first_error


async def test_errors_are_counted_and_the_run_goes_on(machine: Machine) -> None:
    machine.backend.failing = {BlockOp.WRITE}
    report = await run(machine, WorkloadKind.FILL, bytes=4 * MIB)
    assert report.errors == 4
    assert "write fault" in report.first_error
    machine.backend.failing = set()
    assert (await run(machine, WorkloadKind.READ_BACK)).ios == 0


async def test_leaving_early_stops_the_load(machine: Machine) -> None:
    disk = machine.guest.disk("block2")
    reports = machine.guest.run_workload(WorkloadSpec(WorkloadKind.MIXED, "block2"))
    assert not (await anext(reports)).finished
    await reports.aclose()
    assert not disk.model.busy(0, 4096)
    before = machine.controller.counters.reads
    assert not (await disk.read(0, 1)).error
    assert machine.controller.counters.reads == before + 1


@pytest.mark.parametrize("reboot", [False, True])
async def test_a_load_ends_with_its_machine(machine: Machine, reboot: bool) -> None:
    """It must not go on against a driver that answers at once: the loop would never turn again."""
    reports = machine.guest.run_workload(WorkloadSpec(WorkloadKind.MIXED, "block2"))
    assert not (await anext(reports)).finished
    following = asyncio.create_task(anext(reports))
    await asyncio.sleep(0)
    if reboot:
        machine.guest.reboot_begun()
    else:
        await asyncio.wait_for(machine.guest.stop(), 5)
    with pytest.raises(UnavailableError, match="stopped or rebooted"):
        await asyncio.wait_for(following, 5)
    assert not machine.guest.disks["block2"].model.busy(0, 4096)


async def test_two_loads_at_once_agree(machine: Machine) -> None:
    mixed = machine.guest.run_workload(WorkloadSpec(WorkloadKind.MIXED, "block2"))
    await anext(mixed)
    report = await run(machine, WorkloadKind.FILL, bytes=16 * MIB)
    assert report.errors == 0
    last = await anext(mixed)
    await mixed.aclose()
    assert last.mismatches == 0
    assert (await run(machine, WorkloadKind.READ_BACK)).mismatches == 0


async def test_loads_that_share_few_commands_agree() -> None:
    machine = Machine(blocks=64, memory=8 << 20)
    disk = await machine.start()
    depth = disk.driver.slots
    assert depth <= 4
    specs = [
        WorkloadSpec(WorkloadKind.MIXED, "block2", seconds=0.3, seed=seed, queue_depth=depth)
        for seed in range(4)
    ]

    async def last(spec: WorkloadSpec) -> WorkloadReport:
        reports = [report async for report in machine.guest.run_workload(spec)]
        return reports[-1]

    for report in await asyncio.gather(*map(last, specs)):
        assert (report.finished, report.errors, report.mismatches) == (True, 0, 0)
        assert report.writes > 0
    assert (await run(machine, WorkloadKind.READ_BACK)).mismatches == 0
    await machine.guest.stop()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"io_bytes": 1000}, "workload.io_bytes"),
        ({"io_bytes": 2 * MIB}, "workload.io_bytes"),
        ({"queue_depth": 1000}, "workload.queue_depth"),
        ({"seconds": -1.0}, "workload.seconds"),
        ({"bytes": 17 * MIB}, "workload.bytes"),
    ],
)
async def test_bad_workloads(machine: Machine, fields: dict, field: str) -> None:
    spec = WorkloadSpec(WorkloadKind.FILL, "block2", **fields)
    with pytest.raises(InvalidRequestError) as caught:
        machine.guest.run_workload(spec)
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_an_unknown_disk_and_a_stopped_machine(machine: Machine) -> None:
    with pytest.raises(NotFoundError, match="block2"):
        machine.guest.run_workload(WorkloadSpec(WorkloadKind.FILL, "nope"))
    machine.guest.reboot_begun()
    with pytest.raises(StateError):
        machine.guest.run_workload(WorkloadSpec(WorkloadKind.FILL, "block2"))
