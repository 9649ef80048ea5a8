"""What a session asks of its shell: work for the lane, copies, and their limits."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from downstaird.core.engine import FlushWork
from downstaird.core.repair_plan import CopySource
from stairlib.wire.frame import Bytes


@dataclass(slots=True)
class RunWork:
    """To be run on the lane, then given back to `work_done`. Jobs may still join until the turn is
    over."""

    work: FlushWork
    kind: int
    jobs: list[int]
    refused: str = ""  # why the snapshot of the first of them is not taken


@dataclass(frozen=True, slots=True)
class CopyExtent:
    """To be copied by a task, then given back to `copy_done` or `copy_failed`. `rehearsal`: read,
    compared and checked only, nothing changes here."""

    job: int
    extent: int
    source: CopySource
    rehearsal: bool = False


@dataclass(frozen=True, slots=True)
class LimitRepair:
    """The rate of all copies together, and how many may go on at once, from now on; 0 is none."""

    bytes_per_second: int
    copies: int = 0


Effect = RunWork | CopyExtent | LimitRepair


class PutOff(enum.Enum):
    """Nothing is to be run, or answered yet: the next flush does it."""

    PUT_OFF = enum.auto()


PUT_OFF = PutOff.PUT_OFF


@dataclass(slots=True)
class Turn:
    """What a turn gave: a reply to send, effects to carry out, and whether another turn is due.
    `patient`: nobody waits for the reply, which tells of writes and discards that went well."""

    reply: list[Bytes] | None
    effects: list[Effect]
    more: bool
    patient: bool
