"""Carries out what is wanted of one region: makes it, keeps its process up, removes it.

Invariants: one task per region does all of this, one thing after another, so a destruction that
races a creation ends the creation first; before a process is started, and before a directory is
removed, any process at work on it that somebody left behind is taken over or ended; what a state
promises of the disk is true before the state is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from uuid import UUID

from downstaird.agent import processes, snapshots
from downstaird.agent.core.region_states import RegionEvent, RegionState
from downstaird.agent.core.snapshot_wishes import PENDING
from downstaird.agent.core.upkeep import ProcessEvent, ProcessState, Upkeep, step
from downstaird.agent.intent_store import OUTPUT, REGIONS, sync_directory
from downstaird.agent.processes import RegionProcess
from downstaird.agent.snapshots import AtRest, Seen, Served, Snapshots
from downstaird.launching import HEALTH_SECONDS, Launcher, tail
from downstaird.regions import is_region
from stairlib.model.errors import StairwellError, UnavailableError
from stairlib.model.state_table import IllegalMoveError
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.rpc.health_check import check
from stairlib.rpc.tls import reach
from stairlib.runtime.limits import STOP_GRACE_SECONDS
from stairlib.telemetry.logs import get_logger
from stairwell.downstairs.v1 import region_service_pb2 as region_pb
from stairwell.downstairs.v1 import region_service_pb2_grpc as region_grpc

_log = get_logger(__name__)

# A starting process holds its turn this long at most: others must come up too.
START_SECONDS = 30.0
# A process that answered once is asked again this often, to tell of one that hangs.
HEALTH_EVERY_SECONDS = 15.0
# What cannot be stored or removed is tried again, first soon and then ever more seldom.
RETRY_SECONDS = 1.0
RETRY_MAX_SECONDS = 30.0
# run -d DIR -p PORT: what a process that an agent started begins with, whatever its options.
_OURS = 5
_GOING = (RegionState.TOMBSTONED, RegionState.DESTROYED)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a region is, in the terms of whatever runs the program (launching.RegionPlan)."""

    port: int
    region_id: UUID
    directory: str
    output: str


@dataclass(slots=True)
class Turns:
    """How many may do the same at once on this host."""

    creations: asyncio.Semaphore
    clones: asyncio.Semaphore
    starts: asyncio.Semaphore


class Ledger(snapshots.Ledger, Protocol):
    """Where the region's record is."""

    async def move(self, region: UUID, event: RegionEvent, reason: str = "") -> None:
        """Store that something happened. StairwellError."""


