"""What is held against the control plane, whichever of its lives speaks: nothing it does happens
twice."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING
from uuid import UUID

from controlplane.core.replacement import Replacement
from vmmd.upstairs.core import limits
from vmmd.upstairs.core.slot_states import SlotState

if TYPE_CHECKING:
    from tests.sim.machine import Machine
    from tests.sim.world import World


class ControlChecks:
    """Looked at where the control plane's calls arrive."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._started: Counter[tuple[str, UUID]] = Counter()
        self._undone: set[UUID] = set()
        # (machine, slot) that is held to (attempt, extents done) of its repair at that moment.
        self._held: dict[tuple[str, int], tuple[int, int]] = {}

    def started(self, machine: str, record: Replacement) -> None:
        """A machine has begun to replace a member."""
        self._started[machine, record.id] += 1
        if self._started[machine, record.id] > 1:
            self._world.fail(
                f"{machine} began twice to replace {record.old_target} by {record.new_target}"
            )
        if record.id in self._undone:
            self._world.fail(
                f"{machine} replaces {record.old_target} by {record.new_target}, which was undone"
            )

    def undone(self, record: Replacement) -> None:
        """A replacement is over, and all is as it was before it."""
        world = self._world
        self._undone.add(record.id)
        # A machine that lets the new member go forgets that it was held.
        self._held = {key: value for key, value in self._held.items() if key[1] != record.slot}
        if world.control.store.disk.construction != record.original:
            world.fail("a replacement was undone, and the recorded request is not that of before")
        machine = world.machine
        if machine.alive:
            slot = machine.status.slots[record.slot]
            if slot.address == record.new_target or slot.departing_address:
                world.fail(
                    f"a replacement was undone, and slot {record.slot} has {slot.address}"
                    f" beside {slot.departing_address or 'nobody'}"
                )

    def held(self, machine: Machine, slot: int, *, held: bool) -> None:
        """A machine was told to copy nothing to a slot, or to go on."""
        self._held.pop((machine.host, slot), None)
        if held:
            self._held[machine.host, slot] = _copied(machine, slot)

    def look(self, machine: Machine) -> None:
        """A machine's status has changed: what is held stands still."""
        for (host, slot), (attempt, done) in self._held.items():
            if host != machine.host or not machine.alive:
                continue
            now, extents = _copied(machine, slot)
            # What was under way ends; of a repair that began later there was nothing.
            allowed = done + limits.COPIES_IN_FLIGHT if now == attempt else 0
            repairing = machine.status.slots[slot].state is SlotState.LIVE_REPAIR
            if repairing and extents > allowed:
                self._world.fail(f"slot {slot} is held, and {extents} extents were copied to it")


def _copied(machine: Machine, slot: int) -> tuple[int, int]:
    """(attempt, extents done) of the repair of a slot."""
    repair = machine.status.slots[slot].repair
    return (repair.attempt, repair.extents_done) if repair is not None else (0, 0)
