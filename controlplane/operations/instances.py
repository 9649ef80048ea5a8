"""Instances: create, find, bring to a state, watch, delete, and let their guest work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid4
from weakref import WeakValueDictionary

from controlplane.breakpoints import Reached, unreached
from controlplane.core.instance_check import DiskRequest, check_instance
from controlplane.core.leases import Kind
from controlplane.core.records import Desired, DiskRecord, InstanceRecord, InstanceState
from controlplane.detached import Detached
from controlplane.driver import ReplacementDriver
from controlplane.feed import Feed
from controlplane.machine_spec import machine_spec
from controlplane.machines import INSTANCES_MAX, MachineFollower
from controlplane.peers.vmmd import Vmmd
from controlplane.scrub_driver import ScrubDriver
from controlplane.store.base import Store
from controlplane.words import Body, Words
from stairlib.model.errors import (
    AlreadyExistsError,
    FieldViolation,
    InvalidRequestError,
    LimitError,
    NotFoundError,
    StairwellError,
    StateError,
    UnavailableError,
)
from stairlib.rpc.paging import page_size, position, token
from stairlib.telemetry.logs import get_logger
from stairwell.vmmd.v1 import guest_service_pb2 as guest_pb
from stairwell.vmmd.v1 import machine_service_pb2 as machine_pb
from stairwell.vmmd.v1 import serial_service_pb2 as serial_pb

_log = get_logger(__name__)

_REQUESTS: dict[Desired, machine_pb.MachineRequestedState.ValueType] = {
    Desired.RUNNING: machine_pb.MACHINE_REQUESTED_STATE_RUN,
    Desired.STOPPED: machine_pb.MACHINE_REQUESTED_STATE_STOP,
}
# Names listed in a message that asks for one of them.
_NAMES_SHOWN = 10
_BEING_MADE = "MACHINE_BEING_MADE"
_SET_STATE = "set_state"
_DELETE = "delete"


@dataclass(frozen=True, slots=True)
class CreateInstance:
    """A wish for an instance. `unread` are the violations found while reading the request."""

    name: str
    disks: Sequence[DiskRequest]
    id: str = ""
    request_id: str = ""
    cpus: int = 0
    memory_mib: int = 0
    activate_with_two_after: float | None = None
    unread: tuple[FieldViolation, ...] = ()


class Instances:
    """See the module."""

    def __init__(
        self,
        store: Store,
        vmmd: Vmmd,
        follower: MachineFollower,
        driver: ReplacementDriver,
        scrubs: ScrubDriver,
        words: Words,
        detached: Detached,
        news: Feed[InstanceRecord],
        clock: Callable[[], float] = time.time,
        reached: Reached = unreached,
    ) -> None:
        """`reached` is called with the name of each point at which a crash has to lose nothing."""
        self._store = store
        self._vmmd = vmmd
        self._follower = follower
        self._driver = driver
        self._scrubs = scrubs
        self._words = words
        words.serve(Kind.INSTANCE, _SET_STATE, self._set_state_here)
        words.serve(Kind.INSTANCE, _DELETE, self._delete_here)
        self._detached = detached
        self._news = news
        self._clock = clock
        self._reached = reached
        # One word about the state of an instance at a time: what is stored is what is told last.
        self._asked: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def create(self, wish: CreateInstance) -> InstanceRecord:
        """Records the instance and makes its machine; when it cannot be made, nothing is left."""
        return await self._detached.run(self._create(wish))

    async def _create(self, wish: CreateInstance) -> InstanceRecord:
        instance, disks = self._checked(wish)
        if len(await self._store.list_instances(limit=INSTANCES_MAX)) >= INSTANCES_MAX:
            raise LimitError(f"there are {INSTANCES_MAX} instances already; delete one first")
        try:
            lease = await self._store.add_instance(instance, disks)
        except AlreadyExistsError:
            known = await self._created_before(wish)
            if known is None:
                raise
            return known
        self._follower.own(lease)
        generations = {
            disk.volume_id: await self._store.next_generation(
                disk.volume_id, disk.recorded_generation
            )
            for disk in disks
        }
        try:
            machine = await self._vmmd.ensure_machine(machine_spec(instance, disks, generations))
        except BaseException:
            await self._take_back(instance)
            raise
        await self._store.confirm_instance(instance.id, generations)
        await self._follower.saw(machine)
        self._follower.follow(instance.id)
        return await self._store.instance(str(instance.id))

    async def _created_before(self, wish: CreateInstance) -> InstanceRecord | None:
        """The instance that the same request made, sent again after its answer was lost."""
        try:
            known = await self._store.instance(wish.name)
        except NotFoundError:
            return None
        same = wish.request_id != "" and known.request_id == wish.request_id
        return known if same else None

    def _checked(self, wish: CreateInstance) -> tuple[InstanceRecord, list[DiskRecord]]:
        """The records of a well-formed wish; InvalidRequestError with all that is wrong."""
        violations = wish.unread + check_instance(
            wish.name,
            wish.disks,
            cpus=wish.cpus,
            memory_mib=wish.memory_mib,
            activate_with_two_after=wish.activate_with_two_after,
        )
        try:
            identity = UUID(wish.id) if wish.id else uuid4()
        except ValueError:
            violations += (FieldViolation("id", "is not a UUID", "BAD_UUID"),)
        if violations:
            listed = "; ".join(f"{each.field}: {each.description}" for each in violations)
            raise InvalidRequestError(
                f"the instance is not well described: {listed}",
                violations,
                reason=violations[0].reason,
            )
        instance = InstanceRecord(
            id=identity,
            name=wish.name,
            state=InstanceState.CREATING,
            state_generation=1,
            desired=Desired.CREATED,
            reason="",
            cpus=wish.cpus,
            memory_mib=wish.memory_mib,
            request_id=wish.request_id,
            confirmed=False,
            created_at=self._clock(),
            activate_with_two_after=wish.activate_with_two_after or 0.0,
        )
        return instance, [disk_record(instance, disk) for disk in wish.disks]

    async def _take_back(self, instance: InstanceRecord) -> None:
        """Forgets an instance whose machine could not be made, and what there may be of it."""
        await self._follower.unfollow(instance.id)
        await self._store.forget_instance(instance.id)
        try:
            await self._vmmd.delete_machine(instance.id)
        except StairwellError as error:
            # Most likely there is none. If vmmd was slow and made it, it is idle and has no owner.
            _log.info("no machine to take back", instance=instance.name, error=error.message)

    async def find(self, name: str) -> InstanceRecord:
        """By name or id; empty means the only one there is."""
        if name:
            return await self._store.instance(name)
        found = await self._store.list_instances(limit=_NAMES_SHOWN)
        if not found:
            raise NotFoundError("instance", "", "there is no instance; create one first")
        if len(found) > 1:
            names = ", ".join(each.name for each in found)
            text = f"is needed: there are several instances ({names})"
            raise InvalidRequestError(
                f"the name of the instance {text}",
                (FieldViolation("name", text, "NAME_NEEDED"),),
                reason="NAME_NEEDED",
            )
        return found[0]

    async def disk_names(self, instance: InstanceRecord) -> list[str]:
        """The names of its disks."""
        disks = await self._store.list_disks(instance_id=instance.id, limit=0)
        return [disk.name for disk in disks]

    async def page(self, size: int, page_token: str) -> tuple[list[InstanceRecord], str]:
        """One page of all instances, and the token of the next."""
        wanted = page_size(size)
        after = position(page_token)
        found = await self._store.list_instances(after=after, limit=wanted + 1)
        shown = found[:wanted]
        return shown, token(shown[-1].name) if len(found) > wanted else ""

    async def set_state(self, name: str, desired: Desired | None) -> InstanceRecord:
        """Asks the machine to run or stop, or to reboot (None); vmmd judges."""
        return await self._detached.run(self._set_state(name, desired))

    async def _set_state(self, name: str, desired: Desired | None) -> InstanceRecord:
        instance = await self.find(name)
        if instance.state.ended:
            if desired is Desired.STOPPED:
                return instance
            raise StateError(
                f"instance {instance.name!r} is {instance.state} and takes no other state; delete"
                " it and create it again to run it",
                reason="INSTANCE_ENDED",
                instance=instance.name,
                state=instance.state,
            )
        body = {"desired": desired and desired.value}
        if not await self._words.tell(Kind.INSTANCE, str(instance.id), _SET_STATE, body):
            await self._set_state_here(str(instance.id), body)
        if desired is None:
            # As it was when asked: who waits for a reboot waits for a state after this one, and a
            # quick one may have come to its end by now.
            return instance
        return await self._store.instance(str(instance.id))

    async def _set_state_here(self, key: str, body: Body) -> None:
        """The word of whoever follows the instance. Stored before vmmd is told: where this process
        ends in between, the follower of the next one brings it about."""
        async with self._asked.setdefault(key, asyncio.Lock()):
            instance = await self._store.instance(key)
            desired = Desired(body["desired"]) if body["desired"] else None
            if desired is None:
                # The watch tells each state in order. The answer may be past `rebooting` already,
                # and who waits for the reboot would never hear of one.
                await self._request(instance, machine_pb.MACHINE_REQUESTED_STATE_REBOOT)
                return
            await self._store.set_desired(instance.id, desired)
            self._reached(f"desired:{desired.name}")
            try:
                machine = await self._request(instance, _REQUESTS[desired])
            except UnavailableError as error:
                # It may have arrived or not.
                if error.reason != _BEING_MADE:
                    await self._follower.look_again(instance.id)
                raise UnavailableError(
                    f"{error.message}; it is recorded, and is done as soon as the machine is there",
                    reason=error.reason,
                    instance=instance.name,
                ) from error
            except StairwellError:
                # Refused: what was wanted before is, still.
                await self._store.set_desired(instance.id, instance.desired)
                raise
        await self._follower.saw(machine)

    async def _request(
        self, instance: InstanceRecord, state: machine_pb.MachineRequestedState.ValueType
    ) -> machine_pb.Machine:
        try:
            return await self._vmmd.set_machine_state(instance.id, state)
        except NotFoundError as error:
            raise UnavailableError(
                f"vmmd was restarted, and the machine of {instance.name!r} is being made again",
                reason=_BEING_MADE,
                instance=instance.name,
            ) from error

    async def watch(self, name: str) -> AsyncGenerator[InstanceRecord, None]:
        """The present state, then each later one; ends with the instance."""
        instance = await self.find(name)
        with self._news.subscribe(instance.id) as news:
            instance = await self._store.instance(str(instance.id))
            yield instance
            if instance.state.ended:
                return
            seen = instance.state_generation
            async for changed in news:
                if changed.state_generation > seen:
                    seen = changed.state_generation
                    yield changed
                    if changed.state.ended:
                        return

    async def delete(self, name: str) -> None:
        """Ends the machine and forgets the instance; its running replacements and scrubs fail."""
        if not name:
            text = "is needed: what is deleted has to be named"
            raise InvalidRequestError(
                f"the name of the instance {text}", (FieldViolation("name", text, "NAME_NEEDED"),)
            )
        await self._detached.run(self._delete(await self._store.instance(name)))

    async def _delete(self, instance: InstanceRecord) -> None:
        if not await self._words.tell(Kind.INSTANCE, str(instance.id), _DELETE, {}):
            await self._delete_here(str(instance.id), {})

    async def _delete_here(self, key: str, _body: Body) -> None:
        """The word of whoever follows the instance: nobody makes the machine again meanwhile."""
        instance = await self._store.instance(key)
        try:
            await self._vmmd.delete_machine(instance.id)
        except NotFoundError:
            _log.info("the machine was gone already", instance=instance.name)
        await self._follower.unfollow(instance.id)
        disks = await self._store.list_disks(instance_id=instance.id, limit=0)
        why = f"instance {instance.name!r} was deleted"
        await self._driver.abandon([disk.key for disk in disks], why)
        await self._scrubs.abandon([disk.key for disk in disks], why)
        await self._store.delete_instance(instance.id)

    async def signal_guest(
        self, name: str, signal: machine_pb.GuestSignal.ValueType
    ) -> InstanceRecord:
        """Presses a button of the machine; what the guest makes of it, its states tell."""
        instance = await self.find(name)
        await self._vmmd.signal_guest(instance.id, signal)
        return instance

    async def attach_serial(
        self, name: str, history_bytes: int, typed: AsyncIterator[bytes]
    ) -> AsyncGenerator[serial_pb.AttachResponse, None]:
        """What the machine's serial port says; what is typed goes there."""
        instance = await self.find(name)
        return self._vmmd.attach_serial(instance.id, history_bytes, typed)

    async def serial_history(
        self, name: str, request: serial_pb.GetHistoryRequest
    ) -> serial_pb.GetHistoryResponse:
        """What the machine's serial port has said; `request` lacks the machine."""
        request.machine_id = str((await self.find(name)).id)
        return await self._vmmd.serial_history(request)

    async def run_workload(
        self, name: str, workload: guest_pb.Workload
    ) -> AsyncGenerator[guest_pb.WorkloadReport, None]:
        """The reports of a workload of the machine's built-in guest."""
        instance = await self.find(name)
        return self._vmmd.run_workload(instance.id, workload)


def disk_record(instance: InstanceRecord, disk: DiskRequest) -> DiskRecord:
    """The record of a well-formed disk of a request."""
    assert disk.construction is not None
    return DiskRecord(
        key=uuid4(),
        name=disk.name,
        device=disk.device,
        instance_id=instance.id,
        instance_name=instance.name,
        slot=disk.slot,
        read_only=disk.read_only,
        construction=disk.construction,
    )
