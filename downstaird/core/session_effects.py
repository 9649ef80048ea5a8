"""What a session asks of its shell: work for the lane, copies, and their limits."""

from __future__ import annotations

from dataclasses import dataclass

from downstaird.core.engine import FlushWork
from downstaird.core.repair_plan import CopySource


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
