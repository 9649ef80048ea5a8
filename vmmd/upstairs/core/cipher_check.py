"""Whether a member's region is encrypted as its set is, and the set can be activated as it is
encrypted. Nobody guesses: a member that differs is not taken in."""

from __future__ import annotations

from stairlib.model.cipher import AES_256_GCM, CIPHERS, describe_cipher
from stairlib.model.errors import StateError
from vmmd.upstairs.core.codec import GCM_GENERATION_MAX
from vmmd.upstairs.core.events import SessionInfo
from vmmd.upstairs.core.region_set import RegionSet
from vmmd.upstairs.core.slot import Member
from vmmd.upstairs.core.slot_states import SlotState
from vmmd.upstairs.core.upstairs_states import UpstairsState


def cipher_problem(region: RegionSet, member: Member, session: SessionInfo) -> tuple[str, str]:
    """Why the member's region cannot be one of the set: ENCRYPTION_MISMATCH, CIPHER_UNKNOWN,
    CIPHER_MISMATCH or OWNER_MISMATCH, and a sentence; both empty if it can."""
    cipher = session.cipher
    encrypted = region.config.encryption is not None
    if bool(cipher) != encrypted:
        return "ENCRYPTION_MISMATCH", (
            f"its region is {describe_cipher(cipher)}, and the volume has "
            f"{'a' if encrypted else 'no'} key: give or leave out the key, or create the region to "
            "match"
        )
    if not encrypted:
        return "", ""
    if cipher not in CIPHERS:
        return "CIPHER_UNKNOWN", (
            f"its region is {describe_cipher(cipher)}, and this version knows "
            f"{', '.join(CIPHERS)}: run the same release on both ends"
        )
    found = cipher, session.owner_id
    if region.state is UpstairsState.ACTIVE and found != region.encrypted_as:
        return _mismatch(found, "that of the volume", region.encrypted_as)
    for other in region.members:
        theirs = other.cipher, other.owner_id
        if other is not member and _has_told(other) and found != theirs:
            return _mismatch(found, f"that of slot {other.slot} ({other.address})", theirs)
    return "", ""


def check_generation(region: RegionSet) -> StateError | None:
    """What keeps the set from being activated with its generation, if anything does."""
    if region.cipher != AES_256_GCM or region.generation <= GCM_GENERATION_MAX:
        return None
    return StateError(
        f"generation {region.generation} is too high: a volume {describe_cipher(AES_256_GCM)} has "
        f"generations up to {GCM_GENERATION_MAX}; copy it to regions created with another cipher",
        reason="GENERATION_TOO_HIGH",
        requested=str(region.generation),
        highest=str(GCM_GENERATION_MAX),
    )


def _has_told(member: Member) -> bool:
    """Whether what the member has told of its region is of this connection, or binding."""
    return member.joined_now and (member.held or member.state is not SlotState.NEGOTIATING)


def _mismatch(found: tuple[str, str], whose: str, theirs: tuple[str, str]) -> tuple[str, str]:
    if found[0] != theirs[0]:
        return "CIPHER_MISMATCH", (
            f"its region is {describe_cipher(found[0])}, {whose} "
            f"{describe_cipher(theirs[0])}: create all regions of a set with the same cipher"
        )
    return "OWNER_MISMATCH", (
        f"its region belongs to {found[1] or 'nobody'}, {whose} to "
        f"{theirs[1] or 'nobody'}: they are not copies of one volume"
    )
