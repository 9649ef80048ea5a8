"""What a downstairs' refusal of a session means for its slot and for the volume.

One row per reason that `downstaird` gives. A reason that is not in here (a newer release's), and a
connection that failed without one, are tried again.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class Outcome(enum.Enum):
    """What is done. Whatever it is, the slot shows the reason until the next attempt."""

    RETRY = "tried again after a while"
    FAULT = "the member is given up for replay, and repaired when it comes back"
    DISABLE = "the volume is disabled with the reason; activate it again"
    DISABLE_IF_JOINED = "the volume is disabled if this member was active before: it was taken over"


@dataclass(frozen=True, slots=True)
class Refusal:
    """`activating`: the volume is GO_ACTIVE. `serving`: it is active, and the member has to be
    filled or is new. `offline`: it is active, and frames are held for the member."""

    meaning: str
    activating: Outcome
    serving: Outcome
    offline: Outcome


_RETRY, _FAULT, _DISABLE = Outcome.RETRY, Outcome.FAULT, Outcome.DISABLE
_TAKEN = Outcome.DISABLE_IF_JOINED

REFUSALS: Mapping[str, Refusal] = {
    "GENERATION_TOO_LOW": Refusal(
        "an upstairs with this generation or a higher one was promoted", _DISABLE, _TAKEN, _TAKEN
    ),
    "KEY_MISMATCH": Refusal(
        "the region's blocks are encrypted with another key", _DISABLE, _FAULT, _FAULT
    ),
    "VERSION_MISMATCH": Refusal(
        "the two ends have no data protocol in common: one of them is to be updated",
        _RETRY,
        _RETRY,
        _FAULT,
    ),
    "REGION_MISMATCH": Refusal("another region is served at the address", _RETRY, _RETRY, _FAULT),
    "GEOMETRY_MISMATCH": Refusal(
        "the region has other blocks or extents than the request says", _RETRY, _RETRY, _FAULT
    ),
    "ENCRYPTION_MISMATCH": Refusal(
        "the region is encrypted and no key was given, or the reverse", _RETRY, _RETRY, _FAULT
    ),
    "READ_ONLY_MISMATCH": Refusal(
        "the region is served read-only and writes are wanted, or the reverse",
        _RETRY,
        _RETRY,
        _FAULT,
    ),
    "REGION_IN_USE": Refusal("the region belongs to another volume", _RETRY, _RETRY, _FAULT),
    "REGION_NOT_BLANK": Refusal(
        "the region belongs to nobody, and something is in it", _RETRY, _RETRY, _FAULT
    ),
}
_UNKNOWN = Refusal("", _RETRY, _RETRY, _RETRY)


def refusal(code: str) -> Refusal:
    """The row of a reason."""
    return REFUSALS.get(code, _UNKNOWN)
