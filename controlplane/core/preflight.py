"""The judgement of a downstairs that is to become a member: does it fit, and is it free.

Pure: the shell asks the daemon and hands over what it answered. Every refusal names the target, the
field of the request that holds it, and both values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from stairlib.model.cipher import CIPHERS, describe_cipher
from stairlib.model.construction import RegionSpec
from stairlib.model.errors import StateError
from stairlib.model.geometry import Geometry


@dataclass(frozen=True, slots=True)
class RegionFacts:
    """What a downstairs says of its region. Empty ids are None. `cipher` is empty for a region that
    is not encrypted. `key_check` is what the key of its owner is recognised by; empty until that
    was recorded. `free_bytes` is None when it did not say."""

    region_id: UUID
    geometry: Geometry
    encrypted: bool
    read_only: bool
    owner_id: UUID | None
    active_session_id: UUID | None
    written: bool = False
    cipher: str = ""
    key_check: bytes = dataclasses.field(default=b"", repr=False)
    stored_bytes: int = 0
    free_bytes: int | None = None
    faulted_extents: int = 0


def judge(
    *,
    target: str,
    field: str,
    region: RegionSpec,
    facts: RegionFacts,
    siblings: Mapping[str, UUID],
    ciphers: Mapping[str, str],
    key_checks: Mapping[str, bytes],
    siblings_written: bool = False,
) -> None:
    """StateError unless the downstairs at `target` can take a slot of `region`.

    `siblings` are the region ids of the members that stay, by address; `ciphers` how the regions of
    those that answered are encrypted; `key_checks` those of members with the target's owner, where
    they are recorded; `siblings_written` says that one of them holds something.
    """
    if facts.geometry != region.geometry:
        raise StateError(
            f"the region at {target} has another geometry: {facts.geometry.describe()}; the volume"
            f" has {region.geometry.describe()}. Name a downstairs whose region was created with"
            " the volume's geometry",
            reason="TARGET_GEOMETRY_MISMATCH",
            target=target,
            field=field,
            target_geometry=facts.geometry.describe(),
            volume_geometry=region.geometry.describe(),
        )
    encrypted = region.options.key is not None
    if facts.encrypted != encrypted:
        raise StateError(
            f"the region at {target} was created {_encrypted(facts.encrypted)}, and the volume is"
            f" {_encrypted(encrypted)}; name a downstairs created like the volume",
            reason="TARGET_ENCRYPTION_MISMATCH",
            target=target,
            field=field,
        )
    _judge_cipher(target, field, facts, ciphers)
    if facts.read_only != region.options.read_only:
        raise StateError(
            f"the downstairs at {target} serves its region {_access(facts.read_only)}, and the"
            f" volume is opened {_access(region.options.read_only)}",
            reason="TARGET_READ_ONLY_MISMATCH",
            target=target,
            field=field,
        )
    _judge_free(target, field, region, facts, siblings)
    _judge_key(target, field, facts, key_checks)
    if region.options.read_only and siblings_written and not facts.written:
        raise StateError(
            f"the region at {target} is empty, and the volume's is not: nothing is copied to a new"
            " member of a read-only region. Clone the region from a member first ('downstaird"
            " clone'), then replace",
            reason="TARGET_BLANK",
            target=target,
            field=field,
        )


def _judge_cipher(target: str, field: str, facts: RegionFacts, ciphers: Mapping[str, str]) -> None:
    """StateError unless the region is encrypted by a suite that exists, and that of the others."""
    if facts.encrypted and facts.cipher not in CIPHERS:
        raise StateError(
            f"the region at {target} is encrypted with {facts.cipher or 'nothing it names'}; this"
            f" version knows {', '.join(CIPHERS)}. Name a downstairs of the same release",
            reason="TARGET_CIPHER_UNKNOWN",
            target=target,
            field=field,
            target_cipher=facts.cipher,
        )
    for address, cipher in ciphers.items():
        if cipher != facts.cipher:
            raise StateError(
                f"the region at {target} is {describe_cipher(facts.cipher)}, that at {address} is"
                f" {describe_cipher(cipher)}. Name a downstairs whose region was created with"
                f" {f'--cipher {cipher}' if cipher else 'no cipher'}",
                reason="TARGET_CIPHER_MISMATCH",
                target=target,
                field=field,
                target_cipher=facts.cipher,
                volume_cipher=cipher,
            )


def _judge_key(
    target: str, field: str, facts: RegionFacts, key_checks: Mapping[str, bytes]
) -> None:
    """StateError if the target was a member of the same volume under another key."""
    for address, key_check in key_checks.items():
        if facts.key_check and key_check and key_check != facts.key_check:
            raise StateError(
                f"the region at {target} belongs to this volume and was last used with another key"
                f" than that at {address}: create it anew, or name another downstairs",
                reason="TARGET_KEY_MISMATCH",
                target=target,
                field=field,
                sibling=address,
            )


def _judge_free(
    target: str,
    field: str,
    region: RegionSpec,
    facts: RegionFacts,
    siblings: Mapping[str, UUID],
) -> None:
    """StateError if the region already serves somebody."""
    for address, region_id in siblings.items():
        if region_id == facts.region_id:
            raise in_use(
                target,
                field,
                f"it serves region {region_id}, which is already a member of this volume"
                f" under the address {address}",
            )
    if region.options.read_only:
        # Read-only regions are shared: they have no owner, and others' sessions do no harm.
        return
    if facts.owner_id is not None and facts.owner_id != region.options.id:
        raise in_use(
            target,
            field,
            f"its region belongs to volume {facts.owner_id}; create the region anew, or name"
            " another downstairs",
        )
    if facts.owner_id is None and facts.written:
        raise StateError(
            f"the region at {target} belongs to no volume, yet something was written to it; create"
            " it anew, or name another downstairs",
            reason="TARGET_NOT_BLANK",
            target=target,
            field=field,
        )
    if facts.active_session_id is not None:
        raise in_use(target, field, f"session {facts.active_session_id} is using its region now")


def in_use(target: str, field: str, why: str) -> StateError:
    """The refusal of a target that serves somebody already; `why` completes the sentence."""
    return StateError(
        f"the downstairs at {target} is in use: {why}",
        reason="TARGET_IN_USE",
        target=target,
        field=field,
    )


def _encrypted(flag: bool) -> str:
    return "encrypted" if flag else "not encrypted"


def _access(read_only: bool) -> str:
    return "read-only" if read_only else "read-write"
