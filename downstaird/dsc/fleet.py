"""All members together: commands to some or all of them, random stops, and the end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from downstaird.dsc.core.layout import MemberPlan
from downstaird.dsc.core.member import (
    DOWN,
    CloseAsked,
    Event,
    RestartSet,
    StartAsked,
    State,
    StopAsked,
)
from downstaird.dsc.core.random_stop import RandomStop, pick
from downstaird.dsc.monitor import Monitor, Report
from downstaird.launching import Launcher, tail
from stairlib.model.errors import (
    FieldViolation,
    InvalidRequestError,
    StairwellError,
    StateError,
    UnavailableError,
)
from stairlib.model.geometry import Geometry
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.rpc.tls import reach
from stairlib.telemetry.logs import get_logger
from stairwell.downstairs.v1 import region_service_pb2 as region_pb
from stairwell.downstairs.v1 import region_service_pb2_grpc as region_grpc

_log = get_logger(__name__)

# From spawn to serving: a second or two, far more on a machine that is busy with other things.
START_SECONDS = 30.0
CALL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class RegionFacts:
    """What a running member says of its region."""

    id: str
    geometry: Geometry


class Fleet:
    """The members of one dsc. Commands are taken once `start` has seen all of them run."""

    def __init__(self, plans: Sequence[MemberPlan], launcher: Launcher, report: Report) -> None:
        self.launcher = launcher
        self.monitors = tuple(Monitor(plan, launcher, report) for plan in plans)
        self.random_stop = RandomStop()
        self.facts: tuple[RegionFacts, ...] = ()
        self._chance = random.Random()
        self._random_changed = asyncio.Event()
        self._random_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start every member and wait until all serve; StairwellError says which does not."""
        for monitor in self.monitors:
            monitor.handle(StartAsked())
        await asyncio.gather(*(self._started(monitor) for monitor in self.monitors))
        self.facts = tuple(await asyncio.gather(*(self._facts(m) for m in self.monitors)))
        self._random_task = asyncio.get_running_loop().create_task(self._stop_at_random())

    async def close(self) -> None:
        """Stop every member gracefully, wait for all of them to end."""
        if self._random_task is not None:
            self._random_task.cancel()
            await asyncio.gather(self._random_task, return_exceptions=True)
        for monitor in self.monitors:
            monitor.handle(CloseAsked())
        for monitor in self.monitors:
            await monitor.until(lambda member: member.state in DOWN)
            await monitor.close()

    def one(self, cid: int) -> Monitor:
        """The member numbered `cid`; InvalidRequestError when there is none."""
        if cid >= len(self.monitors):
            text = f"there is no member {cid}; they are numbered 0 to {len(self.monitors) - 1}"
            raise InvalidRequestError(text, (FieldViolation("members.cid", text, "NO_MEMBER"),))
        return self.monitors[cid]

    def any_running(self) -> Monitor:
        """A running member at random; StateError when none runs."""
        cid = pick(self._running(), self._chance.random())
        if cid is None:
            raise StateError("no member is running, so none can be chosen", reason="NONE_RUNNING")
        return self.monitors[cid]

    def start_members(self, monitors: Sequence[Monitor]) -> None:
        """Start those that are down."""
        self._command(monitors, StartAsked())

    def stop_members(self, monitors: Sequence[Monitor], *, graceful: bool) -> None:
        """Stop those that are up."""
        self._command(monitors, StopAsked(graceful))

    def set_restart(self, monitors: Sequence[Monitor], *, enabled: bool) -> None:
        """Turn restarts on or off; on starts those that are down."""
        self._command(monitors, RestartSet(enabled))

    def set_random_stop(self, policy: RandomStop) -> None:
        """Change random stops; a wait under way begins anew."""
        self._require_ready()
        self.random_stop = policy
        self._random_changed.set()

    def region_geometry(self) -> Geometry:
        """The geometry of the first member's region; StateError before the start is through."""
        self._require_ready()
        return self.facts[0].geometry

    def _command(self, monitors: Sequence[Monitor], event: Event) -> None:
        self._require_ready()
        for monitor in monitors:
            monitor.handle(event)

    def _require_ready(self) -> None:
        if not self.facts:
            raise StateError(
                "the members are still starting; ask again when all of them run",
                reason="NOT_READY",
            )

    def _running(self) -> list[int]:
        return [m.plan.cid for m in self.monitors if m.state is State.RUNNING]

    async def _started(self, monitor: Monitor) -> None:
        where = f"downstairs {monitor.plan.cid} on port {monitor.plan.port}"
        try:
            async with asyncio.timeout(START_SECONDS):
                member = await monitor.until(lambda m: m.state is not State.STARTING)
        except TimeoutError:
            text = f"{where} does not answer after {START_SECONDS:.0f} s{tail(monitor.plan)}"
            raise UnavailableError(text, reason="START_TIMEOUT") from None
        if member.state is not State.RUNNING:
            text = f"{where} ended instead of serving ({member.state.value}){tail(monitor.plan)}"
            raise StairwellError(text, reason="START_FAILED")

    async def _facts(self, monitor: Monitor) -> RegionFacts:
        address = self.launcher.address(monitor.plan)
        tls = self.launcher.tls
        peer = await reach(address, tls) if tls is not None else None
        async with open_channel(address, tls=peer) as channel:
            stub = region_grpc.RegionServiceStub(channel)
            with translated(f"the downstairs at {address}"):
                reply = await stub.GetRegion(region_pb.GetRegionRequest(), timeout=CALL_SECONDS)
        shape = reply.region.geometry
        geometry = Geometry(shape.block_size, shape.extent_size, shape.extent_count)
        return RegionFacts(reply.region.id, geometry)

    async def _stop_at_random(self) -> None:
        while True:
            self._random_changed.clear()
            policy = self.random_stop
            delay = policy.delay(self._chance.random()) if policy.enabled else None
            if await _set_within(self._random_changed, delay):
                continue
            cid = pick(self._running(), self._chance.random())
            if cid is not None:
                _log.info("stops a member at random", cid=cid)
                self.monitors[cid].handle(StopAsked(graceful=False))


async def _set_within(event: asyncio.Event, seconds: float | None) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def differing(facts: Sequence[RegionFacts]) -> list[int]:
    """The members whose geometry is not that of the first."""
    return [cid for cid, each in enumerate(facts) if each.geometry != facts[0].geometry]
