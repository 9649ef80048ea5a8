"""What a refused session means for its slot and for the volume.

One row per reason that `downstaird` gives, and per reason that the upstairs itself has not to take
what a daemon brings. A reason that is not in here (a newer release's), and a connection that failed
without one, are tried again.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from vmmd.upstairs.core.upstairs_states import UpstairsState


class Outcome(enum.Enum):
    """What is done. Whatever it is, the slot shows the reason until the next attempt."""

    RETRY = "tried again after a while"
    FAULT = (
        "the member is given up for replay, and repaired when it comes back; while activating, and "
        "in a read-only set, it is only tried again and nobody waits for it"
    )
    DISABLE = "the volume is disabled with the reason; activate it again"
    DISABLE_IF_JOINED = "the volume is disabled if this member was active before: it was taken over"
    DISABLE_IF_ALONE = (
        "a volume that is being activated is disabled if no other member may serve; an active one "
        "goes on without this member"
    )


_RETRY, _FAULT, _DISABLE = Outcome.RETRY, Outcome.FAULT, Outcome.DISABLE


@dataclass(frozen=True, slots=True)
class Refusal:
    """`activating`: the volume is GO_ACTIVE. `serving`: it is active, and the member has to be
    filled or is new. `offline`: it is active, and frames are held for the member. `read_only`: the
    set is one that nobody writes to, in either state."""

    meaning: str
    activating: Outcome = _RETRY
    serving: Outcome = _RETRY
    offline: Outcome = _FAULT
    read_only: Outcome = _FAULT

    def outcome(self, state: UpstairsState, *, held: bool, read_only: bool) -> Outcome:
        """What is done in this situation; `held`: frames are held for the member."""
        if state not in (UpstairsState.GO_ACTIVE, UpstairsState.ACTIVE):
            return _RETRY
        if read_only:
            return self.read_only
        if state is UpstairsState.GO_ACTIVE:
            return self.activating
        return self.offline if held else self.serving


_TAKEN = Outcome.DISABLE_IF_JOINED
# The daemon is as it should be and cannot take us now: what is held stays held.
_LATER = {"offline": _RETRY, "read_only": _RETRY}

REFUSALS: Mapping[str, Refusal] = {
    "GENERATION_TOO_LOW": Refusal(
        "an upstairs with this generation or a higher one was promoted",
        _DISABLE,
        _TAKEN,
        _TAKEN,
        _RETRY,
    ),
    "KEY_MISMATCH": Refusal(
        "the region's blocks are encrypted with another key",
        _DISABLE,
        _FAULT,
        read_only=Outcome.DISABLE_IF_ALONE,
    ),
    "VERSION_MISMATCH": Refusal(
        "the two ends have no data protocol in common: one of them is to be updated"
    ),
    "REGION_MISMATCH": Refusal("another region is served at the address"),
    "GEOMETRY_MISMATCH": Refusal("the region has other blocks or extents than the request says"),
    "ENCRYPTION_MISMATCH": Refusal("the region is encrypted and no key was given, or the reverse"),
    "READ_ONLY_MISMATCH": Refusal(
        "the region is served read-only and writes are wanted, or the reverse"
    ),
    "REGION_IN_USE": Refusal("the region belongs to another volume"),
    "REGION_NOT_BLANK": Refusal("the region belongs to nobody, and something is in it"),
    "REGION_TWICE": Refusal("another slot has the same region: two addresses of one daemon"),
    "STAMPS_MALFORMED": Refusal("the daemon does not tell what an extent's stamp can be"),
    "CIPHER_UNKNOWN": Refusal("the region is encrypted in a way this release does not know"),
    "CIPHER_MISMATCH": Refusal("the region is encrypted in another way than the others of the set"),
    "OWNER_MISMATCH": Refusal("the region's blocks were encrypted for another volume"),
    "STARTING": Refusal("the daemon does not serve yet", **_LATER),
    "LIMIT_REACHED": Refusal("the read-only region has as many sessions as it takes", **_LATER),
    "NO_SPACE": Refusal("the promotion could not be stored: the daemon's disk is full", **_LATER),
    "IO_ERROR": Refusal("the promotion could not be stored: the daemon's disk failed", **_LATER),
}
_UNKNOWN = Refusal("", **_LATER)


def refusal(code: str) -> Refusal:
    """The row of a reason."""
    return REFUSALS.get(code, _UNKNOWN)


def described(code: str, reason: str) -> str:
    """The sentence, with a reason that can be looked up before it."""
    known = code in REFUSALS and code not in reason
    return coded(code, reason) if known else reason


def coded(code: str, text: str) -> str:
    """The text beginning with its code, by which programs tell one reason from another."""
    return text if text.startswith(f"{code}:") else f"{code}: {text}"
