"""The driver: what is published, in which order, and that everybody is answered."""

from __future__ import annotations

import asyncio

import pytest

from stairlib.model.errors import StateError, UnavailableError
from vmmd.core.guest_events import GuestEvent
from vmmd.core.lifecycle import MachineState
from vmmd.core.request_queue import RequestKind
from vmmd.machine.driver import Driver


class ScriptedParts:
    """Parts whose start waits until it is let go; records what was called."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.let_go = asyncio.Event()
        self.error: Exception | None = None
        self.reset_hangs = False

    async def start(self) -> None:
        self.calls.append("start")
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.calls.append("start cancelled")
            raise
        if self.error is not None:
            raise self.error

    async def reset(self) -> None:
        self.calls.append("reset")
        if self.reset_hangs:
            await asyncio.Event().wait()

    async def halt(self) -> None:
        self.calls.append("halt")


async def late() -> str:
    return "late"


async def states(driver: Driver) -> list[str]:
    return [published.state.value async for published in driver.watch()]


async def until(driver: Driver, state: MachineState) -> None:
    async with driver.changed:
        await driver.changed.wait_for(lambda: driver.published.state is state)


async def test_a_life_from_creation_to_the_end() -> None:
    parts = ScriptedParts()
    parts.let_go.set()
    driver = Driver(parts)
    run = asyncio.create_task(driver.run())
    seen = asyncio.create_task(states(driver))
    driver.request(RequestKind.RUN)
    await until(driver, MachineState.RUNNING)
    driver.request(RequestKind.REBOOT)
    async with driver.changed:
        await driver.changed.wait_for(lambda: driver.published.generation == 5)
    driver.request(RequestKind.STOP)
    await run
    assert (await seen)[-3:] == ["stopping", "stopped", "destroyed"]
    assert [p.state.value for p in driver.history] == [
        "creating", "starting", "running", "rebooting", "running", "stopping", "stopped",
        "destroyed",
    ]  # fmt: skip
    assert [p.generation for p in driver.history] == list(range(1, 9))
    assert parts.calls == ["start", "reset", "halt"]


async def test_a_stop_ends_a_start_that_hangs() -> None:
    parts = ScriptedParts()
    driver = Driver(parts)
    run = asyncio.create_task(driver.run())
    driver.request(RequestKind.RUN)
    await until(driver, MachineState.STARTING)
    driver.request(RequestKind.STOP)
    await asyncio.wait_for(run, 5)
    assert [p.state.value for p in driver.history] == [
        "creating", "starting", "stopped", "destroyed",
    ]  # fmt: skip
    assert parts.calls == ["start", "start cancelled", "halt"]


async def running(parts: ScriptedParts) -> tuple[Driver, asyncio.Task[None]]:
    parts.let_go.set()
    driver = Driver(parts)
    run = asyncio.create_task(driver.run())
    driver.request(RequestKind.RUN)
    await until(driver, MachineState.RUNNING)
    return driver, run


def told(driver: Driver) -> list[tuple[str, str]]:
    return [(each.state.value, each.reason) for each in driver.history[3:]]


async def test_a_stop_ends_a_reset_that_hangs() -> None:
    parts = ScriptedParts()
    parts.reset_hangs = True
    driver, run = await running(parts)
    driver.request(RequestKind.REBOOT)
    await until(driver, MachineState.REBOOTING)
    driver.request(RequestKind.STOP)
    await asyncio.wait_for(run, 5)
    assert [state for state, _ in told(driver)] == [
        "rebooting", "stopping", "stopped", "destroyed",
    ]  # fmt: skip
    assert parts.calls[-1] == "halt"


async def test_a_guest_that_powers_off_ends_its_machine() -> None:
    driver, run = await running(ScriptedParts())
    driver.guest_event(GuestEvent.POWERED_OFF, "the guest powered off")
    await asyncio.wait_for(run, 5)
    assert told(driver) == [
        (state, "the guest powered off") for state in ("stopping", "stopped", "destroyed")
    ]
    assert not driver.published.process_died


async def test_a_guest_that_resets_itself_or_panics_goes_on() -> None:
    driver, run = await running(ScriptedParts())
    driver.guest_event(GuestEvent.PANICKED, "the guest's kernel panicked")
    driver.guest_event(GuestEvent.RESET, "the guest reset itself")
    async with driver.changed:
        await driver.changed.wait_for(lambda: driver.published.generation == 6)
    driver.request(RequestKind.STOP)
    await run
    assert told(driver)[:3] == [
        ("running", "the guest's kernel panicked"),
        ("rebooting", "the guest's kernel panicked; the guest reset itself"),
        ("running", "the guest's kernel panicked"),
    ]


async def test_a_hypervisor_that_dies_fails_its_machine_and_it_may_be_made_again() -> None:
    parts = ScriptedParts()
    parts.reset_hangs = True
    driver, run = await running(parts)
    driver.request(RequestKind.REBOOT)
    await until(driver, MachineState.REBOOTING)
    waiting = asyncio.create_task(driver.replace(late))
    driver.guest_event(GuestEvent.DIED, "killed")
    await asyncio.wait_for(run, 5)
    assert told(driver)[-1] == ("failed", "killed")
    assert driver.published.process_died
    assert parts.calls[-1] == "halt"
    with pytest.raises(StateError):
        await waiting


async def test_news_after_the_end_are_nothing() -> None:
    driver = Driver(ScriptedParts())
    driver.request(RequestKind.STOP)
    await driver.run()
    before = driver.published
    driver.guest_event(GuestEvent.DIED, "killed")
    assert driver.published is before


async def test_stop_before_start() -> None:
    driver = Driver(ScriptedParts())
    driver.request(RequestKind.STOP)
    await driver.run()
    assert [p.state.value for p in driver.history] == [
        "creating", "stopping", "stopped", "destroyed",
    ]  # fmt: skip


async def test_a_failed_start_says_why() -> None:
    parts = ScriptedParts()
    parts.error = UnavailableError("no member answers")
    parts.let_go.set()
    driver = Driver(parts)
    driver.request(RequestKind.RUN)
    await driver.run()
    assert driver.published.state is MachineState.FAILED
    assert driver.published.reason == "no member answers"
    assert parts.calls == ["start", "halt"]


async def test_a_replacement_is_served_while_the_start_hangs() -> None:
    parts = ScriptedParts()
    driver = Driver(parts)
    run = asyncio.create_task(driver.run())
    driver.request(RequestKind.RUN)
    await until(driver, MachineState.STARTING)

    async def unblock() -> str:
        parts.let_go.set()
        return "started"

    assert await asyncio.wait_for(driver.replace(unblock), 5) == "started"
    await until(driver, MachineState.RUNNING)
    driver.request(RequestKind.STOP)
    await run


async def test_an_error_of_a_replacement_reaches_its_caller_only() -> None:
    driver = Driver(ScriptedParts())
    run = asyncio.create_task(driver.run())

    async def refuse() -> object:
        raise StateError("no such target")

    with pytest.raises(StateError, match="no such target"):
        await driver.replace(refuse)
    driver.request(RequestKind.STOP)
    await run
    with pytest.raises(StateError, match="has stopped"):
        await driver.replace(late)


async def test_whoever_waits_at_the_end_is_answered() -> None:
    driver = Driver(ScriptedParts())
    driver.request(RequestKind.STOP)
    waiting = asyncio.create_task(driver.replace(late))
    await asyncio.sleep(0)
    await driver.run()
    with pytest.raises(StateError, match="ended"):
        await waiting


async def test_a_slow_watcher_still_sees_the_end() -> None:
    """The last states are published in one go, while a watcher is busy with an earlier one."""
    driver = Driver(ScriptedParts())
    driver.request(RequestKind.STOP)
    run: asyncio.Task[None] | None = None
    seen = []
    async for published in driver.watch():
        seen.append(published.state.value)
        if run is None:
            run = asyncio.create_task(driver.run())
        elif published.state is MachineState.STOPPING:
            await run
    assert seen == ["creating", "stopping", "stopped", "destroyed"]


async def test_a_mistake_in_the_driver_itself_is_published() -> None:
    class BrokenParts(ScriptedParts):
        async def halt(self) -> None:
            raise ZeroDivisionError("halting broke")

    driver = Driver(BrokenParts())
    driver.request(RequestKind.STOP)
    await driver.run()
    assert driver.published.state is MachineState.FAILED
    assert "halting broke" in driver.published.reason
    assert (await states(driver))[-1] == "failed"
