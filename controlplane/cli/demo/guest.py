"""The built-in guest's workloads, run through the control plane and followed by their reports."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import aclosing
from types import TracebackType
from typing import Self

from controlplane.cli.demo.house import DISK
from controlplane.cli.failure import CommandError
from controlplane.cli.session import Session
from stairwell.controlplane.v1 import instance_service_pb2 as pb
from stairwell.vmmd.v1.guest_service_pb2 import Workload, WorkloadKind, WorkloadReport


async def run_workload(
    session: Session,
    instance: str,
    workload: Workload,
    on_report: Callable[[WorkloadReport], None],
) -> WorkloadReport:
    """Runs a workload to its end and returns its last report; one that breaks off raises."""
    request = pb.RunGuestWorkloadRequest(name=instance, workload=workload)
    last = WorkloadReport()
    stream = session.stream(
        session.instances.RunGuestWorkload, request, pb.RunGuestWorkloadResponse
    )
    async with aclosing(stream) as messages:
        async for message in messages:
            last = message.report
            on_report(last)
    if not last.finished:
        word = WorkloadKind.Name(workload.kind)
        raise CommandError(f"the guest's workload {word} ended without a final report")
    return last


class Load:
    """A mixed, self-checking load in the background, from entering to `stop`.

    `reports` grows while it runs: slices of it belong to phases of the demo.
    """

    def __init__(self, session: Session, instance: str, *, seed: int, queue_depth: int) -> None:
        self.reports: list[WorkloadReport] = []
        self._session = session
        self._instance = instance
        self._workload = Workload(
            kind=WorkloadKind.WORKLOAD_KIND_MIXED, disk=DISK, seed=seed, queue_depth=queue_depth
        )
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[WorkloadReport] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(
            run_workload(self._session, self._instance, self._workload, self._take), name="load"
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._cancel()

    @property
    def last(self) -> WorkloadReport:
        """The latest report: totals since the load began."""
        return self.reports[-1] if self.reports else WorkloadReport()

    async def run_for(self, seconds: float) -> list[WorkloadReport]:
        """Lets the load run that long; returns the reports that came meanwhile, at least one."""
        first = len(self.reports)
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 and len(self.reports) > first:
                return self.reports[first:]
            await self._next(max(left, 0.0) or None)

    async def _next(self, seconds: float | None) -> None:
        """Waits for a report or that long; a load that has ended raises why."""
        assert self._task is not None
        self._arrived.clear()
        arrival = asyncio.create_task(self._arrived.wait())
        try:
            await asyncio.wait(
                {arrival, self._task}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            arrival.cancel()
        self.check()

    def check(self) -> None:
        """Raises what ended the load, if anything has: it is meant to run until stopped."""
        assert self._task is not None
        if not self._task.done():
            return
        self._task.result()
        raise CommandError("the guest's load ended by itself, before it was told to")

    async def stop(self) -> WorkloadReport:
        """Hangs up, which ends the load, and returns its last report."""
        self.check()
        await self._cancel()
        return self.last

    async def _cancel(self) -> None:
        if self._task is None:
            return
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self._task

    def _take(self, report: WorkloadReport) -> None:
        self.reports.append(report)
        self._arrived.set()
