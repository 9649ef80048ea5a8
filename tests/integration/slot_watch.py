"""What a machine says of the slots of a disk, one state after another, while something happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from stairwell.vmmd.v1 import volume_service_pb2_grpc as volume_grpc
from stairwell.vmmd.v1.guest_service_pb2 import WorkloadReport
from tests.integration.volume import Load, Volume

SLOTS = 3
# To see something: the limit of silence and that of an absence, 20 s each, and as much again for
# a machine that others have at the same time.
DEADLINE = 90.0


class Seen(NamedTuple):
    """What the machine said of a slot."""

    state: str
    mode: str


ACTIVE = "ACTIVE"
# What is missed is kept for it; and: it is to be filled, since too much would have to be kept.
OFFLINE = "OFFLINE"
FAULTED = "FAULTED"


class Watch:
    """What the machine says of the disk's slots: per slot, what it was one after another.

    Of states that follow each other at once only the last may be told; `repairs` counts them all.
    """

    def __init__(self) -> None:
        self.slots: list[list[Seen]] = [[] for _ in range(SLOTS)]
        self.repairs = [0] * SLOTS
        # Why each left service, for whoever reads of a failure.
        self.reasons: list[str] = []
        self._repairs_before: dict[int, int] = {}
        self._told = asyncio.Condition()

    async def follow(self, messages: AsyncIterator[volume_pb.WatchVolumeResponse]) -> None:
        """Takes messages in until they end."""
        async for message in messages:
            async with self._told:
                for slot in message.volume.regions[0].slots:
                    self._take(slot)
                self._told.notify_all()

    def _take(self, slot: volume_pb.SlotInfo) -> None:
        state = volume_pb.SlotState.Name(slot.state).removeprefix("SLOT_STATE_")
        mode = volume_pb.SlotMode.Name(slot.mode).removeprefix("SLOT_MODE_")
        seen, history = Seen(state, mode), self.slots[slot.slot]
        if not history or history[-1] != seen:
            history.append(seen)
            if slot.last_error:
                self.reasons.append(f"slot {slot.slot} {mode}: {slot.last_error}")
        before = self._repairs_before.setdefault(slot.slot, slot.repairs_completed)
        self.repairs[slot.slot] = slot.repairs_completed - before

    async def until(self, wanted: Callable[[Watch], bool]) -> None:
        """Waits until what was seen is wanted."""
        try:
            async with asyncio.timeout(DEADLINE), self._told:
                await self._told.wait_for(lambda: wanted(self))
        except TimeoutError:
            raise AssertionError(f"not as wanted after {DEADLINE:g} s: {self.slots}") from None

    async def out(self, *slots: int, modes: tuple[str, ...] = (OFFLINE, FAULTED)) -> None:
        """Waits until each of these slots has been out of service, in one of the modes."""
        await self.until(
            lambda watch: all(
                any(seen.state != ACTIVE and seen.mode in modes for seen in watch.slots[slot])
                for slot in slots
            )
        )

    async def all_active(self) -> None:
        """Waits until every slot is active."""
        await self.until(lambda watch: all(slot[-1].state == ACTIVE for slot in watch.slots))

    def was(self, slot: int, mode: str) -> bool:
        """Whether the slot was seen in the mode."""
        return any(seen.mode == mode for seen in self.slots[slot])

    def states(self, slot: int) -> list[str]:
        """The states a slot went through."""
        return [seen.state for seen in self.slots[slot]]

    def assert_undisturbed(self, *slots: int) -> None:
        """These slots were active all the time."""
        for slot in slots:
            assert set(self.states(slot)) == {ACTIVE}, self.slots

    def assert_came_back(self, *slots: int) -> None:
        """Each was active, then out of service, then active; if it was given up meanwhile, it was
        filled once before it served, and else not at all."""
        for slot in slots:
            states, modes = zip(*self.slots[slot], strict=True)
            assert states[0] == states[-1] == ACTIVE, self.slots[slot]
            assert {OFFLINE, FAULTED} & set(modes), self.slots[slot]
            assert self.repairs[slot] == (FAULTED in modes), (self.repairs, self.slots[slot])


@asynccontextmanager
async def watched(volume: Volume) -> AsyncIterator[Watch]:
    """Watches the slots while the block runs; all are active at its start."""
    stub = volume_grpc.VolumeServiceStub(volume.cluster.channel(volume.cluster.vmmd.address))
    call = stub.WatchVolume(
        volume_pb.WatchVolumeRequest(machine_id=volume.instance_id, disk=volume.disk)
    )
    watch = Watch()
    following = asyncio.create_task(watch.follow(call))
    try:
        await watch.until(lambda one: all(one.slots))
        for slot in range(SLOTS):
            assert watch.states(slot) == [ACTIVE], watch.slots
        yield watch
        assert not following.done(), "the watch has ended by itself"
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


async def reported(load: Load, wanted: Callable[[WorkloadReport], object]) -> None:
    """Waits for a report, from now on, that is wanted."""
    async with asyncio.timeout(DEADLINE):
        await load.reported()
        while not wanted(load.last):
            await load.reported()


async def stands_still(load: Load) -> None:
    """Waits for a report of a time in which no command of the guest ended."""
    await reported(load, lambda report: not report.interval_ios)
