"""The steps of the main job, in order. Each says what it does, does it, and returns what it saw."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing
from dataclasses import dataclass, replace

from controlplane.cli import watch
from controlplane.cli.commands.disk import VERIFY_SECONDS
from controlplane.cli.commands.instance import CREATE_SECONDS, Wanted, reach_state
from controlplane.cli.commands.trace import get_trace
from controlplane.cli.commands.vcr import REPLACE_SECONDS
from controlplane.cli.demo import house as houses
from controlplane.cli.demo.guest import Load, run_workload
from controlplane.cli.demo.house import DISK, EXTENT_COUNT, MEMBERS, House
from controlplane.cli.demo.latency import merged_percentile
from controlplane.cli.demo.narrator import Narrator
from controlplane.cli.demo.processes import Processes
from controlplane.cli.demo.result import Replaced, Result
from controlplane.cli.failure import CommandError
from controlplane.cli.plot.making import story_of
from controlplane.cli.plot.story import Story
from controlplane.cli.session import Session
from controlplane.cli.settings import Settings
from controlplane.cli.units import format_bytes, format_rate
from controlplane.cli.waterfall import services
from stairlib.model.errors import StairwellError, UnavailableError
from stairlib.telemetry.tracing import Tracing
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb
from stairwell.vmmd.v1.guest_service_pb2 import Workload, WorkloadKind, WorkloadReport
from stairwell.vmmd.v1.volume_service_pb2 import VerifyReport

INSTANCE = "demo"
# Bytes a second: who looks on has no half minute for what a busy guest would leave.
REPAIR_FLOOR = 64 << 20
# The member that is replaced: target[2], as in the documented files.
SLOT = 2
# Long enough for some thousand commands, short enough for a demo.
BEFORE_SECONDS = 3.0
# In a picture: what comes after is to be seen as well as what was before.
AFTER_SECONDS = 3.0
# Past these a step is stuck: a machine activates its disk in a second or two, and the whole job
# takes under a minute on two cores.
START_SECONDS = 60.0
JOB_SECONDS = 300.0
FILL_QUEUE_DEPTH = 8
LOAD_QUEUE_DEPTH = 4
FILL_SEED = 1
LOAD_SEED = 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the job measured, the spans of the replacement, and its story."""

    result: Result
    trace: replacement_pb.GetReplacementTraceResponse
    # For the picture, if one was wished for.
    story: Story | None = None


async def main_job(
    narrator: Narrator,
    processes: Processes,
    settings: Settings,
    tracing: Tracing,
    fill_bytes: int,
    *,
    draw: bool = False,
) -> Outcome:
    """Starts everything and runs the job; raises a CommandError or StairwellError if it breaks.

    A daemon that has ended meanwhile is the likelier cause, and is what the error names then.
    """
    houses.check_space(processes, fill_bytes)
    narrator.step(f"starting four downstairs, vmmd and the control plane in {processes.folder}")
    house = await houses.build(processes)
    narrator.step(f"all serve; the control plane at {house.controlplane}")
    try:
        async with Session(replace(settings, server=house.controlplane, port=None), tracing) as one:
            return await Job(one, house, narrator, fill_bytes, draw=draw).run()
    except (StairwellError, CommandError, TimeoutError) as error:
        for daemon in processes.ended():
            raise daemon.failed(f"ended in the middle of the job ({error})") from error
        complaints = processes.complaints()
        if complaints:
            narrator.step("what the daemons complained of:")
            for line in complaints:
                narrator.show(f"  {line}")
        if isinstance(error, TimeoutError):
            raise CommandError(
                f"not done after {narrator.elapsed:.0f} s; the last step above never ended",
                "run it again with --keep and read the logs",
            ) from None
        raise


