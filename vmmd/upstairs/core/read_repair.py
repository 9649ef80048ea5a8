"""Read-repair: a block that was bad on one member is written again from one where it was good.

The good copy goes out as an ordinary write to all members, with the context and bytes that the good
member gave: order, flushes and replay treat it as any other, stamps stay equal, and nothing is
encrypted anew. A block that was never written where it is good is discarded.

It is the newest data only if nothing changed the block since the good read was sent: that read sees
every mutation with a lower job and none with a higher one. So a block with a mutation of a higher
job in the replay log is left alone; what was written last heals it. (The log still has every such
mutation: a member's answers come in order, and the log is trimmed by its later flushes only.)

docs/adr/0017 has the reasons. In a read-only set nothing is ever written.
"""

from __future__ import annotations

import numpy as np

from stairlib.model.context import ContextArray, written
from stairlib.wire.frame import OpKind
from vmmd.upstairs.core import limits
from vmmd.upstairs.core.events import BlocksHealed
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.slot import Member
from vmmd.upstairs.core.upstairs_states import UpstairsState

Blocks = frozenset[int]
NO_BLOCKS: Blocks = frozenset()


class ReadRepair:
    """Counts bad blocks, and heals them within bounds."""

    def __init__(self, region: RegionSet) -> None:
        self._region = region
        self._budget = float(limits.HEALED_BLOCKS_PER_SECOND)
        self._budget_at = region.now
        self._healed_since = 0
        self._told_at = -limits.HEALED_TOLD_SECONDS

    def bad_blocks(
        self, member: Member, offset: int, data: memoryview, contexts: ContextArray
    ) -> Blocks:
        """Which blocks of a read that did not open are bad, by number in the region. Only looked at
        after a failure, hence one by one."""
        size = self._region.config.geometry.block_size
        opens = self._region.codec.open
        bad = [
            offset + index
            for index in range(len(contexts))
            if opens(
                data[index * size : (index + 1) * size],
                contexts[index : index + 1],
                ((offset + index, 1),),
            )
            is None
        ]
        member.bad_blocks += len(bad)
        return frozenset(bad)

    def tired_of(self, member: Member) -> bool:
        """Whether the member had so many bad blocks that it is better filled anew, and others can
        do that."""
        others = any(m is not member for m in self._region.active)
        return member.bad_blocks >= limits.BAD_BLOCKS_MAX and others

    def heal(
        self, bad: Blocks, job: int, offset: int, data: memoryview, contexts: ContextArray
    ) -> None:
        """`data` and `contexts` are what a member gave for blocks from `offset` on, as job `job`;
        they have been checked. Those in `bad` are written again everywhere."""
        region = self._region
        if region.config.read_only or region.state is not UpstairsState.ACTIVE:
            return
        given = np.array([b - offset for b in sorted(bad) if 0 <= b - offset < len(contexts)], int)
        changed = region.log.changed_after(job, offset, len(contexts))
        blocks: list[int] = (given[~changed[given]] + offset).tolist()
        if region.usable_count < limits.WRITES_NEEDED or not self._affordable(len(blocks)):
            return
        size = region.config.geometry.block_size
        ops: list[tuple[int, int, int]] = []
        taken: list[int] = []
        there = written(contexts)
        for block in blocks:
            kind = OpKind.WRITE if there[block - offset] else OpKind.DISCARD
            if kind is OpKind.WRITE:
                taken.append(block - offset)
            last = ops[-1] if ops else None
            if last is not None and last[0] == kind and last[1] + last[2] == block:
                ops[-1] = (kind, last[1], last[2] + 1)
            else:
                ops.append((kind, block, 1))
        if ops:
            payload = b"".join(data[index * size : (index + 1) * size] for index in taken)
            region.mutate(ops, np.array(contexts[taken]), payload)
            region.blocks_healed += len(blocks)
            self._healed_since += len(blocks)
            self._tell(blocks[0])

    def _affordable(self, count: int) -> bool:
        """A rotten medium must not crowd out the guest: the next read of the block tries again."""
        now = self._region.now
        rate = limits.HEALED_BLOCKS_PER_SECOND
        self._budget = min(float(rate), self._budget + (now - self._budget_at) * rate)
        self._budget_at = now
        if not count or count > self._budget:
            return False
        self._budget -= count
        return True

    def _tell(self, block: int) -> None:
        now = self._region.now
        if now - self._told_at >= limits.HEALED_TOLD_SECONDS:
            self._told_at = now
            self._region.effects.append(BlocksHealed(block, self._healed_since))
            self._healed_since = 0
