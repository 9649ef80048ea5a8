"""What the replay log says of blocks that were changed after a job."""

from __future__ import annotations

import numpy as np
import pytest

from stairlib.wire.frame import FrameKind, OpKind, encode, pack_op
from vmmd.upstairs.core.replay import Mutation, ReplayLog

BLOCKS = 24


def record(first, ops, **more):
    table = [pack_op(first + at, kind, offset=o, length=n) for at, (kind, o, n) in enumerate(ops)]
    return Mutation(first, len(ops), encode(FrameKind.REQUEST, table, sequence=first), 0, **more)


@pytest.mark.parametrize("seed", range(20))
def test_the_blocks_that_were_changed_after_a_job_are_told(seed):
    """Against one flag a block, whatever part is asked for and from whichever job on."""
    chance = np.random.default_rng(seed)
    log, changes, job = ReplayLog(), [], 1
    for _ in range(8):
        if chance.random() < 0.2:
            log.append(record(job, [(OpKind.FLUSH, 0, 0)], is_flush=True), ())
            job += 1
            continue
        ops = []
        for _ in range(chance.integers(1, 4)):
            offset = int(chance.integers(0, BLOCKS))
            length = int(chance.integers(1, BLOCKS - offset + 1))
            ops.append((OpKind.WRITE if chance.random() < 0.5 else OpKind.DISCARD, offset, length))
        changes += [(job + at, o, n) for at, (_kind, o, n) in enumerate(ops)]
        log.append(record(job, ops), ())
        job += len(ops)
    for after in range(job + 1):
        first = int(chance.integers(0, BLOCKS))
        count = int(chance.integers(1, BLOCKS - first + 1))
        expected = [
            any(j > after and o <= block < o + n for j, o, n in changes)
            for block in range(first, first + count)
        ]
        assert log.changed_after(after, first, count).tolist() == expected
