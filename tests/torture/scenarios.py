"""What is done to a volume, one function a scenario; each is one loop, and may be run again and
again on the same volume. It begins with an upstairs that is not there yet and daemons that run, and
ends by `good()`, after which nothing runs.

They mirror the scripts of reference vcr-and-upstairs.md §21.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.torture.tormentor import TormentError, Tormentor
from vmmd.block.backend import BlockOp
from vmmd.upstairs.core.events import ReplaceResult
from vmmd.upstairs.core.repair_limits import RepairLimits
from vmmd.upstairs.core.slot_states import SlotState

Scenario = Callable[[Tormentor, float], Awaitable[None]]
# Slow enough that something can happen in the middle of a repair of a few MiB.
_SLOW_REPAIR = 4 << 20
_REPAIRED_OR_WHOLE = (SlotState.LIVE_REPAIR, SlotState.ACTIVE)


# Longer than a silence is borne, and than a member is waited for.
LONG_FREEZE_SECONDS = 25.0


async def live_repair(t: Tormentor, scale: float) -> None:
    """Members are replaced in turn under load; each that was replaced is the next spare, made
    anew."""
    await t.activate()
    await t.work(int(200 * scale))
    async with t.load():
        for _ in range(2):
            place, new = t.rng.randrange(3), t.spare
            old = t.places[place]
            await _replace(t, place, new)
            await t.well()
            t.counts["replacements"] += 1
            await t.members.stop(old)
            t.members.create(old)
            await t.members.start(old)
    await t.good()


async def _replace(t: Tormentor, place: int, new: int) -> None:
    addresses = t.members.addresses
    old = t.places[place]
    answer = await t.volume.replace(addresses[old], addresses[new])
    if answer.result is not ReplaceResult.STARTED:
        raise TormentError(f"the replacement was not started: {answer}")
    again = await t.volume.replace(addresses[old], addresses[new])
    if again.result not in (ReplaceResult.STARTED_ALREADY, ReplaceResult.COMPLETED_ALREADY):
        raise TormentError(f"asked again, the replacement was answered {again}")
    t.places[place] = new


async def failed_live_repair(t: Tormentor, scale: float) -> None:
    """A member is killed until it is given up, comes back, and is killed again in the middle of its
    repair, or frozen in it for a while."""
    await t.activate()
    await t.work(int(300 * scale))
    number = t.rng.randrange(3)
    t.volume.set_repair_limits(RepairLimits(_SLOW_REPAIR))
    async with t.load():
        met = 0
        for _ in range(2):
            # What was thawed may have gone on to its repair's end: then there is one to come.
            if t.slot(number).state is SlotState.ACTIVE:
                t.members.kill(t.places[number])
                await t.given_up(number)
            await t.members.start(t.places[number])
            await t.until(lambda: t.slot(number).state in _REPAIRED_OR_WHOLE, "a repair begins")
            met += t.slot(number).state is SlotState.LIVE_REPAIR
            await asyncio.sleep(t.rng.uniform(0, 0.3))
            if t.rng.random() < 0.5:
                t.members.kill(t.places[number])
            else:
                t.members.freeze(t.places[number])
                await asyncio.sleep(t.rng.uniform(0, 0.5))
                t.members.thaw(t.places[number])
        if not met:
            raise TormentError("no repair was met before it had ended")
        await t.members.start(t.places[number])
        t.volume.set_repair_limits(RepairLimits())
        await t.well()
    await t.good()


async def replay(t: Tormentor, scale: float) -> None:
    """A member is away for a short time, and gets what it missed: nothing is repaired."""
    await t.activate()
    for _ in range(3):
        number = t.rng.randrange(3)
        t.members.kill(t.places[number])
        await t.work(int(60 * scale))
        await t.members.start(t.places[number])
        await t.well()
        t.counts["replays"] += 1
    if any(slot.repairs_completed for slot in t.volume.status().slots):
        raise TormentError(f"a short absence was repaired: {t.volume.status()}")
    await t.good()


async def repair(t: Tormentor, scale: float) -> None:
    """With one lossy member the machine vanishes at an acknowledgement: the copies differ, and are
    made equal at the next activation."""
    number = t.places[t.rng.randrange(3)]
    await t.members.stop(number)
    await t.members.start(number, "--lossy")
    await t.activate()
    async with t.load():
        await asyncio.sleep(0.1 + t.rng.uniform(0, 0.3) * scale)
        await t.vanish()
    await t.members.stop(number)
    await t.members.start(number)
    await t.activate()
    t.counts["reconciliations"] += 1
    await t.read_all()
    await t.good()


async def restart_repair(t: Tormentor, scale: float) -> None:
    """One region is put back to an older copy; while the set is activated daemons are killed and
    started again."""
    number = t.places[t.rng.randrange(3)]
    await t.members.stop_all()
    t.members.keep_copy(number)
    await t.members.start_all()
    await t.activate()
    await t.work(int(200 * scale))
    await t.flush()
    await t.vanish()
    await t.members.stop_all()
    t.members.put_back(number)
    await t.members.start_all()
    upstairs = t.make()
    activation = asyncio.create_task(upstairs.activate(timeout_seconds=90))
    for _ in range(3):
        await asyncio.sleep(t.rng.uniform(0, 0.3))
        victim = t.places[t.rng.randrange(3)]
        t.members.kill(victim)
        await asyncio.sleep(t.rng.uniform(0, 0.2))
        await t.members.start(victim)
    await activation
    t.counts["reconciliations"] += 1
    await t.read_all()
    await t.good()


async def older_copy(t: Tormentor, scale: float) -> None:
    """A member is killed under a running volume and comes back with an older copy of its region: it
    must not be taken for what it was."""
    number = t.rng.randrange(3)
    place = t.places[number]
    await t.members.stop_all()
    t.members.keep_copy(place)
    await t.members.start_all()
    await t.activate()
    await t.work(int(120 * scale))
    await t.flush()
    t.members.kill(place)
    t.members.put_back(place)
    await t.work(int(20 * scale))
    await t.members.start(place)
    await t.well()
    if not t.slot(number).repairs_completed:
        raise TormentError("an older copy was gone on with")
    t.counts["older copies"] += 1
    await t.good()


async def replace_reconcile(t: Tormentor, scale: float) -> None:
    """A member is replaced in the middle of the reconciliation that fills it."""
    number = t.rng.randrange(3)
    await t.activate()
    await t.work(int(100 * scale))
    t.members.kill(t.places[number])
    await t.work(int(200 * scale))
    await t.flush()
    await t.vanish()
    await t.members.start_all()
    upstairs = t.make()
    upstairs.set_repair_limits(RepairLimits(_SLOW_REPAIR))
    activation = asyncio.create_task(upstairs.activate(timeout_seconds=90))
    try:
        await t.until(lambda: t.slot(number).state is SlotState.RECONCILE, "a comparison", 5)
    except TormentError:
        t.counts["too quick to meet"] += 1
    else:
        await _replace(t, number, t.spare)
        t.counts["replacements"] += 1
    upstairs.set_repair_limits(RepairLimits())
    await activation
    t.counts["reconciliations"] += 1
    await t.read_all()
    await t.good()


async def replace_before_active(t: Tormentor, scale: float) -> None:
    """A dead member is replaced before the set is active, which could not be otherwise."""
    await t.activate()
    await t.work(int(150 * scale))
    await t.deactivate()
    number = t.rng.randrange(3)
    dead = t.places[number]
    t.members.kill(dead)
    upstairs = t.make()
    activation = asyncio.create_task(upstairs.activate(timeout_seconds=90))
    await asyncio.sleep(0.2)
    if activation.done():
        raise TormentError("active with two of three, which was not asked for")
    await _replace(t, number, t.spare)
    await activation
    t.counts["replacements"] += 1
    t.members.create(dead)
    await t.good()


async def reconnect(t: Tormentor, scale: float) -> None:
    """Members are killed and started again all the time; no request fails."""
    await t.activate()
    async with t.load():
        for _ in range(max(2, int(6 * scale))):
            victim = t.places[t.rng.randrange(3)]
            t.members.kill(victim)
            await asyncio.sleep(t.rng.uniform(0, 0.3))
            await t.members.start(victim)
            await t.well()
    await t.good()


async def two_at_once(t: Tormentor, scale: float) -> None:
    """Two members are killed together: requests may fail, nothing that was acknowledged is lost,
    since the third holds it."""
    await t.activate()
    async with t.load(failing=True):
        for _ in range(max(1, int(2 * scale))):
            for victim in t.rng.sample(t.places, 2):
                t.members.kill(victim)
            await asyncio.sleep(t.rng.uniform(0, 0.5))
            await t.members.start_all()
            await t.well()
    await t.good()


async def freeze(t: Tormentor, scale: float) -> None:
    """Members are stopped and go on: a pause costs time and nothing else. Now and then longer than
    a silence is borne."""
    await t.activate()
    async with t.load():
        for _ in range(max(2, int(3 * scale))):
            number = t.rng.randrange(3)
            long = scale > 1 and t.rng.random() < 0.2
            if long:
                # Of a second member, while another one is not whole, requests wait for 20 s only
                # and fail then: `OFFLINE_SECONDS_MAX`.
                await t.well()
            t.members.freeze(t.places[number])
            await asyncio.sleep(LONG_FREEZE_SECONDS if long else 0.3)
            t.members.thaw(t.places[number])
            t.counts["frozen"] += 1
        await t.well()
    await t.good()


async def machine_killed(t: Tormentor, scale: float) -> None:
    """The machine vanishes under load, again and again, and the next one takes its place."""
    for _ in range(3):
        await t.activate()
        async with t.load():
            await asyncio.sleep(0.05 + t.rng.uniform(0, 0.3) * scale)
            await t.vanish()
        if t.rng.random() < 0.5:
            for victim in t.rng.sample(t.places, t.rng.randint(1, 3)):
                t.members.kill(victim)
            await t.members.start_all()
    await t.activate()
    await t.read_all()
    await t.good()


async def takeover(t: Tormentor, scale: float) -> None:
    """A second machine takes over from one that runs; the first can do nothing any more."""
    await t.activate()
    await t.work(int(60 * scale))
    first = t.volume
    async with t.load():
        await asyncio.sleep(0.1)
        await t.taken_over()
    await t.activate()
    await t.work(int(60 * scale))
    await t.until(lambda: first.status().state.name == "DISABLED", "the first one notices")
    await first.close()
    await t.good()


async def two_of_three(t: Tormentor, scale: float) -> None:
    """One member stays away; two serve after a while, and it is filled when it is back."""
    await t.activate()
    await t.work(int(150 * scale))
    await t.flush()
    await t.vanish()
    away = t.rng.randrange(3)
    t.members.kill(t.places[away])
    t.two_after = 0.5
    await t.activate()
    t.two_after = 0.0
    await t.read_all()
    await t.work(int(60 * scale))
    await t.members.start(t.places[away])
    await t.well()
    t.counts["two of three"] += 1
    await t.good()


async def read_only(t: Tormentor, scale: float) -> None:
    """Served read-only with each one member missing, and with each two missing."""
    await t.activate()
    await t.work(int(150 * scale))
    await t.good()
    t.members.mode = "ro"
    every = t.places
    for there in ([0, 1], [1, 2], [0, 2], [0], [1], [2]):
        for place in there:
            await t.members.start(every[place])
        await t.activate(read_only=True)
        await t.read_all()
        refused = await t.ask(BlockOp.WRITE, 0, 1, bytes(t.geometry.block_size))
        if refused.status.name != "READ_ONLY":
            raise TormentError(f"a write to a read-only volume ended {refused.status.name}")
        await t.volume.deactivate()
        await t.volume.close()
        await t.members.stop_all()
    t.members.mode = "rw"


SCENARIOS: dict[str, Scenario] = {
    one.__name__.replace("_", "-"): one
    for one in (
        live_repair,
        failed_live_repair,
        replay,
        repair,
        restart_repair,
        older_copy,
        replace_reconcile,
        replace_before_active,
        reconnect,
        two_at_once,
        freeze,
        machine_killed,
        takeover,
        two_of_three,
        read_only,
    )
}