class Keeper:
    """One region's keeper; `run` is its task."""

    def __init__(
        self, region: UUID, ledger: Ledger, launcher: Launcher, root: Path, turns: Turns
    ) -> None:
        record = ledger.record(region)
        self.id = region
        self.upkeep = Upkeep()
        self.process: RegionProcess | None = None
        self.outdated = False
        self.trouble = ""
        self.last_error = ""
        self._ledger = ledger
        self._launcher = replace(launcher, read_only=record.wanted.read_only)
        self._turns = turns
        self._unwanted = asyncio.Event()
        # There may be something to do about snapshots.
        self._asked = asyncio.Event()
        self._stopping = False
        self.directory = root / REGIONS / str(region)
        self.snapshots = Snapshots(region, ledger, self.directory)
        output = root / OUTPUT / f"{region}.txt"
        self.plan = Plan(record.port, region, str(self.directory), str(output))

    def nudge(self) -> None:
        """Looks at the record again: it may be wanted no more, or a snapshot of it may be."""
        record = self._ledger.record(self.id)
        if record.state in _GOING:
            self._unwanted.set()
        if any(wish.state in PENDING for wish in record.snapshots):
            self._asked.set()

    def stop(self) -> None:
        """Ends the region's process and then the task; what is wanted stays as it is."""
        self._stopping = True
        self._unwanted.set()

    async def run(self) -> None:
        """Until there is nothing more to do for the region. Cancelled, it leaves a region's process
        alone, and ends one that makes the region."""
        while True:
            state = self._ledger.record(self.id).state
            if state is RegionState.TOMBSTONED:
                await self._destroy()
            elif self._stopping or state in (RegionState.DESTROYED, RegionState.FAILED):
                return
            elif state is RegionState.CREATED:
                await self._serve()
            else:
                await self._create()

    # ---- making it

    async def _create(self) -> None:
        wanted = self._ledger.record(self.id).wanted
        turn = self._turns.clones if wanted.source else self._turns.creations
        work = asyncio.get_running_loop().create_task(self._make(turn))
        try:
            if not await self._unless_unwanted(work):
                return
            event, reason = RegionEvent.CREATE_DONE, ""
        except StairwellError as error:
            event, reason = RegionEvent.CREATE_FAILED, error.message
            _log.error("region cannot be made", region=str(self.id), reason=error.message)
            # What it printed stays, and tells more than half a region would.
            try:
                await self._end_others()
                await asyncio.to_thread(_remove, self.directory)
            except OSError as trouble:
                reason += f"; and what there is of it cannot be removed: {trouble.strerror}"
        await self._move(event, reason)

    async def _make(self, turn: asyncio.Semaphore) -> None:
        async with turn:
            await self._move(RegionEvent.CREATE_BEGUN)
            await self._end_others()
            wanted = self._ledger.record(self.id).wanted
            try:
                if wanted.source:
                    # What there is of a copy is gone on with.
                    if not is_region(self.directory):
                        await self._launcher.clone(
                            self.plan,
                            wanted.geometry,
                            encrypted=bool(wanted.cipher),
                            source=wanted.source,
                        )
                else:
                    await asyncio.to_thread(_remove, self.directory)
                    await self._launcher.create(self.plan, wanted.geometry, cipher=wanted.cipher)
                await asyncio.to_thread(sync_directory, self.directory.parent)
            except OSError as error:
                text = f"cannot make room at {self.directory}: {error.strerror}"
                raise StairwellError(text, reason="CREATE_FAILED") from error

    async def _unless_unwanted(self, work: asyncio.Task[None]) -> bool:
        """Lets work go on until it is done, which raises what it raises, or the region is wanted no
        more, which ends it: False."""
        unwanted: asyncio.Task[object] = asyncio.get_running_loop().create_task(
            self._unwanted.wait()
        )
        try:
            await asyncio.wait({work, unwanted}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
                return True
            return False
        finally:
            unwanted.cancel()
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, StairwellError):
                await work

    # ---- keeping it up

    async def _serve(self) -> None:
        self._step(ProcessEvent.WANTED)
        while self.upkeep.state is not ProcessState.NONE:
            await self._one_life()
            if self.upkeep.state is ProcessState.WAITING:
                await self._rest(self.upkeep.pause)
                unwanted = self._unwanted.is_set()
                self._step(ProcessEvent.UNWANTED if unwanted else ProcessEvent.PAUSE_OVER)

    async def _one_life(self) -> None:
        """From a start, or from taking over, to the end of a process."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with contextlib.AsyncExitStack() as turn:
            try:
                self.process = await self._obtain(turn)
            except (StairwellError, OSError) as error:
                self.trouble = self.last_error = str(error)
                self._step(ProcessEvent.ENDED)
                return
            ending = asyncio.ensure_future(self.process.ended())
            watching = asyncio.ensure_future(self._watch(turn.pop_all()))
            unwanted = asyncio.ensure_future(self._unwanted.wait())
            try:
                await asyncio.wait([ending, unwanted], return_when=asyncio.FIRST_COMPLETED)
                if not ending.done():
                    self._step(ProcessEvent.UNWANTED)
                    how = await self._ended_as_asked(ending)
                else:
                    how = await ending
                    said = tail(self.plan, self.process.output_begins)
                    self.trouble = self.last_error = f"{how}{said}"
                    _log.warning("region's process ended", region=str(self.id), how=how)
            finally:
                alive = not ending.done()
                for task in (ending, unwanted, watching):
                    task.cancel()
                await asyncio.gather(ending, unwanted, watching, return_exceptions=True)
                if alive:
                    self.process.release()
                self.process = None
        self._step(ProcessEvent.ENDED, loop.time() - begun)

    async def _ended_as_asked(self, ending: asyncio.Future[str]) -> str:
        assert self.process is not None
        self.process.signal(signal.SIGTERM)
        await asyncio.wait([ending], timeout=STOP_GRACE_SECONDS)
        if not ending.done():
            self.process.signal(signal.SIGKILL)
        return await ending

    async def _obtain(self, turn: contextlib.AsyncExitStack) -> RegionProcess:
        """One that serves the region already, or a new one."""
        program, *wanted = self._launcher.run_command(self.plan)
        wanted += ["--data-port", str(self.plan.port + 1)]
        found = await self._end_others(keep=tuple(wanted[:_OURS]))
        if found is not None:
            self.outdated = list(found.command) != wanted
            _log.info("region's process found running", region=str(self.id), pid=found.pid)
            return found
        await turn.enter_async_context(self._turns.starts)
        self.outdated = False
        return processes.start(program, wanted, Path(self.plan.output))

    async def _end_others(self, keep: tuple[str, ...] = ()) -> RegionProcess | None:
        """Ends what an agent before this one left at work on the region. With `keep`, how the
        arguments of one that serves it for us begin, that one is returned, and others that somebody
        serves the directory with are left alone: its lock says who may, and we who does not."""
        kept = None
        found = await asyncio.to_thread(
            processes.at_work_on, self.directory, self._launcher.program
        )
        for process in found:
            if keep and kept is None and process.command[: len(keep)] == keep:
                kept = process
            elif keep and process.verb == "run":
                process.release()
            else:
                _log.warning("ends a process left behind", region=str(self.id), pid=process.pid)
                await processes.end(process, STOP_GRACE_SECONDS)
        return kept

    async def _watch(self, turn: contextlib.AsyncExitStack) -> None:
        """Tells when the process serves, and later whether it still answers. Lets the turn go once
        it does, or takes too long."""
        async with turn:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(START_SECONDS):
                    await self._ready()
        if self.upkeep.state is ProcessState.STARTING:
            await self._ready()
        # Also to see which there are.
        self._asked.set()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEALTH_EVERY_SECONDS):
                    await self._asked.wait()
            await self._see_to_snapshots(Served(self._launcher, self.plan))
            try:
                address = self._launcher.address(self.plan)
                status = await check(address, seconds=HEALTH_SECONDS, tls=self._launcher.tls)
                self._tell("" if status == "SERVING" else f"says that it is {status}")
            except StairwellError as error:
                self._tell(error.message)

    async def _ready(self) -> None:
        """Returns once it serves this region."""
        pause = RETRY_SECONDS
        while True:
            try:
                await self._launcher.serving(self.plan)
                await self._check_identity()
            except StairwellError as error:
                self._tell(error.message)
            else:
                self._step(ProcessEvent.READY)
                self._tell("")
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_MAX_SECONDS)

    async def _check_identity(self) -> None:
        """StairwellError when another region answers at the port."""
        address, tls = self._launcher.address(self.plan), self._launcher.tls
        peer = await reach(address, tls) if tls is not None else None
        async with open_channel(address, tls=peer) as channel:
            stub = region_grpc.RegionServiceStub(channel)
            with translated(f"the downstairs at {address}"):
                reply = await stub.GetRegion(region_pb.GetRegionRequest(), timeout=HEALTH_SECONDS)
        if reply.region.id != str(self.id):
            raise StairwellError(
                f"port {self.plan.port} answers for region {reply.region.id}: end the program that "
                "has it",
                reason="OTHER_REGION",
            )

    # ---- its snapshots

    async def list_snapshots(self) -> Mapping[str, Seen]:
        """By name, oldest first; as it was last seen where no process serves. UnavailableError."""
        if self.upkeep.state is ProcessState.RUNNING:
            await self.snapshots.look(Served(self._launcher, self.plan))
        seen = self.snapshots.seen
        if seen is None:
            raise UnavailableError(
                f"it is not known yet which snapshots region {self.id} has: "
                f"{self.trouble or 'its process is starting'}; try again in a moment",
                reason="SNAPSHOTS_UNKNOWN",
                region=str(self.id),
            )
        return seen

    async def _see_to_snapshots(self, region: snapshots.Region) -> None:
        """Looks, and does what is wanted. What is left is tried again: with the next sign of
        health, and at the next end of the process."""
        self._asked.clear()
        try:
            await self.snapshots.carry_out(region)
        except StairwellError as error:
            for name in self.snapshots.pending:
                self.snapshots.troubles[name] = error.message
            _log.warning("snapshots wait", region=str(self.id), why=error.message)
            self._ledger.changed()

    async def _rest(self, seconds: float) -> None:
        """The pause before the next start, in which snapshots are seen to without a process."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        self._asked.set()
        while not self._unwanted.is_set() and loop.time() < until:
            if self._asked.is_set():
                work = self._see_to_snapshots(AtRest(self._launcher, self.plan))
                if not await self._unless_unwanted(loop.create_task(work)):
                    return
            waiting = [asyncio.ensure_future(each.wait()) for each in (self._unwanted, self._asked)]
            await asyncio.wait(
                waiting, timeout=until - loop.time(), return_when=asyncio.FIRST_COMPLETED
            )
            for task in waiting:
                task.cancel()

    # ---- removing it

    async def _destroy(self) -> None:
        pause = RETRY_SECONDS
        while True:
            try:
                await self._end_others()
                await asyncio.to_thread(_remove, self.directory)
                await asyncio.to_thread(sync_directory, self.directory.parent)
                for path in Path(self.plan.output).parent.glob(f"{self.id}.txt*"):
                    path.unlink(missing_ok=True)
                break
            except OSError as error:
                self._tell(f"cannot remove {error.filename}: {error.strerror}; tries again")
                _log.error("region cannot be removed", region=str(self.id), error=str(error))
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_MAX_SECONDS)
        await self._move(RegionEvent.DESTROY_DONE)
        self._tell("")

    # ---- telling

    async def _move(self, event: RegionEvent, reason: str = "") -> None:
        """Stores it, however long that takes."""
        pause = RETRY_SECONDS
        while True:
            try:
                await self._ledger.move(self.id, event, reason)
            except IllegalMoveError:
                raise
            except StairwellError as error:
                self._tell(error.message)
                _log.error("cannot store", region=str(self.id), error=error.message)
            else:
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_MAX_SECONDS)

    def _step(self, event: ProcessEvent, seconds: float = 0.0) -> None:
        self.upkeep = step(self.upkeep, event, seconds)
        self._ledger.changed()

    def _tell(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            self._ledger.changed()


def _remove(directory: Path) -> None:
    """All of it, if there is any. OSError."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)
