"""What carries out the requests of one machine: one task, one request at a time.

    queue ──pop──> run      publish STARTING, start the parts, publish RUNNING
                   stop     publish STOPPING, halt the parts, publish STOPPED, DESTROYED: the end
                   reboot   publish REBOOTING, reset the parts, publish RUNNING
                   replace  done at once, in whatever state the machine is before its end

    guest    powered off: as a stop; reset itself: publish REBOOTING, RUNNING; panicked: publish
             RUNNING with the reason; its hypervisor died: publish FAILED. News come before requests

Starting may take for ever (a volume waits for its third member), and so may a reset (a disk does
not answer). While they do, the queue is served: a replacement can unblock them, a stop cancels
them. Whatever still waits at the end is answered.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol, TypeAlias

from stairlib.model.errors import StairwellError, StateError
from stairlib.telemetry.logs import get_logger
from vmmd.core.guest_events import GuestEvent
from vmmd.core.lifecycle import ENDED, MachineState, Published
from vmmd.core.request_queue import (
    Decision,
    QueuedEvent,
    QueuedRequest,
    RequestKind,
    RequestQueue,
)

log = get_logger(__name__)


class Parts(Protocol):
    """The machine's devices and volumes, as far as its life is concerned."""

    async def start(self) -> None:
        """Activates volumes, starts devices. May be cancelled at any point."""
        ...

    async def reset(self) -> None:
        """Pauses, resets and resumes the devices; volumes stay as they are. May be cancelled at
        any point."""
        ...

    async def halt(self) -> None:
        """Pauses and halts the devices, deactivates the volumes. Always ends."""
        ...


Perform: TypeAlias = Callable[[], Coroutine[Any, Any, Any]]


class Replacement:
    """A replacement that waits for its turn: `perform` does it, `answer` is what the caller
    awaits. It runs in the caller's context, and so in its trace."""

    def __init__(self, perform: Perform) -> None:
        self.perform = perform
        self.context = contextvars.copy_context()
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()


