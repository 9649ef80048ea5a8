"""Follows the machine of each instance: its states into the store, and a lost machine made again.

vmmd keeps nothing over its own restart; the control plane does. So an instance whose machine vmmd
does not know is given a new one (with raised generations, so that its volumes may be activated
again) and brought to the state the user asked for. So is one whose process died: to a guest of its
own that is a power cut, to one whose hypervisor comes back to its disks it is a pause. A machine
that keeps dying, or that ended for a reason of its own (FAILED, DESTROYED), is not made again.

What the user asks for is stored before the machine is told. Where it was not told, it is here, when
it is next looked at.

One task for each instance that has not ended and whose lease this control plane holds: no other one
makes the machine again, or tells its states. While vmmd is away the last known state stays, and
the reason says so.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing
from contextvars import Context
from uuid import UUID

from controlplane.claims import Claims, Driver
from controlplane.core.leases import Kind, Lease, LeaseLostError
from controlplane.core.records import Desired, DiskRecord, InstanceRecord, InstanceState
from controlplane.core.replacement import State
from controlplane.feed import Feed
from controlplane.machine_spec import machine_spec, state_of
from controlplane.peers.vmmd import Vmmd
from controlplane.repair_limiter import RepairLimiter
from controlplane.store.base import Store
from stairlib.model.errors import (
    AlreadyExistsError,
    LimitError,
    NotFoundError,
    StairwellError,
    UnavailableError,
)
from stairlib.telemetry.logs import get_logger
from stairwell.vmmd.v1 import machine_service_pb2 as pb

_log = get_logger(__name__)

# Between looks at a vmmd that is away, and at one that ends a watch at once.
RETRY_FIRST_SECONDS = 0.1
RETRY_MAX_SECONDS = 2.0
# A machine whose process dies more often than this in so many seconds is left as FAILED.
DEATHS_MAX = 5
DEATHS_SECONDS = 600.0
# States of a machine that stops already, or has ended.
_NOT_TO_STOP = frozenset({
    pb.MACHINE_STATE_STOPPING, pb.MACHINE_STATE_STOPPED, pb.MACHINE_STATE_FAILED,
    pb.MACHINE_STATE_DESTROYED,
})  # fmt: skip
# More than any host runs; each is a task and a stream.
INSTANCES_MAX = 1000


class MachineFollower:
    """See the module. `news` gets each record that changed, under the instance's id."""

    def __init__(
        self,
        store: Store,
        claims: Claims,
        vmmd: Vmmd,
        news: Feed[InstanceRecord],
        limiter: RepairLimiter,
    ) -> None:
        self._store = store
        self._claims = claims
        self._vmmd = vmmd
        self._news = news
        self._limiter = limiter
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        # The newest state generation heard of each machine: news of it come on two ways, the
        # stream and the answers to requests, and the older must not overtake the newer.
        self._heard: dict[UUID, int] = {}
        # When the process of each machine died of late.
        self._deaths: dict[UUID, deque[float]] = {}
        self._epochs: dict[UUID, int] = {}
        claims.serve(Kind.INSTANCE, Driver(self._take, self._drop))

    async def _take(self, lease: Lease) -> None:
        """Follows an instance that an earlier control plane, or another one, left."""
        self.own(lease)
        self.follow(UUID(lease.key))

    async def _drop(self, lease: Lease) -> None:
        """Stops following what another control plane may follow by now."""
        instance_id = UUID(lease.key)
        if self._epochs.get(instance_id) == lease.epoch:
            await self.unfollow(instance_id)

    def own(self, lease: Lease) -> None:
        """This control plane tells the states of the instance from now on."""
        self._claims.hold(lease)
        self._epochs[UUID(lease.key)] = lease.epoch
        self._heard.pop(UUID(lease.key), None)

    async def stop(self) -> None:
        """Ends the tasks; machines go on."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def follow(self, instance_id: UUID) -> None:
        """Follows one more instance."""
        # An empty context: what the follower calls is no part of the trace of the call.
        task = asyncio.create_task(
            self._follow(instance_id), name=f"machine {instance_id}", context=Context()
        )
        self._tasks[instance_id] = task

        def ended(_task: asyncio.Task[None]) -> None:
            if self._tasks.get(instance_id) is task:
                del self._tasks[instance_id]

        task.add_done_callback(ended)

    async def look_again(self, instance_id: UUID) -> None:
        """Has a machine that did not answer looked at anew, and brought to what is wanted."""
        if await self._left(instance_id):
            self.follow(instance_id)

    async def unfollow(self, instance_id: UUID) -> None:
        """Stops following one."""
        await self._left(instance_id)
        self._forget(instance_id)

    async def _left(self, instance_id: UUID) -> bool:
        """Whether there was a task that followed it; it has ended."""
        task = self._tasks.get(instance_id)
        if task is None:
            return False
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return True

    def _forget(self, instance_id: UUID) -> None:
        self._heard.pop(instance_id, None)
        self._deaths.pop(instance_id, None)
        epoch = self._epochs.pop(instance_id, None)
        if epoch is not None:
            self._claims.let_go(Kind.INSTANCE, str(instance_id), epoch)

    def _require(self, instance_id: UUID) -> None:
        """LeaseLostError unless the instance is still this control plane's; before each effect."""
        epoch = self._epochs.get(instance_id, 0)
        self._claims.require(Kind.INSTANCE, str(instance_id), epoch)

    async def saw(self, machine: pb.Machine) -> None:
        """Takes over what vmmd says of a machine, unless something newer was heard."""
        instance_id = UUID(machine.id)
        if machine.process_died and self._may_live_again(instance_id):
            return  # the follower makes it again
        if machine.state_generation >= self._heard.get(instance_id, 0):
            self._heard[instance_id] = machine.state_generation
            state = state_of(machine)
            await self._set(instance_id, state, machine.reason)
            if not state.ended:
                await self._limiter.machine_seen(instance_id)

    async def _set(self, instance_id: UUID, state: InstanceState, reason: str) -> None:
        epoch = self._epochs.get(instance_id)
        if epoch is None:
            return
        changed = await self._store.set_instance_state(instance_id, state, reason, epoch)
        if changed is not None:
            _log.info("instance changed", instance=changed.name, state=state, reason=reason)
            self._news.publish(instance_id, changed)

    async def _follow(self, instance_id: UUID) -> None:
        delay = RETRY_FIRST_SECONDS
        while True:
            try:
                instance = await self._store.instance(str(instance_id))
                if instance.state.ended:
                    self._forget(instance_id)
                    return
                if await self._watch(instance_id):
                    delay = RETRY_FIRST_SECONDS
            except NotFoundError:
                self._forget(instance_id)
                return
            except LeaseLostError as error:
                _log.warning("instance left", error=error.message)
                return
            except UnavailableError as error:
                await self._lost(instance_id, error)
            except StairwellError as error:
                _log.warning("machine cannot be followed", error=error.message)
            except Exception:  # noqa: BLE001 - an instance is never left by a failure
                _log.exception("follower stumbled", instance=str(instance_id))
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_MAX_SECONDS)

    async def _watch(self, instance_id: UUID) -> bool:
        """Follows the machine to the end of the stream; whether anything was heard."""
        try:
            machine = await self._vmmd.get_machine(instance_id)
        except NotFoundError:
            await self._make_again(instance_id, "vmmd has restarted")
            return True
        if machine.process_died:
            return await self._died(instance_id, machine)
        await self._confirm(instance_id)
        # Who made it again, or was asked for a state, may have ended before it was told of that.
        machine = await self._as_wanted(instance_id, machine)
        await self.saw(machine)
        heard = False
        watched = self._vmmd.watch_machine(instance_id, machine.state_generation)
        try:
            async with aclosing(watched) as machines:
                async for machine in machines:
                    heard = True
                    if machine.process_died:
                        return await self._died(instance_id, machine)
                    await self.saw(machine)
        except NotFoundError:
            # Lost since it was asked for: the next look finds none, and has it made again.
            return True
        return heard

    async def _died(self, instance_id: UUID, machine: pb.Machine) -> bool:
        """The machine's process has died: it is made again, unless that happens all the time."""
        deaths = self._deaths.setdefault(instance_id, deque())
        now = asyncio.get_running_loop().time()
        deaths.append(now)
        while deaths[0] < now - DEATHS_SECONDS:
            deaths.popleft()
        if not self._may_live_again(instance_id):
            why = f"{machine.reason}, {len(deaths)} times in {DEATHS_SECONDS:.0f} s: not made again"
            await self._set(instance_id, InstanceState.FAILED, why)
            return False
        await self._set(instance_id, InstanceState.STARTING, f"{machine.reason}; made again")
        await self._make_again(instance_id, machine.reason)
        return True

    def _may_live_again(self, instance_id: UUID) -> bool:
        """Whether a machine that died is still to be made again."""
        return len(self._deaths.get(instance_id, ())) <= DEATHS_MAX

    async def _confirm(self, instance_id: UUID) -> None:
        """Notes that the machine exists, once: it may have been made just before a crash."""
        instance = await self._store.instance(str(instance_id))
        if instance.confirmed:
            return
        disks = await self._store.list_disks(instance_id=instance_id, limit=0)
        handed = {
            disk.volume_id: await self._store.next_generation(
                disk.volume_id, disk.recorded_generation
            )
            for disk in disks
        }
        await self._store.confirm_instance(instance_id, handed)

    async def _make_again(self, instance_id: UUID, why_lost: str) -> None:
        """Makes a machine that vmmd does not have, unless it was on its way out."""
        self._heard.pop(instance_id, None)
        instance = await self._store.instance(str(instance_id))
        if instance.desired is Desired.STOPPED:
            await self._set(instance_id, InstanceState.DESTROYED, f"{why_lost} meanwhile")
            return
        disks = await self._store.list_disks(instance_id=instance_id, limit=0)
        generations = {
            disk.volume_id: await self._store.hand_out_generation(
                disk.volume_id, disk.recorded_generation
            )
            for disk in disks
        }
        self._require(instance_id)
        try:
            unfinished = await self._unfinished(disks)
            spec = machine_spec(instance, disks, generations, unfinished)
            machine = await self._vmmd.ensure_machine(spec)
            _log.warning("machine is made again", instance=instance.name)
            machine = await self._as_wanted(instance_id, machine)
        except (UnavailableError, AlreadyExistsError, LimitError, LeaseLostError):
            raise
        except StairwellError as error:
            why = f"{why_lost}, and vmmd cannot make the machine again: {error.message}"
            await self._set(instance_id, InstanceState.FAILED, why)
            return
        await self._store.confirm_instance(instance_id, generations)
        await self.saw(machine)

    async def _as_wanted(self, instance_id: UUID, machine: pb.Machine) -> pb.Machine:
        """Has a machine that was only made run, where the user wants that, and one that is to stop
        stop: the user's word was stored and may not have reached it."""
        instance = await self._store.instance(str(instance_id))
        if instance.desired is Desired.STOPPED and machine.state not in _NOT_TO_STOP:
            self._require(instance_id)
            return await self._vmmd.set_machine_state(instance_id, pb.MACHINE_REQUESTED_STATE_STOP)
        if instance.desired is not Desired.RUNNING or machine.state != pb.MACHINE_STATE_CREATING:
            return machine
        # First: its members may differ, and it copies from its first moment on.
        await self._limiter.machine_seen(instance_id)
        self._require(instance_id)
        return await self._vmmd.set_machine_state(instance_id, pb.MACHINE_REQUESTED_STATE_RUN)

    async def _unfinished(self, disks: list[DiskRecord]) -> set[UUID]:
        """The disks whose last replacement was recorded and is not done."""
        newest = {disk.key: await self._store.newest_replacement(disk.key) for disk in disks}
        return {
            key for key, one in newest.items() if one is not None and one.state is not State.DONE
        }

    async def _lost(self, instance_id: UUID, error: UnavailableError) -> None:
        """Says that the state is old; not when it is the store itself that is away."""
        try:
            instance = await self._store.instance(str(instance_id))
            await self._set(instance_id, instance.state, f"last known state: {error.message}")
        except StairwellError as second:
            _log.warning("instance cannot be looked at", error=second.message)
