"""Discards a member missed are not sent to it again."""

from __future__ import annotations

import numpy as np

from stairlib.wire.frame import OpKind
from vmmd.upstairs.core.replay import ReplayLog


def plant(patch) -> None:
    replay = ReplayLog.replay

    def forgetful(self, member):
        kept = []
        for record in replay(self, member):
            kinds = np.array([OpKind.FLUSH]) if record.is_flush else record.ops()["kind"]
            if (kinds == OpKind.DISCARD).all():
                record.pending &= ~member.bit
                member.jobs -= record.count
                member.bytes -= record.payload_bytes
            else:
                kept.append(record)
        return kept

    patch.setattr(ReplayLog, "replay", forgetful)