class Job:
    """The main job against a running installation."""

    def __init__(
        self, session: Session, house: House, narrator: Narrator, fill_bytes: int, *, draw: bool
    ) -> None:
        self._session = session
        self._house = house
        self._narrator = narrator
        self._fill_bytes = fill_bytes
        self._draw = draw

    async def run(self) -> Outcome:
        """All steps; the figures say whether they prove what they should.

        Raises TimeoutError when a step takes so long that it can only be stuck.
        """
        async with asyncio.timeout(START_SECONDS):
            await self._start_machine()
        async with asyncio.timeout(JOB_SECONDS):
            return await self._job()

    async def _job(self) -> Outcome:
        """What comes after the machine runs."""
        fill = await self._fill()
        load = Load(self._session, INSTANCE, seed=LOAD_SEED, queue_depth=LOAD_QUEUE_DEPTH)
        async with load:
            self._narrator.step("a mixed load that checks what it reads now runs until stopped")
            before = await load.run_for(BEFORE_SECONDS)
            first = len(load.reports)
            replacement = await self._replace(load)
            await load.run_for(0)
            during = load.reports[first:]
            if self._draw:
                await load.run_for(AFTER_SECONDS)
            mixed = await load.stop()
        self._narrator.step(
            f"load stopped: {mixed.ios} commands, {format_bytes(mixed.bytes_written)} written"
        )
        compared = await self._compare()
        trace = await get_trace(self._session, replacement.id)
        story = None
        if self._draw:
            story = await story_of(self._session, replacement, AFTER_SECONDS)
        back = await self._read_back()
        workloads = (fill, mixed, back)
        result = Result(
            bytes_written=fill.bytes_written + mixed.bytes_written,
            guest_ios=sum(one.ios for one in workloads),
            guest_errors=sum(one.errors + one.mismatches for one in workloads),
            replaced=Replaced(replacement.slot, replacement.old_target, replacement.new_target),
            repair_bytes=replacement.bytes_copied,
            repair_seconds=watch.repair_seconds(replacement),
            replicas_equal=all_equal(compared),
            read_back_equal=all_right(back, fill),
            trace_id=trace.trace_id,
            trace_services=tuple(services(trace.spans)),
            guest_p99_before_ms=merged_percentile(before),
            guest_p99_during_ms=merged_percentile(during),
        )
        return Outcome(result, trace, story)

    async def _start_machine(self) -> None:
        session = self._session
        await session.call(
            session.instances.CreateInstance,
            instance_pb.CreateInstanceRequest(
                name=INSTANCE, disks=[self._house.disk()], request_id=str(uuid.uuid4())
            ),
            instance_pb.CreateInstanceResponse,
            seconds=CREATE_SECONDS,
        )
        queued = await session.call(
            session.instances.SetInstanceState,
            instance_pb.SetInstanceStateRequest(
                name=INSTANCE, state=instance_pb.RequestedState.REQUESTED_STATE_RUN
            ),
            instance_pb.SetInstanceStateResponse,
        )
        await reach_state(session, Wanted.RUN, queued.instance)
        members = ", ".join(self._house.members)
        self._narrator.step(f"machine {INSTANCE!r} runs; its disk {DISK} is kept on {members}")

    async def _fill(self) -> WorkloadReport:
        wanted = format_bytes(self._fill_bytes)
        workload = Workload(
            kind=WorkloadKind.WORKLOAD_KIND_FILL,
            disk=DISK,
            bytes=self._fill_bytes,
            queue_depth=FILL_QUEUE_DEPTH,
            seed=FILL_SEED,
        )
        with self._narrator.progress() as show:
            report = await run_workload(
                self._session,
                INSTANCE,
                workload,
                lambda one: show(f"fill  {format_bytes(one.bytes_written)} of {wanted}", None),
            )
        rate = format_rate(report.bytes_written / max(report.elapsed_seconds, 1e-9))
        self._narrator.step(
            f"the guest wrote {format_bytes(report.bytes_written)} over the whole disk ({rate})"
        )
        return report

    async def _replace(self, load: Load) -> replacement_pb.Replacement:
        """Asks for the replacement and follows it to its end, with an eye on the load."""
        session = self._session
        await session.call(
            session.replacements.SetRepairLimits,
            replacement_pb.SetRepairLimitsRequest(disk=DISK, bytes_per_second_min=REPAIR_FLOOR),
            replacement_pb.SetRepairLimitsResponse,
        )
        answer = await session.call(
            session.disks.ReplaceVcr,
            disk_pb.ReplaceVcrRequest(
                name=DISK,
                vcr=self._house.replacement(SLOT),
                request_id=str(uuid.uuid4()),
            ),
            disk_pb.ReplaceVcrResponse,
            seconds=REPLACE_SECONDS,
        )
        self._narrator.step(
            f"replacing slot {answer.slot}: {answer.old_target} -> {answer.new_target}"
        )
        last = replacement_pb.Replacement()
        updates = session.watch(
            session.replacements.WatchReplacement,
            replacement_pb.WatchReplacementRequest(id=answer.replacement_id),
            replacement_pb.WatchReplacementResponse,
            until=lambda update: watch.has_ended(update.replacement),
            on_away=self._on_away,
        )
        with self._narrator.progress() as show:
            async with aclosing(updates) as messages:
                async for update in messages:
                    last = update.replacement
                    guest = f"guest p99 {load.last.p99_milliseconds:.1f} ms"
                    show(f"{watch.live_line(last)}  {guest}", watch.phase_of(last))
                    load.check()
        if last.state != replacement_pb.ReplacementState.REPLACEMENT_STATE_DONE:
            raise CommandError(f"the replacement failed: {last.last_error}")
        self._narrator.step(watch.closing_lines(last)[0])
        return last

    def _on_away(self, error: UnavailableError) -> None:
        """A watch broke off: worth waiting for only while the control plane's process lives."""
        if self._house.processes.ended():
            raise error
        self._narrator.step(error.message)

    async def _compare(self) -> VerifyReport:
        session = self._session
        response = await session.call(
            session.disks.VerifyDisk,
            disk_pb.VerifyDiskRequest(name=DISK, read_data=True),
            disk_pb.VerifyDiskResponse,
            seconds=VERIFY_SECONDS,
        )
        report = response.report
        verdict = "agree" if all_equal(report) else "DIFFER"
        self._narrator.step(
            f"{report.members_compared} replicas {verdict} in {report.extents_compared} extents; "
            f"{report.blocks_read} stored blocks read, {report.bad_blocks} bad"
        )
        return report

    async def _read_back(self) -> WorkloadReport:
        """Kills all members but the new one, and has the guest read everything it ever wrote."""
        self._house.lose_members()
        self._narrator.step(
            f"killed {', '.join(self._house.members)}; only {self._house.spare} is left"
        )
        workload = Workload(
            kind=WorkloadKind.WORKLOAD_KIND_READ_BACK, disk=DISK, queue_depth=FILL_QUEUE_DEPTH
        )
        with self._narrator.progress() as show:
            report = await run_workload(
                self._session,
                INSTANCE,
                workload,
                lambda one: show(f"read back  {format_bytes(one.bytes_read)}", None),
            )
        self._narrator.step(
            f"read back {format_bytes(report.bytes_read)} from the new member alone: "
            f"{report.mismatches} wrong, {report.errors} failed"
            + (f" ({report.first_error})" if report.first_error else "")
        )
        return report


def all_equal(report: VerifyReport) -> bool:
    """Whether the comparison covered every extent of all members and found nothing wrong."""
    complete = report.members_compared == MEMBERS and report.extents_compared == EXTENT_COUNT
    return report.equal and complete and report.blocks_read > 0 and not report.bad_blocks


def all_right(back: WorkloadReport, fill: WorkloadReport) -> bool:
    """Whether at least all that the fill wrote was read back, and all of it right."""
    whole = back.finished and back.bytes_read >= fill.bytes_written > 0
    return whole and not back.mismatches and not back.errors
