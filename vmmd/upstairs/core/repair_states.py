"""The phases of a live repair, which fills one member while the guest goes on.

What is done in each is in `live_repair.py`; source: reference vcr-and-upstairs.md §13, with marks
in place of closed extents (docs/adr/0003).
"""

from __future__ import annotations

import enum

from stairlib.model.state_table import StateTable


class RepairPhase(enum.Enum):
    """Where a repair stands."""

    SURVEY = "survey"
    BEGIN = "begin"
    COPY = "copy"
    FINAL = "final"
    END = "end"
    OVER = "over"


class RepairMove(enum.Enum):
    """What moves a repair on."""

    SURVEYED = "surveyed"
    MARKED = "marked"
    COPIED = "copied"
    FLUSHED = "flushed"
    ENDED = "ended"
    GIVEN_UP = "given up"


_S, _M = RepairPhase, RepairMove
REPAIR = StateTable(
    "a live repair",
    _S.SURVEY,
    [
        (_S.SURVEY, _M.SURVEYED, _S.BEGIN, "it is known which extents differ; the member streams"),
        (_S.BEGIN, _M.MARKED, _S.COPY, "the extents are marked, and a source has the first flush"),
        (_S.COPY, _M.COPIED, _S.FINAL, "every extent was copied"),
        (_S.FINAL, _M.FLUSHED, _S.END, "the copies are durable, the extents whole"),
        (_S.END, _M.ENDED, _S.OVER, "no mark is left: the member is active"),
        *(
            (state, _M.GIVEN_UP, _S.OVER, "the member or all sources were lost: tried again")
            for state in (_S.SURVEY, _S.BEGIN, _S.COPY, _S.FINAL, _S.END)
        ),
    ],
    ends=(_S.OVER,),
)