class Driver:
    """The life of one machine. `history` holds every published state."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._queue = RequestQueue()
        self._wake = asyncio.Event()
        # A start or a reset that is under way.
        self._working: tuple[RequestKind, asyncio.Task[None]] | None = None
        self.history: list[Published] = [Published()]
        self.changed = asyncio.Condition()

    @property
    def published(self) -> Published:
        """The latest state."""
        return self.history[-1]

    @property
    def ended(self) -> bool:
        """Whether nothing more will be published."""
        return self.published.state in ENDED

    def request(self, kind: RequestKind) -> None:
        """Queues a state change; StateError when it cannot be."""
        if self._queue.submit(kind) is Decision.QUEUE:
            self._wake.set()

    def guest_event(self, event: GuestEvent, reason: str) -> None:
        """Takes news of the guest."""
        if self._queue.tell(event, reason):
            self._wake.set()

    async def replace(self, perform: Perform) -> Any:
        """Queues a replacement and returns what it answered; StateError when the machine has
        ended."""
        replacement = Replacement(perform)
        self._queue.submit(RequestKind.REPLACE, replacement)
        self._wake.set()
        return await replacement.answer

    async def watch(self) -> AsyncIterator[Published]:
        """The present state, then each later one, until the end."""
        seen = self.published.generation - 1
        while True:
            # More may be published while one is being handed out, so look again before ending.
            while seen < self.published.generation:
                published = next(p for p in self.history if p.generation > seen)
                seen = published.generation
                yield published
            if self.ended:
                return
            async with self.changed:
                while self.published.generation <= seen:
                    await self.changed.wait()

    async def run(self) -> None:
        """Serves the queue until the machine has ended."""
        try:
            while not self.ended:
                await self._once()
        except Exception as error:
            # A mistake of ours; those who watch must hear of it, or they would wait for ever.
            log.exception("machine driver failed")
            await self._append(
                Published(MachineState.FAILED, self.published.generation + 1, repr(error))
            )
        finally:
            self._answer_the_rest()

    async def _once(self) -> None:
        news = self._queue.pop_event()
        if news is not None:
            await self._hear(news)
            return
        request = self._queue.pop()
        if request is not None:
            await self._do(request)
            return
        waiting: set[asyncio.Task[object]] = {asyncio.create_task(self._woken())}
        working = self._working
        watched = waiting | ({working[1]} if working is not None else set())
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        if working is not None and working[1].done() and self._working is working:
            await self._worked(*working)

    async def _woken(self) -> object:
        await self._wake.wait()
        self._wake.clear()
        return None

    async def _do(self, request: QueuedRequest) -> None:
        if request.kind is RequestKind.RUN:
            await self._publish(MachineState.STARTING)
            self._working = (request.kind, asyncio.create_task(self._parts.start()))
        elif request.kind is RequestKind.STOP:
            await self._end()
        elif request.kind is RequestKind.REBOOT:
            await self._publish(MachineState.REBOOTING)
            self._working = (request.kind, asyncio.create_task(self._parts.reset()))
        else:
            assert isinstance(request.token, Replacement)
            await _perform(request.token)
            self._queue.completed(request.kind)

    async def _worked(self, kind: RequestKind, task: asyncio.Task[None]) -> None:
        """A start or a reset is over."""
        self._working = None
        error = task.exception()
        if error is None:
            self._queue.completed(kind)
            await self._publish(MachineState.RUNNING)
            return
        reason = error.message if isinstance(error, StairwellError) else repr(error)
        log.error("machine failed", doing=kind.value, reason=reason, exc_info=error)
        self._queue.completed(kind, failed=True)
        await self._parts.halt()
        await self._publish(MachineState.FAILED, reason)

    async def _hear(self, news: QueuedEvent) -> None:
        """What the guest did by itself."""
        log.info("news of the guest", news=news.event.value, reason=news.reason)
        if news.event is GuestEvent.RESET:
            # One that was asked for is published by who asked.
            if self._working is None:
                # What led to it is kept: the panic itself was there for an instant.
                before = self.published.reason
                reason = f"{before}; {news.reason}" if before else news.reason
                await self._publish(MachineState.REBOOTING, reason)
                await self._publish(MachineState.RUNNING, before)
        elif news.event is GuestEvent.PANICKED:
            if self._working is None:
                await self._publish(MachineState.RUNNING, news.reason)
        elif news.event is GuestEvent.POWERED_OFF:
            self._queue.ended_by_itself(failed=False)
            await self._end(news.reason)
        else:
            self._queue.ended_by_itself(failed=True)
            await self._abandon_work()
            await self._parts.halt()
            await self._publish(MachineState.FAILED, news.reason, process_died=True)

    async def _abandon_work(self) -> None:
        if self._working is not None:
            task = self._working[1]
            self._working = None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _end(self, reason: str = "") -> None:
        """From whatever it does to its end."""
        await self._abandon_work()
        if self.published.state is not MachineState.STARTING:
            await self._publish(MachineState.STOPPING, reason)
        await self._parts.halt()
        self._queue.completed(RequestKind.STOP)
        await self._publish(MachineState.STOPPED, reason)
        await self._publish(MachineState.DESTROYED, reason)

    async def _publish(
        self, state: MachineState, reason: str = "", *, process_died: bool = False
    ) -> None:
        await self._append(self.published.moved(state, reason, process_died=process_died))

    async def _append(self, published: Published) -> None:
        self.history.append(published)
        log.info("machine state", state=published.state.value, generation=published.generation)
        async with self.changed:
            self.changed.notify_all()

    def _answer_the_rest(self) -> None:
        for request in self._queue.drain():
            if isinstance(request.token, Replacement) and not request.token.answer.done():
                request.token.answer.set_exception(
                    StateError("the machine ended before this was done", reason="MACHINE_ENDED")
                )


async def _perform(replacement: Replacement) -> None:
    if replacement.answer.done():
        return
    task = asyncio.create_task(replacement.perform(), context=replacement.context)
    await asyncio.wait({task})
    if replacement.answer.done():
        return
    error = task.exception()
    if error is None:
        replacement.answer.set_result(task.result())
    else:
        replacement.answer.set_exception(error)
