"""Disks that come to a running machine, and go: in its guest, in the store, and in what makes it
again.

A disk is recorded before its machine is told, and forgotten after. So at any moment a machine that
is made again has what was asked for; a request whose outcome is not known leaves the disk recorded,
and says so: sent again it has the one effect, whatever became of the first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from uuid import UUID

from controlplane.core.instance_check import DiskRequest, check_plugged_disk
from controlplane.core.leases import Kind
from controlplane.core.records import DiskRecord, InstanceRecord
from controlplane.detached import Detached
from controlplane.driver import ReplacementDriver
from controlplane.machine_spec import machine_disk
from controlplane.machines import MachineFollower
from controlplane.operations.instances import Instances, disk_record
from controlplane.peers.vmmd import Vmmd
from controlplane.scrub_driver import ScrubDriver
from controlplane.store.base import Store
from controlplane.words import Body, Words
from stairlib.model.errors import (
    AlreadyExistsError,
    FieldViolation,
    InvalidRequestError,
    NotFoundError,
    StairwellError,
    StateError,
    UnavailableError,
)
from stairlib.telemetry.logs import get_logger
from stairwell.vmmd.v1 import machine_service_pb2 as machine_pb

_log = get_logger(__name__)

_PLUG = "plug_disk"
_UNPLUG = "unplug_disk"


@dataclass(frozen=True, slots=True)
class PlugDisk:
    """A wish for one more disk. `unread` are the violations found while reading the request."""

    name: str
    disk: DiskRequest
    unread: tuple[FieldViolation, ...] = ()


class Plugging:
    """See the module."""

    def __init__(
        self,
        store: Store,
        vmmd: Vmmd,
        instances: Instances,
        follower: MachineFollower,
        driver: ReplacementDriver,
        scrubs: ScrubDriver,
        words: Words,
        detached: Detached,
    ) -> None:
        self._store = store
        self._vmmd = vmmd
        self._instances = instances
        self._follower = follower
        self._driver = driver
        self._scrubs = scrubs
        self._words = words
        words.serve(Kind.INSTANCE, _PLUG, self._plug_here)
        words.serve(Kind.INSTANCE, _UNPLUG, self._unplug_here)
        self._detached = detached

    async def plug(self, wish: PlugDisk) -> InstanceRecord:
        """Records the disk and gives it to the machine; when that refuses, nothing is left. With
        an UnavailableError the disk stays recorded, and a machine that is made again has it."""
        return await self._detached.run(self._plug(wish))

    async def _plug(self, wish: PlugDisk) -> InstanceRecord:
        violations = wish.unread + check_plugged_disk(wish.disk)
        if violations:
            listed = "; ".join(f"{each.field}: {each.description}" for each in violations)
            raise InvalidRequestError(
                f"the disk is not well described: {listed}",
                violations,
                reason=violations[0].reason,
            )
        instance = await self._instances.find(wish.name)
        _require_alive(instance)
        disk = replace(disk_record(instance, wish.disk), plugged=True)
        is_new = True
        try:
            await self._store.add_disk(disk)
        except AlreadyExistsError:
            known = await self._known(disk)
            if known is None:
                raise
            disk, is_new = known, False
        await self._tell(instance, _PLUG, {"volume": str(disk.volume_id), "is_new": is_new})
        return await self._store.instance(str(instance.id))

    async def _known(self, wanted: DiskRecord) -> DiskRecord | None:
        """The disk as the same request recorded it, sent again."""
        try:
            known = await self._store.disk(wanted.name)
        except NotFoundError:
            return None
        same = (
            known.instance_id == wanted.instance_id
            and known.device == wanted.device
            and known.slot == wanted.slot
            and known.read_only == wanted.read_only
            and known.construction == wanted.construction
        )
        return known if same else None

    async def _tell(self, instance: InstanceRecord, word: str, body: Body) -> None:
        """Has it done by whoever follows the instance; nobody does when it has just ended."""
        if not await self._words.tell(Kind.INSTANCE, str(instance.id), word, body):
            _require_alive(await self._store.instance(str(instance.id)))
            raise UnavailableError(
                f"nobody follows instance {instance.name!r} at present; try again in a moment",
                reason="DRIVER_AWAY",
                instance=instance.name,
            )

    async def _plug_here(self, key: str, body: Body) -> None:
        """The word of whoever follows the instance."""
        disk = await self._store.disk(body["volume"])
        instance = await self._store.instance(key)
        machine = await self._machine(instance)
        if machine is None or disk.name not in machine.disks:
            machine = await self._plugged(instance, disk, is_new=body["is_new"])
        await self._follower.saw(machine)

    async def _plugged(
        self, instance: InstanceRecord, disk: DiskRecord, *, is_new: bool
    ) -> machine_pb.Machine:
        generation = await self._store.hand_out_generation(disk.volume_id, disk.recorded_generation)
        try:
            return await self._vmmd.plug_disk(instance.id, machine_disk(instance, disk, generation))
        except UnavailableError as error:
            machine = await self._machine(instance)
            if machine is not None and disk.name in machine.disks:
                return machine
            raise UnavailableError(
                f"{error.message}; disk {disk.name!r} is recorded, and a machine that is made again"
                " has it: send the same request again to have it now, or unplug it",
                reason=error.reason,
                disk=disk.name,
            ) from error
        except StairwellError:
            if is_new:
                await self._store.forget_disk(disk.key)
            raise

    async def _machine(self, instance: InstanceRecord) -> machine_pb.Machine | None:
        """As vmmd knows it; None when it does not, or is away."""
        try:
            return await self._vmmd.get_machine(instance.id)
        except (NotFoundError, UnavailableError) as error:
            _log.info("machine not seen", instance=instance.name, error=error.message)
            return None

    async def unplug(self, name: str) -> InstanceRecord:
        """Takes a disk (by name or volume UUID) from the guest and forgets it; its running
        replacement or scrub fails."""
        return await self._detached.run(self._unplug(name))

    async def _unplug(self, name: str) -> InstanceRecord:
        disk = await self._store.disk(name)
        instance = await self._store.instance(str(disk.instance_id))
        _require_alive(instance)
        await self._tell(instance, _UNPLUG, {"volume": str(disk.volume_id)})
        return await self._store.instance(str(instance.id))

    async def _unplug_here(self, key: str, body: Body) -> None:
        """The word of whoever follows the instance; done twice it finds the disk gone."""
        try:
            disk = await self._store.disk(body["volume"])
        except NotFoundError:
            return
        try:
            await self._vmmd.unplug_disk(UUID(key), disk.name)
        except NotFoundError as error:
            if error.metadata.get("kind") == "machine":
                raise UnavailableError(
                    f"the machine of {disk.instance_name!r} is being made again; try again in a"
                    " moment",
                    reason="MACHINE_BEING_MADE",
                    instance=disk.instance_name,
                ) from error
            _log.info("the machine has no such disk", disk=disk.name)
        why = f"disk {disk.name!r} was unplugged"
        await self._driver.abandon([disk.key], why)
        await self._scrubs.abandon([disk.key], why)
        await self._store.remove_disk(disk.key)


def _require_alive(instance: InstanceRecord) -> None:
    if instance.state.ended:
        raise StateError(
            f"instance {instance.name!r} is {instance.state}, and its disks stay as they are;"
            " delete it and create it again with the disks it is to have",
            reason="INSTANCE_ENDED",
            instance=instance.name,
            state=instance.state,
        )
