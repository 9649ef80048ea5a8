"""One member's process, kept as the member's state machine says.

Invariants: at most one process and one task per member; every end of a process is reported to the
state machine exactly once; a process that does not heed SIGTERM is killed after a stated time.
"""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import Process
from collections.abc import Callable

from downstaird.dsc.core.layout import MemberPlan
from downstaird.dsc.core.member import (
    RETRY_SECONDS,
    Effect,
    Ended,
    Event,
    Kill,
    Member,
    NotSpawned,
    Ready,
    RetryDue,
    RetryLater,
    Spawn,
    State,
    Terminate,
    step,
)
from downstaird.launching import Launcher
from stairlib.model.errors import StairwellError
from stairlib.runtime.limits import STOP_GRACE_SECONDS
from stairlib.telemetry.logs import get_logger

_log = get_logger(__name__)

Report = Callable[["Monitor"], None]


class Monitor:
    """Runs one member; `report` is called after each change of its state."""

    def __init__(self, plan: MemberPlan, launcher: Launcher, report: Report) -> None:
        self.plan = plan
        self.member = Member()
        self._launcher = launcher
        self._report = report
        self._process: Process | None = None
        self._signal_at_birth: signal.Signals | None = None
        self._task: asyncio.Task[None] | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        self._changed = asyncio.Event()

    @property
    def state(self) -> State:
        """Where the member is."""
        return self.member.state

    @property
    def pid(self) -> int | None:
        """Its process, if there is one."""
        return self._process.pid if self._process is not None else None

    def handle(self, event: Event) -> None:
        """Let the state machine see an event, and do what it asks for."""
        before = self.member
        self.member, effects = step(before, event)
        for effect in effects:
            self._perform(effect)
        if self.member.state is not before.state:
            self._report(self)
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, wanted: Callable[[Member], bool]) -> Member:
        """Wait until the member is as wanted."""
        while not wanted(self.member):
            await self._changed.wait()
        return self.member

    async def close(self) -> None:
        """Forget timers and wait for the task of a process that has ended."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._task is not None:
            await self._task

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Spawn():
                self._signal_at_birth = None
                self._task = asyncio.get_running_loop().create_task(self._live())
            case Kill():
                self._signal(signal.SIGKILL)
            case Terminate():
                self._signal(signal.SIGTERM)
                self._later(STOP_GRACE_SECONDS, self._kill_if_same, self._task)
            case RetryLater():
                self._later(RETRY_SECONDS, self.handle, RetryDue())

    async def _live(self) -> None:
        """The life of one process, from spawn to end."""
        try:
            process = await self._launcher.spawn(self.plan)
        except StairwellError as error:
            _log.error("cannot start a downstairs", port=self.plan.port, error=error.message)
            self.handle(NotSpawned())
            return
        self._process = process
        if self._signal_at_birth is not None:
            self._signal(self._signal_at_birth)
        ready = asyncio.get_running_loop().create_task(self._watch_readiness())
        try:
            status = await process.wait()
        finally:
            ready.cancel()
            await asyncio.gather(ready, return_exceptions=True)
        self._process = None
        _log.info("downstairs ended", port=self.plan.port, pid=process.pid, status=status)
        self.handle(Ended(status))

    async def _watch_readiness(self) -> None:
        try:
            await self._launcher.serving(self.plan)
        except StairwellError as error:
            # It may serve others; whoever waits for it here gives up in time.
            _log.error("downstairs not reached", port=self.plan.port, error=error.message)
            return
        self.handle(Ready())

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            self._signal_at_birth = number
            return
        try:
            self._process.send_signal(number)
        except ProcessLookupError:
            _log.debug("signalled a process that had just ended", port=self.plan.port)

    def _kill_if_same(self, task: asyncio.Task[None]) -> None:
        if self._task is task and not task.done():
            _log.warning("did not heed SIGTERM, is killed", port=self.plan.port, pid=self.pid)
            self._signal(signal.SIGKILL)

    def _later(self, seconds: float, call: Callable[..., None], *arguments: object) -> None:
        loop = asyncio.get_running_loop()
        self._timers = {timer for timer in self._timers if timer.when() > loop.time()}
        self._timers.add(loop.call_later(seconds, call, *arguments))
