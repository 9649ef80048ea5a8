"""One member's process as the monitor keeps it: real tasks, made-up processes."""

import asyncio
import signal
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from downstaird.dsc import monitor as monitor_module
from downstaird.dsc.core.layout import MemberPlan
from downstaird.dsc.core.member import CloseAsked, RestartSet, StartAsked, State, StopAsked
from downstaird.dsc.monitor import Monitor
from stairlib.model.errors import UnavailableError

PLAN = MemberPlan(0, 8810, UUID(int=1), "/nowhere/8810", "/nowhere/downstairs-8810.txt")
DEADLINE = 5


class MadeUpProcess:
    """Ends by SIGKILL always, by SIGTERM with status 0 if it heeds it."""

    def __init__(self, pid: int, heeds: bool) -> None:
        self.pid = pid
        self.heeds = heeds
        self.signals: list[int] = []
        self._ended = asyncio.get_running_loop().create_future()

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        if self._ended.done():
            raise ProcessLookupError
        self.signals.append(number)
        if number == signal.SIGKILL:
            self.end(-number)
        elif self.heeds:
            self.end(0)

    def end(self, status: int) -> None:
        if not self._ended.done():
            self._ended.set_result(status)


class MadeUpLauncher:
    def __init__(self) -> None:
        self.processes: list[MadeUpProcess] = []
        self.serves = asyncio.Event()
        self.serves.set()
        self.may_spawn = asyncio.Event()
        self.may_spawn.set()
        self.spawned = asyncio.Event()
        self.fails = False
        self.heeds = True

    async def spawn(self, plan: MemberPlan) -> Any:
        await self.may_spawn.wait()
        if self.fails:
            raise UnavailableError("cannot run it")
        self.processes.append(MadeUpProcess(100 + len(self.processes), self.heeds))
        self.spawned.set()
        return self.processes[-1]

    async def serving(self, plan: MemberPlan) -> None:
        await self.serves.wait()


class Watched:
    """A monitor, its launcher, and the states it reported."""

    def __init__(self) -> None:
        self.launcher = MadeUpLauncher()
        self.states: list[State] = []
        launcher: Any = self.launcher
        self.monitor = Monitor(PLAN, launcher, lambda each: self.states.append(each.state))

    async def until(self, wanted: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            await self.monitor.until(lambda _: wanted())

    async def reach(self, state: State) -> None:
        await self.until(lambda: self.monitor.state is state)


@pytest.fixture
def watched() -> Watched:
    return Watched()


async def test_a_quiet_life(watched: Watched) -> None:
    watched.monitor.handle(StartAsked())
    await watched.reach(State.RUNNING)
    assert watched.monitor.pid == 100
    watched.monitor.handle(StopAsked(graceful=True))
    await watched.reach(State.STOPPED)
    assert watched.monitor.pid is None
    assert watched.states == [State.STARTING, State.RUNNING, State.STOPPING, State.STOPPED]
    assert watched.launcher.processes[0].signals == [signal.SIGTERM]
    await watched.monitor.close()


async def test_one_that_cannot_be_reached_from_here_goes_on_starting(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def serving(_plan: MemberPlan) -> None:
        asked.set()
        raise UnavailableError("its certificate is for another host", reason="TLS_NAME")

    monkeypatch.setattr(watched.launcher, "serving", serving)
    watched.monitor.handle(StartAsked())
    async with asyncio.timeout(DEADLINE):
        await asked.wait()
    assert watched.monitor.state is State.STARTING
    watched.launcher.processes[0].end(0)
    await watched.until(lambda: watched.monitor.state is not State.STARTING)
    await watched.monitor.close()


async def test_it_runs_only_when_it_answers(watched: Watched) -> None:
    watched.launcher.serves.clear()
    watched.monitor.handle(StartAsked())
    await watched.until(lambda: watched.monitor.state is State.STARTING)
    watched.launcher.serves.set()
    await watched.reach(State.RUNNING)
    watched.launcher.processes[0].end(3)
    await watched.reach(State.FAILED)
    await watched.monitor.close()


async def test_a_killed_member_comes_back_with_restarts_on(watched: Watched) -> None:
    watched.monitor.handle(RestartSet(enabled=True))
    await watched.reach(State.RUNNING)
    watched.launcher.processes[0].end(-9)
    await watched.until(lambda: len(watched.launcher.processes) == 2)
    await watched.reach(State.RUNNING)
    assert watched.monitor.pid == 101
    watched.monitor.handle(CloseAsked())
    await watched.reach(State.STOPPED)
    await watched.monitor.close()


async def test_one_that_dies_before_it_answers_is_tried_again_later(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_module, "RETRY_SECONDS", 0.01)
    watched.launcher.serves.clear()
    watched.monitor.handle(RestartSet(enabled=True))
    async with asyncio.timeout(DEADLINE):
        await watched.launcher.spawned.wait()
    watched.launcher.processes[0].end(-9)
    await watched.reach(State.EXIT)
    watched.launcher.serves.set()
    await watched.reach(State.RUNNING)
    assert len(watched.launcher.processes) == 2
    watched.monitor.handle(CloseAsked())
    await watched.reach(State.STOPPED)
    await watched.monitor.close()


async def test_sigterm_not_heeded_becomes_sigkill(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_module, "STOP_GRACE_SECONDS", 0.01)
    watched.launcher.heeds = False
    watched.monitor.handle(StartAsked())
    await watched.reach(State.RUNNING)
    watched.monitor.handle(CloseAsked())
    await watched.reach(State.EXIT)
    assert watched.launcher.processes[0].signals == [signal.SIGTERM, signal.SIGKILL]
    await watched.monitor.close()


async def test_a_stop_that_comes_before_the_process_is_kept_for_it(watched: Watched) -> None:
    watched.launcher.may_spawn.clear()
    watched.monitor.handle(StartAsked())
    watched.monitor.handle(StopAsked(graceful=False))
    watched.launcher.may_spawn.set()
    await watched.reach(State.EXIT)
    assert watched.launcher.processes[0].signals == [signal.SIGKILL]
    await watched.monitor.close()


async def test_a_process_that_cannot_be_made(watched: Watched) -> None:
    watched.launcher.fails = True
    watched.monitor.handle(StartAsked())
    await watched.reach(State.FAILED)
    assert watched.monitor.pid is None
    await watched.monitor.close()
