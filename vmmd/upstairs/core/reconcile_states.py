"""The phases of a reconciliation, which makes members equal before they serve.

What is done in each is in `reconcile.py`; source: reference vcr-and-upstairs.md §12, with marks in
place of closed extents (docs/adr/0003).
"""

from __future__ import annotations

import enum

from stairlib.model.state_table import StateTable


class ReconcilePhase(enum.Enum):
    """Where a reconciliation stands."""

    COMPARE = "compare"
    BEGIN = "begin"
    FIRST_FLUSH = "first flush"
    COPY = "copy"
    LAST_FLUSH = "last flush"
    END = "end"
    DONE = "done"
    FAILED = "failed"


class ReconcileMove(enum.Enum):
    """What moves a reconciliation on."""

    COMPARED = "compared"
    MARKED = "marked"
    FLUSHED = "flushed"
    COPIED = "copied"
    UNMARKED = "unmarked"
    LOST = "lost"


_S, _M = ReconcilePhase, ReconcileMove
RECONCILE = StateTable(
    "a reconciliation",
    _S.COMPARE,
    [
        (_S.COMPARE, _M.COMPARED, _S.BEGIN, "it is known which copies differ from their sources"),
        (_S.BEGIN, _M.MARKED, _S.FIRST_FLUSH, "the destinations' extents are marked, durably"),
        (_S.FIRST_FLUSH, _M.FLUSHED, _S.COPY, "what the sources had not flushed has a stamp"),
        (_S.COPY, _M.COPIED, _S.LAST_FLUSH, "every extent that differed was copied"),
        (_S.LAST_FLUSH, _M.FLUSHED, _S.END, "the copies are durable, the extents whole"),
        (_S.END, _M.UNMARKED, _S.DONE, "no destination has a mark left"),
        *(
            (state, _M.LOST, _S.FAILED, "a member left or refused: all connect again")
            for state in (_S.COMPARE, _S.BEGIN, _S.FIRST_FLUSH, _S.COPY, _S.LAST_FLUSH, _S.END)
        ),
    ],
    ends=(_S.DONE, _S.FAILED),
)
