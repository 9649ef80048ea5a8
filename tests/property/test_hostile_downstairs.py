"""A downstairs that lies: replies with changed fields, missing and doubled parts, sizes that do not
fit, and sessions that tell nonsense. Whatever it sends, no step of the upstairs raises: its slot is
cut off or faulted with a reason, or the volume is disabled with one; the others go on serving what
was written. STAIRWELL_SEEDS=first:count runs other seeds."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from stairlib.model.cipher import AES_256_GCM, AES_256_GCM_SIV
from stairlib.wire.frame import (
    OP,
    Frame,
    FrameError,
    FrameKind,
    OpKind,
    OpStatus,
    decode,
    encode,
)
from tests.property.seeded import first_seeds, run_seeds
from tests.unit.vmmd.upstairs.world import World
from vmmd.upstairs.core import events
from vmmd.upstairs.core.refusals import REFUSALS
from vmmd.upstairs.core.slot_states import SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState

SEEDS_PER_TEST = 50
LIAR = "d1:1"
CIPHERS = ("", AES_256_GCM, "", AES_256_GCM_SIV)
WORDS = (0, 1, 2, 3, 255, 2**31, 2**32 - 1)


class LyingWorld(World):
    """`d1:1` lies with `rate`; the others are as they should be."""

    def __init__(self, seed: int) -> None:
        self.liar = random.Random(seed + 1)
        self.rate = self.liar.choice((0.02, 0.1, 0.4))
        self.lying = True
        self.lies = 0
        super().__init__(seed, cipher=CIPHERS[seed % len(CIPHERS)])
        honest = self.daemons[LIAR].open_session

        def open_session(*arguments, **named):
            if self.lying and self.liar.random() < self.rate / 4:
                self.lies += 1
                return self.liar.choice((*REFUSALS, "OF_ANOTHER_RELEASE")), None
            code, info = honest(*arguments, **named)
            if info is not None and self.lying and self.liar.random() < self.rate:
                info = self.changed_session(info)
            return code, info

        self.daemons[LIAR].open_session = open_session

    def changed_session(self, info: events.SessionInfo) -> events.SessionInfo:
        self.lies += 1
        stamps = info.stamps
        count = self.liar.choice((0, 1, len(stamps.flags) - 1, len(stamps.flags) + 1, 5000))
        wrong = events.ExtentStamps(
            np.resize(stamps.generations, count),
            np.resize(stamps.flushes, count),
            np.resize(stamps.flags, count),
        )
        column = self.liar.choice(("generations", "flushes", "flags"))
        uneven = replace(stamps, **{column: getattr(wrong, column)})
        # Numbers that can be are another matter: nobody can see that newer stamps are not true.
        number = self.liar.choice((2**63, 2**64 - 1))
        column = self.liar.choice(("generations", "flushes"))
        high = replace(stamps, **{column: np.full_like(stamps.flushes, number)})
        flagged = events.ExtentStamps(
            stamps.generations, stamps.flushes, np.full_like(stamps.flags, self.liar.choice((2, 4)))
        )
        return self.liar.choice(
            (
                replace(info, stamps=wrong),
                replace(info, stamps=uneven),
                replace(info, stamps=high),
                replace(info, stamps=flagged),
                replace(info, region_id="region-0"),
                replace(info, region_id="somebody else's"),
                replace(info, cipher="rot13"),
                replace(info, owner_id="nobody"),
            )
        )

    def _to_client(self, upstairs, link, data: bytes) -> None:
        if link.server.address == LIAR and self.lying and self.liar.random() < self.rate:
            self.lies += 1
            for lie in self.changed(data):
                try:
                    decode(lie)
                except FrameError as error:
                    # As the shell does with what is not a frame.
                    self.cut(link, f"not a frame: {error}")
                    return
                super()._to_client(upstairs, link, lie)
            return
        super()._to_client(upstairs, link, data)

    def notice(self) -> None:
        """The liar says something outside of any answer."""
        texts = ("", "SHUTTING_DOWN", "\ufffd" * 300, "NO_LONGER_ACTIVE says who")
        for link in list(self.links.values()):
            if link.server.address == LIAR and not link.cut:
                self.lies += 1
                self.feed(events.Notice(link.number, self.liar.choice(texts)))

    def changed(self, data: bytes) -> list[bytes]:
        """What comes in the reply's place."""
        liar = self.liar
        kind = liar.randrange(6)
        if kind == 0:
            return []
        if kind == 1:
            return [data, data]
        if kind == 2:
            broken = bytearray(data)
            broken[liar.randrange(len(broken))] ^= 1 << liar.randrange(8)
            return [bytes(broken)]
        frame = decode(data)
        if kind == 3:
            return [self.with_another_table(frame)]
        if kind == 4:
            payload = bytes(frame.payload)
            cut = liar.choice((payload[:-1], payload[: len(payload) // 2], payload + bytes(512)))
            return [self.made(frame, np.array(frame.ops), payload=cut)]
        contexts = np.array(frame.contexts)
        contexts = liar.choice((contexts[:0], contexts[:-1], np.concatenate([contexts, contexts])))
        return [self.made(frame, np.array(frame.ops), contexts=contexts)]

    def with_another_table(self, frame: Frame) -> bytes:
        liar = self.liar
        ops = np.array(frame.ops)
        if len(ops) and liar.random() < 0.3:
            cuts = [slice(0, 1), slice(1, None)]
            if self.told_apart(ops):
                cuts.append(slice(None, None, -1))
            ops = ops[liar.choice(cuts)]
        for row in ops:
            name = liar.choice([name for name in OP.names or () if "_" not in name])
            if name == "status":
                row[name] = liar.choice([*OpStatus, 77])
            elif name == "kind":
                row[name] = liar.choice([*OpKind, 88])
            elif name == "job":
                near = (-1, 1) if self.told_apart(ops) else ()
                row[name] = max(0, int(row[name]) + liar.choice((*near, 1000, 2**40)))
            else:
                row[name] = liar.choice(WORDS) % (2 ** (8 * OP[name].itemsize))
        ops["blob_bytes"] = ops["dependency_count"] = 0
        return self.made(frame, ops)

    def told_apart(self, ops) -> bool:
        """Whether a good block in the place of another is seen through. A hash alone does not say
        where its block belongs: in a set that is not encrypted nobody can tell."""
        return bool(self.cipher) or OpKind.READ not in ops["kind"]

    def made(self, frame: Frame, ops, *, contexts=None, payload=None) -> bytes:
        blobs = [bytes(frame.blobs)] if int(ops["blob_bytes"].sum()) else []
        return b"".join(
            encode(
                FrameKind.REPLY,
                ops,
                sequence=frame.sequence,
                blobs=blobs,
                contexts=frame.contexts if contexts is None else contexts,
                payload=[bytes(frame.payload) if payload is None else payload],
            )
        )


class Run:
    """One seeded run. In a third of them another member is replaced beside the liar, in a third the
    liar comes by a replacement."""

    def __init__(self, seed: int) -> None:
        self.world = LyingWorld(seed)
        # What it tells of its extents may be anything.
        self.world.outdated.add(LIAR)
        self.replacement = ((), (2, "d2:1", "d3:1"), (1, "d3:1", LIAR))[seed % 3]
        if seed % 3 == 2:
            self.world.targets[1] = "d3:1"
            self.world.crash_upstairs()

    def replace(self) -> None:
        world = self.world
        if not self.replacement or world.rng.random() > 0.05:
            return
        slot, old, new = self.replacement
        key = world.ask(lambda key: events.Replace(key, old, new))
        if world.answers[key].error is None:
            world.targets[slot] = new
            self.replacement = ()

    def go(self) -> None:
        world = self.world
        world.ask(events.Activate)
        for _ in range(60):
            if world.upstairs.state is UpstairsState.DISABLED:
                assert world.upstairs.status().reason
                world.crash_upstairs()
                world.ask(events.Activate)
            self.guest()
            if world.rng.random() < 0.1:
                world.break_links(LIAR)
            if world.rng.random() < 0.05:
                world.ask(events.Verify)
            if world.rng.random() < 0.03:
                world.notice()
            self.replace()
            world.run_until(lambda: False, world.rng.choice((0.005, 0.05, 0.6)))
            slot = world.upstairs.status().slots[1]
            assert slot.state is not SlotState.STOPPING or slot.last_error
        # Who has told of another region is not taken back: the next upstairs looks anew.
        world.lying = False
        world.crash_upstairs()
        world.ask(events.Activate)
        assert world.run_until(world.healthy, 120), world.upstairs.status()
        assert world.run_until(lambda: not world.in_flight, 30), "guest requests hang"

    def guest(self) -> None:
        world, rng = self.world, self.world.rng
        batch = []
        for _ in range(rng.randint(1, 5)):
            length = rng.randint(1, 4)
            offset = rng.randint(0, world.geometry.block_count - length)
            if not world.free(offset, length):
                continue
            make = rng.choice((world.write, world.read, world.read, world.write_unwritten))
            batch.append(make(offset, length))
        if rng.random() < 0.2:
            batch.append(world.flush())
        if batch:
            world.submit(batch)

    def rng(self) -> random.Random:
        return self.world.rng


@pytest.mark.parametrize("first", first_seeds(SEEDS_PER_TEST))
def test_a_lying_downstairs_never_breaks_a_step(first: int) -> None:
    made: list[Run] = []

    def make(seed: int) -> Run:
        made.append(Run(seed))
        return made[-1]

    run_seeds(make, first, SEEDS_PER_TEST)
    assert sum(run.world.lies for run in made) > len(made)
