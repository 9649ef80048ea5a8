"""Who may own a region: what an upstairs proposes, and the rules it is accepted or refused by.

Each refusal is a StateError of its own reason that names both values, so that an operator reads
what differs and a client can tell the reasons apart. A promotion is kept durably before it is
answered, hence an older generation stays refused over restarts. A region belongs to its first owner
for ever, and is blank when it gets one: what another life left in it, stamps above all, must never
stand beside the members of a set. To use it for another volume, create it anew."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace

from downstaird.core.engine import Ownership, RegionDefinition
from stairlib.model.errors import FieldViolation, InvalidRequestError, StateError
from stairlib.model.geometry import Geometry


@dataclass(frozen=True, slots=True)
class Proposal:
    """What an upstairs asks for. `geometry` and `region_id` None where any will do. `lossy`: its
    requests are to be held back at random. `key_check` as in Ownership."""

    upstairs_id: uuid.UUID
    session_id: uuid.UUID
    generation: int
    read_only: bool
    encrypted: bool
    data_versions: tuple[int, ...]
    geometry: Geometry | None
    region_id: uuid.UUID | None
    lossy: bool = False
    key_check: bytes = field(default=b"", repr=False)


def check_compatible(
    proposal: Proposal, definition: RegionDefinition, *, read_only: bool, versions: tuple[int, ...]
) -> int:
    """The data version to speak, the caller's best that is among `versions`. StateError with reason
    VERSION_MISMATCH, REGION_MISMATCH, GEOMETRY_MISMATCH, ENCRYPTION_MISMATCH or
    READ_ONLY_MISMATCH."""
    version = next((offer for offer in proposal.data_versions if offer in versions), None)
    if version is None:
        raise _mismatch(
            "VERSION_MISMATCH",
            "data protocol version",
            ", ".join(map(str, proposal.data_versions)) or "none",
            ", ".join(map(str, versions)),
            "run the same release on both ends",
        )
    if proposal.region_id is not None and proposal.region_id != definition.id:
        raise _mismatch(
            "REGION_MISMATCH",
            "region",
            str(proposal.region_id),
            str(definition.id),
            "another region is served here: replace the target, or start the right region",
        )
    if proposal.geometry is not None and proposal.geometry != definition.geometry:
        raise _mismatch(
            "GEOMETRY_MISMATCH",
            "geometry",
            proposal.geometry.describe(),
            definition.geometry.describe(),
            "correct the construction request, or create the region with its geometry",
        )
    if proposal.encrypted != definition.encrypted:
        raise _mismatch(
            "ENCRYPTION_MISMATCH",
            "encryption",
            _yes("encrypted", proposal.encrypted),
            _yes("encrypted", definition.encrypted),
            "give or leave out the key, or create the region to match",
        )
    if proposal.read_only != read_only:
        raise _mismatch(
            "READ_ONLY_MISMATCH",
            "access",
            _yes("read-only", proposal.read_only),
            _yes("read-only", read_only),
            "correct read_only, or run the daemon with the other --mode",
        )
    return version


def promoted(proposal: Proposal, current: Ownership, *, blank: bool) -> Ownership:
    """The ownership to record; `blank` says that nothing was ever written to the region.

    StateError REGION_IN_USE for another owner whatever its generation, REGION_NOT_BLANK for a first
    owner of a region that holds something, KEY_MISMATCH as `check_key`, GENERATION_TOO_LOW for a
    generation that was promoted before or is lower than one that was."""
    if proposal.generation == 0:
        raise InvalidRequestError(
            "generation 0 is never promoted: generations start at 1",
            (FieldViolation("generation", "must be 1 or more", "OUT_OF_RANGE"),),
        )
    wanted = Ownership(
        proposal.upstairs_id, proposal.session_id, proposal.generation, proposal.key_check
    )
    if current.owner_id is None:
        if not blank:
            raise StateError(
                "the region belongs to nobody, yet something was written to it: create it anew to "
                "make it a member of a volume",
                reason="REGION_NOT_BLANK",
                requested_by=str(proposal.upstairs_id),
            )
        return wanted
    if current.owner_id != proposal.upstairs_id:
        raise StateError(
            f"the region belongs to upstairs {current.owner_id}, not to {proposal.upstairs_id}: "
            "create it anew if that volume is gone",
            reason="REGION_IN_USE",
            owner_id=str(current.owner_id),
            requested_by=str(proposal.upstairs_id),
        )
    check_key(proposal, current)
    # A session that comes again may name a check that was not recorded yet.
    again = replace(current, key_check=wanted.key_check) == wanted
    if proposal.generation > current.generation or again:
        return wanted
    raise StateError(
        f"generation {proposal.generation} was asked for, but generation {current.generation} "
        f"has been promoted: activate with generation {current.generation + 1} or higher",
        reason="GENERATION_TOO_LOW",
        requested=str(proposal.generation),
        promoted=str(current.generation),
    )


def check_key(proposal: Proposal, current: Ownership) -> None:
    """StateError KEY_MISMATCH unless the caller has the key that the region's blocks are encrypted
    with, as far as that is recorded. What would be written with another key could not be read with
    the right one later."""
    if not current.key_check or proposal.key_check == current.key_check:
        return
    if proposal.key_check:
        why = (
            "the key is not the one that the region was first activated with: give that key (if "
            "that one was wrong, and only then, 'downstaird forget-key' clears it)"
        )
    else:
        why = "the caller does not say which key it has: run the same release on both ends"
    raise StateError(
        f"{why}; nothing was written", reason="KEY_MISMATCH", owner_id=str(current.owner_id or "")
    )


def _mismatch(reason: str, what: str, asked: str, has: str, advice: str) -> StateError:
    return StateError(
        f"{what} differs: asked for {asked}, the region has {has}; {advice}",
        reason=reason,
        requested=asked,
        actual=has,
    )


def _yes(word: str, value: bool) -> str:
    return word if value else f"not {word}"
